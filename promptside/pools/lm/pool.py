"""`LMPool`: several endpoints and supervised workers, used as one `dspy.LM`.

Users make it, start it in a system and take `pool.lm()`. Its workers live under a supervisor on a node of their own,
an event loop in a thread, so that a blocked application cannot starve LM calls or the restart of a worker.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Self, Unpack, get_args

import dspy

from promptside.actors import ActorRef, ActorSystem, Node
from promptside.checks import check, check_count, check_seconds, check_text
from promptside.errors import ActorStartError
from promptside.pools.accounting.budget import Budget
from promptside.pools.accounting.history import History, Interaction
from promptside.pools.clients.endpoint import Capabilities, Dialect
from promptside.pools.clients.requests import ModelType
from promptside.pools.clients.served_history import ServedHistory
from promptside.pools.errors import PoolUnavailable, TooFewDescriptors
from promptside.pools.lm.config import EndpointLike, LMPoolConfig, LMPoolSettings, read_endpoints
from promptside.pools.lm.embedder import PoolEmbedder
from promptside.pools.lm.engine import make_engines
from promptside.pools.lm.live import LiveLMPool, PoolSlot
from promptside.pools.lm.pooled_lm import PooledLM
from promptside.pools.lm.saved import register
from promptside.pools.lm.supervisor import LMPoolSupervisor
from promptside.pools.lm.target import BreakerControl
from promptside.pools.lm.vote import Combine, Vote
from promptside.pools.lm.worker import LMWorker
from promptside.supervision.handle import Again, Handle

__all__ = ["LMPool"]


class LMPool(Handle[LiveLMPool]):
    """Endpoints behind breakers, served by supervised workers, as one LM.

    ::

        with LMPool("openai/gpt-4o-mini", "gemini/gemini-2.5-flash-lite") as pool:      # a script or a notebook
            dspy.configure(lm=pool.lm())

        pool = await LMPool("openai/gpt-4o-mini", workers=4).start(system)              # a service
        with dspy.context(lm=pool.lm()):
            ...

    The endpoints are tried in the order of the route: the next one when a breaker is open or an attempt has failed.

    Args:
        *endpoints: At least one: a model, an `Endpoint` or an `LMConfig`; or one list of these. Names must differ. The
            first one's model is the pool's. The settings of an `LMConfig` hold for `lm` of its model.
        config: The settings.
        **settings: Fields of `LMPoolConfig`, which describes them, over those of `config`.

    Attributes:
        endpoints: The endpoints.
        config: The settings.
        slot: Where its LMs find what runs now.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        *endpoints: EndpointLike | Sequence[EndpointLike],
        config: LMPoolConfig | None = None,
        **settings: Unpack[LMPoolSettings],
    ) -> None:
        valid = isinstance(config, LMPoolConfig | None)
        check("LMPool", "config", config, valid, "give an LMPoolConfig(...), or its fields as keywords")
        self.config = replace(config or LMPoolConfig(), **settings)
        super().__init__(self.config.name)
        self.endpoints, self._lm_settings = read_endpoints(endpoints)
        self._ledger = self.config.make_ledger()
        self._history = History(self.config.max_history_size)
        self._served = ServedHistory(self.config.max_history_size)
        self._abilities: dict[tuple[int, ModelType], tuple[Capabilities, Dialect]] = {}  # found once, in some 2 ms
        self._votes: dict[str, Vote] = {}  # made so far, by name
        self.slot = PoolSlot(self._running, lambda: self.path, self.config.name)
        register(self.config.name, self)

    def _make_actor(self) -> LMPoolSupervisor:
        return LMPoolSupervisor(self, self.endpoints, self.config, self._ledger, self._history)

    def _default_node(self) -> str:
        return self.name

    async def start(
        self,
        system: ActorSystem,
        *,
        name: str | None = None,
        node: Node | str | None = None,
        warm: int = 0,
        **again: Unpack[Again],
    ) -> Self:
        """Start it at the top of a system; it ends with the system, or with `stop`. It may be started again then.

        Where an endpoint needs litellm, the first start of the process imports it, in a thread, which takes seconds.

        Args:
            system: The running system.
            name: Another name than that of the pool.
            node: Where it runs; by default a node of its own, an event loop in a thread. ``system.home`` is the
                caller's event loop, which must not block then.
            warm: Connections that are opened to each endpoint before it returns, >= 0, and no more than its
                `max_connections`: the first requests need not wait for them. It waits up to 10 s, and raises nothing
                where none can be opened. An endpoint that litellm serves has none.
            **again: `restart` and `backoff`, whether it comes back when it has given up; see `Handle.start`.

        Returns:
            The pool itself.

        Raises:
            AlreadyRunning: It runs already.
            NameTaken: Another live actor holds its name.
            TooFewDescriptors: The process may not open as many connections as the pool's `workers` and its endpoints'
                `max_connections` allow.
            ValueError: An argument is not valid.
        """
        check_count("LMPool.start", "warm", warm, least=0)
        try:
            await super().start(system, name=name, node=node, **again)
        except ActorStartError as error:
            if isinstance(error.__cause__, TooFewDescriptors):
                raise error.__cause__ from None
            raise
        if warm:
            try:
                await self._running().workers.open_ahead(warm)
            except asyncio.CancelledError:
                await self.stop()
                raise
        return self

    async def stop(self, *, drain: float = 0.0) -> None:
        """Stop the workers, and wait for their end. Calls that come later fail at once.

        A supervisor may start it again. From any event loop.

        Args:
            drain: Seconds that requests under way have to end, >= 0, in place of the pool's `shutdown`; 0 for that.

        Raises:
            ValueError: `drain` is not >= 0.
        """
        check_seconds("LMPool.stop", "drain", drain, zero=True)
        if self._live is not None:
            self._live.stopped = True
        await super().stop(drain=drain)

    def lm(self, model: str | None = None, **settings: Any) -> dspy.LM:
        """A `dspy.LM` over this pool, with DSPy's own cache, history, usage and streaming.

        Args:
            model: One of the endpoints' models, to be served by those endpoints alone. The first one's, which is the
                default, stands for all; one that no endpoint has (a fine-tuned one) goes to the first endpoint. With
                ``route="vote"`` the default is `vote` of all endpoints.
            **settings: As for `dspy.LM`: `temperature`, `max_tokens`, `cache`, `callbacks`, `model_type`... Of those of
                the connection, an LM, or one call, may have its own `headers`, `extra_headers`, `extra_query` and
                `timeout`, in seconds, which is at most its endpoint's.

        Its calls raise:
            LMPoolSaturated: `max_queue` calls wait already.
            LMQueueTimeout: The call has waited for `queue_timeout` seconds.
            LMCircuitOpen: Every endpoint that could answer has an open breaker.
            BudgetExceeded: One of the pool's budgets is spent.
            PoolUnavailable: The pool does not run. While it is being restarted, the error has `retry_after`.
            WorkerLost: The pool, or the worker that made the last attempt, ended during the call.
            dspy.LMError: The last attempt's error, as DSPy types it.

        Raises:
            ValueError: A setting is not valid, or has its place elsewhere, as `num_retries` and `api_key`; the message
                says where.
        """
        if model is None and self.config.route == "vote":
            return self.vote(**settings)
        model = model or self.endpoints[0].model
        return self._make_lm(model, None, {**self._lm_settings.get(model, {}), **settings})

    def vote(
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
            name: By which DSPy's cache tells it from other votes; required with a `combine` of your own, because the
                cache cannot see what your function does.
            **settings: As for `lm`; those of an `LMConfig` do not hold here.

        Raises:
            ValueError: An argument is not valid; the message names it.
        """
        vote = Vote(
            self.slot,
            {endpoint.name: endpoint.model for endpoint in self.endpoints},
            members,
            combine=combine,
            quorum=quorum,
            name=name,
            first_lm=lambda: self.lm(self.endpoints[0].model),
        )
        self._votes[vote.model] = vote
        return self._make_lm(vote.model, vote, settings)

    def embedder(
        self, model: str | None = None, *, batch_size: int = 200, caching: bool = True, **options: Any
    ) -> PoolEmbedder:
        """A `dspy.Embedder` over this pool, with its breakers, workers, retries and budgets.

        Args:
            model: One of the endpoints' models, by default the first one's; or another model of the first endpoint's
                provider, at that endpoint's address. Only endpoints of this very model embed: vectors of two models are
                not comparable, so no other one stands in. An endpoint of an embedding model answers no LM calls: give
                several of them a pool of their own.
            batch_size: Texts in one request, >= 1; batches of one call are under way at the same time.
            caching: Whether DSPy's cache is used.
            **options: Further fields of each request, such as `dimensions`.

        Raises:
            ValueError: An argument is not valid; the message names it.
        """
        return PoolEmbedder(self.slot, self.endpoints, model, batch_size=batch_size, caching=caching, **options)

    def _make_lm(self, model: str, vote: Vote | None, settings: dict[str, Any]) -> dspy.LM:
        model_type = settings.get("model_type", "chat")
        remedy = "give 'chat', 'text' or 'responses', as for dspy.LM"
        check("LMPool.lm", "model_type", model_type, model_type in get_args(ModelType), remedy)
        models = [endpoint.model for endpoint in self.endpoints]
        first = models.index(model) if model in models else 0
        shared = self.config.single_flight and bool(settings.get("cache", True))
        if (first, model_type) not in self._abilities:
            self._abilities[first, model_type] = (
                self._capabilities(model_type),
                self.endpoints[first].dialect(model_type),
            )
        engines = make_engines(
            self.slot, *self._abilities[first, model_type], vote, served=self._served, single_flight=shared
        )
        record = {"pool": self.config.name, **({} if vote is None else {"fallback": models[0], "vote": vote.record})}
        return PooledLM(model, engines, record, **settings)

    @property
    def ended(self) -> bool:
        """Whether it ran, and will not be restarted by its supervisor."""
        if self._live is None:
            return False
        try:
            self._live.check()
        except PoolUnavailable as error:
            return error.retry_after is None
        return False

    def load_lm(self, record: Mapping[str, Any], **settings: Any) -> dspy.LM | None:
        """An LM that was saved, with its pool's name; DSPy's loading asks for it.

        Args:
            record: What was saved of it.
            **settings: Its `cache` and `model_type`.

        Returns:
            The LM; None where this pool has no endpoint of its model or its provider, or does not know the vote.
        """
        model = record["model"]
        if "vote" in record:
            return self._load_vote(model, record["vote"], settings)
        models = [endpoint.model for endpoint in self.endpoints]
        tuned = model.partition("/")[0] == models[0].partition("/")[0]  # a model that the first endpoint has, too
        return self._make_lm(model, None, settings) if model in models or tuned else None

    def _load_vote(self, model: str, vote: Mapping[str, Any] | None, settings: dict[str, Any]) -> dspy.LM | None:
        if model in self._votes:
            return self._make_lm(model, self._votes[model], settings)
        if vote is None or not set(vote["members"]) <= {endpoint.name for endpoint in self.endpoints}:
            return None
        return self.vote(**vote, **settings)

    def worker_refs(self) -> dict[str, ActorRef[LMWorker]]:
        """The workers by their paths; the references stay good across their restarts. Empty before the start."""
        workers = self._live.workers.refs if self._live is not None else ()
        return {worker.path: worker for worker in workers}

    def stats(self) -> dict[str, dict[str, Any]]:
        """By endpoint; empty before the start.

        Of each: attempts, failures, tokens, the state of its breaker (`circuit`), the `limit` of requests under way,
        how many are (`in_flight`), and how many calls wait for it (`waiting`).
        """
        targets = self._live.dispatcher.targets if self._live is not None else ()
        return {target.endpoint.name: target.figures() for target in targets}

    def breaker(self, endpoint: str) -> BreakerControl:
        """The breaker of an endpoint, to look at, open or hold open by hand.

        Args:
            endpoint: Its name.

        Raises:
            ValueError: No endpoint has this name.
        """
        known = [each.name for each in self.endpoints]
        check("breaker", "endpoint", endpoint, endpoint in known, f"give one of {', '.join(known)}")
        return BreakerControl(lambda: self.slot.live.dispatcher.target(endpoint))

    def costs(self) -> dict[str, Any]:
        """Usage of its calls since it was made.

        ``total``, and ``by_model``, ``by_endpoint``, ``by_program``, ``by_session`` and ``by_run``, each by name.
        Of each: `calls` that reached the network; `attempts`, retries included; `input_tokens`, `output_tokens` and
        `tokens`, as the providers count them; `cost`, an estimate in US dollars; `unknown_tokens` and `unknown_cost`,
        the attempts that are not in these sums, because the provider did not count, its price is not known, or they
        broke off. Answers from a cache are nowhere. Of programs, sessions and runs 10,000 each are kept; those that
        were not used for longest are added up under ``"..."``.
        """
        return self._ledger.costs()

    def set_budget(
        self, budget: Budget | None, *, program: str | None = None, session: str | None = None, run: str | None = None
    ) -> None:
        """Set another budget from now on; earlier usage counts on.

        Args:
            budget: None for no bound; of a label, for the one that `budgets` gives its kind.
            program: For this program; where no label is named, for the pool.
            session: For this session.
            run: For this run.

        Raises:
            ValueError: `budget` is no budget, or a label is not a text, or is empty.
        """
        given = {"program": program, "session": session, "run": run}
        labels = {kind: label for kind, label in given.items() if label is not None}
        for kind, label in labels.items():
            check_text("LMPool.set_budget", kind, label)
        self._ledger.set_budget(budget, labels)

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

        They hold prompts and answers, and are nowhere but here; of embeddings, the texts and the number of vectors. An
        object that is not data is a marker, such as ``"<Lock>"``. Answers from DSPy's cache are not among them.

        Args:
            n: At most so many, >= 0; no more than `max_history_size` are remembered, of all callers together.
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

        return self._history.last(n, is_wanted)

    def _capabilities(self, model_type: ModelType) -> Capabilities:
        """Those that every endpoint has."""
        each = [endpoint.capabilities(model_type) for endpoint in self.endpoints]
        return Capabilities(
            response_schema=all(one.response_schema for one in each),
            function_calling=all(one.function_calling for one in each),
            reasoning=all(one.reasoning for one in each),
            params=frozenset.intersection(*(one.params or frozenset() for one in each)),
        )
