"""What a provider said when it refused, where the client that DSPy brings loses it on the way.

`open_client` puts these between the worker and DSPy's engines:

- Google says in the details of an error's body when to come again, where lm15 reads the header, and that a key is not
  valid, which lm15 takes for a bad request: `GoogleRouter` says both as others do.
- litellm's errors have no headers, and take for the caller's mistake, or the server's, what is neither:
  `as_the_provider_said` looks in the errors that they were raised from, where the response still is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any

from dspy import lm15
from dspy.clients._http import retry_after_seconds

__all__ = ["GoogleRouter", "as_the_provider_said"]

_NOT_THE_CALLERS = {
    401: lm15.AuthError,
    402: lm15.BillingError,
    403: lm15.AuthError,
    408: lm15.TimeoutError,
    429: lm15.RateLimitError,
}


class GoogleRouter(lm15.AsyncLMRouter):
    """lm15's router, for Google's errors."""

    def lm(self, model: str) -> Any:
        """The client of a model, as lm15's engine asks for it."""
        client: Any = super().lm(model)
        if not isinstance(client.transport, _GoogleTransport):
            client.transport = _GoogleTransport(client.transport)
        return client


class _GoogleTransport:
    """A transport of lm15 whose error responses say as others do what is in Google's details."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def stream(self, request: Any) -> AbstractAsyncContextManager[Any]:
        return self._told(self._inner.stream(request))

    @asynccontextmanager
    async def _told(self, opening: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        async with opening as response:
            yield response if response.status < 400 else _Refusal(response, await response.read())


class _Refusal:
    """An error response that is read already, as lm15 takes it."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status, self.reason, self.http_version = response.status, response.reason, response.http_version
        self.headers = list(response.headers)
        self._body = body
        if (delay := _retry_delay(body)) is not None:
            self.headers.append(("retry-after", delay))
        for detail in _details(body):
            if detail.get("reason") == "API_KEY_INVALID":  # of a google.rpc.ErrorInfo, with status 400
                self.status = 401
                error = {**json.loads(body)["error"], "code": 401, "status": "UNAUTHENTICATED"}
                self._body = json.dumps({"error": error}).encode()

    async def read(self) -> bytes:
        return self._body


def _details(body: bytes) -> list[dict[str, Any]]:
    """The details of an error of Google's; none where the body is another's."""
    try:
        details = json.loads(body)["error"]["details"]
    except (ValueError, LookupError, TypeError):
        return []
    return [detail for detail in details if isinstance(detail, dict)] if isinstance(details, list) else []


def _retry_delay(body: bytes) -> str | None:
    """The seconds of a google.rpc.RetryInfo, such as "34.07s", in the details of an error."""
    delays = (detail["retryDelay"] for detail in _details(body) if "retryDelay" in detail)
    return next((str(delay).removesuffix("s") for delay in delays), None)


@contextmanager
def as_the_provider_said() -> Iterator[None]:
    """Give litellm's errors the provider's own Retry-After, and the type that goes with its status.

    litellm takes any refusal that calls itself ``invalid_request_error`` for the caller's mistake, every unpaid bill,
    and an answer of Gemini's that is no JSON; and every refusal of a stream of Gemini's for the server's.
    """
    try:
        yield
    except lm15.LM15Error as error:
        behind = list(_behind(error))
        response = next(filter(_is_whole, (getattr(each, "response", None) for each in behind)), None)
        kind: type[lm15.ProviderError] | None = None
        if response is not None:
            kind = _NOT_THE_CALLERS.get(response.status_code)
            if error.retry_after is None:
                said = response.headers.get("retry-after") or _retry_delay(_read(response))
                error.retry_after = retry_after_seconds(said)
        elif error.status == 422 and any(isinstance(each, json.JSONDecodeError) for each in behind):
            kind = lm15.ProviderError  # a status that litellm made up
        if kind is None or type(error) not in (lm15.InvalidRequestError, lm15.ServerError):
            raise
        known = {"status": response and response.status_code, "retry_after": error.retry_after}
        raise kind(error.message, provider=error.provider, **known) from error


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_whole(response: Any) -> bool:
    """Whether it is the HTTP client's own; litellm's copies have no headers."""
    return bool(getattr(response, "headers", None))


def _read(response: Any) -> bytes:
    """Its body; empty where nobody has read it."""
    try:
        return bytes(response.content)
    except RuntimeError:  # httpx.ResponseNotRead
        return b""
