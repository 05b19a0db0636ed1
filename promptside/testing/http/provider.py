"""`Provider`: the endpoints of a `FakeServer`, its scripted model and its faults.

`FakeServer` owns one `Provider` and gives its `serve` to the connections of `wire`. `formats` read requests and write
responses; `promptside.testing.replies` formats the model's text.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

from promptside.testing.faults import Fault
from promptside.testing.http.formats import OPENAI, embeddings, format_of, models
from promptside.testing.http.formats.format import Body, ChatRequest, ChatResponse, Format, Frame
from promptside.testing.http.wire import Connection, Record
from promptside.testing.replies import Answer, AnswerMap, NoAnswer, choose, reply

__all__ = ["Provider"]

_HEALTHY = Fault.slow_tokens(0.0)
_BROKEN = '{"choices": [{"message": '


class Provider:
    """Answers the requests of one `FakeServer`, or fails them. `serve` runs on the server's loop; the rest anywhere.

    Args:
        answer: The model's answer, as for `FakeServer`.
        model: Name that ``/v1/models`` lists.
        latency: Seconds before each answer or fault.
    """

    def __init__(self, answer: str | AnswerMap | Callable[[Body], Answer], *, model: str, latency: float) -> None:
        self.latency = latency
        self._answer = answer
        self._model = model
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here
        self._queued: deque[Fault | None] = deque()
        self._default: Fault | None = None
        self._gate = asyncio.Event()

    def queue(self, outcomes: Iterable[Fault | None]) -> None:
        """Append the outcomes of coming requests; None is a good answer."""
        with self._lock:
            self._queued.extend(outcomes)

    def set_default(self, fault: Fault | None) -> None:
        """Set the outcome of every request after the queued outcomes; None is a good answer."""
        with self._lock:
            self._default = fault

    def clear(self) -> None:
        """Drop all queued outcomes and the default one."""
        with self._lock:
            self._queued.clear()
            self._default = None

    def open_gate(self) -> None:
        """Answer the requests that hang now. On the server's loop only."""
        self._gate.set()
        self._gate = asyncio.Event()

    async def serve(self, connection: Connection, record: Record) -> None:
        """Answer one request.

        Args:
            connection: Its connection.
            record: The request.
        """
        chat = format_of(record.path)
        format = chat or OPENAI
        try:
            match record.method, record.path:
                case "POST", _ if chat is not None:
                    await self._chat(connection, record, chat)
                case "POST", "/v1/embeddings":
                    await self._embed(connection, record.body)
                case "GET", "/v1/models":
                    connection.send(200, models(self._model))
                case method, path:
                    _send_error(connection, format, 404, f"there is no {method} {path} here")
        except NoAnswer as error:
            _send_error(connection, format, 400, str(error))
        except Exception as error:  # noqa: BLE001 - the user's function, or a body of a wrong shape
            _send_error(connection, format, 500, f"the fake server raised {type(error).__name__}: {error}")

    async def _chat(self, connection: Connection, record: Record, format: Format) -> None:
        fault = await self._next_fault(connection, format)
        if fault is None:
            return
        request = format.read(record)
        text = reply(self._choose(request), request.prompt)
        answer = ChatResponse.to(request, text, empty=fault.kind == "empty_choices")
        if request.stream:
            await _stream(connection, format, answer, fault)
            return
        if fault.kind == "slow_tokens":
            await asyncio.sleep(fault.seconds * len(answer.tokens))
        await _send(connection, format.body(answer), fault)

    async def _embed(self, connection: Connection, body: Body) -> None:
        fault = await self._next_fault(connection, OPENAI)
        if fault is not None:
            await _send(connection, embeddings(body, empty=fault.kind == "empty_choices"), fault)

    async def _next_fault(self, connection: Connection, format: Format) -> Fault | None:
        """Wait the latency and take the next fault; None if the fault itself was the response."""
        with self._lock:
            fault = (self._queued.popleft() if self._queued else self._default) or _HEALTHY
        if self.latency:
            await asyncio.sleep(self.latency)
        match fault.kind:
            case "status":
                _send_error(connection, format, fault.status_code, fault.message, fault)
            case "overloaded":
                _send_error(connection, format, format.overloaded, fault.message, fault)
            case "reset":
                connection.reset()
            case "hang":
                await self._gate.wait()
                return _HEALTHY
            case _:
                return fault
        return None

    def _choose(self, request: ChatRequest) -> Answer:
        if isinstance(self._answer, str):
            return self._answer
        if isinstance(self._answer, Mapping):
            return choose(self._answer, request.prompt.user)
        return self._answer(request.body)


def _send_error(connection: Connection, format: Format, status: int, message: str, fault: Fault = _HEALTHY) -> None:
    """Send an error response."""
    error = format.error(status, message, fault.code, fault.retry_after)
    connection.send(status, error.body, {**error.headers, **fault.headers})


async def _send(connection: Connection, payload: dict[str, Any], fault: Fault) -> None:
    """Send an answer that is not streamed, or the part that the fault leaves."""
    if fault.kind == "stall":
        connection.start_stream("application/json")
        await _ping(connection, fault)
    body = (_BROKEN if fault.kind == "malformed" else json.dumps(payload)).encode()
    connection.send_raw(200, body, cut=len(body) // 2 if fault.kind in ("half_body", "cut_stream") else None)


async def _stream(connection: Connection, format: Format, answer: ChatResponse, fault: Fault) -> None:
    """Send an answer token by token, or the part that the fault leaves."""
    lines = answer.request.lines

    def send(*frames: Frame) -> None:
        for data, name in frames:
            text = data if isinstance(data, str) else json.dumps(data)
            if lines:
                connection.send_line(text)
            else:
                connection.send_event(text, name)

    tokens = () if answer.empty else answer.tokens
    cut = {"cut_stream": fault.tokens, "stall": fault.tokens, "half_body": len(tokens) // 2}.get(fault.kind)
    connection.start_stream("application/stream+json" if lines else "text/event-stream")
    send(*format.opening(answer))
    for number, token in enumerate(tokens[:cut]):
        if fault.kind == "slow_tokens":
            await asyncio.sleep(fault.seconds)
        chunk = format.chunk(answer, token)
        send(chunk._replace(data=_BROKEN) if fault.kind == "malformed" and number == 0 else chunk)
    if fault.kind == "stall":
        await _ping(connection, fault)
    if cut is None:
        closing = list(format.closing(answer))
        if fault.kind == "open_end":
            send(*(frame for frame in closing if frame.data != "[DONE]"))
            await _ping(connection, fault)
        send(*closing)
        connection.end_stream()
    else:
        connection.close()


async def _ping(connection: Connection, fault: Fault) -> NoReturn:
    """Send pings until the client disconnects, which cancels this."""
    while True:
        await asyncio.sleep(fault.seconds)
        connection.send_ping()
