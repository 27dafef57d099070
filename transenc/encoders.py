"""Load bi-encoders and cross-encoders with explicit pooling, length and number type; refuse damaged weights.

The libraries underneath load without a word a file that lacks a tensor (it is drawn at random), a file whose keys
are all renamed (every tensor is), a NaN weight, and a folder without a pooling configuration (mean pooling). A model
that passes here has every tensor from the file, finite, and the pooling that its folder or the caller says.
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as transformers_logging

from transenc.devices import resolve_device, resolve_dtype
from transenc.errors import InputError, StateError, TransencError
from transenc.model_folders import (
    check_model_folder,
    declared_length,
    detect_kind,
    extra_modules,
    find_model_folder,
    looks_stripped,
    lowers_case,
    model_digest,
    transformer_subfolder,
)

__all__ = [
    "Encoder",
    "detect_kind",
    "load_bi_encoder",
    "load_cross_encoder",
    "load_encoder",
    "model_digest",
]

Encoder = SentenceTransformer | CrossEncoder

_LOG = logging.getLogger(__name__)
_DEFAULT_LENGTH = 512
# Tensors that a checkpoint may hold and an encoder has no use for: heads of the pretraining task and buffers that
# old versions saved. Anything else that is left over means that the file and its config.json do not belong together.
_UNUSED = re.compile(
    r"(^|\.)position_ids$|(^|\.)pooler\."
    r"|^(cls|lm_head|predictions|lm_predictions|mask_predictions|vocab_\w+|generator_\w+|discriminator_\w+)\."
)
_HEAD = re.compile(r"^(classifier|pre_classifier|classification_head|score|head|sequence_summary)\.")


def load_bi_encoder(
    name: str | Path,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> SentenceTransformer:
    """Load a bi-encoder from a sentence-transformers folder, a bare Hugging Face folder or the Hub.

    Args:
        name: A folder or a Hub id. A local folder is looked for first.
        pooling: How token vectors become one vector: cls, mean, max, lasttoken, weightedmean or
            mean_sqrt_len_tokens. Needed for a folder that does not say (a bare language model, SimCSE or
            Mirror-BERT checkpoint) and for taking the encoder out of a cross-encoder; replaces what the folder says.
        max_length: Tokens kept of a text; None: what the folder says, else the model's limit, at most 512.
        dtype: Number type of the weights, float32, bfloat16 or float16, whatever the file has.
        device: "cpu", "cuda", "cuda:1", "mps"; None: the GPU if there is one.
        trust_remote_code: Allow the folder's own Python code to run.

    Returns:
        The model, on its device, in evaluation mode.

    Raises:
        InputError: No such model, no pooling known, pickled weights, or an argument out of range.
        StateError: Damaged or incomplete files.

    Example:
        >>> load_bi_encoder("./no/such/folder")
        Traceback (most recent call last):
        ...
        transenc.errors.InputError: no such model folder: ./no/such/folder; give a folder, or a Hub id (owner/name)
    """
    torch_dtype, place = resolve_dtype(dtype), resolve_device(device)
    if pooling is not None and pooling not in Pooling.POOLING_MODES:
        raise InputError(f"pooling must be one of {', '.join(Pooling.POOLING_MODES)}, found {pooling!r}")
    folder = find_model_folder(name)
    kind = detect_kind(folder)
    if pooling is None and kind != "bi":
        _refuse_without_pooling(name, folder, cross=kind == "cross")
    check_model_folder(folder)
    with quiet_loading(folder):
        if pooling is None:
            model = SentenceTransformer(
                str(folder),
                device=place,
                local_files_only=True,  # also keeps it from asking the Hub for the model card's base model
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": torch_dtype, "use_safetensors": True},
            )
        else:
            if kind == "bi" and (extra := extra_modules(folder)):
                raise InputError(f"{name}: pooling={pooling} would drop its {', '.join(extra)}; leave pooling out")
            transformer = _build_transformer(folder, torch_dtype, trust_remote_code=trust_remote_code)
            head = Pooling(transformer.get_embedding_dimension(), pooling)
            model = SentenceTransformer(modules=[transformer, head], device=place)
        _check_form(model, name)
        _check_weights(folder, model, trust_remote_code=trust_remote_code)
    own_length = model.max_seq_length or _DEFAULT_LENGTH
    _set_length(model, name, max_length, default=own_length if kind == "bi" else min(own_length, _DEFAULT_LENGTH))
    return model.eval()


def load_cross_encoder(
    name: str | Path,
    *,
    max_length: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    new_head: bool = False,
    trust_remote_code: bool = False,
) -> CrossEncoder:
    """Load a cross-encoder with one output, or make one from a bi-encoder or a plain language model.

    Args:
        name: A folder or a Hub id. A local folder is looked for first.
        max_length: Tokens kept of a pair; None: what the cross-encoder says; with `new_head` twice the length
            of the model it is made from, within the model's limit.
        dtype: Number type of the weights, float32, bfloat16 or float16, whatever the file has.
        device: "cpu", "cuda", "cuda:1", "mps"; None: the GPU if there is one.
        new_head: Put a new head for one score on the encoder of `name`. It is drawn from torch's random
            generator: seed that first.
        trust_remote_code: Allow the folder's own Python code to run.

    Returns:
        The model, on its device, in evaluation mode; `predict` gives the sigmoid unless the model says otherwise.

    Raises:
        InputError: No such model, no trained head without `new_head`, a trained head with it, more than one
            output, pickled weights, or an argument out of range.
        StateError: Damaged or incomplete files.

    Example:
        >>> load_cross_encoder("./no/such/folder", new_head=True)
        Traceback (most recent call last):
        ...
        transenc.errors.InputError: no such model folder: ./no/such/folder; give a folder, or a Hub id (owner/name)
    """
    torch_dtype, place = resolve_dtype(dtype), resolve_device(device)
    folder = find_model_folder(name)
    kind = detect_kind(folder)
    if new_head and kind == "cross":
        raise InputError(f"{name} is a cross-encoder with a trained head; load it as it is (new_head=False)")
    if not new_head and kind != "cross":
        found = "a bi-encoder" if kind == "bi" else "a language model without a head"
        raise InputError(f"{name} is {found}; expected a trained cross-encoder (new_head=True makes one from it)")
    check_model_folder(folder)
    with quiet_loading(folder):
        if new_head:
            transformer = _build_transformer(folder, torch_dtype, head=True, trust_remote_code=trust_remote_code)
            model = CrossEncoder(modules=[transformer], device=place)
        else:
            model = CrossEncoder(
                str(folder),
                device=place,
                local_files_only=True,
                trust_remote_code=trust_remote_code,
                model_kwargs={"dtype": torch_dtype, "use_safetensors": True},
            )
        if model.num_labels != 1:
            raise InputError(f"{name} has {model.num_labels} outputs; expected a cross-encoder with one score")
        _check_form(model, name)
        _check_weights(folder, model, new_head=new_head, trust_remote_code=trust_remote_code)
    own_length = model.max_seq_length or _DEFAULT_LENGTH
    if new_head:
        own_length = 2 * (own_length if kind == "bi" else min(own_length, _DEFAULT_LENGTH))
    _set_length(model, name, max_length, default=own_length)
    return model.eval()


def load_encoder(
    name: str | Path,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Load a trained bi-encoder or cross-encoder, whichever the folder holds.

    Args:
        name: A folder or a Hub id.
        pooling: As for `load_bi_encoder`; used for a bare folder, not for a trained cross-encoder.
        max_length: Tokens kept of a text (bi-encoder) or of a pair (cross-encoder); None: what the folder says.
        dtype: Number type of the weights.
        device: Where to; None: the GPU if there is one.
        trust_remote_code: Allow the folder's own Python code to run.

    Returns:
        The model.

    Raises:
        InputError: As for the two loaders.
        StateError: Damaged or incomplete files.

    Example:
        >>> load_encoder("./no/such/folder")
        Traceback (most recent call last):
        ...
        transenc.errors.InputError: no such model folder: ./no/such/folder; give a folder, or a Hub id (owner/name)
    """
    folder = find_model_folder(name)
    if detect_kind(folder) == "cross":
        return load_cross_encoder(
            folder, max_length=max_length, dtype=dtype, device=device, trust_remote_code=trust_remote_code
        )
    # One --pooling serves a whole list of models: a folder that says how it pools keeps its own.
    if pooling and detect_kind(folder) == "bi":
        _LOG.warning("%s says itself how it pools: pooling=%s is for bare folders and not used", name, pooling)
        pooling = None
    return load_bi_encoder(
        folder, pooling=pooling, max_length=max_length, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )


