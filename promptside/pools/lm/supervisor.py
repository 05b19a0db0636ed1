"""`LMPoolSupervisor`: the actor of an LM pool. It starts and restarts the workers, and makes the `LiveLMPool`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from promptside.actors.spi import cell_of, request_end_of_children
from promptside.pools.accounting.history import History
from promptside.pools.accounting.ledger import Ledger
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.clients.file_limit import check_descriptors
from promptside.pools.clients.litellm_client import load_litellm
from promptside.pools.lm.config import LMPoolConfig
from promptside.pools.lm.dispatcher import Dispatcher
from promptside.pools.lm.live import LiveLMPool
from promptside.pools.lm.single_flight import SingleFlight
from promptside.pools.lm.worker import LMWorker, WorkerGroup
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.child import Child
from promptside.supervision.handle import Handle

__all__ = ["LMPoolSupervisor"]


class LMPoolSupervisor(Supervisor):
    """The supervisor of a pool's workers.

    Args:
        handle: The pool.
        endpoints: The pool's.
        config: The pool's.
        ledger: Used by all incarnations.
        history: Used by all incarnations.
    """

    def __init__(
        self,
        handle: Handle[LiveLMPool],
        endpoints: Sequence[Endpoint],
        config: LMPoolConfig,
        ledger: Ledger,
        history: History,
    ) -> None:
        handle.claim(self)
        if self.ref.incarnation == 1:  # later, connections of the incarnation before are still open
            check_descriptors(handle.name, config.workers, endpoints)
        self._handle = handle
        self._endpoints = endpoints
        self._config = config
        self._ledger = ledger
        self._history = history
        self._live: LiveLMPool | None = None
        start = partial(LMWorker, endpoints)
        workers = [
            ChildSpec(f"worker-{number}", start, shutdown=config.shutdown) for number in range(1, config.workers + 1)
        ]
        super().__init__(workers, max_restarts=config.max_restarts, max_seconds=config.max_seconds)

    async def on_start(self) -> None:
        """Start the workers, then take calls."""
        if not all(endpoint.dialect("chat").native for endpoint in self._endpoints):
            await load_litellm()  # `lm()`, which asks it for the models' abilities, would block its caller's event loop
        await super().on_start()
        own, events = self.ref, self.system.events
        workers = WorkerGroup([child.ref for child in await self.which_children()], own)
        self._live = LiveLMPool(
            path=own.path,
            loop=own.node.loop,
            events=events,
            dispatcher=Dispatcher(own.path, self._endpoints, workers, events, self._config),
            single_flight=SingleFlight(
                events, own.path, by_labels=any(endpoint.key_takes_labels for endpoint in self._endpoints)
            ),
            workers=workers,
            ledger=self._ledger,
            history=self._history,
        )
        self._handle.attach(self, self._live)

    async def on_stop(self, reason: object) -> None:
        """Take no more calls; those that wait for a worker fail. All workers end at the same time."""
        if self._live is not None:
            self._live.stopped = self._live.stopped or not isinstance(reason, BaseException)
            self._live.workers.close()
        request_end_of_children(cell_of(self))

    async def _start(self, child: Child) -> None:
        await super()._start(child)
        if self._live is not None:
            self._live.workers.wake()
