"""`CancelToken`: cancels every LM call that is made for a caller who has gone, for good.

Synchronous modules run in threads, and a thread cannot be cancelled. A program gives each such thread a token. Once the
token is cancelled, the pool's engine fails the pending call of the thread and each later one, before anything is sent.
The thread ends soon.

Made by programs, checked by the engine. Any thread.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from promptside.pools.context.settings import read_setting, setting

__all__ = ["CallCancelled", "CancelToken", "current_cancel_token", "with_cancel_token"]

CANCEL_TOKEN: Final = "promptside_cancel_token"  # noqa: S105 - the name of a key, no secret
"""The key of DSPy's settings under which it is found."""


class CallCancelled(BaseException):
    """The caller of this call has gone. Not an `Exception`: no code in between may take it for a failed answer."""


class CancelToken:
    """Cancelled at most once, for good. Base of `batch.Batch`.

    Attributes:
        reason: The error that it was cancelled for, if any.
    """

    def __init__(self) -> None:
        self.reason: BaseException | None = None
        self._cancelled = False
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here
        self._callbacks: set[Callable[[], object]] = set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled

    def cancel(self, reason: BaseException | None = None) -> None:
        """Fail the pending calls under it, and every later one. The first reason counts."""
        with self._lock:
            if self._cancelled:
                return
            self.reason = reason
            self._cancelled = True
            callbacks, self._callbacks = self._callbacks, set()
        for callback in callbacks:
            callback()

    def check(self) -> None:
        """Raise `CallCancelled` if it was cancelled."""
        if self._cancelled:
            raise CallCancelled("the caller of the program has gone")

    @contextlib.contextmanager
    def on_cancel(self, callback: Callable[[], object]) -> Iterator[None]:
        """Within, `callback` is called when it is cancelled, in the thread that cancels; at once if it was already."""
        with self._lock:
            cancelled = self._cancelled
            if not cancelled:
                self._callbacks.add(callback)
        if cancelled:
            callback()
        try:
            yield
        finally:
            with self._lock:
                self._callbacks.discard(callback)


def current_cancel_token() -> CancelToken | None:
    """The innermost one around the caller."""
    found = read_setting(CANCEL_TOKEN)
    return found if isinstance(found, CancelToken) else None


@contextlib.contextmanager
def with_cancel_token(token: CancelToken) -> Iterator[None]:
    """Within, LM calls are made under `token`. The token around it, if any, cancels it too."""
    outer = current_cancel_token()
    with (
        setting(CANCEL_TOKEN, token),
        contextlib.nullcontext() if outer is None else outer.on_cancel(token.cancel),
    ):
        yield
