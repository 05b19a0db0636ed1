"""`Handle`: an object that users hold, whose actor is started, restarted and stopped underneath it.

Base of `TaskSupervisor`, of the handles of supervisors, and of those of the rooms above, such as `LMPool` and
`Program`. A handle is made before its actor, works with each incarnation, and stands in one place of a tree at a time.

Its actor takes the handle in its `__init__` (`claim`), and gives it what runs now at the end of `on_start` (`attach`).
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, suppress
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypedDict, TypeVar, get_args

from promptside.actors import Actor, ActorRef, ActorSystem, ChildSpec, Node, Restart, State, start_portal
from promptside.actors.spi import cell_of, request_end
from promptside.backoff import Backoff
from promptside.checks import check, check_name, check_seconds, is_name
from promptside.errors import ActorStopped, AlreadyRunning, AskCycleError, NotStarted
from promptside.supervision.base import BaseSupervisor
from promptside.supervision.top import COME_BACK, TopSupervisor
from promptside.waiting import finish

__all__ = ["Again", "Handle"]

L = TypeVar("L")


class Again(TypedDict, total=False):
    """Whether a handle's actor comes back; see `Handle.start`."""

    restart: Restart
    backoff: Backoff | None


class Handle(ABC, Generic[L]):
    """A handle that outlives its actor. `L` is what runs in each incarnation, as the subclass needs it.

    ::

        pool = await LMPool("openai/gpt-4o-mini").start(system)     # at the top of a system
        Supervisor.child_spec("app", [pool.child_spec(), ...])      # or in a supervision tree
        with LMPool("openai/gpt-4o-mini") as pool: ...              # or in a system of its own; `async with`, too

    Args:
        name: In the tree and the registry.

    Raises:
        ValueError: `name` is not valid.
    """

    shutdown: float | None = None
    """Of its `ChildSpec`: seconds that an ordered stop may take; None takes the actor class's own."""

    def __init__(self, name: str) -> None:
        check_name(type(self).__name__, "name", name)
        self.name = name
        self._own_name = name
        self._claimed: ActorRef[Any] | None = None  # the actor that was made last
        self._actor: ActorRef[Any] | None = None  # of the incarnation that attached last
        self._live: L | None = None
        self._called_off = False  # whether that start was stopped before its actor was made
        self._own_node: Node | None = None  # started by `start`, ended by `stop`
        self._top: ActorRef[TopSupervisor] | None = None  # restarts it at the top of a system
        self._starting: Future[None] | None = None  # done when the start that is under way has ended
        self._within: ExitStack | None = None  # the system of a `with`
        self._async_within: AsyncExitStack | None = None

    @abstractmethod
    def _make_actor(self) -> Actor:
        """A new actor for this handle; called at each start, where `self.ref` of an actor works."""

    def _default_node(self) -> str | None:
        """The name of a node of its own, on which it is started where the caller names none; None for none."""
        return None

    async def start(
        self,
        system: ActorSystem,
        *,
        name: str | None = None,
        node: Node | str | None = None,
        restart: Restart = "temporary",
        backoff: Backoff | None = None,
    ) -> Self:
        """Start it at the top of a system; it ends with the system, or with `stop`. It may be started again then.

        Args:
            system: The running system.
            name: Another name for this start.
            node: Where it runs: a node of this system, such as ``system.home``; or the name of one that is started for
                it and ends with it. The handle's default otherwise.
            restart: Whether it comes back when it has ended by itself, as in `ChildSpec`: with ``"permanent"`` also
                when it has given up, because parts of it failed too often.
            backoff: The wait before it comes back; by default 1 s, which grows to 60 s.

        Returns:
            The handle itself.

        Raises:
            AlreadyRunning: It runs already.
            NameTaken: Another live actor holds its name.
            ActorStartError: It did not start; the cause is chained.
            ValueError: An argument is not valid.
        """
        kind = type(self).__name__
        check(kind, "system", system, isinstance(system, ActorSystem), "give the ActorSystem that it shall run in")
        if name is not None:
            check_name(kind, "name", name)
        if node is not None:
            known = is_name(node) or (isinstance(node, Node) and system.has_node(node))
            check(kind, "node", node, known, "give a node of this system, or a non-empty text without /")
        check(kind, "restart", restart, restart in get_args(Restart), f"use one of {', '.join(get_args(Restart))}")
        comes_back = restart != "temporary"
        check(kind, "backoff", backoff, comes_back or backoff is None, "give it with restart='permanent'")
        self._check_free(None)
        if self._starting is not None:
            raise AlreadyRunning(kind, self.name, self.name)
        before, self.name = self.name, name or self._own_name
        starting: Future[None] = Future()
        self._starting = starting
        try:
            await self._stop_own_node(system)  # of an earlier start, whose actor has crashed
            self._top = None
            if comes_back:
                spec = self.child_spec(restart=restart, backoff=backoff or COME_BACK, node=node)
                self._top = await self._spawn_supervised(system, spec)
            else:
                self._own_node = await self._spawn(system, node or self._default_node())
        except BaseException:
            self.name = before
            raise
        finally:
            self._starting = None
            self._called_off = False  # it holds for this start alone, not for one by a supervisor
            starting.set_result(None)
        return self

    async def _spawn(self, system: ActorSystem, where: Node | str | None) -> Node | None:
        """Start the actor; returns the node that was started for it."""
        if not isinstance(where, str):
            await system.with_options(name=self.name, node=where).spawn(self._make_actor)
            return None
        node = await system.start_node(where)
        try:
            await system.with_options(name=self.name, node=node).spawn(self._make_actor)
        except BaseException:
            await system.stop_node(node)
            raise
        return node

    async def _spawn_supervised(self, system: ActorSystem, spec: ChildSpec) -> ActorRef[TopSupervisor]:
        top = await system.spawn(TopSupervisor)
        try:
            await top.ask(TopSupervisor.start_child, spec)
        except BaseException:
            await finish(top.stop())
            raise
        return top

    def child_spec(
        self,
        *,
        restart: Restart = "permanent",
        backoff: Backoff | None = None,
        node: Node | str | None = None,
        significant: bool = False,
    ) -> ChildSpec:
        """To have it started, and restarted, by a `Supervisor`. The handle works with each incarnation.

        Args:
            restart: As in `ChildSpec`, as for the following.
            backoff: See `ChildSpec`.
            node: See `ChildSpec`; the handle's default otherwise.
            significant: See `ChildSpec`.
        """
        return ChildSpec(
            self.name,
            self._make_actor,
            restart,
            shutdown=self.shutdown,
            name=self.name,
            node=self._default_node() if node is None else node,
            significant=significant,
            backoff=backoff,
        )

    async def stop(self, *, drain: float = 0.0) -> None:
        """Stop it, and wait for its end; a start that is under way is stopped, too. From any event loop.

        Under a supervisor, a permanent child is started again. Another one is not, nor is one that was started with
        ``restart=`` at the top: a restart that is due is called off.

        Args:
            drain: Seconds that work under way, and work that waits, has to finish before it is ended, `math.inf` for as
                long as it takes. 0 ends it at once, and cuts an earlier drain short.

        Raises:
            ValueError: `drain` is not >= 0.
        """
        check_seconds(f"{type(self).__name__}.stop", "drain", drain, zero=True)
        if self._starting is not None and not self.started:  # its actor is not made yet, and `claim` refuses it
            self._called_off = True
            await asyncio.shield(asyncio.wrap_future(self._starting))
        actor = self._top or self._claimed
        if actor is None:
            return
        cell = cell_of(actor)
        drain_until = cell.node.loop.time() + drain if drain else None
        cell.node.call(partial(request_end, cell, "shutdown", drain_until=drain_until))
        await actor.stop("shutdown")  # waits, but not where its own task is the caller
        if actor.retry_after is not None and cell.parent is not None and cell.parent.open:
            # The supervisor has ended, and with it the restart; or it waits for the caller, which it is starting.
            with suppress(ActorStopped, AskCycleError):
                await cell.parent.ref.ask(BaseSupervisor.cancel_restart, actor)
        await self._stop_own_node(actor.system)

    @property
    def ref(self) -> ActorRef[Any]:
        """Its actor; the same across restarts. Raises `NotStarted`."""
        if self._actor is None:
            raise NotStarted(type(self).__name__, self.name)
        return self._actor

    @property
    def running(self) -> bool:
        """Whether its actor runs now, and takes messages."""
        return self._actor is not None and self._actor.state is State.RUNNING

    @property
    def started(self) -> bool:
        """Whether it was started and has not ended; while it waits for a restart it is, though not `running`."""
        actor = self._claimed
        return actor is not None and (actor.state is not State.STOPPED or actor.retry_after is not None)

    @property
    def path(self) -> str:
        """Its place in the tree, the source of its events; its name until it is started."""
        return self.name if self._actor is None else self._actor.path

    def _running(self) -> L:
        """What runs now, or ran last; raises `NotStarted`."""
        if self._live is None:
            raise NotStarted(type(self).__name__, self.name)
        return self._live

    # -- for its actor -------------------------------------------------------------------------------------------

    def claim(self, actor: Actor) -> None:
        """Called in the `__init__` of its actor.

        Raises:
            AlreadyRunning: The handle has another actor.
            ActorStopped: `stop` was called meanwhile.
        """
        self._check_free(actor.ref)
        if self._called_off:
            raise ActorStopped(self.name, "stopped during its start", started=False, incarnation=0)
        self._claimed = actor.ref

    def attach(self, actor: Actor, live: L) -> None:
        """Called at the end of the `on_start` of its actor, in each incarnation, on its event loop."""
        self._actor, self._live = actor.ref, live

    async def _stop_own_node(self, system: ActorSystem) -> None:
        own = self._own_node
        if own is not None and own.thread_id != get_ident():  # what runs there cannot wait for its own end
            self._own_node = None
            await system.stop_node(own)

    def _check_free(self, actor: ActorRef[Any] | None) -> None:
        if self._claimed is not None and self._claimed != actor and self.started:
            raise AlreadyRunning(type(self).__name__, self.name, self._claimed.path)

    # -- a system of its own -------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start it in a system of its own, on an event loop in a thread of its own, until the block ends.

        In a notebook, too: the cell's event loop is blocked for as long as the start takes.
        """
        self._check_free(None)
        with ExitStack() as stack:
            system = stack.enter_context(start_portal(self.name)).system
            # Not `portal.call`, which refuses a thread that runs a loop: in a notebook every cell does.
            asyncio.run_coroutine_threadsafe(self.start(system), system.home.loop).result()
            self._within = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        within, self._within = self._within, None
        if within is None:
            raise RuntimeError(f"{self!r} was not entered by `with`")
        within.__exit__(kind, error, tb)

    async def __aenter__(self) -> Self:
        """Start it in a system of its own, on the running event loop, until the block ends."""
        self._check_free(None)
        async with AsyncExitStack() as stack:
            system = await stack.enter_async_context(ActorSystem(self.name))
            await self.start(system)
            self._async_within = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        within, self._async_within = self._async_within, None
        if within is None:
            raise RuntimeError(f"{self!r} was not entered by `async with`")
        await within.__aexit__(kind, error, tb)

    def __copy__(self) -> Self:
        return self  # a copy of a module that holds it holds the same one

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its process and cannot be pickled; make one in the other process")

    def __repr__(self) -> str:
        actor = self._claimed
        restarting = self.started and actor is not None and actor.state is State.STOPPED
        state = "not started" if actor is None else "restarting" if restarting else actor.state.value
        return f"<{type(self).__name__} {self.name} {state}>"
