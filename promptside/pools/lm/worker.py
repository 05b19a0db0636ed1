"""`LMWorker`: the supervised actor that holds the clients and makes the attempts.

Started by the pool's supervisor, asked by its dispatcher. It multiplexes: many requests are under way at a time, over
one client per endpoint. `WorkerGroup` knows which of them run.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from dspy.lm15 import Request, Response, Usage
from dspy.utils.exceptions import LMUnexpectedError

from promptside.actors import Actor, ActorRef, State
from promptside.actors.spi import call_when_ended, cell_of, wait_ended
from promptside.pools.accounting.ledger import CALL_USAGE
from promptside.pools.clients.bounded import BoundedClient
from promptside.pools.clients.credentials import hide_keys
from promptside.pools.clients.embeddings import EmbeddingClient, EmbeddingRequest, Embeddings
from promptside.pools.clients.endpoint import Endpoint, open_client
from promptside.pools.clients.headers import secrets_in
from promptside.pools.clients.judge import empty_answer
from promptside.pools.clients.prices import Prices
from promptside.pools.clients.requests import Origin, credible, end_with_origin, with_origin
from promptside.pools.clients.unicode import PairJoiner, repaired
from promptside.texts import kind_of
from promptside.waiting import cancellations

__all__ = ["LMWorker", "WorkerGroup"]


class LMWorker(Actor, max_concurrency=10_000, expected=(Exception,), timeout=math.inf, mailbox=10_000):
    """Makes single attempts at the endpoints it was given; retries nothing.

    It has no bound of its own: the dispatcher bounds the requests to each endpoint, so that one that hangs does not
    hold up the others.

    Args:
        endpoints: The endpoints; a request names one by its index.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._clients: dict[int, BoundedClient] = {}
        self._embedders: dict[int, BoundedClient] = {}
        self._prices = [Prices(endpoint) for endpoint in endpoints]
        call_when_ended(self, self._abandon)

    async def on_stop(self, reason: object) -> None:
        """Close the clients; of a killed worker's, the connections are closed."""
        for index, client in self._clients.items():
            if self._endpoints[index].engine is None:  # a given engine is borrowed
                await client.aclose()
        for embedder in self._embedders.values():
            await embedder.aclose()

    async def open_ahead(self, count: int) -> None:
        """Open so many connections to each endpoint, for the first requests; these will tell what is wrong."""
        opened = (
            self._client(index).open_ahead(endpoint.model, min(count, endpoint.max_connections))
            for index, endpoint in enumerate(self._endpoints)
        )
        await asyncio.gather(*opened, return_exceptions=True)

    async def complete(self, index: int, request: Request) -> tuple[Response, float | None]:
        """One attempt at the endpoint `index`: the answer and its cost. Errors of the client hold no keys."""
        with self._attempt(index, request) as attempt:
            response: Response = await self._client(index).complete(request)
            if repaired(response.message) is not response.message:
                response = repaired(response)
            if (usage := credible(response.usage)) is not response.usage:
                response = replace(response, usage=usage)
            origin = attempt.answered(usage, response)
            return with_origin(response, origin), origin.cost

    async def stream(
        self, index: int, request: Request, events: asyncio.Queue[Any]
    ) -> tuple[Usage | None, float | None]:
        """One attempt, its events put into a bounded queue: the provider's count and its cost.

        A slow consumer holds the provider back; cancelling this ask closes the connection.
        """
        usage, cost, joiner = None, None, PairJoiner()
        with self._attempt(index, request) as attempt:
            async with aclosing(self._client(index).stream(request)) as stream:
                async for event in stream:
                    attempt.has_content = attempt.has_content or event.type == "delta"
                    if event.type == "end":
                        usage = credible(event.usage)
                        event = event if usage is event.usage else replace(event, usage=usage)
                        origin = attempt.answered(usage, usage)
                        cost = origin.cost
                        if not attempt.has_content and event.finish_reason is None:
                            raise empty_answer("the provider's stream has no choice")
                        event = end_with_origin(event, origin)
                    for piece in joiner.feed(event):
                        await events.put(piece)
        return usage, cost

    async def embed(self, index: int, request: EmbeddingRequest) -> tuple[Embeddings, float | None]:
        """One attempt to embed texts at the endpoint `index`; as `complete`."""
        with self._attempt(index, request) as attempt:
            if index not in self._embedders:
                endpoint = self._endpoints[index]
                self._embedders[index] = BoundedClient(EmbeddingClient(endpoint), endpoint)
            answer: Embeddings = await self._embedders[index].embed(request)
            answer = replace(answer, usage=credible(answer.usage))
            return answer, attempt.answered(answer.usage, answer.usage).cost

    def _abandon(self) -> None:
        for client in (*self._clients.values(), *self._embedders.values()):
            client.abandon()

    def _attempt(self, index: int, request: Request | EmbeddingRequest) -> _Attempt:
        return _Attempt(self._endpoints[index], self._prices[index], request)

    def _client(self, index: int) -> BoundedClient:
        if index not in self._clients:
            endpoint = self._endpoints[index]
            self._clients[index] = BoundedClient(open_client(endpoint), endpoint)
        return self._clients[index]


