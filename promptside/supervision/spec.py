"""Records of a supervisor's children, for `which_children` and `count_children`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from promptside.actors import ActorRef, Restart

__all__ = ["ChildCounts", "ChildInfo"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """A child, as `which_children` returns it.

    Attributes:
        id: As in its spec; of a dynamic child with a number where that id was taken.
        ref: Its reference, the same across restarts.
        restart: As in its spec.
        state: State of its life, such as ``"running"``; ``"restarting"`` while it waits for its next start, and
            ``"stopped"`` when it has ended and is kept for `restart_child`.
        restarts: How often it was restarted.
    """

    id: str
    ref: ActorRef[Any]
    restart: Restart
    state: str
    restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCounts:
    """How many children a supervisor has (Erlang/OTP `supervisor:count_children`).

    Attributes:
        specs: Children, running or not.
        active: Of these, how many run.
        supervisors: Of the specs, how many are supervisors themselves.
        workers: The others.
    """

    specs: int
    active: int
    supervisors: int
    workers: int
