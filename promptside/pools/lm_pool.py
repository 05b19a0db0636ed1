"""`LMPool`: several endpoints and supervised workers, used as one `dspy.LM`.

Users make it, start it in a system and take `pool.lm()`. Its workers live under a supervisor on a node of their own,
an event loop in a thread, so that a blocked application cannot starve LM calls or the restart of a worker.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Self

import dspy

from promptside.actors import ActorRef, ActorSystem, Node
from promptside.errors import LMPoolError
from promptside.pools.breaker import BreakerConfig
from promptside.pools.dispatcher import Dispatcher, RetryPolicy
from promptside.pools.endpoint import Capabilities, Endpoint
from promptside.pools.engine import AsyncPoolEngine, PoolEngine
from promptside.pools.worker import LMWorker
from promptside.supervision import ChildSpec, Supervisor

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
        workers: Supervised workers, >= 1; each serves 64 requests at a time.
        retry: When a failed attempt is repeated.
        breaker: For each endpoint's breaker.
        deadline: Seconds for a whole call, retries included, > 0.
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
        max_restarts: int = 10,
        max_seconds: float = 10.0,
    ) -> None:
        names = [endpoint.name for endpoint in endpoints]
        if not names:
            raise ValueError('LMPool: endpoints=[]: give at least one, such as Endpoint("openai/gpt-4o-mini")')
        if len(set(names)) < len(names):
            raise ValueError(f"LMPool: endpoints have the names {names}: give each its own with Endpoint(name=...)")
        if workers < 1:
            raise ValueError(f"LMPool: workers={workers!r}: give a whole number >= 1")
        if not deadline > 0:
            raise ValueError(f"LMPool: deadline={deadline!r}: give seconds > 0")
        self.name = name
        self.endpoints = tuple(endpoints)
        self._workers = workers
        self._retry = retry or RetryPolicy()
        self._breaker = breaker or BreakerConfig()
        self._deadline = deadline
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._node: Node | None = None
        self._dispatcher: Dispatcher | None = None
        self._supervisor: ActorRef[Supervisor] | None = None
        self._refs: list[ActorRef[LMWorker]] = []

    async def start(self, system: ActorSystem) -> Self:
        """Start the node, the supervisor and the workers; they end with the system, or with `stop`.

        Args:
            system: The running system.

        Returns:
            The pool itself.
        """
        if self._node is not None:
            raise LMPoolError(f"the LM pool {self.name!r} was started before; make a new LMPool for each start")
        self._node = await system.start_node(self.name)
        specs = [
            ChildSpec(f"worker-{number}", functools.partial(LMWorker, self.endpoints))
            for number in range(1, self._workers + 1)
        ]
        spawner = system.with_options(name=self.name, node=self._node)
        self._supervisor = await spawner.spawn(
            Supervisor, specs, max_restarts=self._max_restarts, max_seconds=self._max_seconds
        )
        children = await self._supervisor.ask(Supervisor.which_children)
        self._refs = [child.ref for child in children]
        self._dispatcher = Dispatcher(
            self.name,
            self.endpoints,
            self._refs,
            system.events,
            retry=self._retry,
            breaker=self._breaker,
            deadline=self._deadline,
        )
        return self

    async def stop(self) -> None:
        """Stop the workers; calls under way end first. Calls that come later fail."""
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")

    def lm(self, model: str | None = None, **settings: Any) -> dspy.LM:
        """A `dspy.LM` over this pool, with DSPy's own cache, history, usage and streaming.

        Args:
            model: One of the endpoints' models, to be served by those endpoints alone; all by default.
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
        """By endpoint: attempts, failures, tokens, and the circuit's state."""
        return {
            door.endpoint.name: {**asdict(door.stats), "circuit": door.breaker.state} for door in self.dispatcher.doors
        }

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
        """Where the calls go; raises `LMPoolError` before the start."""
        if self._dispatcher is None:
            raise LMPoolError(f"the LM pool {self.name!r} is not running; `await pool.start(system)` first")
        return self._dispatcher

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the pool's node; raises `LMPoolError` when it does not run."""
        if self._node is None or self._node.loop.is_closed():
            raise LMPoolError(f"the LM pool {self.name!r} is not running; `await pool.start(system)` first")
        return self._node.loop

    def is_own_thread(self) -> bool:
        """Whether the caller is in the thread of the pool's event loop."""
        return self._node is not None and self._node.thread_id == threading.get_ident()
