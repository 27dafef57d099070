"""The command `whiten`: a bi-encoder with whitened embeddings."""

from __future__ import annotations

import argparse
from typing import Any

from transenc.cli.options import add_model_options, add_sentences, add_verb, quiet_libraries, to_json
from transenc.signals import stop_on_signals


def add_whiten(verbs: Any) -> None:
    """Add the command `whiten` to the parser's verbs."""
    verb = add_verb(verbs, "whiten", "whiten the embeddings of a bi-encoder over raw sentences", _whiten)
    verb.add_argument("--model", required=True, help="bi-encoder: folder or Hub id")
    add_sentences(verb, sample="use", seed_meaning="decides the sample")
    verb.add_argument("--dimensions", type=int, metavar="N", help="width of the new embeddings; default: as before")
    verb.add_argument("--output", required=True, help="folder to make; it appears when it is complete")
    add_model_options(verb, length=False, data=False)


def _whiten(arguments: argparse.Namespace) -> str:
    quiet_libraries()
    from transenc.corpus import read_sentences
    from transenc.durable import publish_directory
    from transenc.encoders import load_bi_encoder
    from transenc.model_cards import save_model
    from transenc.whitening import describe_whitening, whiten_encoder

    name = arguments.model
    sentences = read_sentences(*arguments.sentences, max_sentences=arguments.max_sentences, seed=arguments.seed)
    model = load_bi_encoder(
        name, pooling=arguments.pooling, device=arguments.device, trust_remote_code=arguments.trust_remote_code
    )
    with stop_on_signals(), publish_directory(arguments.output) as folder:
        used = whiten_encoder(
            model, sentences, dimensions=arguments.dimensions, batch_tokens=arguments.batch_tokens, progress=True
        )
        about = {"sentences": used, "dimensions": model.get_embedding_dimension() or 0}
        save_model(model, folder, card=describe_whitening(name, **about))
    if arguments.json:
        return to_json({"output": arguments.output, "model": name, **about})
    return f"{arguments.output}: {about['dimensions']} dimensions, whitened over {about['sentences']} sentences"
