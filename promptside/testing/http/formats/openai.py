"""OpenAI's format: chat completions, embeddings and models.

After https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from promptside.testing.http.formats.format import (
    Ask,
    Body,
    Format,
    Frame,
    Refusal,
    Reply,
    retry_after_header,
    turns_of,
)
from promptside.testing.http.wire import Record

__all__ = ["OPENAI", "embeddings", "models"]

_TYPES = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}
_REASONS = {"end": "stop", "stop": "stop", "length": "length"}
_EMBEDDING_SIZE = 8


class _OpenAI:
    overloaded = 503

    def read(self, record: Record) -> Ask:
        body = record.body
        stop = body.get("stop")
        return Ask.of(
            body,
            turns_of(body["messages"]),
            model=body.get("model", ""),
            stream=bool(body.get("stream")),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=[stop] if isinstance(stop, str) else stop,
            schema=((body.get("response_format") or {}).get("json_schema") or {}).get("schema"),
        )

    def whole(self, reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "finish_reason": _REASONS[reply.reason], "message": message}
        choices = [] if reply.empty else [choice]
        return {**_head(reply), "object": "chat.completion", "choices": choices, "usage": _usage(reply)}

    def opening(self, reply: Reply) -> Iterator[Frame]:
        yield _chunk(reply, []) if reply.empty else _delta(reply, {"role": "assistant", "content": ""})

    def piece(self, reply: Reply, token: str) -> Frame:
        return _delta(reply, {"content": token})

    def closing(self, reply: Reply) -> Iterator[Frame]:
        if not reply.empty:
            yield _delta(reply, {}, _REASONS[reply.reason])
        if (reply.ask.body.get("stream_options") or {}).get("include_usage"):
            yield _chunk(reply, [], usage=_usage(reply))
        yield Frame("[DONE]")

    def refusal(self, status: int, message: str, code: str | None, retry_after: float | None) -> Refusal:
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": None, "code": code}
        return Refusal({"error": error}, retry_after_header(retry_after))


def _head(reply: Reply) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id(reply):x}", "created": 0, "model": reply.ask.model}


def _usage(reply: Reply) -> dict[str, int]:
    asked, said = reply.ask.words, len(reply.tokens)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _chunk(reply: Reply, choices: list[dict[str, Any]], **more: Any) -> Frame:
    return Frame({**_head(reply), "object": "chat.completion.chunk", "choices": choices, **more})


def _delta(reply: Reply, content: dict[str, str], finish_reason: str | None = None) -> Frame:
    return _chunk(reply, [{"index": 0, "delta": content, "finish_reason": finish_reason}])


def embeddings(body: Body, *, empty: bool = False) -> dict[str, Any]:
    """The answer to ``/v1/embeddings``: the same vector for the same text, always.

    Args:
        body: The request.
        empty: Whether the answer carries no vector at all: a fault.
    """
    texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    asked = sum(len(text.split()) for text in texts)
    vectors = [[byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:_EMBEDDING_SIZE]] for text in texts]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": asked, "total_tokens": asked}
    return {"object": "list", "data": [] if empty else data, "model": body.get("model", ""), "usage": usage}


def models(name: str) -> dict[str, Any]:
    """The answer to ``/v1/models``: one model."""
    return {"object": "list", "data": [{"id": name, "object": "model"}]}


OPENAI: Format = _OpenAI()
