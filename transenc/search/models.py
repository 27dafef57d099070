"""The two models of a search, loaded as its flags and arguments say."""

from __future__ import annotations

import logging
from pathlib import Path

from sentence_transformers import CrossEncoder, SentenceTransformer

from transenc.encoders import load_bi_encoder, load_cross_encoder, resolve_precision
from transenc.model_folders import find_model_folder

_LOG = logging.getLogger(__name__)


def load_models(
    bi_encoder: str | Path,
    cross_encoder: str | Path | None,
    *,
    pooling: str | None = None,
    max_length: int | None = None,
    precision: str = "auto",
    device: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[SentenceTransformer, CrossEncoder | None]:
    """Load the bi-encoder of a search and the cross-encoder that reranks, if there is one.

    Args:
        bi_encoder: Folder or Hub id.
        cross_encoder: Folder or Hub id; None: no reranking.
        pooling: For bare Hugging Face folders; the bi-encoder's.
        max_length: The bi-encoder's window in tokens; the cross-encoder keeps its own.
        precision: Number type of the weights: "auto" (what is fast here), "float32", "bfloat16", "float16".
        device: Where to; None: the GPU if there is one.
        trust_remote_code: Allow the models' own Python code to run.

    Returns:
        Both models, None in place of a cross-encoder that was not asked for.

    Raises:
        InputError: An unusable model or argument.
        StateError: Damaged files.

    Example:
        >>> model, cross = load_models("my/encoder", None)  # doctest: +SKIP
    """
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
    if cross_encoder is None:
        return model, None
    return model, load_cross_encoder(cross_encoder, dtype=dtype, device=device, trust_remote_code=trust_remote_code)


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
