"""`LMPool`: several endpoints and supervised workers, used as one `dspy.LM`.

Users make it, start it in a system and take `pool.lm()`. Its workers live under a supervisor on a node of their own,
an event loop in a thread, so that a blocked application cannot starve LM calls or the restart of a worker.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import dspy

from promptside.actors import ActorRef, ActorSystem, Node, State
from promptside.errors import LMPoolError
from promptside.pools.breaker import BreakerConfig
from promptside.pools.dispatcher import Dispatcher, RetryPolicy
from promptside.pools.endpoint import Capabilities, Endpoint
from promptside.pools.engine import AsyncPoolEngine, PoolEngine
from promptside.pools.errors import PoolUnavailable
from promptside.pools.validation import check, check_count, check_seconds
from promptside.pools.worker import LMWorker
from promptside.supervision import Backoff, ChildSpec, Supervisor
from promptside.supervision.strategy import Restart

__all__ = ["LMPool"]


class LMPool:
    """Endpoints behind breakers, served by supervised workers, as one LM.

    ::

        pool = await LMPool([Endpoint("openai/gpt-4o-mini")], workers=2).start(system)
        with dspy.context(lm=pool.lm()):
            ...

    The endpoints are tried in their order: the next one when a circuit is open or an attempt has failed.

    Args:
        endpoints: At least one; names must differ. The first one's model is the pool's.
        name: Of the pool in the tree, the registry and its events.
        workers: Supervised workers, >= 1; each holds the `max_connections` of every endpoint.
        retry: When a failed attempt is repeated.
        breaker: For each endpoint's breaker.
        deadline: Seconds for a whole call, retries included, > 0; of a stream, until its first piece.
        shutdown: Seconds that calls under way have to end when the pool or the system stops, >= 0.
        max_restarts: Restarts of workers allowed within `max_seconds`.
        max_seconds: Length of that window.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        name: str = "lm",
        workers: int = 2,
        retry: RetryPolicy | None = None,
        breaker: BreakerConfig | None = None,
        deadline: float = 300.0,
        shutdown: float = 5.0,
        max_restarts: int = 10,
        max_seconds: float = 10.0,
    ) -> None:
        valid = not isinstance(endpoints, str) and all(isinstance(endpoint, Endpoint) for endpoint in endpoints)
        remedy = 'give a list of at least one, such as [Endpoint("openai/gpt-4o-mini")]'
        check("LMPool", "endpoints", endpoints, valid and len(endpoints) > 0, remedy)
        names = [endpoint.name for endpoint in endpoints]
        remedy = "these are the endpoints' names; give each its own with Endpoint(name=...)"
        check("LMPool", "endpoints", names, len(set(names)) == len(names), remedy)
        check("LMPool", "name", name, name != "" and "/" not in name, "give a non-empty text without /")
        check_count("LMPool", "workers", workers)
        check_seconds("LMPool", "deadline", deadline)
        check_seconds("LMPool", "shutdown", shutdown, zero=True)
        check_count("LMPool", "max_restarts", max_restarts, least=0)
        check_seconds("LMPool", "max_seconds", max_seconds)
        self.name = name
        self.endpoints = tuple(endpoints)
        self._workers = workers
        self._retry = retry or RetryPolicy()
        self._breaker = breaker or BreakerConfig()
        self._deadline = deadline
        self._shutdown = shutdown
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._node: Node | None = None
        self._dispatcher: Dispatcher | None = None
        self._supervisor: ActorRef[LMPoolSupervisor] | None = None
        self._refs: list[ActorRef[LMWorker]] = []
        self._stopped = False

    async def start(self, system: ActorSystem) -> Self:
        """Start the node, the supervisor and the workers; they end with the system, or with `stop`.

        Args:
            system: The running system.

        Returns:
            The pool itself.

        Raises:
            LMPoolError: It was started before.
            NameTaken: Another live actor holds its name.
        """
        if self._supervisor is not None:
            raise LMPoolError(f"the LM pool {self.name!r} was started before; make a new LMPool for each start")
        node = await system.start_node(self.name)
        await system.with_options(name=self.name, node=node).spawn(LMPoolSupervisor, self)
        return self

    def child_spec(self, *, restart: Restart = "permanent", backoff: Backoff | None = None) -> ChildSpec:
        """To have the pool started, and restarted, by a `Supervisor`, on a node that ends with it.

        The pool, and every LM of it, works with each incarnation; a restart loses its figures and closes its circuits.

        Args:
            restart: As in `ChildSpec`.
            backoff: As in `ChildSpec`.
        """
        start = functools.partial(LMPoolSupervisor, self)
        return ChildSpec(self.name, start, restart, name=self.name, node=self.name, backoff=backoff)

    async def stop(self) -> None:
        """Stop the workers; calls under way have `shutdown` seconds to end. Calls that come later fail at once.

        Under a supervisor, that decides what follows.
        """
        self._stopped = True
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")

    @property
    def path(self) -> str:
        """Its place in the tree, the source of its events; its name until it is started."""
        return self.name if self._supervisor is None else self._supervisor.path

    def lm(self, model: str | None = None, **settings: Any) -> dspy.LM:
        """A `dspy.LM` over this pool, with DSPy's own cache, history, usage and streaming.

        Args:
            model: One of the endpoints' models, to be served by those endpoints alone. The first one's, which is the
                default, stands for all; one that no endpoint has (a fine-tuned one) goes to the first endpoint.
            **settings: As for `dspy.LM`: `temperature`, `max_tokens`, `cache`, `callbacks`...

        Raises:
            ValueError: `num_retries` is given: the pool retries by its own policy.
        """
        if "num_retries" in settings:
            raise ValueError("num_retries: the pool retries; set LMPool(retry=RetryPolicy(attempts=...)) instead")
        return dspy.LM(
            model or self.endpoints[0].model,
            engine=PoolEngine(self),
            async_engine=AsyncPoolEngine(self),
            num_retries=0,
            **settings,
        )

    def worker_refs(self) -> dict[str, ActorRef[LMWorker]]:
        """The workers by their paths; the references stay good across restarts."""
        return {worker.path: worker for worker in self._refs}

    def stats(self) -> dict[str, dict[str, Any]]:
        """By endpoint: attempts, failures, tokens, and the circuit's state; empty before the start."""
        doors = self._dispatcher.doors if self._dispatcher is not None else ()
        return {door.endpoint.name: {**asdict(door.stats), "circuit": door.breaker.state} for door in doors}

    @functools.cached_property
    def capabilities(self) -> Capabilities:
        """What every endpoint can do."""
        each = [endpoint.capabilities() for endpoint in self.endpoints]
        return Capabilities(
            response_schema=all(one.response_schema for one in each),
            function_calling=all(one.function_calling for one in each),
            reasoning=all(one.reasoning for one in each),
            params=frozenset.intersection(*(one.params or frozenset() for one in each)),
        )

    @property
    def dispatcher(self) -> Dispatcher:
        """Where the calls go; raises `PoolUnavailable` when the pool does not run."""
        self._check_running()
        assert self._dispatcher is not None
        return self._dispatcher

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the pool's node; raises `PoolUnavailable` when the pool does not run."""
        self._check_running()
        assert self._node is not None
        return self._node.loop

    def _check_running(self) -> None:
        if self._supervisor is None or self._node is None:
            raise PoolUnavailable(f"the LM pool {self.name!r} is not running; `await pool.start(system)` first")
        if self._stopped or self._node.loop.is_closed():
            raise PoolUnavailable(f"the LM pool {self.name!r} was stopped; make a new LMPool and start it")

    def _begin(self, supervisor: LMPoolSupervisor, workers: list[ActorRef[LMWorker]]) -> None:
        """Its actors run now; called on their event loop, in each incarnation."""
        own = supervisor._spawned()
        self._refs = workers
        self._dispatcher = Dispatcher(
            own.path,
            self.endpoints,
            workers,
            supervisor.ref,
            supervisor.system.events,
            retry=self._retry,
            breaker=self._breaker,
            deadline=self._deadline,
        )
        self._node = own.node
        self._supervisor = supervisor.ref
        self._stopped = False


class LMPoolSupervisor(Supervisor):
    """The actor of an LM pool: the supervisor of its workers.

    Args:
        pool: The pool.
    """

    def __init__(self, pool: LMPool) -> None:
        running = None if pool._supervisor is None else pool._supervisor._cell
        if running is not None and running is not self._spawned() and running.state is not State.STOPPED:
            raise LMPoolError(f"the LM pool {pool.name!r} runs already; make another LMPool for another place")
        self._pool = pool
        start = functools.partial(LMWorker, pool.endpoints)
        workers = [
            ChildSpec(f"worker-{number}", start, shutdown=pool._shutdown) for number in range(1, pool._workers + 1)
        ]
        super().__init__(workers, max_restarts=pool._max_restarts, max_seconds=pool._max_seconds)

    async def on_start(self) -> None:
        """Start the workers, then take calls."""
        await super().on_start()
        self._pool._begin(self, [worker.ref for worker in await self.which_children()])
