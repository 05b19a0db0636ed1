"""What the wire formats have in common: the request as the model sees it, the answer before it is written down.

A `Format` reads a provider's request into an `Ask` and writes a `Reply` in that provider's words, whole or as
the events of a stream. `promptside.testing.http.provider` calls both and decides what the model says in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, Self, TypeAlias

from promptside.testing.http.wire import Record
from promptside.testing.replies import Prompt, content_text, split_tokens

__all__ = ["Ask", "Body", "Format", "Frame", "Refusal", "Reply", "turns_of"]

Body: TypeAlias = Mapping[str, Any]
"""A decoded JSON body."""

Reason: TypeAlias = Literal["end", "length", "stop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A chat request, whatever format it came in.

    Attributes:
        body: As it was sent.
        model: The model that is asked for.
        prompt: What decides the answer.
        words: Words of all messages, which count as the prompt's tokens.
        stream: Whether the answer is to come as server-sent events.
        max_tokens: Tokens that the answer may have, or None for any number.
        stop: Texts before which the answer ends.
        lines: Whether a stream is to be lines of JSON in place of server-sent events.
    """

    body: Body
    model: str
    prompt: Prompt
    words: int
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
        model: str,
        stream: bool,
        max_tokens: int | None,
        stop: Iterable[str] | None,
        schema: Any = None,
        lines: bool = False,
    ) -> Self:
        """The request whose messages are `turns`, each a role (``"system"``, ``"user"`` or another) and its text."""
        turns = list(turns)
        texts = dict(turns)
        return cls(
            body=body,
            model=model,
            prompt=Prompt(system=texts.get("system", ""), user=texts.get("user", ""), schema=schema),
            words=sum(len(text.split()) for _, text in turns),
            stream=stream,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
            lines=lines,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the model says to an `Ask`.

    Attributes:
        ask: What it answers.
        tokens: The words of the answer.
        reason: Why it ends: it is complete, too long, or came upon a text of `Ask.stop`.
        empty: Whether the answer carries no choice at all: a fault.
    """

    ask: Ask
    tokens: tuple[str, ...]
    reason: Reason = "end"
    empty: bool = False

    @classmethod
    def to(cls, ask: Ask, text: str, *, empty: bool = False) -> Self:
        """`text`, as far as the request lets it go."""
        reason: Reason = "end"
        for stop in ask.stop:
            before, found, _ = text.partition(stop)
            if found:
                text, reason = before, "stop"
        tokens = split_tokens(text)
        if ask.max_tokens is not None and len(tokens) > ask.max_tokens:
            tokens, reason = tokens[: ask.max_tokens], "length"
        return cls(ask=ask, tokens=tuple(tokens), reason=reason, empty=empty)

    @property
    def text(self) -> str:
        """The tokens together."""
        return "".join(self.tokens)


class Frame(NamedTuple):
    """One event of a stream: its data, a JSON-compatible value or a text as it is, and its name if it has one."""

    data: Any
    event: str | None = None


class Refusal(NamedTuple):
    """An error as a provider answers it: the body, and the headers that belong to it."""

    body: dict[str, Any]
    headers: dict[str, str]


class Format(Protocol):
    """A provider's way to write chat requests and answers down.

    Attributes:
        overloaded: The status with which it says that it has too much to do.
    """

    overloaded: int

    def read(self, record: Record) -> Ask:
        """What a request asks for; raises `KeyError` where a part is missing that the provider requires."""
        ...

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        ...

    def opening(self, reply: Reply) -> Iterator[Frame]:
        """The events before the first token; those of an empty reply have no choice in them."""
        ...

    def piece(self, reply: Reply, token: str) -> Frame:
        """The event of one token."""
        ...

    def closing(self, reply: Reply) -> Iterator[Frame]:
        """The events after the last token."""
        ...

    def refusal(self, status: int, message: str, code: str | None, retry_after: float | None) -> Refusal:
        """An error.

        Args:
            status: Of the response, 400 to 599.
            message: For people.
            code: The provider's own word for it; None takes the one that goes with the status.
            retry_after: Seconds after which to come again, or None to say nothing of it.
        """
        ...


def retry_after_header(seconds: float | None) -> dict[str, str]:
    """The ``Retry-After`` header, if there is anything to say."""
    return {} if seconds is None else {"retry-after": f"{seconds:g}"}


def turns_of(messages: Iterable[Body] | None) -> Iterator[tuple[str, str]]:
    """Role and text of each message, where a message has ``role`` and ``content``; a developer is the system."""
    for message in messages or ():
        role = str(message.get("role"))
        yield ("system" if role == "developer" else role), content_text(message.get("content"))
