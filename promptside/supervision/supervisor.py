"""`Supervisor`: children that are known by their ids, started in order, restarted by a strategy, stopped in reverse.

Users give it `ChildSpec`s, and may add, stop and delete children while it runs. For children that come and go, see
`DynamicSupervisor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, get_args

from promptside.actors import ActorRef, ActorSystem, ChildSpec, Node, Restart
from promptside.actors.spi import cell_of, release_name
from promptside.backoff import Backoff
from promptside.errors import ChildNotFound, InvalidChildSpec, InvalidChildState
from promptside.supervision.base import BaseSupervisor, check_intensity
from promptside.supervision.child import Child, check_child
from promptside.supervision.strategy import AutoShutdown, Strategy
from promptside.supervision.supervisor_handle import BaseSupervisorHandle
from promptside.texts import is_word, repr_of

__all__ = ["Supervisor", "SupervisorHandle"]


class Supervisor(BaseSupervisor):
    """Starts its children in order and keeps them running (Erlang/OTP `supervisor`).

    When restarts are needed more often than the intensity allows, the supervisor itself ends with
    `MaxRestartsExceeded`, its other children are stopped, and its own supervisor decides; at the top of the tree, the
    end of the system raises it.

    A temporary child that has ended is forgotten. Another one that has ended and is not restarted keeps its place, and
    its references, until it is restarted with its group, by `restart_child`, or deleted.

    Args:
        children: Specs, in the order of their start; they are stopped in reverse.
        strategy: Who is stopped and started again when a child fails: ``"one_for_one"`` that child alone,
            ``"one_for_all"`` all of them, ``"rest_for_one"`` that child and those after it.
        auto_shutdown: Whether the supervisor ends, with reason ``"shutdown"``, when a significant child has ended and
            is not restarted: ``"never"``, with ``"any_significant"`` one, or with ``"all_significant"`` the last one.
        max_restarts: Restarts allowed within `max_seconds`, >= 0; a group that restarts together counts once.
        max_seconds: Length of the window in seconds, > 0.

    Raises:
        InvalidChildSpec: An id stands twice, or a setting is not valid.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec] = (),
        *,
        strategy: Strategy = "one_for_one",
        auto_shutdown: AutoShutdown = "never",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        _check_choice("strategy", strategy, get_args(Strategy))
        _check_choice("auto_shutdown", auto_shutdown, get_args(AutoShutdown))
        check_intensity(max_restarts, max_seconds)
        super().__init__(max_restarts, max_seconds)
        self._strategy = strategy
        self._auto_shutdown = auto_shutdown
        if not isinstance(children, Sequence) or isinstance(children, str):
            raise InvalidChildSpec(f"children={repr_of(children)}: give a list of ChildSpecs")
        self._first = tuple(children)
        seen: set[str] = set()
        for spec in self._first:
            self._check(spec)
            if spec.id in seen:
                raise InvalidChildSpec(f"children: the id {spec.id!r} stands twice; give each child its own")
            seen.add(spec.id)

    @classmethod
    async def start(
        cls,
        system: ActorSystem,
        children: Sequence[ChildSpec] = (),
        *,
        name: str = "supervisor",
        node: Node | str | None = None,
        restart: Restart = "temporary",
        backoff: Backoff | None = None,
        **settings: Any,
    ) -> SupervisorHandle:
        """Start one at the top of a system: ``desk = await Supervisor.start(system, [Clerk.child_spec("clerk")])``.

        Args:
            system: The running system.
            children: As for the class.
            name: In the tree and the registry.
            node: As in `ChildSpec`.
            restart: See `Handle.start`.
            backoff: See `Handle.start`.
            **settings: As for the class: `strategy`, `max_restarts`...

        Raises:
            InvalidChildSpec: A child or a setting is not valid.
            ActorStartError: A child did not start; the cause is chained.
            NameTaken: Another live actor holds the name.
        """
        return await SupervisorHandle(name, partial(cls, children, **settings)).start(
            system, node=node, restart=restart, backoff=backoff
        )

    async def on_start(self) -> None:
        """Start the children, one after the other."""
        for spec in self._first:
            await self._add(spec)

    async def child(self, id: str) -> ActorRef[Any]:
        """Reference to the child with this id; stays good across its restarts.

        Raises:
            ChildNotFound: No such child.
        """
        return self._find(id).cell.ref

    async def start_child(self, spec: ChildSpec) -> ActorRef[Any]:
        """Add a child after the others, and start it.

        Args:
            spec: Of the child.

        Raises:
            InvalidChildSpec: It is not valid for this supervisor.
            InvalidChildState: A child has this id already.
            ActorStartError: It did not start, and is not added.
            NameTaken: Another live actor holds its name.
        """
        self._check(spec)
        if spec.id in self._children:
            stopped = "start it with restart_child, or delete it first"
            self._refuse(self._children[spec.id], stopped=stopped, running="give the new one another id")
        return (await self._add(spec)).cell.ref

    async def terminate_child(self, id: str) -> None:
        """Stop a child, if it runs, and wait for its end. A temporary child is forgotten, another one keeps its place.

        Raises:
            ChildNotFound: No such child.
        """
        child = self._find(id)
        given_up = child.phase == "restarting"
        await self._stop(child)
        if given_up:  # and with it the start of those that wait for it
            for each in self._children.values():
                if each.phase == "waiting":
                    each.set_phase("stopped")
                    await self._retire(each)

    async def restart_child(self, id: str) -> ActorRef[Any]:
        """Start a child that has ended, or was stopped.

        Returns:
            Its reference, the same as before.

        Raises:
            ChildNotFound: No such child.
            InvalidChildState: It runs, or is being restarted.
            ActorStartError: It did not start; it keeps its place.
            NameTaken: Another live actor holds its name.
        """
        child = self._find(id)
        self._refuse(child, running="stop it first with terminate_child")
        try:
            await self._start(child)
        except BaseException:
            await self._retire(child)
            raise
        return child.cell.ref

    async def delete_child(self, id: str) -> None:
        """Forget a child that has ended, or was stopped.

        Raises:
            ChildNotFound: No such child.
            InvalidChildState: It runs, or is being restarted.
        """
        child = self._find(id)
        self._refuse(child, running="stop it first with terminate_child")
        await self._forget(child)

    async def _retire(self, child: Child) -> None:
        if child.spec.restart == "temporary":
            await self._forget(child)
        else:
            release_name(child.cell)

    def _find(self, id: str) -> Child:
        child = self._children.get(id)
        if child is None:
            raise ChildNotFound(self.ref.path, id, tuple(self._children))
        return child

    def _refuse(self, child: Child, *, running: str, stopped: str | None = None) -> None:
        state = child.phase if child.alive else "stopped"
        remedy = running if child.alive else stopped
        if remedy is not None:
            raise InvalidChildState(self.ref.path, child.id, state, remedy)

    def _check(self, spec: ChildSpec) -> None:
        check_child("children", spec)
        if spec.significant and self._auto_shutdown == "never":
            raise InvalidChildSpec(
                f"children: {spec.id!r} is significant, but auto_shutdown='never': choose another one"
            )


