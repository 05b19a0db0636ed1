"""`evaluate`: a program over a labelled set, as many examples at a time as there is demand for.

Called by users, and by what optimizes programs. Each example is a task of a `TaskSupervisor`; the LM calls of all of
them belong to one run (`promptside.pools.context.batch`), so that an outage never becomes a score. What comes out, what
callbacks are told and what is written to files is as with `dspy.Evaluate`, from which the tables are taken.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import importlib.util
import inspect
import itertools
import json
import logging
import math
import sys
import types
from array import array
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sized,
)
from pathlib import Path
from typing import Any, TypeAlias, cast

import anyio.to_thread
import dspy
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import with_callbacks
from tqdm import tqdm  # type: ignore[import-untyped]

from promptside.actors import ActorSystem
from promptside.callables import is_async
from promptside.checks import check, check_count, check_name
from promptside.clock import monotonic
from promptside.errors import ActorStopped, EvaluationAborted, NameTaken
from promptside.events.span import Span
from promptside.pools.context.batch import batch_run
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.priority import OUTAGE_TIMEOUT, Batch, BatchAborted
from promptside.pools.context.settings import current_call_id
from promptside.programs.evaluation.scores import Scores
from promptside.programs.hosting.actors import ModuleActor, blocks
from promptside.programs.hosting.callbacks import CallEvents, has_listener, recording
from promptside.programs.hosting.threads import in_thread
from promptside.programs.program import Program
from promptside.supervision import TaskSupervisor

__all__ = ["Evaluation", "evaluate"]

Devset: TypeAlias = Iterable[dspy.Example] | AsyncIterable[dspy.Example]
Outcome: TypeAlias = tuple[int, dspy.Example, dspy.Prediction, Any, float, BaseException | None]
"""Index, example, prediction, score, seconds, and why it failed."""

EMPTY = "devset must contain at least one example, got an empty devset."

TRIES = 3
"""Times that an example is begun which is inside a crash of an actor: it may be what crashes it."""

log = logging.getLogger("promptside.programs")


class Evaluation(EvaluationResult):
    """DSPy's `EvaluationResult`, with figures for its scores, and what failed.

    Attributes:
        score: 100 times the mean score, rounded to two places.
        results: ``(example, prediction, score)`` for each example, in the order of the devset; empty where they were
            not kept. A score is what the metric returned; that of an example that failed, `failure_score`.
    """

    def __init__(self, score: float, results: list[Any], scores: Scores, errors: dict[int, Exception]) -> None:
        super().__init__(score=score, results=results)
        self._scores = scores
        self._errors = errors

    @property
    def scores(self) -> Scores:
        """All scores, on the metric's own scale."""
        return self._scores

    @property
    def errors(self) -> Mapping[int, Exception]:
        """What the examples that failed raised, or their metric, by their index in the devset."""
        return self._errors


