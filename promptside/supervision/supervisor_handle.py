"""`BaseSupervisorHandle`: base of the handles of `Supervisor` and `DynamicSupervisor`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from promptside.actors import ActorRef
from promptside.supervision.base import BaseSupervisor
from promptside.supervision.handle import Handle
from promptside.supervision.spec import ChildCounts, ChildInfo

__all__ = ["BaseSupervisorHandle"]


class BaseSupervisorHandle(Handle[ActorRef[Any]]):
    """A running supervisor, from any event loop. Its actor is `ref`.

    Args:
        name: In the tree and the registry.
        make: Makes the supervisor, at each start.
    """

    def __init__(self, name: str, make: Callable[[], BaseSupervisor]) -> None:
        super().__init__(name)
        make()  # raises for what is not valid, before anything is started
        self._make = make

    def _make_actor(self) -> BaseSupervisor:
        supervisor = self._make()
        self.claim(supervisor)
        self.attach(supervisor, supervisor.ref)
        return supervisor

    async def which_children(self) -> list[ChildInfo]:
        """The children, in the order of their start."""
        return await self._running().ask(BaseSupervisor.which_children)

    async def count_children(self) -> ChildCounts:
        """How many children there are, and how many run."""
        return await self._running().ask(BaseSupervisor.count_children)
