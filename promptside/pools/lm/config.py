"""`LMPoolConfig`: the settings of an `LMPool`, checked before anything starts. Made by users and by `LMPool`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypedDict

from promptside.checks import check, check_count, check_name, check_seconds
from promptside.pools.accounting.budget import Budget
from promptside.pools.accounting.ledger import Ledger
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.clients.model_config import LMConfig
from promptside.pools.clients.served_history import MAX_HISTORY_SIZE
from promptside.pools.lm.routes import Route, check_route
from promptside.pools.resilience.breaker import BreakerConfig
from promptside.pools.resilience.limiter import LimiterConfig
from promptside.pools.resilience.retry import RetryConfig

__all__ = ["EndpointLike", "LMPoolConfig", "LMPoolSettings", "read_endpoints"]

EndpointLike: TypeAlias = str | Endpoint | LMConfig
"""What `LMPool` takes as an endpoint; a text is a model, such as ``"openai/gpt-4o-mini"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LMPoolConfig:
    """The settings of an `LMPool`.

    Args:
        name: Of the pool in the tree, the registry and its events.
        workers: Supervised workers, >= 1; each holds the `max_connections` of every endpoint.
        route: ``"fallback"`` tries the endpoints as they are listed, ``"round_robin"`` each in its turn,
            ``"least_busy"`` the one with the fewest requests for its connections first; with ``"vote"`` the pool's LM
            asks all at once, see `LMPool.vote`.
        single_flight: Whether identical requests at temperature 0 that are under way at the same time make one call,
            and get its answer or its error. Not for an LM made with ``cache=False``, and never for streams.
        retry: When a failed attempt is repeated.
        breaker: For each endpoint's breaker.
        limiter: How many requests may be under way to each endpoint, below its connections; see `priority` for the
            share of evaluations and optimizers.
        timeout: Seconds for a whole call, retries included, > 0; for a stream, until its first piece. Not for the calls
            of a batch, which end when they are answered.
        stream_timeout: Seconds for a whole stream, > 0, from its request to its end, also while its reader pauses.
        max_queue: Calls that may wait for an endpoint, >= 0; the next one raises `LMPoolSaturated`.
        queue_timeout: Seconds that a call may wait each time, > 0, before it raises `LMQueueTimeout`.
        budget: Bound of all calls together; the next one raises `BudgetExceeded`.
        budgets: Bounds of each program, session or run, such as ``{"session": Budget(cost=0.5)}``; see `labels`.
        max_history_size: Calls that `LMPool.history` remembers, >= 0; and that DSPy's histories do: of each of its LMs,
            of each module that calls them, and of all LMs, which `dspy.inspect_history` prints.
        shutdown: Seconds that calls under way have to end when the pool or the system stops, >= 0.
        max_restarts: Restarts of workers allowed within `max_seconds`, >= 0.
        max_seconds: Length of that window, > 0.

    Raises:
        ValueError: A field is not valid; the message names it.
    """

    name: str = "lm"
    workers: int = 2
    route: Route = "fallback"
    single_flight: bool = True
    retry: RetryConfig = field(default_factory=RetryConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    limiter: LimiterConfig = field(default_factory=LimiterConfig)
    timeout: float = 1200.0
    stream_timeout: float = math.inf
    max_queue: int = 10_000
    queue_timeout: float = math.inf
    budget: Budget | None = None
    budgets: Mapping[str, Budget] | None = None
    max_history_size: int = MAX_HISTORY_SIZE
    shutdown: float = 5.0
    max_restarts: int = 10
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_name("LMPool", "name", self.name)
        check_count("LMPool", "workers", self.workers)
        check_route("LMPool", self.route)
        shared = self.single_flight
        check("LMPool", "single_flight", shared, isinstance(shared, bool), "give True or False")
        for name, kind in (("retry", RetryConfig), ("breaker", BreakerConfig), ("limiter", LimiterConfig)):
            value = getattr(self, name)
            check("LMPool", name, value, isinstance(value, kind), f"give {kind.__name__}(...)")
        check_seconds("LMPool", "timeout", self.timeout)
        check_seconds("LMPool", "stream_timeout", self.stream_timeout)
        check_count("LMPool", "max_queue", self.max_queue, least=0)
        check_seconds("LMPool", "queue_timeout", self.queue_timeout)
        check_count("LMPool", "max_history_size", self.max_history_size, least=0)
        check_seconds("LMPool", "shutdown", self.shutdown, zero=True)
        check_count("LMPool", "max_restarts", self.max_restarts, least=0)
        check_seconds("LMPool", "max_seconds", self.max_seconds)
        self.make_ledger()

    def make_ledger(self) -> Ledger:
        """A new ledger with the budgets."""
        return Ledger(self.name, self.budget, self.budgets)


class LMPoolSettings(TypedDict, total=False):
    """The fields of `LMPoolConfig` as keywords of `LMPool`; a test keeps the two equal."""

    name: str
    workers: int
    route: Route
    single_flight: bool
    retry: RetryConfig
    breaker: BreakerConfig
    limiter: LimiterConfig
    timeout: float
    stream_timeout: float
    max_queue: int
    queue_timeout: float
    budget: Budget | None
    budgets: Mapping[str, Budget] | None
    max_history_size: int
    shutdown: float
    max_restarts: int
    max_seconds: float


def read_endpoints(
    given: Sequence[EndpointLike | Sequence[EndpointLike]],
) -> tuple[tuple[Endpoint, ...], dict[str, dict[str, Any]]]:
    """The endpoints, and by model the settings of those given as `LMConfig`; raises `ValueError`."""
    only = given[0] if len(given) == 1 else None
    listed: Sequence[Any] = only if isinstance(only, Sequence) and not isinstance(only, str) else given
    remedy = 'give at least one model, Endpoint or LMConfig, such as LMPool("openai/gpt-4o-mini")'
    valid = len(listed) > 0 and all(isinstance(each, str | Endpoint | LMConfig) for each in listed)
    check("LMPool", "endpoints", list(listed), valid, remedy)
    endpoints: list[Endpoint] = []
    settings: dict[str, dict[str, Any]] = {}
    for each in listed:
        endpoint = each.endpoint() if isinstance(each, LMConfig) else Endpoint(each) if isinstance(each, str) else each
        endpoints.append(endpoint)
        if isinstance(each, LMConfig):
            settings.setdefault(endpoint.model, each.lm_settings())
    names = [endpoint.name for endpoint in endpoints]
    remedy = "these are the endpoints' names; give each its own with Endpoint(name=...)"
    check("LMPool", "endpoints", names, len(set(names)) == len(names), remedy)
    return tuple(endpoints), settings
