"""A real HTTP server on the loopback that speaks the providers' chat formats, and fails on demand.

Tests and benchmarks call it with real LM clients: real sockets, connection pools, streams and disconnects. It runs on
an event loop in a thread of its own, so that it answers even a caller whose loop is blocked. Standard library only.
`http.wire` is its HTTP, `http.provider` its endpoints, `http.formats` their bodies, `faults` its failures.

    with FakeServer({"capital of France": "Paris", "default": "I do not know"}) as server:
        lm = dspy.LM("openai/fake", api_base=server.url, api_key="none", cache=False)
        server.fail(Fault.status(429, retry_after=0.1), times=2)
        ...
        assert [record.status for record in server.requests] == [429, 429, 200]

When not to use it: a test that is not about HTTP is faster and simpler with `promptside.testing.MockLM`.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable
from typing import Self

from promptside.checks import check, check_count, check_seconds, check_text
from promptside.testing.faults import Fault
from promptside.testing.http.formats import base_path
from promptside.testing.http.formats.format import Body
from promptside.testing.http.provider import Provider
from promptside.testing.http.wire import Connection, Record, Traffic
from promptside.testing.replies import Answer, AnswerMap, check_answers

__all__ = ["FakeServer"]


class FakeServer:
    """A local server with the APIs of OpenAI, Anthropic, Gemini and Cohere, all on one address.

    It has OpenAI's ``/v1/chat/completions``, ``/v1/embeddings`` and ``/v1/models``, Anthropic's ``/v1/messages``,
    Gemini's ``generateContent`` and ``streamGenerateContent``, and Cohere's ``/v2/chat``; each streams on demand.

    A context manager, plain or async: entering starts it within milliseconds, leaving closes every connection and ends
    its thread. Tokens are words; the request's limit of tokens and its stop texts end an answer. Every method and
    attribute may be used from any thread.

    Args:
        answer: The model's answer: a text; answers by a substring of the last user message, with ``"default"`` for the
            rest (without one, an unknown prompt gets status 400); or a function of the request's body, which is called
            on the server's loop and must not block. Answers are formatted for DSPy's adapters, see `replies.reply`.
        latency: Seconds before each answer or fault.
        model: The model that ``/v1/models`` lists; every name is served.

    Attributes:
        requests: Every request received, in order of arrival, each a `wire.Record`.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        answer: str | AnswerMap | Callable[[Body], Answer] = "fake answer",
        *,
        latency: float = 0.0,
        model: str = "fake-model",
    ) -> None:
        check_answers("FakeServer", "answer", answer)
        check_text("FakeServer", "model", model)
        self._traffic = Traffic()
        self._provider = Provider(answer, model=model, latency=0.0)
        self._port = 0
        self._thread: threading.Thread | None = None
        self.requests: list[Record] = self._traffic.requests
        self.latency = latency

    @property
    def url(self) -> str:
        """The base URL for OpenAI's clients, such as ``http://127.0.0.1:49152/v1``; the same after a restart.

        Raises:
            RuntimeError: The server was never started.
        """
        return self.url_for("openai")

    def url_for(self, provider: str) -> str:
        """The base URL for a provider's clients.

        Args:
            provider: ``"openai"``, ``"anthropic"``, ``"gemini"`` or ``"cohere"``.

        Raises:
            ValueError: The provider is another.
            RuntimeError: The server was never started.
        """
        path = base_path(provider)
        if not self._port:
            raise RuntimeError("the fake server has no address yet; start it: `with FakeServer() as server`")
        return f"http://127.0.0.1:{self._port}{path}"

    @property
    def latency(self) -> float:
        """Seconds before each answer or fault; may be assigned at any time, and then holds for later requests."""
        return self._provider.latency

    @latency.setter
    def latency(self, seconds: float) -> None:
        check_seconds("FakeServer", "latency", seconds, zero=True)
        self._provider.latency = seconds

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._traffic.open)

    @property
    def max_connections(self) -> int:
        """Most connections that were open at once."""
        return self._traffic.max_connections

    @property
    def total_connections(self) -> int:
        """Connections accepted so far; compare with ``len(requests)`` to see whether a client reuses them."""
        return self._traffic.total_connections

    @property
    def active(self) -> int:
        """Requests that are being served now."""
        return self._traffic.active

    @property
    def max_active(self) -> int:
        """Most requests that were being served at once."""
        return self._traffic.max_active

    def start(self) -> None:
        """Listen, and return when it does; after a `close`, at the same address as before.

        Raises:
            RuntimeError: It is running already.
            OSError: It cannot listen.
        """
        if self._thread is not None:
            raise RuntimeError(f"the fake server is running already, at {self.url}")
        ready = threading.Event()
        failures: list[OSError] = []
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready, failures)), name="promptside-fake-server", daemon=True
        )
        self._thread.start()
        ready.wait()
        if failures:
            self._thread.join()
            self._thread = None
            raise failures[0]

    def close(self) -> None:
        """Stop listening, drop every connection and end the thread. A second call does nothing.

        Clients are refused until `start` is called again: an outage of the whole provider.
        """
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._thread = None

    def fail(self, fault: Fault, *, times: int | None = 1) -> None:
        """Make the next requests fail; ``/v1/models`` never does.

        Args:
            fault: The failure.
            times: How many requests, after the outcomes that are queued already. None means every later request, until
                `heal`.

        Raises:
            ValueError: `fault` is no fault, or `times` is below 1.
        """
        check("FakeServer.fail", "fault", fault, isinstance(fault, Fault), "give a fault, such as Fault.status(503)")
        if times is None:
            self._provider.set_default(fault)
        else:
            check_count("FakeServer.fail", "times", times)
            self._provider.queue([fault] * times)

    def script(self, outcomes: Iterable[Fault | None]) -> None:
        """Queue the outcomes of the next requests.

        Args:
            outcomes: One for each request; None is a good answer.

        Raises:
            ValueError: One is neither a fault nor None.
        """
        queued = list(outcomes) if isinstance(outcomes, Iterable) else [outcomes]
        valid = isinstance(outcomes, Iterable) and all(isinstance(each, Fault | None) for each in queued)
        check(
            "FakeServer.script",
            "outcomes",
            outcomes,
            valid,
            "give a list of faults, such as Fault.status(503), and None",
        )
        self._provider.queue(queued)

    def heal(self) -> None:
        """Drop every queued fault, and answer the requests that hang."""
        self._provider.clear()
        self.release()

    def release(self) -> None:
        """Answer the requests that hang now."""
        if self._thread is not None:
            self._loop.call_soon_threadsafe(self._provider.open_gate)

    def wait_for(self, predicate: Callable[[], bool], timeout: float = 30.0) -> None:
        """Block until something is true of the server, such as ``lambda: server.requests[0].aborted``.

        Args:
            predicate: Called in this thread, now and after each begin or end of a connection or request.
            timeout: Seconds.

        Raises:
            TimeoutError: It did not become true.
        """
        with self._traffic.changed:
            if not self._traffic.changed.wait_for(predicate, timeout):
                raise TimeoutError(f"not true of the fake server after {timeout:g} s; its requests: {self.requests}")

    async def until(self, predicate: Callable[[], bool], timeout: float = 30.0) -> None:
        """As `wait_for`, in a worker thread, so that the running loop goes on."""
        await asyncio.to_thread(self.wait_for, predicate, timeout)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _run(self, ready: threading.Event, failures: list[OSError]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            server = await self._loop.create_server(
                lambda: Connection(self._traffic, self._provider.serve), "127.0.0.1", self._port, backlog=1024
            )
            self._port = server.sockets[0].getsockname()[1]
        except OSError as error:
            failures.append(error)
            return
        finally:
            ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(self._traffic.open):
            connection.abort()
        # After `abort`, connection_lost and the ends of the cancelled requests run in the loop's next rounds.
        while self._traffic.open or self._traffic.active:  # noqa: ASYNC110
            await asyncio.sleep(0)
        await server.wait_closed()
