"""`Target`: an endpoint at run time, with its breaker, its limiter and queue, its connections and its figures.

Made by the dispatcher, on the pool's event loop. `BreakerControl` is an operator's hand on the breaker of one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from promptside.actors import ActorRef
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.lm.config import LMPoolConfig
from promptside.pools.lm.queue import EndpointQueue, QueueBound
from promptside.pools.lm.routes import TargetView
from promptside.pools.lm.worker import LMWorker
from promptside.pools.resilience.breaker import BreakerState, CircuitBreaker
from promptside.pools.resilience.limiter import Limiter, LimiterChange

__all__ = ["BreakerControl", "EndpointStats", "Target", "WorkerConnections"]


@dataclass(slots=True)
class EndpointStats:
    """Counts of one endpoint.

    Attributes:
        attempts: Attempts begun.
        failures: Attempts that ended in an error, whosever fault; not those that were cancelled.
        input_tokens: As the provider counted them.
        output_tokens: As the provider counted them.
    """

    attempts: int = 0
    failures: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class WorkerConnections:
    """The connections of one worker to one endpoint.

    Attributes:
        worker: The worker.
        free: Acquired for each request.
        load: Requests under way, and those that wait for a connection.
        last_used: Number of the last choice; among equals the lowest is chosen.
    """

    def __init__(self, worker: ActorRef[LMWorker], count: int) -> None:
        self.worker = worker
        self.free = asyncio.Semaphore(count)
        self.load = 0
        self.last_used = 0


class Target:
    """An endpoint at run time.

    Args:
        index: By which the workers know it.
        endpoint: The endpoint.
        workers: The pool's.
        config: The pool's.
        bound: Of the queues of all targets together.
        on_breaker: Called with the target, and the states before and after.
        on_limit: Called with the target, its limit, and the seconds for which it is closed.

    Attributes:
        answered: Attempts that succeeded.
        last_first: Number of the last call that tried it first.
    """

    def __init__(
        self,
        index: int,
        endpoint: Endpoint,
        workers: Sequence[ActorRef[LMWorker]],
        config: LMPoolConfig,
        bound: QueueBound,
        *,
        on_breaker: Callable[[Target, BreakerState, BreakerState], None],
        on_limit: Callable[[Target, LimiterChange], None],
    ) -> None:
        self.index = index
        self.endpoint = endpoint
        self.loop = asyncio.get_running_loop()
        self.connections = [WorkerConnections(worker, endpoint.max_connections) for worker in workers]
        self.breaker = CircuitBreaker(config.breaker, on_change=partial(on_breaker, self))
        self.limiter = Limiter(
            len(workers) * endpoint.max_connections,
            config.limiter,
            rpm=endpoint.rpm,
            tpm=endpoint.tpm,
            on_change=partial(on_limit, self),
        )
        self.queue = EndpointQueue(self.limiter, bound, self.loop.time)
        self.answered = 0
        self.stats = EndpointStats()
        self.last_first = 0

    def view(self, now: float) -> TargetView:
        """For routes."""
        load = self.limiter.in_flight + len(self.queue)
        return TargetView(load, self.limiter.most, self.last_first, self.closed_for(now) > 0)

    def figures(self) -> dict[str, Any]:
        """For `LMPool.stats`, which describes them. Any thread."""
        return {
            **asdict(self.stats),
            "circuit": self.breaker.state,
            "limit": self.limiter.limit,
            "rate": self.limiter.rate,
            "known_rate": self.limiter.known,
            "in_flight": self.limiter.in_flight,
            "waiting": len(self.queue),
        }

    def closed_for(self, now: float) -> float:
        """Seconds for which its breaker or its limiter lets nothing through."""
        return max(self.breaker.retry_after(now), self.limiter.closed_for(now))


class BreakerControl:
    """The breaker between a pool and one of its endpoints, by hand; it stays good when the pool is restarted.

    Made by `LMPool.breaker`. Any thread. An action takes effect on the pool's event loop, before the calls that this
    thread makes afterwards. All raise `PoolUnavailable` when the pool does not run.

    Args:
        find: The target that runs now.
    """

    def __init__(self, find: Callable[[], Target]) -> None:
        self._find = find

    @property
    def state(self) -> BreakerState:
        """``"closed"``, ``"open"`` or ``"half_open"``."""
        return self._find().breaker.state

    def force_open(self) -> None:
        """Open it as a failure would: for its `open_for`, and then for probes."""
        target = self._find()
        target.loop.call_soon_threadsafe(lambda: target.breaker.force_open(target.loop.time()))

    def isolate(self) -> None:
        """Hold it open, also for probes, until `reset`."""
        target = self._find()
        target.loop.call_soon_threadsafe(target.breaker.isolate)

    def reset(self) -> None:
        """Close it, and forget its counts."""
        target = self._find()
        target.loop.call_soon_threadsafe(target.breaker.reset)
