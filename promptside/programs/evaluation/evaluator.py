"""`Evaluator`: one evaluation as it runs: its examples as tasks, their outcomes, its events and its tables.

Made by `evaluate`. The tables are DSPy's own, from `dspy.Evaluate`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import math
import sys
import types
from array import array
from collections.abc import Iterator, Sized
from typing import Any, TypeAlias

import anyio.to_thread
import dspy
from dspy.utils import with_callbacks

from promptside.actors import ActorSystem
from promptside.clock import monotonic
from promptside.errors import ActorStopped, EvaluationAborted, NameTaken
from promptside.events.span import Span
from promptside.pools.context.batch import batch_run
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.priority import Batch, BatchAborted
from promptside.pools.context.settings import current_call_id
from promptside.programs.evaluation.callables import numbered, to_async
from promptside.programs.evaluation.files import Bar, save_csv, save_json
from promptside.programs.evaluation.result import Evaluation
from promptside.programs.evaluation.scores import Scores
from promptside.programs.evaluation.shared_threads import SharedThreads
from promptside.programs.hosting.callbacks import has_listener, recording
from promptside.supervision import TaskSupervisor
from promptside.texts import kind_of, repr_of, text_of

__all__ = ["Evaluator"]

Outcome: TypeAlias = tuple[int, dspy.Example, dspy.Prediction, Any, float, BaseException | None]
"""Index, example, prediction, score, seconds, and why it failed."""

EMPTY = "devset must contain at least one example, got an empty devset."

ATTEMPTS = 3
"""Times that an example is begun which is inside a crash of an actor: it may be the cause of the crash."""

log = logging.getLogger("promptside.programs")


class Evaluator(dspy.Evaluate):
    """One evaluation. To DSPy's callbacks it is one of DSPy's own, whose arguments it keeps and whose tables it prints.

    Args:
        system: Where its tasks run.
        name: Of the evaluation.
        outage_timeout: As for `evaluate`.
        keep_results: As for `evaluate`.
        **settings: Those of `dspy.Evaluate`.
    """

    def __init__(
        self, system: ActorSystem, name: str, outage_timeout: float, keep_results: bool, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.max_errors: float
        self._system = system
        self._name = name
        self._outage_timeout = outage_timeout
        self._keep_results = keep_results
        self._max_concurrency: int = settings["num_threads"]
        self._threads = anyio.CapacityLimiter(self._max_concurrency)
        self._scores = array("d")  # not a number for those to come
        self._results: list[Any] = []  # None for those to come
        self._errors: dict[int, Exception] = {}
        self._done = 0
        self._total = 0.0  # of the examples that did not fail
        self._parent, self._parent_id = enclosing(), current_call_id()

    @with_callbacks  # type: ignore[untyped-decorator]
    async def run(
        self,
        program: Any,
        metric: None = None,
        devset: None = None,
        num_threads: None = None,
        display_progress: None = None,
        display_table: None = None,
        callback_metadata: dict[str, Any] | None = None,
        save_as_csv: None = None,
        save_as_json: None = None,
    ) -> Evaluation:
        """Evaluate. The parameters are those of `dspy.Evaluate.__call__`, since callbacks get them."""
        size = len(self.devset) if isinstance(self.devset, Sized) else None
        if size == 0:
            raise ValueError(EMPTY)
        tasks = await self._start_tasks()
        attributes = {} if size is None else {"examples": size}
        call_id = current_call_id()  # the same as around it, where there are no callbacks
        self._span = span = Span(
            self._system.events,
            "evaluation",
            tasks.name,
            attributes,
            call_id=None if call_id == self._parent_id else call_id,
            parent=self._parent,
            parent_id=self._parent_id,
        )
        span.started()
        try:
            with (
                batch_run(self._name, outage_timeout=self._outage_timeout) as batch,
                contextlib.closing(SharedThreads(self._max_concurrency)) as shared,
            ):
                self._program = to_async(program, self._threads)
                self._metric = to_async(self.metric, self._threads, shared.run)
                await self._consume(tasks, batch, size)
            result = await self._conclude()
        except BaseException as error:
            span.failed(error)
            raise
        finally:
            await tasks.stop()
        span.attributes = {"examples": self._done, "score": result.score}
        span.stopped()
        return result

    async def _start_tasks(self) -> TaskSupervisor:
        for number in itertools.count(1):
            with contextlib.suppress(NameTaken):
                name = self._name if number == 1 else f"{self._name}-{number}"
                return await TaskSupervisor(name).start(self._system)
        raise AssertionError

    async def _consume(self, tasks: TaskSupervisor, batch: Batch, size: int | None) -> None:
        outcomes = tasks.map(self._example, numbered(self.devset), max_concurrency=self._max_concurrency, ordered=False)
        with Bar(total=size, dynamic_ncols=True, disable=not self.display_progress, file=sys.stdout) as bar:
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    batch.check()  # an example that was cut off by an abort has no outcome
                    self._take(*outcome)
                    good = self._done - len(self._errors)
                    percent = round(100 * self._total / good, 1) if good else 0
                    bar.set_description(f"Average Metric: {self._total:.2f} / {good} ({percent}%)", refresh=False)
                    bar.update()
        if not self._done:
            raise ValueError(EMPTY)

    async def _example(self, item: tuple[int, dspy.Example]) -> Outcome:
        """One example; a task, which the tree shows under this name."""
        index, example = item
        prediction, score, error = dspy.Prediction(), self.failure_score, None
        began = monotonic()
        try:
            with (
                dspy.context(**recording(self._span)) if has_listener(self._system.events) else contextlib.nullcontext()
            ):
                answer = await self._ask(**example.inputs())
                prediction, score = answer, await self._metric(example, answer)
        except (Exception, BatchAborted) as failure:  # noqa: BLE001 - it is the outcome; `_consume` knows an abort
            error = failure
        return index, example, prediction, score, monotonic() - began, error

    async def _ask(self, **inputs: Any) -> Any:
        """Call the program, again if an actor crashed under it; one that does not run is an outage."""
        for left in reversed(range(ATTEMPTS)):
            try:
                return await self._program(**inputs)
            except ActorStopped as stopped:
                if left:
                    continue
                if stopped.started:
                    raise
                raise EvaluationAborted(self._name, stopped) from stopped
        raise AssertionError

    def _take(
        self,
        index: int,
        example: dspy.Example,
        prediction: Any,
        score: Any,
        seconds: float,
        error: BaseException | None,
    ) -> None:
        """Keep the outcome of one example."""
        if isinstance(error, EvaluationAborted):
            raise error
        try:
            value = float(0 + score)
        except (TypeError, ValueError) as wrong:
            remedy = "let it return a number, a bool or a prediction with a `score`"
            raise TypeError(f"the metric returned {repr_of(score)} for example {index}; {remedy}") from wrong
        missing = index + 1 - len(self._scores)
        self._scores.extend([math.nan] * missing)
        self._scores[index] = value
        if self._keep_results:
            self._results.extend([None] * missing)
            self._results[index] = example, prediction, score
        self._done += 1
        if isinstance(error, Exception):
            self._errors[index] = error
            log.warning("%s: example %s failed: %s: %s", self._name, index, kind_of(error), text_of(error))
        else:
            self._total += value
        self._publish(index, value, seconds, error)
        if error is not None and len(self._errors) >= self.max_errors:
            errors = ExceptionGroup(f"{len(self._errors)} examples failed, its max_errors", [*self._errors.values()])
            raise EvaluationAborted(self._name, errors) from errors

    def _publish(self, index: int, score: float, seconds: float, error: BaseException | None) -> None:
        events = self._system.events
        if events.wants("evaluation.example"):
            good = self._done - len(self._errors)
            attributes = {
                "index": index,
                "score": score,
                "seconds": seconds,
                **({} if error is None else {"error": type(error).__name__}),
                "done": self._done,
                "failed": len(self._errors),
                "average": 100 * self._total / good if good else 0.0,
            }
            span = self._span
            events.publish(
                "evaluation.example", span.source, attributes, trace_id=span.trace_id, parent_id=span.call_id
            )

    @contextlib.contextmanager
    def _reporting(self, output: str) -> Iterator[None]:
        """Within, a failure costs this output alone, and not the results."""
        try:
            yield
        except Exception:
            log.exception("%s: %s could not be written", self._name, output)

    async def _conclude(self) -> Evaluation:
        score = round(100 * sum(self._scores) / self._done, 2)
        metric = self.metric
        name = metric.__name__ if isinstance(metric, types.FunctionType) else type(metric).__name__
        if self.display_table:
            if importlib.util.find_spec("pandas") is None:
                log.warning("%s: the table is not displayed: pandas is not installed", self._name)
            else:
                with self._reporting("the table"):
                    table = self._construct_result_table(self._results, name)
                    self._display_result_table(table, self.display_table, name)
        for path, save in ((self.save_as_csv, save_csv), (self.save_as_json, save_json)):
            if path:
                with self._reporting(str(path)):
                    await anyio.to_thread.run_sync(save, path, self._prepare_results_output(self._results, name))
        return Evaluation(score, self._results, Scores(self._scores), self._errors)
