"""The HTTP/1.1 connections of a `FakeServer`: requests, responses, and responses that break off.

One `Connection` is one TCP connection with keep-alive; requests on it are served one after another. It is an
`asyncio.Protocol` and not a pair of streams, because `connection_lost` is called at once when a client disconnects.
`Traffic` counts connections and requests, and other threads can wait on it. `FakeServer` creates both; `Provider.serve`
answers a request. Bodies need a ``Content-Length``; chunked uploads are refused with status 411.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeAlias

from promptside import clock

__all__ = ["Connection", "Record", "Serve", "Traffic"]


@dataclass(slots=True, kw_only=True, eq=False)
class Record:
    """One request that a `FakeServer` received, and its outcome.

    Attributes:
        method: ``"POST"`` or ``"GET"``.
        path: Path without a query, such as ``"/v1/chat/completions"``.
        headers: Header values by lower-case name.
        body: The decoded JSON body; ``{}`` when there is none.
        time: When it was received, on `promptside.clock.monotonic`.
        connection: Number of its connection, from 1, in order of arrival.
        status: HTTP status of the response, or None while (or because) none was sent.
        aborted: Whether the client disconnected before the response was complete.
        finished: Whether the server is done with it.
    """

    method: str
    path: str
    headers: dict[str, str] = field(repr=False)
    body: dict[str, Any] = field(repr=False)
    time: float
    connection: int
    status: int | None = None
    aborted: bool = False
    finished: bool = False


Serve: TypeAlias = Callable[["Connection", Record], Coroutine[Any, Any, None]]


class Traffic:
    """Requests and connections of a `FakeServer`; changed on its loop, read and awaited from any thread.

    Attributes:
        changed: Notified after every change, and held during it.
        requests: Every request, in order of arrival.
        open: The connections that are open now.
        max_connections: Most connections that were open at once.
        total_connections: Connections accepted so far.
        active: Requests being served now.
        max_active: Most requests that were being served at once.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.requests: list[Record] = []
        self.open: set[Connection] = set()
        self.max_connections = 0
        self.total_connections = 0
        self.active = 0
        self.max_active = 0

    def opened(self, connection: Connection) -> int:
        """Count a new connection, and number it."""
        with self.changed:
            self.open.add(connection)
            self.total_connections += 1
            self.max_connections = max(self.max_connections, len(self.open))
            self.changed.notify_all()
            return self.total_connections

    def closed(self, connection: Connection) -> None:
        """Count a connection that is gone."""
        with self.changed:
            self.open.discard(connection)
            self.changed.notify_all()

    def began(self, record: Record) -> None:
        """Count a request that is being served."""
        with self.changed:
            self.requests.append(record)
            self.active += 1
            self.max_active = max(self.max_active, self.active)
            self.changed.notify_all()

    def ended(self, record: Record) -> None:
        """Count a request that the server is done with."""
        with self.changed:
            record.finished = True
            self.active -= 1
            self.changed.notify_all()


class Connection(asyncio.Protocol):
    """One client's TCP connection.

    Args:
        traffic: Counts its requests.
        serve: Answers a request; cancelled when the client disconnects.
    """

    def __init__(self, traffic: Traffic, serve: Serve) -> None:
        self._traffic = traffic
        self._serve = serve
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        self._closing = False
        self._is_events = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._number = self._traffic.opened(self)

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._buffer += data
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio; before the response is complete, the client has aborted, unless the server closed."""
        if self._record is not None:
            self._record.aborted = not self._closing
        self._closing = True
        if self._task is not None:
            self._task.cancel()
        self._traffic.closed(self)

    def send(self, status: int, payload: object, headers: Mapping[str, str] | None = None) -> None:
        """Send a whole JSON response.

        Args:
            status: HTTP status.
            payload: JSON-compatible value.
            headers: Further headers.
        """
        self.send_raw(status, json.dumps(payload).encode(), headers)

    def send_raw(
        self, status: int, body: bytes, headers: Mapping[str, str] | None = None, *, cut: int | None = None
    ) -> None:
        """Send a whole response, or one that breaks off.

        Args:
            status: HTTP status.
            body: The body as it is sent.
            headers: Further headers.
            cut: Bytes of the body after which the connection closes, or None for all of it.
        """
        fixed = {"content-type": "application/json", "content-length": str(len(body))}
        self._transport.write(self._head(status, {**fixed, **(headers or {})}) + body[:cut])
        if cut is not None:
            self.close()

    def start_stream(self, content_type: str = "text/event-stream") -> None:
        """Send the headers of a stream.

        Args:
            content_type: That of server-sent events, or of lines.
        """
        self._is_events = content_type == "text/event-stream"
        self._transport.write(self._head(200, {"content-type": content_type, "transfer-encoding": "chunked"}))

    def send_event(self, data: str, name: str | None = None) -> None:
        """Send one server-sent event.

        Args:
            data: Its data, on one line.
            name: Its name, if it has one.
        """
        head = "" if name is None else f"event: {name}\n"
        self._send_chunk(f"{head}data: {data}\n\n")

    def send_line(self, data: str) -> None:
        """Send one line of a stream of lines."""
        self._send_chunk(f"{data}\n")

    def send_ping(self) -> None:
        """Send a comment of a stream of events, or a blank line of another."""
        self._send_chunk(": ping\n\n" if self._is_events else "\n")

    def _send_chunk(self, text: str) -> None:
        chunk = text.encode()
        self._transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))

    def end_stream(self) -> None:
        """End a stream in the regular way."""
        self._transport.write(b"0\r\n\r\n")

    def close(self) -> None:
        """Close when all is sent; the request in progress does not count as aborted by its client."""
        self._closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close at once, without sending the rest."""
        self._closing = True
        self._transport.abort()

    def reset(self) -> None:
        """Close with a TCP RST, which the client sees as a connection error."""
        # With a linger time of zero the operating system sends RST and not FIN.
        tcp = self._transport.get_extra_info("socket")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.abort()

    def _head(self, status: int, headers: Mapping[str, str]) -> bytes:
        if self._record is not None:
            self._record.status = status
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:  # such as 529, which is not standardised
            phrase = "Error"
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} {phrase}\r\n{lines}\r\n".encode("latin-1")

    def _advance(self) -> None:
        """Serve the next request, if it is complete and the previous one is done."""
        if self._task is not None or self._closing:
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        request_line, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            self._send_error(411, "this server needs a Content-Length")
            return
        stop = end + 4 + int(headers.get("content-length", "0"))
        if len(self._buffer) < stop:
            return
        content = bytes(self._buffer[end + 4 : stop])
        del self._buffer[:stop]
        try:
            body = json.loads(content) if content else {}
        except ValueError as error:
            self._send_error(400, f"the request is not JSON: {error}")
            return
        method, target, _ = request_line.split(" ", 2)
        self._record = Record(
            method=method,
            path=target.partition("?")[0],
            headers=headers,
            body=body,
            time=clock.monotonic(),
            connection=self._number,
        )
        self._traffic.began(self._record)
        self._task = asyncio.get_running_loop().create_task(self._answer(self._record))

    def _send_error(self, status: int, message: str) -> None:
        """Answer with an error and read no more. The client closes: our close would reset unread data."""
        self.send(status, {"error": {"message": message}}, {"connection": "close"})
        self._closing = True

    async def _answer(self, record: Record) -> None:
        try:
            await self._serve(self, record)
        finally:
            self._record = self._task = None
            self._traffic.ended(record)
        if record.headers.get("connection", "").lower() == "close":
            self.close()
        self._advance()
