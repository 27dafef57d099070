"""The command `mine`: pairs to distil, or lists, from raw sentences or documents."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transenc.cli.options import (
    add_model_options,
    add_settings,
    add_verb,
    changed_settings,
    format_table,
    quiet_libraries,
    to_json,
)
from transenc.config import MiningSettings
from transenc.errors import InputError
from transenc.tables import show

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer

    from transenc.corpus import Document


def add_mine(verbs: Any) -> None:
    """Add the command `mine` to the parser's verbs."""
    verb = add_verb(verbs, "mine", "find pairs to distil in raw sentences or documents", _mine)
    verb.add_argument("--model", required=True, help="bi-encoder: folder or Hub id")
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--sentences",
        nargs="+",
        action="extend",
        metavar="F",
        help="sentences, one a line (also .gz; .tsv, .csv, .jsonl, .parquet: column sentence or text), or a Hub data "
        "set: symmetric pairs",
    )
    what.add_argument(
        "--corpus",
        metavar="F",
        help="documents, as for index: asymmetric pairs of a query and a sentence of a document",
    )
    verb.add_argument("--output", required=True, help="file to write: .tsv, .csv, .jsonl or .parquet")
    verb.add_argument("--lists", type=int, metavar="N", help="the same as --list-size, 2 or more")
    verb.add_argument("--max-sentences", type=int, metavar="N", help="begin with N sentences, sampled by the seed")
    verb.add_argument("--skip-empty", action="store_true", help="leave out documents without text, and count them")
    verb.add_argument("--seed", type=int, default=2021, help="decides what is drawn (2021)")
    add_model_options(verb, data=False, precision="float32")
    add_settings(verb.add_argument_group("settings"), MiningSettings(), "")


def _mine(arguments: argparse.Namespace) -> str:
    _check_flags(arguments)
    settings = changed_settings(MiningSettings(), arguments)
    quiet_libraries()
    from transenc.mining import flatten_lists, mine_corpus, mine_lists, mine_pairs
    from transenc.pairs import check_writable, write_pairs

    check_writable(arguments.output)
    texts: Any = _read_documents(arguments) if arguments.corpus else _read_sentences(arguments)
    model = _load_model(arguments)
    options: dict[str, Any] = {
        "settings": settings, "seed": arguments.seed, "batch_tokens": arguments.batch_tokens, "progress": True,
    }  # fmt: skip
    result: dict[str, Any] = {"output": arguments.output}
    if settings.list_size:
        lists = mine_lists(model, texts, size=settings.list_size, **options)
        write_pairs(arguments.output, flatten_lists(lists))
        result |= {"lists": len(lists), "size": settings.list_size, "asymmetric": arguments.corpus is not None}
        return to_json(result) if arguments.json else "\n".join([_count_lists(result), _advise(result)])
    pairs = mine_corpus(model, texts, **options) if arguments.corpus else mine_pairs(model, texts, **options)
    write_pairs(arguments.output, pairs)
    result |= {"pairs": len(pairs), "asymmetric": arguments.corpus is not None, **_count(pairs, settings.bins)}
    return to_json(result) if arguments.json else _describe(result)


def _check_flags(arguments: argparse.Namespace) -> None:
    if arguments.lists is not None:
        if arguments.lists < 2:
            raise InputError(f"--lists must be 2 or more, found {arguments.lists}; leave it out for pairs")
        size = getattr(arguments, "set_list-size")
        if size not in (None, arguments.lists):
            raise InputError(f"--lists {arguments.lists} and --list-size {size} mean the same; give one of them")
        setattr(arguments, "set_list-size", arguments.lists)
    if arguments.seed < 0:
        raise InputError(f"--seed must be 0 or more, found {arguments.seed}")
    if arguments.corpus is None and arguments.skip_empty:
        raise InputError("--skip-empty: only for --corpus")
    if arguments.corpus is not None:
        if arguments.max_sentences is not None:
            raise InputError("--max-sentences: only for --sentences; shorten the corpus, or give --max-pairs")
        if getattr(arguments, "set_lexical", None):
            raise InputError("--lexical: only for --sentences; what is read of documents is chosen by words anyway")