class SupervisorHandle(BaseSupervisorHandle):
    """A running `Supervisor`, from any event loop. Made by `Supervisor.start`. Its actor is `ref`."""

    def child(self, id: str) -> ActorRef[Any]:
        """Reference to the child with this id; stays good across its restarts. From any thread.

        Raises:
            ChildNotFound: No such child.
        """
        cell = cell_of(self._running())
        children = cell.children or {}
        if id not in children:
            raise ChildNotFound(cell.path, id, tuple(children))
        return children[id].ref

    async def start_child(self, spec: ChildSpec) -> ActorRef[Any]:
        """As `Supervisor.start_child`."""
        return await self._running().ask(Supervisor.start_child, spec)

    async def terminate_child(self, id: str) -> None:
        """As `Supervisor.terminate_child`."""
        await self._running().ask(Supervisor.terminate_child, id)

    async def restart_child(self, id: str) -> ActorRef[Any]:
        """As `Supervisor.restart_child`."""
        return await self._running().ask(Supervisor.restart_child, id)

    async def delete_child(self, id: str) -> None:
        """As `Supervisor.delete_child`."""
        await self._running().ask(Supervisor.delete_child, id)


def _check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    if not is_word(value, *choices):
        raise InvalidChildSpec(f"{field}={repr_of(value)}: use one of {', '.join(choices)}")
