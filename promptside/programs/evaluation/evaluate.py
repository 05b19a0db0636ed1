"""`evaluate`: a program over a labelled set, with bounded concurrency and through outages.

Called by users, and by optimizers. Each example is a task of a `TaskSupervisor`; the LM calls of all of them belong to
one batch (`promptside.pools.context.batch`), so that an outage never becomes a score. Results, callbacks and files are
as with `dspy.Evaluate`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
from typing import Any

import dspy

from promptside.actors import ActorSystem
from promptside.checks import check, check_count, check_name, is_number
from promptside.pools.context.priority import OUTAGE_TIMEOUT
from promptside.programs.evaluation.callables import Devset
from promptside.programs.evaluation.evaluator import Evaluator
from promptside.programs.evaluation.files import can_be_file
from promptside.programs.evaluation.result import Evaluation
from promptside.programs.hosting.actors import ModuleActor
from promptside.programs.hosting.callbacks import CallEvents
from promptside.programs.program import Program

__all__ = ["evaluate"]


async def evaluate(
    program: Program | dspy.Module | Callable[..., Any],
    devset: Devset,
    metric: Callable[..., Any],
    *,
    max_concurrency: int = 64,
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

        result = await evaluate(program, devset, metric, max_concurrency=64, display_progress=True)
        print(result.score, result.scores)

    The devset is read as results are ready: at most `max_concurrency` examples are under way, and, with
    ``keep_results=False``, held. It may be a list, a generator or an async generator; a plain generator is read on the
    event loop. To stop early and keep the scores so far, let it end. Cancelling the caller cancels every example.

    An example fails where the program or the metric raises; it gets `failure_score`. An **outage** is no failure: LM
    calls through a pool wait until it is over; after `outage_timeout` seconds the evaluation is aborted. An example
    that was inside a crash of an actor is begun again, twice at most; a program that has stopped aborts the evaluation.

    Each example sees the caller's context, `dspy.context` included. An async metric or callable runs on the event loop
    of the system. **A synchronous one runs in a worker thread**, as with `dspy.Evaluate`, so that a metric that asks an
    LM does not block the others. A thread cannot be cancelled: it is left behind, and its later LM calls fail. An
    ``async def`` metric saves the 0.1 ms of the thread.

    Args:
        program: A running program; a plain `dspy.Module`, which then runs as it is; or another callable, such as a
            pipeline. Called with the inputs of an example.
        devset: Examples with their inputs declared (`with_inputs`).
        metric: Called with ``(example, prediction)``; returns a number, a bool, or a prediction with a `score`.
        max_concurrency: Examples at a time, >= 1; of a running program at most 1,024.
        name: For events, errors and costs (the label ``run``), and of its tasks in the tree.
        system: Runs its tasks and publishes its events; the program's by default, or a temporary one.
        max_errors: Failed examples at which it is aborted; `math.inf` for never. DSPy's setting by default, 10.
        failure_score: Score of an example that failed.
        outage_timeout: Seconds for which an LM call may wait for the end of an outage.
        keep_results: Whether examples and predictions are kept. Without them, an example costs 8 bytes.
        display_progress: Whether a progress bar is drawn, on standard output.
        display_table: Whether the results are printed as a table, with pandas; or how many of them.
        save_as_csv: File for the results. As with DSPy, and with the columns that the first result lacks.
        save_as_json: File for the results. As with DSPy; a value that JSON does not know is written as text.
        callback_metadata: For DSPy's callbacks on evaluations.

    Raises:
        EvaluationAborted: There is no score: an outage outlasted `outage_timeout`, a key was rejected, a budget is
            spent, the program has stopped, or `max_errors` examples failed (`reason` is a group of their errors).
        ActorStopped: The system has closed, or the task of an example was killed.
        NotStarted: The program was never started.
        TypeError: The metric returned something that is no score.
        ValueError: The devset is empty, or an argument is not valid; the message names it.
        Exception: The devset raised it.

    A file that cannot be written, or a table that cannot be printed, when all is done, is an error in the log: the
    result is returned.
    """
    check_count("evaluate", "max_concurrency", max_concurrency)
    most = ModuleActor.__options__.max_concurrency if isinstance(program, Program) else math.inf
    remedy = f"a program takes {most} calls at a time"
    check("evaluate", "max_concurrency", max_concurrency, max_concurrency <= most, remedy)
    for field, value in (("program", program), ("metric", metric)):
        check("evaluate", field, value, callable(value), "give something that can be called")
    examples = isinstance(devset, Iterable | AsyncIterable) and not isinstance(devset, str | bytes | Mapping)
    check("evaluate", "devset", devset, examples, "give dspy.Examples, in a list or another iterable")
    rows = isinstance(display_table, int)  # a bool is one
    check("evaluate", "display_table", display_table, rows, "give True or False, or a number of rows")
    check_name("evaluate", "name", name)
    shown = bool(display_table or save_as_csv or save_as_json)
    check("evaluate", "keep_results", keep_results, keep_results or not shown, "a table or file needs the results")
    for field, path in (("save_as_csv", save_as_csv), ("save_as_json", save_as_json)):
        check("evaluate", field, path, path is None or can_be_file(path), "give a file in a folder that exists")
    most_errors = dspy.settings.max_errors if max_errors is None else max_errors
    for field, number in (("max_errors", most_errors), ("failure_score", failure_score)):
        check("evaluate", field, number, is_number(number), "give a number")
    if isinstance(program, Program):
        entry = program.ref  # raises unless it was started
        system = entry.system if system is None else system
    async with contextlib.nullcontext(system) if system is not None else ActorSystem(name) as home:
        evaluator = Evaluator(
            home,
            name,
            outage_timeout,
            keep_results,
            devset=devset,
            metric=metric,
            num_threads=max_concurrency,
            display_progress=display_progress,
            display_table=display_table,
            max_errors=most_errors,
            failure_score=failure_score,
            save_as_csv=save_as_csv,
            save_as_json=save_as_json,
        )
        with _without_own_callback():
            result: Evaluation = await evaluator.run(program, callback_metadata=callback_metadata)
    return result


@contextlib.contextmanager
def _without_own_callback() -> Iterator[None]:
    """Within, the callback of a program around the evaluation is off: it would record the evaluation a second time."""
    callbacks = dspy.settings.callbacks
    others = [callback for callback in callbacks if not isinstance(callback, CallEvents)]
    with dspy.context(callbacks=others) if len(others) < len(callbacks) else contextlib.nullcontext():
        yield
