"""The envelope: one message on its way, and the message that is being handled now.

Made by `ref` and by timers, run by `runner`. `CURRENT` is how an ask knows on whose behalf it is made: it inherits
the smaller deadline, and the chain of `sender` links is what `cycles` walks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol

from promptside.callables import name_of

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = [
    "ANSWERED",
    "CURRENT",
    "Ask",
    "DistantReply",
    "Envelope",
    "Handler",
    "Reply",
    "make_envelope",
    "receive_posted",
    "receive_sent",
]

Handler = Callable[..., Coroutine[Any, Any, Any]]


class Reply(Protocol):
    """Where the one outcome of an ask goes: an `asyncio.Future`, or its stand-in for another event loop."""

    def done(self) -> bool:
        """Whether it has its outcome, or the asker has gone."""
        ...

    def set_result(self, result: Any, /) -> None:
        """The outcome is a result."""

    def set_exception(self, exception: Any, /) -> None:
        """The outcome is an error."""


class DistantReply:
    """The reply of an ask from another loop, as the actor's loop sees it: answered at most once, never awaited."""

    __slots__ = ("_answered", "_loop", "_reply")

    def __init__(self, loop: asyncio.AbstractEventLoop, reply: asyncio.Future[Any]) -> None:
        self._loop = loop
        self._reply = reply
        self._answered = False

    def done(self) -> bool:
        """Whether it has its outcome, or the asker has gone."""
        return self._answered or self._reply.done()

    def set_result(self, result: Any) -> None:
        """The outcome is a result."""
        self._deliver(asyncio.Future.set_result, result)

    def set_exception(self, exception: Any) -> None:
        """The outcome is an error."""
        self._deliver(asyncio.Future.set_exception, exception)

    def _deliver(self, how: Callable[[asyncio.Future[Any], Any], None], outcome: Any) -> None:
        self._answered = True

        def deliver() -> None:
            if not self._reply.done():
                how(self._reply, outcome)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            pass  # the asker's loop is closed, and with it the asker


class _Answered:
    """The reply of a message that is over, which keeps neither the answer nor the asker."""

    __slots__ = ()

    def done(self) -> bool:
        return True

    def set_result(self, result: Any, /) -> None:
        """Nobody waits."""

    def set_exception(self, exception: Any, /) -> None:
        """Nobody waits."""


ANSWERED: Final = _Answered()


class Ask:
    """The part of an envelope that only an ask has: where its outcome goes, and until when.

    Attributes:
        reply: Where the outcome goes.
        deadline: Loop time of the actor after which the message is not worth running.
        timeout: Seconds that the asker gave, or that its own deadline left; for the error's message.
        sender: The envelope in whose handling this one was sent, if any.
        waits: Asks that this message's handling waits for now; None until the first.
        cancelled: Whether its handler was cancelled.
        queued: Whether it was put into the mailbox, and nobody has noted since that its asker has gone.
        begun: With `max_concurrency` > 1, whether its handler has made its first step, which follows that of its task.
    """

    __slots__ = ("begun", "cancelled", "deadline", "queued", "reply", "sender", "timeout", "waits")

    def __init__(
        self,
        reply: Reply,
        deadline: float = math.inf,
        timeout: float = math.inf,
        sender: Envelope | None = None,
    ) -> None:
        self.reply = reply
        self.deadline = deadline
        self.timeout = timeout
        self.sender = sender
        self.waits: set[Envelope] | None = None
        self.cancelled = False
        self.queued = False
        self.begun = False


class Envelope:
    """A message: a handler, its arguments, its context, and where the answer goes.

    Made by `make_envelope`, and by hand where every 0.1 us counts: an `__init__` would double what an envelope costs.

    Attributes:
        cell: The actor it is for.
        handler: Called with the actor's instance, `args` and `kwargs`.
        kwargs: None for no keywords: a queue of 100,000 empty dicts would be as long for the garbage collector.
        context: A copy of the sender's contextvars; every step of the handler runs in it. Deleted afterwards, because
            it holds the envelope (by `CURRENT`), and each message would be a cycle for the garbage collector.
        ask: The asker's side; None for a tell.
    """

    __slots__ = ("args", "ask", "cell", "context", "handler", "kwargs")

    cell: Cell
    handler: Handler
    args: tuple[Any, ...]
    kwargs: dict[str, Any] | None
    context: Context
    ask: Ask | None

    @property
    def method(self) -> str:
        """Name of the method that handles it."""
        return name_of(self.handler)

    @property
    def begun(self) -> bool:
        """Whether its handler has begun, and not ended: `started` in the errors of an ask."""
        return self.running and (self.cell.active is None or self.ask is None or self.ask.begun)

    @property
    def running(self) -> bool:
        """Whether it has left the mailbox, and its handler has not ended."""
        cell = self.cell
        return cell.current is self or (cell.active is not None and self in cell.active)

    @property
    def over(self) -> bool:
        """Whether its handling has ended; its context is deleted then."""
        return not hasattr(self, "context")

    @property
    def waits(self) -> set[Envelope]:
        """The asks that its handling waits for."""
        if self.ask is None:
            # Messages wait only behind the tell that the actor handles now, so one set in the cell is enough.
            if self.cell.waits is None:
                self.cell.waits = set()
            return self.cell.waits
        if self.ask.waits is None:
            self.ask.waits = set()
        return self.ask.waits


def make_envelope(
    cell: Cell, handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any], context: Context, ask: Ask | None
) -> Envelope:
    """An envelope with these fields."""
    envelope = Envelope()
    envelope.cell = cell
    envelope.handler = handler
    envelope.args = args
    envelope.kwargs = kwargs or None
    envelope.context = context
    envelope.ask = ask
    return envelope


async def receive_sent(actor: Any, message: object) -> None:
    """The handler of a plain message that was sent with `send_message`."""
    await actor.receive(message)


async def receive_posted(actor: Any, message: object) -> None:
    """The handler of a plain message of the framework; marks it in the mailbox."""
    await actor.receive(message)


receive_sent.__name__ = receive_posted.__name__ = "receive"  # for dead letters

CURRENT: ContextVar[Envelope | None] = ContextVar("promptside_current_message", default=None)
"""The message being handled in this context: by its handler, or by a task or thread that the handler started."""