def _refuse_without_pooling(name: str | Path, folder: Path, *, cross: bool) -> NoReturn:
    if cross:
        found = "is a cross-encoder, not a bi-encoder; to reuse its encoder"
    elif looks_stripped(folder):
        found = "has lost its modules.json, which says how to pool; restore it, or"
    else:
        found = "is a bare Hugging Face folder that does not say how to pool; please"
    raise InputError(f"{name} {found} give --pooling (cls, mean, max, lasttoken, ...)")


def _build_transformer(folder: Path, dtype: torch.dtype, *, trust_remote_code: bool, head: bool = False) -> Transformer:
    place = folder / transformer_subfolder(folder)
    shared = {"local_files_only": True, "trust_remote_code": trust_remote_code}
    return Transformer(
        str(place),
        transformer_task="sequence-classification" if head else "feature-extraction",
        model_kwargs={**shared, "dtype": dtype, "use_safetensors": True},
        processor_kwargs=dict(shared),
        config_kwargs={**shared, "num_labels": 1} if head else dict(shared),
        do_lower_case=lowers_case(place),
        max_seq_length=declared_length(place),
    )


def _check_form(model: Encoder, name: str | Path) -> None:
    """Refuse an encoder with a decoder behind it; give a decoder-only model a padding token, its end token."""
    network: Any = model.transformers_model
    config = network.config
    parts = {key.rpartition(".")[2] for key, _ in network.named_modules()}
    if getattr(config, "is_encoder_decoder", False) or parts >= {"encoder", "decoder"}:
        raise InputError(
            f"{name} is a sequence-to-sequence model ({config.model_type}); expected an encoder such as BERT, a "
            "decoder-only model, or for a bi-encoder also a T5, whose encoder is taken"
        )
    tokenizer = model.tokenizer
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{name}: its tokenizer has neither a padding nor an end token; set pad_token in it")
        tokenizer.pad_token = tokenizer.eos_token
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer.pad_token_id


