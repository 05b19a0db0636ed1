"""The clients behind an endpoint: lm15, which DSPy brings, for every request that it can represent, else litellm.

Made by `open_client`, one of them for each worker and endpoint, and used on that worker's event loop alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any
from urllib.request import getproxies

from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for
from dspy.lm15 import Message, Request, Response, RouterConfig, UnsupportedFeatureError, registered_providers

from promptside.pools.clients.ahead import open_ahead
from promptside.pools.clients.headers import HeadersTransport
from promptside.pools.clients.judged_lm15 import JudgedRouter
from promptside.pools.clients.key_function import Client
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.requests import ModelType, PoolRequest
from promptside.pools.clients.stream_end import EndingTransport

__all__ = ["EndpointClient", "GivenClient", "NativeEngine", "NativeFirst"]


class NativeEngine(AsyncLM15Engine):
    """DSPy's native engine, that asks once what DSPy's own asks for each call: 0.1 to 0.2 ms of the 0.9 of a call.

    Args:
        provider: As lm15 names it.
        api_key: The credential, or a function that returns that of each request; None for the environment's.
        api_base: The address; None for the provider's own.
        timeout: Seconds that the provider may take for an answer or an event of a stream, > 0 and finite. Whoever asks
            sees to that: lm15, whose error of it is that of a broken connection, waits for twice as long, and for a
            connection for 30 s.
        max_connections: Requests under way at a time.
        headers: Sent with each request.
        model_type: The API, chat or Responses.
    """

    def __init__(
        self,
        provider: str,
        *,
        api_key: str | Callable[[], str] | None,
        api_base: str | None,
        timeout: float,
        max_connections: int,
        headers: Mapping[str, str],
        model_type: ModelType = "chat",
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
            transport=EndingTransport(HeadersTransport(self._transport, headers) if headers else self._transport),
            providers=tuple(entry.definition for entry in registered_providers()),
        )
        super().__init__(config, model_type=model_type)
        self.router = JudgedRouter(config)
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

    async def open_ahead(self, model: str, count: int) -> None:
        """Open so many connections to a model's provider, for the first requests."""
        provider, _ = await asyncio.to_thread(self._target, Request(model=model, messages=(Message.user("hello"),)))
        await open_ahead(self._transport, provider._inner.base_url, count)

    async def aclose(self) -> None:
        """Close the connections."""
        await super().aclose()
        await self._transport.aclose()


class NativeFirst:
    """lm15 for every request that it can represent, litellm for the others; what one refuses so it has not sent.

    Args:
        native: None where lm15 does not speak the provider's dialect.
        litellm: For the rest; None where nothing else may be asked.
    """

    def __init__(self, native: NativeEngine | None, litellm: LiteLLMClient | None) -> None:
        self._native = native
        self._litellm = litellm

    async def complete(self, request: Request) -> Response:
        """One answer."""
        if self._native is not None and _is_native(request):
            try:
                return await self._native.complete(request)
            except UnsupportedFeatureError:  # to ask before would be to build each request twice, in 0.06 ms
                if self._litellm is None or self._represents(request):
                    raise
        return await self._other(request).complete(request)

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        client: Any = self._native if self._represents(request) else self._other(request)
        async with aclosing(client.stream(request)) as events:
            async for event in events:
                yield event

    async def open_ahead(self, model: str, count: int) -> None:
        """As `NativeEngine.open_ahead`; litellm opens none by itself."""
        if self._native is not None:
            await self._native.open_ahead(model, count)

    async def aclose(self) -> None:
        """Close the connections."""
        for client in (self._native, self._litellm):
            if client is not None:
                await client.aclose()

    def _other(self, request: Request) -> LiteLLMClient:
        if self._litellm is None:
            raise UnsupportedFeatureError(
                f"{request.model}: lm15 has no form for this call, and a provider that was declared is asked in no "
                "other way; leave out what it does not take, or give the endpoint's provider a name that litellm knows"
            )
        return self._litellm

    def _represents(self, request: Request) -> bool:
        """Whether lm15 can represent a request; where it cannot, it refuses it before anything is sent."""
        if self._native is None or not _is_native(request):
            return False
        try:
            self._native.plan(request)
        except UnsupportedFeatureError:
            return False
        return True


def _is_native(request: Request) -> bool:
    """Whether lm15 can be asked: it takes no headers of one call."""
    return not isinstance(request, PoolRequest) or (request.native and request.options.keys() <= {"timeout"})


class EndpointClient:
    """The client of one endpoint: for each API one of its own, opened with the first request to it.

    Args:
        open_: Opens the client of an API.
    """

    def __init__(self, open_: Callable[[ModelType], Client]) -> None:
        self._open = open_
        self._clients: dict[ModelType, Client] = {}

    async def complete(self, request: Request) -> Response:
        """One answer."""
        return await self._client(request).complete(request)

    def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        return self._client(request).stream(request)

    async def open_ahead(self, model: str, count: int) -> None:
        """Open so many connections for chat completions, if its client can."""
        client = self._client_for("chat")
        if isinstance(client, NativeFirst):
            await client.open_ahead(model, count)

    async def aclose(self) -> None:
        """Close the connections."""
        for client in self._clients.values():
            await client.aclose()

    def _client(self, request: Request) -> Client:
        return self._client_for(getattr(request, "model_type", "chat"))

    def _client_for(self, model_type: ModelType) -> Client:
        if model_type not in self._clients:
            self._clients[model_type] = self._open(model_type)
        return self._clients[model_type]


class GivenClient:
    """A client that the user gave an endpoint; it is borrowed and not closed.

    Args:
        engine: It.
    """

    def __init__(self, engine: Client) -> None:
        self._engine = engine

    async def complete(self, request: Request) -> Response:
        """One answer."""
        return await self._engine.complete(_for_engine(request))

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        async with aclosing(self._engine.stream(_for_engine(request))) as events:
            async for event in events:
                yield event

    async def aclose(self) -> None:
        """Nothing."""


def _for_engine(request: Request) -> Request:
    if not isinstance(request, PoolRequest):
        return request
    if not request.native:
        raise UnsupportedFeatureError("lm15 has no form for this call, and the endpoint's own engine takes no other")
    if others := sorted(request.options.keys() - {"timeout"}):
        raise UnsupportedFeatureError(f"{', '.join(others)}: the endpoint's own engine takes no settings of a call")
    return request
