"""The end of a streamed answer whose server does not end it.

When an answer has a finish reason it is whole. What follows are its usage and the end of the response, or neither: some
servers leave the connection open, with or without pings. `Grace` says how long to wait for them. `EndingTransport`,
used by the native engine, ends a response of lm15 so; `LiteLLMClient` asks `Grace` itself.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final, TypeVar

from dspy._vendor.lm15.transports import TransportError

__all__ = ["EndingTransport", "Grace", "StreamOver"]

T = TypeVar("T")

GRACE_SECONDS: Final = 1.5
"""Seconds after its finish reason for which an answer may still have its usage."""

FINISHED: Final = re.compile(
    rb'"(?:finish_reason|stop_reason|finishReason)"\s*:\s*"|"type"\s*:\s*"(?:message_stop|response\.completed)"'
)
"""Of a line that has a finish reason, in any dialect. Within a text of the answer these quotes would be escaped."""

CONTENT: Final = re.compile(
    rb'"(?:text|content|arguments|partial_json|reasoning|reasoning_content|thinking)"\s*:\s*"[^"]'
)
"""Of a line that has a piece of the answer."""


class StreamOver(Exception):
    """The grace after the finish reason is over."""


class Grace:
    """Waits without a bound until there is a finish reason, and then for `GRACE_SECONDS` in all."""

    def __init__(self) -> None:
        self.finished = False
        self._left = GRACE_SECONDS
        self._continued = False

    def finish(self) -> None:
        """There was a finish reason. One that was followed by content has no meaning, and later ones have none."""
        self.finished = not self._continued

    def go_on(self) -> None:
        """There was content."""
        self._continued = self._continued or self.finished
        self.finished = False

    async def wait(self, step: Awaitable[T]) -> T:
        """Await a step of the stream; raises `StreamOver`."""
        if not self.finished:
            return await step
        loop = asyncio.get_running_loop()
        began = loop.time()
        bound = asyncio.timeout(self._left)
        try:
            async with bound:
                return await step
        except TimeoutError as error:
            if not bound.expired():
                raise
            raise StreamOver from error
        finally:
            self._left -= loop.time() - began


class EndingTransport:
    """A transport of lm15 whose streamed responses end, at the latest, when their grace is over."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def stream(self, request: Any) -> AbstractAsyncContextManager[Any]:
        """As that of lm15's transports."""
        return self._ending(self._inner.stream(request))

    @asynccontextmanager
    async def _ending(self, opening: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        async with opening as response:
            yield _Response(response)


class _Response:
    """A response as lm15 takes it; its lines end."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def aiter_lines(self) -> AsyncGenerator[bytes, None]:
        """The lines of a stream."""
        grace = Grace()
        async with aclosing(self._inner.aiter_lines()) as lines:
            try:
                while (line := await grace.wait(anext(lines, None))) is not None:
                    if grace.finished and CONTENT.search(line):
                        grace.go_on()
                    if FINISHED.search(line):
                        grace.finish()
                    yield line
            except StreamOver:
                pass
            except TransportError:  # broken off, without its regular end
                if not grace.finished:
                    raise
