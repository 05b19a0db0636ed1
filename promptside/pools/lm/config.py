"""`LMPoolConfig`: what an `LMPool` is made with, checked before anything is.

Made by `LMPool`, whose arguments they are and which describes them; read by its supervisor and its dispatcher.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from promptside.checks import check, check_count, check_name, check_seconds
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.lm.routes import Route, check_route
from promptside.pools.resilience.breaker import BreakerConfig
from promptside.pools.resilience.limiter import LimiterConfig
from promptside.pools.resilience.retry import RetryConfig

__all__ = ["LMPoolConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LMPoolConfig:
    """The arguments of an `LMPool` that its parts read.

    Raises:
        ValueError: One is not valid; the message names it.
    """

    endpoints: Sequence[Endpoint]
    name: str
    workers: int
    route: Route
    single_flight: bool
    retry: RetryConfig
    breaker: BreakerConfig
    deadline: float
    limiter: LimiterConfig
    max_queue: int
    queue_timeout: float
    keep_history: int
    shutdown: float
    max_restarts: int
    max_seconds: float

    def __post_init__(self) -> None:
        endpoints, name = self.endpoints, self.name
        valid = not isinstance(endpoints, str) and all(isinstance(endpoint, Endpoint) for endpoint in endpoints)
        remedy = 'give a list of at least one, such as [Endpoint("openai/gpt-4o-mini")]'
        check("LMPool", "endpoints", endpoints, valid and len(endpoints) > 0, remedy)
        names = [endpoint.name for endpoint in endpoints]
        remedy = "these are the endpoints' names; give each its own with Endpoint(name=...)"
        check("LMPool", "endpoints", names, len(set(names)) == len(names), remedy)
        check_name("LMPool", "name", name)
        check_count("LMPool", "workers", self.workers)
        check_route("LMPool", self.route)
        shared = self.single_flight
        check("LMPool", "single_flight", shared, isinstance(shared, bool), "give True or False")
        check_seconds("LMPool", "deadline", self.deadline)
        check_count("LMPool", "max_queue", self.max_queue, least=0)
        check_seconds("LMPool", "queue_timeout", self.queue_timeout)
        check_count("LMPool", "keep_history", self.keep_history, least=0)
        check_seconds("LMPool", "shutdown", self.shutdown, zero=True)
        check_count("LMPool", "max_restarts", self.max_restarts, least=0)
        check_seconds("LMPool", "max_seconds", self.max_seconds)
