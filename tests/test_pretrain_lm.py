"""Small language models: the script that trains them, and the two that are in the repository."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import make_pairs

from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.scoring import encode_texts

ROOT = Path(__file__).parents[1]
MODELS = ROOT / "data" / "models"
SCRIPTS = ROOT / "scripts"
SIZES = ["--layers", "1", "--width", "16", "--heads", "2", "--vocabulary", "160", "--block", "16", "--batch", "4"]


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(sentence for pair in make_pairs(60) for sentence in pair) + "\n", encoding="utf-8")
    return path


def pretrain(monkeypatch: pytest.MonkeyPatch, *flags: str) -> int:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain_lm

    monkeypatch.setattr(sys, "argv", ["pretrain_lm.py", *flags])
    return pretrain_lm.main()


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_model_that_learns_and_loads(
    kind: str, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "lm"
    flags = [*SIZES, "--sentences", str(sentences), "--output", str(output), "--kind", kind, "--epochs", "12"]
    assert pretrain(monkeypatch, *flags, "--learning-rate", "1e-2") == 0
    figures = json.loads(capsys.readouterr().out)
    losses = list(figures["losses"].values())
    assert losses[-1] < losses[0] - 0.5  # of ln 160 = 5.1
    folder = output / "stages" / "20-train"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {np.dtype(np.float16)}
    model = load_bi_encoder(folder, pooling="mean", device="cpu")
    assert model.max_seq_length == 32
    lower, upper = encode_texts(model, ["the small cat", "THE SMALL CAT"])
    np.testing.assert_array_equal(lower, upper)
    load_cross_encoder(folder, new_head=True, device="cpu")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert pretrain(monkeypatch, *flags, "--learning-rate", "1e-2") == 0
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert pretrain(monkeypatch, *flags, "--learning-rate", "2e-2") == 3
    assert "config.learning_rate: 0.01 -> 0.02" in capsys.readouterr().err.splitlines()[-1]


def test_blocks_hold_the_text_in_order(tiny_plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain_lm
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_plain))
    blocks = pretrain_lm.pack(tokenizer, ["the cat sees the dog", "a bird sings", "the sun"], 6)["input_ids"][:]
    words = [tokenizer.convert_ids_to_tokens(row.tolist()) for row in blocks]
    assert words == [["[CLS]", "the", "cat", "sees", "the", "dog"], ["[CLS]", "[SEP]", "a", "bird", "sings", "[SEP]"]]


def test_the_first_embeddings_know_which_words_meet(tiny_plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import pretrain_lm
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_plain))
    text = [f"{adjective} {noun}" for adjective, noun in [("red", "apple"), ("green", "apple"), ("loud", "train"),
                                                          ("fast", "train")]] * 20  # fmt: skip
    blocks = pretrain_lm.pack(tokenizer, text, 13)
    vectors = pretrain_lm.factorise(blocks, tokenizer, 4, 0)
    red, green, loud, unseen = (vectors[tokenizer.convert_tokens_to_ids(w)] for w in ("red", "green", "loud", "moon"))
    assert red @ green > 0.9 > 0.5 > red @ loud
    assert not unseen.any()


def test_too_little_text_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def complain(text: str | None) -> str:
        path = tmp_path / "text.txt"
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text, encoding="utf-8")
        flags = [*SIZES, "--sentences", str(path), "--output", str(tmp_path / "lm")]
        assert pretrain(monkeypatch, *flags) == 2
        return capsys.readouterr().err.splitlines()[-1]

    for text in (None, "", "\n\n"):
        assert "text.txt" in complain(text)
        assert not (tmp_path / "lm").exists()
    assert "expected at least 2 blocks of 16 tokens, found 0; give more text" in complain("the cat\na dog\n")


# ---- the models in the repository


@pytest.mark.parametrize(
    ("name", "kind", "layers", "width"), [("wordpiece", "bert", 4, 256), ("bpe", "roberta", 6, 192)]
)
def test_the_models_are_what_their_readme_says(name: str, kind: str, layers: int, width: int) -> None:
    folder = MODELS / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12 * 2**20
    model = load_bi_encoder(folder, pooling="mean", device="cpu")
    config = model.transformers_model.config
    assert (config.model_type, config.num_hidden_layers, config.hidden_size) == (kind, layers, width)
    assert len(model.tokenizer) == 8192
    figures = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    row = next(
        line for line in (MODELS / "README.md").read_text("utf-8").splitlines() if line.startswith(f"| `{name}`")
    )
    parameters, loss = re.findall(r"\d+\.\d+", row)
    assert (float(parameters), float(loss)) == (
        round(figures["parameters"] / 1e6, 1),
        round(figures["held_out_loss"], 2),
    )
    near, far = encode_texts(model, ["a man plays the guitar", "a man is playing a guitar"]), encode_texts(
        model, ["the stock market fell", "a man is playing a guitar"]
    )  # fmt: skip
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in (near, far)]
    assert cosine[0] > cosine[1] + 0.1
