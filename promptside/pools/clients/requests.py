"""The requests and answers of a pool's LM: lm15's, with what a provider's client and DSPy need beside them.

`PooledLM` makes a `PoolRequest` of each call; a worker makes a `PoolResponse` of each answer. In between they are the
`Request` and the `Response` that they derive from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal, TypeAlias, TypeVar

from dspy.lm15 import Request, Response, StreamEndEvent, Usage

__all__ = [
    "ModelType",
    "Origin",
    "PoolRequest",
    "PoolResponse",
    "PoolStreamEnd",
    "credible",
    "end_with_origin",
    "with_origin",
    "with_raw",
]

ModelType: TypeAlias = Literal["chat", "text", "responses"]
"""The API that a call goes to, as `dspy.LM` names it."""

R = TypeVar("R", bound=Response)
U = TypeVar("U", bound=Usage | None)

_FIELDS: Final = tuple(each.name for each in fields(Response))
_COUNTS: Final = tuple(each.name for each in fields(Usage))

MOST_TOKENS: Final = 10**9
"""Tokens of one request that are believed."""


@dataclass(frozen=True, slots=True)
class PoolRequest(Request):
    """A request as lm15 reads it, and the call as DSPy sends it through litellm.

    Attributes:
        model_type: The API.
        options: Settings of the connection for this call alone, such as `extra_headers` and `timeout`.
        candidates: Answers that litellm is asked for in one request.
        native: Whether lm15 has a form for everything in the call. If not, the other fields are what can be shown of
            it, and only litellm can send it.
        body: The call as DSPy's `PreparedCall` has it; None for a `dspy.lm15.Request` of the user's.
    """

    model_type: ModelType = "chat"
    options: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = 1
    native: bool = True
    body: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def streams(self) -> bool:
        """Whether it can be answered in pieces."""
        one = self.model_type == "chat" and self.candidates == 1
        return one or (self.model_type == "responses" and self.native)


@dataclass(frozen=True, slots=True)
class Origin:
    """The provider of an answer, and its price.

    Attributes:
        provider: As lm15 names it, for a native answer; None for another.
        cost: In US dollars; None where the price is not known.
        cost_details: As DSPy's history has them.
    """

    provider: str | None = None
    cost: float | None = None
    cost_details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, repr=False)
class PoolResponse(Response):
    """An answer with its origin.

    Attributes:
        origin: Where it comes from.
        raw: The answer as litellm returned it; None for a native one.
    """

    origin: Origin | None = field(default=None, kw_only=True)
    raw: Any = field(default=None, kw_only=True, compare=False)

    def plain(self) -> Response:
        """Lm15's own part of it."""
        return _filled(Response, self)


@dataclass(frozen=True, slots=True)
class PoolStreamEnd(StreamEndEvent):
    """The end of a streamed answer with its origin."""

    origin: Origin | None = field(default=None, kw_only=True)


def with_raw(response: Response, raw: Any) -> PoolResponse:
    """The answer with litellm's own form of it."""
    return _filled(PoolResponse, response, raw=raw, origin=None)


def with_origin(response: Response, origin: Origin) -> PoolResponse:
    """The answer with its origin."""
    return _filled(PoolResponse, response, raw=getattr(response, "raw", None), origin=origin)


def credible(usage: U) -> U | Usage:
    """What a provider has counted; nothing is known where one count is more than a request can have."""
    if usage is None or all((getattr(usage, name) or 0) <= MOST_TOKENS for name in _COUNTS):
        return usage
    return Usage()


def end_with_origin(event: StreamEndEvent, origin: Origin) -> PoolStreamEnd:
    """The end of a streamed answer with its origin."""
    return PoolStreamEnd(
        finish_reason=event.finish_reason, usage=event.usage, provider_data=event.provider_data, origin=origin
    )


def _filled(kind: type[R], source: Response, **more: Any) -> R:
    """One more answer with the fields of `source`, which were checked when that was made: a check takes 10 us."""
    made = object.__new__(kind)
    for name in _FIELDS:
        object.__setattr__(made, name, getattr(source, name))
    for name, value in more.items():
        object.__setattr__(made, name, value)
    return made
