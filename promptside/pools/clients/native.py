"""The clients behind an endpoint: lm15, which DSPy brings, for every request that it can represent, else litellm.

Made by `open_client`, one of them for each worker and endpoint, and used on that worker's event loop alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, ClassVar
from urllib.request import getproxies
from weakref import WeakSet

from dspy import lm15
from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy.clients._litellm import get_litellm
from dspy.clients.engines.litellm_engine import AsyncLiteLLMEngine
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for
from dspy.lm15 import Request, Response, RouterConfig, UnsupportedFeatureError, registered_providers

from promptside.pools.clients.provider_errors import GoogleRouter, as_the_provider_said

__all__ = ["NativeEngine", "NativeFirst"]


class NativeEngine(AsyncLM15Engine):
    """DSPy's native engine, that asks once what DSPy's own asks for each call: 0.1 to 0.2 ms of the 0.9 of a call.

    Args:
        provider: As lm15 names it.
        api_key: The credential; None for the environment's.
        api_base: The address; None for the provider's own.
        timeout: Seconds that the provider may take between two bytes, > 0 and finite.
        max_connections: Requests under way at a time.
    """

    def __init__(
        self, provider: str, *, api_key: str | None, api_base: str | None, timeout: float, max_connections: int
    ) -> None:
        waits = timeouts_for(timeout)
        assert waits is not None
        self._transport = StdlibAsyncTransport(
            connect_timeout=waits.connect,
            read_timeout=waits.read,
            write_timeout=waits.write,
            pool_timeout=None,  # nobody waits for a connection: the dispatcher lets no more in than there are
            max_connections=max_connections,
            trust_env=bool(getproxies()),  # else lm15 looks for a proxy with each request, among all variables
        )
        config = RouterConfig(
            api_keys=None if api_key is None else {provider: api_key},
            base_urls=None if api_base is None else {provider: api_base},
            transport=self._transport,
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
        timeout: Seconds between two events of a stream; litellm bounds that for some providers only.
    """

    # litellm keeps its HTTP clients for the whole process, by event loop: the last user on a loop closes that loop's.
    _users: ClassVar[WeakSet[NativeFirst]] = WeakSet()

    def __init__(self, native: AsyncLM15Engine | None, litellm: AsyncLiteLLMEngine, timeout: float) -> None:
        self._native = native
        self._litellm = litellm
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None  # where it has used litellm

    async def complete(self, request: Request) -> Response:
        """One answer."""
        with as_the_provider_said():
            if self._native is not None:
                try:
                    return await self._native.complete(request)
                except UnsupportedFeatureError:  # to ask before would be to build each request twice, in 0.06 ms
                    if self._represents(request):
                        raise
            return await (await self._others()).complete(request)

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        native = self._represents(request)
        client: Any = self._native if native else await self._others()
        async with aclosing(client.stream(request)) as events:
            with as_the_provider_said():
                while (event := await (anext(events, None) if native else self._next(events))) is not None:
                    yield event

    async def _next(self, events: AsyncGenerator[Any, None]) -> Any:
        """The next event of litellm's; None at the end."""
        bound = asyncio.timeout(self._timeout)
        try:
            async with bound:
                return await anext(events, None)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise lm15.TimeoutError(f"the provider sent nothing for {self._timeout:g} s") from error

    async def aclose(self) -> None:
        """Close the connections, also those that litellm holds for the running loop if nobody else uses them."""
        if self._native is not None:
            await self._native.aclose()
        await self._litellm.aclose()
        self._users.discard(self)
        if self._loop is not None and all(user._loop is not self._loop for user in self._users):
            await _close_litellm_clients(self._loop)

    def _represents(self, request: Request) -> bool:
        """Whether lm15 can represent a request; where it cannot, it refuses it before anything is sent."""
        if self._native is None:
            return False
        try:
            self._native.plan(request)
        except UnsupportedFeatureError:
            return False
        return True

    async def _others(self) -> AsyncLiteLLMEngine:
        await asyncio.to_thread(get_litellm, feature="LM pools")  # its first import takes 5 s, too long for the loop
        self._loop = asyncio.get_running_loop()
        self._users.add(self)
        return self._litellm


async def _close_litellm_clients(loop: asyncio.AbstractEventLoop) -> None:
    """Close the HTTP clients that litellm holds for a loop, the running one."""
    cache = get_litellm(feature="LM pools").in_memory_llm_clients_cache
    for key, client in list(cache.cache_dict.items()):
        if key.endswith(f"-{id(loop)}"):
            cache.delete_cache(key)
            await client.close()
