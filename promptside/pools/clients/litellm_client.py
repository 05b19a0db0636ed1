"""`LiteLLMClient`: one endpoint through litellm, for what lm15 does not speak. No other module touches litellm.

Opened by `open_client` and `EmbeddingClient`, and used on one event loop. litellm is imported with the first request.

Nothing here depends on how litellm keeps its HTTP clients, because that changes with its versions: they belong to the
whole process. `Connections` watches the connections that they open, and closes them. What the provider answers is
judged as it came, not as litellm reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from dspy import lm15
from dspy.clients._litellm import get_litellm
from dspy.clients.engines.lifecycle import aclosing_stream
from dspy.clients.engines.litellm_engine import _ChatStream as ChatStream
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.lm15 import Request, Response

from promptside.pools.clients.client_errors import lm15_errors
from promptside.pools.clients.connections import Connections
from promptside.pools.clients.judged_litellm import RawAnswer, judge_stream, keep_raw
from promptside.pools.clients.litellm_call import CallEngine, setting_errors
from promptside.pools.clients.one_request import install, one_request
from promptside.pools.clients.requests import ModelType
from promptside.pools.clients.stream_end import Grace, StreamOver

__all__ = ["LiteLLMClient", "load_litellm"]

T = TypeVar("T")


class LiteLLMClient:
    """Completions, streams and embeddings of one endpoint. Its errors are lm15's.

    Args:
        timeout: Seconds for which litellm waits between two bytes; not for every provider.
        api_key: The credential, or a function that returns that of each request.
        headers: Sent with each request.
        model_type: The API of its completions.
        **settings: Further settings of each request: `api_base`...
    """

    def __init__(
        self,
        *,
        timeout: float,
        api_key: str | Callable[[], str] | None = None,
        headers: Mapping[str, str] | None = None,
        model_type: ModelType = "chat",
        **settings: Any,
    ) -> None:
        self._key = api_key
        self._model_type = model_type
        self._fixed = {"timeout": timeout, **settings, **({"extra_headers": dict(headers)} if headers else {})}

    async def complete(self, request: Request) -> Response:
        """One answer."""
        await load_litellm()
        with RawAnswer() as raw:
            try:
                answer: Response = await _ask(self._engine().complete(request))
            except Exception:
                if (read := raw.without_usage(request)) is None:
                    raise
                answer = read
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        litellm = await load_litellm()
        arguments = self._engine()._arguments(request, streaming=True)
        source = await _ask(_typed(litellm.acompletion(**arguments), request.model))
        await _ask(_typed(judge_stream(source), request.model))
        pieces, grace = ChatStream(request), Grace()
        async with aclosing_stream(source):
            try:
                while (chunk := await grace.wait(_ask(_typed(anext(aiter(source), None), request.model)))) is not None:
                    has_piece = False
                    for event in pieces.feed(chunk):
                        if event.type == "delta":
                            has_piece = True
                            grace.piece(thought=event.delta.type == "thinking")
                        yield event
                    if any(choice.finish_reason for choice in chunk.choices):
                        grace.finish(early=has_piece)
            except StreamOver:
                pass
            except lm15.TransportError:  # broken off, without its regular end
                if not grace.finished:
                    raise
            yield pieces.finish(litellm)

    async def embed(self, model: str, texts: Sequence[str], **options: Any) -> Any:
        """The embeddings of texts, as litellm returns them; it shows no raw body of those."""
        litellm = await load_litellm()
        once = {"num_retries": 0, "max_retries": 0, "caching": False}
        with litellm_errors(model=model):
            return await _ask(litellm.aembedding(model=model, input=list(texts), **once, **self._settings(), **options))

    async def aclose(self) -> None:
        """Nothing: litellm keeps its clients, and `Connections` closes their connections."""

    def _settings(self) -> dict[str, Any]:
        """Those of the request that is being sent."""
        key = self._key() if callable(self._key) else self._key
        return self._fixed if key is None else {**self._fixed, "api_key": key}

    def _engine(self) -> CallEngine:
        engine = CallEngine(model_type=self._model_type, **self._settings())
        engine.client_options["logger_fn"] = keep_raw
        return engine


_LOADED: list[Any] = []


async def load_litellm() -> Any:
    """Litellm, which is imported in a thread: that takes seconds, too long a block for an event loop."""
    if not _LOADED:
        litellm = await asyncio.to_thread(get_litellm, feature="LM pools")
        install()
        _LOADED.append(litellm)
    return _LOADED[0]


async def _ask(answer: Awaitable[T]) -> T:
    with Connections.shared(), one_request(), setting_errors(), lm15_errors():
        return await answer


async def _typed(answer: Awaitable[T], model: str) -> T:
    with litellm_errors(model=model):
        return await answer
