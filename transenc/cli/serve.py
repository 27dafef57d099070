"""The command `serve`; the limits of the server become flags by themselves."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from transenc.cli.options import add_index_model_options, add_rerank_options, quiet_libraries
from transenc.errors import InputError
from transenc.search.serving.limits import Limits
from transenc.signals import stop_on_signals

_EXTRA = {"fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn", "h11"}
_EVERY = ("0.0.0.0", "::", "")


def add_serve(verbs: Any) -> None:
    """Add the command `serve` to the parser's verbs."""
    text = "answer searches over HTTP, with a page to search on (extra `serve`)"
    verb = verbs.add_parser("serve", help=text, description=text)
    verb.add_argument("path", metavar="INDEX", help="folder of an index, or milvus://host:port/name")
    add_rerank_options(verb)
    verb.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1); 0.0.0.0: all of them")
    verb.add_argument("--port", type=int, default=8000, help="its port (8000); 0: any free one")
    verb.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name under which the server is known, behind a proxy for instance; may be given several times",
    )
    # no --trust-remote-code: what answers strangers runs no code that came with a model
    add_index_model_options(verb, trust=False)
    verb.add_argument("--debug", action="store_true", help="show a traceback on errors")
    verb.set_defaults(run=_serve)
    limits = verb.add_argument_group("limits")
    for field in dataclasses.fields(Limits):
        limits.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(field.default),
            default=field.default,
            metavar="N",
            help=f"{field.metadata['help']} ({field.default:g})",
        )


def _serve(arguments: argparse.Namespace) -> Iterator[str]:
    limits = Limits(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Limits)})
    # Torch's CPU library keeps what it compiles for every shape of a batch, by default for 1,024 of them: hundreds of
    # megabytes that grow for hours. It reads this when torch is loaded.
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    with stop_on_signals():  # while it loads; later the server stops in order
        try:
            from transenc.search.serving.listening import bind, serve
            from transenc.search.serving.server import create_app
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in _EXTRA:
                raise
            raise InputError("serving needs the extra `serve`: pip install 'transenc[serve]'") from None
        quiet_libraries()
        from transenc.search.engine import SemanticSearch

        with bind(arguments.host, arguments.port) as listener:
            engine = SemanticSearch.open(
                arguments.path,
                bi_encoder=arguments.model,
                cross_encoder=arguments.rerank,
                rerank_unit=arguments.rerank_unit,
                precision=arguments.precision,
                device=arguments.device,
                batch_tokens=arguments.batch_tokens,
            )
            # a line for every batch in which some text is longer than the window would drown the rest
            logging.getLogger("transenc.scoring").setLevel(logging.ERROR)
            every_address = arguments.host in _EVERY
            app = create_app(
                engine,
                limits=limits,
                hosts=[*([] if every_address else [arguments.host]), *arguments.allow_host],
                every_address=every_address,
                reranker_names=arguments.rerank or (),
            )
            said = f"serving {arguments.path} ({engine.store.count()} documents) at"
            serve(app, listener=listener, on_ready=lambda url: print(said, url, file=sys.stderr, flush=True))
    return iter(())
