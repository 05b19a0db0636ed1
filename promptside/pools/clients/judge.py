"""What a 200 says is judged here: whole answers, events of a stream, and embeddings, of every provider and client.

`judged_lm15` and `litellm_client` show it the raw body before it is read, and the raw finish reason, which both clients
take for a stop where they do not know it. What is judged: an error in place of an answer, an answer that broke off, an
answer that is none. It costs a few microseconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from dspy import lm15

from promptside.pools.clients.provider_errors import read_error

__all__ = [
    "DONE",
    "EMPTY_ANSWER",
    "EVENT_FIELDS",
    "empty_answer",
    "fault_of",
    "fault_of_line",
    "is_last",
    "is_text",
    "no_stream",
    "without_usage",
]

EMPTY_ANSWER: Final = "empty_answer"
"""The `provider_code` of an answer in which there is none: no choice, or a stream of nothing."""

FINISH_REASONS: Final[Mapping[str, tuple[str, ...]]] = {
    "complete": (
        "complete",
        "completed",
        "done",
        "end",
        "end_of_text",
        "end_turn",
        "endoftext",
        "eos",
        "eos_token",
        "finish",
        "finished",
        "stop",
        "stop_sequence",
        "stop_token",
        "stopped",
        "success",
    ),
    "cut at a limit": (
        "compaction",
        "continuation",
        "incomplete",
        "length",
        "max_completion_tokens",
        "max_length",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens",
        "model_context_window_exceeded",
        "model_length",
        "token_limit",
    ),
    "calls tools": ("function_call", "pause_turn", "tool_call", "tool_calls", "tool_use"),
    "filtered": (
        "blocklist",
        "content_filter",
        "content_filtered",
        "error_toxic",
        "escalation",
        "guardrail_intervened",
        "image_other",
        "image_prohibited_content",
        "image_recitation",
        "image_safety",
        "language",
        "no_image",
        "prohibited_content",
        "recitation",
        "refusal",
        "safety",
        "sensitive",
        "spii",
    ),
    "not said": ("finish_reason_unspecified", "null"),
}
"""Every finish reason that is not a failure. Case, `_`, `-` and spaces do not matter."""

_GOOD: Final = frozenset(reason.replace("_", "") for reasons in FINISH_REASONS.values() for reason in reasons)
_UNSAID: Final = frozenset(reason.replace("_", "") for reason in FINISH_REASONS["not said"])
_SPELLING: Final = str.maketrans("", "", "_- ")

ANSWERS: Final = ("choices", "content", "candidates", "output")
"""Fields in which an answer is: of chat completions, Anthropic, Gemini and OpenAI's Responses. Each is a list."""

USAGE: Final = ("usage", "usageMetadata")
"""Fields in which what it cost is counted."""

EVENT_FIELDS: Final = (b"data:", b"event:", b"id:", b"retry:", b":")
"""With which an event of a stream, or a comment, begins."""

ERROR_FIELD: Final = b"error:"
"""With which some servers begin a line that tells an error, as if it were a field of an event."""

DONE: Final = "[DONE]"
"""The data of the event that ends a stream of chat completions."""

_REASONS: Final = ("finish_reason", "finishReason", "stop_reason", "stopReason", "done_reason")
_LAST_EVENTS: Final = ("message_stop", "response.completed", "response.incomplete")
_MAY_END: Final = re.compile(f'"(?:{"|".join(_REASONS)})"\\s*:\\s*"[^"]|"(?:{"|".join(map(re.escape, _LAST_EVENTS))})"')
_TEXTS: Final = ("message", "msg", "detail", "errors")


def fault_of(body: object, *, field: str | None = None, event: bool = False) -> lm15.ProviderError | None:
    """The error that a body says, or is; None where it is an answer.

    Args:
        body: The decoded body of a 200, or of one event of a stream.
        field: Which of `ANSWERS` it has to have; None where that is not known.
        event: Whether it is one event of a stream, which need not have an answer.
    """
    if not isinstance(body, dict):
        said = isinstance(body, str) or (isinstance(body, list) and any("error" in _mapping(each) for each in body))
        return read_error(body).error() if said else None if event else _no_answer(body)
    if (said_in := _error_in(body, event=event)) is not None:
        return read_error(said_in).error()
    choices = _choices(body)
    for part in (body, _mapping(body.get("delta")), *choices):
        if (error := part.get("error")) and _is_told(error):
            return read_error(error).error()
        if (reason := _reason(part)) is not None and _spelt(reason) not in _GOOD:
            return lm15.ProviderError(f"the provider ended its answer with {reason!r}", provider_code=str(reason))
    if not all(map(is_text, _contents(body, choices))):
        return _no_answer(body)
    if event:
        return None if choices else _filtered(body)
    if field is not None and not isinstance(body.get(field), list):
        return _filtered(body) or _no_answer(body)
    if "choices" in body or "candidates" in body:
        return _fault_of_choices(body, choices)
    return None


def fault_of_line(line: bytes) -> lm15.ProviderError | None:
    """The error that a line of a stream says which is no field of an event: after `ERROR_FIELD`, or as JSON alone."""
    if line.startswith(ERROR_FIELD):
        return read_error(line.removeprefix(ERROR_FIELD).decode(errors="replace")).error()
    if not line.startswith(b"{"):
        return None
    try:
        return fault_of(json.loads(line), event=True)
    except (ValueError, RecursionError):
        return None


