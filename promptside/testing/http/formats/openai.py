"""OpenAI's format: chat completions, embeddings and models.

After https://platform.openai.com/docs/api-reference
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from promptside.testing.http.formats.format import (
    Body,
    ChatRequest,
    ChatResponse,
    ErrorResponse,
    Format,
    Frame,
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

    def read(self, record: Record) -> ChatRequest:
        body = record.body
        stop = body.get("stop")
        return ChatRequest.of(
            body,
            turns_of(body["messages"]),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=[stop] if isinstance(stop, str) else stop,
            schema=((body.get("response_format") or {}).get("json_schema") or {}).get("schema"),
        )

    def body(self, response: ChatResponse) -> dict[str, Any]:
        message = {"role": "assistant", "content": response.text}
        choice = {"index": 0, "finish_reason": _REASONS.get(response.reason, response.reason), "message": message}
        choices = [] if response.empty else [choice]
        return {**_head(response), "object": "chat.completion", "choices": choices, "usage": _usage(response)}

    def opening(self, response: ChatResponse) -> Iterator[Frame]:
        yield _chunk(response, []) if response.empty else _delta(response, {"role": "assistant", "content": ""})

    def chunk(self, response: ChatResponse, token: str) -> Frame:
        return _delta(response, {"content": token})

    def closing(self, response: ChatResponse) -> Iterator[Frame]:
        if not response.empty:
            yield _delta(response, {}, _REASONS.get(response.reason, response.reason))
        if (response.request.body.get("stream_options") or {}).get("include_usage"):
            yield _chunk(response, [], usage=_usage(response))
        yield Frame("[DONE]")

    def error(self, status: int, message: str, code: str | None, retry_after: float | None) -> ErrorResponse:
        kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        error = {"message": message, "type": kind, "param": None, "code": code}
        return ErrorResponse({"error": error}, retry_after_header(retry_after))


def _head(response: ChatResponse) -> dict[str, Any]:
    return {"id": f"chatcmpl-{id(response):x}", "created": 0, "model": response.request.model}


def _usage(response: ChatResponse) -> dict[str, int]:
    prompt, completion = response.request.prompt_tokens, len(response.tokens)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _chunk(response: ChatResponse, choices: list[dict[str, Any]], **more: Any) -> Frame:
    return Frame({**_head(response), "object": "chat.completion.chunk", "choices": choices, **more})


def _delta(response: ChatResponse, content: dict[str, str], finish_reason: str | None = None) -> Frame:
    return _chunk(response, [{"index": 0, "delta": content, "finish_reason": finish_reason}])


def embeddings(body: Body, *, empty: bool = False) -> dict[str, Any]:
    """The response of ``/v1/embeddings``: always the same vector for the same text.

    Args:
        body: The request.
        empty: Whether it has no vector at all: a fault.
    """
    texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
    words = sum(len(text.split()) for text in texts)
    vectors = [[byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:_EMBEDDING_SIZE]] for text in texts]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": words, "total_tokens": words}
    return {"object": "list", "data": [] if empty else data, "model": body.get("model", ""), "usage": usage}


def models(name: str) -> dict[str, Any]:
    """The response of ``/v1/models``: one model."""
    return {"object": "list", "data": [{"id": name, "object": "model"}]}


OPENAI: Format = _OpenAI()
