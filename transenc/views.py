"""Scores of a pair that need no training: words in common, the text without punctuation, aligned tokens."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain

import numpy as np
from datasets import Dataset
from scipy.stats import rankdata
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

from transenc.alignment import encode_tokens, score_alignment
from transenc.scoring import score_pairs

_WORD = re.compile(r"\w+")
_PAIRS_AT_ONCE = 2048  # pairs whose token vectors are in memory at once
_MAX_TOKENS = 64
_BATCH_TOKENS = 2048


def score_overlap(pairs: Dataset, *, idf: bool = True) -> np.ndarray:
    """Words that two sentences share over the words of either, lower-cased (Jaccard), rare words counting more.

    For languages that write words apart: a word is a run of letters and digits. It counts log((n + 1) / (1 + number of
    sentences with it)), of the n different sentences of these very pairs.

    Args:
        pairs: columns sentence1, sentence2; n rows.
        idf: False: every word counts the same.

    Returns:
        float32 of shape (n,), in [0, 1]; 0 where neither sentence has a word.

    Example:
        >>> pairs = Dataset.from_dict({"sentence1": ["a cat", "a dog"], "sentence2": ["a cat sat", "a bird"]})
        >>> score_overlap(pairs, idf=False).round(2).tolist()
        [0.6700000166893005, 0.33000001311302185]
    """
    first, second = list(pairs["sentence1"]), list(pairs["sentence2"])
    words = {text: frozenset(_WORD.findall(text.lower())) for text in chain(first, second)}
    found = Counter(chain.from_iterable(words.values()))
    weight = {word: np.log((len(words) + 1) / (1 + count)) if idf else 1.0 for word, count in found.items()}

    def compare(one: frozenset[str], other: frozenset[str]) -> float:
        shared, either = (sum(weight[word] for word in sorted(chosen)) for chosen in (one & other, one | other))
        return shared / either if either > 0 else 0.0

    return np.array([compare(words[a], words[b]) for a, b in zip(first, second, strict=True)], dtype=np.float32)


def simplify_text(text: str) -> str:
    """The text without its punctuation, and with a full stop at its end; as it is where nothing would be left.

    How a sentence is punctuated says little of its meaning, and bi-encoders see it all the same.

    Example:
        >>> simplify_text('He said: "It rains!"')
        'He said It rains.'
    """
    kept = " ".join(text.translate(_punctuation()).split())
    return f"{kept}." if kept else text


def score_simplified(
    model: SentenceTransformer, pairs: Dataset, *, batch_tokens: int | None = None, progress: bool = False
) -> np.ndarray:
    """The cosine of the sentences without their punctuation (`simplify_text`).

    Args:
        model: a bi-encoder.
        pairs: columns sentence1, sentence2; n rows.
        batch_tokens: as for `score_pairs`.
        progress: show a bar on stderr.

    Returns:
        float32 of shape (n,), in [-1, 1].

    Raises:
        TypeError, InputError, StateError: as `score_pairs`.

    Example:
        >>> score_simplified(load_bi_encoder("my/encoder"), pairs).shape  # doctest: +SKIP
        (2,)
    """
    texts = ([simplify_text(text) for text in pairs[name]] for name in ("sentence1", "sentence2"))
    return score_pairs(model, list(zip(*texts, strict=True)), batch_tokens=batch_tokens, progress=progress)


def score_alignments(
    model: SentenceTransformer, pairs: Dataset, *, batch_tokens: int | None = None, progress: bool = False
) -> np.ndarray:
    """How well the tokens of two sentences match, one by one: the score of `align_tokens`, for many pairs.

    Of each sentence the first 64 tokens are compared. A sentence without a token matches nothing: 0.

    Args:
        model: a bi-encoder on a transformer.
        pairs: columns sentence1, sentence2; n rows.
        batch_tokens: tokens in a batch, about; None: 2048.
        progress: show a bar on stderr.

    Returns:
        float32 of shape (n,), in [-1, 1].

    Raises:
        TypeError: not a bi-encoder. InputError: a model without token embeddings. StateError: NaN or infinity.

    Example:
        >>> score_alignments(load_bi_encoder("my/encoder"), pairs).shape  # doctest: +SKIP
        (2,)
    """
    rows = list(zip(list(pairs["sentence1"]), list(pairs["sentence2"]), strict=True))
    # pairs of like length together: little padding, and memory for a part of them only
    order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]) + len(rows[row][1]))
    scores = np.zeros(len(rows), dtype=np.float32)
    size = max(1, (batch_tokens or _BATCH_TOKENS) // _MAX_TOKENS)
    with tqdm(total=len(rows), unit="pair", disable=not progress) as bar:
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            chosen = order[start : start + _PAIRS_AT_ONCE]
            texts = list(dict.fromkeys(chain.from_iterable(rows[row] for row in chosen)))
            vectors = dict(
                zip(texts, encode_tokens(model, texts, max_tokens=_MAX_TOKENS, batch_size=size), strict=True)
            )
            for row in chosen:
                first, second = (vectors[text] for text in rows[row])
                if len(first) and len(second):
                    scores[row] = score_alignment(np.clip(first @ second.T, -1.0, 1.0))
            bar.update(len(chosen))
    return scores


def mean_rank(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Mean place of every row among the rows, over several columns of scores, from 0 to 1; ties share their places.

    Example:
        >>> mean_rank([np.array([0.1, 0.9, 0.5]), np.array([3.0, 2.0, 2.0])]).round(2).tolist()
        [0.5, 0.62, 0.38]
    """
    table = np.stack([rankdata(column) - 1 for column in columns]) / max(1, len(columns[0]) - 1)
    return table.mean(axis=0)


@cache
def _punctuation() -> dict[int, str]:
    return {code: " " for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)).startswith("P")}
