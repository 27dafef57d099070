"""The decomposable contrastive loss: InfoNCE's gradient, additive over blocks, unbiased, and a state that resumes."""

from __future__ import annotations

import doctest
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor, nn
from torch.nn import functional

from transenc import losses
from transenc.errors import InputError, StateError
from transenc.losses import DecomposedContrastiveLoss, average_log_z, decomposed_loss, estimate_log_z

SCRIPTS = Path(__file__).parents[1] / "scripts"


class Linear(nn.Module):
    """Vectors in, embeddings out."""

    def __init__(self, dim: int = 6, width: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(dim, width, generator=generator))

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"] @ self.weight}


def make_views(rows: int, dim: int = 6, *, seed: int = 1) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(rows, dim, generator=generator)
    return [{"x": first}, {"x": first + 0.5 * torch.randn(rows, dim, generator=generator)}]


def make_scores(rows: int, *, temperature: float = 0.2) -> tuple[Tensor, Tensor]:
    """Weights that want a gradient, and the float64 scores [rows, rows] that hang on them."""
    weight = Linear().weight.detach().double().requires_grad_()
    first, second = (functional.normalize(view["x"].double() @ weight, dim=1) for view in make_views(rows))
    return weight, first @ second.T / temperature


def split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Positives [rows] and negatives [rows, rows - 1]."""
    rows = len(scores)
    return scores.diagonal(), scores[~torch.eye(rows, dtype=torch.bool)].view(rows, rows - 1)


def gradient(loss: Tensor, weight: Tensor) -> Tensor:
    return torch.autograd.grad(loss, weight, retain_graph=True)[0]


# ---- the mathematics


def test_u_from_the_same_batch_gives_the_gradient_and_value_of_infonce() -> None:
    weight, scores = make_scores(16)
    positives, negatives = split(scores)
    ours = decomposed_loss(positives, negatives, -estimate_log_z(positives, negatives)).mean()
    infonce = functional.cross_entropy(scores, torch.arange(16))
    assert float(ours.detach()) == pytest.approx(float(infonce.detach()), abs=1e-12)
    expected = gradient(infonce, weight)
    assert float(expected.norm()) > 0.1
    torch.testing.assert_close(gradient(ours, weight), expected, rtol=0, atol=1e-6)


def test_the_module_without_memory_and_factor_is_multiple_negatives_ranking() -> None:
    model = Linear()
    views = make_views(12)
    loss = DecomposedContrastiveLoss(model, rows=12, temperature=0.1, memory=0.0, population=11)
    reference = MultipleNegativesRankingLoss(model, scale=10.0)
    ours, theirs = (each(views, torch.arange(12)) for each in (loss, reference))
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), abs=1e-5)
    torch.testing.assert_close(gradient(ours, model.weight), gradient(theirs, model.weight), rtol=0, atol=1e-5)


def test_for_fixed_u_the_gradient_is_the_sum_over_blocks_of_columns() -> None:
    weight, scores = make_scores(24)
    positives, negatives = split(scores)
    log_u = torch.randn(24, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 3
    total = gradient(decomposed_loss(positives, negatives, log_u).sum(), weight)
    blocks = torch.zeros_like(weight)
    for columns in negatives.split([3, 8, 12], 1):  # each block stands for all 23, and counts with its share of them
        share = columns.shape[1] / 23
        blocks += share * gradient(decomposed_loss(positives, columns, log_u, population=23).sum(), weight)
    torch.testing.assert_close(blocks, total, rtol=0, atol=1e-6)
    # and without shares: the negatives' part, block by block
    part = torch.zeros_like(weight)
    for columns in negatives.split([1, 22], 1):
        part += gradient((log_u[:, None] + columns).exp().sum(), weight)
    part += gradient(((log_u + positives).exp() - positives).sum(), weight)
    torch.testing.assert_close(part, total, rtol=0, atol=1e-6)


def test_over_all_batches_of_a_population_fixed_u_is_unbiased_and_infonce_is_not() -> None:
    rows, batch = 9, 3
    weight, scores = make_scores(rows)
    log_u = -estimate_log_z(*split(scores)).detach()
    full = gradient(functional.cross_entropy(scores, torch.arange(rows)), weight)
    ours, usual = torch.zeros_like(full), torch.zeros_like(full)
    batches = list(itertools.combinations(range(rows), batch))
    assert len(batches) == 84
    for chosen in map(list, batches):
        square = scores[chosen][:, chosen]
        ours += gradient(decomposed_loss(*split(square), log_u[chosen], population=rows - 1).mean(), weight)
        usual += gradient(functional.cross_entropy(square, torch.arange(batch)), weight)
    torch.testing.assert_close(ours / len(batches), full, rtol=0, atol=1e-6)
    assert float((usual / len(batches) - full).norm()) > 0.2 * float(full.norm())


def test_a_sampled_u_has_the_gamma_s_mean_and_an_unbiased_gradient() -> None:
    """z-tests by Monte Carlo, over batches and u together, against the full population."""
    rows, batch, draws = 40, 8, 4000
    weight, scores = make_scores(rows)
    full = gradient(functional.cross_entropy(scores, torch.arange(rows)), weight)
    log_z = estimate_log_z(*split(scores)).detach()
    generator = torch.Generator().manual_seed(3)
    chosen = torch.rand(draws, rows, generator=generator).argsort(1)[:, :batch]
    log_u = torch.empty(draws, batch, dtype=torch.float64).exponential_(generator=generator).log() - log_z[chosen]
    mean_u = (log_u + log_z[chosen]).exp().mean()
    assert abs(float(mean_u) - 1) < 4 / math.sqrt(draws * batch)
    squares = scores[chosen[:, :, None], chosen[:, None, :]]
    negatives = squares.masked_fill(torch.eye(batch, dtype=torch.bool), -torch.inf).flatten(0, 1)
    positives = squares.diagonal(dim1=1, dim2=2).flatten()
    each = decomposed_loss(positives, negatives, log_u.flatten(), population=rows - 1).view(draws, batch).mean(1)
    # the gradient's components along fixed directions: the mean's z-value is that of a standard normal
    found = torch.stack([gradient(part.mean(), weight) for part in each.split(40)])
    z = (found.mean(0) - full) / (found.std(0) / math.sqrt(len(found)))
    assert float(z.abs().max()) < 4 and 0.4 < float(z.square().mean()) < 2.0


@pytest.mark.parametrize("memory", [0.5, 0.9])
def test_the_moving_average_settles_within_its_predicted_variance(memory: float) -> None:
    rows, batch, visits = 60, 9, 1500
    _, scores = make_scores(rows)
    positives, negatives = split(scores.detach())
    log_z = estimate_log_z(positives, negatives)
    generator = torch.Generator().manual_seed(4)
    log_s, kept, single = torch.full((rows,), -torch.inf, dtype=torch.float64), [], []
    for visit in range(visits):
        columns = torch.rand(rows, rows - 1, generator=generator).argsort(1)[:, : batch - 1]
        new = estimate_log_z(positives, negatives.gather(1, columns), population=rows - 1)
        log_s = average_log_z(log_s, new, memory=memory)
        single.append((new - log_z).exp())
        if visit >= 100:
            kept.append((log_s - log_z).exp())
    average, estimate = torch.stack(kept), torch.stack(single)
    share = 1 - memory
    predicted = share / (2 - share)
    assert float(average.mean()) == pytest.approx(1.0, abs=0.01)  # unbiased for Z
    assert float(average.var(0).mean() / estimate.var(0).mean()) == pytest.approx(predicted, rel=0.1)


def test_the_average_starts_at_the_first_estimate_and_stays_in_the_log_domain() -> None:
    first = average_log_z(torch.tensor([-torch.inf]), torch.tensor([300.0]), memory=0.9)
    assert float(first) == 300.0
    second = average_log_z(first, torch.tensor([-300.0]), memory=0.9)
    assert float(second) == pytest.approx(300 + math.log(0.9))
    assert float(average_log_z(second, torch.tensor([5.0]), memory=0.0)) == 5.0


# ---- the module


def test_a_visit_moves_the_rows_of_the_batch_alone() -> None:
    model = Linear()
    loss = DecomposedContrastiveLoss(model, rows=10, temperature=0.5, memory=0.75)
    rows = torch.tensor([7, 2, 5])
    views = make_views(3)
    loss(views, rows)
    first = loss.log_s.clone()
    positives, negatives = split(
        functional.normalize(views[0]["x"] @ model.weight, dim=1)
        @ functional.normalize(views[1]["x"] @ model.weight, dim=1).T
        / 0.5
    )
    expected = (positives.exp() + 9 / 2 * negatives.exp().sum(1)).log()  # 9 other rows, 2 negatives
    torch.testing.assert_close(first[rows], expected)
    assert first.isneginf().sum() == 7
    loss(make_views(3, seed=9), rows)
    assert not torch.equal(loss.log_s[rows], first[rows])
    drifted = loss.log_s[rows]
    loss(views, rows)
    torch.testing.assert_close(loss.log_s[rows].exp(), 0.75 * drifted.exp() + 0.25 * first[rows].exp())
    assert not loss.log_s.requires_grad


def test_no_gradient_flows_through_u() -> None:
    weight, scores = make_scores(8)
    positives, negatives = split(scores)
    log_u = -estimate_log_z(positives, negatives)
    assert log_u.requires_grad
    free = gradient(decomposed_loss(positives, negatives, log_u).sum(), weight)
    assert torch.equal(free, gradient(decomposed_loss(positives, negatives, log_u.detach()).sum(), weight))


def test_evaluation_leaves_the_state_as_it_is() -> None:
    loss = DecomposedContrastiveLoss(Linear(), rows=6)
    views, rows = make_views(6), torch.arange(6)
    loss(views, rows)
    before = loss.state()
    loss.model.eval()  # what a trainer does
    loss(views, rows)
    loss.train().eval()
    value = loss(views, rows)
    assert torch.equal(loss.state()["log_s"], before["log_s"]) and bool(value.isfinite())
    loss.train()
    loss(make_views(6, seed=8), rows)
    assert not torch.equal(loss.state()["log_s"], before["log_s"])


def test_the_queue_estimates_from_past_batches_and_leaves_a_sentence_s_own_view_out() -> None:
    model = Linear()
    loss = DecomposedContrastiveLoss(model, rows=9, temperature=0.5, queue=5, clip=math.inf)
    views = make_views(9)

    def part(*rows: int) -> list[dict[str, Tensor]]:
        return [{"x": view["x"][list(rows)]} for view in views]

    loss(part(0, 1, 2), torch.tensor([0, 1, 2]))
    loss(part(3, 4, 5), torch.tensor([3, 4, 5]))
    assert loss.state()["queued_rows"].tolist() == [3, 4, 5, 0, 1]
    found = loss(part(0, 8), torch.tensor([0, 8]))
    scores = (
        functional.normalize(views[0]["x"] @ model.weight, dim=1)
        @ functional.normalize(views[1]["x"] @ model.weight, dim=1).T
        / 0.5
    ).detach()
    # row 0: its batch's 8 and the queue's 3, 4, 5, 1; row 8: its batch's 0 and 3, 4, 5, 0 (as it was), 1
    expected = []
    for row, other, known in ((0, 8, [8, 3, 4, 5, 1]), (8, 0, [0, 3, 4, 5, 0, 1])):
        z = scores[row, row].exp() + 8 / len(known) * scores[row, known].exp().sum()
        batch = scores[row, row].exp() + 8 * scores[row, other].exp()
        expected.append(batch / z - scores[row, row] + z.log() - 1)
    assert float(found.detach()) == pytest.approx(float(sum(expected)) / 2, rel=1e-5)
    assert loss.state()["queued_rows"].tolist() == [0, 8, 3, 4, 5]


@pytest.mark.parametrize("clip", [1.0, 2.0, math.inf])
def test_the_clip_bounds_the_weights_of_an_anchor_but_not_what_is_kept(clip: float) -> None:
    model = Linear()
    loss = DecomposedContrastiveLoss(model, rows=4, temperature=0.5, memory=0.9, clip=clip, population=3)
    views = make_views(4)
    loss.log_s.fill_(40.0)  # a table from an encoder whose Z was far larger
    found = float(loss(views, torch.arange(4)).detach())
    assert float(loss.log_s.min()) == pytest.approx(40 + math.log(0.9), abs=1e-4)
    plain = DecomposedContrastiveLoss(model, rows=4, temperature=0.5, memory=0.0, population=3)
    infonce = float(plain(views, torch.arange(4)).detach())
    # u = 1 / (clip Z): the bound u Z - log u - 1 is above log Z by 1 / clip + log clip - 1
    excess = 1 / clip + math.log(clip) - 1 if clip < math.inf else 39 + math.log(0.9) - float(plain.log_s.mean())
    assert found - infonce == pytest.approx(excess, abs=1e-3)


@pytest.mark.parametrize("queue", [0, 16])
@pytest.mark.parametrize("sample", [False, True])
def test_nothing_overflows_at_temperature_0_01_in_autocast(queue: int, sample: bool) -> None:
    torch.manual_seed(0)
    model = Linear()
    loss = DecomposedContrastiveLoss(
        model, rows=8, temperature=0.01, queue=queue, sample=sample, clip=math.inf, population=10**7
    )
    views = make_views(8)
    opposite = [views[0], {"x": -views[0]["x"]}]  # positives at -100
    for given in (views, opposite, [views[0], views[0]], opposite):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(given, torch.arange(8))
        assert found.dtype == torch.float32 and bool(found.isfinite())
        assert bool(gradient(found, model.weight).isfinite().all())
    assert all(bool(value.isfinite().all()) for value in loss.state().values())


def test_a_zero_vector_and_a_batch_of_one_give_numbers() -> None:
    model = Linear()
    loss = DecomposedContrastiveLoss(model, rows=3)
    views = make_views(3)
    views[0]["x"][1] = 0.0
    assert bool(gradient(loss(views, torch.arange(3)), model.weight).isfinite().all())
    before = loss.state()["log_s"]
    alone = loss(make_views(1), torch.tensor([0]))
    assert float(alone.detach()) == 0.0 and not gradient(alone, model.weight).any()
    assert torch.equal(loss.state()["log_s"], before)


@pytest.mark.parametrize("queue", [0, 5])
def test_the_state_round_trips_through_a_file_without_the_model_s_weights(queue: int, tmp_path: Path) -> None:
    def make() -> DecomposedContrastiveLoss:
        return DecomposedContrastiveLoss(Linear(), rows=8, queue=queue, memory=0.5)

    steps = [(make_views(3, seed=seed), torch.tensor(rows)) for seed, rows in enumerate([[0, 1, 2], [3, 4, 5]])]
    loss, empty = make(), make()
    save_file(empty.state(), tmp_path / "empty.safetensors")  # before the first step
    empty.load_state(load_file(tmp_path / "empty.safetensors"))
    for step in steps:
        loss(*step)
        empty(*step)
    save_file(loss.state(), tmp_path / "loss.safetensors")
    resumed = make()
    resumed.load_state(load_file(tmp_path / "loss.safetensors"))
    assert sorted(loss.state()) == (["queued", "queued_rows"] if queue else ["log_s"])
    again = (make_views(3, seed=7), torch.tensor([0, 4, 6]))
    values = [each(*again) for each in (loss, resumed, empty)]
    assert values[0] == values[1] == values[2]
    for name, value in loss.state().items():
        assert torch.equal(value, resumed.state()[name])


def test_it_trains_in_the_trainer_with_row_numbers_as_labels(
    tiny_bi: Path, tiny_pairs: list[tuple[str, str]], tmp_path: Path
) -> None:
    model = SentenceTransformer(str(tiny_bi), device="cpu")
    model.model_card_data.generate_widget_examples = False
    sentences = [pair[0] for pair in tiny_pairs[:13]]
    dataset = Dataset.from_dict({"sentence1": sentences, "sentence2": sentences, "label": list(range(13))})
    loss = DecomposedContrastiveLoss(model, rows=13)
    seen: list[int] = []
    loss.register_forward_pre_hook(lambda _, arguments: seen.extend(arguments[1].tolist()))
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=2, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True, bf16=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=dataset, loss=loss)
    trainer.train()
    assert sorted(seen) == sorted([*range(13), *range(13)])
    # the last batch of an epoch is one sentence: its row may miss a visit, the others have theirs
    assert int(loss.log_s.isneginf().sum()) <= 1
    logged = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 8 and all(math.isfinite(value) for value in logged)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": 1}, "rows: expected 2 or more"),
        ({"temperature": 0.0}, "temperature: expected a positive number, found 0.0"),
        ({"temperature": math.nan}, "temperature"),
        ({"memory": 1.0}, "memory: expected at least 0 and below 1, found 1.0"),
        ({"queue": -1}, "queue"),
        ({"population": 0}, "population"),
        ({"clip": 0.5}, "clip: expected 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecomposedContrastiveLoss(Linear(), **{"rows": 4, **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 4]), r"expected rows in \[0, 4\), found 0 to 4"),
        (torch.tensor([-1, 1, 2]), "found -1 to 2"),
        (torch.tensor([0, 1, 1]), "found one twice"),
        (torch.tensor([0, 1]), r"the row of each of the 3 sentences, int64 \[3\], found torch.int64 \(2,\)"),
        (torch.tensor([0.0, 1.0, 2.0]), "found torch.float32"),
        (None, "found None"),
    ],
)
def test_labels_that_are_no_rows_are_refused(labels: Tensor, message: str) -> None:
    loss = DecomposedContrastiveLoss(Linear(), rows=4)
    with pytest.raises(InputError, match=message):
        loss(make_views(3), labels)
    assert bool(loss.log_s.isneginf().all())


def test_inputs_and_states_of_another_kind_are_refused() -> None:
    loss = DecomposedContrastiveLoss(Linear(), rows=4)
    with pytest.raises(InputError, match="expected two views of each sentence, found 1 columns"):
        loss(make_views(3)[:1], torch.arange(3))
    for state, message in (
        ({"queued": torch.zeros(1, 4)}, r"expected \['log_s'\], found \['queued'\]"),
        ({"log_s": torch.zeros(5)}, r"expected 4 rows, found \(5,\)"),
        ({"log_s": torch.tensor([0.0, math.nan, 0.0, 0.0])}, "log_s holds NaN"),
    ):
        with pytest.raises(StateError, match=message):
            loss.load_state(state)
    assert bool(loss.log_s.isneginf().all())


def test_the_docstrings_examples_run() -> None:
    result = doctest.testmod(losses)
    assert result.failed == 0 and result.attempted >= 8


# ---- the study


def test_the_study_measures_every_arm_and_draws_the_same_picture_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="the figure needs matplotlib (extra: report)")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import contrastive_study

    small = contrastive_study.Study(
        pairs=24, dim=8, signal=3, width=3, noise=0.5, temperature=0.2, batches=(4, 8), epochs=(1, 3), rates=(0.03,),
        initialisations=2, tuning=1, full_steps=150, chains=64, settle=20, record=15,
    )  # fmt: skip
    monkeypatch.setattr(contrastive_study, "Study", lambda: small)
    found, first, second = tmp_path / "found.json", tmp_path / "first.svg", tmp_path / "second.svg"
    monkeypatch.setattr("sys.argv", ["study", "--json", str(found), "--svg", str(first)])
    assert contrastive_study.main() == 0
    result = contrastive_study.read_json(found)
    titles = [arm.title for arm in contrastive_study.ARMS]
    assert [row["arm"] for row in result["training"]] == titles * 4
    assert all(len(row["excess"]) == 2 and min(row["excess"]) > -1e-4 for row in result["training"])
    assert max(result["loss"]["optimum"]) < min(result["loss"]["start"])
    gradients = {(row["arm"], row["batch"]): row for row in result["gradients"]}
    usual, ours = gradients["in-batch", 4], gradients["decomposed", 4]
    assert usual["bias"] > 5 * usual["bias_error"]  # a bias, not chance
    assert ours["bias"] < usual["bias"] and ours["sd"] > usual["sd"]
    table = capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["study", "--json", str(found), "--svg", str(second), "--write-only"])
    assert contrastive_study.main() == 0
    assert capsys.readouterr().out == table and "| decomposed, u sampled |" in table
    assert first.read_bytes() == second.read_bytes() and b"<svg" in first.read_bytes()