def _check_weights(folder: Path, model: Encoder, *, trust_remote_code: bool, new_head: bool = False) -> None:
    """Refuse tensors that did not come from the file, tensors left over in it, and non-finite values."""
    network = model.transformers_model
    if not isinstance(network, PreTrainedModel):
        raise InputError(f"{folder}: expected a Hugging Face transformer inside, found {type(network).__name__}")
    # The loading report is only to be had from `from_pretrained` itself, and sentence-transformers does not pass it
    # on. On the meta device the same call matches names and shapes without reading the numbers: about 20 ms.
    loaded: Any = type(network).from_pretrained(
        folder / transformer_subfolder(folder),
        config=copy.deepcopy(network.config),
        device_map="meta",
        output_loading_info=True,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=trust_remote_code,
    )
    report = loaded[1]
    prefix = f"{network.base_model_prefix}."
    missing = [
        key
        for key in report["missing_keys"]
        if not key.endswith("position_ids")
        # A pooler feeds only a head: bi-encoders here never read it, and a new head may come with a new one.
        and not ((new_head or isinstance(model, SentenceTransformer)) and re.search(r"(^|\.)pooler\.", key))
        and not (new_head and not key.startswith(prefix) and _HEAD.match(key))
    ]
    unused = [
        key
        for key in report["unexpected_keys"]
        if not _UNUSED.search(key) and not (isinstance(model, SentenceTransformer) and _HEAD.match(key))
    ]
    for keys, fault in (
        (missing, "are missing from the weights"),
        (unused, "in the weights are unknown to config.json"),
        (report["mismatched_keys"], "have another shape than config.json says"),
    ):
        if keys:
            shown = ", ".join(sorted(map(str, keys))[:3])
            raise StateError(f"{folder}: {len(keys)} tensors {fault} (first: {shown}); fetch the model again")
    for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
        # One pass that carries NaN and inf along, several times faster than isfinite().all().
        if tensor.is_floating_point() and tensor.numel() and not all(torch.isfinite(v) for v in tensor.aminmax()):
            raise StateError(f"{folder}: weight {key} holds NaN or inf; fetch the model again")
    rows = len(network.get_input_embeddings().state_dict()["weight"])
    entries = len(model.tokenizer)
    if entries > rows or entries < rows // 2:
        raise StateError(f"{folder}: the tokenizer has {entries} entries for {rows} embeddings; they do not fit")


def _set_length(model: Encoder, name: str | Path, length: int | None, *, default: int) -> None:
    limit = _position_limit(model)
    if length is None:
        # A tokenizer that knows no limit reports a huge one.
        length = min(default, limit or (default if default <= 10**6 else _DEFAULT_LENGTH))
    elif isinstance(length, bool) or not isinstance(length, int) or length < 3 or length > (limit or length):
        raise InputError(f"max_length for {name} must be a whole number from 3 to {limit or 'any'}, found {length!r}")
    model.max_seq_length = length


def _position_limit(model: Encoder) -> int | None:
    network = model.transformers_model
    assert network is not None
    for key, module in network.named_modules():
        # RoBERTa and its kin number positions from padding_idx + 1, so 514 rows hold 512 tokens.
        if key.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - offset
    limit = getattr(network.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@contextmanager
def quiet_loading(folder: str | Path) -> Iterator[None]:
    """Turn the libraries' many exceptions into one, and leave their bars and reports out of the log.

    Raises:
        InputError: the model brings its own code, which may not run. StateError: it cannot be loaded.

    Example:
        >>> with quiet_loading("my/encoder"):
        ...     raise OSError("no weights")
        Traceback (most recent call last):
        ...
        transenc.errors.StateError: my/encoder: the model cannot be loaded: OSError: no weights
    """
    bars, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    except (TransencError, MemoryError):
        raise
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{folder} brings its own Python code, which does not run unless trust_remote_code is set; "
                "read the code first, then give --trust-remote-code"
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise StateError(f"{folder}: the model cannot be loaded: {type(error).__name__}: {reason}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
