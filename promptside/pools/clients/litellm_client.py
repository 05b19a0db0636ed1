"""`LiteLLMClient`: one endpoint through litellm, for what lm15 does not speak. No other module touches litellm.

Opened by `open_client` and `EmbeddingClient`, and used on one event loop. litellm is imported with the first request.

Nothing here depends on how litellm keeps its HTTP clients, because that changes with its versions: they belong to the
whole process. The connections that they open for these calls are recorded where the event loop makes them, and the last
`LiteLLMClient` of a loop closes those. What the provider answers is judged as it came, not as litellm reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

from dspy import lm15
from dspy.clients._litellm import get_litellm
from dspy.clients.engines.lifecycle import aclosing_stream
from dspy.clients.engines.litellm_engine import AsyncLiteLLMEngine
from dspy.clients.engines.litellm_engine import _ChatStream as ChatStream
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.lm15 import Request, Response

from promptside.pools.clients.client_errors import lm15_errors
from promptside.pools.clients.connections import Connections
from promptside.pools.clients.judged_litellm import RawAnswer, judge_stream, keep_raw
from promptside.pools.clients.stream_end import Grace, StreamOver

__all__ = ["LiteLLMClient"]

T = TypeVar("T")


class LiteLLMClient:
    """Completions, streams and embeddings of one endpoint. Its errors are lm15's.

    Args:
        timeout: Seconds for which litellm waits between two bytes; not for every provider.
        **settings: Further settings of each request: `api_key`, `api_base`...
    """

    def __init__(self, *, timeout: float, **settings: Any) -> None:
        self._settings = {"timeout": timeout, **settings}
        self._engine = AsyncLiteLLMEngine(model_type="chat", **self._settings)
        self._engine.client_options["logger_fn"] = keep_raw
        self._connections: Connections | None = None  # from the first request on

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
        litellm = await self._open()
        with litellm_errors(model=request.model):
            source = await _ask(litellm.acompletion(**self._engine._arguments(request, streaming=True)))
            await _ask(judge_stream(source))
        pieces, grace = ChatStream(request), Grace()
        async with aclosing_stream(source):
            try:
                while (chunk := await grace.wait(_ask(_next(source, request.model)))) is not None:
                    for event in pieces.feed(chunk):
                        if event.type == "delta":
                            grace.piece(thought=event.delta.type == "thinking")
                        yield event
                    if any(choice.finish_reason for choice in chunk.choices):
                        grace.finish()
            except StreamOver:
                pass
            except lm15.TransportError:  # broken off, without its regular end
                if not grace.finished:
                    raise
            yield pieces.finish(litellm)

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
            self._connections = Connections.of(asyncio.get_running_loop())
            self._connections.users.add(self)
        return litellm


async def _ask(answer: Awaitable[T]) -> T:
    with Connections.owned(), lm15_errors():
        return await answer


async def _next(source: Any, model: str) -> Any:
    """The next chunk of a stream; None at its end."""
    with litellm_errors(model=model):
        return await anext(aiter(source), None)
