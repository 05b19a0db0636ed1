"""The plain messages that actors receive about other actors, through `receive(message)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from promptside.actors.ref import ActorRef

__all__ = ["Down", "Exit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Down:
    """A monitored actor ended (Erlang/OTP 'DOWN'); sent once.

    Attributes:
        ref: The actor.
        reason: ``"normal"``, ``"shutdown"``, ``"killed"``, another word given to `stop`, or the exception;
            ``"noproc"`` when it did not run when the monitor was set.
        incarnation: Which incarnation ended; 0 with ``"noproc"``.
    """

    ref: ActorRef[Any]
    reason: object
    incarnation: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """A linked actor ended and this one traps exits; or, for a supervisor, a child ended (Erlang/OTP 'EXIT').

    Attributes:
        ref: The actor.
        reason: As in `Down`.
        incarnation: As in `Down`.
    """

    ref: ActorRef[Any]
    reason: object
    incarnation: int
