"""`Latch`: ends every LM call that is made on behalf of a caller who has gone, for good.

Synchronous modules run in threads, and a thread cannot be cancelled. Whoever runs one for a caller gives it a latch, in
DSPy's own settings, which reach every thread that DSPy starts. Once that is aborted, the pool's engine fails the call
that is pending in those threads and each later one, before anything is sent, so that they soon come to their end.

Made by programs, asked by the engine. Any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from dspy.dsp.utils.settings import dotdict, thread_local_overrides

__all__ = ["CallAbandoned", "Latch", "abandonable", "current_latch"]

LATCH: Final = "promptside_latch"
"""The key of DSPy's settings under which it is found."""


class CallAbandoned(BaseException):
    """Nobody waits for this call any more. No `Exception`: the code between may not take it for a failed answer."""


class Latch:
    """Aborted at most once, for good: by whoever knows that the caller has gone. Base of `batch.Run`.

    Attributes:
        reason: The error that it was aborted for, if for one.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self._over = False
        self._lock = threading.Lock()
        self._wake: set[Callable[[], object]] = set()

    @property
    def over(self) -> bool:
        """Whether it was aborted."""
        return self._over

    def abort(self, reason: BaseException | None = None) -> None:
        """Fail the calls that are pending under it, and every later one. The first reason counts."""
        with self._lock:
            if self._over:
                return
            self.reason = reason
            self._over = True
            wake, self._wake = self._wake, set()
        for waken in wake:
            waken()

    def check(self) -> None:
        """Raise `CallAbandoned` if it was aborted."""
        if self._over:
            raise CallAbandoned("the caller of the program has gone")

    @contextlib.contextmanager
    def woken(self, waken: Callable[[], object]) -> Iterator[None]:
        """Within, `waken` is called when it is aborted, in the thread that does it; at once if it was."""
        with self._lock:
            over = self._over
            if not over:
                self._wake.add(waken)
        if over:
            waken()
        try:
            yield
        finally:
            with self._lock:
                self._wake.discard(waken)


def current_latch() -> Latch | None:
    """The innermost one around the caller."""
    found = thread_local_overrides.get().get(LATCH)
    return found if isinstance(found, Latch) else None


@contextlib.contextmanager
def abandonable(latch: Latch) -> Iterator[None]:
    """Within, LM calls are made under `latch`; an outer one aborts it too."""
    overrides = thread_local_overrides.get()
    outer = current_latch()
    token = thread_local_overrides.set(dotdict({**overrides, LATCH: latch}))
    try:
        with contextlib.nullcontext() if outer is None else outer.woken(latch.abort):
            yield
    finally:
        thread_local_overrides.reset(token)
