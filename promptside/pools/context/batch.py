"""Batches: evaluations and optimizations, whose calls wait for an outage to end where a server's would fail.

DSPy's `Evaluate` and its optimizers turn an exception of an LM call into a score, so an outage would pass as a bad
program. Therefore the calls of a batch wait while every circuit is open, for up to its `outage_timeout`. Then the batch
is aborted: the waiting call and every later one raise `BatchAborted` before anything is sent. It is a `BaseException`,
so no ``except Exception`` makes a score of it. `batch_run` turns it into the error that its caller knows.

Entered by users and by evaluations and optimizers; used by the dispatcher. Any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from promptside.checks import check, check_text
from promptside.errors import EvaluationAborted, OptimizationAborted
from promptside.pools.context.cancel import CallCancelled
from promptside.pools.context.priority import OUTAGE_TIMEOUT, Batch, BatchAborted, current_priority, priority
from promptside.pools.errors import BudgetExceeded, PoolUnavailable, WorkerLost

__all__ = ["aborting_on_fatal", "batch_run", "find_abort"]


def find_abort(error: BaseException) -> BatchAborted | CallCancelled | None:
    """The abort of a batch or the cancellation of a call that `error` is, or that a TaskGroup's group holds."""
    if isinstance(error, BaseExceptionGroup):
        return next((abort for each in error.exceptions if (abort := find_abort(each)) is not None), None)
    return error if isinstance(error, BatchAborted | CallCancelled) else None


@contextlib.contextmanager
def aborting_on_fatal() -> Iterator[None]:
    """Within, an error that every later call of the batch would meet too aborts it: its pool's or its budget's end."""
    try:
        yield
    except (BudgetExceeded, PoolUnavailable, WorkerLost) as error:
        batch = current_priority().batch
        if batch is None:
            raise
        batch.cancel(error)
        batch.check()


@contextlib.contextmanager
def batch_run(
    run: str,
    *,
    raises: type[EvaluationAborted | OptimizationAborted] = EvaluationAborted,
    outage_timeout: float = OUTAGE_TIMEOUT,
) -> Iterator[Batch]:
    """Run what is within as one batch: its calls wait in an outage, and its abort becomes an error here.

    ::

        with batch_run("nightly"):
            result = dspy.Evaluate(devset=devset, metric=metric, num_threads=8)(program)

    Within another batch it is a part of that one, which raises the error. When the block is left, the batch is over: a
    call that a thread left behind makes later raises `BatchAborted`, and nothing is sent.

    A stream is buffered whole, so that one that breaks off can be made again. DSPy starts a second thread for an
    example that takes 120 s. It repeats the same sequence of calls: what waits is sent once, and what was answered
    before comes from DSPy's cache; where that is off, it is sent again.

    Args:
        run: Its name.
        raises: The error that an abort becomes.
        outage_timeout: As for `priority`.

    Raises:
        EvaluationAborted: The batch was aborted, even if the block caught that and returned: its results hold an
            outage. Or `OptimizationAborted`, as `raises` says.
        ValueError: An argument is not valid; the message names it.
    """
    check_text("batch_run", "run", run)
    remedy = "give EvaluationAborted or OptimizationAborted"
    valid = isinstance(raises, type) and issubclass(raises, EvaluationAborted | OptimizationAborted)
    check("batch_run", "raises", raises, valid, remedy)
    outer = current_priority().batch
    with priority("batch", run=run, outage_timeout=outage_timeout) as batch:
        assert batch is not None
        if batch is outer:
            yield batch
            return
        failed: BaseException | None = None
        try:
            yield batch
        except (BatchAborted, BaseExceptionGroup) as error:  # the group of a TaskGroup whose task was aborted
            failed = error
        except Exception:
            if batch.reason is None:
                raise
        finally:
            batch.cancel(None)
        if batch.reason is not None:
            raise raises(run, batch.reason) from batch.reason
        if failed is not None:
            raise failed