def _read_documents(arguments: argparse.Namespace) -> list[Document]:
    from transenc.corpus import read_corpus

    documents: dict[str, Document] = {}
    forbidden = _list_forbidden(arguments)  # texts are mined on one line, ids as they are
    for document in read_corpus(arguments.corpus, skip_empty=arguments.skip_empty):
        if document.id in documents:
            raise InputError(f"{document.place}: the id {show(document.id)} occurs a second time; give each its own")
        if not forbidden.isdisjoint(document.id):
            found = f"the id {show(document.id)} has a tab or line break"
            raise InputError(
                f"{document.place}: {found}, which {arguments.output} cannot hold; write .jsonl or .parquet"
            )
        documents[document.id] = document
    return list(documents.values())


def _read_sentences(arguments: argparse.Namespace) -> list[str]:
    from transenc.corpus import read_sentences

    sentences = read_sentences(*arguments.sentences, max_sentences=arguments.max_sentences, seed=arguments.seed)
    forbidden = _list_forbidden(arguments)
    if forbidden and (bad := next((text for text in sentences if not forbidden.isdisjoint(text)), None)) is not None:
        raise InputError(
            f"{arguments.output}: a sentence has a tab or line break, {show(bad)}; write .jsonl or .parquet"
        )
    return sentences


def _list_forbidden(arguments: argparse.Namespace) -> set[str]:
    """What no text of the output may hold: asked before the model runs, not when its pairs are written."""
    return set({".tsv": "\n\r\t", ".csv": "\n\r"}.get(Path(arguments.output).suffix, ""))


def _load_model(arguments: argparse.Namespace) -> SentenceTransformer:
    from transenc.devices import resolve_device, resolve_precision
    from transenc.encoders import load_bi_encoder

    device = resolve_device(arguments.device)
    return load_bi_encoder(
        arguments.model,
        pooling=arguments.pooling,
        max_length=arguments.max_length,
        device=device,
        dtype=resolve_precision(arguments.precision, device=device),
        trust_remote_code=arguments.trust_remote_code,
    )


def _count(pairs: Dataset, bins: int) -> dict[str, Any]:
    """Count the kept pairs: `sources`, pairs by source; `bins`, pairs by cosine from their own lowest to their highest.

    The bins by which pairs were kept reach from the lowest candidate to the highest, so these need not be even.
    """
    import numpy as np

    counts, edges = np.histogram(np.asarray(pairs["cosine"][:], dtype=np.float64), bins=bins)
    return {
        "sources": dict(sorted(Counter(pairs["source"][:]).items())),
        "bins": [
            {"from": round(float(low), 4), "to": round(float(high), 4), "pairs": int(count)}
            for low, high, count in zip(edges, edges[1:], counts, strict=False)
        ],
    }


def _describe(result: dict[str, Any]) -> str:
    sources = [{"source": name, "pairs": count} for name, count in result["sources"].items()]
    bins = [
        {"cosine of the kept pairs": f"{row['from']:.3f} to {row['to']:.3f}", "pairs": row["pairs"]}
        for row in result["bins"]
    ]
    kind = "pairs of a query and a sentence that may answer it" if result["asymmetric"] else "pairs"
    lines = [format_table(bins), "", format_table(sources), "", f"{result['pairs']} {kind} in {result['output']}"]
    return "\n".join([*lines, _advise(result)])


def _count_lists(result: dict[str, Any]) -> str:
    return f"{result['lists']} lists of a query and {result['size']} texts, a pair a text, in {result['output']}"


def _advise(result: dict[str, Any]) -> str:
    flag = " --asymmetric" if result["asymmetric"] else ""
    return f"next: transenc distill --pairs {result['output']}{flag} ..."
