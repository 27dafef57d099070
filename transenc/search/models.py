"""The models of a search, loaded as its flags and arguments say."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer

from transenc.devices import resolve_precision
from transenc.encoders import Encoder, load_bi_encoder, load_encoder
from transenc.errors import InputError
from transenc.model_folders import detect_kind, find_model_folder

_LOG = logging.getLogger(__name__)

Rerankers = str | Path | Encoder | Sequence[str | Path | Encoder]

ONE_BI_ENCODER = (
    "an index has the vectors of one bi-encoder; make one of several: distil them into one student "
    "(transenc distill --student), or average those that share a start (transenc average)"
)


def load_models(
    bi_encoder: str | Path,
    rerankers: Rerankers | None,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    precision: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[SentenceTransformer, list[Encoder]]:
    """Load the bi-encoder of a search and what reranks, if anything does.

    Args:
        bi_encoder: Folder or Hub id.
        rerankers: As for `load_rerankers`.
        pooling: For bare Hugging Face folders; the bi-encoder's.
        max_length: The bi-encoder's window in tokens; what reranks keeps its own.
        precision: Number type of the weights: "auto" (what is fast here), "float32", "bfloat16", "float16".
        device: Where to; None: the GPU if there is one.
        trust_remote_code: Allow the models' own Python code to run.

    Returns:
        The bi-encoder, and the list of what reranks.

    Raises:
        InputError: An unusable model or argument, or several bi-encoders.
        StateError: Damaged files.

    Example:
        >>> model, rerankers = load_models("my/encoder", None)  # doctest: +SKIP
    """
    refuse_several(bi_encoder)
    dtype = resolve_precision(precision, device=device)
    model = load_bi_encoder(
        bi_encoder,
        pooling=pooling,
        max_length=max_length,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    if model.similarity_fn_name not in (None, "cosine"):
        _LOG.warning("%s asks for the similarity %s; search compares by cosine", bi_encoder, model.similarity_fn_name)
    return model, load_rerankers(rerankers, precision=precision, device=device, trust_remote_code=trust_remote_code)


def load_rerankers(
    rerankers: Rerankers | None,
    *,
    precision: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> list[Encoder]:
    """Load what reranks: cross-encoders, bi-encoders, or several of them together.

    Args:
        rerankers: Folder or Hub id, or an encoder, which is taken as it is; or a list of them. None: nothing reranks.
        precision: Number type of the weights, as for `load_models`.
        device: Where to; None: the GPU if there is one.
        trust_remote_code: Allow the models' own Python code to run.

    Returns:
        The encoders, each with its own window.

    Raises:
        InputError: An unusable model or argument, or a language model that is no trained encoder.
        StateError: Damaged files.

    Example:
        >>> load_rerankers(None)
        []
    """
    if rerankers is None:
        return []
    single = isinstance(rerankers, str | Path | Encoder)
    given: Sequence[str | Path | Encoder] = [rerankers] if single else rerankers  # type: ignore[list-item,assignment]
    dtype = resolve_precision(precision, device=device)
    loaded: list[Encoder] = []
    for position, reranker in enumerate(given):
        if reranker in given[:position]:
            _LOG.warning("%s is named more than once to rerank, and counts as often", reranker)
        if isinstance(reranker, str | Path):
            if detect_kind(reranker) == "plain":
                raise InputError(f"{reranker} cannot rerank: it is neither a trained cross-encoder nor a bi-encoder")
            reranker = load_encoder(reranker, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
        loaded.append(reranker)
    return loaded


def refuse_several(bi_encoder: Any) -> None:
    """Refuse anything else than one name as the bi-encoder of an index, with what to do.

    Raises:
        InputError: Several, or no name.

    Example:
        >>> refuse_several("my/encoder")
    """
    if not isinstance(bi_encoder, str | Path):
        raise InputError(f"expected the name of a bi-encoder, found {type(bi_encoder).__name__}: {ONE_BI_ENCODER}")


def describe_place(name: str | Path) -> dict[str, str | None]:
    """Return what an index remembers of where its encoder was: a folder, or a Hub id and its revision.

    Raises:
        InputError: No such model.

    Example:
        >>> describe_place("my/encoder")  # doctest: +SKIP
        {'name': 'my/encoder', 'revision': '1a2b...'}
    """
    folder = find_model_folder(name)
    if Path(name).expanduser().is_dir():
        return {"name": str(folder), "revision": None}
    return {"name": str(name), "revision": folder.name}
