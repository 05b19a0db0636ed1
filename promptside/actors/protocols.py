"""What a cell wants of the modules above it, as protocols; and its links.

A parameter `cell` is a `Cell`, which is above, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

from promptside.actors.node import Node

__all__ = ["Cancellable", "Links", "Runner", "Runtime", "Watch"]


class Runner(Protocol):
    """How messages are handled: the module `runner`, which stands above this one."""

    def run(self, cell: Any, /) -> Coroutine[Any, Any, None]:
        """The task of a cell that handles one message at a time."""
        ...

    def dispatch(self, cell: Any, /) -> None:
        """With `max_concurrency` > 1: start what may start now."""

    def check(self, cell: Any, /) -> None:
        """Look at the cell's state, which has changed."""


class Runtime(Protocol):
    """What a cell wants of its system. From any thread, unless it says otherwise.

    Attributes:
        system: The `ActorSystem`.
        closed: Whether the system has ended.
        runner: How messages are handled.
    """

    system: Any
    closed: bool
    runner: Runner

    def note(self, type: str, cell: Any, data: dict[str, Any], error: BaseException | None = None) -> None:
        """Count and publish an event of an actor, and of an error where it is of one."""

    def dead_letter(self, cell: Any, method: str, reason: str) -> None:
        """Count and publish a message that will not be handled."""

    def background(self, cell: Any, work: Coroutine[Any, Any, None]) -> None:
        """Run a step of the cell's ending to its end; called on the cell's loop."""

    def escalate(self, cell: Any, reason: object) -> None:
        """An actor has ended by itself: an error, a kill, or ``"shutdown"`` of a supervisor."""

    def abandoned(self, path: str, tasks: tuple[asyncio.Task[None], ...]) -> None:
        """Remember killed handlers that did not end, for the closing of the system."""

    def make_ref(self, cell: Any) -> Any:
        """The reference to a cell."""
        ...

    def claim_name(self, cell: Any) -> None:
        """Give the cell its name; raises `NameTaken`."""

    def release_name(self, cell: Any) -> None:
        """Free the cell's name, and take the cell out of its groups."""

    def remove(self, cell: Any) -> None:
        """Take the cell out of the tree and the registry."""

    async def stop_node(self, node: Node) -> None:
        """End a node; called on the loop that started it."""


class Cancellable(Protocol):
    """A timer, a monitor or what handles a message."""

    def cancel(self) -> object:
        """Take it back, or end it."""


class Watch(Cancellable, Protocol):
    """A monitor, as the cell that it watches knows it."""

    def report(self, down: Any, /) -> None:
        """Send the one `Down`."""


class Links:
    """The links and monitors of one incarnation; made by `links`.

    Attributes:
        monitors: Set by others on this cell.
        watching: Monitors that this cell has set on others.
        linked: Cells that it is linked to.
    """

    __slots__ = ("linked", "monitors", "watching")

    def __init__(self) -> None:
        self.monitors: dict[Watch, None] = {}
        self.watching: dict[Cancellable, None] = {}
        self.linked: dict[Any, None] = {}