def is_last(data: str) -> bool:
    """Whether an event of a stream says that the answer has ended; its usage may follow.

    Args:
        data: The event's data, or a part of it that is no JSON yet.
    """
    if data == DONE:
        return True
    if _MAY_END.search(data) is None:  # of almost all events; a text of the answer may hold such a word too
        return False
    try:
        body = json.loads(data)
    except ValueError:
        return False
    if not isinstance(body, dict):
        return False
    said = [_reason(part) for part in (body, _mapping(body.get("delta")), *_choices(body))]
    ends = any(_spelt(reason) in _GOOD - _UNSAID for reason in said if reason is not None)
    return ends or body.get("type") in _LAST_EVENTS


def empty_answer(about: str = "the provider's answer is empty") -> lm15.ProviderError:
    """The error for an answer in which there is nothing, not even an empty text."""
    return lm15.ProviderError(about, provider_code=EMPTY_ANSWER)


def no_stream(body: bytes) -> lm15.ProviderError:
    """The error for an answer that is no stream, though one was asked for."""
    if body.startswith(ERROR_FIELD) and (fault := fault_of_line(body.splitlines()[0])) is not None:
        return fault
    try:
        fault = fault_of(json.loads(body), event=True)
    except (ValueError, RecursionError):
        return lm15.ProviderError(f"the provider's answer is neither a stream nor JSON: {body[:200]!r}")
    return fault or lm15.ProviderError("the provider's answer is no stream, as was asked for")


def without_usage(body: object) -> Mapping[str, Any] | None:
    """The body without what it counts, for one whose count cannot be read; None where it counts nothing."""
    if not isinstance(body, dict):
        return None
    inner = body.get("response")  # of an event of OpenAI's Responses
    if isinstance(inner, Mapping) and (lean := without_usage(inner)) is not None:
        return {**body, "response": lean}
    return {name: value for name, value in body.items() if name not in USAGE} if body.keys() & set(USAGE) else None


def _error_in(body: Mapping[str, Any], *, event: bool) -> object:
    """The part of it that tells an error; None if none does."""
    kind = body.get("type")
    if (error := body.get("error")) and (_is_told(error) or kind == "error"):
        return body
    if body.get("object") == "error" or kind == "error":
        return body
    if kind == "response.failed" or (body.get("status") in ("failed", "cancelled") and "output" in body):
        return _mapping(body.get("response")) or body
    if (status := _mapping(body.get("base_resp"))).get("status_code"):  # MiniMax's, 0 for a success
        return status
    if any(name in body for name in ANSWERS) or (event and not body.get("code")):
        return None
    told = any(isinstance(value := body.get(name), str | list) and value for name in _TEXTS)
    return body if told and kind is None else None


def _is_told(error: object) -> bool:
    """Whether an `error` field tells one: some servers send an empty one with each answer."""
    return any(value not in (None, "", 0) for value in error.values()) if isinstance(error, dict) else bool(error)


def _reason(part: Mapping[str, Any]) -> object:
    """The finish reason, of whatever type; None if there is none."""
    return next((reason for name in _REASONS if (reason := part.get(name)) not in (None, "")), None)


def _spelt(reason: object) -> str | None:
    """A reason as in `_GOOD`; None for one that is no text."""
    return reason.translate(_SPELLING).lower() if isinstance(reason, str) else None


def is_text(content: object) -> bool:
    """Whether a content is a text, nothing, or parts of which each text is one."""
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str | None) for part in content)
    return isinstance(content, str | None)


def _contents(body: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> Iterator[object]:
    """What an answer, or an event of one, says, in any dialect."""
    yield body.get("content")
    for item in _list(body.get("output")):
        yield _mapping(item).get("content")
    for choice in choices:
        for name in ("message", "delta"):
            yield _mapping(choice.get(name)).get("content")
        yield choice.get("text")
        yield _mapping(choice.get("content")).get("parts")


def _choices(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [_mapping(each) for name in ("choices", "candidates") for each in _list(body.get(name))]


def _fault_of_choices(body: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]) -> lm15.ProviderError | None:
    if not isinstance(body.get("choices", body.get("candidates")), list):
        return _no_answer(body)
    if not choices:
        return _filtered(body) or empty_answer("the provider's answer has no choice")
    first = choices[0]
    if "candidates" in body or isinstance(first.get("message"), Mapping) or isinstance(first.get("text"), str):
        return None
    return _filtered(body) or _no_answer(body)


def _filtered(body: Mapping[str, Any]) -> lm15.ProviderError | None:
    """The error for an answer that a filter has left out; None if none says so."""
    reason = _mapping(body.get("promptFeedback")).get("blockReason")
    blocked = isinstance(reason, str) and reason not in ("", "BLOCK_REASON_UNSPECIFIED")
    results = [body.get("prompt_filter_results"), body.get("content_filter_results")]
    reasons = [str(_reason(_mapping(choice))) for choice in _list(body.get("choices"))]
    if blocked or _is_filtered(results) or any("filter" in each for each in reasons):
        text = "the provider's filter left no answer to this prompt" + (f": {reason}" if blocked else "")
        return lm15.InvalidRequestError(text, provider_code="content_filter")
    return None


def _is_filtered(results: object) -> bool:
    """Whether a tree of filter results has `"filtered": true`, as Azure writes it."""
    if isinstance(results, Mapping):
        return results.get("filtered") is True or any(map(_is_filtered, results.values()))
    return isinstance(results, list) and any(map(_is_filtered, results))


def _no_answer(body: object) -> lm15.ProviderError:
    text = json.dumps(body)
    return lm15.ProviderError(f"the provider's answer is none: {text[:200]}{'…' if len(text) > 200 else ''}")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()
