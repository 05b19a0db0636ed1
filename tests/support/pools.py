"""What the tests of the LM pool have in common: a pool that runs in a system, and what the event bus told of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import dspy

from promptside import ActorRef, ActorSystem, Event
from promptside.events.patterns import compile_pattern
from promptside.pools import Endpoint, LMPool, RetryConfig
from promptside.pools.lm.worker import LMWorker
from promptside.testing import FakeServer

KEY = "sk-very-secret-key"


@dataclass
class Scene:
    """A running pool.

    Attributes:
        system: Where it runs.
        pool: The pool.
        lm: Its LM, without DSPy's cache.
        told: Every event since the start, in order.
    """

    system: ActorSystem
    pool: LMPool
    lm: dspy.LM
    told: list[Event] = field(default_factory=list)

    def events(self, pattern: str) -> list[Event]:
        matches = compile_pattern(pattern)
        return [event for event in self.told if matches(event.type)]

    def types(self, pattern: str) -> list[str]:
        return [event.type for event in self.events(pattern)]

    def workers(self) -> list[ActorRef[LMWorker]]:
        return list(self.pool.worker_refs().values())

    def circuit(self, endpoint: str = "openai/fake") -> str:
        return str(self.pool.stats()[endpoint]["circuit"])

    def pass_time(self, seconds: float) -> None:
        """Set the clock of the pool's event loop forward."""
        loop: Any = self.lm.engine.live.loop
        now = loop.time
        loop.time = lambda: now() + seconds

    async def until(self, type: str, **facts: Any) -> Event:
        """The next event of this type with these facts, also one that was told already."""
        async with self.system.events.subscribe(type) as stream:
            for event in self.events(type):
                if facts.items() <= {**event.data, "source": event.source}.items():
                    return event
            async for event in stream:
                if facts.items() <= {**event.data, "source": event.source}.items():
                    return event
        raise AssertionError(f"the bus was closed before {type} was told")


def endpoint(server: FakeServer, model: str = "openai/fake", **settings: Any) -> Endpoint:
    return Endpoint(model, **{"api_base": server.url, "api_key": KEY, **settings})


def async_engine(lm: dspy.LM) -> Any:
    """The asynchronous half of an LM's engine pair; the other one is `lm.engine`."""
    return lm._async_engine_spec


@asynccontextmanager
async def running(*doors: FakeServer | Endpoint, **settings: Any) -> AsyncIterator[Scene]:
    """A pool over servers or endpoints, which retries without a pause and stops without waiting for hanging calls."""
    endpoints = [endpoint(door) if isinstance(door, FakeServer) else door for door in doors]
    async with ActorSystem() as system:
        told: list[Event] = []
        system.events.on("*", told.append)
        settings = {"retry": RetryConfig(initial=0), "shutdown": 0.1, **settings}
        pool = await LMPool(endpoints, **settings).start(system)
        yield Scene(system, pool, pool.lm(cache=False), told)