async def evaluate(
    program: Program | dspy.Module | Callable[..., Any],
    devset: Devset,
    metric: Callable[..., Any],
    *,
    demand: int = 64,
    name: str = "evaluation",
    system: ActorSystem | None = None,
    max_errors: float | None = None,
    failure_score: float = 0.0,
    outage_timeout: float = OUTAGE_TIMEOUT,
    keep_results: bool = True,
    display_progress: bool = False,
    display_table: bool | int = False,
    save_as_csv: str | None = None,
    save_as_json: str | None = None,
    callback_metadata: dict[str, Any] | None = None,
) -> Evaluation:
    """Score a program on labelled examples, with DSPy's semantics.

    ::

        result = await evaluate(program, devset, metric, demand=64, display_progress=True)
        print(result.score, result.scores)

    The devset is read as results are ready: never more than `demand` examples are under way, and, with
    ``keep_results=False``, held. It may be a list, a generator or an async generator; a plain generator is read on the
    event loop. To stop early and keep the scores so far, let it end. Cancelling the caller cancels every example.

    An example fails where the program or the metric raises; it gets `failure_score`. An **outage** is no failure: LM
    calls through a pool wait until it is over; after `outage_timeout` seconds the evaluation is aborted. An example
    that was inside a crash of an actor is begun again, twice at most; a program that has stopped aborts the evaluation.

    Each example sees the caller's context, `dspy.context` included. An async metric or callable runs on the event loop
    of the system; **what is synchronous runs in a worker thread**, as with `dspy.Evaluate`, so that a metric that asks
    an LM does not block the others. A thread cannot be cancelled: it is left behind, and its later LM calls fail. An
    ``async def`` metric saves the 0.1 ms of the thread.

    Args:
        program: A running program; a plain `dspy.Module`, which then runs as it is; or another callable, such as a
            pipeline. Called with the inputs of an example.
        devset: Examples with their inputs declared (`with_inputs`).
        metric: Called with ``(example, prediction)``; returns a number, a bool, or a prediction with a `score`.
        demand: Examples at a time, >= 1; of a running program at most 1,024.
        name: For events, errors and costs (the label ``run``), and of its tasks in the tree.
        system: Where its tasks run, and whose bus tells its events; by default the program's, else one for the while.
        max_errors: With so many failed examples it is aborted; `math.inf` for never. DSPy's setting by default, 10.
        failure_score: Of an example that failed.
        outage_timeout: Seconds for which an LM call may be parked in an outage.
        keep_results: Whether examples and predictions are kept. Without them, an example costs 8 bytes.
        display_progress: Whether a progress bar is drawn, on standard output.
        display_table: Whether the results are printed as a table, with pandas; or how many of them.
        save_as_csv: File for the results. As with DSPy, but columns that the first result lacks are written too.
        save_as_json: File for the results. As with DSPy, but what JSON does not know is written as text.
        callback_metadata: For DSPy's callbacks on evaluations.

    Raises:
        EvaluationAborted: There is no score: an outage outlasted `outage_timeout`, a key was rejected, a budget is
            spent, the program has stopped, or `max_errors` examples failed (`reason` is a group of their errors).
        ActorStopped: The system has closed, or the task of an example was killed.
        TypeError: The metric returned something that is no score.
        ValueError: The devset is empty, or an argument is not valid; the message names it.
        Exception: Whatever the devset raised.
    """
    check_count("evaluate", "demand", demand)
    most = ModuleActor.__options__.concurrency if isinstance(program, Program) else math.inf
    check("evaluate", "demand", demand, demand <= most, f"a program takes {most} calls at a time")
    for field, value in (("program", program), ("metric", metric)):
        check("evaluate", field, value, callable(value), "give something that can be called")
    check_name("evaluate", "name", name)
    shown = bool(display_table or save_as_csv or save_as_json)
    check("evaluate", "keep_results", keep_results, keep_results or not shown, "a table or file needs the results")
    for field, path in (("save_as_csv", save_as_csv), ("save_as_json", save_as_json)):
        check("evaluate", field, path, path is None or _may_be_file(path), "give a file in a folder that exists")
    most_errors = dspy.settings.max_errors if max_errors is None else max_errors
    for field, number in (("max_errors", most_errors), ("failure_score", failure_score)):
        check("evaluate", field, number, isinstance(number, int | float) and not math.isnan(number), "give a number")
    if system is None and isinstance(program, Program):
        system = program.ref.system
    async with contextlib.nullcontext(system) if system is not None else ActorSystem(name) as home:
        evaluator = _Evaluator(
            home,
            name,
            outage_timeout,
            keep_results,
            devset=devset,
            metric=metric,
            num_threads=demand,
            display_progress=display_progress,
            display_table=display_table,
            max_errors=most_errors,
            failure_score=failure_score,
            save_as_csv=save_as_csv,
            save_as_json=save_as_json,
        )
        with _told_once():
            result: Evaluation = await evaluator.run(program, callback_metadata=callback_metadata)
    return result


