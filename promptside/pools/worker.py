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

from dspy.lm15 import Request, Response

from promptside.actors import Actor
from promptside.pools.endpoint import Client, Endpoint, open_client

__all__ = ["END_OF_STREAM", "LMWorker"]

END_OF_STREAM = object()


class LMWorker(Actor, concurrency=64, expected=(Exception,), timeout=math.inf, mailbox=10_000):
    """Makes single attempts at the endpoints it was given; retries nothing.

    Args:
        endpoints: The endpoints; a request names one by its index.
    """

    def __init__(self, endpoints: Sequence[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)
        self._clients: dict[int, Client] = {}

    async def on_stop(self, reason: object) -> None:
        """Close the clients, with their connections."""
        for index, client in self._clients.items():
            if self._endpoints[index].engine is None:  # a given engine is borrowed
                await client.aclose()

    async def complete(self, index: int, request: Request) -> Response:
        """One attempt at the endpoint `index`; raises whatever the client raises."""
        return await self._client(index).complete(request)

    async def stream(self, index: int, request: Request, events: asyncio.Queue[Any]) -> None:
        """One attempt, its events put into a bounded queue, then `END_OF_STREAM`.

        A consumer that is slow holds the provider back; cancelling this ask closes the connection.
        """
        async with aclosing(self._client(index).stream(request)) as stream:
            async for event in stream:
                await events.put(event)
        await events.put(END_OF_STREAM)

    def _client(self, index: int) -> Client:
        if index not in self._clients:
            self._clients[index] = open_client(self._endpoints[index])
        return self._clients[index]
