"""From a plain language model and raw sentences to a bi-encoder: the start that Trans-Encoder takes for granted."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer

from transenc import durable
from transenc.config import BootstrapSettings, to_dict
from transenc.devices import resolve_device, resolve_precision
from transenc.encoders import load_bi_encoder, model_digest
from transenc.errors import BusyError, InputError, StateError
from transenc.locks import lock
from transenc.metrics import embedding_spread
from transenc.model_cards import describe_origin, save_model
from transenc.run import (
    JOURNAL,
    RUN_FILE,
    Run,
    check_identity,
    compare_identity,
    digest_rows,
    library_versions,
    open_run,
)
from transenc.scoring import encode_texts
from transenc.signals import StopRequest, stop_on_signals
from transenc.templates import install_template
from transenc.training import TrainingContext, check_sentences, train_contrastive, train_steps, write_log
from transenc.whitening import whiten_encoder
from transenc.workers import refuse_repeated_script, run_on_devices

logger = logging.getLogger(__name__)

_MEASURED = 1000  # sentences whose spread is told
_MOST_SEED = 2**32 - 1  # NumPy takes no more


def bootstrap(
    model: str | Path,
    sentences: Sequence[str],
    *,
    output_dir: str | Path,
    pooling: str | None = None,
    settings: BootstrapSettings | None = None,
    seed: int = 2021,
    precision: str = "auto",
    save_steps: int = 200,
    device: str | None = None,
    trust_remote_code: bool = False,
    report_to: Sequence[str] = (),
) -> Path:
    """Make a bi-encoder of a language model and raw sentences, in a folder that appears when it is complete.

    The same call resumes after an interruption, from checkpoints in `<output_dir>.part`, which goes at the end:
    interrupted and resumed equals uninterrupted, bit for bit on a CPU with the same number of threads. A finished
    folder is left as it is. Decoder-only models work with `mean` or `lasttoken`; of a T5 the encoder is taken, other
    sequence-to-sequence models are refused.

    Args:
        model: where to start from, a folder or a Hub id: a plain language model, or a bi-encoder to train on.
        sentences: 2 or more different texts, see `corpus.read_sentences`.
        output_dir: the folder to make, an ordinary sentence-transformers model. Its manifest holds the settings, and
            `figures`: steps and spread of the embeddings before and after, see `metrics.embedding_spread`.
        pooling: how to pool a plain language model: cls, mean, ...; None: what the folder says.
        settings: objective and how to train; None: the defaults.
        seed: of everything drawn at random, 0 to 2**32 - 1.
        precision: arithmetic, `auto`, float32, bfloat16 or float16; weights stay float32.
        save_steps: steps between checkpoints.
        device: `cpu`, `cuda`, ...; None: a GPU if there is one. `cuda:1` and above train in a process of their own
            (`workers.run_on_devices`): a script needs `if __name__ == "__main__":`.
        trust_remote_code: run model code that comes with the model; only for code you have read.
        report_to: experiment trackers of HF Trainer.

    Returns:
        `output_dir`.

    Raises:
        TypeError: `sentences` is one string.
        InputError: too few sentences, an unusable model, setting or output folder.
        StateError: other settings, sentences or model than before, damage, numbers that are not finite, collapse.
        BusyError: another process works on it. Interrupted: a signal came; the same call resumes.

    Example:
        >>> bootstrap("my/lm", ["a cat sleeps", ...], output_dir="enc", pooling="cls")  # doctest: +SKIP
    """
    refuse_repeated_script()
    settings, output = settings or BootstrapSettings(), Path(output_dir)
    for name, value, least in (("seed", seed, 0), ("save_steps", save_steps, 1)):
        if value < least:
            raise InputError(f"{name} must be {least} or more, found {value}")
    if seed > _MOST_SEED:
        raise InputError(f"seed must be {_MOST_SEED} or less, found {seed}")
    texts, device = check_sentences(sentences), resolve_device(device)
    machine = {
        "device": device,
        "threads": torch.get_num_threads(),
        "precision": resolve_precision(precision, device=device),
    }
    identity = {
        "config": {"seed": seed, "precision": precision, "save_steps": save_steps, "bootstrap": to_dict(settings)},
        "model": model_digest(model),
        "pooling": pooling,
        "sentences": {"rows": len(texts), "sha256": digest_rows(texts)},
        "machine": machine,
        "inputs": {"model": str(model)},
    }
    part = output.absolute().with_name(f"{output.absolute().name}.part")
    if _is_complete(output, identity):
        logger.info("%s: complete, nothing to do", output)
        if (part / RUN_FILE).is_file():  # what a kill left, unless it is another's
            with suppress(BusyError, StateError), lock(part / "lock"):
                check_identity(part, identity)
                _remove_scratch(part)
        return output
    with stop_on_signals() as stop, _open_scratch(part, identity) as run:
        if not _is_complete(output, identity):  # else another process has come to its end just now
            context = TrainingContext(
                work=run.folder / "work" / "train",
                seed=seed,
                precision=str(machine["precision"]),
                save_steps=save_steps,
                report_to=tuple(report_to),
            )
            job = partial(
                _train_and_publish,
                partial(load_bi_encoder, model, pooling=pooling, trust_remote_code=trust_remote_code),
                texts,
                output,
                settings=settings,
                context=context,
                identity=identity,
            )
            run_on_devices({0: job}, [device], stop=stop)
        _remove_scratch(part)
    return output


def bootstrap_encoder(
    model: SentenceTransformer, sentences: Sequence[str], *, settings: BootstrapSettings, context: TrainingContext
) -> list[dict[str, Any]]:
    """Train a model from `load_bi_encoder` on raw sentences, in place; settings may give it a template, and whiten it.

    Args:
        model: float32 weights.
        sentences: 2 or more different texts.
        settings: objective, template, and how to train.
        context: scratch folder, seed, precision.

    Returns:
        The trainer's log, see `training.train_contrastive`.

    Raises:
        InputError: fewer than 2 different sentences, or the model cannot do what the settings ask.
        StateError: a number is not finite, or all embeddings became alike. Interrupted: a checkpoint is saved.

    Example:
        >>> bootstrap_encoder.__name__
        'bootstrap_encoder'
    """
    texts = check_sentences(sentences)
    if settings.template is not None:
        install_template(model, settings.template)
        taken = model.tokenizer.num_special_tokens_to_add(pair=False)
        if taken >= settings.max_length:
            raise InputError(
                f"max_length {settings.max_length} leaves no room for a sentence beside the template's {taken} tokens; "
                "set it higher"
            )
    context.work.mkdir(parents=True, exist_ok=True)
    log = train_contrastive(model, texts, settings=settings, context=context)
    if settings.whiten:
        whiten_encoder(model, texts)
    return log


def read_figures(folder: str | Path) -> dict[str, Any]:
    """What `bootstrap` measured: `sentences` and `steps`, and `spread`, {"before", "after"} of the embeddings.

    Raises:
        InputError: the folder is not one that `bootstrap` made. StateError: it was changed since.

    Example:
        >>> read_figures("no/such/folder")
        Traceback (most recent call last):
        transenc.errors.InputError: no/such/folder: not made by bootstrap
    """
    facts = durable.verify_directory(folder) if durable.is_published(folder) else {}
    if "figures" not in facts:
        raise InputError(f"{folder}: not made by bootstrap")
    return {"sentences": facts["sentences"]["rows"], **facts["figures"]}


def _train_and_publish(
    load: Callable[..., SentenceTransformer],
    texts: list[str],
    output: Path,
    *,
    settings: BootstrapSettings,
    context: TrainingContext,
    identity: dict[str, Any],
    device: str,
    stop: StopRequest,
) -> None:
    model, context = load(device=device), replace(context, stop=stop)
    logger.info("%s of %d sentences: %d steps", settings.objective, len(texts), train_steps(len(texts), settings))
    before = _measure(model, texts)
    with context.hold():
        log = bootstrap_encoder(model, texts, settings=settings, context=context)
    spread = {"before": before, "after": _measure(model, texts)}
    made = context.work.with_name("encoder")
    shutil.rmtree(made, ignore_errors=True)
    card = describe_origin(
        identity["inputs"]["model"],
        identity["model"],
        settings=settings,
        seed=context.seed,
        sentences=len(texts),
        labels="trained without labels",
    )
    with durable.explain_full_disk(output):
        save_model(model, made, card=card)
    write_log(made / "log.json", log)
    if output.is_dir():
        output.rmdir()  # an empty one
    figures = {"steps": train_steps(len(texts), settings), "spread": spread}
    durable.seal_directory(made, output, facts={**identity, "versions": library_versions(), "figures": figures})


@contextmanager
def _open_scratch(part: Path, identity: Mapping[str, Any]) -> Iterator[Run]:
    with ExitStack() as stack:
        with _say_what_to_do(f"name another output folder, or delete {part} to start anew"):
            run = stack.enter_context(open_run(part, identity))
        yield run


@contextmanager
def _say_what_to_do(remedy: str) -> Iterator[None]:
    """Another end for the refusal of an identity, whose own is about `distill`."""
    try:
        yield
    except StateError as error:
        problem, repeat, _ = str(error).partition("; repeat the original command")
        if not repeat:
            raise
        raise StateError(f"{problem}{repeat}, {remedy}") from None


def _is_complete(output: Path, identity: dict[str, Any]) -> bool:
    """Whether the folder is there and whole; refuses one of other settings, and one of something else."""
    if durable.is_published(output):
        recorded = durable.verify_directory(output)
        if recorded.pop("figures", None) is None:
            raise InputError(f"{output}: not made by bootstrap; name a new folder")
        with _say_what_to_do("or name another output folder"):
            compare_identity(recorded, identity, folder=output)
        return True
    if output.is_symlink():
        raise InputError(f"{output}: is a link, which a finished folder cannot replace; name the folder it points to")
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: exists, and is no finished encoder of bootstrap; name a new folder")
    return False


def _remove_scratch(part: Path) -> None:
    """Remove what a run directory has, and what tells that it is one last: a kill leaves what the next call removes."""
    for name in ("stages", "work", "best"):
        shutil.rmtree(part / name, ignore_errors=True)
    for name in (JOURNAL, "lock", RUN_FILE):
        (part / name).unlink(missing_ok=True)
    with suppress(OSError):  # what somebody else has put there stays
        part.rmdir()


def _measure(model: SentenceTransformer, sentences: list[str]) -> dict[str, float]:
    some = sentences[:: max(1, len(sentences) // _MEASURED)][:_MEASURED]
    return {name: round(value, 4) for name, value in embedding_spread(encode_texts(model, some)).items()}
