"""Losses on lists and regularisers: where lists come from, what each loss says, and that training follows it."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_training import BI, CROSS, Training, digest
from tiny import WORDS, count_common
from torch import nn
from transformers import set_seed

from transenc import targets
from transenc.checkpoints import LOSS_STATE
from transenc.cli import main
from transenc.config import Backbone, BiTrainingSettings, CrossTrainingSettings, DistillConfig, MiningSettings
from transenc.config import TrainingSettings as Settings
from transenc.distillation import distill
from transenc.encoders import load_bi_encoder, load_cross_encoder
from transenc.errors import InputError, StateError
from transenc.labeling import read_labels, read_rows
from transenc.mining import flatten_lists
from transenc.pairs import read_pairs, write_pairs
from transenc.planning import MINE, check_inputs, describe_plan
from transenc.regularisers import GeometryLoss, SymmetryLoss, compare_geometry
from transenc.report.labels import describe_labels, read_label_stages
from transenc.scoring import encode_texts, score_pairs
from transenc.targets import build_bi_target, build_cross_target, cut_lists, group_rows
from transenc.training import TrainingContext, group_by_length, train_bi_encoder


def make_lists(count: int, *, size: int = 4, seed: int = 0) -> Dataset:
    """Queries with `size` texts each, which have 4, 3, ... of 5 words in common with them; labelled by that."""
    rng, kinds = random.Random(seed), ["adjective", "noun", "verb", "noun", "place"]
    lists: dict[str, list[str]] = {}
    while len(lists) < count:
        first = [rng.choice(WORDS[kind]) for kind in kinds]
        texts = []
        for changed in range(1, size + 1):
            text = list(first)
            for place in range(changed):
                text[place] = rng.choice([word for word in WORDS[kinds[place]] if word not in first])
            texts.append("the {} {} {} the {} {}".format(*text))
        lists["the {} {} {} the {} {}".format(*first)] = texts
    rows = flatten_lists(Dataset.from_dict({"query": list(lists), "texts": list(lists.values())}))
    return rows.add_column(
        "score", [count_common(pair) for pair in zip(rows["sentence1"], rows["sentence2"], strict=True)]
    )


LISTS = make_lists(16)
SOME = LISTS.select(range(32))
PAIRED = Dataset.from_dict({"sentence1": ["a", "b", "c"], "sentence2": ["d", "e", "f"], "score": [0.1, 0.5, 0.9]})


@pytest.fixture
def training(tiny_bi: Path, tmp_path: Path) -> Training:
    return Training(tiny_bi, tmp_path / "work")


# ---- where lists come from


def test_lists_become_pairs_and_pairs_lists() -> None:
    lists = Dataset.from_dict({"query": ["a", "d", "a"], "texts": [["b", "c"], ["e", "f"], ["g", "h"]]})
    pairs = flatten_lists(lists)
    assert pairs.features["list"].dtype == "int64"
    assert [tuple(row.values()) for row in pairs.to_list()] == [
        ("a", "b", 0), ("a", "c", 0), ("d", "e", 1), ("d", "f", 1), ("a", "g", 2), ("a", "h", 2)
    ]  # fmt: skip
    assert group_rows(pairs) == [[0, 1], [2, 3], [4, 5]]
    assert group_rows(pairs.remove_columns("list")) == [[0, 1, 4, 5], [2, 3]]
    assert flatten_lists(lists.select([])).column_names == ["sentence1", "sentence2", "list"]


def test_pairs_without_a_list_stand_aside_unless_they_are_most() -> None:
    columns = {"sentence1": list("aabc"), "sentence2": list("wxyz")}
    assert group_rows(Dataset.from_dict(columns)) == [[0, 1]]
    columns = {"sentence1": list("aabcd"), "sentence2": list("vwxyz")}
    with pytest.raises(InputError, match=r"2 of 5 do; mine lists \(transenc mine --lists 8, or distill --sentences"):
        group_rows(Dataset.from_dict(columns))


def test_a_list_has_one_query() -> None:
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "list": [7, 7]}
    with pytest.raises(InputError, match="list 7: expected one sentence1, its query, found 'a' and 'b'"):
        group_rows(Dataset.from_dict(columns))


@pytest.mark.parametrize(
    ("lengths", "longest", "kept"),
    [
        ([8, 8, 8], 32, [8, 8, 8]),
        ([8, 8], 4, [4, 4, 4, 4]),  # as many as a batch has pairs
        ([8, 7, 6, 5], 32, [5, 5, 5, 5]),  # 20 of 26; 6 would keep 18, less than three quarters
        ([5, 3], 1, [2, 2, 2]),
    ],
)
def test_lists_of_one_length(lengths: list[int], longest: int, kept: list[int]) -> None:
    ends = np.cumsum(lengths)
    lists = [list(range(end - n, end)) for n, end in zip(lengths, ends, strict=True)]
    pieces = cut_lists(lists, longest=longest, equal=True)
    assert list(map(len, pieces)) == kept
    assert all(any(set(piece) <= set(rows) for rows in lists) for piece in pieces)


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl", ".parquet"])
def test_lists_are_read_as_written_and_sampled_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"lists{suffix}"
    write_pairs(path, LISTS)
    assert read_pairs(path).to_dict() == LISTS.remove_columns("score").to_dict()
    assert read_pairs(path, score=True).column_names == ["sentence1", "sentence2", "score", "list"]
    few = read_pairs(path, max_pairs=22, seed=1)
    assert len(few) == 20
    assert [len(rows) for rows in group_rows(few)] == [4] * 5
    assert few.to_dict() == read_pairs(path, max_pairs=22, seed=1).to_dict()
    assert few["list"][:] == sorted(few["list"])  # in the order of the file
    assert set(few["list"]) != set(read_pairs(path, max_pairs=22, seed=2)["list"])
    assert len(read_pairs(path, max_pairs=2)) == 4  # one list at least


def test_the_number_of_a_list_is_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "lists.tsv"
    path.write_text("sentence1\tsentence2\tlist\na\tb\t1\na\tc\tfirst\n")
    with pytest.raises(InputError, match=r"lists.tsv:3: expected a whole number in 'list', found 'first'"):
        read_pairs(path)
    assert caplog.text == ""
    path.write_text("sentence1\tsentence2\tlist\na\tb\tfirst\na\tc\t\n")
    names = tmp_path / "lists.jsonl"
    names.write_text('{"sentence1": "a", "sentence2": "b", "list": ["x"]}\n{"sentence1": "a", "sentence2": "c"}\n')
    for other in (path, names):
        assert read_pairs(other, max_pairs=2).column_names == ["sentence1", "sentence2"]
        assert f"{other}: the column 'list' holds no whole numbers, so it is ignored" in caplog.text


# ---- what each loss sees and says


class Given(nn.Module):
    """Stands for a bi-encoder: its features are its vectors."""

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["x"]}


def at_angle(cosine: float) -> torch.Tensor:
    return torch.tensor([[cosine, math.sqrt(1 - cosine**2)]])


def test_kldiv_and_marginmse_by_hand() -> None:
    query, near, far = torch.tensor([[3.0, 0.0]]), at_angle(0.6).requires_grad_(), at_angle(0.2).requires_grad_()
    features = [{"x": x} for x in (query, near, far)]
    labels = torch.tensor([[0.5, 0.7]])
    kldiv = targets._BI_LOSSES["kldiv"](Given(), 0.1)(features, labels)
    p, q = (torch.tensor(scores).div(0.1).softmax(0) for scores in ([0.5, 0.7], [0.6, 0.2]))
    assert kldiv.item() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-5)
    margin = targets._BI_LOSSES["marginmse"](Given(), 0.1)(features, labels)
    assert margin.item() == pytest.approx(((0.6 - 0.2) - (0.5 - 0.7)) ** 2, rel=1e-5)
    for loss in (kldiv, margin):  # the second text has the higher label: it moves to the query, the first away
        gradients = torch.autograd.grad(loss, [near, far])
        assert gradients[0][0, 0] > 0 > gradients[1][0, 0]


def test_cosent_has_the_scale_of_its_temperature() -> None:
    features = [{"x": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}, {"x": torch.cat([at_angle(0.6), at_angle(0.2)])}]
    loss = targets._BI_LOSSES["cosent"](Given(), 0.1)(features, torch.tensor([0.1, 0.9]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp((0.6 - 0.2) / 0.1)), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "marginmse", "listnet", "ranknet"])
def test_losses_of_a_cross_encoder_by_hand(loss: str, tiny_cross: Path) -> None:
    model = load_cross_encoder(tiny_cross, device="cpu").eval()
    rows = LISTS.select(range(8))  # two lists of four
    settings = CrossTrainingSettings(loss=loss, temperature=0.2, batch_size=8)
    target = build_cross_target(model, rows, settings=settings, symmetric=False)
    columns = [list(target.rows[name]) for name in target.rows.column_names if name != "score"]
    labels = [torch.tensor(score) for score in target.rows["score"]]
    with torch.inference_mode():
        value = float(target.loss(columns, torch.stack(labels) if loss == "mse" else labels))
    assert target.batch_size == (8 if loss == "mse" else 2)
    s, y = torch.tensor(score_pairs(model, rows, symmetric=False)).view(2, 4), torch.tensor(rows["score"]).view(2, 4)
    if loss == "mse":
        expected = (s - y).square().mean()
    elif loss == "marginmse":
        expected = ((s[:, :1] - s[:, 1:]) - (y[:, :1] - y[:, 1:])).square().mean()
    elif loss == "listnet":
        expected = -((y / 0.2).softmax(1) * (s / 0.2).log_softmax(1)).sum(1).mean()
    else:  # of every two texts whose labels differ, in bits
        apart = (s[:, :, None] - s[:, None, :])[y[:, :, None] > y[:, None, :]] / 0.2
        expected = -nn.functional.logsigmoid(apart).mean() / math.log(2)
    assert value == pytest.approx(float(expected), rel=1e-4)


def test_what_a_loss_is_given(tiny_bi: Path, tiny_cross: Path) -> None:
    bi, cross = load_bi_encoder(tiny_bi, device="cpu"), load_cross_encoder(tiny_cross, device="cpu")
    rows = build_bi_target(bi, LISTS, settings=BiTrainingSettings(loss="kldiv", batch_size=8)).rows
    assert rows.column_names == ["sentence1", *(f"sentence{i}" for i in range(2, 6)), "score"]
    assert rows[3] == {
        "sentence1": LISTS["sentence1"][12],
        **{f"sentence{i + 2}": LISTS["sentence2"][12 + i] for i in range(4)},
        "score": pytest.approx([0.8, 0.6, 0.4, 0.2]),
    }
    ragged = LISTS.select([0, 1, 2, 4, 5, 8])
    target = build_cross_target(cross, ragged, settings=CrossTrainingSettings(loss="listnet", temperature=0.5))
    queries, texts = LISTS["sentence1"][:], LISTS["sentence2"][:]
    # one order, and the row that stands alone is left out
    assert target.rows.to_list() == [
        {"sentence1": queries[0], "sentences": texts[:3], "score": pytest.approx([1.6, 1.2, 0.8])},
        {"sentence1": queries[4], "sentences": texts[4:6], "score": pytest.approx([1.6, 1.2])},
    ]
    assert target.batch_size == 13  # 32 pairs in lists of 2.5
    assert sorted(len(batch) for batch in group_by_length(target.rows, 1, False)) == [1, 1]
    # a loss on pairs looks at no list
    plain = build_bi_target(bi, LISTS, settings=BiTrainingSettings())
    assert plain.rows.column_names == ["sentence1", "sentence2", "score"] and plain.batch_size == 32
    with pytest.raises(InputError, match="0 of 3 do"):
        build_bi_target(bi, PAIRED, settings=BiTrainingSettings(loss="marginmse"))


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(BI, loss="kldiv"),
        dataclasses.replace(BI, loss="marginmse"),
        *(dataclasses.replace(CROSS, loss=loss) for loss in ("mse", "marginmse", "listnet", "ranknet", "lambda")),
    ],
    ids=lambda settings: f"{type(settings).__name__[:2]}-{settings.loss}",
)
def test_training_lowers_what_its_loss_measures(settings: Settings, training: Training) -> None:
    training.settings = dataclasses.replace(settings, epochs=8, batch_size=8, learning_rate=3e-3, group_by_length=True)
    build, load = (build_bi_target, load_bi_encoder) if isinstance(settings, BiTrainingSettings) else (
        build_cross_target, partial(load_cross_encoder, new_head=True))  # fmt: skip

    def measure(model: Any) -> float:
        """The loss of all lists without dropout, less the least there can be."""
        rows, loss, _ = build(model.eval(), SOME, settings=settings)
        columns: list[Any] = [list(rows[name]) for name in rows.column_names if name != "score"]
        if load is load_bi_encoder:
            columns = [model.preprocess(column) for column in columns]
        labels: Any = torch.tensor(list(rows["score"]))
        least = 0.0
        if settings.loss == "listnet":
            least = -float((labels.softmax(1) * labels.log_softmax(1)).sum(1).mean())
        if load is not load_bi_encoder and settings.loss != "mse":
            labels = list(labels)
        with torch.inference_mode():
            return float(loss(columns, labels)) - least

    set_seed(3)
    before = measure(load(training.start, device="cpu"))
    model, log = training.run(SOME, save_steps=1000)
    assert sum("loss" in row for row in log) == 8 * (8 if settings.loss == "mse" else 4)  # 8 pairs, 2 lists in a batch
    assert measure(model) < 0.85 * before


@pytest.mark.parametrize(
    "settings",
    [
        dataclasses.replace(BI, loss="kldiv", geometry=0.1, epochs=2),
        dataclasses.replace(CROSS, loss="listnet", symmetry=0.5, batch_size=8, epochs=1.5, group_by_length=True),
    ],
    ids=["kldiv", "listnet"],
)
def test_interrupted_and_resumed_equals_uninterrupted(
    settings: Settings, training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.settings = settings
    whole, _ = training.elsewhere("whole").run(SOME)
    training.interrupt(monkeypatch, at="checkpoint-4", pairs=SOME)
    assert digest(training.run(SOME)[0]) == digest(whole)
    assert list(training.work.glob(f"ckpt-*/{LOSS_STATE}")) == []  # the peer is an input


# ---- regularisers


def test_geometry_by_hand() -> None:
    vectors = [torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.cat([at_angle(0.6), at_angle(0.8)])]  # queries, texts
    peer = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 1, 0], [9, 9, 9]]))
    rows = [[4, 2], [0, 1]]  # of query and text of each pair
    own = nn.functional.normalize(torch.cat(vectors))
    other = peer[[4, 0, 2, 1]]
    apart = (own @ own.T - other @ other.T).square()
    expected = float(apart.sum() - apart.diagonal().sum()) / 12
    assert float(compare_geometry(torch.cat(vectors), 5 * other)) == pytest.approx(expected, rel=1e-5)
    inner = targets._BI_LOSSES["mse"](Given(), 0.05)
    labels = torch.tensor([[0.5, *rows[0]], [0.1, *rows[1]]])
    loss = GeometryLoss(inner, peer, weight=0.3)([{"x": x} for x in vectors], labels)
    cosines = ((0.6 - 0.5) ** 2 + (0.6 - 0.1) ** 2) / 2  # of (1, 0) with 0.6, of (0, 1) with the sine of 0.8
    assert float(loss) == pytest.approx(cosines + 0.3 * expected, rel=1e-5)
    no_direction = compare_geometry(torch.zeros(2, 3), torch.ones(2, 3))
    assert float(no_direction) == pytest.approx(1)  # cosine 0, not NaN
    with pytest.raises(InputError, match="at most 16777216 different texts, found 16777217"):
        GeometryLoss(inner, torch.zeros(1, 1).expand(2**24 + 1, 1), weight=0.1)


def test_the_geometry_of_another_model_is_kept(tiny_bi_b: Path, training: Training) -> None:
    peer = load_bi_encoder(tiny_bi_b, device="cpu")  # other words, another width
    texts = sorted({*LISTS["sentence1"], *LISTS["sentence2"]})
    theirs = torch.from_numpy(encode_texts(peer, texts))

    def distance(weight: float) -> float:
        model = load_bi_encoder(training.start, device="cpu")
        settings = dataclasses.replace(BI, loss="kldiv", geometry=weight, batch_size=16, epochs=4, learning_rate=2e-3)
        context = TrainingContext(work=training.work / str(weight), seed=1)
        train_bi_encoder(model, LISTS, settings=settings, context=context, peer=peer)
        return float(compare_geometry(torch.from_numpy(encode_texts(model, texts)), theirs))

    assert distance(100.0) < 0.5 * distance(0.0)


def test_without_a_peer_a_student_keeps_to_its_start(training: Training) -> None:
    start = load_bi_encoder(training.start, device="cpu")
    texts = sorted({*LISTS["sentence1"], *LISTS["sentence2"]})
    before = torch.from_numpy(encode_texts(start, texts))
    moved = []
    for weight in (0.0, 1000.0):
        training.settings = dataclasses.replace(BI, loss="mse", geometry=weight, epochs=2)
        model, _ = training.elsewhere(str(weight)).run(LISTS, save_steps=1000)
        moved.append(float(compare_geometry(torch.from_numpy(encode_texts(model, texts)), before)))
    assert moved[1] < 0.7 * moved[0]


def test_symmetry_by_hand(tiny_cross: Path) -> None:
    model = load_cross_encoder(tiny_cross, device="cpu").eval()
    pairs = list(zip(LISTS["sentence1"][:4], LISTS["sentence2"][:4], strict=True))
    there, back = (score_pairs(model, rows, symmetric=False) for rows in (pairs, [(b, a) for a, b in pairs]))
    gap = float(np.mean((there - back) ** 2))
    assert gap > 1e-4
    first, second = map(list, zip(*pairs, strict=True))
    labels = torch.tensor(LISTS["score"][:4])
    for name, inputs, given in (
        ("bce", [first, second], labels),
        ("listnet", [[first[0]], [second]], [labels]),
        ("marginmse", [first[:1], *([text] for text in second)], [labels]),
    ):
        inner = targets._CROSS_LOSSES[name](model, 0.1)
        with torch.inference_mode():
            loss, alone = SymmetryLoss(inner, weight=2.0)(inputs, given), inner(inputs, given)
        assert float(loss) == pytest.approx(float(alone) + 2 * gap, rel=1e-4)


def test_symmetry_brings_both_orders_together(training: Training) -> None:
    gaps = []
    for weight in (0.0, 30.0):
        training.settings = dataclasses.replace(CROSS, symmetry=weight, epochs=3, learning_rate=1e-3)
        model, _ = training.elsewhere(str(weight)).run(LISTS, save_steps=1000)
        there = score_pairs(model, LISTS, symmetric=False)
        back = score_pairs(model, list(zip(LISTS["sentence2"], LISTS["sentence1"], strict=True)), symmetric=False)
        gaps.append(float(np.abs(there - back).mean()))
    assert gaps[1] < 0.6 * gaps[0]
    with pytest.raises(InputError, match="the order of asymmetric pairs matters"):
        training.run(LISTS, symmetric=False)


# ---- in a run

CONFIG = DistillConfig(
    seed=3,
    simplified=0.0,
    precision="float32",
    bi=BiTrainingSettings(loss="kldiv", batch_size=8, learning_rate=5e-4, max_length=24),
    cross=CrossTrainingSettings(loss="ranknet", batch_size=8, learning_rate=5e-4, max_length=40, group_by_length=True),
)


def test_a_run_without_lists_is_refused_before_it_begins(tiny_bi: Path) -> None:
    backbones = [Backbone(str(tiny_bi))]
    with pytest.raises(InputError, match="0 of 3 do"):
        check_inputs(backbones, PAIRED, config=CONFIG)
    with pytest.raises(InputError, match="loss ranknet needs lists; give --mine-list-size 8"):
        check_inputs(backbones, None, ["a cat", "a dog", "a cow"], config=CONFIG)
    mined = dataclasses.replace(CONFIG, mine=MiningSettings(list_size=2))
    check_inputs(backbones, None, ["a cat", "a dog", "a cow"], config=mined)
    check_inputs(backbones, LISTS, config=CONFIG)
    uneven = dataclasses.replace(CONFIG, cross=dataclasses.replace(CONFIG.cross, loss="bce", symmetry=0.1))
    with pytest.raises(InputError, match="cross symmetry: the order of asymmetric pairs matters"):
        check_inputs(backbones, LISTS, config=uneven, symmetric=False)


def test_the_plan_knows_that_lists_have_one_order(tiny_bi: Path) -> None:
    pointwise = dataclasses.replace(CONFIG, cross=dataclasses.replace(CONFIG.cross, loss="bce"))
    for config, steps in ((CONFIG, 8), (pointwise, 16)):
        plan = describe_plan([Backbone(str(tiny_bi))], LISTS, config=config, device="cpu")
        assert next(row["steps"] for row in plan if row["stage"] == "c01-20-cross-train") == steps


def test_two_backbones_learn_from_lists_and_look_at_each_other(
    tiny_bi: Path, tiny_bi_b: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths: list[Any] = []

    def look(model: Any, texts: Any, **options: Any) -> np.ndarray:
        widths.append(model.get_embedding_dimension())
        return encode_texts(model, texts, **options)

    monkeypatch.setattr(targets, "encode_texts", look)
    config = dataclasses.replace(CONFIG, bi=dataclasses.replace(CONFIG.bi, geometry=0.05))
    backbones = [Backbone(str(tiny_bi)), Backbone(str(tiny_bi_b))]
    result = distill(backbones, SOME, output_dir=tmp_path / "run", config=config, device="cpu")
    assert widths == [48, 32]
    labels = read_labels(result.run / "stages/c01-30-cross-label")
    assert labels["list"][:] == SOME["list"][:]
    paths = [result.run / f"stages/c01-{stage}-train/log-0.json" for stage in ("20-cross", "40-bi")]
    logs = [json.loads(path.read_text()) for path in paths]
    assert [sum("loss" in row for row in log) for log in logs] == [4, 4]  # 32 pairs, 8 in a batch
    with pytest.raises(StateError, match=r"pairs\.sha256"):  # other lists are other data
        distill(backbones, SOME.remove_columns("list"), output_dir=result.run, config=config, device="cpu")


def test_from_sentences_to_lists_to_students(tiny_bi: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "sentences.txt", tmp_path / "run"
    source.write_text("\n".join(dict.fromkeys([*LISTS["sentence1"], *LISTS["sentence2"]])) + "\n")
    flags = ["--model", str(tiny_bi), "--device", "cpu", "--json"]
    mine = ["--sentences", str(source), "--mine-list-size", "4", "--mine-max-pairs", "40", "--mine-near-duplicate", "1"]
    losses = ["--bi-loss", "marginmse", "--cross-loss", "lambda", "--cross-symmetry", "0.1", "--bi-temperature", "0.1"]
    assert main(["distill", *flags, *mine, *losses, "--output", str(output)]) == 0, capsys.readouterr().err
    mined = read_rows(output / "stages" / MINE / "pairs.parquet")
    assert mined.column_names == ["sentence1", "sentence2", "list"]
    assert [len(rows) for rows in group_rows(mined)] == [4] * 10
    labels = read_labels(output / "stages/c01-30-cross-label")
    assert labels.select_columns(mined.column_names).to_dict() == mined.to_dict()
    reported = {entry["column"] for entry in describe_labels(read_label_stages(output))["labels"]}
    assert reported == {"bi-0", "plain-0", "cross-0", "score"}
    config = json.loads((output / "run.json").read_text())["config"]
    assert (config["cross"]["symmetry"], config["bi"]["temperature"], config["mine"]["list_size"]) == (0.1, 0.1, 4)
    capsys.readouterr()
    pairs = tmp_path / "pairs.tsv"
    write_pairs(pairs, PAIRED)
    assert main(["distill", *flags, "--pairs", str(pairs), *losses, "--output", str(tmp_path / "no")]) == 2
    assert "0 of 3 do; mine lists" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
