"""Anthropic's format: messages, whole and as named events.

After https://docs.anthropic.com/en/api/messages
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
from promptside.testing.replies import content_text

__all__ = ["ANTHROPIC"]

_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_REASONS = {"end": "end_turn", "stop": "stop_sequence", "length": "max_tokens"}


class _Anthropic:
    overloaded = 529

    def read(self, record: Record) -> ChatRequest:
        body = record.body
        return ChatRequest.of(
            body,
            [("system", content_text(body.get("system"))), *turns_of(body["messages"])],
            max_tokens=body["max_tokens"],  # Anthropic refuses a request without one
            stop=body.get("stop_sequences"),
            schema=((body.get("output_config") or {}).get("format") or {}).get("schema"),
        )

    def body(self, response: ChatResponse) -> dict[str, Any]:
        return {
            **_message(response),
            "content": response.content,
            "stop_reason": _REASONS.get(response.reason, response.reason),
            "usage": _usage(response),
        }

    def opening(self, response: ChatResponse) -> Iterator[Frame]:
        usage = {"input_tokens": response.request.prompt_tokens, "output_tokens": 0}
        yield named_frame(
            "message_start", message={**_message(response), "content": [], "stop_reason": None, "usage": usage}
        )
        if not response.empty:
            yield named_frame("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield named_frame("ping")

    def chunk(self, response: ChatResponse, token: str) -> Frame:
        return named_frame("content_block_delta", index=0, delta={"type": "text_delta", "text": token})

    def closing(self, response: ChatResponse) -> Iterator[Frame]:
        if not response.empty:
            yield named_frame("content_block_stop", index=0)
        delta = {"stop_reason": _REASONS.get(response.reason, response.reason), "stop_sequence": None}
        yield named_frame("message_delta", delta=delta, usage=_usage(response))
        yield named_frame("message_stop")

    def error(self, status: int, message: str, code: str | None, retry_after: float | None) -> ErrorResponse:
        kind = code or _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"}
        return ErrorResponse(body, retry_after_header(retry_after))


def _message(response: ChatResponse) -> dict[str, Any]:
    head = {"id": f"msg_{id(response):x}", "type": "message", "role": "assistant", "model": response.request.model}
    return {**head, "stop_sequence": None}


def _usage(response: ChatResponse) -> dict[str, int]:
    return {"input_tokens": response.request.prompt_tokens, "output_tokens": len(response.tokens)}


ANTHROPIC: Format = _Anthropic()
