"""`LMWorker`: the supervised actor that holds the clients and makes the attempts.

Started by `LMPool` under a supervisor on the LM node, asked by its dispatcher. It multiplexes: many requests are
under way at a time, over one client per endpoint.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from dspy.lm15 import ProviderError, Request, Response, TextPart, Usage

from promptside.actors import Actor
from promptside.pools.endpoint import Client, Endpoint, open_client

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

    async def on_stop(self, reason: object) -> None:
        """Close the clients, with their connections; those of a killed worker close when they are collected."""
        for index, client in self._clients.items():
            if self._endpoints[index].engine is None:  # a given engine is borrowed
                await client.aclose()

    async def complete(self, index: int, request: Request) -> Response:
        """One attempt at the endpoint `index`; raises whatever the client raises."""
        response = await self._client(index).complete(request)
        said = any(not isinstance(part, TextPart) or part.text for part in response.message.parts)
        _refuse_empty(said, response.finish_reason)
        return response

    async def stream(self, index: int, request: Request, events: asyncio.Queue[Any]) -> Usage | None:
        """One attempt, its events put into a bounded queue; returns what the provider counted.

        A consumer that is slow holds the provider back; cancelling this ask closes the connection.
        """
        said, usage = False, None
        async with aclosing(self._client(index).stream(request)) as stream:
            async for event in stream:
                said = said or event.type == "delta"
                if event.type == "end":
                    _refuse_empty(said, event.finish_reason)
                    usage = event.usage
                await events.put(event)
        return usage

    def _client(self, index: int) -> Client:
        if index not in self._clients:
            self._clients[index] = open_client(self._endpoints[index])
        return self._clients[index]


def _refuse_empty(said: bool, finish_reason: str | None) -> None:
    """An answer that says nothing, and no reason why: a provider's fault that travels as a success."""
    if not said and finish_reason in (None, "stop"):
        raise ProviderError("the provider's answer is empty")
