"""Answers of litellm, judged as the provider gave them: `RawAnswer` around a whole one, `judge_stream` for a stream.

Used by `LiteLLMClient`. litellm takes what it does not know for a stop, and drops an answer of which a count is wrong.
It hands out the raw body of a whole answer to a `logger_fn`, and of a stream the events as its provider's client reads
them.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator, Mapping
from contextvars import ContextVar, Token
from typing import Any, Final, Self

from dspy import lm15
from dspy.lm15 import Request, Response

from promptside.pools.clients.client_errors import refusal_behind
from promptside.pools.clients.judge import (
    EVENT_FIELDS,
    empty_answer,
    fault_of,
    fault_of_line,
    is_text,
    no_stream,
    without_usage,
)

__all__ = ["RawAnswer", "judge_stream", "keep_raw"]

_LONGEST: Final = max(map(len, EVENT_FIELDS))


class RawAnswer:
    """What a provider answers within it; at its end that is judged, whatever litellm has made of it.

    Attributes:
        body: The decoded body; None where there is none.
    """

    def __init__(self) -> None:
        self.body: Any = None
        self._token: Token[RawAnswer | None] | None = None

    def __enter__(self) -> Self:
        self._token = _RAW.set(self)
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        assert self._token is not None
        _RAW.reset(self._token)
        if self.body is None or not isinstance(error, Exception | None) or refusal_behind(error) is not None:
            return
        if (fault := fault_of(self.body)) is not None:
            raise fault from error
        if error is not None and not isinstance(error, lm15.LM15Error):
            raise lm15.ProviderError(f"the provider's answer cannot be read: {error}") from error

    def without_usage(self, request: Request) -> Response | None:
        """The answer without what it counts; None if it counts nothing, or is no chat completion of one choice."""
        lean = without_usage(self.body)
        if lean is None or fault_of(lean) is not None:
            return None
        choices = lean.get("choices")
        if not choices or len(choices) > 1 or "message" not in choices[0]:
            return None
        read: Response = lm15.response_from_openai_chat(lean, model=request.model)
        return read


_RAW: Final[ContextVar[RawAnswer | None]] = ContextVar("_RAW", default=None)


def keep_raw(details: Mapping[str, Any]) -> None:
    """A `logger_fn` of litellm's: keeps the body for the `RawAnswer` around the call."""
    raw, body = _RAW.get(), details.get("original_response")
    if raw is None or not isinstance(body, str | bytes):
        return
    try:
        raw.body = json.loads(body)
    except (ValueError, RecursionError):  # it is a stream, or in an error of litellm's own already
        return


async def judge_stream(source: Any) -> None:
    """Have the events of a stream of litellm's judged before it reads them."""
    if source.completion_stream is None:
        await source.fetch_stream()
    if hasattr(source.completion_stream, "__aiter__"):
        source.completion_stream = _JudgedChunks(source.completion_stream)


class _JudgedChunks:
    """The events of a stream, judged before litellm reads them.

    Args:
        chunks: As the provider's client has them: objects of the openai package, or what a `chunk_parser` of litellm's
            makes of each event's JSON.
    """

    def __init__(self, chunks: Any) -> None:
        self._chunks = chunks
        self._iterator: AsyncIterator[Any] | None = None
        self._has_choice = False
        self._parse = getattr(chunks, "chunk_parser", None)
        if self._parse is not None:
            chunks.chunk_parser = self._parsed

    def __getattr__(self, name: str) -> Any:  # by which litellm closes it
        return getattr(self._chunks, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._iterator is None:
            self._refuse_what_is_no_stream()
            self._iterator = aiter(self._chunks)
        try:
            chunk: Any = await anext(self._iterator)
        except StopAsyncIteration:
            if not self._has_choice:
                raise empty_answer("the provider's stream has no choice") from None
            raise
        choices, usage = _field(chunk, "choices"), _field(chunk, "usage")
        self._has_choice = self._has_choice or bool(choices) or isinstance(chunk, Mapping)
        if usage is not None and not _is_count(usage) and not isinstance(chunk, Mapping):
            chunk.usage = None
        if self._parse is None and not (choices and _is_piece(choices[0])):
            dump = getattr(chunk, "model_dump", None)
            _judge(chunk if dump is None else dump())
        return chunk

    def _parsed(self, chunk: Any) -> Any:
        """In place of the `chunk_parser`."""
        _judge(chunk)
        assert self._parse is not None
        if isinstance(chunk, Mapping) and (usage := chunk.get("usage")) is not None and not _is_count(usage):
            chunk = {**chunk, "usage": None}
        return self._parse(chunk=chunk)

    def _refuse_what_is_no_stream(self) -> None:
        """Have it raised where a server answers with something else than events; its content type may say anything."""
        response: Any = getattr(self._chunks, "response", None)
        if (read := getattr(response, "aiter_bytes", None)) is not None:
            response.aiter_bytes = lambda *args, **options: _events_of(read(*args, **options))


async def _events_of(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The bytes of a stream; raises where they begin with no event, or a line is an error."""
    begun: bytes | None = b""
    line = b""  # the last one, of which the end has not come
    async for piece in pieces:
        if begun is not None:
            begun = (begun + piece).removeprefix(codecs.BOM_UTF8).lstrip()
            if len(begun) < _LONGEST and any(each.startswith(begun) for each in EVENT_FIELDS):
                continue  # with the rest
            if not begun.startswith(EVENT_FIELDS):
                raise no_stream(begun + b"".join([each async for each in pieces]))
            piece, begun = begun, None
        *whole, line = (line + piece).split(b"\n")
        for each in whole:
            _refuse(fault_of_line(each))
        yield piece
    if begun:
        raise no_stream(begun)
    _refuse(fault_of_line(line))


def _judge(body: Any) -> None:
    _refuse(fault_of(body, event=True))


def _refuse(fault: lm15.ProviderError | None) -> None:
    if fault is not None:
        raise fault


def _is_piece(choice: Any) -> bool:
    """Whether it is a text without an end, as almost all are: to judge those would take longer than to read them."""
    return _field(choice, "finish_reason") is None and is_text(_field(_field(choice, "delta"), "content"))


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _is_count(usage: Any) -> bool:
    """Whether the tokens of a usage are numbers, or not given."""
    counts = [_field(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    known = [count for count in counts if count is not None]
    return not isinstance(usage, str | list) and all(isinstance(count, int) and count >= 0 for count in known)
