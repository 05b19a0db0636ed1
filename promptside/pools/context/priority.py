"""The priority of LM calls: somebody waits for them, or they belong to a batch. Set by users, read by pools."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal, get_args

from promptside.checks import check, check_seconds
from promptside.pools.context.cancel import CancelToken
from promptside.pools.context.labels import labels
from promptside.pools.context.settings import read_setting, setting

__all__ = ["OUTAGE_TIMEOUT", "Batch", "BatchAborted", "Priority", "PriorityClass", "current_priority", "priority"]

PriorityClass = Literal["serving", "batch"]

PRIORITY: Final = "promptside_priority"
"""The key of DSPy's settings under which it is found."""

OUTAGE_TIMEOUT: Final = 600.0
"""Seconds that an outage may last before it aborts a batch."""


class BatchAborted(BaseException):
    """A batch has ended; raised in its calls. Not an `Exception`: no code in between may take it for a failed answer.

    `__cause__` is the error that the batch was aborted for; None when the batch was over before the call.
    """


class Batch(CancelToken):
    """Calls that wait for the end of an outage together, and end together.

    Args:
        name: For errors; may be empty.
        outage_timeout: Seconds for which one of its calls may wait while no endpoint answers, before all are aborted.
    """

    def __init__(self, name: str = "", outage_timeout: float = OUTAGE_TIMEOUT) -> None:
        check("Batch", "name", name, isinstance(name, str), "give a text")
        check_seconds("Batch", "outage_timeout", outage_timeout, zero=True)
        super().__init__()
        self.name = name
        self.outage_timeout = outage_timeout
        self._waiting = 0  # calls that wait for the end of an outage
        self._since = 0.0
        self._before = 0.0

    @contextlib.contextmanager
    def waiting(self, clock: Callable[[], float]) -> Iterator[None]:
        """Within, a call of the batch waits for the end of an outage.

        Args:
            clock: `time` of the running loop.
        """
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._since = clock()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                if self._waiting == 0:
                    self._before += clock() - self._since

    def seconds_waited(self, now: float) -> float:
        """Seconds until `now` in which a call of the batch waited for the end of an outage."""
        with self._lock:
            return self._before + (now - self._since if self._waiting else 0.0)

    def check(self) -> None:
        """Raise `BatchAborted` if it is over."""
        if self.cancelled:
            raise BatchAborted(f"the batch {self.name!r} is over") from self.reason


@dataclass(frozen=True, slots=True)
class Priority:
    """The priority of LM calls.

    Attributes:
        kind: ``"serving"``: somebody waits; admitted first, fails fast. ``"batch"``: holds at most a share of an
            endpoint, and waits in an outage.
        batch: Of ``"batch"``: the batch that its calls belong to.
    """

    kind: PriorityClass
    batch: Batch | None


SERVING: Final = Priority("serving", None)


def current_priority() -> Priority:
    """The priority around the caller; serving where none was set."""
    found = read_setting(PRIORITY)
    return found if isinstance(found, Priority) else SERVING


@contextlib.contextmanager
def priority(
    kind: PriorityClass, *, run: str | None = None, outage_timeout: float = OUTAGE_TIMEOUT
) -> Iterator[Batch | None]:
    """Set the priority of the LM calls within.

    ::

        with priority("batch", run="nightly"):
            ...

    A batch within another one is a part of it. For DSPy's own evaluations and optimizers use `batch_run`, which also
    turns an abort into an error.

    Args:
        kind: ``"serving"`` or ``"batch"``.
        run: Of a batch: its name, under which its calls are also counted, as by `labels`.
        outage_timeout: Of a batch: seconds for which a call may wait while no endpoint answers, before the whole batch
            is aborted; >= 0, inf for ever.

    Yields:
        The batch; None for serving.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """
    kinds = get_args(PriorityClass)
    check("priority", "kind", kind, kind in kinds, f"give one of {', '.join(map(repr, kinds))}")
    batch = None if kind == "serving" else current_priority().batch or Batch(run or "", outage_timeout)
    with labels(run=run), setting(PRIORITY, Priority(kind, batch)):
        yield batch
