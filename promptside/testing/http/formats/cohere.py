"""Cohere's format: chat, version 2.

A stream is server-sent events only for a client that does not ask for JSON; litellm does, and reads lines of it. After https://docs.cohere.com/v2/reference/chat
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptside.testing.http.formats.format import Ask, Format, Frame, Refusal, Reply, retry_after_header, turns_of
from promptside.testing.http.wire import Record

__all__ = ["COHERE"]

_REASONS = {"end": "COMPLETE", "stop": "STOP_SEQUENCE", "length": "MAX_TOKENS"}


class _Cohere:
    overloaded = 503

    def read(self, record: Record) -> Ask:
        body = record.body
        return Ask.of(
            body,
            turns_of(body["messages"]),
            model=body.get("model", ""),
            stream=bool(body.get("stream")),
            max_tokens=body.get("max_tokens"),
            stop=body.get("stop_sequences"),
            schema=(body.get("response_format") or {}).get("json_schema"),
            lines="json" in record.headers.get("accept", ""),
        )

    def whole(self, reply: Reply) -> dict[str, Any]:
        content = [] if reply.empty else [{"type": "text", "text": reply.text}]
        message = {"role": "assistant", "content": content}
        return {"id": _id(reply), "finish_reason": _REASONS[reply.reason], "message": message, "usage": _usage(reply)}

    def opening(self, reply: Reply) -> Iterator[Frame]:
        message = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
        yield _named("message-start", id=_id(reply), delta={"message": message})
        if not reply.empty:
            yield _content("content-start", {"type": "text", "text": ""})

    def piece(self, reply: Reply, token: str) -> Frame:
        return _content("content-delta", {"text": token})

    def closing(self, reply: Reply) -> Iterator[Frame]:
        if not reply.empty:
            yield _named("content-end", index=0)
        yield _named("message-end", delta={"finish_reason": _REASONS[reply.reason], "usage": _usage(reply)})
        if not reply.ask.lines:
            yield Frame("[DONE]")

    def refusal(self, status: int, message: str, code: str | None, retry_after: float | None) -> Refusal:
        return Refusal({"id": "fake", "message": message}, retry_after_header(retry_after))


def _id(reply: Reply) -> str:
    return f"{id(reply):x}"


def _usage(reply: Reply) -> dict[str, Any]:
    tokens = {"input_tokens": reply.ask.words, "output_tokens": len(reply.tokens)}
    return {"billed_units": tokens, "tokens": tokens}


def _named(type: str, **more: Any) -> Frame:
    return Frame({"type": type, **more}, type)


def _content(type: str, content: dict[str, str]) -> Frame:
    return _named(type, index=0, delta={"message": {"content": content}})


COHERE: Format = _Cohere()
