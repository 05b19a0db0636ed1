"""`LMPool`: several endpoints and supervised workers, used as one `dspy.LM`.

Users make it, start it in a system and take `pool.lm()`. Its workers live under a supervisor on a node of their own,
an event loop in a thread, so that a blocked application cannot starve LM calls or the restart of a worker.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import dspy

from promptside.actors import ActorRef, ActorSystem, Node
from promptside.checks import check, check_count
from promptside.errors import LMPoolError
from promptside.pools.accounting.budget import Budget, Ledger
from promptside.pools.accounting.history import History, Interaction
from promptside.pools.clients.endpoint import Capabilities, Endpoint
from promptside.pools.clients.file_limit import check_descriptors
from promptside.pools.errors import PoolUnavailable
from promptside.pools.lm.config import LMPoolConfig
from promptside.pools.lm.dispatcher import Dispatcher
from promptside.pools.lm.embedder import PoolEmbedder
from promptside.pools.lm.engine import AsyncPoolEngine, PoolEngine
from promptside.pools.lm.ensemble import Combine, Ensemble
from promptside.pools.lm.routes import Route
from promptside.pools.lm.single_flight import SingleFlight
from promptside.pools.lm.supervisor import LMPoolSupervisor
from promptside.pools.lm.target import BreakerControl
from promptside.pools.resilience.breaker import BreakerConfig
from promptside.pools.resilience.limiter import LimiterConfig
from promptside.pools.resilience.retry import RetryConfig
from promptside.supervision import Backoff, ChildSpec, Restart

if TYPE_CHECKING:
    from promptside.pools.lm.worker import LMWorker

__all__ = ["LMPool"]


class LMPool:
    """Endpoints behind breakers, served by supervised workers, as one LM.

    ::

        pool = await LMPool([Endpoint("openai/gpt-4o-mini")], workers=2).start(system)
        with dspy.context(lm=pool.lm()):
            ...

    The endpoints are tried in the order of the route: the next one when a circuit is open or an attempt has failed.

    Args:
        endpoints: At least one; names must differ. The first one's model is the pool's.
        name: Of the pool in the tree, the registry and its events.
        workers: Supervised workers, >= 1; each holds the `max_connections` of every endpoint.
        route: ``"fallback"`` tries them as they are listed, ``"round_robin"`` each in its turn, ``"least_busy"`` the
            one with the least under way for its connections; ``"ensemble"`` asks all at once, see `ensemble`.
        single_flight: Whether identical requests at temperature 0 that are under way at the same time make one call,
            and get its answer or its error; not of an LM made with ``cache=False``, and never streams.
        retry: When a failed attempt is repeated.
        breaker: For each endpoint's breaker.
        deadline: Seconds for a whole call, retries included, > 0; of a stream, until its first piece.
        limiter: How many requests may be under way to each endpoint, below its connections; see `caller` for the share
            of evaluations and optimizers.
        max_queue: Calls that may wait for an endpoint, >= 0; the next one raises `PoolSaturated`.
        queue_timeout: Seconds that a call may wait each time, > 0, before it raises `QueueTimeout`.
        budget: What all calls together may use; the next one raises `BudgetExceeded`.
        budgets: What each program, session or run may use, such as ``{"session": Budget(cost=0.5)}``; see `labels`.
        keep_history: Interactions that `history` remembers, >= 0.
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
        route: Route = "fallback",
        single_flight: bool = True,
        retry: RetryConfig | None = None,
        breaker: BreakerConfig | None = None,
        deadline: float = 300.0,
        limiter: LimiterConfig | None = None,
        max_queue: int = 10_000,
        queue_timeout: float = math.inf,
        budget: Budget | None = None,
        budgets: Mapping[str, Budget] | None = None,
        keep_history: int = 100,
        shutdown: float = 5.0,
        max_restarts: int = 10,
        max_seconds: float = 10.0,
    ) -> None:
        self._settings = LMPoolConfig(
            endpoints=endpoints,
            name=name,
            workers=workers,
            route=route,
            single_flight=single_flight,
            retry=retry or RetryConfig(),
            breaker=breaker or BreakerConfig(),
            deadline=deadline,
            limiter=limiter or LimiterConfig(),
            max_queue=max_queue,
            queue_timeout=queue_timeout,
            keep_history=keep_history,
            shutdown=shutdown,
            max_restarts=max_restarts,
            max_seconds=max_seconds,
        )
        self.name = name
        self.endpoints = tuple(endpoints)
        self.ledger = Ledger(name, budget, budgets)
        self.past = History(keep_history)
        self._node: Node | None = None
        self._dispatcher: Dispatcher | None = None
        self._flights: SingleFlight | None = None
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
            TooFewDescriptors: The process may not open as many connections as the pool's `workers` and its endpoints'
                `max_connections` allow.
        """
        if self._supervisor is not None:
            raise LMPoolError(f"the LM pool {self.name!r} was started before; make a new LMPool for each start")
        check_descriptors(self.name, self._settings.workers, self.endpoints)
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
                default, stands for all; one that no endpoint has (a fine-tuned one) goes to the first endpoint. With
                ``route="ensemble"`` the default is the ensemble of all endpoints.
            **settings: As for `dspy.LM`: `temperature`, `max_tokens`, `cache`, `callbacks`...

        Raises:
            ValueError: `num_retries` is given: the pool retries by its own policy.
        """
        if model is None and self._settings.route == "ensemble":
            return self.ensemble(**settings)
        return self._lm(model or self.endpoints[0].model, None, settings)

    def ensemble(
        self,
        members: Sequence[str] | None = None,
        *,
        combine: Combine | None = None,
        quorum: int | None = None,
        name: str | None = None,
        **settings: Any,
    ) -> dspy.LM:
        """A `dspy.LM` that asks several endpoints at once and combines their answers; usage is that of all.

        Each member makes attempts as `retry` says, at its own endpoint alone. A stream begins when the answer is
        complete. When not to use it: it costs what all members cost, and is as slow as the slowest of them.

        Args:
            members: Names of endpoints, all by default; one that is named twice is asked twice, which makes sense at a
                temperature above 0.
            combine: `Majority()`, which is the default, `Best(score=...)` or `Aggregate(program=...)`.
            quorum: Answers needed, in [1, number of members]; more than half of the members by default. As soon as
                they cannot be reached, the members under way are cancelled.
            name: By which DSPy's cache tells it from other ensembles; required with a `combine` of your own, because
                the cache cannot see what your function does.
            **settings: As for `lm`.

        Raises:
            ValueError: An argument is not valid; the message names it.
        """
        ensemble = Ensemble(self, members, combine, quorum, name)
        return self._lm(ensemble.model, ensemble, settings)

    def embedder(
        self, model: str | None = None, *, batch_size: int = 200, caching: bool = True, **options: Any
    ) -> PoolEmbedder:
        """A `dspy.Embedder` over this pool, with its breakers, workers, retries and budgets.

        Args:
            model: One of the endpoints' models, by default the first one's; or another model of the first endpoint's
                provider, at that endpoint's address. An endpoint of an embedding model answers no LM calls: give
                several of them a pool of their own.
            batch_size: Texts in one request, >= 1; batches of one call are under way at the same time.
            caching: Whether DSPy's cache is used.
            **options: Further fields of each request, such as `dimensions`.

        Raises:
            ValueError: An argument is not valid; the message names it.
        """
        return PoolEmbedder(self, model, batch_size=batch_size, caching=caching, **options)

    def _lm(self, model: str, ensemble: Ensemble | None, settings: dict[str, Any]) -> dspy.LM:
        if "num_retries" in settings:
            raise ValueError("num_retries: the pool retries; set LMPool(retry=RetryConfig(attempts=...)) instead")
        engines = PoolEngine(self, ensemble), AsyncPoolEngine(self, ensemble)
        engines[1].pair = engines[0]
        engines[0].shares = engines[1].shares = self._settings.single_flight and bool(settings.get("cache", True))
        return dspy.LM(model, engine=engines[0], async_engine=engines[1], num_retries=0, **settings)

    def worker_refs(self) -> dict[str, ActorRef[LMWorker]]:
        """The workers by their paths; the references stay good across restarts."""
        return {worker.path: worker for worker in self._refs}

    def stats(self) -> dict[str, dict[str, Any]]:
        """By endpoint; empty before the start.

        Of each: attempts, failures, tokens, the state of its `circuit`, the `limit` of requests under way, how many are
        (`in_flight`), and how many calls wait for it (`waiting`).
        """
        doors = self._dispatcher.doors if self._dispatcher is not None else ()
        return {door.endpoint.name: door.told() for door in doors}

    def breaker(self, endpoint: str) -> BreakerControl:
        """The circuit of an endpoint, to look at, open or hold open by hand.

        Args:
            endpoint: Its name.

        Raises:
            ValueError: No endpoint has this name.
        """
        known = [each.name for each in self.endpoints]
        check("breaker", "endpoint", endpoint, endpoint in known, f"give one of {', '.join(known)}")
        return BreakerControl(self, endpoint)

    def costs(self) -> dict[str, Any]:
        """What its calls have used since it was made.

        ``total``, and ``by_model``, ``by_endpoint``, ``by_program``, ``by_session`` and ``by_run``, each by name.
        Of each: `calls` that reached the network; `attempts`, retries included; `input_tokens`, `output_tokens` and
        `tokens`, as the providers count them; `cost`, an estimate in US dollars; `unknown_tokens` and `unknown_cost`,
        the attempts that are not in these sums, because the provider did not count, its price is not known, or they
        broke off. Answers from a cache are nowhere. Of programs, sessions and runs 10,000 each are kept; those that
        were not used for longest are added up under ``"..."``.
        """
        return self.ledger.costs()

    def set_budget(
        self, budget: Budget | None, *, program: str | None = None, session: str | None = None, run: str | None = None
    ) -> None:
        """Set another budget from now on; what was spent stays spent.

        Args:
            budget: None for no bound; of a label, for the one that `budgets` gives its kind.
            program: For this program; where no label is named, for the pool.
            session: For this session.
            run: For this run.
        """
        given = {"program": program, "session": session, "run": run}
        self.ledger.set_budget(budget, {kind: label for kind, label in given.items() if label is not None})

    def history(
        self,
        n: int = 6,
        *,
        lm: dspy.LM | None = None,
        program: str | None = None,
        session: str | None = None,
        run: str | None = None,
    ) -> list[dict[str, Any]]:
        """The last interactions with its models, oldest first, as JSON-safe records; those under way included.

        They hold prompts and answers, and are nowhere but here; of embeddings, the texts, and how many vectors came.
        What is not data is a marker, such as ``"<Lock>"``. Answers from DSPy's cache did not reach the pool and are not
        among them.

        Args:
            n: At most so many, >= 0; no more than `keep_history` are remembered, of all callers together.
            lm: Only those through this LM of the pool, or a copy of it.
            program: Only those of this program.
            session: Only those of this session.
            run: Only those of this run.
        """
        check_count("LMPool.history", "n", n, least=0)
        given = {"program": program, "session": session, "run": run}
        wanted = {kind: label for kind, label in given.items() if label is not None}

        def is_wanted(interaction: Interaction) -> bool:
            through = lm is None or interaction.source is lm.engine
            return through and wanted.items() <= interaction.labels.items()

        return self.past.last(n, is_wanted)

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
    def flights(self) -> SingleFlight:
        """The shared calls that are under way; raises `PoolUnavailable` when the pool does not run."""
        self._check_running()
        assert self._flights is not None
        return self._flights

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
        own = supervisor.ref
        self._refs = workers
        self._flights = SingleFlight(supervisor.system.events, own.path)
        settings = self._settings
        self._dispatcher = Dispatcher(
            own.path,
            self.endpoints,
            workers,
            supervisor.ref,
            supervisor.system.events,
            retry=settings.retry,
            breaker=settings.breaker,
            deadline=settings.deadline,
            route=settings.route,
            limiter=settings.limiter,
            max_queue=settings.max_queue,
            queue_timeout=settings.queue_timeout,
        )
        self._node = own.node
        self._supervisor = supervisor.ref
        self._stopped = False
