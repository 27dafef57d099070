"""The one thread that owns the models: it answers together what has arrived while it was at work.

Nothing waits for a batch to fill: an idle worker takes a request at once, alone, and computes what `transenc search`
computes. A busy one finds several when it comes back, see `answer_questions`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from transenc.errors import TransencError
from transenc.search.engine import SemanticSearch
from transenc.search.serving.answers import Answer, Question, answer_questions, count_candidates, limit_candidates
from transenc.search.serving.description import Description
from transenc.search.serving.limits import Limits
from transenc.search.store import VectorStore

_LOG = logging.getLogger(__name__)


class QueueFull(TransencError):
    """As many requests are waiting as may wait."""


class WorkerStopped(TransencError):
    """The worker does not answer any more: it was stopped, or it died."""


@dataclass(eq=False, slots=True)
class _Job:
    question: Question
    deadline: float  # of time.monotonic(): nobody waits for the answer after it
    submitted: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)


class ModelWorker:
    """Answers questions in one thread, several at a time.

    Args:
        engine: Index and models; nothing else may use them while the worker runs. The worker replaces its store.
        description: Of the engine's store.
        limits: Of these, `queue_size`, `max_batch` and `timeout_s`.
        observe: Called in the worker's thread after every batch with the number of questions in it.

    Example:
        >>> worker = ModelWorker(engine)  # doctest: +SKIP
        >>> worker.start()  # doctest: +SKIP
        >>> worker.submit(Search("rain", top_k=3)).result().hits  # doctest: +SKIP
    """

    def __init__(
        self,
        engine: SemanticSearch,
        description: Description,
        *,
        limits: Limits = Limits(),  # noqa: B008
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._engine, self._limits, self._observe = engine, limits, observe
        self.description = description
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._batch: list[_Job] = []
        self._next: tuple[VectorStore, Description] | None = None
        self._stopping = False
        self._problem: str | None = "it was not started"
        self.died = False  # the thread ended without being asked to
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="model-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._problem = None
        self._thread.start()

    def submit(self, question: Question) -> Future[Answer]:
        """Put a question into the queue.

        Returns:
            The future of its answer; cancelled while it waits, it is never looked at. It gives InputError for a
            question that the index cannot answer, StateError when the models fail, and WorkerStopped.

        Raises:
            QueueFull: `queue_size` questions are waiting.
            WorkerStopped: The worker was stopped, or it died.
        """
        job = _Job(question, time.monotonic() + self._limits.timeout_s)
        with self._changed:
            if self._problem is not None or self._stopping:
                raise WorkerStopped(self._problem or "the server is shutting down")
            if len(self._waiting) >= self._limits.queue_size:
                self._waiting = deque(each for each in self._waiting if not each.future.cancelled())
            if len(self._waiting) >= self._limits.queue_size:
                raise QueueFull(f"{self._limits.queue_size} requests are waiting (queue_size); try again")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def replace_store(self, store: VectorStore, description: Description) -> None:
        """Let the next batch search another store; the one before it is closed when nothing reads it any more."""
        with self._changed:
            unused = store if self._stopping else self._next[0] if self._next is not None else None
            if not self._stopping:
                self._next = store, description
                self._changed.notify()
        if unused is not None:
            unused.close()

    def stop(self, *, timeout_s: float | None = None) -> bool:
        """Take no more questions, answer those that wait, and end the thread; False when it did not end in time."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many questions wait."""
        return len(self._waiting)

    @property
    def problem(self) -> str | None:
        """Why the worker does not answer, or None."""
        since = self._busy_since
        if self._problem is None and since is not None:
            seconds = time.monotonic() - since
            # a batch of slow models may take long, but nobody waits for one that takes this long
            if seconds > 2 * self._limits.timeout_s:
                return f"the model has been at work on one batch for {seconds:.0f} s"
        return self._problem

    # ---- in the thread

    def _run(self) -> None:
        problem = "the server is shutting down"
        try:
            while self._take():
                if self._batch:
                    self._busy_since = time.monotonic()
                    _answer_batch(self._engine, self._batch)
                    self._busy_since = None
                    self._observe(len(self._batch))
        except BaseException as error:
            problem, self.died = "the model worker has died", True
            _LOG.critical("the model worker has died of %s: %s", type(error).__name__, error, exc_info=True)
        finally:
            with self._changed:
                self._problem = problem
                left = [job for job in self._waiting if job.future.set_running_or_notify_cancel()]
                left += [job for job in self._batch if not job.future.done()]
                self._waiting.clear()
                unused, self._next = self._next, None
            if unused is not None:
                unused[0].close()
            for job in left:
                job.future.set_exception(WorkerStopped(problem))

    def _take(self) -> bool:
        """Wait for work, then set the batch and the store; False when there is none and will be none."""
        with self._changed:
            while not (self._waiting or self._next or self._stopping):
                self._batch = []
                self._changed.wait()
            old = None
            if self._next is not None:
                old = self._engine.store
                (self._engine.store, self.description), self._next = self._next, None
            self._batch, now = [], time.monotonic()
            reading, most = 0, limit_candidates(self._engine)
            while self._waiting and len(self._batch) < self._limits.max_batch:
                more = count_candidates(self._engine, self._waiting[0].question)
                if self._batch and reading + more > most:
                    break
                job = self._waiting.popleft()
                if not job.future.set_running_or_notify_cancel():
                    continue
                if job.deadline < now:
                    job.future.set_exception(TimeoutError("nobody waits for the answer any more"))
                    continue
                self._batch.append(job)
                reading += more
            go_on = bool(self._batch or self._waiting or not self._stopping or old)
        if old is not None:
            old.close()
        return go_on


def _answer_batch(engine: SemanticSearch, batch: Sequence[_Job]) -> None:
    left = dict(enumerate(batch))
    try:
        for position, answer in answer_questions(engine, [job.question for job in batch]):
            _deliver(left.pop(position), answer)
    except Exception as error:
        # What one question does to the models is no fault of the others; and a store in which others write may have
        # changed between two steps.
        _LOG.warning("%d questions are answered again, one by one: %s", len(left), error)
        for job in left.values():
            _deliver(job, _answer_alone(engine, job.question))


def _answer_alone(engine: SemanticSearch, question: Question) -> Answer | Exception:
    try:
        [(_, answer)] = answer_questions(engine, [question])
        return answer
    except Exception as error:
        return error


def _deliver(job: _Job, answer: Answer | Exception) -> None:
    if isinstance(answer, Exception):
        job.future.set_exception(answer)
        return
    steps = sum(answer.timings.values())
    answer.timings["queue_ms"] = max(0.0, 1000 * (time.monotonic() - job.submitted) - steps)
    job.future.set_result(answer)
