"""`LMPoolSupervisor`: the actor of an LM pool, on a node of its own.

Started by `LMPool.start`, or by the user's supervisor through `LMPool.child_spec`. It starts the workers, and tells the
pool when calls may come.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from promptside.errors import LMPoolError
from promptside.pools.clients.file_limit import check_descriptors
from promptside.pools.lm.worker import LMWorker
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.handle import stands_elsewhere

if TYPE_CHECKING:
    from promptside.pools.lm.pool import LMPool

__all__ = ["LMPoolSupervisor"]


class LMPoolSupervisor(Supervisor):
    """The supervisor of a pool's workers.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: LMPool) -> None:
        if stands_elsewhere(self, pool._supervisor):
            raise LMPoolError(f"the LM pool {pool.name!r} runs already; make another LMPool for another place")
        settings = pool._settings
        if pool._supervisor is None:  # later there are still connections of the incarnation before
            check_descriptors(pool.name, settings.workers, pool.endpoints)
        self._pool = pool
        start = functools.partial(LMWorker, pool.endpoints)
        workers = [
            ChildSpec(f"worker-{number}", start, shutdown=settings.shutdown)
            for number in range(1, settings.workers + 1)
        ]
        super().__init__(workers, max_restarts=settings.max_restarts, max_seconds=settings.max_seconds)

    async def on_start(self) -> None:
        """Start the workers, then take calls."""
        await super().on_start()
        self._pool._begin(self, [worker.ref for worker in await self.which_children()])
