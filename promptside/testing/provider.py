"""The model provider inside a `FakeServer`: OpenAI's endpoints over a scripted model, and the faults.

`FakeServer` owns one `Provider` and gives its `serve` to the connections of `promptside.testing.wire`. What the model
says is laid out by `promptside.testing.replies`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from promptside.testing.faults import Fault
from promptside.testing.replies import Answer, AnswerMap, NoAnswer, Prompt, choose, content_text, reply, split_tokens
from promptside.testing.wire import Connection, Record

__all__ = ["Body", "Provider"]

Body: TypeAlias = Mapping[str, Any]

_EMBEDDING_SIZE = 8
_HEALTHY = Fault.slow_tokens(0.0)
_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 529: "overloaded_error"}


class Provider:
    """Answers the requests of one `FakeServer`, or fails them. `serve` runs on the server's loop; the rest anywhere.

    Args:
        answer: What the model says, as for `FakeServer`.
        model: Name that ``/v1/models`` lists.
        latency: Seconds before each answer or fault.
    """

    def __init__(self, answer: str | AnswerMap | Callable[[Body], Answer], *, model: str, latency: float) -> None:
        self.latency = latency
        self._answer = answer
        self._model = model
        self._lock = threading.Lock()
        self._queued: deque[Fault | None] = deque()
        self._lasting: Fault | None = None
        self._gate = asyncio.Event()

    def queue(self, outcomes: Iterable[Fault | None]) -> None:
        """Append the outcomes of coming requests; None is a good answer."""
        with self._lock:
            self._queued.extend(outcomes)

    def last(self, fault: Fault | None) -> None:
        """Set the outcome of every request that no queued outcome takes; None is a good answer."""
        with self._lock:
            self._lasting = fault

    def clear(self) -> None:
        """Drop every outcome that is still to come."""
        with self._lock:
            self._queued.clear()
            self._lasting = None

    def open_gate(self) -> None:
        """Let the requests go on that hang now. On the server's loop only."""
        self._gate.set()
        self._gate = asyncio.Event()

    async def serve(self, connection: Connection, record: Record) -> None:
        """Answer one request.

        Args:
            connection: Where the answer goes.
            record: The request.
        """
        try:
            match record.method, record.path:
                case "POST", "/v1/chat/completions":
                    await self._chat(connection, record.body)
                case "POST", "/v1/embeddings":
                    await self._embed(connection, record.body)
                case "GET", "/v1/models":
                    connection.send(200, {"object": "list", "data": [{"id": self._model, "object": "model"}]})
                case method, path:
                    connection.send(404, _error(404, f"there is no {method} {path} here"))
        except NoAnswer as error:
            connection.send(400, _error(400, str(error)))
        except Exception as error:  # noqa: BLE001 - the user's function, or a body of a wrong shape
            connection.send(500, _error(500, f"the fake server raised {type(error).__name__}: {error}"))

    async def _chat(self, connection: Connection, body: Body) -> None:
        fault = await self._strike(connection)
        if fault is None:
            return
        prompt = Prompt.from_chat(body)
        text = reply(self._say(body, prompt), prompt)
        tokens = split_tokens(text)
        asked = sum(len(content_text(message.get("content")).split()) for message in body["messages"])
        usage = {"prompt_tokens": asked, "completion_tokens": len(tokens), "total_tokens": asked + len(tokens)}
        frame = {"id": f"chatcmpl-{id(connection):x}", "created": 0, "model": body.get("model", self._model)}
        if body.get("stream"):
            counted = bool((body.get("stream_options") or {}).get("include_usage"))
            await _stream(connection, frame, tokens, usage if counted else None, fault)
            return
        if fault.seconds:
            await asyncio.sleep(fault.seconds * len(tokens))
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        choices = [] if fault.kind == "empty_choices" else [choice]
        payload = json.dumps({**frame, "object": "chat.completion", "choices": choices, "usage": usage}).encode()
        cut = len(payload) // 2 if fault.kind in ("half_body", "cut_stream") else None
        connection.send_raw(200, payload, cut=cut)

    async def _embed(self, connection: Connection, body: Body) -> None:
        if await self._strike(connection) is None:
            return
        texts = [body["input"]] if isinstance(body["input"], str) else list(body["input"])
        asked = sum(len(text.split()) for text in texts)
        data = [{"object": "embedding", "index": i, "embedding": _embedding(text)} for i, text in enumerate(texts)]
        usage = {"prompt_tokens": asked, "total_tokens": asked}
        connection.send(200, {"object": "list", "data": data, "model": body.get("model", self._model), "usage": usage})

    async def _strike(self, connection: Connection) -> Fault | None:
        """Wait the latency and take the next fault: None if it needed no answer and is done, else how to answer."""
        with self._lock:
            fault = (self._queued.popleft() if self._queued else self._lasting) or _HEALTHY
        if self.latency:
            await asyncio.sleep(self.latency)
        match fault.kind:
            case "status":
                error = _error(fault.status_code, fault.message, fault.code)
                connection.send(fault.status_code, error, fault.headers)
            case "reset":
                connection.reset()
            case "malformed":
                connection.send_raw(200, b'{"choices": [{"message": ')
            case "hang":
                await self._gate.wait()
                return _HEALTHY
            case _:
                return fault
        return None

    def _say(self, body: Body, prompt: Prompt) -> Answer:
        if isinstance(self._answer, str):
            return self._answer
        if isinstance(self._answer, Mapping):
            return choose(self._answer, prompt.user)
        return self._answer(body)


async def _stream(
    connection: Connection,
    frame: Mapping[str, object],
    tokens: list[str],
    usage: Mapping[str, int] | None,
    fault: Fault,
) -> None:
    """Send an answer as server-sent events, token by token; without usage when it is None."""

    def event(choices: list[dict[str, object]], **fields: object) -> None:
        connection.send_event(json.dumps({**frame, "object": "chat.completion.chunk", "choices": choices, **fields}))

    def delta(content: Mapping[str, str], finish_reason: str | None = None) -> dict[str, object]:
        return {"index": 0, "delta": content, "finish_reason": finish_reason}

    cut = {"cut_stream": fault.tokens, "half_body": len(tokens) // 2}.get(fault.kind)
    connection.start_stream()
    if fault.kind == "empty_choices":
        event([])
    else:
        event([delta({"role": "assistant", "content": ""})])
        for token in tokens[:cut]:
            if fault.seconds:
                await asyncio.sleep(fault.seconds)
            event([delta({"content": token})])
        if cut is not None:
            connection.close()
            return
        event([delta({}, "stop")])
    if usage is not None:
        event([], usage=usage)
    connection.send_event("[DONE]")
    connection.end_stream()


def _error(status: int, message: str, code: str | None = None) -> dict[str, object]:
    kind = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _embedding(text: str) -> list[float]:
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:_EMBEDDING_SIZE]]
