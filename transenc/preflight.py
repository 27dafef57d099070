"""What speaks against a run before the long part of it: measured on the pairs and on their first labels.

The thresholds, and the figures they come from: docs/warnings.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np
from datasets import Dataset

from transenc.errors import InputError, StateError
from transenc.labeling import Scores, clip_scores, merge_scores
from transenc.metrics import correlation
from transenc.pairs import SENTENCES, count_overlap, fold_sentence
from transenc.views import score_overlap

_NO_TEACHERS = ("score", "overlap")  # the merged label, and a count of words
_FEW_PAIRS, _RATHER_FEW_PAIRS = 1_000, 5_000
_FEW_SENTENCES, _RATHER_FEW_SENTENCES = 100, 1_000
_STRANGERS = 256  # pairs of unrelated sentences that are scored
_PLAIN, _SURELY_PLAIN, _HIGHEST = 0.35, 0.6, 0.85  # their mean score: by a bare folder, by a bare folder, by any model
_SPREAD = 0.09  # standard deviation of the labels, where 0 is the label of strangers
_LOW, _HIGH = 0.25, 0.75  # nine labels of ten below the one or above the other, likewise
_TIED = 0.3  # share of the most frequent label
_ONLY_WORDS, _NO_WORDS = 0.95, 0.2  # Spearman with the words in common
_VARIED = 0.1  # standard deviation of the words in common, below which that says nothing
_DISAGREE = 0.3  # Spearman of two teachers
# Thai to Myanmar, Khmer, kana, Han: written without spaces, where a text this short may still be a word
_UNSPACED = re.compile(
    "[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)
_SHORT = 6  # characters
_SOME, _MANY, _MOST = 0.05, 0.2, 0.5  # shares


@dataclass(frozen=True)
class Finding:
    """One thing that speaks against a run.

    Args:
        name: for programs, e.g. `few-pairs`.
        serious: the run will probably not help; False: it may help less, or a figure will mean something else.
        text: one line: why, and what to do.
        figures: what was measured.

    Example:
        >>> Finding("few-pairs", True, "there are only 50 pairs", {"pairs": 50}).serious
        True
    """

    name: str
    serious: bool
    text: str
    figures: Mapping[str, Any]


@dataclass(frozen=True)
class Inspection:
    """What was measured, and what of it speaks against a run.

    Args:
        figures: all that was measured; None is undefined.
        findings: the serious ones first.

    Example:
        >>> Inspection({}, ()).verdict
        'nothing that was measured speaks against the run'
    """

    figures: Mapping[str, Any]
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> str:
        """One sentence for the top."""
        if serious := dict.fromkeys(finding.name for finding in self.findings if finding.serious):
            return f"the run will probably not help ({', '.join(serious)})"
        if self.findings:
            return f"the run may help; mind {', '.join(dict.fromkeys(finding.name for finding in self.findings))}"
        return "nothing that was measured speaks against the run"

    def to_dict(self) -> dict[str, Any]:
        """Verdict, figures and findings in plain types, for JSON."""
        findings = [asdict(finding) for finding in self.findings]
        return {"verdict": self.verdict, "figures": dict(self.figures), "findings": findings}


def inspect_pairs(
    pairs: Dataset,
    scores: Mapping[str, Scores] | None = None,
    *,
    rows: Sequence[int] | None = None,
    strangers: Scores | None = None,
    plain: bool = False,
    dev: Dataset | None = None,
    tests: Mapping[str, Dataset] | None = None,
    symmetric: bool = True,
) -> Inspection:
    """Look for what makes a distillation fail, or its figures mislead, without training anything.

    Args:
        pairs: columns sentence1, sentence2; n rows.
        scores: teachers' scores by name, m finite numbers each, such as `bi-0`. `score` is the label merged from them
            (without it their mean is taken), `overlap` no teacher. None: only the texts are looked at.
        rows: which m of the pairs were scored; None: all.
        strangers: the first teacher's scores of `pair_strangers`; None: unrelated ones are taken for 0.
        plain: the first teacher is a bare folder, perhaps a plain language model.
        dev: pairs that will choose the model.
        tests: name -> pairs that will measure it.
        symmetric: whether (b, a) repeats (a, b).

    Returns:
        The figures, and a finding for each that is out of its range.

    Raises:
        InputError: not one score a pair. StateError: a score is not finite.

    Example:
        >>> pairs = Dataset.from_dict({"sentence1": ["a cat", "a dog"], "sentence2": ["a cat sat", "a bird"]})
        >>> inspect_pairs(pairs, {"bi-0": np.array([0.9, 0.1])}).verdict
        'the run will probably not help (few-pairs, few-sentences, tied-labels, only-words)'
    """
    figures = _measure_texts(pairs, symmetric=symmetric)
    if scores:
        scored = pairs if rows is None else pairs.select(rows)
        for name, column in scores.items():
            if len(column) != len(scored):
                raise InputError(f"scores of {name}: expected one a pair, {len(scored)}, found {len(column)}")
        if strangers is not None and (bad := np.flatnonzero(~np.isfinite(strangers))).size:
            raise StateError(
                f"scores of strangers: expected finite numbers, found {strangers[bad[0]]} for pair {bad[0]}; "
                "check the first teacher"
            )
        figures["labels"] = _measure_labels(scored, scores, strangers)
        figures["plain"] = plain
    figures["shared"] = {name: _measure_shared(pairs, other) for name, other in _name_sets(dev, tests)}
    return _conclude(figures)


def inspect_sentences(
    sentences: Sequence[str], *, pairs: int, dev: Dataset | None = None, tests: Mapping[str, Dataset] | None = None
) -> Inspection:
    """The same for raw sentences whose pairs are yet to be mined: their number, and what they share with other sets.

    Args:
        sentences: texts.
        pairs: how many pairs are to be mined of them, at most.
        dev: pairs that will choose the model.
        tests: name -> pairs that will measure it.

    Example:
        >>> inspect_sentences(["a cat", "a dog", "A cat"], pairs=6).figures["sentences"]
        2
    """
    alone = Dataset.from_dict({name: list(sentences) for name in SENTENCES})
    shared = {name: _measure_shared(alone, other) for name, other in _name_sets(dev, tests)}
    count = len({fold_sentence(text) for text in sentences})
    return _conclude({"pairs": pairs, "sentences": count, "shared": shared})


def pair_strangers(pairs: Dataset) -> Dataset:
    """Sentences that do not belong together, 256 or fewer pairs: of each pair the first with one from far away.

    Args:
        pairs: columns sentence1, sentence2.

    Example:
        >>> pairs = Dataset.from_dict({"sentence1": ["a cat", "a dog"], "sentence2": ["a cat sat", "a bird"]})
        >>> pair_strangers(pairs)[0]
        {'sentence1': 'a cat', 'sentence2': 'a bird'}
    """
    count = len(pairs)
    some = range(0, count, max(1, math.ceil(count / _STRANGERS)))
    far = max(1, int(0.382 * count))  # no simple share: the pairs may be there twice, or again in the other order
    first, second = pairs.select(some), pairs.select([(row + far) % count for row in some])
    rows = zip(first["sentence1"], second["sentence2"], strict=True)
    kept = [row for row in rows if fold_sentence(row[0]) != fold_sentence(row[1])]
    return Dataset.from_dict({name: [row[i] for row in kept] for i, name in enumerate(SENTENCES)})


# ---- measuring


def _measure_texts(pairs: Dataset, *, symmetric: bool) -> dict[str, Any]:
    folded = list(zip(*(map(fold_sentence, pairs[name][:]) for name in SENTENCES), strict=True))
    sentences = set(chain.from_iterable(folded))
    return {
        "pairs": len(folded),
        "sentences": len(sentences),
        "repeated": len(folded) - len({tuple(sorted(pair)) if symmetric else pair for pair in folded}),
        "alike": sum(first == second for first, second in folded),
        "one_word": sum(_is_word(text) for text in sentences),
    }


def _is_word(text: str) -> bool:
    return len(text.split()) < 2 and (len(text) < _SHORT or not _UNSPACED.search(text))


def _measure_labels(pairs: Dataset, scores: Mapping[str, Scores], strangers: Scores | None) -> dict[str, Any]:
    teachers = {name: np.asarray(column) for name, column in scores.items() if name not in _NO_TEACHERS}
    labels, _ = clip_scores(np.asarray(scores["score"]) if "score" in scores else merge_scores(list(teachers.values())))
    words = score_overlap(pairs, idf=False)
    spots = [round(float(value), 4) for value in np.quantile(labels, (0.1, 0.25, 0.5, 0.75, 0.9))]
    return {
        "pairs": len(labels),
        "strangers": None if strangers is None or not len(strangers) else round(float(strangers.mean()), 4),
        "mean": round(float(labels.mean()), 4),
        "deviation": round(float(labels.std()), 4),
        "quantiles": dict(zip(("0.1", "0.25", "0.5", "0.75", "0.9"), spots, strict=True)),
        "tied": round(float(np.unique(labels, return_counts=True)[1].max() / len(labels)), 4),
        "words": _spearman(labels, words),
        "words_deviation": round(float(words.std()), 4),
        "agreement": {f"{a}, {b}": _spearman(teachers[a], teachers[b]) for a, b in combinations(teachers, 2)},
    }


def _measure_shared(pairs: Dataset, other: Dataset) -> dict[str, int]:
    whole = count_overlap(other, other)
    return {**count_overlap(pairs, other), "of_pairs": whole["pairs"], "of_sentences": whole["sentences"]}


def _name_sets(dev: Dataset | None, tests: Mapping[str, Dataset] | None) -> list[tuple[str, Dataset]]:
    return [*([] if dev is None else [("dev", dev)]), *(tests or {}).items()]


def _spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    value = correlation(first, second)["spearman"]
    return None if value is None else round(float(value), 4)


# ---- judging


def _conclude(figures: dict[str, Any]) -> Inspection:
    judges = (_judge_counts, _judge_texts, _judge_labels, _judge_teachers, _judge_shared)
    findings = [finding for judge in judges for finding in judge(figures)]
    return Inspection(figures, tuple(sorted(findings, key=lambda finding: not finding.serious)))


def _object(name: str, why: str, advice: str, **figures: Any) -> Finding:
    return Finding(name, True, f"this will probably not help, because {why}: {advice}", figures)


def _note(name: str, what: str, advice: str, **figures: Any) -> Finding:
    return Finding(name, False, f"{what}: {advice}", figures)


def _judge_counts(figures: Mapping[str, Any]) -> Iterator[Finding]:
    pairs, sentences = figures["pairs"], figures["sentences"]
    if pairs < _FEW_PAIRS:
        yield _object("few-pairs", f"there are only {pairs} pairs", "a cross-encoder learns little from so few; "
                      "give several thousand", pairs=pairs)  # fmt: skip
    elif pairs < _RATHER_FEW_PAIRS:
        yield _note("few-pairs", f"{pairs} pairs are few", "expect a small gain, and a loss with the preset "
                    "`reference`; more pairs give more", pairs=pairs)  # fmt: skip
    if sentences < _FEW_SENTENCES:
        yield _object("few-sentences", f"the pairs are made of only {sentences} different sentences",
                      "the students would learn those by heart; give more text", sentences=sentences)  # fmt: skip
    elif sentences < _RATHER_FEW_SENTENCES and pairs >= _FEW_PAIRS:
        yield _note("few-sentences", f"the {pairs} pairs are made of only {sentences} different sentences",
                    "pairs of other sentences teach more than further pairs of these", sentences=sentences)  # fmt: skip


def _judge_texts(figures: Mapping[str, Any]) -> Iterator[Finding]:
    pairs = figures["pairs"]
    repeated, alike, one_word = (figures.get(name, 0) for name in ("repeated", "alike", "one_word"))
    if repeated > _SOME * pairs:
        text = f"{repeated} of {pairs} pairs repeat another one"
        kind = _object if repeated > _MOST * pairs else _note
        yield kind("repeated-pairs", text, "they count as often; leave one of each", repeated=repeated, pairs=pairs)
    if alike > _SOME * pairs:
        text = f"{alike} of {pairs} pairs have twice the same sentence"
        kind = _object if alike > _MOST * pairs else _note
        yield kind("same-sentence", text, "such a pair teaches nothing; leave it out", alike=alike, pairs=pairs)
    if one_word > _MANY * figures["sentences"]:
        yield _note("one-word", f"{one_word} of {figures['sentences']} different sentences are one word",
                    "encoders of sentences tell single words apart badly; give whole sentences",
                    one_word=one_word, sentences=figures["sentences"])  # fmt: skip


def _judge_labels(figures: Mapping[str, Any]) -> Iterator[Finding]:
    if "labels" not in figures:
        return
    labels, advice = figures["labels"], "mine pairs over the whole range (transenc mine)"
    strangers = labels["strangers"] or 0.0
    if strangers > (_PLAIN if figures["plain"] else _HIGHEST):
        kind = _object if strangers > (_SURELY_PLAIN if figures["plain"] else _HIGHEST) else _note
        yield kind("plain-start", f"unrelated sentences score {strangers:.2f}, as by a plain language model",
                   "bootstrap one first (transenc bootstrap, or distill --sentences)", strangers=strangers)  # fmt: skip
    zero = min(max(strangers, 0.0), _HIGHEST)
    deviation = labels["deviation"] / (1 - zero)
    low, high = ((labels["quantiles"][share] - zero) / (1 - zero) for share in ("0.1", "0.9"))
    if deviation < _SPREAD:
        yield _object("alike-labels", f"the labels are nearly alike (standard deviation {labels['deviation']:.3f})",
                      f"there is little to learn from them; {advice}", deviation=labels["deviation"])  # fmt: skip
    if low > _HIGH or high < _LOW:
        where, share = ("above", "0.1") if low > _HIGH else ("below", "0.9")
        bound = labels["quantiles"][share]
        yield _object("one-sided-labels", f"nine labels of ten are {where} {bound:.2f}",
                      f"pairs of one kind show no difference; {advice}", **{where: bound})  # fmt: skip
    if labels["tied"] > _TIED:
        yield _object("tied-labels", f"{labels['tied']:.0%} of the labels are one and the same number",
                      "pairs with equal labels cannot be ordered; leave them out", tied=labels["tied"])  # fmt: skip
    words = labels["words"]
    if words is None or labels["words_deviation"] < _VARIED:
        return
    if words > _ONLY_WORDS:
        yield _object("only-words", f"the labels are hardly more than words in common (Spearman {words:.2f})",
                      "students would learn to count words; start from a better encoder", words=words)  # fmt: skip
    elif words < _NO_WORDS:
        yield _object("no-words", f"the labels have hardly to do with words in common (Spearman {words:.2f})",
                      "labels of a working encoder do; check model, pooling and language", words=words)  # fmt: skip


def _judge_teachers(figures: Mapping[str, Any]) -> Iterator[Finding]:
    for names, value in figures.get("labels", {}).get("agreement", {}).items():
        if value is None or value < _DISAGREE:
            told = "undefined" if value is None else f"{value:.2f}"
            yield _object("disagreement", f"the teachers {names.replace(', ', ' and ')} disagree (Spearman {told})",
                          "at least one of them is wrong; leave it out, or give it less weight", teachers=names,
                          spearman=value)  # fmt: skip


def _judge_shared(figures: Mapping[str, Any]) -> Iterator[Finding]:
    for name, shared in figures["shared"].items():
        if shared["pairs"] or (name != "dev" and shared["sentences"]):
            yield _note(f"shared-{'dev' if name == 'dev' else 'test'}",
                        f"{shared['pairs']} of {shared['of_pairs']} pairs and {shared['sentences']} of "
                        f"{shared['of_sentences']} sentences of {name} are also trained on, without labels",
                        "its figure says less about unseen text (transductive)", set=name, **shared)  # fmt: skip
