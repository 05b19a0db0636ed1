"""`Fault`: the ways in which a `FakeServer` can fail, each seen at a real provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from promptside.checks import check, check_count, check_seconds, is_count

__all__ = ["Fault"]

Kind: TypeAlias = Literal[
    "status",
    "overloaded",
    "hang",
    "reset",
    "half_body",
    "malformed",
    "empty_choices",
    "cut_stream",
    "slow_tokens",
    "stall",
    "open_end",
    "answer",
    "finish_reason",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One failure of a `FakeServer`; make it with the class methods.

    Attributes:
        kind: What happens.
        status_code: HTTP status of a ``"status"`` or ``"answer"`` fault.
        headers: Further response headers of these.
        retry_after: Seconds after which a ``"status"`` or ``"overloaded"`` fault asks for a retry, or None.
        code: The provider's error code of a ``"status"`` fault, or None.
        message: Text of a ``"status"`` or ``"overloaded"`` fault; the reason of a ``"finish_reason"`` fault.
        tokens: Tokens that a ``"cut_stream"`` or ``"stall"`` fault sends first.
        seconds: Seconds before each token of a ``"slow_tokens"`` fault, and before each ping of a ``"stall"`` and an
            ``"open_end"``.
        body: JSON-compatible body of an ``"answer"`` fault.
    """

    kind: Kind
    status_code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_after: float | None = None
    code: str | None = None
    message: str = ""
    tokens: int = 0
    seconds: float = 0.0
    body: Any = None

    def __post_init__(self) -> None:
        valid = self.kind != "status" or (is_count(self.status_code, least=400) and self.status_code <= 599)
        check("Fault", "status_code", self.status_code, valid, "give an error's status, 400 to 599")
        check_count("Fault", "tokens", self.tokens, least=0)
        check_seconds("Fault", "seconds", self.seconds, zero=True)

    @classmethod
    def status(
        cls,
        status_code: int,
        *,
        retry_after: float | None = None,
        code: str | None = None,
        message: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Fault:
        """Answer with an HTTP error, with a body in the format of the request's provider.

        Args:
            status_code: 400 to 599, such as 401, 429, 500 or 529.
            retry_after: Seconds after which to retry: a ``Retry-After`` header, for Gemini a ``RetryInfo`` in the body;
                None leaves it out.
            code: The provider's error code, such as OpenAI's ``"context_length_exceeded"``; None takes the usual one.
            message: Text for people; None says that it was scripted.
            headers: Further headers, such as ``x-ratelimit-remaining-requests``.

        Raises:
            ValueError: `status_code` is out of its range.
        """
        return cls(
            kind="status",
            status_code=status_code,
            headers=headers or {},
            retry_after=retry_after,
            code=code,
            message=f"scripted status {status_code}" if message is None else message,
        )

    @classmethod
    def overloaded(cls, *, retry_after: float | None = None) -> Fault:
        """Answer that the model is overloaded, with the provider's status for it (Anthropic 529, else 503).

        Args:
            retry_after: As for `status`.
        """
        return cls(kind="overloaded", retry_after=retry_after, message="the model is overloaded")

    @classmethod
    def hang(cls) -> Fault:
        """Accept the request and do not answer until `FakeServer.release`, or until the client disconnects."""
        return cls(kind="hang")

    @classmethod
    def reset(cls) -> Fault:
        """Reset the connection (a TCP RST) instead of answering."""
        return cls(kind="reset")

    @classmethod
    def half_body(cls) -> Fault:
        """Send the headers and half of the body that they promise, then close the connection."""
        return cls(kind="half_body")

    @classmethod
    def malformed(cls) -> Fault:
        """Answer 200 with a body that is not JSON; in a stream, the first token's event is not JSON."""
        return cls(kind="malformed")

    @classmethod
    def empty_choices(cls) -> Fault:
        """Answer 200 with no choice in it."""
        return cls(kind="empty_choices")

    @classmethod
    def cut_stream(cls, tokens: int = 1) -> Fault:
        """Close the connection in mid-stream; a request that does not stream gets `half_body`.

        Args:
            tokens: Tokens to send first; 0 cuts right after the headers.

        Raises:
            ValueError: `tokens` is negative.
        """
        return cls(kind="cut_stream", tokens=tokens)

    @classmethod
    def slow_tokens(cls, seconds: float) -> Fault:
        """Answer well, but slowly; a request that does not stream waits for all of its tokens at once.

        Args:
            seconds: Seconds before each token.

        Raises:
            ValueError: `seconds` is negative.
        """
        return cls(kind="slow_tokens", seconds=seconds)

    @classmethod
    def stall(cls, tokens: int = 1, *, ping: float = 0.05) -> Fault:
        """Send some tokens and then pings alone, until the client disconnects.

        Pings are comments of a stream. A request that does not stream gets no tokens, and white space for pings.

        Args:
            tokens: Tokens to send first.
            ping: Seconds before each ping.

        Raises:
            ValueError: One of them is negative.
        """
        return cls(kind="stall", tokens=tokens, seconds=ping)

    @classmethod
    def open_end(cls, *, ping: float = 0.05) -> Fault:
        """Stream the whole answer, with its finish reason and what it used, and then pings until it is left.

        A request that does not stream is answered well.

        Args:
            ping: Seconds before each ping.

        Raises:
            ValueError: `ping` is negative.
        """
        return cls(kind="open_end", seconds=ping)

    @classmethod
    def answer(cls, body: Any, *, status_code: int = 200, headers: Mapping[str, str] | None = None) -> Fault:
        """Answer with a body of your own, such as a gateway's error in a 200, or a redirection.

        In a stream with status 200 the body is its first event, and then it ends.

        Args:
            body: JSON-compatible value.
            status_code: HTTP status.
            headers: Further headers.
        """
        return cls(kind="answer", body=body, status_code=status_code, headers=headers or {})

    @classmethod
    def finish_reason(cls, reason: str) -> Fault:
        """End a good answer with another finish reason, such as ``"error"`` where the model behind a gateway died.

        Args:
            reason: As the provider spells it.
        """
        return cls(kind="finish_reason", message=reason)