class _Evaluator(dspy.Evaluate):
    """One evaluation. To DSPy's callbacks it is one of DSPy's own, whose arguments it keeps and whose tables it prints.

    Args:
        system: Where its tasks run.
        name: Of the run.
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
        self._patience = outage_timeout
        self._keep_results = keep_results
        self._demand: int = settings["num_threads"]
        self._threads = anyio.CapacityLimiter(self._demand)
        self._judge = _awaited(self.metric, self._threads)
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
        """Evaluate. The parameters are those of `dspy.Evaluate.__call__`, for callbacks are told them."""
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
            with batch_run(self._name, outage_timeout=self._patience) as run:
                await self._consume(tasks, program, run, size)
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

    async def _consume(self, tasks: TaskSupervisor, program: Any, run: Batch, size: int | None) -> None:
        self._program = _awaited(program, self._threads)
        outcomes = tasks.map(self._example, _numbered(self.devset), max_concurrency=self._demand, ordered=False)
        with _Bar(total=size, dynamic_ncols=True, disable=not self.display_progress, file=sys.stdout) as bar:
            async with contextlib.aclosing(outcomes):
                async for outcome in outcomes:
                    run.check()  # what an abort made of the example is no outcome
                    self._take(*outcome)
                    good = self._done - len(self._errors)
                    percent = round(100 * self._total / good, 1) if good else 0
                    bar.set_description(f"Average Metric: {self._total:.2f} / {good} ({percent}%)", refresh=False)
                    bar.update()
        if not self._done:
            raise ValueError(EMPTY)

    async def _example(self, numbered: tuple[int, dspy.Example]) -> Outcome:
        """One example, as a task, in whose name the tree shows it."""
        index, example = numbered
        prediction, score, error = dspy.Prediction(), self.failure_score, None
        began = monotonic()
        try:
            with (
                dspy.context(**recording(self._span)) if has_listener(self._system.events) else contextlib.nullcontext()
            ):
                answer = await self._ask(**example.inputs())
                prediction, score = answer, await self._judge(example, answer)
        except (Exception, BatchAborted) as failure:  # noqa: BLE001 - it is the outcome; whoever consumes it knows an abort
            error = failure
        return index, example, prediction, score, monotonic() - began, error

    async def _ask(self, **inputs: Any) -> Any:
        """Call the program, again if an actor crashed under it; one that does not run is an outage."""
        for left in reversed(range(TRIES)):
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
            raise TypeError(f"the metric returned {score!r} for example {index}; {remedy}") from wrong
        missing = index + 1 - len(self._scores)
        self._scores.extend([math.nan] * missing)
        self._scores[index] = value
        if self._keep_results:
            self._results.extend([None] * missing)
            self._results[index] = example, prediction, score
        self._done += 1
        if isinstance(error, Exception):
            self._errors[index] = error
            log.warning("%s: example %s failed: %s: %s", self._name, index, type(error).__name__, error)
        else:
            self._total += value
        self._tell(index, value, seconds, error)
        if error is not None and len(self._errors) >= self.max_errors:
            errors = ExceptionGroup(f"{len(self._errors)} examples failed, its max_errors", [*self._errors.values()])
            raise EvaluationAborted(self._name, errors) from errors

    def _tell(self, index: int, score: float, seconds: float, error: BaseException | None) -> None:
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

    async def _conclude(self) -> Evaluation:
        score = round(100 * sum(self._scores) / self._done, 2)
        metric = self.metric
        name = metric.__name__ if isinstance(metric, types.FunctionType) else type(metric).__name__
        if self.display_table:
            if importlib.util.find_spec("pandas") is None:
                log.warning("%s: the table is not displayed: pandas is not installed", self._name)
            else:
                table = self._construct_result_table(self._results, name)
                self._display_result_table(table, self.display_table, name)
        for path, save in ((self.save_as_csv, _save_csv), (self.save_as_json, _save_json)):
            if path:
                await anyio.to_thread.run_sync(save, path, self._prepare_results_output(self._results, name))
        return Evaluation(score, self._results, Scores(self._scores), self._errors)


class _Bar(tqdm):
    """A progress bar without tqdm's thread, which would outlive the evaluation."""

    monitor_interval = 0


@contextlib.contextmanager
def _told_once() -> Iterator[None]:
    """Leave out our own callback of a program around the evaluation: it would tell the evaluation a second time."""
    callbacks = dspy.settings.callbacks
    others = [callback for callback in callbacks if not isinstance(callback, CallEvents)]
    with dspy.context(callbacks=others) if len(others) < len(callbacks) else contextlib.nullcontext():
        yield


def _awaited(function: Any, threads: anyio.CapacityLimiter) -> Callable[..., Awaitable[Any]]:
    """A program or metric as an async function; what is not async itself runs in a thread."""
    has_acall = isinstance(function, Program) or (isinstance(function, dspy.Module) and not blocks(function))
    called: Any = function.acall if has_acall else function
    if is_async(called):
        return cast("Callable[..., Awaitable[Any]]", called)

    async def threaded(*args: Any, **kwargs: Any) -> Any:
        result = await in_thread(functools.partial(called, *args, **kwargs), threads)
        return await result if inspect.isawaitable(result) else result

    return threaded


async def _numbered(devset: Devset) -> AsyncGenerator[tuple[int, dspy.Example], None]:
    """The examples of either kind of devset with their indices; closing it closes the devset."""
    numbers = itertools.count()
    if isinstance(devset, AsyncIterable):
        examples = aiter(devset)
        try:
            async for example in examples:
                yield next(numbers), example
        finally:
            if (close := getattr(examples, "aclose", None)) is not None:
                await close()
    else:
        try:
            for example in devset:
                yield next(numbers), example
        finally:
            if isinstance(devset, Generator):
                devset.close()


def _may_be_file(path: str) -> bool:
    return Path(path).parent.is_dir() and not Path(path).is_dir()


def _save_csv(path: str, rows: list[dict[str, Any]]) -> None:
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(column for row in rows for column in row))
        writer.writeheader()
        writer.writerows(rows)


def _save_json(path: str, rows: list[dict[str, Any]]) -> None:
    def plain(value: Any) -> Any:
        return value.toDict() if isinstance(value, dspy.Example) else str(value)

    with Path(path).open("w") as file:
        json.dump(rows, file, default=plain)
