"""Runs: evaluations and optimizations, whose calls wait for an outage to end where a server's would fail.

DSPy's `Evaluate` and its optimizers turn an exception of an LM call into a score, so an outage would pass as a bad
program. Therefore the calls of a run park while every circuit is open, for as long as the run is patient; then the run
is aborted, by a latch: the parked call and every later one of that run raise a `BaseException`, which no ``except
Exception`` makes a score of, before anything is sent. The front door of the run, `batch_run`, turns it into the error
that its caller knows.

Entered by users and by whatever evaluates or optimizes; asked by the dispatcher. Any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from dspy.dsp.utils.settings import dotdict, thread_local_overrides

from promptside.checks import check, check_seconds
from promptside.errors import EvaluationAborted, OptimizationAborted
from promptside.pools.context.cancel import CallAbandoned, Latch
from promptside.pools.context.labels import labels
from promptside.pools.errors import BudgetExceeded, PoolUnavailable, WorkerLost

__all__ = [
    "Caller",
    "CallerClass",
    "Run",
    "RunAborted",
    "batch_run",
    "caller",
    "current_caller",
    "ending_in",
    "ending_runs",
]

CallerClass = Literal["serving", "batch"]

CALLER: Final = "promptside_caller"
"""The key of DSPy's settings under which the caller travels: they reach every thread that DSPy starts."""

PATIENCE: Final = 600.0
"""Seconds that an outage may last before it aborts a run."""


class RunAborted(BaseException):
    """A run has ended; raised in its calls. No `Exception`: nobody between a call and the front door may swallow it.

    The error that the run was aborted for is `__cause__`; None when the run was over and the call was left behind.
    """


class Run(Latch):
    """A latch that ends the calls of one run together, for good.

    Args:
        name: For errors; may be empty.
        patience: Seconds for which one of its calls may be parked, before that aborts the run.
    """

    def __init__(self, name: str = "", patience: float = PATIENCE) -> None:
        check("Run", "name", name, isinstance(name, str), "give a text")
        check_seconds("Run", "patience", patience, zero=True)
        super().__init__()
        self.name = name
        self.patience = patience

    def check(self) -> None:
        """Raise `RunAborted` if it is over."""
        if self._over:
            raise RunAborted(f"the run {self.name!r} is over") from self.reason


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf LM calls are made.

    Attributes:
        kind: ``"serving"``: somebody waits; admitted first, fails fast. ``"batch"``: holds at most a share of an
            endpoint, and parks in an outage.
        run: Of batch: what its calls belong to, and end with.
    """

    kind: CallerClass
    run: Run | None


SERVING: Final = Caller("serving", None)


def current_caller() -> Caller:
    """The caller around; serving where none was named."""
    found = thread_local_overrides.get().get(CALLER)
    return found if isinstance(found, Caller) else SERVING


@contextlib.contextmanager
def caller(kind: CallerClass, *, run: str | None = None, patience: float = PATIENCE) -> Iterator[Run | None]:
    """Say on whose behalf the LM calls within are made.

    ::

        with caller("batch", run="nightly"):
            ...

    A batch caller within another one is a part of its run. For DSPy's own evaluations and optimizers use `batch_run`,
    which also turns an abort into an error.

    Args:
        kind: ``"serving"`` or ``"batch"``.
        run: Of batch: its name, under which its calls are also counted, as by `labels`.
        patience: Of batch: seconds for which a call may be parked while no endpoint answers, before the whole run is
            aborted; >= 0, inf for ever.

    Yields:
        The run; None for serving.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """
    kinds = get_args(CallerClass)
    check("caller", "kind", kind, kind in kinds, f"give one of {', '.join(map(repr, kinds))}")
    outer = current_caller().run
    inner = None if kind == "serving" else outer or Run(run or "", patience)
    with labels(run=run):
        # Not by `dspy.context`, which would freeze the application's settings for what is called inside.
        overrides = thread_local_overrides.get()
        token = thread_local_overrides.set(dotdict({**overrides, CALLER: Caller(kind, inner)}))
        try:
            yield inner
        finally:
            thread_local_overrides.reset(token)


def ending_in(error: BaseException) -> RunAborted | CallAbandoned | None:
    """What ends a run, or a call that nobody waits for, if `error` is that or the group of a TaskGroup with it."""
    if isinstance(error, BaseExceptionGroup):
        return next((ending for each in error.exceptions if (ending := ending_in(each)) is not None), None)
    return error if isinstance(error, RunAborted | CallAbandoned) else None


@contextlib.contextmanager
def ending_runs() -> Iterator[None]:
    """Within, an error that all later calls of the run around would meet too aborts it: its pool's or budget's end."""
    try:
        yield
    except (BudgetExceeded, PoolUnavailable, WorkerLost) as error:
        run = current_caller().run
        if run is None:
            raise
        run.abort(error)
        run.check()


@contextlib.contextmanager
def batch_run(
    run: str,
    *,
    aborted: type[EvaluationAborted | OptimizationAborted] = EvaluationAborted,
    patience: float = PATIENCE,
) -> Iterator[Run]:
    """The front door of a run: what is called within parks in an outage, and its abort becomes an error here.

    ::

        with batch_run("nightly"):
            result = dspy.Evaluate(devset=devset, metric=metric, num_threads=8)(program)

    Within another run it is a part of that one, and leaves the abort to the outer door. When the block is left, the run
    is over: a call that a thread left behind makes later raises `RunAborted`, and nothing is sent.

    A stream begins when it is there as a whole, so that one that breaks off is made again. DSPy begins a second time
    with an example that takes 120 s: what is parked then is sent once; what the example was answered before comes from
    DSPy's cache, and is sent again where that is off.

    Args:
        run: Its name.
        aborted: The error that an abort becomes.
        patience: As for `caller`.

    Raises:
        EvaluationAborted: The run was aborted, even if the block swallowed that and returned: its results hold an
            outage. Or `OptimizationAborted`, as `aborted` says.
        ValueError: An argument is not valid; the message names it.
    """
    check("batch_run", "run", run, isinstance(run, str) and run != "", "give a text that is not empty")
    outer = current_caller().run
    with caller("batch", run=run, patience=patience) as inner:
        assert inner is not None
        if inner is outer:
            yield inner
            return
        failed: BaseException | None = None
        try:
            yield inner
        except (RunAborted, BaseExceptionGroup) as error:  # the group of a TaskGroup whose task was aborted
            failed = error
        except Exception:
            if inner.reason is None:
                raise
        finally:
            inner.abort(None)
        if inner.reason is not None:
            raise aborted(run, inner.reason) from inner.reason
        if failed is not None:
            raise failed
