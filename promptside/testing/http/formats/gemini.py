"""Google Gemini's format: generateContent and streamGenerateContent.

After https://ai.google.dev/api/generate-content

The path names the model and says whether to stream. The body of an error has its details: when to retry, in place
of a header, and a code such as ``"API_KEY_INVALID"``, with status 400.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from promptside.testing.http.formats.format import Body, ChatRequest, ChatResponse, ErrorResponse, Format, Frame
from promptside.testing.http.wire import Record

__all__ = ["GEMINI"]

_STATUSES = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",  # for an account without billing, where Google's status is 400
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
_DETAILS = "type.googleapis.com/google.rpc"
_REASONS = {"end": "STOP", "stop": "STOP", "length": "MAX_TOKENS"}


class _Gemini:
    overloaded = 503

    def read(self, record: Record) -> ChatRequest:
        body = record.body
        model, _, method = record.path.rpartition("/")[2].partition(":")
        config = body.get("generationConfig") or {}
        system = (body.get("systemInstruction") or {}).get("parts")
        turns = [(str(content.get("role", "user")), _text(content.get("parts"))) for content in body["contents"]]
        return ChatRequest.of(
            body,
            [("system", _text(system)), *turns],
            model=model,
            stream=method == "streamGenerateContent",
            max_tokens=config.get("maxOutputTokens"),
            stop=config.get("stopSequences"),
            schema=config.get("responseJsonSchema") or config.get("responseSchema"),
        )

    def body(self, response: ChatResponse) -> dict[str, Any]:
        return _chunk(response, response.text, last=True)

    def opening(self, response: ChatResponse) -> Iterator[Frame]:
        return iter(())

    def chunk(self, response: ChatResponse, token: str) -> Frame:
        return Frame(_chunk(response, token))

    def closing(self, response: ChatResponse) -> Iterator[Frame]:
        yield Frame(_chunk(response, "", last=True))

    def error(self, status: int, message: str, code: str | None, retry_after: float | None) -> ErrorResponse:
        name = _STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")
        details = []
        if code is not None:
            details.append({"@type": f"{_DETAILS}.ErrorInfo", "reason": code, "domain": "googleapis.com"})
        if retry_after is not None:
            details.append({"@type": f"{_DETAILS}.RetryInfo", "retryDelay": f"{retry_after:g}s"})
        error = {"code": status, "message": message, "status": name}
        return ErrorResponse({"error": {**error, "details": details} if details else error}, {})


def _chunk(response: ChatResponse, text: str, *, last: bool = False) -> dict[str, Any]:
    """A whole response, or a chunk of a stream; the last one has the reason of the end."""
    prompt, completion = response.request.prompt_tokens, len(response.tokens) if last else 0
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": [{"text": text}] if text else []}}
    if last:
        candidate["finishReason"] = _REASONS.get(response.reason, response.reason)
    usage = {"promptTokenCount": prompt, "candidatesTokenCount": completion, "totalTokenCount": prompt + completion}
    # As in protobuf's JSON, a count of zero is left out.
    counted = {name: count for name, count in usage.items() if count}
    head = {"modelVersion": response.request.model, "responseId": f"{id(response):x}"}
    return {"candidates": [] if response.empty else [candidate], "usageMetadata": counted, **head}


def _text(parts: Iterable[Body] | None) -> str:
    return "\n".join(part["text"] for part in parts or () if "text" in part)


GEMINI: Format = _Gemini()
