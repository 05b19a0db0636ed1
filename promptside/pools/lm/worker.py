"""`LMWorker`: the supervised actor that holds the clients and makes the attempts.

Started by `LMPool` under a supervisor on the LM node, asked by its dispatcher. It multiplexes: many requests are
under way at a time, over one client per endpoint.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from dspy.lm15 import ProviderError, Request, Response, TextPart, Usage

from promptside.actors import Actor
from promptside.pools.accounting.ledger import CALL_USAGE
from promptside.pools.clients.credentials import hide_keys
from promptside.pools.clients.embeddings import EmbeddingClient, EmbeddingRequest, Embeddings
from promptside.pools.clients.endpoint import Client, Endpoint, open_client
from promptside.pools.clients.prices import Prices

__all__ = ["LMWorker"]


class LMWorker(Actor, concurrency=10_000, expected=(Exception,), timeout=math.inf, mailbox=10_000):
    """Makes single attempts at the endpoints it was given; retries nothing.

    It takes what it is asked: the dispatcher bounds what is under way to each endpoint, so that one that hangs does
    not hold up the others.

    Args:
        endpoints: The endpoints; a request names one by its index.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._clients: dict[int, Client] = {}
        self._embedders: dict[int, EmbeddingClient] = {}
        self._prices = [Prices(endpoint) for endpoint in endpoints]

    async def on_stop(self, reason: object) -> None:
        """Close the clients, with their connections; those of a killed worker close when they are collected."""
        for index, client in self._clients.items():
            if self._endpoints[index].engine is None:  # a given engine is borrowed
                await client.aclose()
        for embedder in self._embedders.values():
            await embedder.aclose()

    async def complete(self, index: int, request: Request) -> tuple[Response, float | None]:
        """One attempt at the endpoint `index`: the answer and its cost; raises what the client raises, without keys."""
        with self._attempt(index, request) as attempt:
            response = await self._client(index).complete(request)
            cost = attempt.answered(response.usage, response)
            said = any(not isinstance(part, TextPart) or part.text for part in response.message.parts)
            _refuse_empty(said, response.finish_reason)
            return response, cost

    async def stream(
        self, index: int, request: Request, events: asyncio.Queue[Any]
    ) -> tuple[Usage | None, float | None]:
        """One attempt, its events put into a bounded queue: what the provider counted, and what that cost.

        A consumer that is slow holds the provider back; cancelling this ask closes the connection.
        """
        said, usage, cost = False, None, None
        with self._attempt(index, request) as attempt:
            try:
                async with aclosing(self._client(index).stream(request)) as stream:
                    async for event in stream:
                        said = attempt.said = said or event.type == "delta"
                        if event.type == "end":
                            usage = event.usage
                            cost = attempt.answered(usage, usage)
                            _refuse_empty(said, event.finish_reason)
                        await events.put(event)
            except json.JSONDecodeError as error:  # which lm15 types in a whole answer, and lets out of a streamed one
                raise ProviderError(f"a piece of the provider's answer is not JSON: {error}") from error
        return usage, cost

    async def embed(self, index: int, request: EmbeddingRequest) -> tuple[Embeddings, float | None]:
        """One attempt to embed texts at the endpoint `index`; as `complete`."""
        with self._attempt(index, request) as attempt:
            if index not in self._embedders:
                self._embedders[index] = EmbeddingClient(self._endpoints[index])
            answer = await self._embedders[index].embed(request)
            return answer, attempt.answered(answer.usage, answer.usage)

    def _attempt(self, index: int, request: Request | EmbeddingRequest) -> _Attempt:
        return _Attempt(self._endpoints[index], self._prices[index], request)

    def _client(self, index: int) -> Client:
        if index not in self._clients:
            self._clients[index] = open_client(self._endpoints[index])
        return self._clients[index]


class _Attempt:
    """Within it, one request is made: it is billed to the charge of its call, and its errors hold no key."""

    def __init__(self, endpoint: Endpoint, prices: Prices, request: Request | EmbeddingRequest) -> None:
        charge = CALL_USAGE.get()
        self.said = False
        self._endpoint = endpoint
        self._prices = prices
        self._request = request
        self._bill = None if charge is None else charge.attempt(endpoint.name, request.model)

    def answered(self, usage: Usage | None, answer: Response | Usage | None) -> float | None:
        """It was answered; `usage` is what the provider counted, and `answer` what that is priced by: its cost."""
        request = self._request if isinstance(self._request, Request) else None
        cost = None if answer is None else self._prices.cost(answer, request)
        if self._bill is not None:
            self._bill.record(usage, cost)
        return cost

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception):
            hide_keys(error, (self._endpoint.api_key,))
        if self._bill is not None:
            status = getattr(error, "status", None) or getattr(error, "status_code", None) or 0
            if status >= 400 and not self.said:
                self._bill.record_refused()
            else:
                self._bill.record_unknown()


def _refuse_empty(said: bool, finish_reason: str | None) -> None:
    """An answer that says nothing, and no reason why: a provider's fault that travels as a success."""
    if not said and finish_reason in (None, "stop"):
        raise ProviderError("the provider's answer is empty")
