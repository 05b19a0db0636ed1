"""The clients behind an endpoint: lm15, which DSPy brings, for every request that it can represent, else litellm.

Made by `open_client`, one of them for each worker and endpoint, and used on that worker's event loop alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from urllib.request import getproxies

from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for
from dspy.lm15 import Request, Response, RouterConfig, UnsupportedFeatureError, registered_providers

from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.provider_errors import GoogleRouter
from promptside.pools.clients.stream_end import EndingTransport

__all__ = ["NativeEngine", "NativeFirst"]


class NativeEngine(AsyncLM15Engine):
    """DSPy's native engine, that asks once what DSPy's own asks for each call: 0.1 to 0.2 ms of the 0.9 of a call.

    Args:
        provider: As lm15 names it.
        api_key: The credential; None for the environment's.
        api_base: The address; None for the provider's own.
        timeout: Seconds that the provider may take for an answer or an event of a stream, > 0 and finite. Whoever asks
            sees to that: lm15, whose error of it is that of a broken connection, waits for twice as long, and for a
            connection for 30 s.
        max_connections: Requests under way at a time.
    """

    def __init__(
        self, provider: str, *, api_key: str | None, api_base: str | None, timeout: float, max_connections: int
    ) -> None:
        waits = timeouts_for(2 * timeout)
        assert waits is not None
        self._transport = StdlibAsyncTransport(
            connect_timeout=30.0,
            read_timeout=waits.read,
            write_timeout=waits.write,
            pool_timeout=None,  # no call waits for a connection: the dispatcher admits no more than there are
            max_connections=max_connections,
            trust_env=bool(getproxies()),  # else lm15 looks for a proxy with each request, among all variables
        )
        config = RouterConfig(
            api_keys=None if api_key is None else {provider: api_key},
            base_urls=None if api_base is None else {provider: api_base},
            transport=EndingTransport(self._transport),
            providers=tuple(entry.definition for entry in registered_providers()),
        )
        super().__init__(config)
        if provider == "gemini":
            self.router = GoogleRouter(config)
        self._met: set[str] = set()  # models whose provider's client is made

    async def complete(self, request: Request) -> Response:
        """One answer. Only the making of a provider's client may wait, for a stored login: it is done in a thread."""
        if request.model in self._met:
            provider, routed = self._target(request)
        else:
            provider, routed = await asyncio.to_thread(self._target, request)
            self._met.add(request.model)
        answer: Response = await provider.complete(routed)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await super().aclose()
        await self._transport.aclose()


class NativeFirst:
    """lm15 for every request that it can represent, litellm for the others; what one refuses so it has not sent.

    Args:
        native: None where lm15 does not speak the provider's dialect.
        litellm: For the rest.
    """

    def __init__(self, native: AsyncLM15Engine | None, litellm: LiteLLMClient) -> None:
        self._native = native
        self._litellm = litellm

    async def complete(self, request: Request) -> Response:
        """One answer."""
        if self._native is not None:
            try:
                return await self._native.complete(request)
            except UnsupportedFeatureError:  # to ask before would be to build each request twice, in 0.06 ms
                if self._represents(request):
                    raise
        return await self._litellm.complete(request)

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        client: Any = self._native if self._represents(request) else self._litellm
        async with aclosing(client.stream(request)) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Close the connections."""
        if self._native is not None:
            await self._native.aclose()
        await self._litellm.aclose()

    def _represents(self, request: Request) -> bool:
        """Whether lm15 can represent a request; where it cannot, it refuses it before anything is sent."""
        if self._native is None:
            return False
        try:
            self._native.plan(request)
        except UnsupportedFeatureError:
            return False
        return True
