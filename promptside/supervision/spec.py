"""`ChildSpec`: how a supervisor starts, restarts and stops one child."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from promptside.actors import Actor, ActorRef, Node
from promptside.errors import InvalidChildSpec

__all__ = ["ChildInfo", "ChildSpec", "Restart"]

Restart = Literal["permanent", "transient", "temporary"]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What a supervisor knows about a child (Erlang/OTP `supervisor:child_spec()`).

    Args:
        id: Unique among the supervisor's children; the last part of the child's path.
        start: Called at each start; returns a new actor: a class, or ``functools.partial(Worker, 3)``.
        restart: ``"permanent"`` is always restarted, ``"transient"`` after a failure only, ``"temporary"`` never.
        shutdown: Seconds that an ordered stop may take before the child is killed; 0 kills at once, `math.inf`
            waits for ever; None takes the actor class's own.
        name: A unique name in the system's registry, kept across restarts.
        node: Where the child runs; the supervisor's node by default.

    Raises:
        InvalidChildSpec: A field is not valid; the message names it.
    """

    id: str
    start: Callable[[], Actor]
    restart: Restart = "permanent"
    shutdown: float | None = None
    name: str | None = None
    node: Node | None = None

    def __post_init__(self) -> None:
        def check(field: str, valid: bool, remedy: str) -> None:
            if not valid:
                raise InvalidChildSpec(f"ChildSpec({self.id!r}): {field}={getattr(self, field)!r}: {remedy}")

        check(
            "id", isinstance(self.id, str) and self.id != "" and "/" not in self.id, "give a non-empty text without /"
        )
        check("start", callable(self.start), "give an Actor class, or functools.partial(Class, ...)")
        check("start", not isinstance(self.start, Actor), "give the class, not an actor that was made already")
        check("restart", self.restart in get_args(Restart), f"use one of {', '.join(get_args(Restart))}")
        valid = self.shutdown is None or (isinstance(self.shutdown, int | float) and self.shutdown >= 0)
        check("shutdown", valid and not (self.shutdown is not None and math.isnan(self.shutdown)), "give seconds >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildInfo:
    """A child as `Supervisor.which_children` tells it.

    Attributes:
        id: As in its spec.
        ref: Its reference, the same across restarts.
        restart: As in its spec.
        state: State of its life, such as ``"running"``.
        restarts: How often it was restarted.
    """

    id: str
    ref: ActorRef[Any]
    restart: Restart
    state: str
    restarts: int
