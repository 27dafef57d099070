"""Train a small BERT or RoBERTa from raw sentences by masked-language modelling: a plain LM without a download.

    python scripts/pretrain_lm.py --sentences wiki.txt.gz --sentences more.txt.gz --output RUN --kind bert

Sentences are packed into blocks of one length, and other tokens are masked in every epoch (dynamic masking). The token
embeddings start from factorised co-occurrences (positive PMI and SVD; Levy and Goldberg, NIPS 2014), of which a short
training would find little by itself; `--embeddings random` leaves that out. The same command again resumes. The
result, `RUN/stages/20-train`, is a folder for `transenc bootstrap --model`: float16 weights, and figures.json.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from datasets import Dataset
from scipy.sparse.linalg import svds
from tokenizers import BertWordPieceTokenizer, ByteLevelBPETokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    DataCollatorForLanguageModeling,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

from transenc import durable
from transenc.checkpoints import FiniteNumbers, SealedCheckpoints, newest_checkpoint
from transenc.corpus import read_sentences
from transenc.devices import resolve_device, resolve_precision
from transenc.errors import InputError, Interrupted, TransencError
from transenc.run import Run, open_run
from transenc.signals import StopRequest, stop_on_signals
from transenc.training import TrainingProgress

SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
WINDOW = 5  # tokens to either side that count as co-occurring
HELD_OUT = 100  # every so many blocks, one is kept for the evaluation


def main() -> int:
    """Train the tokenizer, then the model; print the held-out loss."""
    parser = argparse.ArgumentParser(description="Train a small language model from raw sentences.")
    parser.add_argument("--sentences", action="append", required=True, help="as for transenc bootstrap; repeatable")
    parser.add_argument("--output", required=True, help="run directory; the same command again resumes it")
    parser.add_argument("--kind", choices=("bert", "roberta"), default="bert", help="WordPiece or byte-level BPE")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--block", type=int, default=64, help="tokens in a block (64)")
    parser.add_argument("--batch", type=int, default=64, help="blocks in a batch (64)")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--mask", type=float, default=0.2, help="share of masked tokens (0.2)")
    parser.add_argument("--embeddings", choices=("cooccurrence", "random"), default="cooccurrence")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after N steps")
    parser.add_argument("--save-steps", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2021)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    try:
        print(pretrain(arguments))
    except (TransencError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def pretrain(arguments: argparse.Namespace) -> str:
    """Both stages of the run; the figures as JSON."""
    sentences = read_sentences(*map(Path, arguments.sentences))
    device = resolve_device(arguments.device)
    config = {k: v for k, v in vars(arguments).items() if k not in ("output", "device", "sentences")}
    identity = {
        "config": config,
        "backbones": {},
        "pairs": {},
        "machine": {
            "device": device,
            "threads": torch.get_num_threads(),
            "precision": resolve_precision("auto", device=device),
        },
        "inputs": {"sentences": [Path(name).name for name in arguments.sentences]},
        "sentences": {Path(name).name: durable.sha256_file(Path(name)) for name in arguments.sentences},
    }
    with stop_on_signals() as stop, open_run(arguments.output, identity) as run:
        tokenizer = run.stage("10-tokenizer", lambda out, _: train_tokenizer(arguments, sentences, out))
        model = run.stage(
            "20-train",
            lambda out, work: train(arguments, run, sentences, tokenizer, out, work, stop),
            inputs=["10-tokenizer"],
        )
    return (model / "figures.json").read_text(encoding="utf-8")


def train_tokenizer(arguments: argparse.Namespace, sentences: list[str], out: Path) -> None:
    """Save a lower-casing tokenizer of the wanted kind."""
    if arguments.kind == "bert":
        tokenizer: Any = BertWordPieceTokenizer(lowercase=True)
    else:
        tokenizer = ByteLevelBPETokenizer(lowercase=True, add_prefix_space=True)
    tokenizer.train_from_iterator(
        sentences,
        vocab_size=arguments.vocabulary,
        min_frequency=2,
        special_tokens=list(SPECIAL.values()),
        show_progress=False,
    )
    backend = tokenizer._tokenizer
    cls, sep = SPECIAL["cls"], SPECIAL["sep"]
    backend.post_processor = TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=2 * arguments.block,
        **{f"{name}_token": token for name, token in SPECIAL.items()},
    ).save_pretrained(str(out))


def pack(tokenizer: PreTrainedTokenizerBase, sentences: list[str], block: int) -> Dataset:
    """Blocks `[CLS] sentence [SEP] sentence [SEP] ...` of exactly `block` tokens; sentences may run over."""
    encoded = tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]
    stream = np.fromiter(itertools.chain.from_iterable((*ids, tokenizer.sep_token_id) for ids in encoded), np.int32)
    rows = stream[: len(stream) // (block - 1) * (block - 1)].reshape(-1, block - 1)
    rows = np.concatenate([np.full((len(rows), 1), tokenizer.cls_token_id, np.int32), rows], axis=1)
    return Dataset.from_dict({"input_ids": list(rows)}).with_format("torch")


def factorise(blocks: Dataset, tokenizer: PreTrainedTokenizerBase, width: int, seed: int) -> np.ndarray:
    """Token vectors of unit length from positive PMI (contexts smoothed to the power 0.75) by a truncated SVD.

    Returns:
        float32 [len(tokenizer), width]; a token that was never seen has zeros.
    """
    ids = np.asarray(blocks["input_ids"][:])[:, 1:].ravel()
    ids[ids == tokenizer.sep_token_id] = -1
    size = len(tokenizer)
    counts = scipy.sparse.csr_matrix((size, size))
    for distance in range(1, WINDOW + 1):
        first, second = ids[:-distance], ids[distance:]
        seen = (first >= 0) & (second >= 0)
        weights = np.full(int(seen.sum()), 1 / distance)
        counts = counts + scipy.sparse.csr_matrix((weights, (first[seen], second[seen])), shape=(size, size))
    table = (counts + counts.T).tocoo()
    total = np.asarray(table.sum(axis=0)).ravel()
    smoothed = total**0.75 / (total**0.75).sum()
    pmi = np.log(table.data / (total[table.row] * smoothed[table.col]))
    positive = pmi > 0
    matrix = scipy.sparse.csr_matrix((pmi[positive], (table.row[positive], table.col[positive])), shape=(size, size))
    left, values, _ = svds(matrix, k=width, rng=np.random.default_rng(seed))
    vectors = left * np.sqrt(values)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def build_model(arguments: argparse.Namespace, tokenizer: PreTrainedTokenizerBase, blocks: Dataset) -> PreTrainedModel:
    """A model with fresh weights, its token embeddings from co-occurrences if asked for."""
    set_seed(arguments.seed)
    roberta = arguments.kind == "roberta"
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": arguments.width,
        "num_hidden_layers": arguments.layers,
        "num_attention_heads": arguments.heads,
        "intermediate_size": 4 * arguments.width,
        # blocks are shorter: what follows their length is trained by nothing but later fine-tuning
        "max_position_embeddings": 2 * arguments.block + (tokenizer.pad_token_id + 1 if roberta else 0),
        "type_vocab_size": 1 if roberta else 2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
    }
    model = RobertaForMaskedLM(RobertaConfig(**shape)) if roberta else BertForMaskedLM(BertConfig(**shape))
    if arguments.embeddings == "cooccurrence":
        table = model.get_input_embeddings().weight
        vectors = torch.from_numpy(factorise(blocks, tokenizer, arguments.width, arguments.seed))
        found = vectors.norm(dim=1) > 0
        with torch.no_grad():  # as long as the rows they replace
            table[found] = vectors[found] * model.config.initializer_range * arguments.width**0.5
    return model


class MaskedTokenTrainer(Trainer):
    """Computes the vocabulary's logits for masked tokens alone, which saves a third of the time of a small model."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """Mean cross-entropy over the masked tokens of the batch."""
        labels = inputs.pop("labels")
        masked = labels != -100
        states = model.base_model(**inputs).last_hidden_state[masked]
        head = model.cls if hasattr(model, "cls") else model.lm_head
        loss = torch.nn.functional.cross_entropy(head(states).float(), labels[masked])
        return (loss, {}) if return_outputs else loss


