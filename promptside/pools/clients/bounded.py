"""`BoundedClient`: the client of an endpoint, whose answers come in time or not at all.

Opened by a worker. It bounds each wait for an answer, whatever the client is, and sends a request once more that met a
dead connection, see `connections`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final, TypeVar

from dspy import lm15

from promptside.pools.clients.connections import Connections, Use
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.clients.provider_timeout import ProviderTimeout
from promptside.pools.errors import LMCallTimeout

__all__ = ["BoundedClient"]

T = TypeVar("T")

PREPARE_SECONDS: Final = 60.0
"""Seconds, at least, for what comes before a request is sent: litellm is imported, credentials are fetched. The
provider's time begins when it is sent."""


class BoundedClient:
    """A client of chat or of embeddings, bounded.

    Args:
        client: A `Client` or an `EmbeddingClient`.
        endpoint: Its `timeout` is the longest wait for a whole answer, and for each event of a stream; comments and
            pings are no events. The connections of an `engine` of its own are left alone.

    Raises:
        lm15.TimeoutError: From each method: the wait was longer.
        LMCallTimeout: It was longer than the call's own `timeout`.
    """

    def __init__(self, client: Any, endpoint: Endpoint) -> None:
        self._client = client
        self._timeout = endpoint.timeout
        self._watches = endpoint.engine is None
        self._connections: Connections | None = None  # from the first request on
        self._user = object()

    async def complete(self, request: Any) -> Any:
        """As `Client.complete`."""
        return await self._whole(lambda: self._client.complete(request), request)

    async def embed(self, request: Any) -> Any:
        """As `EmbeddingClient.embed`."""
        return await self._whole(lambda: self._client.embed(request), request)

    def stream(self, request: Any) -> AsyncGenerator[Any, None]:
        """As `Client.stream`."""
        return self._send(lambda: self._client.stream(request), request)

    async def open_ahead(self, model: str, count: int) -> None:
        """Open so many connections to a model's provider, for the first requests; those of an `engine` are its own."""
        if self._watches:
            with Use(self._watched(), self._user, ahead=True) as use, use.running():
                await self._client.open_ahead(model, count)

    async def aclose(self) -> None:
        """Close the client and its connections."""
        try:
            await self._client.aclose()
        finally:
            self.abandon()
            await asyncio.sleep(0)  # the loop closes the sockets

    def abandon(self) -> None:
        """Close the connections of a client that nobody will close."""
        if self._connections is not None:
            self._connections.leave(self._user)

    def _watched(self) -> Connections | None:
        if self._watches and self._connections is None:
            self._connections = Connections.of(asyncio.get_running_loop())
        return self._connections

    async def _whole(self, ask: Callable[[], Awaitable[Any]], request: Any) -> Any:
        async def answer() -> AsyncGenerator[Any, None]:
            yield await ask()

        async with aclosing(self._send(answer, request)) as events:
            return await anext(events)

    async def _send(self, send: Callable[[], AsyncGenerator[T, None]], request: Any) -> AsyncGenerator[T, None]:
        """The events of a request that is sent when the first is awaited."""
        connections = self._watched()
        for is_last in (False, True):
            with Use(connections, self._user) as use:
                try:
                    async with aclosing(send()) as events:
                        while (event := await self._next(events, use, request)) is not None:
                            yield event
                    return
                except lm15.LM15Error:
                    if is_last or not use.may_send_again():
                        raise

    async def _next(self, events: AsyncGenerator[T, None], use: Use, request: Any) -> T | None:
        of_call: float = getattr(request, "options", {}).get("timeout", math.inf)
        if of_call < self._timeout:  # which its caller waits for, whatever the time is spent on
            limit, prepares = ProviderTimeout(of_call), False
        else:
            prepares = use.connections is not None and not use.is_sent
            limit = ProviderTimeout(max(self._timeout, PREPARE_SECONDS) if prepares else self._timeout)
            use.on_sent = lambda: limit.restart(self._timeout)
        try:
            with use.running():
                async with limit:
                    return await anext(events, None)
        except TimeoutError as error:
            if not limit.expired:
                raise
            if of_call < self._timeout:
                raise LMCallTimeout(of_call, model=request.model) from error
            if prepares and not use.is_sent:
                raise lm15.TransportError("the request could not be sent in time") from error
            raise lm15.TimeoutError(f"the provider sent nothing for {self._timeout:g} s") from error
