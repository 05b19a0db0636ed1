"""`LiteLLMClient`: one endpoint through litellm, for what lm15 does not speak. No other module touches litellm.

Opened by `open_client` and `EmbeddingClient`, and used on one event loop. litellm is imported with the first request.

Nothing here depends on how litellm keeps its HTTP clients, because that changes with its versions: they belong to the
whole process. The connections that they open for these calls are recorded where the event loop makes them, and the last
`LiteLLMClient` of a loop closes those. What the provider answers is judged as it came, not as litellm reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, TypeVar
from weakref import WeakSet

from dspy import lm15
from dspy.clients._litellm import get_litellm
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.lm15 import Request, Response

from promptside.pools.clients.client_errors import lm15_errors
from promptside.pools.clients.judged_litellm import JudgedEngine, RawAnswer

__all__ = ["LiteLLMClient"]

T = TypeVar("T")

_OURS: Final = ContextVar("_OURS", default=False)
"""Whether the code that runs was called by a `LiteLLMClient`."""


class LiteLLMClient:
    """Completions, streams and embeddings of one endpoint. Its errors are lm15's.

    Args:
        timeout: Seconds for an answer, and between two events of a stream, which litellm itself does not always bound.
        **settings: Further settings of each request: `api_key`, `api_base`...
    """

    def __init__(self, *, timeout: float, **settings: Any) -> None:
        self._timeout = timeout
        self._settings = {"timeout": timeout, **settings}
        self._engine = JudgedEngine(model_type="chat", **self._settings)
        self._connections: _Connections | None = None  # from the first request on

    async def complete(self, request: Request) -> Response:
        """One answer."""
        await self._open()
        with RawAnswer() as raw:
            try:
                answer: Response = await _ask(self._engine.complete(request))
            except Exception:
                if (read := raw.without_usage(request)) is None:
                    raise
                answer = read
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        await self._open()
        async with aclosing(self._engine.stream(request)) as events:
            while (event := await _ask(self._next(events))) is not None:
                yield event

    async def _next(self, events: AsyncGenerator[Any, None]) -> Any:
        """The next event; None at the end."""
        bound = asyncio.timeout(self._timeout)
        try:
            async with bound:
                return await anext(events, None)
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise lm15.TimeoutError(f"the provider sent nothing for {self._timeout:g} s") from error

    async def embed(self, model: str, texts: Sequence[str], **options: Any) -> Any:
        """The embeddings of texts, as litellm returns them; it shows no raw body of those."""
        litellm = await self._open()
        once = {"num_retries": 0, "max_retries": 0, "caching": False}
        with litellm_errors(model=model):
            return await _ask(litellm.aembedding(model=model, input=list(texts), **once, **self._settings, **options))

    async def aclose(self) -> None:
        """End; close the connections of the running loop, if no other client uses them."""
        await self._engine.aclose()
        if self._connections is not None:
            self._connections.users.discard(self)
            await self._connections.close_unused()

    async def _open(self) -> Any:
        """Litellm, with the connections recorded that it opens."""
        litellm = await asyncio.to_thread(get_litellm, feature="LM pools")  # importing it takes 5 s: too long a block
        if self._connections is None:
            self._connections = _Connections.of(asyncio.get_running_loop())
            self._connections.users.add(self)
        return litellm


async def _ask(answer: Awaitable[T]) -> T:
    ours = _OURS.set(True)
    try:
        with lm15_errors():
            return await answer
    finally:
        _OURS.reset(ours)


class _Connections:
    """The `create_connection` of an event loop, which records the connections that are opened for our calls.

    Every HTTP client for asyncio opens its connections with it. It stays in the loop.
    """

    def __init__(self, connect: Callable[..., Awaitable[Any]]) -> None:
        self.users: WeakSet[LiteLLMClient] = WeakSet()
        self._connect = connect
        self._opened: set[asyncio.Transport] = set()

    @classmethod
    def of(cls, loop: Any) -> _Connections:
        """Those of a loop."""
        if not isinstance(loop.create_connection, cls):
            loop.create_connection = cls(loop.create_connection)
        found: _Connections = loop.create_connection
        return found

    async def __call__(self, *args: Any, **options: Any) -> Any:
        transport, protocol = await self._connect(*args, **options)
        if _OURS.get():
            self._opened = {transport, *(each for each in self._opened if not each.is_closing())}
        return transport, protocol

    async def close_unused(self) -> None:
        """Close those that are open, unless there is a user left."""
        if self.users:
            return
        opened, self._opened = self._opened, set()
        for transport in opened:
            transport.abort()
        await asyncio.sleep(0)  # the loop closes their sockets
