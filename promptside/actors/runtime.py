"""The runtime of a system: what its cells share, from their names to what is left to be ended with the system.

Made by `ActorSystem`; cells know it by the protocol `cell.Runtime`. Nothing in it is for users.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from promptside.actors import runner
from promptside.actors.cell import Cell
from promptside.actors.node import Node
from promptside.actors.options import is_actor
from promptside.actors.protocols import Runner
from promptside.actors.ref import ActorRef
from promptside.actors.registry import Registry
from promptside.actors.state import State
from promptside.callables import name_of
from promptside.errors import MaxRestartsExceeded, SupervisorCrashed
from promptside.texts import is_error, is_word, repr_of

if TYPE_CHECKING:
    from promptside.actors.system import ActorSystem

__all__ = ["SystemRuntime"]


class SystemRuntime:
    """The inside of an `ActorSystem`.

    Attributes:
        system: The system.
        runner: How messages are handled.
        closed: Whether everything in the system has ended.
        registry: Names and groups.
        children: The cells at the top of the tree, in the order of their start.
        counts: Events of actors so far, by type.
        nodes: Nodes that run, apart from the home node.
        on_escalation: Called when a supervisor at the top of the tree has ended by itself: with the error that says so,
            or with None when it has shut down in order.
        abandoned_tasks: Killed handlers that did not end, each with the path of its actor.
    """

    def __init__(self, system: ActorSystem) -> None:
        self.system = system
        self.runner: Runner = runner
        self.closed = False
        self.registry = Registry()
        self.children: dict[str, Cell] = {}
        self.counts: dict[str, int] = dict.fromkeys(
            ("actor.started", "actor.stopped", "actor.crashed", "message.dead"), 0
        )
        self.nodes: list[Node] = []
        self.abandoned_tasks: dict[asyncio.Task[None], str] = {}
        self.on_escalation: Callable[[Exception | None], object] | None = None
        self._counting = threading.RLock()  # reentrant, because a finalizer may count while its thread does
        self._background: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    def add_cell(
        self,
        factory: Callable[[], Any],
        *,
        parent: Cell | None,
        id: str | None = None,
        name: str | None = None,
        node: Node | None = None,
        supervised: bool = False,
        shutdown: float | None = None,
    ) -> Cell:
        """A new cell in the tree, not yet launched; raises `NameTaken`."""
        if not callable(factory) or is_actor(factory):
            raise TypeError(
                f"cannot spawn {repr_of(factory)}: give an Actor class, or a callable that returns a new actor"
            )
        if parent is not None and parent.state in (State.KILLED, State.STOPPED):
            raise parent.stopped(parent.reason, started=False)
        home = self.system._check_running()
        if parent is None:
            siblings = self.children
        else:
            siblings = parent.children = parent.children if parent.children is not None else {}
        wanted = own_id = id or name or f"{name_of(factory).lower()}-{next(self._numbers)}"
        while own_id in siblings:
            own_id = f"{wanted}-{next(self._numbers)}"
        node = node or (parent.node if parent is not None else home)
        cell = Cell(self, node, parent, own_id, factory, name=name, supervised=supervised, shutdown=shutdown)
        self.claim_name(cell)
        siblings[own_id] = cell
        return cell

    def remove(self, cell: Cell) -> None:
        """Take a cell out of the tree and the registry; it is not restarted any more. Any thread."""
        cell.supervised = False
        cell.restart_at = None
        self.registry.release(cell)
        siblings = self.children if cell.parent is None else cell.parent.children
        if siblings is not None and siblings.get(cell.id) is cell:
            del siblings[cell.id]

    def claim_name(self, cell: Cell) -> None:
        """Give a cell its name, if it has one; raises `NameTaken`. Any thread."""
        if cell.name is not None:
            self.registry.claim(cell.name, cell)

    def release_name(self, cell: Cell) -> None:
        """Free the name of a cell, and take the cell out of its groups. Any thread."""
        self.registry.release(cell)

    def make_ref(self, cell: Cell) -> ActorRef[Any]:
        """The reference to a cell."""
        return ActorRef(cell)

    def dead_letter(self, cell: Cell, method: str, reason: str) -> None:
        """Count and publish a message that will not be handled. Any thread."""
        self.note("message.dead", cell, {"method": method, "reason": reason})

    def note(self, type: str, cell: Cell, data: dict[str, Any], error: BaseException | None = None) -> None:
        """Count and publish an event of an actor, and of an error where it is of one. Any thread."""
        with self._counting:
            self.counts[type] += 1
        self.system.events.publish(type, cell.path, data, incarnation=cell.incarnation, error=error)

    def background(self, cell: Cell, work: Coroutine[Any, Any, None]) -> None:
        """Run a step of a cell's ending to its end; called on the cell's loop."""
        task = cell.node.loop.create_task(work, name=f"{cell.path} ending")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def escalate(self, cell: Cell, reason: object) -> None:
        """An actor has ended by itself; if it is a supervisor at the top, the application is left to decide."""
        if cell.parent is not None or not cell.actor_class._supervises:
            return
        failure: Any = None
        if issubclass(type(reason), MaxRestartsExceeded):
            failure = reason
        elif not is_word(reason, "shutdown"):
            failure = SupervisorCrashed(cell.path, reason)
            failure.__cause__ = reason if is_error(reason) else None
        if self.system.failure is None and is_error(reason):  # a kill was the application's own wish
            self.system.failure = failure
        if self.on_escalation is not None:
            self.on_escalation(failure)

    def abandoned(self, path: str, tasks: tuple[asyncio.Task[None], ...]) -> None:
        """Remember killed handlers that did not end, for the closing of the system."""
        for task in tasks:
            self.abandoned_tasks[task] = path
            task.add_done_callback(lambda task: self.abandoned_tasks.pop(task, None))

    async def stop_node(self, node: Node) -> None:
        """End a node on which nothing lives any more, and join its thread. On the loop that started it."""
        await node.stop()
        if node in self.nodes:  # not when the system closes meanwhile
            self.nodes.remove(node)
