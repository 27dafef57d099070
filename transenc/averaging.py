"""One model of several that share a start: the mean of their weights (model soups, Wortsman et al., ICML 2022)."""

from __future__ import annotations

import copy
import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from transenc.encoders import Encoder, load_encoder
from transenc.errors import InputError, StateError
from transenc.model_folders import find_model_folder, model_digest
from transenc.run import library_versions

_LOG = logging.getLogger(__name__)

# What config.json says of files, training and software; everything else in it decides what the weights compute.
_NO_FORM = {"architectures", "dtype", "id2label", "label2id", "problem_type", "sentence_transformers", "torch_dtype",
            "transformers_version", "use_cache"}  # fmt: skip
_TRAINING = ("_", "initializer_", "gradient_")
_TOKENIZER_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor")
_RELATED = 0.5  # cosine of weights: about 0.99 for trainings from one start


def average_weights(
    models: Sequence[str | Path | Encoder],
    *,
    weights: Sequence[float] | None = None,
    pooling: str | None = None,
    trust_remote_code: bool = False,
) -> Encoder:
    """Average the weights of models that were trained from one start: checkpoints, seeds or cycles.

    The result is one model of the same size, so unlike an ensemble it costs nothing at use. Models that do not share
    their start have nothing in common weight by weight, and their average is worth nothing; a warning tells them.
    Cross-encoders must also share the start of their head, which every cycle and every seed of `distill` draws anew
    unless it continues the cross-encoder (`continue_cross`) or starts from one with a head.

    Args:
        models: 2 or more bi-encoders, or as many cross-encoders: loaded ones, which stay as they are, or folders or
            Hub ids, which are loaded one at a time. Number type, device, length and everything but the weights are
            those of the first. One given twice counts twice, with a warning.
        weights: One for each, 0 or more, not all 0; only their ratios count. None: equal.
        pooling: For bare Hugging Face folders.
        trust_remote_code: Allow the folders' own Python code to run.

    Returns:
        A new encoder. Sums are taken in float64 in the order given, so the result is the same every time; another
        order may change the last bit of a number.

    Raises:
        TypeError: Not a sequence of models.
        InputError: Fewer than 2 models, wrong weights, an unusable model, or models that differ in kind, architecture,
            tokenizer, pooling or shapes (what differs is named), or cross-encoders whose heads differ in their start.
        StateError: A damaged folder, or a weight that is not finite.

    Example:
        >>> from transenc import average_weights  # doctest: +SKIP
        >>> model = average_weights(["runs/seed1/best/bi-encoder", "runs/seed2/best/bi-encoder"])  # doctest: +SKIP
    """
    shares = _check_arguments(models, weights)
    names = [f"models[{i}]" if isinstance(model, Encoder) else str(model) for i, model in enumerate(models)]
    places = [model if isinstance(model, Encoder) else find_model_folder(model) for model in models]
    result, form = None, {}
    own: Mapping[str, torch.Tensor] = {}  # of the first model
    total: dict[str, torch.Tensor] = {}
    for i, (place, name) in enumerate(zip(places, names, strict=True)):
        if place in places[:i]:
            _LOG.warning("%s is given more than once, and counts as often", name)
        model = place
        if not isinstance(model, Encoder):
            model = load_encoder(model, pooling=pooling, trust_remote_code=trust_remote_code)
        tensors = model.state_dict()
        if result is None:
            result = copy.deepcopy(model) if model is place else model
            form, own = _describe_form(model), tensors
        _check_form(form, _describe_form(model), names[0], name)
        if isinstance(model, CrossEncoder):
            _check_heads(own, tensors, names[0], name, body=model.transformers_model.base_model_prefix)
        _warn_of_strangers(own, tensors, names[0], name)
        _add(total, tensors, shares[i], name=name)
    assert result is not None  # there are two models or more
    result.load_state_dict({key: tensor.to(own[key].dtype) for key, tensor in total.items()})
    return result.eval()


def describe_average(names: Sequence[str | Path], *, weights: Sequence[float] | None = None) -> dict[str, Any]:
    """What the card of an average says of its making, for `model_cards.save_model`.

    Args:
        names: Folders or Hub ids of the models. Only their last parts and digests are told.
        weights: As for `average_weights`.

    Raises:
        InputError: As `average_weights`.

    Example:
        >>> describe_average(["runs/a", "runs/b"], weights=[3, 1])  # doctest: +SKIP
        {'made by': 'transenc 0.1.0', 'average of': '0.75 a sha256 1a2b..., 0.25 b sha256 3c4d...'}
    """
    shares = _check_arguments(names, weights)
    parts = [
        f"{share:.4g} {PurePath(name).name} sha256 {model_digest(name)[:12]}"
        for name, share in zip(names, shares, strict=True)
    ]
    return {"made by": f"transenc {library_versions()['transenc']}", "average of": ", ".join(parts)}


