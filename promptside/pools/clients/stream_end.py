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

from promptside.pools.clients.judge import DONE, is_last

__all__ = ["EndingTransport", "Grace", "StreamOver"]

T = TypeVar("T")

GRACE_SECONDS: Final = 1.5
"""Seconds after its finish reason for which an answer may still have its usage."""

EARLY_GRACE_SECONDS: Final = 10.0
"""Those after a reason that comes before any piece, or with one: some servers give a reason with every piece."""

CONTENT: Final = re.compile(rb'"(?:text|content|refusal|name|arguments|partial_json)"\s*:\s*"[^"]')
"""Of a line that has a piece of the answer."""

THOUGHT: Final = re.compile(rb'"(?:reasoning|reasoning_content|thinking)"\s*:\s*"[^"]')
"""Of a line that has a piece of what the model thinks before it answers."""


class StreamOver(Exception):
    """The grace after the finish reason is over."""


class Grace:
    """Waits without a bound until there is a finish reason, and then for a grace in all.

    A reason after which a piece comes, or that stands at the end of the thoughts, is not taken for the end.
    """

    def __init__(self) -> None:
        self.finished = False
        self._left = EARLY_GRACE_SECONDS
        self._begun = False
        self._thinks = False
        self._continued = False  # after a finish reason

    def finish(self, *, early: bool = False) -> None:
        """There was a finish reason; `early` if it came with a piece."""
        self.finished = not (self._thinks or self._continued)
        if self._begun and not early:
            self._left = min(self._left, GRACE_SECONDS)

    def end(self) -> None:
        """The server has said that the stream ends."""
        self.finish()
        self._left = min(self._left, GRACE_SECONDS)

    def piece(self, *, thought: bool) -> None:
        """There was a piece of the answer, or of what the model thinks before it."""
        self._continued = self._continued or self.finished
        self._begun = True
        self._thinks = thought
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
        grace, data = Grace(), list[bytes]()
        async with aclosing(self._inner.aiter_lines()) as lines:
            try:
                while (line := await grace.wait(anext(lines, None))) is not None:
                    is_content = CONTENT.search(line) is not None
                    if is_piece := is_content or THOUGHT.search(line) is not None:
                        grace.piece(thought=not is_content)
                    if line.startswith(b"data:"):
                        data.append(line[5:].strip())
                        said = b"\n".join(data).decode(errors="replace")
                        if said == DONE:
                            grace.end()
                        elif is_last(said):
                            grace.finish(early=is_piece)
                    elif not line.strip():
                        data.clear()
                    yield line
            except StreamOver:
                pass
            except TransportError:  # broken off, without its regular end
                if not grace.finished:
                    raise
