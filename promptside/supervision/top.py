"""`TopSupervisor`: restarts the actor of a handle that was started at the top of a system with ``restart=``."""

from __future__ import annotations

import sys
from typing import Any, Final

from promptside.actors import ActorRef, ChildSpec
from promptside.backoff import Backoff
from promptside.supervision.base import BaseSupervisor
from promptside.supervision.child import Child

__all__ = ["COME_BACK", "TopSupervisor"]

COME_BACK: Final = Backoff(initial=1.0, maximum=60.0)
"""The wait before a restart where the caller gives none."""


class TopSupervisor(BaseSupervisor):
    """Has one child, which it restarts as often as that ends, each time after its backoff; ends with the child."""

    def __init__(self) -> None:
        super().__init__(max_restarts=sys.maxsize, max_seconds=1.0)  # the backoff is the bound

    async def start_child(self, spec: ChildSpec) -> ActorRef[Any]:
        """Start the child; raises as `Supervisor.start_child` does."""
        return (await self._add(spec)).cell.ref

    async def _retire(self, child: Child) -> None:
        await self._forget(child)
        self.stop("shutdown")
