"""`Connections`: the connections that clients open on an event loop, watched from their opening to their end.

`BoundedClient` sends each request through it. Clients (lm15, litellm, openai) keep connections between requests, each
in its own way, but all open them with `create_connection` of the loop. So this is the one place where all of them can
be closed when nobody uses them any more, and where one that died unnoticed can be told from an endpoint that fails:

- One that nobody has used for `IDLE_SECONDS` is closed, before a load balancer on the way drops it.
- One on which the server closes, or sends something, while no request is under way is closed too.
- A request that meets a kept connection which is dead, and gets no byte of an answer, is sent once more, on a new one.
- TCP's keepalive holds a silent connection open while a model thinks, and finds out when the other side is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from promptside.pools.clients.provider_timeout import ProviderTimeout

__all__ = ["Connections", "Use"]

IDLE_SECONDS: Final = 45.0
"""Seconds for which an unused connection is kept: usual load balancers drop one after 60 s, some without a word."""

MAX_IDLE: Final = 100
"""Shared connections of a loop that are kept unused: litellm has a client of its own for each key, with connections."""

CONNECT_SECONDS: Final = 10.0
"""Seconds for making a connection; litellm and openai would wait as long for it as for an answer."""

DEAD_WITHIN: Final = 30.0
"""Seconds after a request within which the end of a kept connection means that it was dead before. One that ends later
has ended the work on an answer."""

TCP_OPTIONS: Final = (
    ("SO_KEEPALIVE", socket.SOL_SOCKET, 1),
    ("TCP_KEEPIDLE", socket.IPPROTO_TCP, 30),  # seconds of silence before the first probe
    ("TCP_KEEPALIVE", socket.IPPROTO_TCP, 30),  # its name on macOS
    ("TCP_KEEPINTVL", socket.IPPROTO_TCP, 10),
    ("TCP_KEEPCNT", socket.IPPROTO_TCP, 3),
    ("TCP_USER_TIMEOUT", socket.IPPROTO_TCP, 20_000),  # milliseconds that sent data may stay unacknowledged
)

_USE: ContextVar[Use | None] = ContextVar("_USE", default=None)
"""The request that the running code sends. Tasks that a client starts in it, for callbacks, have it for ever."""

_SHARED: Final = ContextVar("_SHARED", default=False)
"""Whether connections that the running code opens are kept by a client that no pool closes."""


class Connections:
    """The `create_connection` of an event loop, which watches the connections that are opened for requests.

    It stays in the loop, with a `start_tls` for them. Connections that others open are not touched.

    Attributes:
        left: How many connections were closed because their users had ended.
    """

    def __init__(self, loop: Any) -> None:
        self.left = 0
        self._connect = loop.create_connection
        self._start_tls = loop.start_tls
        self._open: set[_Connection] = set()
        self._sweeping: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, loop: Any) -> Connections:
        """Those of a loop."""
        if not isinstance(loop.create_connection, cls):
            connections = cls(loop)
            loop.create_connection, loop.start_tls = connections, connections.start_tls
        found: Connections = loop.create_connection
        return found

    async def __call__(self, factory: Callable[[], Any], *args: Any, **options: Any) -> Any:
        """As `asyncio.loop.create_connection`."""
        use = _current_use()
        if use is None or use.connections is None:
            return await self._connect(factory, *args, **options)
        user, shared = use.user, _SHARED.get()

        def watched() -> _Connection:
            return _Connection(factory(), self, user, shared=shared)

        limit = ProviderTimeout(CONNECT_SECONDS)
        try:
            async with limit:
                _, connection = await self._connect(watched, *args, **options)
        except TimeoutError as error:
            if not limit.expired:
                raise
            raise ConnectionError(f"no connection within {CONNECT_SECONDS:g} s") from error
        if use.ahead:
            connection.keep()
        transport = connection.transport
        if (opened := transport.get_extra_info("socket")) is not None:
            for name, level, value in TCP_OPTIONS:
                if hasattr(socket, name):
                    with contextlib.suppress(OSError):
                        opened.setsockopt(level, getattr(socket, name), value)
        return transport, connection.protocol

    async def start_tls(self, transport: Any, protocol: Any, *args: Any, **options: Any) -> Any:
        """As `asyncio.loop.start_tls`. A connection through a proxy is then watched as one with TLS from its start."""
        if not isinstance(transport, _Transport):
            return await self._start_tls(transport, protocol, *args, **options)
        connection = transport.connection
        connection.protocol = protocol
        try:
            inner = await self._start_tls(transport.inner, connection, *args, **options)
        except BaseException:
            self.lost(connection)
            raise
        connection.transport = _Transport(inner, connection)
        return connection.transport

    @staticmethod
    @contextlib.contextmanager
    def shared() -> Iterator[None]:
        """Within, the connections that are opened are kept by a client of the whole process."""
        token = _SHARED.set(True)
        try:
            yield
        finally:
            _SHARED.reset(token)

    def leave(self, user: object) -> None:
        """A user has ended: close the connections that no other one uses."""
        for connection in list(self._open):
            connection.users.discard(user)
            if not connection.users and not connection.lent:
                connection.drop()
                self.left += 1

    def opened(self, connection: _Connection) -> None:
        """A watched connection is made."""
        self._open.add(connection)

    def lost(self, connection: _Connection) -> None:
        """A watched connection is gone."""
        self._open.discard(connection)

    def released(self) -> None:
        """A connection is not in use any more: it will expire. Of many, those unused for longest are closed."""
        if len(self._open) > MAX_IDLE:
            idle = [each for each in self._open if each.shared and each.is_idle]
            for connection in sorted(idle, key=lambda each: each.idle_since)[: max(0, len(idle) - MAX_IDLE)]:
                connection.drop()
        if self._sweeping is None:
            self._sweeping = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._sweep)

    def drop_like(self, dead: _Connection) -> None:
        """Close the kept connections to the same address that were last used before the dead one."""
        for connection in list(self._open):
            if connection.peer == dead.peer and connection.idle_since < dead.used_since:
                connection.drop()

    def _sweep(self) -> None:
        self._sweeping = None
        loop = asyncio.get_running_loop()
        idle = [each for each in self._open if each.is_idle]
        for connection in idle:
            if connection.idle_since + IDLE_SECONDS <= loop.time():
                connection.drop()
        left = [each.idle_since for each in idle if each in self._open and not each.dead]
        if left:
            self._sweeping = loop.call_at(min(left) + IDLE_SECONDS, self._sweep)


class Use:
    """One request, and the connections that it was written to. Entered around it.

    Args:
        connections: Those of the running loop; None for a request whose connections are not to be watched.
        user: Stands for the client that sends it. `Connections.leave` says that it has ended.
        ahead: Whether there is no request, and the connections that are opened are kept for the first ones.

    Attributes:
        connections: As given.
        user: As given.
        on_sent: Called when it is first written to a connection.
        over: Whether it has been left.
    """

    def __init__(self, connections: Connections | None, user: object, *, ahead: bool = False) -> None:
        self.connections = connections
        self.user = user
        self.ahead = ahead
        self.on_sent: Callable[[], None] | None = None
        self.over = False
        self._left = 0 if connections is None else connections.left
        self._used: dict[_Connection, bool] = {}  # whether it was a kept one

    def __enter__(self) -> Use:
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self.on_sent = None  # the context of a kept connection holds this, and must not hold the client that keeps it
        for connection in self._used:
            connection.release(self)
        if self.connections is not None and (self._used or self.ahead):
            self.connections.released()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Within, what is written belongs to the request. Entered and left in one context."""
        token = _USE.set(self)
        try:
            yield
        finally:
            _USE.reset(token)

    def wrote(self, connection: _Connection) -> None:
        """The request was written to a connection, or a part of it."""
        if not self._used and self.on_sent is not None:
            self.on_sent()
        if connection not in self._used:
            self._used[connection] = connection.used
            connection.acquire(self)

    @property
    def is_sent(self) -> bool:
        """Whether it was written to a connection."""
        return bool(self._used)

    def may_send_again(self) -> bool:
        """Whether it has failed by its connection: by a kept one that was dead, the likes of which are closed then.

        Or it was not written, and the one that its client had chosen may have been closed for another user's end.
        """
        if self.connections is None:
            return False
        if not self._used:
            return self.connections.left > self._left
        connection, kept = list(self._used.items())[-1]
        if not kept or not connection.dead or connection.answered:
            return False
        self.connections.drop_like(connection)
        return True


