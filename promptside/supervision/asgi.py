"""`CancelOnDisconnect`: a web request whose client has left is cancelled, and with it what it had asked for.

Given to Starlette, FastAPI or another ASGI application as a middleware, by users. ASGI tells an application that its
client has left only when it asks; a handler that waits for an answer does not, and a paid call would go on for nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from promptside.checks import check

__all__ = ["CancelOnDisconnect"]

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class CancelOnDisconnect:
    """ASGI middleware: cancels a handler when its client leaves before the response is complete.

    ::

        app = Starlette(..., middleware=[Middleware(CancelOnDisconnect)])
        app.add_middleware(CancelOnDisconnect)  # of FastAPI

    What the handler awaits is cancelled: a program's call ends its LM calls, to the socket. What runs after the
    response, such as a background task, goes on. Of a body that the handler does not read, one part is read ahead.
    When not to use it: where a request shall have its effect though nobody waits for the answer; `tell` an actor there.

    Args:
        app: The application.

    Raises:
        ValueError: `app` cannot be called.
    """

    def __init__(self, app: ASGIApp) -> None:
        check("CancelOnDisconnect", "app", app, callable(app), "give an ASGI application")
        self.app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Handle a connection."""
        if scope["type"] == "http":
            await _Request(receive, send).run(self.app, scope)
        else:
            await self.app(scope, receive, send)


class _Request:
    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._parts: asyncio.Queue[Message] = asyncio.Queue(1)
        self._gone: Message | None = None
        self._answered = False

    async def run(self, app: ASGIApp, scope: MutableMapping[str, Any]) -> None:
        from anyio import CancelScope

        with CancelScope() as waiting:
            reading = asyncio.ensure_future(self._read(waiting.cancel))  # noqa: TID251 - ends with this block
            try:
                await app(scope, self._next, self._note)
            finally:
                reading.cancel()

    async def _read(self, leave: Callable[[], object]) -> None:
        """Take what the server has received; it is the only one to ask."""
        while self._gone is None:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._gone = message
                if self._parts.empty():
                    self._parts.put_nowait(message)
                if not self._answered:  # some servers say the same when the response is complete
                    leave()
            else:
                await self._parts.put(message)

    async def _next(self) -> Message:
        return self._gone if self._gone is not None and self._parts.empty() else await self._parts.get()

    async def _note(self, message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self._answered = True
        await self._send(message)
