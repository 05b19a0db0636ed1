"""`ChildSpec`: how a supervisor starts, restarts and stops one child.

Made by users, and by `Actor.child_spec`; read by supervisors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from promptside.actors.node import Node
from promptside.actors.options import is_actor
from promptside.backoff import Backoff
from promptside.checks import is_name, is_number
from promptside.errors import InvalidChildSpec
from promptside.texts import is_word, repr_of

if TYPE_CHECKING:
    from promptside.actors.actor import Actor

__all__ = ["ChildSpec", "Restart"]

Restart = Literal["permanent", "transient", "temporary"]


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """The specification of a supervised child (Erlang/OTP `supervisor:child_spec()`).

    Args:
        id: Unique among the supervisor's children; the last part of the child's path.
        start: Called at each start; returns a new actor: a class, or ``functools.partial(Worker, 3)``.
        restart: ``"permanent"`` is always restarted, ``"transient"`` after a failure only, ``"temporary"`` never.
        shutdown: Seconds that an ordered stop may take before the child is killed; 0 kills at once, `math.inf`
            waits for ever; None takes the actor class's own.
        name: A unique name in the system's registry, kept across restarts.
        node: Where the child runs: a node, or the name of one that is started for the child and ends with it; the
            supervisor's node by default.
        significant: Whether its end, without a restart, counts for the supervisor's `auto_shutdown`; not for a
            permanent child, which has no such end.
        backoff: How long to wait before each restart; None restarts at once, as OTP does. Until then, asks to the child
            fail at once with `retry_after`.

    Raises:
        InvalidChildSpec: A field is not valid; the message names it.
    """

    id: str
    start: Callable[[], Actor]
    restart: Restart = "permanent"
    shutdown: float | None = None
    name: str | None = None
    node: Node | str | None = None
    significant: bool = False
    backoff: Backoff | None = None

    def __post_init__(self) -> None:
        def check(field: str, valid: bool, remedy: str) -> None:
            if not valid:
                raise InvalidChildSpec(
                    f"ChildSpec({repr_of(self.id)}): {field}={repr_of(getattr(self, field))}: {remedy}"
                )

        text = "give a non-empty text without /"
        check("id", is_name(self.id), text)
        check("start", callable(self.start), "give an Actor class, or functools.partial(Class, ...)")
        check("start", not is_actor(self.start), "give the class, not an actor that was made already")
        check("restart", is_word(self.restart, *get_args(Restart)), f"use one of {', '.join(get_args(Restart))}")
        valid = self.shutdown is None or (is_number(self.shutdown) and self.shutdown >= 0)
        check("shutdown", valid, "give seconds >= 0")
        check("name", self.name is None or is_name(self.name), text)
        check(
            "node",
            self.node is None or isinstance(self.node, Node) or is_name(self.node),
            f"give a Node, or {text[5:]}",
        )
        check("significant", isinstance(self.significant, bool), "give True or False")
        remedy = "a permanent child never ends for good; make it transient or temporary"
        check("significant", not (self.significant and self.restart == "permanent"), remedy)
        check("backoff", self.backoff is None or isinstance(self.backoff, Backoff), "give a Backoff(...)")