def _check_arguments(models: Any, weights: Any) -> list[float]:
    """The weights, with a sum of 1."""
    if isinstance(models, str | bytes | Encoder) or not isinstance(models, Sequence):
        raise TypeError(f"expected a list of models or their folders, found {type(models).__name__}")
    if len(models) < 2:
        raise InputError(f"an average needs 2 models or more, found {len(models)}")
    for i, model in enumerate(models):
        if not isinstance(model, str | Path | Encoder):
            raise TypeError(f"model {i} must be an encoder, a folder or a Hub id, found {type(model).__name__}")
    given = [1.0] * len(models) if weights is None else list(weights)
    if len(given) != len(models):
        raise InputError(f"expected one weight for each of {len(models)} models, found {len(given)}")
    for weight in given:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise InputError(f"a weight must be a finite number of 0 or more, found {weight!r}")
    if not sum(given) > 0:
        raise InputError(f"expected a weight above 0, found {given}")
    return [weight / sum(given) for weight in given]


def _describe_form(model: Any) -> dict[str, Any]:
    """Everything of a model that must be the same for its weights to mean the same."""
    config = model.transformers_model.config.to_dict()
    form: dict[str, Any] = {
        "kind": "bi-encoder" if isinstance(model, SentenceTransformer) else "cross-encoder",
        "architecture": type(model.transformers_model).__name__,
    }
    for key, value in sorted(config.items()):
        if key not in _NO_FORM and not key.startswith(_TRAINING) and "dropout" not in key:
            form[key] = value
    form["vocabulary"] = model.tokenizer.get_vocab()
    backend = getattr(model.tokenizer, "backend_tokenizer", None)
    if backend is not None:
        parts = json.loads(backend.to_str())
        form |= {f"the tokenizer's {part}": parts[part] for part in _TOKENIZER_PARTS}
    form["modules"] = ", ".join(type(module).__name__ for module in model)
    for module in list(model)[1:]:
        settings = module.get_config_dict() if hasattr(module, "get_config_dict") else {}
        form |= {f"{type(module).__name__}.{key}": value for key, value in sorted(settings.items())}
    form["prompts"] = {role: text for role, text in model.prompts.items() if text}
    form["do_lower_case"] = bool(getattr(model[0], "do_lower_case", False))
    if isinstance(model, SentenceTransformer):
        form["similarity_fn_name"] = model.similarity_fn_name
    else:
        form["activation"] = type(model.activation_fn).__name__
    for key, tensor in model.state_dict().items():
        form[f"the shape of {key}"] = list(tensor.shape)
    return form


def _check_form(expected: dict[str, Any], found: dict[str, Any], first: str, other: str) -> None:
    for what in expected | found:
        if expected.get(what) != found.get(what):
            left, right = (_show(form.get(what)) for form in (expected, found))
            raise InputError(
                f"{other} cannot be averaged with {first}: {what}: expected {left}, found {right}; "
                "give models that were trained from one start"
            )


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    if len(text) <= 100:
        return text
    return f"{len(value)} other entries" if isinstance(value, list | dict) else f"{text[:100]}..."


def _add(total: dict[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], share: float, *, name: str) -> None:
    for key, tensor in tensors.items():
        values = tensor.cpu()
        if not values.is_floating_point():
            if not torch.equal(values, total.setdefault(key, values)):
                raise InputError(f"{name} cannot be averaged with those before: {key} holds other whole numbers")
        elif not torch.isfinite(values).all():
            raise StateError(f"{name}: weight {key} holds NaN or inf; leave that model out")
        else:
            part = share * values.double()
            total[key] = total[key] + part if key in total else part


def _check_heads(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], first: str, other: str, *, body: str
) -> None:
    """Matrix by matrix: all weights together hide a head, and the ones of a norm would hide its matrices."""
    for key, tensor in tensors.items():
        fresh = f".{body}." not in f".{key}" or ".pooler." in key
        if fresh and tensor.ndim > 1 and (cosine := _cosine(own, tensors, [key])) < _RELATED:
            raise InputError(
                f"{other} cannot be averaged with {first}: their heads do not come from one start (cosine of {key}: "
                f"expected {_RELATED} or more, found {cosine:.2f}); average cross-encoders of one training, of cycles "
                "with --continue-cross, or from one --cross-start with a head"
            )


def _cosine(own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], keys: Iterable[str]) -> float:
    dot = left = right = 0.0
    for key in keys:
        if tensors[key].is_floating_point():
            a, b = own[key].flatten().float().cpu(), tensors[key].flatten().float().cpu()
            dot, left, right = dot + float(a @ b), left + float(a @ a), right + float(b @ b)
    return dot / math.sqrt(left * right) if left and right else 1.0


def _warn_of_strangers(
    own: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], first: str, other: str
) -> None:
    cosine = _cosine(own, tensors, tensors)
    if cosine < _RELATED:
        _LOG.warning(
            "%s does not look trained from the start of %s (cosine of their weights %.2f): such an average is worth "
            "nothing", other, first, cosine,
        )  # fmt: skip
