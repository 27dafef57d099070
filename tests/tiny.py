"""Tiny models and sentences, built here in a second and without a download.

The word vectors are drawn much wider than everything else, so that sentences with common words are close to each other
and the scores are spread like those of a real model.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KINDS = {
    "adjective": "small big old young red green blue warm cold quiet loud happy tired hungry clever brave shy tall "
    "short wet dry clean dirty soft hard bright dark heavy light fast slow kind",
    "noun": "cat dog bird fish horse cow sheep fox bear mouse child woman man girl boy farmer baker doctor teacher "
    "singer river lake hill tree flower garden house door window table chair lamp bread apple soup cake book letter "
    "song story ball boat train car bicycle road bridge market school shop stone cloud star moon sun rain snow wind",
    "verb": "sees likes finds carries follows helps paints cleans moves watches hears leaves meets brings buys sells "
    "opens closes holds drops pushes pulls washes draws reads writes sings builds breaks fixes feeds hides",
    "place": "home outside inside upstairs downtown nearby abroad alone together today yesterday tomorrow again often "
    "never soon early late",
}
OTHER = "the a an and or but not is are was in on at by with for to of from near under over this that it who how what"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!-'"

WORDS = {kind: words.split() for kind, words in KINDS.items()}


def make_vocabulary(*, letters: bool = True) -> dict[str, int]:
    """Token -> id, `len` of about 250; with `letters`, any ASCII word can be spelled."""
    tokens = [*SPECIAL, *OTHER.split(), *(word for words in WORDS.values() for word in words)]
    if letters:
        tokens += [*LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return {token: number for number, token in enumerate(dict.fromkeys(tokens))}


def make_pairs(count: int = 64, *, seed: int = 0) -> list[tuple[str, str]]:
    """Different pairs of sentences with 0 to 5 of 5 content words in common, spread evenly."""
    rng = random.Random(seed)
    pairs: dict[tuple[str, str], None] = {}
    while len(pairs) < count:
        kinds = ["adjective", "noun", "verb", "noun", "place"]
        first = [rng.choice(WORDS[kind]) for kind in kinds]
        second = list(first)
        for place in rng.sample(range(5), 1 + len(pairs) % 5):
            second[place] = rng.choice(WORDS[kinds[place]])
        if first != second:
            sentences = ["the {} {} {} the {} {}".format(*words) for words in (first, second)]
            pairs[sentences[0], sentences[1]] = None
    return list(pairs)


def count_common(pair: tuple[str, str]) -> float:
    """Words that both sentences have, out of 5: a gold score for tests."""
    first, second = (set(sentence.split()) - {"the"} for sentence in pair)
    return len(first & second) / 5


def build_plain(folder: Path, *, seed: int = 0, width: int = 32, letters: bool = True, labels: int = 0) -> Path:
    """Save a bare Hugging Face folder: BERT of 2 layers, with `labels` a classification head."""
    vocabulary = make_vocabulary(letters=letters)
    tokenizer = BertTokenizer(vocab=vocabulary, model_max_length=64)
    assert len(tokenizer) == len(vocabulary)  # BertTokenizer(vocab_file=...) gives 5 entries without a word
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=64,
        initializer_range=0.2,  # ten times BERT's: the sentence reaches the [CLS] vector in two layers
        **({"num_labels": labels} if labels else {}),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config) if labels else BertModel(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(0.0, 1.0)
            if labels:
                model.bert.pooler.dense.weight.normal_(0.0, 0.1)  # the pooler's tanh away from its ends
                model.classifier.weight.normal_(0.0, 1.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_bi(folder: Path, plain: Path, *, pooling: str = "mean") -> Path:
    """Save a sentence-transformers folder made of a bare one."""
    transformer = Transformer(str(plain))
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling)]
    model = SentenceTransformer(modules=modules, device="cpu")
    model.model_card_data.generate_widget_examples = False
    model.save_pretrained(str(folder))
    return folder


def build_cross(folder: Path, plain: Path) -> Path:
    """Save a CrossEncoder folder made of a bare one with a head."""
    model = CrossEncoder(str(plain), device="cpu", local_files_only=True, max_length=64)
    model.model_card_data.generate_widget_examples = False
    model.save_pretrained(str(folder))
    return folder
