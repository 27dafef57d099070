"""Small batches on synthetic pairs: InfoNCE in the batch against the decomposable loss, by the distance to the optimum.

    python scripts/contrastive_study.py                # measures, writes docs/results/contrastive-synthetic.json
    python scripts/contrastive_study.py --write-only   # the figure, docs/contrastive-synthetic.svg, from the JSON

The question of "Why do we need large batch sizes in contrastive learning?" (NeurIPS 2022) on a problem whose optimum is
known: pairs of vectors that share a low-dimensional signal and have noise of their own; a linear encoder, narrower than
the vectors, on both sides; the loss over all pairs minimised by full batches from every initialisation. Every arm then
trains from the same initialisations with the same small batches and as many epochs (Adam, linear decay). Its learning
rate is chosen, for each arm, batch size and number of epochs, on initialisations of their own. All runs of a batch size
advance together, as one tensor. Then the encoder is frozen where the excess loss is a tenth of its start's, and bias
and standard deviation of the arms' gradients are measured there.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from search_results import format_table
from torch import Tensor
from torch.nn import functional

from transenc.durable import read_json, write_json
from transenc.errors import Interrupted, TransencError
from transenc.losses import average_log_z, decomposed_loss, estimate_log_z

DOCS = Path(__file__).resolve().parents[1] / "docs"


@dataclass(frozen=True)
class Arm:
    """How u and the population factor M / B are had; memory 0 or clip 1: u from the same batch."""

    title: str
    factor: bool = True
    memory: float = 0.9
    clip: float | None = None
    sample: bool = False


ARMS = (
    Arm("in-batch", factor=False, memory=0.0),
    Arm("in-batch, factor M/B", memory=0.0),
    Arm("decomposed"),
    Arm("decomposed, clip 3", clip=3.0),
    Arm("decomposed, memory 0.5", memory=0.5),
    Arm("decomposed, u sampled", sample=True),
)


@dataclass(frozen=True)
class Study:
    """The problem and its size."""

    pairs: int = 256
    dim: int = 32
    signal: int = 8
    width: int = 8
    noise: float = 1.0
    temperature: float = 0.05
    batches: tuple[int, ...] = (4, 8, 16, 32)
    epochs: tuple[int, ...] = (20, 100)
    rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    initialisations: int = 10
    tuning: int = 3
    full_steps: int = 800
    chains: int = 64
    settle: int = 30
    record: int = 20
    seed: int = 0


Views = tuple[Tensor, Tensor]


def main() -> int:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description="InfoNCE in the batch against the decomposable loss, synthetic pairs.")
    parser.add_argument("--json", type=Path, default=DOCS / "results" / "contrastive-synthetic.json")
    parser.add_argument("--svg", type=Path, default=DOCS / "contrastive-synthetic.svg")
    parser.add_argument("--write-only", action="store_true", help="draw what the JSON holds")
    arguments = parser.parse_args()
    try:
        if not arguments.write_only:
            torch.set_num_threads(1)
            write_json(arguments.json, run_study(Study()))
        result = read_json(arguments.json)
    except (TransencError, Interrupted) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    draw(result, arguments.svg)
    print(describe(result))
    return 0


# ---- the problem


def make_pairs(study: Study) -> Views:
    """Two views [pairs, dim] of one Gaussian signal; the noise of a coordinate is from 0.3 to 3 times `noise`."""
    generator = torch.Generator().manual_seed(study.seed)
    signal = torch.randn(study.pairs, study.signal, generator=generator)
    mixing = torch.randn(study.signal, study.dim, generator=generator) / math.sqrt(study.signal)
    noise = study.noise * torch.logspace(-0.5, 0.5, study.dim)
    first, second = (signal @ mixing + noise * torch.randn(study.pairs, study.dim, generator=generator) for _ in "12")
    return first, second


def score(weights: Tensor, views: Views, temperature: float) -> Tensor:
    """Cosine / temperature of every anchor and candidate; weights [..., dim, width], views [..., rows, dim]."""
    first, second = (functional.normalize(view @ weights, dim=-1) for view in views)
    return first @ second.mT / temperature


def full_loss(weights: Tensor, views: Views, temperature: float) -> Tensor:
    """InfoNCE with all other pairs as negatives, for each of the leading dimensions of `weights`."""
    scores = score(weights, views, temperature)
    return (scores.logsumexp(-1) - scores.diagonal(dim1=-2, dim2=-1)).mean(-1)


def find_optimum(start: Tensor, views: Views, study: Study) -> tuple[Tensor, Tensor]:
    """Minimise the full loss from each start: the weights at the end, and those where a tenth of the excess is left."""
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, study.full_steps)
    path, losses = [], []
    for _ in range(study.full_steps):
        loss = full_loss(weights, views, study.temperature)
        path.append(weights.detach().clone())
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.sum().backward()
        optimizer.step()
        schedule.step()
    best = full_loss(weights.detach(), views, study.temperature).min()
    excess = ((torch.stack(losses) - best) / (losses[0] - best)).mean(1)
    return weights.detach(), path[int((excess > 0.1).sum())]


# ---- the arms


class Arms:
    """The batch losses of all arms at once, and the table of S that each run of each keeps."""

    def __init__(self, study: Study, shape: tuple[int, ...], generator: torch.Generator) -> None:
        self.study, self.generator = study, generator
        self.table = torch.full((len(ARMS), *shape, study.pairs), -torch.inf)

    def loss(self, weights: Tensor, views: Views, rows: Tensor) -> Tensor:
        """Loss [arm, rate, run] of weights [arm, rate, run, dim, width] on the batches `rows` [run, batch]."""
        scores = score(weights, (views[0][rows], views[1][rows]), self.study.temperature)
        shape, batch = scores.shape[:-1], scores.shape[-1]
        factor = math.log((self.study.pairs - 1) / (batch - 1))
        shift = torch.tensor([factor * arm.factor for arm in ARMS]).view(-1, 1, 1, 1, 1)
        own = torch.eye(batch, dtype=torch.bool)
        negatives = (scores + shift).masked_fill(own, -torch.inf).flatten(0, -2)
        positives = scores.diagonal(dim1=-2, dim2=-1).flatten()
        with torch.no_grad():
            log_z = estimate_log_z(positives, negatives).view(shape)
            log_u = torch.stack([self._log_u(number, log_z[number], rows) for number in range(len(ARMS))])
        return decomposed_loss(positives, negatives, log_u.flatten()).view(shape).mean(-1)

    def _log_u(self, number: int, log_z: Tensor, rows: Tensor) -> Tensor:
        arm, table = ARMS[number], self.table[number]
        runs = torch.arange(len(rows))[:, None]
        log_s = average_log_z(table[:, runs, rows], log_z, memory=arm.memory)
        table[:, runs, rows] = log_s
        if arm.clip is not None:
            log_s = log_s.clamp(log_z - math.log(arm.clip), log_z + math.log(arm.clip))
        if not arm.sample:
            return -log_s
        return torch.empty(log_s.shape).exponential_(generator=self.generator).log() - log_s


def make_batches(runs: int, batch: int, study: Study, generator: torch.Generator) -> list[Tensor]:
    """One epoch: every run's own order, cut into batches [run, batch]."""
    order = torch.rand(runs, study.pairs, generator=generator).argsort(1)
    return [part for part in order.split(batch, 1) if part.shape[1] == batch]


