"""`LiteLLMClient`: one endpoint through litellm, for what lm15 does not speak. No other module touches litellm.

Opened by `open_client` and `EmbeddingClient`, and used on one event loop. litellm is imported with the first request.

Nothing here depends on how litellm keeps its HTTP clients or names its errors, because both change with its versions:

- Its clients belong to the whole process. The connections that they open for these calls are recorded where the event
  loop makes them, and the last `LiteLLMClient` of a loop closes those.
- An error is judged by what it was raised from: the provider's response, or the error of the connection. litellm's own
  type decides only where there is neither, or where it is more exact.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from dspy import lm15
from dspy.clients._http import finite_seconds, retry_after_seconds
from dspy.clients._litellm import get_litellm
from dspy.clients.engines.lifecycle import aclosing_stream
from dspy.clients.engines.litellm_engine import _ChatStream as ChatStream
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.lm15 import Request, Response

from promptside.pools.clients.connections import Connections
from promptside.pools.clients.litellm_call import CallEngine, setting_errors
from promptside.pools.clients.provider_errors import retry_delay
from promptside.pools.clients.requests import ModelType
from promptside.pools.clients.stream_end import Grace, StreamOver
from promptside.pools.clients.time_limit import TimeLimit

__all__ = ["LiteLLMClient", "provider_errors"]

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
        self._connections: Connections | None = None  # from the first request on

    async def complete(self, request: Request) -> Response:
        """One answer."""
        await self._open()
        answer: Response = await _ask(self._engine().complete(request))
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        litellm = await self._open()
        arguments = self._engine()._arguments(request, streaming=True)
        source = await _ask(_typed(litellm.acompletion(**arguments), request.model))
        pieces, grace = ChatStream(request), Grace()
        async with aclosing_stream(source):
            try:
                while (chunk := await grace.wait(_ask(_typed(anext(aiter(source), None), request.model)))) is not None:
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
        """The embeddings of texts, as litellm returns them."""
        litellm = await self._open()
        once = {"num_retries": 0, "max_retries": 0, "caching": False}
        with litellm_errors(model=model):
            return await _ask(litellm.aembedding(model=model, input=list(texts), **once, **self._settings(), **options))

    async def aclose(self) -> None:
        """End; close the connections of the running loop, if no other client uses them."""
        if self._connections is not None:
            self._connections.users.discard(self)
            await self._connections.close_unused()

    def _settings(self) -> dict[str, Any]:
        """Those of the request that is being sent."""
        key = self._key() if callable(self._key) else self._key
        return self._fixed if key is None else {**self._fixed, "api_key": key}

    def _engine(self) -> CallEngine:
        return CallEngine(model_type=self._model_type, **self._settings())

    async def _open(self) -> Any:
        """Litellm, with the connections recorded that it opens."""
        with TimeLimit.paused():
            litellm = await asyncio.to_thread(get_litellm, feature="LM pools")  # importing it takes 5 s
        if self._connections is None:
            self._connections = Connections.of(asyncio.get_running_loop())
            self._connections.users.add(self)
        return litellm


async def _ask(answer: Awaitable[T]) -> T:
    with Connections.owned(), setting_errors(), provider_errors():
        return await answer


async def _typed(answer: Awaitable[T], model: str) -> T:
    with litellm_errors(model=model):
        return await answer


# -- errors ------------------------------------------------------------------------------------------------------------

_REFUSALS: Final = {
    401: lm15.AuthError,
    402: lm15.BillingError,
    403: lm15.AuthError,
    408: lm15.TimeoutError,
    429: lm15.RateLimitError,
    504: lm15.TimeoutError,
}
_MORE_EXACT: Final = (lm15.AuthError, lm15.BillingError)
"""What the body of a refusal may say where its status says less: no credit with a 429, a wrong key with a 400."""

_MILLISECONDS: Final = ("retry-after-ms", "x-ms-retry-after-ms")
"""Headers of Azure's and OpenAI's."""

_TIMEOUTS: Final = {"TimeoutError", "TimeoutException"}
_DISCONNECTIONS: Final = {"ConnectionError", "ClientError", "TransportError"}
"""Bases of the errors of Python, aiohttp, httpx and openai's copy of httpx, by name: it is open which are installed."""


@contextmanager
def provider_errors() -> Iterator[None]:
    """Give litellm's errors the type that goes with what happened, and the provider's own Retry-After.

    litellm takes for the caller's mistake, or the server's, or a broken connection, what is neither, and its errors
    have no headers.
    """
    try:
        yield
    except Exception as error:
        typed: Any = error if isinstance(error, lm15.LM15Error) else None
        if typed is not None and not isinstance(typed, lm15.ProviderError | lm15.TransportError):
            raise  # DSPy's own, of a request or an answer that it cannot represent
        behind = list(_behind(error if typed is None else error.__cause__ or error.__context__))
        response = _response(behind)
        retry_after = getattr(error, "retry_after", None)
        if response is None:
            status, kind = None, _kind_of_failure(behind)
            exact = type(error) is kind
        else:
            status, kind = response.status_code, _kind_of_refusal(response.status_code)
            exact = isinstance(error, (kind, *_MORE_EXACT))
            if retry_after is None:
                retry_after = _retry_after(response)
        said = {name: [value] for name, value in ({} if response is None else response.headers).items()}
        if kind is None or exact:
            if typed is not None:
                typed.retry_after = retry_after
                typed.rate_limit_headers = lm15.LM15Error(rate_limit_headers=said).rate_limit_headers
            raise
        message, provider = getattr(error, "message", str(error)), getattr(error, "provider", None)
        raise kind(
            message, provider=provider, status=status, retry_after=retry_after, rate_limit_headers=said
        ) from error


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(behind: list[BaseException]) -> Any:
    """The provider's refusal, from the innermost error that has one; litellm's copies have no headers."""
    for error in reversed(behind):
        response: Any = getattr(error, "response", None)
        if getattr(response, "headers", None) and response.status_code >= 400:
            return response
    return None


def _kind_of_refusal(status: int) -> Any:
    return _REFUSALS.get(status) or (lm15.ServerError if status >= 500 else lm15.InvalidRequestError)


def _kind_of_failure(behind: list[BaseException]) -> Any:
    """What it is where the provider refused nothing; None where only litellm knows."""
    bases = {base.__name__ for error in behind for base in type(error).__mro__}
    if bases & _TIMEOUTS:
        return lm15.TimeoutError
    if bases & _DISCONNECTIONS:
        return lm15.TransportError
    if any(isinstance(error, json.JSONDecodeError | StopAsyncIteration) for error in behind):
        return lm15.ProviderError  # the answer, or an event of it, is none
    return None


def _retry_after(response: Any) -> float | None:
    """The seconds for which a refusal asks to wait, by whichever header, or in its body."""
    said = response.headers.get("retry-after") or retry_delay(_read(response))
    seconds: float | None = retry_after_seconds(said)
    milliseconds = (finite_seconds(response.headers.get(name)) for name in _MILLISECONDS)
    return seconds if seconds is not None else next((each / 1000 for each in milliseconds if each is not None), None)


def _read(response: Any) -> bytes:
    """Its body; empty if it was not read."""
    try:
        return bytes(response.content)
    except RuntimeError:  # httpx.ResponseNotRead
        return b""
