"""Cohere's format: chat, version 2.

After https://docs.cohere.com/v2/reference/chat

A client that accepts JSON, as litellm does, gets a stream as lines of JSON; others get server-sent events.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptside.testing.http.formats.format import (
    ChatRequest,
    ChatResponse,
    ErrorResponse,
    Format,
    Frame,
    named_frame,
    retry_after_header,
    turns_of,
)
from promptside.testing.http.wire import Record

__all__ = ["COHERE"]

_REASONS = {"end": "COMPLETE", "stop": "STOP_SEQUENCE", "length": "MAX_TOKENS"}


class _Cohere:
    overloaded = 503

    def read(self, record: Record) -> ChatRequest:
        body = record.body
        return ChatRequest.of(
            body,
            turns_of(body["messages"]),
            max_tokens=body.get("max_tokens"),
            stop=body.get("stop_sequences"),
            schema=(body.get("response_format") or {}).get("json_schema"),
            lines="json" in record.headers.get("accept", ""),
        )

    def body(self, response: ChatResponse) -> dict[str, Any]:
        message = {"role": "assistant", "content": response.content}
        return {
            "id": _id(response),
            "finish_reason": _REASONS.get(response.reason, response.reason),
            "message": message,
            "usage": _usage(response),
        }

    def opening(self, response: ChatResponse) -> Iterator[Frame]:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        yield named_frame("message-start", id=_id(response), delta={"message": message})
        if not response.empty:
            yield _content("content-start", {"type": "text", "text": ""})

    def chunk(self, response: ChatResponse, token: str) -> Frame:
        return _content("content-delta", {"text": token})

    def closing(self, response: ChatResponse) -> Iterator[Frame]:
        if not response.empty:
            yield named_frame("content-end", index=0)
        yield named_frame(
            "message-end",
            delta={"finish_reason": _REASONS.get(response.reason, response.reason), "usage": _usage(response)},
        )
        if not response.request.lines:
            yield Frame("[DONE]")

    def error(self, status: int, message: str, code: str | None, retry_after: float | None) -> ErrorResponse:
        return ErrorResponse({"id": "fake", "message": message}, retry_after_header(retry_after))


def _id(response: ChatResponse) -> str:
    return f"{id(response):x}"


def _usage(response: ChatResponse) -> dict[str, Any]:
    tokens = {"input_tokens": response.request.prompt_tokens, "output_tokens": len(response.tokens)}
    return {"billed_units": tokens, "tokens": tokens}


def _content(type: str, content: dict[str, str]) -> Frame:
    return named_frame(type, index=0, delta={"message": {"content": content}})


COHERE: Format = _Cohere()