class WorkerGroup:
    """The workers of one incarnation of a pool. On the pool's event loop.

    Args:
        refs: The workers.
        supervisor: Their supervisor, which calls `wake` and `close`.

    Attributes:
        refs: As given.
        supervisor: As given.
    """

    def __init__(self, refs: Sequence[ActorRef[LMWorker]], supervisor: ActorRef[Any]) -> None:
        self.refs = tuple(refs)
        self.supervisor = supervisor
        self._incarnation = supervisor.incarnation
        self._closed = False
        self._waiters: set[asyncio.Future[None]] = set()

    @property
    def alive(self) -> bool:
        """Whether those that do not run will be restarted."""
        supervisor = self.supervisor
        running = supervisor.state in (State.STARTING, State.RUNNING) and supervisor.incarnation == self._incarnation
        return running and not self._closed

    async def wait_running(self) -> None:
        """Return when one of them runs, or when none will again: see `alive`."""
        while self.alive and not any(ref.state is State.RUNNING for ref in self.refs):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            killed = asyncio.ensure_future(wait_ended(cell_of(self.supervisor)))  # noqa: TID251 - ended below
            try:
                await asyncio.wait((waiter, killed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                killed.cancel()
                self._waiters.discard(waiter)

    async def open_ahead(self, count: int) -> None:
        """Have each worker open its share of so many connections to each endpoint. From any event loop."""
        shares = [(count + place) // len(self.refs) for place in range(len(self.refs))]
        asked = (ref.ask(LMWorker.open_ahead, share) for ref, share in zip(self.refs, shares, strict=True))
        await asyncio.gather(*asked, return_exceptions=True)

    def wake(self) -> None:
        """Wake the waiting calls: a worker has started."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """None will be restarted."""
        self._closed = True
        self.wake()


class _Attempt:
    """Around one request: counts what it used for its call, and removes the key from its errors.

    A client may raise what it likes, `SystemExit` and `GeneratorExit` too: here it ends its own call.
    """

    def __init__(self, endpoint: Endpoint, prices: Prices, request: Request | EmbeddingRequest) -> None:
        usage = CALL_USAGE.get()
        self.has_content = False
        self._cancellations = cancellations()
        self._endpoint = endpoint
        self._prices = prices
        self._request = request
        self._usage = None if usage is None else usage.attempt(endpoint.name, request.model)

    def answered(self, usage: Usage | None, answer: Response | Usage | None) -> Origin:
        """It was answered; returns the provider and the cost.

        Args:
            usage: The provider's count.
            answer: Priced for the cost.
        """
        request = self._request if isinstance(self._request, Request) else None
        origin = Origin() if answer is None else self._prices.price(answer, request)
        if self._usage is not None:
            self._usage.record(usage, origin.cost)
        return origin

    def _secrets_of_call(self) -> Iterator[str]:
        options = getattr(self._request, "options", {})
        for name in ("headers", "extra_headers"):
            yield from secrets_in(options.get(name) or {})

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            hide_keys(error, (*self._endpoint.secrets(), *self._secrets_of_call()))
        legible = error is None or _is_legible(error)
        if self._usage is not None:
            status = (getattr(error, "status", None) or getattr(error, "status_code", None) or 0) if legible else 0
            if isinstance(status, int) and status >= 400 and not self.has_content:
                self._usage.record_refused()
            else:
                self._usage.record_unknown()
        cancelled = isinstance(error, asyncio.CancelledError) and cancellations() > self._cancellations
        if error is not None and not cancelled and not (isinstance(error, Exception) and legible):
            text = f"the client of {self._endpoint.name} raised {kind_of(error)}, which is no error of a call"
            raise LMUnexpectedError(text, model=self._request.model) from error


def _is_legible(error: BaseException) -> bool:
    """Whether what is read of an error can be: its text and its attributes may raise anything."""
    try:
        str(error)
        for name in ("status", "status_code", "retry_after"):
            getattr(error, name, None)
    except BaseException:  # noqa: BLE001 - of a foreign class
        return False
    return True
