"""The envelope: one message on its way, and the message that is being handled now.

Made by `ref`, run by `runner`. `CURRENT` is how an ask knows on whose behalf it is made: it inherits the smaller
deadline, and the chain of `sender` links is what cycle detection walks (`waits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["CURRENT", "Envelope", "Reply"]

Handler = Callable[..., Coroutine[Any, Any, Any]]


class Reply(Protocol):
    """Where the one outcome of an ask goes: an `asyncio.Future`, or its stand-in for another event loop."""

    def done(self) -> bool:
        """Whether it has its outcome, or nobody waits for one."""
        ...

    def set_result(self, result: Any, /) -> None:
        """The outcome is a result."""

    def set_exception(self, exception: Any, /) -> None:
        """The outcome is an error."""


class Envelope:
    """A message: what to call, with what, in which context, and whom to answer.

    Attributes:
        cell: The actor it is for.
        handler: The class's function; called with the instance, `args` and `kwargs`.
        context: A copy of the sender's contextvars; the handler's every step runs in it.
        reply: Where the outcome goes; None for a tell.
        deadline: Loop time after which it is not worth running; `math.inf` for a tell.
        timeout: Seconds that the asker gave, or that its own deadline left; for the error's message.
        sender: The envelope in whose handling this one was sent, if any.
        waits: Asks that this message's handling waits for now; None until the first.
        cancelled: Whether its handler was told to stop.
        finished: Whether its handling is over.
    """

    __slots__ = (
        "args",
        "cancelled",
        "cell",
        "context",
        "deadline",
        "finished",
        "handler",
        "kwargs",
        "reply",
        "sender",
        "timeout",
        "waits",
    )

    def __init__(
        self,
        cell: Cell,
        handler: Handler,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: Context,
        reply: Reply | None = None,
        deadline: float = math.inf,
        timeout: float = math.inf,
        sender: Envelope | None = None,
    ) -> None:
        self.cell = cell
        self.handler = handler
        self.args = args
        self.kwargs = kwargs
        self.context = context
        self.reply = reply
        self.deadline = deadline
        self.timeout = timeout
        self.sender = sender
        self.waits: set[Envelope] | None = None
        self.cancelled = False
        self.finished = False

    @property
    def method(self) -> str:
        """Name of the method that handles it."""
        return getattr(self.handler, "__name__", repr(self.handler))


CURRENT: ContextVar[Envelope | None] = ContextVar("promptside_current_message", default=None)
"""The message being handled in this context: by its handler, or by a task or thread that the handler started."""
