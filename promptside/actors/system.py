"""`ActorSystem`: where actors live, and the guarantee that nothing of them outlives it.

Users enter it and spawn. It owns the event bus, the registry, the nodes and the top of the tree. It restarts
nothing: a supervisor is what restarts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar

from promptside.actors.actor import Actor
from promptside.actors.info import SystemStatistics
from promptside.actors.lifecycle import launch, remove, terminate
from promptside.actors.mailbox import queued
from promptside.actors.node import Node
from promptside.actors.ref import ActorRef
from promptside.actors.runtime import SystemRuntime
from promptside.actors.tree import TreeNode, last_child, view
from promptside.checks import check, check_name, check_seconds, check_text
from promptside.errors import MaxRestartsExceeded, SupervisorCrashed
from promptside.events import Content, EventBus
from promptside.texts import add_note, repr_of
from promptside.waiting import deliver_cancellation, finish

__all__ = ["ActorSystem", "Spawner"]

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")

ABANDONED_GRACE = 5.0
"""Seconds that closing waits for killed handlers which swallowed their cancellation, before it reports them."""

log = logging.getLogger("promptside.actors")


class ActorSystem:
    """The home of a tree of actors.

    ::

        async with ActorSystem() as system:
            counter = await system.with_options(name="counter").spawn(Counter, 10)
            total = await counter.ask(Counter.add, 5)

    On the way out every actor is stopped in reverse order of its start, then every node's thread is joined: no task,
    timer, thread or process outlives the block.

    Args:
        name: For the tree and the logs.
        content: Which prompts, answers, inputs and outputs its events may contain; none by default.

    Attributes:
        events: The event bus of everything that happens in the system.
        failure: Why the first supervisor at the top of the tree gave up or crashed, if one did; leaving the block
            raises it.
        defaults: Values of the rooms above for the whole system, by name, such as its default LM.

    Raises:
        TypeError: `content` is not a `Content`.
        ValueError: `name` is not a text, or is empty.
    """

    def __init__(self, name: str = "promptside", *, content: Content | None = None) -> None:
        check_text("ActorSystem", "name", name)
        self.name = name
        self.events = EventBus() if content is None else EventBus(content)
        self.failure: MaxRestartsExceeded | SupervisorCrashed | None = None
        self.defaults: dict[str, Any] = {}
        self._home: Node | None = None
        self._runtime = SystemRuntime(self)
        self._started_at = 0.0

    @property
    def closed(self) -> bool:
        """Whether the block has been left, and everything has ended."""
        return self._runtime.closed

    def __repr__(self) -> str:
        state = "not started" if self._home is None else "closed" if self.closed else "running"
        return f"<ActorSystem {self.name} {state}>"

    async def __aenter__(self) -> Self:
        if self._home is not None:
            raise RuntimeError(f"system {repr_of(self.name)} was entered before; make a new ActorSystem for each run")
        self._home = Node.here()
        self._started_at = self._home.loop.time()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (trouble := self.home.trouble) is not None:  # as in a fork, where all of it is a copy
            if error is not None:
                return
            raise RuntimeError(f"{self!r} cannot be closed: {trouble}")
        await finish(self._close())
        if error is None:
            await deliver_cancellation()
        if self.failure is not None:
            if error is None:
                raise self.failure
            add_note(error, f"meanwhile: {self.failure}")

    async def drain(self, within: float) -> None:
        """End every actor in good order: take no new work, and finish what was taken.

        From the last started actor at the top to the first, so that those in front finish while the pools they use
        still answer. One whose turn has come answers no new ask (`ActorStopped`, ``started=False``) and makes new
        tells dead letters; it handles what is queued, then its children do. The tree is empty afterwards. Where the
        drain is cancelled, the system's closing cuts it short.

        Args:
            within: Seconds for all of it, `math.inf` for as long as it takes. What still works then is killed, and what
                has not had its turn is stopped as when the system closes.

        Raises:
            RuntimeError: The system is not running.
            ValueError: `within` is not >= 0.
        """
        check_seconds("drain", "within", within, zero=True)
        await self._end_all(self._check_running().loop.time() + within)

    async def _end_all(self, drain_until: float | None = None) -> None:
        while (cell := last_child(self._runtime.children)) is not None:  # what is spawned meanwhile included
            await terminate(cell, "shutdown", drain_until=drain_until)
            await remove(cell)

    async def _close(self) -> None:
        await self._end_all()
        home = self.home
        runtime = self._runtime
        runtime.closed = True
        for task, path in tuple(runtime.abandoned_tasks.items()):
            if not task.done() and task.get_loop() is asyncio.get_running_loop():
                with suppress(TimeoutError):
                    await asyncio.wait_for(asyncio.wait({task}), ABANDONED_GRACE)
            if not task.done():
                log.error("a killed handler of %s ignores its cancellation and is still running", path)
        for node in reversed(runtime.nodes):
            await node.stop()
        await home.stop()
        await self.events.aclose()

    @property
    def home(self) -> Node:
        """The node of the application's own event loop.

        Raises:
            RuntimeError: The system is not entered.
        """
        if self._home is None or self.closed:
            raise RuntimeError("the system is not running; use it inside `async with ActorSystem() as system:`")
        return self._home

    def _check_running(self) -> Node:
        """The home node; raises `RuntimeError` where nothing would be done there, as in another process."""
        home = self.home
        if (trouble := home.trouble) is not None:
            raise RuntimeError(f"{self!r} takes nothing: {trouble}")
        return home

    async def start_node(self, name: str) -> Node:
        """An event loop in a thread of its own, for subtrees that a blocked application loop must not starve.

        In virtual time (`promptside.testing.run_virtual`) it is the home node: a thread lives in real time.

        Args:
            name: For the tree and the thread's name.

        Raises:
            RuntimeError: The system does not run here, or there can be no more threads.
            OSError: No event loop can be made, as where no file descriptor is left.
            ValueError: `name` is not a text, is empty or has a slash in it.
        """
        check_name("start_node", "name", name)
        home = self._check_running()
        if getattr(home.loop, "holds_nodes", False):
            return home
        node = await Node.start(name)
        self._runtime.nodes.append(node)
        return node

    def has_node(self, node: Node) -> bool:
        """Whether it is the home node, or another one of this system that runs."""
        return node is self._home or node in self._runtime.nodes

    async def stop_node(self, node: Node) -> None:
        """End a node on which nothing lives any more, and join its thread. On the loop that started it.

        Args:
            node: As `start_node` returned it.

        Raises:
            ValueError: It is no node.
        """
        check("stop_node", "node", node, isinstance(node, Node), "give what `start_node` returned")
        if node is self._home:
            return
        await self._runtime.stop_node(node)

    def with_options(
        self, *, name: str | None = None, node: Node | None = None, parent: ActorRef[Any] | None = None
    ) -> Spawner:
        """How the next `spawn` spawns.

        Args:
            name: A unique name in the registry; also the last part of the path.
            node: Where it runs; the parent's node by default, or the home node.
            parent: Whose child it becomes; a child of the system by default.

        Raises:
            ValueError: `name` is not a text, is empty or has a slash in it; `node` is no node; `parent` is no actor of
                this system.
        """
        if name is not None:
            check_name("with_options", "name", name)
        check("with_options", "node", node, isinstance(node, Node | None), "give what `start_node` returned")
        if parent is not None:
            self._check_own("with_options", "parent", parent)
        return Spawner(self, name, node, parent)

    async def spawn(self, actor_class: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
        """Start an actor at the top of the tree.

        Args:
            actor_class: The class, or another callable that returns a new actor.
            *args: For the class.
            **kwargs: For the class.

        Returns:
            Its reference, once its `on_start` has returned.

        Raises:
            ActorStartError: `__init__` or `on_start` raised; the cause is chained.
            NameTaken: Another live actor holds the name.
        """
        return await Spawner(self, None, None, None).spawn(actor_class, *args, **kwargs)

    def whereis(self, name: str) -> ActorRef[Any]:
        """The live actor with this registered name; raises `NameNotFound`, or `ValueError` if it is no text."""
        check("whereis", "name", name, isinstance(name, str), "give the name of an actor")
        return self._runtime.registry.find(name).ref

    def join(self, group: str, ref: ActorRef[Any]) -> None:
        """Make an actor a member of a group; it leaves by itself when it has ended for good. Any thread.

        Args:
            group: Name of the group; made with its first member.
            ref: The actor.

        Raises:
            ActorStopped: It has ended for good.
            ValueError: `ref` is no actor of this system, or `group` is no name.
        """
        check_name("join", "group", group)
        self._check_own("join", "ref", ref)
        self._runtime.registry.join(group, ref._cell)

    def _check_own(self, owner: str, field: str, ref: object) -> None:
        own = isinstance(ref, ActorRef) and ref._cell.runtime is self._runtime
        check(owner, field, ref, own, "give the reference of an actor of this system")

    def leave(self, group: str, ref: ActorRef[Any]) -> None:
        """Undo `join`, and raise as it does for what is no group or actor. Any thread."""
        check_name("leave", "group", group)
        self._check_own("leave", "ref", ref)
        self._runtime.registry.leave(group, ref._cell)

    def members(self, group: str) -> tuple[ActorRef[Any], ...]:
        """The members of a group, in the order in which they joined; raises `ValueError` for no name. Any thread."""
        check_name("members", "group", group)
        return tuple(cell.ref for cell in self._runtime.registry.members(group))

    @property
    def dead_letters(self) -> int:
        """Messages that were dropped, expired or could not be delivered, so far."""
        return self._runtime.counts["message.dead"]

    def statistics(self) -> SystemStatistics:
        """Counts of the system so far, and of what waits now. Cost: O(actors). Any thread."""
        cells, counts = tuple(self._runtime.children.values()), self._runtime.counts
        actors = waiting = 0
        while cells:
            actors += len(cells)
            waiting += sum(map(queued, cells))
            cells = tuple(child for cell in cells for child in tuple((cell.children or {}).values()))
        return SystemStatistics(
            actors=actors,
            queued=waiting,
            started=counts["actor.started"],
            stopped=counts["actor.stopped"],
            crashed=counts["actor.crashed"],
            dead_letters=self.dead_letters,
        )

    def tree(self) -> TreeNode:
        """The tree of actors as it is now: data, and text by `str()`."""
        return TreeNode(
            name=self.name,
            kind="system",
            state="running",
            restarts=0,
            mailbox=0,
            uptime=0.0 if self._home is None else self._home.loop.time() - self._started_at,
            node="",
            children=tuple(view(cell) for cell in tuple(self._runtime.children.values())),
        )


class Spawner:
    """A spawn with options, made by `ActorSystem.with_options`."""

    __slots__ = ("_name", "_node", "_parent", "_system")

    def __init__(self, system: ActorSystem, name: str | None, node: Node | None, parent: ActorRef[Any] | None) -> None:
        self._system = system
        self._name = name
        self._node = node
        self._parent = parent

    async def spawn(self, actor_class: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
        """As `ActorSystem.spawn`, with these options."""
        factory: Callable[[], Actor] = partial(actor_class, *args, **kwargs) if args or kwargs else actor_class
        parent = None if self._parent is None else self._parent._cell
        runtime = self._system._runtime
        cell = runtime.add_cell(factory, parent=parent, name=self._name, node=self._node)
        try:
            await cell.node.run(launch(cell))
        except BaseException:
            runtime.remove(cell)
            raise
        return cell.ref
