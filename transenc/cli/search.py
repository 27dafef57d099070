"""The commands `index` and `search`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from transenc.cli.options import (
    OneBiEncoder,
    add_index_model_options,
    add_model_options,
    add_rerank_options,
    add_verb,
    format_number,
    quiet_libraries,
    to_json,
)
from transenc.errors import InputError
from transenc.signals import stop_on_signals

if TYPE_CHECKING:
    from transenc.search.engine import SemanticSearch
    from transenc.search.reranking import Hit

_CORPUS = "documents: txt (one a line), tsv, csv, jsonl, parquet (_id, text, title, metadata), or a Hub data set"
_SHOWN = 200  # characters of a hit for people


def add_index(verbs: Any) -> None:
    """Add the command `index` with its actions to the parser's verbs."""
    text = "build and change a search index"
    actions = verbs.add_parser("index", help=text, description=text).add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    build = _add_action(actions, "build", "index a corpus; over an index: replace its content", _build)
    build.add_argument("--model", action=OneBiEncoder, required=True, help="bi-encoder: folder or Hub id")
    build.add_argument("--corpus", required=True, help=_CORPUS)
    build.add_argument(
        "--kind",
        choices=("auto", "exact", "hnsw", "ivfpq"),
        default="auto",
        help="default: auto, by the number of passages",
    )
    build.add_argument("--no-passages", action="store_true", help="cut long documents instead of splitting them")
    build.add_argument("--hybrid", action="store_true", help="also index the words (extra `hybrid`)")
    build.add_argument("--skip-empty", action="store_true", help="leave out documents without text")
    add_model_options(build, data=False, precision="auto")
    add = _add_action(actions, "add", "add documents", _add)
    add.add_argument("--corpus", required=True, help=_CORPUS)
    add.add_argument("--upsert", action="store_true", help="replace documents whose id is indexed already")
    add.add_argument("--skip-empty", action="store_true", help="leave out documents without text")
    add_index_model_options(add)
    delete = _add_action(actions, "delete", "delete documents", _delete)
    delete.add_argument(
        "--id",
        action="extend",
        nargs="+",
        required=True,
        metavar="ID",
        help="ids to delete; one that begins with - as --id=-x",
    )
    _add_action(actions, "compact", "rewrite the index without what was deleted", _compact)
    _add_action(actions, "info", "say what the index holds", _info)
    _add_action(actions, "verify", "check every digest, count and number", verify_index)


def add_search(verbs: Any) -> None:
    """Add the command `search` to the parser's verbs."""
    verb = add_verb(verbs, "search", "find the documents that answer a query", _search)
    verb.add_argument("path", metavar="INDEX", help="folder of an index, or milvus://host:port/name")
    verb.add_argument("query", nargs="?", help="text; without it, one query per line of stdin")
    add_rerank_options(verb)
    verb.add_argument("--top-k", type=int, default=10, help="hits shown (10)")
    verb.add_argument("--candidates", type=int, default=100, help="documents retrieved for reranking or hybrid (100)")
    verb.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="CONDITION",
        help="key=value, !=, <, <=, >, >= on metadata; several: all must hold",
    )
    verb.add_argument("--hybrid", action="store_true", help="retrieve by words (BM25) too, and fuse the ranks")
    verb.add_argument(
        "--rerank-weight",
        type=float,
        metavar="W",
        help="weight of the rerankers, 0 to 1 (1: their order alone); default: chosen without labels",
    )
    add_index_model_options(verb)


def verify_index(arguments: argparse.Namespace) -> str:
    """Check the index at `arguments.path`, and say what was checked."""
    from transenc.search.faiss_store import verify_index

    _check_folder(arguments)
    facts = verify_index(arguments.path)
    if arguments.json:
        return to_json(facts)
    return (
        f"{arguments.path}: generation {facts['generation']}: all digests fit; "
        f"{facts['documents']} documents and {facts['passages']} vectors agree and are finite"
    )