def _current_use() -> Use | None:
    return use if (use := _USE.get()) is not None and not use.over else None


class _Connection(asyncio.Protocol):
    """A client's protocol, watched.

    Attributes:
        transport: As the client sees it.
        protocol: The client's own.
        shared: Whether a client of the whole process keeps it.
        users: Those for whom requests were sent on it, and the one for whom it was opened, until they leave.
        uses: Requests under way on it.
        used: Whether there was one.
        lent: Whether the last request was not one of a pool: a shared client serves the code around the pools too. When
            it ends is not known.
        used_since: When the last one began.
        idle_since: When the last one ended; infinity while there is one.
        answered: Whether a byte has come since the last request began.
        dead: Whether it ended soon after that, and not by its client.
        peer: The other side's address.
    """

    transport: Any = None
    peer: Any = None

    def __init__(self, protocol: Any, connections: Connections, user: object, *, shared: bool) -> None:
        self.protocol = protocol
        self.shared = shared
        self.users = {user}
        self.uses: set[Use] = set()
        self.used = False
        self.lent = False
        self.used_since = 0.0
        self.idle_since = float("inf")
        self.answered = False
        self.dead = False
        self._connections = connections
        self._time = asyncio.get_running_loop().time

    def acquire(self, use: Use) -> None:
        """A request begins."""
        self.uses.add(use)
        self.users.add(use.user)
        self.used = True
        self.lent = False
        self.used_since = self._time()
        self.idle_since = float("inf")
        self.answered = False

    def lend(self) -> None:
        """A request begins that is not a pool's."""
        self.lent = True
        self.idle_since = float("inf")

    @property
    def is_idle(self) -> bool:
        """Whether it was used, and no request is under way on it."""
        return self.used and not self.uses and not self.lent

    def keep(self) -> None:
        """It is kept, as if there had been a request on it."""
        self.used = True
        self.idle_since = self._time()

    def release(self, use: Use) -> None:
        """A request has ended."""
        self.uses.discard(use)
        if not self.uses:
            self.idle_since = self._time()

    def drop(self) -> None:
        """Close it: it is not worth keeping. A request that is about to be written to it has met a dead one."""
        self.dead = True
        self.transport.abort()

    def ended_by_peer(self) -> None:
        """The other side has closed it, or is gone."""
        self.dead = self.dead or not self.uses or self._time() - self.used_since <= DEAD_WITHIN

    def connection_made(self, transport: Any) -> None:
        """Called by asyncio, as the methods below."""
        self.transport = _Transport(transport, self)
        self.peer = transport.get_extra_info("peername")
        self._connections.opened(self)
        self.protocol.connection_made(self.transport)

    def data_received(self, data: bytes) -> None:
        if self.is_idle:
            self.drop()  # what it says belongs to no request: it would be taken for the answer to the next one
            return
        self.answered = True
        self.protocol.data_received(data)

    def eof_received(self) -> bool | None:
        self.ended_by_peer()
        keep: bool | None = self.protocol.eof_received()
        if self.is_idle:
            self.drop()
        return keep

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.transport.closed:
            self.ended_by_peer()
        self._connections.lost(self)
        self.protocol.connection_lost(exc)

    def pause_writing(self) -> None:
        self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self.protocol.resume_writing()


class _Transport:
    """A connection's transport, which notes who writes to it, and whether its client has closed it."""

    def __init__(self, inner: Any, connection: _Connection) -> None:
        self.__dict__.update(inner=inner, connection=connection, closed=False)

    def write(self, data: Any) -> None:
        self._note_request()
        self.inner.write(data)

    def writelines(self, data: Any) -> None:
        self._note_request()
        self.inner.writelines(data)

    def _note_request(self) -> None:
        if (use := _current_use()) is not None:
            use.wrote(self.connection)
        elif not self.connection.uses:
            self.connection.lend()

    def close(self) -> None:
        self.__dict__["closed"] = True
        self.inner.close()

    def abort(self) -> None:
        self.__dict__["closed"] = True
        self.inner.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self.inner, name, value)
