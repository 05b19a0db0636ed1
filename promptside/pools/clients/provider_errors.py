"""Errors of providers, as the pool's callers get them.

`wrap_error` is DSPy's: it turns an error of lm15 into one of `dspy.utils.exceptions`. `GoogleRouter`, used by the
native engine, mends two errors of Google: the seconds to wait, which are in the body where lm15 reads the header; and a
key that is not valid, which lm15 takes for a bad request.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from dspy import lm15
from dspy.clients.errors import wrap_error

__all__ = ["GoogleRouter", "retry_delay", "wrap_error"]


class GoogleRouter(lm15.AsyncLMRouter):
    """lm15's router, with Google's errors mended."""

    def lm(self, model: str) -> Any:
        """The client of a model, as lm15's engine asks for it."""
        client: Any = super().lm(model)
        if not isinstance(client.transport, _GoogleTransport):
            client.transport = _GoogleTransport(client.transport)
        return client


class _GoogleTransport:
    """A transport of lm15 that copies Google's details of an error to where lm15 reads them."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def stream(self, request: Any) -> AbstractAsyncContextManager[Any]:
        return self._mended(self._inner.stream(request))

    @asynccontextmanager
    async def _mended(self, opening: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        async with opening as response:
            yield response if response.status < 400 else _Refusal(response, await response.read())


class _Refusal:
    """An error response that is read already, as lm15 takes it."""

    def __init__(self, response: Any, body: bytes) -> None:
        self.status, self.reason, self.http_version = response.status, response.reason, response.http_version
        self.headers = list(response.headers)
        self._body = body
        if (delay := retry_delay(body)) is not None:
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


def retry_delay(body: bytes) -> str | None:
    """The seconds of a google.rpc.RetryInfo, such as "34.07s", in the details of an error."""
    delays = (detail["retryDelay"] for detail in _details(body) if "retryDelay" in detail)
    return next((str(delay).removesuffix("s") for delay in delays), None)
