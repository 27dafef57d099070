"""The figures of a report: small SVG texts in CSS variables, which a page shows in light and in dark.

Each is about 340 pixels wide, so that its letters stay readable on a phone; a page sets them side by side.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

from transenc.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.7, 3.1  # inches of 72 pixels
LETTERS = 22  # of a name beside its dot
# What matplotlib draws in a colour is shown in the page's variable of that name.
COLOURS = {"bi": "#3b5fb0", "cross": "#b0491c", "ink": "#1f1e1b", "soft": "#625e57", "rule": "#e4e0d8"}
STYLE: Any = {
    "svg.fonttype": "none",  # letters stay text
    "svg.hashsalt": "transenc",  # the same figure gives the same ids
    "text.parse_math": False,  # a name may hold a $
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["soft"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.8,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["soft"],
    "ytick.labelcolor": COLOURS["soft"],
    "lines.linewidth": 1.8,
    "patch.linewidth": 0,
}
MARKERS = "osD^v"  # one for each backbone


def draw_scores(rows: Sequence[Mapping[str, Any]], label: str, *, axis: str = "dev Spearman x 100") -> str:
    """Dots with their intervals, a row each: `name`, `form`, `score`, `low`, `high`, `chosen`.

    Returns:
        An `<svg>` element.

    Raises:
        InputError: matplotlib is not installed.

    Example:
        >>> draw_scores([{"name": "start", "form": "bi", "score": 71.0, "low": None, "high": None, "chosen": True}], "")
        ... # doctest: +SKIP
        '<svg ...'
    """
    shown = [row for row in rows if row["score"] is not None]
    names = [row["name"] if len(row["name"]) <= LETTERS else row["name"][: LETTERS - 1] + "…" for row in shown]
    left = 0.4 + 0.088 * max(map(len, names))
    with _axes(label, height=max(1.3, 0.75 + 0.34 * len(shown)), left=left) as (axes, done):
        for place, row in enumerate(shown):
            colour = COLOURS[row["form"]]
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=colour, solid_capstyle="round")
            face = colour if row["chosen"] else "none"
            axes.plot(row["score"], place, "o", color=colour, markerfacecolor=face, markersize=8, markeredgewidth=1.8)
        axes.set_yticks(range(len(shown)), names)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
    return done[0]


def draw_histogram(counts: Sequence[int], label: str, *, form: str, highest: int) -> str:
    """A histogram over [0, 1], the axis up to `highest` so that several compare."""
    with _axes(label, height=2.2) as (axes, done):
        width = 1 / len(counts)
        places = [width * (i + 0.5) for i in range(len(counts))]
        axes.bar(places, counts, width=0.86 * width, color=COLOURS[form])
        axes.set_xlim(0, 1)
        axes.set_ylim(0, max(1, highest) * 1.04)
        axes.grid(axis="x", visible=False)
        axes.locator_params(axis="y", nbins=4)
        axes.set_xlabel("label")
        axes.set_ylabel("pairs")
    return done[0]


def draw_bins(
    curves: Sequence[Mapping[str, Any]], label: str, *, x: str, y: str, diagonal: bool = False, name: str = "name"
) -> str:
    """Means of y over x in groups of equal size, a curve each: `bins`, `form`, and what `name` names."""
    with _axes(label) as (axes, done):
        if diagonal:
            axes.plot([0, 1], [0, 1], color=COLOURS["soft"], linewidth=1, linestyle=(0, (2, 3)))
        for number, curve in enumerate(curves):
            xs, ys = ([item[key] for item in curve["bins"]] for key in ("x", "y"))
            style = "--" if curve.get("faint") else "-"
            axes.plot(xs, ys, style, marker=MARKERS[number % len(MARKERS)], markersize=5, color=COLOURS[curve["form"]],
                      label=curve[name])  # fmt: skip
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        if len(curves) > 1:
            _legend(axes)
    return done[0]


def draw_loss(log: Mapping[str, Any], label: str, *, form: str) -> str:
    """The loss over the steps of one training."""
    with _axes(label, height=2.2) as (axes, done):
        axes.plot(*zip(*log["curve"], strict=True), color=COLOURS[form])
        axes.locator_params(nbins=5)
        axes.set_xlim(left=0)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
    return done[0]


@contextmanager
def _axes(label: str, *, height: float = HEIGHT, left: float = 0.72) -> Iterator[tuple[Axes, list[str]]]:
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InputError("a report needs the extra `report`: pip install 'transenc[report]'") from None
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        FigureCanvasSVG(figure)
        bottom = 0.58
        box = (left / WIDTH, bottom / height, 1 - (left + 0.16) / WIDTH, 1 - (bottom + 0.12) / height)
        done: list[str] = []
        yield figure.add_axes(box), done
        target = io.StringIO()
        unnamed: Any = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(target, format="svg", transparent=True, metadata=unnamed)
        done.append(_make_inline(target.getvalue(), label))


def _legend(axes: Axes) -> None:
    axes.legend(
        frameon=False, fontsize=10.5, loc="best", handlelength=1.6, borderaxespad=0.2, labelcolor=COLOURS["ink"]
    )


def _make_inline(document: str, label: str) -> str:
    """The `<svg>` element alone: no address, the page's colours and letters, ids that no other figure has."""
    svg = document[document.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r" font-family: [^;\"]*;", "", svg)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    key = re.sub(r"\W+", "-", label)
    svg = re.sub(r'id="', f'id="{key}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", svg)
    size = re.search(r'viewBox="([^"]*)"', svg)
    assert size is not None
    inside = svg[svg.index(">") + 1 :]
    return f'<svg viewBox="{size[1]}" role="img" aria-label="{escape(label)}">{_squeeze(inside)}'


def _squeeze(svg: str) -> str:
    return re.sub(r">\s+<", "><", svg).strip()
