"""Timers: messages that an actor sends to itself later, or again and again; they end with their incarnation.

Made by `Actor.tell_after` and `Actor.tell_every`. They use the event loop's clock.
"""

from __future__ import annotations

import asyncio
import math
from contextvars import Context
from typing import Any

from promptside.actors.cell import Cell
from promptside.actors.envelope import Envelope, Handler, make_envelope
from promptside.checks import is_number
from promptside.texts import repr_of

__all__ = ["Timer"]


class Timer:
    """A timer of an actor.

    A repeated one keeps its rhythm: ticks are multiples of the interval after the start, and a tick that comes while
    the last one is still queued or handled is skipped and counted, so that its own clock does not flood a slow actor.

    Attributes:
        skipped: Ticks that were skipped.
    """

    __slots__ = (
        "_args",
        "_cell",
        "_context",
        "_handle",
        "_handler",
        "_interval",
        "_kwargs",
        "_last",
        "_next",
        "skipped",
    )

    def __init__(
        self,
        cell: Cell,
        delay: float,
        interval: float | None,
        handler: Handler,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
    ) -> None:
        seconds = delay if interval is None else interval
        if not is_number(seconds) or not (seconds >= 0 if interval is None else seconds > 0):
            raise ValueError(f"a timer of {repr_of(seconds)} seconds: give seconds >= 0, and > 0 to repeat")
        if not cell.here():
            raise RuntimeError(
                f"a timer of {cell.path!r} is set in a thread or on another event loop; set it in a handler "
                "of the actor, which the thread can `tell`"
            )
        self._cell = cell
        self._interval = interval
        self._handler = handler
        self._args = args
        self._kwargs = kwargs
        self._context = context
        self._last: Envelope | None = None
        self.skipped = 0
        self._next = cell.node.loop.time() + delay
        if cell.timers is None:
            cell.timers = set()
        cell.timers.add(self)
        self._handle: asyncio.TimerHandle | None = cell.node.loop.call_at(self._next, self._tick)

    def cancel(self) -> None:
        """Send nothing any more; a message that is queued already is handled. May be repeated."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if self._cell.timers is not None:
            self._cell.timers.discard(self)

    def _tick(self) -> None:
        cell, last = self._cell, self._last
        if last is not None and not last.over:
            self.skipped += 1
        else:
            self._last = make_envelope(cell, self._handler, self._args, self._kwargs, self._context.copy(), None)
            cell.put_own(self._last)
        if self._interval is None:
            self.cancel()
            return
        now = cell.node.loop.time()
        missed = (now - self._next) // self._interval
        late = int(missed) if math.isfinite(missed) else 0  # of an interval that the clock cannot tell from 0
        self.skipped += late
        self._next += (late + 1) * self._interval
        self._handle = cell.node.loop.call_at(self._next, self._tick)
