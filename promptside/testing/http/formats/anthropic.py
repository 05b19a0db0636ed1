"""Anthropic's format: messages, whole and as named events.

After https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptside.testing.http.formats.format import Ask, Format, Frame, Refusal, Reply, retry_after_header, turns_of
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

    def read(self, record: Record) -> Ask:
        body = record.body
        return Ask.of(
            body,
            [("system", content_text(body.get("system"))), *turns_of(body["messages"])],
            model=body.get("model", ""),
            stream=bool(body.get("stream")),
            max_tokens=body["max_tokens"],  # as at Anthropic, a request without one is wrong
            stop=body.get("stop_sequences"),
            schema=((body.get("output_config") or {}).get("format") or {}).get("schema"),
        )

    def whole(self, reply: Reply) -> dict[str, Any]:
        content = [] if reply.empty else [{"type": "text", "text": reply.text}]
        return {**_message(reply), "content": content, "stop_reason": _REASONS[reply.reason], "usage": _usage(reply)}

    def opening(self, reply: Reply) -> Iterator[Frame]:
        usage = {"input_tokens": reply.ask.words, "output_tokens": 0}
        yield _named("message_start", message={**_message(reply), "content": [], "stop_reason": None, "usage": usage})
        if not reply.empty:
            yield _named("content_block_start", index=0, content_block={"type": "text", "text": ""})
        yield _named("ping")

    def piece(self, reply: Reply, token: str) -> Frame:
        return _named("content_block_delta", index=0, delta={"type": "text_delta", "text": token})

    def closing(self, reply: Reply) -> Iterator[Frame]:
        if not reply.empty:
            yield _named("content_block_stop", index=0)
        delta = {"stop_reason": _REASONS[reply.reason], "stop_sequence": None}
        yield _named("message_delta", delta=delta, usage=_usage(reply))
        yield _named("message_stop")

    def refusal(self, status: int, message: str, code: str | None, retry_after: float | None) -> Refusal:
        kind = code or _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_fake"}
        return Refusal(body, retry_after_header(retry_after))


def _message(reply: Reply) -> dict[str, Any]:
    head = {"id": f"msg_{id(reply):x}", "type": "message", "role": "assistant", "model": reply.ask.model}
    return {**head, "stop_sequence": None}


def _usage(reply: Reply) -> dict[str, int]:
    return {"input_tokens": reply.ask.words, "output_tokens": len(reply.tokens)}


def _named(type: str, **more: Any) -> Frame:
    return Frame({"type": type, **more}, type)


ANTHROPIC: Format = _Anthropic()
