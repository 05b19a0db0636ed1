"""`one_request`: within it, a call of litellm's sends one request, to one address. Used by `LiteLLMClient`.

litellm drops `max_retries=0` for some providers, whose client then sends a request three times, and waits between. It
has most redirections followed, with the credentials. Both are settings of the clients that it makes, which it hides. So
the methods with which those send are wrapped. They do as before for calls outside of `one_request`.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["install", "one_request"]

_CALL: Final[ContextVar[_Call | None]] = ContextVar("_CALL", default=None)
"""The call that the running code is made for. Tasks that litellm starts in one, for callbacks, have it for ever."""


class _Call:
    """A call; whether it is over."""

    over = False


@contextmanager
def one_request() -> Iterator[None]:
    """Within, the clients that litellm uses send nothing again, and follow no redirection. After `install`."""
    call = _Call()
    token = _CALL.set(call)
    try:
        yield
    finally:
        call.over = True
        _CALL.reset(token)


def _is_within() -> bool:
    return (call := _CALL.get()) is not None and not call.over


@functools.cache
def install() -> None:
    """Wrap the methods. Once for the process."""
    import httpx
    import openai

    for owner, name, wrap in ((openai.AsyncOpenAI, "request", _request), (httpx.AsyncClient, "send", _send)):
        setattr(owner, name, wrap(getattr(owner, name)))


def _request(request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(request)
    async def once(self: Any, cast_to: Any, options: Any, **named: Any) -> Any:
        if _is_within():
            options.max_retries, options.follow_redirects = 0, False
        return await request(self, cast_to, options, **named)

    return once


def _send(send: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(send)
    async def once(self: Any, request: Any, **named: Any) -> Any:
        if _is_within():
            named["follow_redirects"] = False
        return await send(self, request, **named)

    return once