def train(
    arguments: argparse.Namespace,
    run: Run,
    sentences: list[str],
    source: Path,
    out: Path,
    work: Path,
    stop: StopRequest,
) -> None:
    """Train and save the model beside its tokenizer, as float16."""
    tokenizer = AutoTokenizer.from_pretrained(str(source))
    blocks = pack(tokenizer, sentences, arguments.block)
    if len(blocks) < 2:
        raise InputError(
            f"{', '.join(arguments.sentences)}: expected at least 2 blocks of {arguments.block} tokens, found "
            f"{len(blocks)}; give more text, or a smaller --block"
        )
    held_out = range(0, len(blocks), HELD_OUT)
    training = blocks.select(sorted(set(range(len(blocks))) - set(held_out)))
    model = build_model(arguments, tokenizer, training)
    machine = run.identity["machine"]
    trainer = MaskedTokenTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(work / "trainer"),
            num_train_epochs=arguments.epochs,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=arguments.batch,
            per_device_eval_batch_size=arguments.batch,
            learning_rate=arguments.learning_rate,
            warmup_steps=0.06,
            weight_decay=0.01,
            bf16=machine["precision"] == "bfloat16",
            fp16=machine["precision"] == "float16",
            use_cpu=machine["device"] == "cpu",
            seed=arguments.seed,
            save_strategy="steps",
            save_steps=arguments.save_steps,
            logging_steps=20,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            prediction_loss_only=True,
            report_to="none",
            dataloader_pin_memory=machine["device"] != "cpu",
        ),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm_probability=arguments.mask),
        train_dataset=training,
        eval_dataset=blocks.select(held_out),
        callbacks=[SealedCheckpoints(work, stop), FiniteNumbers(work), TrainingProgress()],
    )
    trainer.remove_callback(PrinterCallback)  # it writes to stdout
    checkpoint = newest_checkpoint(work)
    started = time.perf_counter()
    with stop.deferred():
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.perf_counter() - started
    set_seed(arguments.seed)  # the masks of the evaluation
    held_out_loss = trainer.evaluate()["eval_loss"]
    model.half().save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    figures = {
        "sentences": run.identity["inputs"]["sentences"],
        "blocks": len(training),
        "tokens_an_epoch": len(training) * arguments.block,
        "steps": trainer.state.global_step,
        "parameters": model.num_parameters(),
        "held_out_loss": round(held_out_loss, 3),
        "losses": {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row},
        "minutes_since_the_last_start": round(seconds / 60, 1),
        "machine": machine,
        "settings": {k: v for k, v in vars(arguments).items() if k not in ("output", "device", "sentences")},
    }
    durable.write_json(out / "figures.json", figures)


if __name__ == "__main__":
    sys.exit(main())
