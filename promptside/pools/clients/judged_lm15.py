"""`JudgedRouter`: lm15's router, whose clients judge what a provider answers before they read it.

Used by `NativeEngine`. lm15 takes for a good answer, or for a mistake of the caller's, much that is neither, and reads
no line of a stream beyond 64 KiB. No other module touches these parts of lm15: the dialect of a client, and its reading
of a stream.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, TypeVar
from weakref import ref

from dspy import lm15
from dspy._vendor.lm15.providers.base import HttpResponse
from dspy._vendor.lm15.sse import SSEEvent, aparse_sse
from dspy._vendor.lm15.transports import TransportError

from promptside.pools.clients.client_errors import redirection, with_headers
from promptside.pools.clients.judge import DONE, EVENT_FIELDS, fault_of, fault_of_line, no_stream, without_usage
from promptside.pools.clients.provider_errors import read_error

__all__ = ["JudgedRouter"]

T = TypeVar("T")

MAX_EVENT: Final = 64 * 1024 * 1024
"""Bytes of one event of a stream, so that one that never ends does not fill the memory."""

FIELDS: Final = {
    lm15.OpenAIChatLM: "choices",
    lm15.OpenAILM: "output",
    lm15.AnthropicLM: "content",
}
"""The field that an answer has by the dialect; Gemini's may have none, beside what it blocked or counted."""


class JudgedRouter(lm15.AsyncLMRouter):
    """lm15's router; see above."""

    def lm(self, model: str) -> Any:
        """The client of a model, as lm15's engine asks for it."""
        client: Any = super().lm(model)
        if not isinstance(client._inner, _JudgedDialect):
            client._inner = _JudgedDialect(client._inner)
            alive = ref(client)  # not the client: its connections close with it, and a circle would keep it
            client._stream_raw = lambda request, sent=None: _stream_raw(alive(), request, sent)
        return client


class _JudgedDialect:
    """A dialect of lm15 that judges what it reads."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._field = next((field for kind, field in FIELDS.items() if isinstance(inner, kind)), None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def parse_response(self, request: Any, response: HttpResponse) -> Any:
        """The answer, whole."""
        if response.status >= 300:
            raise self._http_error(response)
        body = response.json()
        if (fault := fault_of(body, field=self._field)) is not None:
            raise self._named(fault)
        return _read(lambda body: self._inner.parse_response(request, _Decoded(response, body)), body)

    def parse_stream_events(self, request: Any, raw: SSEEvent) -> Iterator[Any]:
        """The events of one event of the provider's."""
        if not raw.data or raw.data == DONE:
            return iter(self._inner.parse_stream_events(request, raw))
        if raw.event == "error":
            raise self._named(read_error(raw.data).error())
        try:
            body = json.loads(raw.data)
        except (ValueError, RecursionError) as error:
            raise lm15.ProviderError(f"a piece of the provider's answer is not JSON: {error}") from error
        if (fault := fault_of(body, event=True)) is not None:
            raise self._named(fault)

        def read(part: Any) -> list[Any]:
            event = raw if part is body else SSEEvent(raw.event, json.dumps(part))
            return list(self._inner.parse_stream_events(request, event))

        return iter(_read(read, body))

    def normalize_error(self, status: int, body: str) -> Any:
        """The error of a response with a status >= 400; its text and its advice are lm15's."""
        told = self._inner.normalize_error(status, body)
        judged = read_error(body).error(status, provider=told.provider)
        if type(told) is type(judged):
            told.status, told.retry_after = judged.status, judged.retry_after
            return told
        return judged

    def _http_error(self, response: HttpResponse) -> Any:
        """The error of a response with a status >= 300."""
        if response.status < 400:
            return redirection(response.status, response.header("location"))
        return with_headers(self.normalize_error(response.status, response.text()), response.headers)

    def _named(self, fault: lm15.ProviderError) -> lm15.ProviderError:
        fault.provider = self._inner.provider
        return fault


class _Decoded(HttpResponse):
    """A response whose body is decoded already."""

    __slots__ = ("_body",)

    def __init__(self, response: HttpResponse, body: Any) -> None:
        names = ("status", "reason", "headers", "body", "http_version", "provider")
        super().__init__(*(getattr(response, name) for name in names))
        object.__setattr__(self, "_body", body)

    def json(self) -> Any:
        return self._body


def _read(read: Callable[[Any], T], body: Any) -> T:
    """What lm15 reads in a body; what it counts is left out if that is wrong, and only that."""
    try:
        return read(body)
    except (lm15.ProviderError, lm15.StreamAssemblyError):
        raise
    except Exception as error:  # the shape of an answer may break lm15's reading at any place
        if (lean := without_usage(body)) is not None:
            return _read(read, lean)
        raise lm15.ProviderError(f"the provider's answer cannot be read: {error}") from error


async def _stream_raw(client: Any, request: Any, sent: Any = None) -> AsyncIterator[Any]:
    """As a client of lm15 reads a stream, with events of any length, and an answer that is no stream judged too."""
    dialect: _JudgedDialect = client._inner
    sent = sent or await client._build(dialect.build_request, request, stream=True)
    try:
        async with client.transport.stream(sent) as response:
            if response.status >= 300:
                refused = HttpResponse(response.status, response.reason, response.headers, await response.read())
                raise dialect._http_error(refused)
            try:
                lines = _lines(response)
                async for raw in aparse_sse(lines, max_line_bytes=MAX_EVENT, max_event_bytes=MAX_EVENT):
                    for event in dialect.parse_stream_events(request, raw):
                        if event is not None:
                            yield event
            except lm15.ProviderError as error:
                with_headers(error, response.headers)
                raise
    except TransportError as error:
        raise lm15.TransportError(str(error)) from error


async def _lines(response: Any) -> AsyncIterator[bytes]:
    """The lines of a stream; raises where a server has answered with something else."""
    lines = response.aiter_lines()
    begun = False
    async for line in lines:
        if not begun and line.strip():
            begun, line = True, line.removeprefix(codecs.BOM_UTF8)
            if not line.startswith(EVENT_FIELDS):
                raise no_stream(line + b"".join([each async for each in lines]))
        elif (fault := fault_of_line(line)) is not None:
            raise fault
        yield line
