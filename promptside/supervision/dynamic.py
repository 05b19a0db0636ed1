"""`DynamicSupervisor`: children that come and go while it runs, many of them alike.

For sessions, jobs, connections. For children that are known beforehand and depend on each other, see `Supervisor`;
for one-off functions, `TaskSupervisor`. Source of the semantics: Erlang/OTP supervisor, `simple_one_for_one`, and
Elixir's `DynamicSupervisor`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from promptside.actors import ActorRef, ActorSystem, ChildSpec, Node, Restart
from promptside.actors.spi import cell_of, request_end_of_children
from promptside.backoff import Backoff
from promptside.checks import check, is_count
from promptside.errors import ChildNotFound, InvalidChildSpec, MaxChildrenReached
from promptside.supervision.base import BaseSupervisor, check_intensity
from promptside.supervision.child import Child, check_child
from promptside.supervision.supervisor_handle import BaseSupervisorHandle
from promptside.texts import repr_of

__all__ = ["DynamicSupervisor", "DynamicSupervisorHandle"]


class DynamicSupervisor(BaseSupervisor):
    """Starts children on request, and keeps each running by its own restart type.

    A child that has ended and is not restarted is forgotten. At the end all children are stopped at the same time.

    Args:
        max_children: Children at one time, >= 1; `math.inf` for no bound.
        max_restarts: Restarts allowed within `max_seconds`, of all the children together, >= 0.
        max_seconds: Length of the window in seconds, > 0.

    Raises:
        InvalidChildSpec: A setting is not valid.
    """

    def __init__(self, *, max_children: float = math.inf, max_restarts: int = 3, max_seconds: float = 5.0) -> None:
        if max_children != math.inf and not is_count(max_children):
            raise InvalidChildSpec(f"max_children={repr_of(max_children)}: give a whole number >= 1, or math.inf")
        check_intensity(max_restarts, max_seconds)
        super().__init__(max_restarts, max_seconds)
        self._max_children = max_children

    @classmethod
    async def start(
        cls,
        system: ActorSystem,
        *,
        name: str = "supervisor",
        node: Node | str | None = None,
        restart: Restart = "temporary",
        backoff: Backoff | None = None,
        **settings: Any,
    ) -> DynamicSupervisorHandle:
        """Start one at the top of a system.

        Args:
            system: The running system.
            name: In the tree and the registry.
            node: As in `ChildSpec`.
            restart: See `Handle.start`.
            backoff: See `Handle.start`.
            **settings: As for the class: `max_children`, `max_restarts`...

        Raises:
            InvalidChildSpec: A setting is not valid.
            NameTaken: Another live actor holds the name.
        """
        return await DynamicSupervisorHandle(name, partial(cls, **settings)).start(
            system, node=node, restart=restart, backoff=backoff
        )

    async def start_child(self, spec: ChildSpec) -> ActorRef[Any]:
        """Start a child.

        Args:
            spec: Its id need not be unique: a number is added where it is taken.

        Raises:
            InvalidChildSpec: It is no `ChildSpec`, or it is significant, which is for a `Supervisor`'s children.
            MaxChildrenReached: There are `max_children` already.
            ActorStartError: It did not start, and is not a child.
            NameTaken: Another live actor holds its name.
        """
        check_child("start_child", spec)
        if spec.significant:
            raise InvalidChildSpec(f"{spec.id!r} is significant: that is for children of a Supervisor")
        if len(self._children) >= self._max_children:
            raise MaxChildrenReached(self.ref.path, int(self._max_children))
        return (await self._add(spec)).cell.ref

    async def terminate_child(self, ref: ActorRef[Any]) -> None:
        """Stop a child, wait for its end, and forget it.

        Raises:
            ChildNotFound: It is no child of this supervisor, or has ended already.
            ValueError: `ref` is no reference.
        """
        check("terminate_child", "ref", ref, isinstance(ref, ActorRef), "give the reference of a child")
        child = self._children.get(cell_of(ref).id)
        if child is None or child.cell is not cell_of(ref):
            raise ChildNotFound(self.ref.path, ref.path, tuple(self._children)[:10])
        await self._stop(child)

    async def on_stop(self, reason: object) -> None:
        """Stop every child at the same time: there is no order among them."""
        request_end_of_children(cell_of(self))

    async def _retire(self, child: Child) -> None:
        await self._forget(child)


class DynamicSupervisorHandle(BaseSupervisorHandle):
    """A running `DynamicSupervisor`, from any event loop. Made by `DynamicSupervisor.start`. Its actor is `ref`."""

    async def start_child(self, spec: ChildSpec) -> ActorRef[Any]:
        """As `DynamicSupervisor.start_child`."""
        return await self._running().ask(DynamicSupervisor.start_child, spec)

    async def terminate_child(self, ref: ActorRef[Any]) -> None:
        """As `DynamicSupervisor.terminate_child`."""
        await self._running().ask(DynamicSupervisor.terminate_child, ref)
