"""`Format`: reads a provider's request into a `ChatRequest`, and writes a `ChatResponse` for that provider.

Called by `promptside.testing.http.provider`, which makes the response.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

from promptside.testing.http.wire import Record
from promptside.testing.replies import Prompt, content_text, split_tokens

__all__ = [
    "Body",
    "ChatRequest",
    "ChatResponse",
    "ErrorResponse",
    "Format",
    "Frame",
    "named_frame",
    "retry_after_header",
    "turns_of",
]

Body: TypeAlias = Mapping[str, Any]
"""A decoded JSON body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A chat request of any provider.

    Attributes:
        body: The body as it was sent.
        model: Name of the model.
        prompt: The parts that decide the answer.
        prompt_tokens: Words of all messages.
        stream: Whether the answer is streamed.
        max_tokens: Tokens that the answer may have, or None for any number.
        stop: Texts before which the answer ends.
        lines: Whether a stream is lines of JSON in place of server-sent events.
    """

    body: Body
    model: str
    prompt: Prompt
    prompt_tokens: int
    stream: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    lines: bool = False

    @classmethod
    def of(
        cls,
        body: Body,
        turns: Iterable[tuple[str, str]],
        *,
        max_tokens: int | None,
        stop: Iterable[str] | None,
        schema: Any = None,
        model: str | None = None,
        stream: bool | None = None,
        lines: bool = False,
    ) -> Self:
        """The request with the messages `turns`, each a role (``"system"``, ``"user"`` or another) and its text.

        Unless given, `model` and `stream` are those of the body.
        """
        turns = list(turns)
        texts = dict(turns)
        return cls(
            body=body,
            model=body.get("model", "") if model is None else model,
            prompt=Prompt(system=texts.get("system", ""), user=texts.get("user", ""), schema=schema),
            prompt_tokens=sum(len(text.split()) for _, text in turns),
            stream=bool(body.get("stream")) if stream is None else stream,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            lines=lines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResponse:
    """The model's answer to a `ChatRequest`.

    Attributes:
        request: The request.
        tokens: The words of the answer.
        reason: Why it ends: ``"end"``, ``"length"``, ``"stop"`` at a text of `ChatRequest.stop`, or a provider's own
            word.
        empty: Whether it has no choice at all: a fault.
    """

    request: ChatRequest
    tokens: tuple[str, ...]
    reason: str = "end"
    empty: bool = False

    @classmethod
    def to(cls, request: ChatRequest, text: str, *, empty: bool = False) -> Self:
        """The answer `text`, cut by the limits of the request."""
        reason = "end"
        for stop in request.stop:
            before, found, _ = text.partition(stop)
            if found:
                text, reason = before, "stop"
        tokens = split_tokens(text)
        if request.max_tokens is not None and len(tokens) > request.max_tokens:
            tokens, reason = tokens[: request.max_tokens], "length"
        return cls(request=request, tokens=tuple(tokens), reason=reason, empty=empty)

    @property
    def text(self) -> str:
        """The tokens together."""
        return "".join(self.tokens)

    @property
    def content(self) -> list[dict[str, str]]:
        """The text as a list of parts, as Anthropic and Cohere write it; empty for an empty response."""
        return [] if self.empty else [{"type": "text", "text": self.text}]


class Frame(NamedTuple):
    """One event of a stream: its data, a JSON-compatible value or a plain text, and its name if it has one."""

    data: Any
    event: str | None = None


class ErrorResponse(NamedTuple):
    """The body and the headers of a provider's error."""

    body: dict[str, Any]
    headers: dict[str, str]


class Format(Protocol):
    """How one provider writes chat requests and responses.

    Attributes:
        overloaded: The status that means that the model is overloaded.
    """

    overloaded: int

    def read(self, record: Record) -> ChatRequest:
        """Read a request; raises `KeyError` if a part is missing that the provider requires."""
        ...

    def body(self, response: ChatResponse) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        ...

    def opening(self, response: ChatResponse) -> Iterator[Frame]:
        """The events before the first token; in an empty response they have no choice."""
        ...

    def chunk(self, response: ChatResponse, token: str) -> Frame:
        """The event of one token."""
        ...

    def closing(self, response: ChatResponse) -> Iterator[Frame]:
        """The events after the last token."""
        ...

    def error(self, status: int, message: str, code: str | None, retry_after: float | None) -> ErrorResponse:
        """An error response.

        Args:
            status: Of the response, 400 to 599.
            message: Text for people.
            code: The provider's error code; None takes the usual one of the status.
            retry_after: Seconds after which to retry, or None to leave it out.
        """
        ...


def retry_after_header(seconds: float | None) -> dict[str, str]:
    """The ``Retry-After`` header; none for None."""
    return {} if seconds is None else {"retry-after": f"{seconds:g}"}


def named_frame(type: str, **more: Any) -> Frame:
    """An event that has its type as its name and in its data."""
    return Frame({"type": type, **more}, type)


def turns_of(messages: Iterable[Body] | None) -> Iterator[tuple[str, str]]:
    """Role and text of messages that have ``role`` and ``content``; a developer counts as the system."""
    for message in messages or ():
        role = str(message.get("role"))
        yield ("system" if role == "developer" else role), content_text(message.get("content"))
