"""`ThreadRun`: a message that its sender handles itself, in the sender's thread, on behalf of an actor.

Entered by hosted modules, in threads that call synchronous ones. It is a message of the actor as any other: it takes a
slot, a stop waits for it, a kill cancels it. It needs no turn of the actor's event loop, which would cost ten times as
much as all else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

from promptside.actors.cell import Cell
from promptside.actors.cycles import running
from promptside.actors.envelope import CURRENT, Ask, Handler, make_envelope

__all__ = ["ThreadRun"]

COUNTING = threading.RLock()
"""Held to count a run: threads may end at the same time. Reentrant: a finalizer or a signal handler may come here."""


class ThreadRun:
    """One such message of an actor with `max_concurrency` > 1, and its own reply.

    The thread first enters it among the messages, and then looks at the actor's state. The loop first changes the
    state, and then looks at the messages. So, of a run and a stop that begin at the same time, one knows of the other.

    Args:
        cell: The actor.
        handler: The method that it stands for.
        on_cancel: Called when it is cancelled, on the actor's loop or in the thread that calls `cancel`.

    Attributes:
        error: What its asker is to be told, where the actor has ended it.
    """

    __slots__ = ("_active", "_cell", "_envelope", "_on_cancel", "_sender", "error")

    def __init__(self, cell: Cell, handler: Handler, on_cancel: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self._cell = cell
        self._on_cancel = on_cancel
        self._sender = running(CURRENT.get())
        ask = Ask(self, sender=self._sender)
        ask.begun = True
        self._envelope = make_envelope(cell, handler, (), {}, Context(), ask)
        self._active: dict[Any, Any] | None = None

    def enter(self) -> bool:
        """Begin, if the actor takes a message now. In the thread."""
        cell = self._cell
        active = cell.active
        if active is None or cell.node.trouble is not None:
            return False
        self._active = active
        active[self._envelope] = self
        if self._sender is not None:
            self._sender.waits.add(self._envelope)
        is_free = cell.open and not cell.needs_check and len(active) <= cell.options.max_concurrency
        if not is_free or cell.active is not active:
            self._leave()
        return self._active is not None

    def end(self) -> None:
        """It has been handled; it counts, unless it was cancelled. In the thread."""
        if self._active is not None:
            with COUNTING:
                self._cell.handled_in_threads += 1
            self._leave()

    def cancel(self) -> None:
        """End it for the actor; its thread learns of it by `on_cancel`. Any thread."""
        self._on_cancel()
        with suppress(RuntimeError):  # the loop is closed, and the actor has ended
            self._cell.node.loop.call_soon_threadsafe(self._leave)

    def done(self) -> bool:
        """Whether it needs no answer any more; this and what follows make it the reply of its ask."""
        return self.error is not None

    def set_result(self, result: Any) -> None:
        """Its result is what the thread has."""

    def set_exception(self, error: BaseException) -> None:
        """The actor has ended under it."""
        self.error = error

    def _leave(self) -> None:
        active, self._active = self._active, None
        if active is None or active.pop(self._envelope, None) is None:
            return
        if self._sender is not None:
            self._sender.waits.discard(self._envelope)
        cell = self._cell
        if cell.needs_check or cell.queue:  # the actor may have waited for it
            cell.node.call(self._go_on, active)

    def _go_on(self, active: dict[Any, Any]) -> None:
        if self._cell.active is active:
            self._cell.runtime.runner.check(self._cell)
