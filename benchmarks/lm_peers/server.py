"""A local provider for `benchmarks.lm_pool`, in a process of its own: `python -m benchmarks.lm_peers.server`.

It speaks as much of OpenAI's chat completions as a client needs, over an `asyncio.Protocol` with answers that are
bytes already, so that the clients are what is measured: it spends 0.05 ms of CPU on a request, and bare aiohttp 0.22 ms
on a call. It can be slow, and it can hold a rate limit that is cut for a while. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Behaviour", "Server", "running"]

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
    }
).encode()
REFUSAL = b'{"error":{"message":"too many requests","type":"requests","code":"rate_limit_exceeded"}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the provider answers.

    Attributes:
        latency: Seconds before each answer.
        rate: Requests a second that it takes, with a burst of a fifth of a second; the others get status 429 and
            ``Retry-After: 1``. 0 for no limit.
        cut: What the rate is divided by for a while.
        cut_from: Seconds after the first request.
        cut_to: The same.
    """

    latency: float = 0.0
    rate: float = 0.0
    cut: float = 1.0
    cut_from: float = 0.0
    cut_to: float = 0.0


class Provider:
    """The state of the server: how it behaves, and what it has counted since that was set."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.behave(Behaviour())

    def behave(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.requests = self.refused = 0
        self.first = self.filled = 0.0
        self.tokens = behaviour.rate / 5

    def takes(self) -> bool:
        """Count a request; whether the rate limit lets it in."""
        now = self.loop.time()
        self.requests += 1
        how = self.behaviour
        if not how.rate:
            return True
        if not self.first:
            self.first = self.filled = now
        rate = how.rate / (how.cut if how.cut_from <= now - self.first < how.cut_to else 1.0)
        self.tokens = min(rate / 5, self.tokens + (now - self.filled) * rate)
        self.filled = now
        if self.tokens < 1:
            self.refused += 1
            return False
        self.tokens -= 1
        return True


def _response(status: bytes, body: bytes, more: bytes = b"") -> bytes:
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
    return head % (status, len(body), more) + body


ANSWERED = _response(b"200 OK", ANSWER)
REFUSED = _response(b"429 Too Many Requests", REFUSAL, b"retry-after: 1\r\n")


class Connection(asyncio.Protocol):
    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            _, _, rest = head.partition(b"content-length:")
            length = int(rest.split(b"\r\n", 1)[0]) if rest else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        provider = self.provider
        if b"/chat/completions" not in head[: head.find(b"\r\n")]:
            if body:
                provider.behave(Behaviour(**json.loads(body)))
            counts = {"requests": provider.requests, "refused": provider.refused}
            self.transport.write(_response(b"200 OK", json.dumps(counts).encode()))
        elif not provider.takes():
            self.transport.write(REFUSED)
        elif provider.behaviour.latency:
            provider.loop.call_later(provider.behaviour.latency, self.transport.write, ANSWERED)
        else:
            self.transport.write(ANSWERED)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    provider = Provider()
    server = await loop.create_server(lambda: Connection(provider), "127.0.0.1", 0, backlog=2_000)
    print(server.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()


# -- in the measuring process ------------------------------------------------------------------------------------


class Server:
    """The provider, seen from the process that measures.

    Attributes:
        url: Base URL for clients.
    """

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def behave(self, behaviour: Behaviour) -> None:
        """Behave so from now on, and count from zero."""
        self._control(json.dumps(asdict(behaviour)).encode())

    def counts(self) -> dict[str, int]:
        """``requests``, and how many of them were ``refused``."""
        return self._control(None)

    def _control(self, body: bytes | None) -> Any:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{self.url}/control", body, timeout=10) as response:
            return json.load(response)


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A provider in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.lm_peers.server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.stdin.close()


if __name__ == "__main__":
    asyncio.run(serve())