def _add_action(actions: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    action = add_verb(actions, name, text, run)
    action.add_argument("path", metavar="INDEX", help="folder of the index, or milvus://host:port/name")
    return action


def _build(arguments: argparse.Namespace) -> str:
    quiet_libraries()
    from transenc.search.engine import SemanticSearch

    with (
        stop_on_signals(),
        SemanticSearch.build(
            arguments.path,
            corpus=arguments.corpus,
            bi_encoder=arguments.model,
            kind=arguments.kind,
            passages=not arguments.no_passages,
            lexical=arguments.hybrid,
            skip_empty=arguments.skip_empty,
            pooling=arguments.pooling,
            max_length=arguments.max_length,
            precision=arguments.precision,
            device=arguments.device,
            batch_tokens=arguments.batch_tokens,
            trust_remote_code=arguments.trust_remote_code,
            progress=True,
        ),
    ):
        pass
    return _info(arguments)


def _add(arguments: argparse.Namespace) -> str:
    with stop_on_signals(), _open_engine(arguments) as engine:
        engine.add(arguments.corpus, upsert=arguments.upsert, skip_empty=arguments.skip_empty, progress=True)
    return _info(arguments)


def _delete(arguments: argparse.Namespace) -> str:
    from transenc.search.stores import open_store

    with stop_on_signals(), open_store(arguments.path) as store:
        store.delete(arguments.id)
    return _info(arguments)


def _compact(arguments: argparse.Namespace) -> str:
    from transenc.search.faiss_store import FaissStore

    _check_folder(arguments)
    with stop_on_signals(), FaissStore.open(arguments.path) as store:
        store.compact()
    return _info(arguments)


def _info(arguments: argparse.Namespace) -> str:
    from transenc.search.stores import open_store

    with open_store(arguments.path) as store:
        facts = store.info()
    if arguments.json:
        return to_json(facts)
    encoder = facts.pop("encoder")
    rows = {**facts, "encoder": encoder["name"], "passages split": encoder["passages"]}
    return "\n".join(f"{name:<16} {_show_fact(value)}" for name, value in rows.items())


def _check_folder(arguments: argparse.Namespace) -> None:
    from transenc.search.stores import is_folder

    if not is_folder(arguments.path):
        raise InputError(f"{arguments.path}: Milvus does this itself; the command is for an index in a folder")


def _search(arguments: argparse.Namespace) -> Iterator[str]:
    from transenc.search.reranking import describe_hit

    with _open_engine(arguments) as engine:
        if arguments.query is not None:
            hits = _ask(engine, arguments.query, arguments)
            yield to_json({"hits": [describe_hit(hit) for hit in hits]}) if arguments.json else _format_hits(hits)
            return
        if sys.stdin is None:
            raise InputError("no query given, and stdin is closed; name one, or pipe one a line")
        for number, line in enumerate(sys.stdin, start=1):
            query = line.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
            try:
                hits = _ask(engine, query, arguments)
            except InputError as error:
                raise InputError(f"stdin:{number}: {error}") from error
            if arguments.json:
                yield to_json({"query": query, "hits": [describe_hit(hit) for hit in hits]})
            else:
                yield f"{_printable(query)}\n{_format_hits(hits)}\n"


def _open_engine(arguments: argparse.Namespace) -> SemanticSearch:
    quiet_libraries()
    from transenc.search.engine import SemanticSearch

    return SemanticSearch.open(
        arguments.path,
        bi_encoder=arguments.model,
        cross_encoder=getattr(arguments, "rerank", None),
        rerank_unit=getattr(arguments, "rerank_unit", "sentence"),
        precision=arguments.precision,
        device=arguments.device,
        batch_tokens=arguments.batch_tokens,
        trust_remote_code=arguments.trust_remote_code,
    )


def _ask(engine: SemanticSearch, query: str, arguments: argparse.Namespace) -> list[Hit]:
    return engine.search(
        query,
        top_k=arguments.top_k,
        candidates=arguments.candidates,
        where=arguments.where,
        hybrid=arguments.hybrid,
        rerank_weight=arguments.rerank_weight,
    )


def _format_hits(hits: list[Hit]) -> str:
    if not hits:
        return "no document matches"
    lines = []
    for hit in hits:
        moved = f"  (retrieved as {hit.retrieved_rank})" if hit.retrieved_rank != hit.rank else ""
        lines.append(f"{hit.rank:>3}  {hit.score:.4f}  {_printable(hit.id)}{moved}")
        shown = " ".join(f"{hit.title} {hit.text[hit.start : hit.end]}".split())
        lines.append(f"     {_printable(shown if len(shown) <= _SHOWN else shown[: _SHOWN - 3] + '...')}")
    return "\n".join(lines)


def _printable(text: str) -> str:
    """Escape what would steer the terminal; a document is not to be trusted with that."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _show_fact(value: Any) -> str:
    return format_number(value) if value is None or isinstance(value, float) else str(value)
