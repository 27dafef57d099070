"""Unlabelled sentence pairs in, a better bi-encoder and a cross-encoder out.

The public names below are loaded when they are first used, so that ``import transenc`` and the help of the
command line do not wait for torch.

Example:
    >>> import transenc
    >>> transenc.Backbone.__module__
    'transenc.config'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transenc.averaging import average_weights
    from transenc.bootstrapping import bootstrap
    from transenc.config import Backbone, BootstrapSettings, DistillConfig, MiningSettings
    from transenc.corpus import Document, read_corpus, read_sentences
    from transenc.distillation import DistillResult, distill
    from transenc.encoders import load_bi_encoder, load_cross_encoder, load_encoder
    from transenc.errors import BusyError, InputError, StateError, TransencError
    from transenc.evaluation import evaluate_file, evaluate_pairs, evaluate_sts
    from transenc.labeling import label_pairs
    from transenc.mining import mine_corpus, mine_lists, mine_pairs
    from transenc.pairs import read_pairs
    from transenc.preflight import inspect_pairs
    from transenc.retrieval_evaluation import evaluate_retrieval
    from transenc.scoring import encode_texts, score_pairs
    from transenc.search.engine import SemanticSearch
    from transenc.search.reranking import Hit, rerank
    from transenc.whitening import whiten_encoder

    __version__: str

__all__ = [
    "Backbone",
    "BootstrapSettings",
    "BusyError",
    "DistillConfig",
    "DistillResult",
    "Document",
    "Hit",
    "InputError",
    "MiningSettings",
    "SemanticSearch",
    "StateError",
    "TransencError",
    "__version__",
    "average_weights",
    "bootstrap",
    "distill",
    "encode_texts",
    "evaluate_file",
    "evaluate_pairs",
    "evaluate_retrieval",
    "evaluate_sts",
    "inspect_pairs",
    "label_pairs",
    "load_bi_encoder",
    "load_cross_encoder",
    "load_encoder",
    "mine_corpus",
    "mine_lists",
    "mine_pairs",
    "read_corpus",
    "read_pairs",
    "read_sentences",
    "rerank",
    "score_pairs",
    "whiten_encoder",
]

_HOMES = {
    "averaging": ("average_weights",),
    "bootstrapping": ("bootstrap",),
    "config": ("Backbone", "BootstrapSettings", "DistillConfig", "MiningSettings"),
    "corpus": ("Document", "read_corpus", "read_sentences"),
    "distillation": ("DistillResult", "distill"),
    "encoders": ("load_bi_encoder", "load_cross_encoder", "load_encoder"),
    "errors": ("BusyError", "InputError", "StateError", "TransencError"),
    "evaluation": ("evaluate_file", "evaluate_pairs", "evaluate_sts"),
    "labeling": ("label_pairs",),
    "mining": ("mine_corpus", "mine_lists", "mine_pairs"),
    "pairs": ("read_pairs",),
    "preflight": ("inspect_pairs",),
    "retrieval_evaluation": ("evaluate_retrieval",),
    "scoring": ("encode_texts", "score_pairs"),
    "search.engine": ("SemanticSearch",),
    "search.reranking": ("Hit", "rerank"),
    "whitening": ("whiten_encoder",),
}


def __getattr__(name: str) -> object:
    """Load a public name on first use, then keep it (PEP 562)."""
    if name == "__version__":
        value: object = _read_version()
    elif home := next((module for module, names in _HOMES.items() if name in names), None):
        value = getattr(import_module(f"transenc.{home}"), name)
    else:
        raise AttributeError(f"module 'transenc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)


def _read_version() -> str:
    # Imported here: it takes longer than the rest of `import transenc`.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("transenc")
    except PackageNotFoundError:
        return "unknown"  # run from a source tree that was never installed
