"""Google Gemini's format: generateContent and streamGenerateContent.

After https://ai.google.dev/api/generate-content

The model and whether to stream stand in the path. An error's details stand in its body: when to come again, which is in
no header, and the code, such as ``"API_KEY_INVALID"``, which comes with status 400.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from promptside.testing.http.formats.format import Ask, Body, Format, Frame, Refusal, Reply
from promptside.testing.http.wire import Record

__all__ = ["GEMINI"]

_STATUSES = {
    401: "UNAUTHENTICATED",
    402: "FAILED_PRECONDITION",  # Google's word for an account without billing, there with status 400
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

    def read(self, record: Record) -> Ask:
        body = record.body
        model, _, method = record.path.rpartition("/")[2].partition(":")
        config = body.get("generationConfig") or {}
        system = (body.get("systemInstruction") or {}).get("parts")
        turns = [(str(content.get("role", "user")), _text(content.get("parts"))) for content in body["contents"]]
        return Ask.of(
            body,
            [("system", _text(system)), *turns],
            model=model,
            stream=method == "streamGenerateContent",
            max_tokens=config.get("maxOutputTokens"),
            stop=config.get("stopSequences"),
            schema=config.get("responseJsonSchema") or config.get("responseSchema"),
        )

    def whole(self, reply: Reply) -> dict[str, Any]:
        return _chunk(reply, reply.text, last=True)

    def opening(self, reply: Reply) -> Iterator[Frame]:
        return iter(())

    def piece(self, reply: Reply, token: str) -> Frame:
        return Frame(_chunk(reply, token))

    def closing(self, reply: Reply) -> Iterator[Frame]:
        yield Frame(_chunk(reply, "", last=True))

    def refusal(self, status: int, message: str, code: str | None, retry_after: float | None) -> Refusal:
        word = _STATUSES.get(status, "UNAVAILABLE" if status >= 500 else "INVALID_ARGUMENT")
        details = []
        if code is not None:
            details.append({"@type": f"{_DETAILS}.ErrorInfo", "reason": code, "domain": "googleapis.com"})
        if retry_after is not None:
            details.append({"@type": f"{_DETAILS}.RetryInfo", "retryDelay": f"{retry_after:g}s"})
        error = {"code": status, "message": message, "status": word}
        return Refusal({"error": {**error, "details": details} if details else error}, {})


def _chunk(reply: Reply, text: str, *, last: bool = False) -> dict[str, Any]:
    """The one shape of whole answers and pieces alike; the last piece says why it is the last."""
    asked, said = reply.ask.words, len(reply.tokens) if last else 0
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": [{"text": text}] if text else []}}
    if last:
        candidate["finishReason"] = _REASONS[reply.reason]
    usage = {"promptTokenCount": asked, "candidatesTokenCount": said, "totalTokenCount": asked + said}
    # As protobuf's JSON has it, a count of zero is left out.
    counted = {name: count for name, count in usage.items() if count}
    head = {"modelVersion": reply.ask.model, "responseId": f"{id(reply):x}"}
    return {"candidates": [] if reply.empty else [candidate], "usageMetadata": counted, **head}


def _text(parts: Iterable[Body] | None) -> str:
    return "\n".join(part["text"] for part in parts or () if "text" in part)


GEMINI: Format = _Gemini()
