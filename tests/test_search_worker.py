"""The model worker: what is answered together, in what order, and what one question cannot do to the others."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from search_scenario import CountColours
from server_scenario import Encoder, Hold, ask, build_colours, make_documents, make_engine, wait_until

from transenc.corpus import Document
from transenc.errors import InputError, StateError
from transenc.search.engine import SemanticSearch
from transenc.search.faiss_store import FaissStore
from transenc.search.reranking import Hit
from transenc.search.serving.answers import (
    Answer,
    Question,
    Search,
    SearchAnswer,
    Similarity,
    SimilarityAnswer,
    answer_questions,
)
from transenc.search.serving.description import describe_store
from transenc.search.serving.hot_swap import IndexWatch
from transenc.search.serving.limits import Limits
from transenc.search.serving.worker import ModelWorker, QueueFull, WorkerStopped
from transenc.search.store import parse_condition


def make_worker(engine: SemanticSearch, **limits: float) -> ModelWorker:
    description = describe_store(engine.store, dim=engine.encoder.dim)
    return ModelWorker(engine, description, limits=Limits(**limits))  # type: ignore[arg-type]


def answer_all(engine: SemanticSearch, *questions: Question) -> list[Answer | InputError]:
    found = list(answer_questions(engine, questions))
    assert sorted(position for position, _ in found) == list(range(len(questions)))
    return [answer for _, answer in sorted(found, key=lambda one: one[0])]


@contextmanager
def running(engine: SemanticSearch, **limits: float) -> Iterator[ModelWorker]:
    worker = make_worker(engine, **limits)
    worker.start()
    try:
        yield worker
    finally:
        worker.stop(timeout_s=10)


def first_id(future: Future[Answer]) -> str:
    answer = future.result(10)
    assert isinstance(answer, SearchAnswer)
    return answer.hits[0].id


# ---- batches


@contextmanager
def busy(path: Path, **limits: float) -> Iterator[tuple[ModelWorker, Encoder, Future[Answer], Callable[[], None]]]:
    """A worker at work on one question, and what lets it go on."""
    hold = Hold()
    engine = make_engine(path, on_call=hold)
    with running(engine, **limits) as worker:
        first = worker.submit(Search(ask(0)))
        assert hold.entered.wait(10)
        try:
            yield worker, engine.encoder, first, hold.release.set  # type: ignore[misc]
        finally:
            hold.release.set()


@pytest.mark.parametrize(("max_batch", "sizes"), [(32, [1, 5]), (2, [1, 2, 2, 1]), (1, [1] * 6)])
def test_what_arrives_while_it_works_is_answered_together(tmp_path: Path, max_batch: int, sizes: list[int]) -> None:
    with busy(tmp_path / "idx", max_batch=max_batch) as (worker, encoder, first, release):
        others = [worker.submit(Search(ask(i))) for i in range(1, 6)]
        assert worker.waiting == 5
        release()
        assert [first_id(future) for future in (first, *others)] == [f"d{i}" for i in range(6)]
    assert [len(call) for call in encoder.calls] == sizes
    assert [query for call in encoder.calls for query in call] == [ask(i) for i in range(6)]


def test_the_size_of_a_batch_is_told(tmp_path: Path) -> None:
    with busy(tmp_path / "idx") as (worker, _, first, release):
        others = [worker.submit(Search(ask(i))) for i in range(1, 4)]
        release()
        assert [future.result(10).batch for future in (first, *others)] == [1, 3, 3, 3]


def test_a_full_queue_refuses_and_a_cancelled_question_makes_room(tmp_path: Path) -> None:
    with busy(tmp_path / "idx", queue_size=2) as (worker, encoder, _, release):
        waiting = [worker.submit(Search(ask(i))) for i in (1, 2)]
        with pytest.raises(QueueFull, match="queue_size"):
            worker.submit(Search(ask(3)))
        assert waiting[0].cancel()
        late = worker.submit(Search(ask(4)))
        release()
        assert (first_id(waiting[1]), first_id(late)) == ("d2", "d4")
    assert encoder.calls[1:] == [[ask(2), ask(4)]]  # the cancelled one was never looked at


def test_a_question_that_nobody_waits_for_is_not_computed(tmp_path: Path) -> None:
    with busy(tmp_path / "idx", timeout_s=0.5) as (worker, encoder, _, release):
        late = worker.submit(Search(ask(1)))
        time.sleep(0.5)
        release()
        with pytest.raises(TimeoutError, match="nobody waits"):
            late.result(10)
    assert encoder.calls == [[ask(0)]]


# ---- faults


def refuse_boom(queries: list[str]) -> None:
    if any("boom" in query for query in queries):
        raise StateError("the bi-encoder gave NaN")


def test_what_fails_for_one_question_fails_for_no_other(tmp_path: Path) -> None:
    hold = Hold()

    def on_call(queries: list[str]) -> None:
        hold(queries)
        refuse_boom(queries)

    with running(make_engine(tmp_path / "idx", on_call=on_call)) as worker:
        worker.submit(Search(ask(0)))
        assert hold.entered.wait(10)
        good, bad, other = (worker.submit(Search(query)) for query in (ask(1), "boom", ask(2)))
        hold.release.set()
        assert (first_id(good), first_id(other)) == ("d1", "d2")
        with pytest.raises(StateError, match="NaN"):
            bad.result(10)
        assert worker.problem is None


def test_an_unknown_key_is_told_to_who_asked_for_it(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "idx")
    questions = [Search(ask(1)), Search(ask(1), where=(parse_condition("colour=red"),)), Search(ask(2))]
    good, bad, other = answer_all(engine, *questions)
    assert isinstance(bad, InputError)
    assert str(bad) == "where: no document has a number or text as 'colour'; in their metadata are: 'even', 'number'"
    assert isinstance(good, SearchAnswer) and isinstance(other, SearchAnswer)
    assert (good.hits[0].id, other.hits[0].id) == ("d1", "d2")
    engine.close()


def test_a_dead_worker_answers_nobody_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hold = Hold()

    def on_call(queries: list[str]) -> None:
        hold(queries)
        raise SystemExit(3)  # nothing that is caught for a question

    engine = make_engine(tmp_path / "idx", on_call=on_call)
    with running(engine) as worker:
        first = worker.submit(Search(ask(0)))
        assert hold.entered.wait(10)
        second = worker.submit(Search(ask(1)))
        hold.release.set()
        for future in (first, second):
            with pytest.raises(WorkerStopped, match="died"):
                future.result(10)
        with pytest.raises(WorkerStopped, match="died"):
            worker.submit(Search(ask(2)))
        assert (worker.problem, worker.died) == ("the model worker has died", True)
    assert "the model worker has died of SystemExit: 3" in caplog.text
    engine.close()


def test_stopping_answers_what_waits_and_refuses_the_rest(tmp_path: Path) -> None:
    with busy(tmp_path / "idx") as (worker, _, first, release):
        waiting = [worker.submit(Search(ask(i))) for i in (1, 2)]
        release()
        assert worker.stop(timeout_s=10)
        assert [first_id(future) for future in (first, *waiting)] == ["d0", "d1", "d2"]
        with pytest.raises(WorkerStopped, match="shutting down"):
            worker.submit(Search(ask(3)))
        assert not worker.died


def test_a_worker_that_was_not_started_and_one_that_hangs(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "idx")
    worker = make_worker(engine)
    assert worker.problem == "it was not started"
    with pytest.raises(WorkerStopped):
        worker.submit(Search("red"))
    engine.close()
    with busy(tmp_path / "other", timeout_s=0.3) as (worker, _, first, release):
        wait_until(lambda: worker.problem is not None)
        assert "at work on one batch" in str(worker.problem)
        release()
        first.result(10)
        wait_until(lambda: worker.problem is None)


# ---- the same answers as the engine's


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, tiny_bi: Path, tiny_cross: Path) -> Iterator[SemanticSearch]:
    folder = tmp_path_factory.mktemp("worker")
    rows = [
        {"_id": f"r{i}", "text": f"the {one} {other} today", "topic": "even" if i % 2 else "odd"}
        for i, (one, other) in enumerate(
            product(("cat", "dog", "bird", "fox", "cow"), ("sleeps", "sings", "runs", "sees"))
        )
    ]
    corpus = folder / "docs.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    SemanticSearch.build(folder / "idx", corpus=corpus, bi_encoder=tiny_bi, lexical=True, precision="float32").close()
    with SemanticSearch.open(folder / "idx", cross_encoder=tiny_cross, precision="float32") as engine:
        yield engine


WHERE = (parse_condition("topic=even"),)
MIXTURE = [
    Search("the cat naps", top_k=3),
    Search("a dog", top_k=5, rerank=False),
    Search("the bird sings today", top_k=3, candidates=7),
    Search("a fox runs", top_k=4, where=WHERE),
    Search("the dog sees", top_k=20, rerank_weight=1.0),
    Search("cow", top_k=2, hybrid=True, rerank=False),
    Search("naps", top_k=3, candidates=5, hybrid=True, where=WHERE),
]


def test_a_mixed_batch_has_the_engines_answers(real: SemanticSearch) -> None:
    answers = answer_all(real, *MIXTURE)
    alone = SemanticSearch(real.store, real.encoder)
    for search, answer in zip(MIXTURE, answers, strict=True):
        engine = real if search.rerank else alone
        expected = engine.search(
            search.query,
            top_k=search.top_k,
            candidates=search.candidates,
            where=search.where,
            hybrid=search.hybrid,
            rerank_weight=search.rerank_weight,
        )
        assert isinstance(answer, SearchAnswer)
        assert [hit.id for hit in answer.hits] == [hit.id for hit in expected]
        for hit, other in zip(answer.hits, expected, strict=True):
            assert hit.score == pytest.approx(other.score, abs=1e-4)  # standardised scores
            assert hit.retrieval_score == pytest.approx(other.retrieval_score, abs=1e-5)
            assert hit.rerank_score == pytest.approx(other.rerank_score, abs=1e-5)
            assert (hit.rank, hit.retrieved_rank, hit.text) == (other.rank, other.retrieved_rank, other.text)
        assert answer.reranked == search.rerank


def test_one_question_alone_has_the_engines_answer_bit_for_bit(real: SemanticSearch) -> None:
    [answer] = answer_all(real, MIXTURE[2])
    assert isinstance(answer, SearchAnswer)
    assert answer.hits == real.search("the bird sings today", top_k=3, candidates=7)


def test_both_orders_of_a_search(real: SemanticSearch) -> None:
    [answer] = answer_all(real, Search("the cat naps", top_k=4, rerank_weight=1.0))
    assert isinstance(answer, SearchAnswer)
    retrieved = SemanticSearch(real.store, real.encoder).search("the cat naps", top_k=4)
    assert answer.retrieved == [hit.id for hit in retrieved]
    shown = {hit.id for hit in answer.hits}
    assert [hit.id for hit in answer.others] == [
        hit.id for hit in real.search("the cat naps", top_k=20, rerank_weight=1.0)
        if hit.id in answer.retrieved and hit.id not in shown
    ]  # fmt: skip
    assert all(hit.rank > 4 and hit.retrieved_rank <= 4 for hit in answer.others)
    assert {hit.id for hit in answer.hits if hit.retrieved_rank <= 4} | {hit.id for hit in answer.others} == set(
        answer.retrieved
    )


@pytest.mark.parametrize(
    ("device", "calls"), [("cpu", [["a", "d"], ["b", "d"], ["c", "d"]]), ("cuda", [["a", "c", "d"], ["b", "d"]])]
)
def test_candidates_are_scored_together_on_a_gpu(tmp_path: Path, device: str, calls: list[list[str]]) -> None:
    asked = []

    def rerank(queries: list[str], hits: list[list[Hit]], *, weight: float | None = None) -> list[list[Hit]]:
        asked.append([*queries, "d"])
        assert weight == (0.5 if "b" in queries else None)
        return [found[::-1] for found in hits]

    engine = make_engine(tmp_path / "idx", documents=3)
    engine.rerankers = [SimpleNamespace(device=torch.device(device))]  # type: ignore[list-item]
    engine.rerank = rerank  # type: ignore[method-assign,assignment]
    questions = [Search("a"), Search("b", rerank_weight=0.5), Search("d", rerank=False), Search("c")]
    order = [position for position, _ in answer_questions(engine, questions)]
    assert (asked, order) == (calls, [2, 0, 1, 3] if device == "cpu" else [2, 0, 3, 1])
    answers = answer_all(engine, *questions)
    assert [answer.reranked for answer in answers if isinstance(answer, SearchAnswer)] == [True, True, False, True]
    engine.close()


def test_a_batch_has_as_many_questions_as_the_cross_encoder_can_read(tmp_path: Path) -> None:
    with busy(tmp_path / "idx") as (worker, encoder, _, release):
        engine = worker._engine
        engine.rerankers = [SimpleNamespace(device=torch.device("cpu"))]  # type: ignore[list-item]
        engine.rerank = lambda queries, hits, weight: list(hits)  # type: ignore[method-assign,assignment]
        # 100 candidates each, but the one that is not reranked and the one that asks for more than all of them
        kinds = [{}, {}, {"rerank": False}, {}, {"candidates": 200}, {}]
        waiting = [worker.submit(Search(ask(i), **kind)) for i, kind in enumerate(kinds, start=1)]  # type: ignore[arg-type]
        release()
        assert [first_id(future) for future in waiting] == [f"d{i}" for i in range(1, 7)]
        engine.rerankers = []
    assert [len(call) for call in encoder.calls] == [1, 3, 1, 1, 1]


def test_similarity_beside_searches(real: SemanticSearch) -> None:
    from transenc.alignment import align_tokens
    from transenc.scoring import score_pairs

    search, answer = answer_all(real, Search("a cat", top_k=1), Similarity("the small cat", "a dog"))
    assert isinstance(search, SearchAnswer) and isinstance(answer, SimilarityAnswer)
    pair = [("the small cat", "a dog")]
    assert answer.bi == float(score_pairs(real.encoder.model, pair)[0])
    assert answer.cross == float(score_pairs(real.rerankers, pair)[0])
    assert answer.alignment.score == align_tokens(real.encoder.model, *pair[0]).score
    assert (answer.alignment.tokens1, answer.alignment.tokens2) == (["the", "small", "cat"], ["a", "dog"])


# ---- another generation


def test_a_batch_is_answered_from_one_generation(tmp_path: Path) -> None:
    path = tmp_path / "idx"
    with busy(path) as (worker, _, first, release):
        newer = build_colours(path, make_documents(20, word="newer"))
        worker.replace_store(newer, describe_store(newer, dim=4))
        second = worker.submit(Search(ask(1)))
        release()
        old, new = first.result(10), second.result(10)
        assert isinstance(old, SearchAnswer) and isinstance(new, SearchAnswer)
        assert (old.generation, old.hits[0].text.split()[-2:]) == (1, ["number", "0"])
        assert (new.generation, new.hits[0].text.split()[-2:]) == (2, ["newer", "1"])
        assert worker.description.facts["generation"] == 2


def test_an_idle_worker_takes_a_new_store_and_closes_the_old_one(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "idx")
    old = engine.store
    with running(engine) as worker:
        newer = build_colours(tmp_path / "idx", make_documents(3))
        worker.replace_store(newer, describe_store(newer, dim=4))
        wait_until(lambda: engine.store is newer)
        assert first_id(worker.submit(Search(ask(2)))) == "d2"
        with pytest.raises(InputError, match="was closed"):
            old.count()
    engine.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Path, IndexWatch, ModelWorker]]:
    engine = make_engine(tmp_path / "idx", documents=5)
    assert isinstance(engine.store, FaissStore)
    with running(engine) as worker:
        yield tmp_path / "idx", IndexWatch(engine.store, worker), worker
    engine.close()


def count_documents(worker: ModelWorker) -> int:
    answer = worker.submit(Search("red", top_k=100)).result(10)
    assert isinstance(answer, SearchAnswer)
    return len(answer.hits)


def test_a_newer_generation_is_taken_once(watched: tuple[Path, IndexWatch, ModelWorker]) -> None:
    path, watch, worker = watched
    assert not watch.look()
    with FaissStore.open(path) as store:
        store.add([Document("x", "red red")], CountColours())  # type: ignore[arg-type]
    assert watch.look()
    assert not watch.look()
    assert count_documents(worker) == 6
    with FaissStore.open(path) as store:
        store.delete(["x", "d0"])
    assert watch.look()
    assert count_documents(worker) == 4


def test_an_index_made_anew_has_the_same_number_and_is_taken(watched: tuple[Path, IndexWatch, ModelWorker]) -> None:
    path, watch, worker = watched
    shutil.rmtree(path)
    build_colours(path, make_documents(2)).close()
    assert watch.look()
    assert count_documents(worker) == 2


def test_a_damaged_generation_is_refused_once_and_taken_when_it_is_whole(
    watched: tuple[Path, IndexWatch, ModelWorker], caplog: pytest.LogCaptureFixture
) -> None:
    path, watch, worker = watched
    build_colours(path, make_documents(7)).close()
    target = path / "gen-000002" / "vectors.npy"
    whole = target.read_bytes()
    target.write_bytes(whole[:-1])
    assert not watch.look()
    assert not watch.look()
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert "generation 1 goes on serving" in record.getMessage() and "vectors.npy" in record.getMessage()
    assert count_documents(worker) == 5
    target.write_bytes(whole)
    assert not watch.look()  # nothing was published since
    watch.look_now()
    assert watch.look()
    assert count_documents(worker) == 7


@pytest.mark.parametrize("damage", ["gen-9\n", "", "gen-000077\n"])
def test_a_damaged_current_is_refused(
    watched: tuple[Path, IndexWatch, ModelWorker], caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    path, watch, worker = watched
    (path / "CURRENT").write_text(damage, encoding="utf-8")
    assert not watch.look()
    assert "CURRENT: expected the name of a generation" in caplog.text
    assert count_documents(worker) == 5


def test_another_encoder_is_refused(
    watched: tuple[Path, IndexWatch, ModelWorker], caplog: pytest.LogCaptureFixture
) -> None:
    path, watch, worker = watched
    build_colours(path, make_documents(7), fingerprint="other").close()
    assert not watch.look()
    assert "built with another encoder: expected fingerprint c0, found other" in caplog.text
    assert count_documents(worker) == 5


def test_what_was_published_before_the_watch_began_is_seen(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "idx", documents=5)
    assert isinstance(engine.store, FaissStore)
    build_colours(tmp_path / "idx", make_documents(6)).close()
    with running(engine) as worker:
        assert IndexWatch(engine.store, worker).look()
        assert count_documents(worker) == 6
    engine.close()


# ---- what can be said of an index


def test_a_description_has_the_fields_and_their_values(tmp_path: Path) -> None:
    documents = [
        Document("a", "red", metadata={"topic": "x", "year": 2020, "new": True, "tags": ["t"]}),
        Document("b", "green", metadata={"topic": "y", "year": 2020.5, "note": "n" * 61}),
        Document("c", "blue", metadata={"topic": "x", "mixed": 1}),
        Document("d", "gold", metadata={"topic": "x", "mixed": "one"}),
    ]
    with build_colours(tmp_path / "idx", documents, name="/models/private/counter") as store:
        found = describe_store(store, dim=4)
    assert found.facts == {"documents": 4, "passages": 4, "generation": 1, "kind": "exact", "recall@10": None}
    assert (found.hybrid, found.encoder) == (False, "counter")
    assert found.fields == [
        {"key": "mixed", "examples": [1, "one"], "numeric": False},
        {"key": "new", "examples": ["true"], "numeric": False},
        {"key": "note", "examples": [], "numeric": False},
        {"key": "topic", "examples": ["x", "y"], "numeric": False},
        {"key": "year", "examples": [2020, 2020.5], "numeric": True},
    ]


@pytest.mark.parametrize(
    "wrong", [{"max_top_k": 0}, {"max_batch": True}, {"timeout_s": float("inf")}, {"queue_size": 1.5}]
)
def test_limits_are_numbers_above_zero(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"limit {next(iter(wrong))}: expected a"):
        Limits(**wrong)  # type: ignore[arg-type]