def train(start: Tensor, views: Views, batch: int, epochs: int, study: Study) -> Tensor:
    """Train every arm at every rate from every start [run, dim, width]; weights [arm, rate, run, dim, width]."""
    generator = torch.Generator().manual_seed(study.seed + 1)
    runs = len(start)
    arms = Arms(study, (len(study.rates), runs), generator)
    weights = [start.expand(len(ARMS), *start.shape).clone().requires_grad_() for _ in study.rates]
    optimizer = torch.optim.Adam([{"params": [w], "lr": r} for w, r in zip(weights, study.rates, strict=True)])
    steps = epochs * (study.pairs // batch)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(epochs):
        for rows in make_batches(runs, batch, study, generator):
            optimizer.zero_grad()
            arms.loss(torch.stack(weights, 1), views, rows).sum().backward()
            optimizer.step()
            schedule.step()
    return torch.stack([w.detach() for w in weights], 1)


def measure_gradients(frozen: Tensor, views: Views, batch: int, study: Study) -> list[dict[str, float]]:
    """Bias and standard deviation of each arm's gradient at `frozen` [dim, width], over the full gradient's norm.

    Many chains visit all rows until S has settled; then their gradients are recorded.
    """
    point = frozen.clone().requires_grad_()
    (target,) = torch.autograd.grad(full_loss(point, views, study.temperature), point)
    generator = torch.Generator().manual_seed(study.seed + 2)
    arms = Arms(study, (1, study.chains), generator)
    weights = frozen.expand(len(ARMS), 1, study.chains, *frozen.shape).clone().requires_grad_()
    total, squares, count = torch.zeros(len(ARMS), *frozen.shape), torch.zeros(len(ARMS)), 0
    for epoch in range(study.settle + study.record):
        for rows in make_batches(study.chains, batch, study, generator):
            if epoch < study.settle:
                with torch.no_grad():
                    arms.loss(weights, views, rows)
                continue
            (found,) = torch.autograd.grad(arms.loss(weights, views, rows).sum(), weights)
            total += found.sum((1, 2))
            squares += found.square().sum((1, 2, 3, 4))
            count += study.chains
    norm = float(target.norm())
    mean = total / count
    deviation = (squares / count - mean.square().sum((1, 2))).sqrt()
    return [
        {"bias": float((mean[i] - target).norm()) / norm, "sd": float(deviation[i]) / norm,
         "bias_error": float(deviation[i]) / norm / math.sqrt(count)}
        for i in range(len(ARMS))
    ]  # fmt: skip


# ---- the study


def run_study(study: Study) -> dict[str, Any]:
    """Everything that the JSON holds; excess loss and distance are relative, per initialisation."""
    begin = time.perf_counter()
    views = make_pairs(study)
    generator = torch.Generator().manual_seed(study.seed + 3)
    runs = study.tuning + study.initialisations
    start = torch.randn(runs, study.dim, study.width, generator=generator) / math.sqrt(study.dim)
    optimum, middle = find_optimum(start, views, study)
    temperature = study.temperature
    at_start, at_optimum = (full_loss(weights, views, temperature) for weights in (start, optimum))
    best = at_optimum.min()
    cosines = score(optimum[at_optimum.argmin()], views, 1.0)

    def distance(weights: Tensor) -> Tensor:
        return (score(weights, views, 1.0) - cosines).square().mean((-2, -1)).sqrt()

    training, gradients = [], []
    for batch in study.batches:
        for epochs in study.epochs:
            weights = train(start, views, batch, epochs, study)
            excess = (full_loss(weights, views, temperature) - best) / (at_start - best)
            chosen = excess[:, :, : study.tuning].mean(-1).argmin(1)
            for number, arm in enumerate(ARMS):
                at = int(chosen[number])
                training.append({
                    "arm": arm.title, "batch": batch, "epochs": epochs, "rate": study.rates[at],
                    "excess": _round(excess[number, at, study.tuning :]),
                    "distance": _round(distance(weights[number, at, study.tuning :])),
                    "excess_by_rate": _round(excess[number, :, study.tuning :].mean(-1)),
                })  # fmt: skip
            print(f"batch {batch}, {epochs} epochs: {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
        found = measure_gradients(middle[study.tuning], views, batch, study)
        gradients += [
            {"arm": arm.title, "batch": batch, **{name: float(f"{value:.4g}") for name, value in values.items()}}
            for arm, values in zip(ARMS, found, strict=True)
        ]
    return {
        "command": "python scripts/contrastive_study.py",
        "machine": {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "seconds": round(time.perf_counter() - begin),
        "study": asdict(study),
        "arms": [asdict(arm) for arm in ARMS],
        "loss": {"start": _round(at_start), "optimum": _round(at_optimum)},
        "distance": {"start": _round(distance(start)), "optimum": _round(distance(optimum))},
        "training": training,
        "gradients": gradients,
    }


def _round(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def describe(result: dict[str, Any]) -> str:
    """Tables: mean excess loss, mean distance, bias and deviation of the gradient, by arm and batch size."""
    study, titles = result["study"], [arm["title"] for arm in result["arms"]]
    batches = [str(batch) for batch in study["batches"]]

    def cells(rows: list[dict[str, Any]], title: str, name: str, scale: float, form: str) -> list[str]:
        chosen = [row[name] for row in rows if row["arm"] == title]
        means = [sum(value) / len(value) if isinstance(value, list) else value for value in chosen]
        return [title, *(format(scale * mean, form) for mean in means)]

    parts = []
    for epochs in study["epochs"]:
        rows = [row for row in result["training"] if row["epochs"] == epochs]
        for name, label, scale in (
            ("excess", "excess loss, % of the start's", 100.0),
            ("distance", "RMS distance of the cosines from the optimum's", 1.0),
        ):
            lines = [cells(rows, title, name, scale, ".2f" if scale > 1 else ".4f") for title in titles]
            parts.append(f"{epochs} epochs, {label}\n\n{format_table(['batch', *batches], lines)}")
    for name, label in (("bias", "bias"), ("bias_error", "standard error of that"), ("sd", "standard deviation")):
        lines = [cells(result["gradients"], title, name, 1.0, ".3f") for title in titles]
        parts.append(f"gradient: {label}, relative to the full gradient\n\n{format_table(['batch', *batches], lines)}")
    return "\n\n".join(parts)


COLOURS = ("#555555", "#999999", "#0b5fa5", "#d9730d", "#2a9d8f", "#8e5bb5")
MARKERS = "osD^vx"


def draw(result: dict[str, Any], path: Path) -> None:
    """A panel for each number of epochs, mean and range over the initialisations, and one for the gradient's bias."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "transenc"  # the same picture gives the same file
    from matplotlib import pyplot, ticker

    study, titles = result["study"], [arm["title"] for arm in result["arms"]]
    panels: list[tuple[str, list[dict[str, Any]]]] = [
        (f"excess loss after {epochs} epochs, %", [row for row in result["training"] if row["epochs"] == epochs])
        for epochs in study["epochs"]
    ]
    panels.append(("bias of the gradient, %; grey: 2 s.e.", result["gradients"]))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.9), squeeze=False, facecolor="white")
    for axis, (label, rows) in zip(axes[0], panels, strict=True):
        for title, colour, marker in zip(titles, COLOURS, MARKERS, strict=True):
            own = [row for row in rows if row["arm"] == title]
            x = [row["batch"] for row in own]
            style = {"color": colour, "marker": marker, "markersize": 5, "linewidth": 1.4, "label": title}
            if "bias" in own[0]:
                axis.plot(x, [100 * row["bias"] for row in own], **style)
                continue
            middle = [100 * sum(row["excess"]) / len(row["excess"]) for row in own]
            below = [value - 100 * min(row["excess"]) for value, row in zip(middle, own, strict=True)]
            above = [100 * max(row["excess"]) - value for value, row in zip(middle, own, strict=True)]
            axis.errorbar(x, middle, yerr=[below, above], elinewidth=0.8, **style)
        if "bias" in rows[0]:
            errors = [max(row["bias_error"] for row in rows if row["batch"] == b) for b in study["batches"]]
            axis.fill_between(study["batches"], [200 * e for e in errors], 0.0, color="#dddddd", linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(ticker.NullLocator())
        axis.set_xticks(study["batches"], [str(batch) for batch in study["batches"]])
        axis.set_xlabel("batch size")
        axis.set_title(label, fontsize=10)
        axis.grid(alpha=0.25, which="major")
        axis.spines[["top", "right"]].set_visible(False)
    handles, names = axes[0][-1].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
