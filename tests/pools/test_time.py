"""Time: an answer is there when it is whole, what is late has failed once, and late is not absent."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import pytest
from dspy import lm15
from dspy.clients._litellm import get_litellm
from dspy.lm15 import Message, Request, StreamDeltaEvent, StreamEndEvent, StreamStartEvent, TextDelta
from dspy.utils.exceptions import LMTimeoutError, LMTransportError

from promptside.pools import BreakerConfig, Endpoint, priority
from promptside.pools.clients import stream_end
from promptside.pools.clients.bounded import BoundedClient
from promptside.pools.clients.connections import Connections
from promptside.pools.clients.endpoint import open_client
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.provider_timeout import ProviderTimeout
from promptside.testing import FakeServer, Fault, MockLM, run_virtual
from tests.support.pools import Scene, async_engine, endpoint, running
from tests.support.raw_http import read_request

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic

ANSWER = "one two three"

MODELS = {
    "openai": "openai/fake",
    "anthropic": "anthropic/claude-fake",
    "gemini": "gemini/gemini-fake",
    "deepinfra": "deepinfra/fake",  # by litellm
}

Ask: TypeAlias = Callable[[Scene], Awaitable[Any]]


async def whole(scene: Scene) -> Any:
    return (await scene.lm.acall("hello"))[0]


async def streamed(scene: Scene) -> Any:
    return text([event async for event in stream(scene)])


def stream(scene: Scene) -> AsyncGenerator[Any, None]:
    events: Any = async_engine(scene.lm).stream(hello(scene.lm.model))
    return events


def hello(model: str) -> Request:
    return Request(model=model, messages=(Message.user("hello"),))


def text(events: list[Any]) -> str:
    return "".join(event.delta.text for event in events if event.type == "delta" and event.delta.type == "text")


def door(server: FakeServer, provider: str, **settings: Any) -> Endpoint:
    base = server.url if provider == "deepinfra" else server.url_for(provider)
    return endpoint(server, MODELS[provider], api_base=base, **settings)


def figures(scene: Scene, of: str | None = None) -> tuple[int, int, str]:
    """Attempts, failures and circuit."""
    stats = scene.pool.stats()
    each = stats[of or next(iter(stats))]
    return each["attempts"], each["failures"], each["circuit"]


# -- the end of a stream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", MODELS)
async def test_a_stream_that_its_server_leaves_open_ends_soon_after_its_finish_reason(
    provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_end, "GRACE_SECONDS", 0.1)
    with FakeServer(ANSWER) as server:
        async with running(door(server, provider)) as scene:
            server.fail(Fault.open_end(ping=0.02))
            assert await streamed(scene) == ANSWER
            assert figures(scene) == (1, 0, "closed")
            assert scene.pool.stats()[MODELS[provider]]["output_tokens"] == 3
            await server.until(lambda: server.requests[0].finished)


def piece(delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
    return event({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": choices, **more})


def event(data: Any) -> bytes:
    return b"data: %b\n\n" % (data if isinstance(data, bytes) else json.dumps(data).encode())


USED = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
USAGE = event({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [], "usage": USED})
DONE = event(b"[DONE]")
TEXT = piece({"role": "assistant", "content": "one "}) + piece({"content": "two three"})
STOP = piece({}, "stop")
ENDS: dict[str, tuple[list[bytes | float], int | None]] = {
    "nothing": ([TEXT + STOP, 60], None),
    "pings": ([TEXT + STOP, *[b": ping\n\n", 0.02] * 3000], None),
    "its usage": ([TEXT + STOP, USAGE, 60], 3),
    "its usage, late": ([TEXT + STOP, 0.1, USAGE, 60], 3),
    "its usage and its end": ([TEXT + STOP, USAGE + DONE, 60], 3),
    "its end": ([TEXT + STOP, DONE, 60], None),
    "a disconnection": ([TEXT + STOP, USAGE], 3),
    "its end without a reason": ([TEXT + DONE, 60], None),
    "a reason at the end of the thoughts": ([piece({"reasoning_content": "well"}, "stop"), 0.5,
                                             TEXT + STOP, USAGE + DONE, b""], 3),
    "a reason at each piece": ([piece({"content": "one "}, "stop"), piece({"content": "two "}, "stop"), 0.5,
                                piece({"content": "three"}, "stop"), USAGE + DONE, b""], 3),
    "a reason before the first piece": ([piece({"role": "assistant", "content": ""}, "stop"), 0.5, TEXT + STOP,
                                         USAGE + DONE, b""], 3),
    "a reason at each piece, late": ([piece({"content": "one "}, "stop"), 0.5, piece({"content": "two three"}, "stop"),
                                      USAGE + DONE, b""], 3),
    "an empty reason at each piece": ([piece({"content": "one "}, ""), 0.5, piece({"content": "two three"}, ""),
                                       STOP, USAGE + DONE, b""], 3),
    "a null reason at each piece": ([piece({"content": "one "}, "null"), 0.5, piece({"content": "two three"}, "null"),
                                     STOP, USAGE + DONE, b""], 3),
    "a reason over several lines": ([TEXT + STOP.replace(b', "choices"', b',\ndata: "choices"'), 60], None),
}  # fmt: skip
"""What follows a finish reason, as bytes and pauses; what it says of the tokens used. An empty one ends it well."""


async def serving(steps: list[bytes | float], ask: Callable[[str], Awaitable[Any]]) -> Any:
    """What `ask` gets of a server that answers with these steps, until its client is gone."""
    serving: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.current_task())  # type: ignore[arg-type]
        try:
            await read_request(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for step in steps:
                if isinstance(step, bytes):
                    writer.write(b"%x\r\n%b\r\n" % (len(step), step))
                    await writer.drain()
                else:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(), step)
                        return
        except ConnectionError:
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        answer = await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        await asyncio.gather(*serving)
    return answer


@pytest.mark.parametrize(
    ("client", "end"),
    [
        (client, end)
        for end in ENDS
        for client in ("lm15", "litellm")
        if (client, end) != ("litellm", "its end without a reason")  # which litellm takes for a broken stream
    ],
)
async def test_what_follows_a_finish_reason_may_be_missing(
    client: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_end, "GRACE_SECONDS", 3.0 if end == "its usage, late" else 0.3)
    steps, tokens = ENDS[end]

    async def ask(url: str) -> list[Any]:
        opened: Any
        if client == "lm15":
            opened = open_client(Endpoint("openai/m", api_base=url, api_key="none"))
        else:
            at = Endpoint("openai/m", api_base=url, api_key="none")
            opened = BoundedClient(LiteLLMClient(timeout=30.0, api_base=url, api_key="none"), at)
        try:
            return [each async for each in opened.stream(hello("openai/m"))]
        finally:
            await opened.aclose()

    get_litellm(feature="tests")  # importing it takes seconds, and is not what is measured
    async with asyncio.timeout(50):
        events = await serving(steps, ask)
    assert text(events) == ANSWER
    assert events[-1].type == "end"
    assert events[-1].finish_reason in ("stop", None)
    if tokens is not None:
        assert events[-1].usage.output_tokens == tokens


IDLE_EVENTS = {
    "comments": b": OPENROUTER PROCESSING\n\n",
    "an event without a name": b"event: ping\ndata: {}\n\n",
    "an empty piece": piece({"content": ""}),
    "a role": piece({"role": "assistant", "content": ""}),
    "a count": event({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": []}),
}


# -- between two events ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("provider", ["openai", "deepinfra"])
async def test_pings_do_not_put_the_timeout_off(provider: str, ask: Ask) -> None:
    with FakeServer(ANSWER) as server:
        async with running(door(server, provider, timeout=0.3), breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.stall(0, ping=0.02), times=None)
            with pytest.raises(LMTimeoutError):
                await ask(scene)
            assert figures(scene) == (1, 1, "open")
            assert len(server.requests) == 1, "what may have been paid for is not asked for again"
            await server.until(lambda: server.requests[0].aborted)


@pytest.mark.parametrize("model", ["openai/m", "deepinfra/m"])
@pytest.mark.parametrize("idle", IDLE_EVENTS)
async def test_what_has_no_piece_of_the_answer_does_not_put_the_timeout_off(model: str, idle: str) -> None:
    steps: list[bytes | float] = [piece({"content": "one "}), *[IDLE_EVENTS[idle], 0.05] * 100]

    async def ask(url: str) -> None:
        async with running(Endpoint(model, api_base=url, api_key="none", timeout=0.5)) as scene:
            with pytest.raises(LMTimeoutError):
                await streamed(scene)
            assert figures(scene) == (1, 1, "closed")

    await serving(steps, ask)


@pytest.mark.parametrize("provider", ["openai", "deepinfra"])
async def test_a_stream_that_stalls_between_two_pieces_is_late(provider: str) -> None:
    with FakeServer(ANSWER) as server:
        async with running(door(server, provider, timeout=0.3)) as scene:
            server.fail(Fault.stall(2, ping=0.02))
            read: list[Any] = []
            with pytest.raises(LMTimeoutError):
                async for each in stream(scene):
                    read.append(each)
            assert text(read) == "one two "
            assert figures(scene) == (1, 1, "closed")


async def test_texts_whose_vectors_are_late_are_not_sent_again() -> None:
    for model in ("openai/fake", "hosted_vllm/fake"):
        with FakeServer() as server:
            async with running(endpoint(server, model, timeout=0.3)) as scene:
                server.fail(Fault.stall(ping=0.02))
                with pytest.raises(LMTimeoutError):
                    await scene.pool.embedder(caching=False).acall(["a"])
                assert figures(scene) == (1, 1, "closed")


async def test_a_stream_may_take_longer_than_the_timeout_and_no_longer_than_its_own() -> None:
    with FakeServer("word " * 20) as server:
        door_ = endpoint(server, timeout=1.0)
        async with running(door_) as scene:
            server.fail(Fault.slow_tokens(0.1))
            assert await streamed(scene) == "word " * 20
            assert figures(scene) == (1, 0, "closed")
        async with running(door_, stream_timeout=0.5, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.slow_tokens(0.1))
            with pytest.raises(LMTimeoutError, match=r"did not end within the pool's stream_timeout of 0\.5 s"):
                await streamed(scene)
            assert scene.circuit() == "closed", "its reader may have been the slow one"
            await server.until(lambda: server.requests[1].aborted)


# -- late is not absent ------------------------------------------------------------------------------------------------


class Thinker:
    """Answers after `seconds`, which may be changed; hangs, if they are None."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self.requests = 0

    async def complete(self, request: Request) -> Any:
        await self._think()
        return MockLM(ANSWER).answer(request)

    async def stream(self, request: Request) -> Any:
        await self._think()
        yield StreamStartEvent(id=None, model=request.model)
        yield StreamDeltaEvent(TextDelta(ANSWER))
        yield StreamEndEvent(finish_reason="stop")

    async def _think(self) -> None:
        self.requests += 1
        await (asyncio.sleep(self.seconds) if self.seconds is not None else asyncio.Event().wait())


def thinking(test: Callable[[Scene], Awaitable[None]], *engines: Any, timeout: float = 600.0, **settings: Any) -> None:
    """Run a test over endpoints of these engines, in virtual time."""

    async def main() -> None:
        doors = [Endpoint(f"mock/{n}", engine=engine, timeout=timeout) for n, engine in enumerate(engines)]
        async with running(*doors, **settings) as scene:
            await test(scene)

    run_virtual(main())


@pytest.mark.parametrize("seconds", [130, 590])
@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_model_that_thinks_for_minutes_answers_by_the_defaults_and_is_asked_once(ask: Ask, seconds: float) -> None:
    engine = Thinker(seconds)

    async def test(scene: Scene) -> None:
        assert await ask(scene) == ANSWER
        assert figures(scene) == (1, 0, "closed")

    thinking(test, engine)
    assert engine.requests == 1


def test_the_default_of_an_endpoint_is_the_one_that_the_virtual_tests_use() -> None:
    assert Endpoint("mock/mock").timeout == 600.0


@pytest.mark.parametrize("ask", [whole, streamed])
def test_a_call_of_a_batch_has_no_deadline_and_one_that_somebody_waits_for_has(ask: Ask) -> None:
    async def test(scene: Scene) -> None:
        with priority("batch"):
            assert await ask(scene) == ANSWER
        with pytest.raises(LMTimeoutError, match="pool's timeout of 1200 s"):
            await ask(scene)

    thinking(test, Thinker(3000), timeout=4000.0)


@pytest.mark.parametrize("ask", [whole, streamed])
def test_who_is_late_is_not_asked_again_and_another_one_is(ask: Ask) -> None:
    late, other = Thinker(None), Thinker(1)

    async def test(scene: Scene) -> None:
        assert await ask(scene) == ANSWER
        assert figures(scene) == (1, 1, "closed")

    thinking(test, late, other)
    assert (late.requests, other.requests) == (1, 1)


def test_a_call_that_is_late_costs_what_is_not_known() -> None:
    async def test(scene: Scene) -> None:
        with pytest.raises(LMTimeoutError):
            await whole(scene)
        assert scene.pool.costs()["total"]["unknown_cost"] == 1

    thinking(test, Thinker(None))


async def test_a_gateway_that_says_it_was_late_has_answered_and_is_asked_again() -> None:
    with FakeServer(ANSWER) as server:
        async with running(server) as scene:
            server.script([Fault.status(504), Fault.status(408)])
            assert await whole(scene) == ANSWER
            assert len(server.requests) == 3


def test_a_batch_asks_again_who_was_late_while_nobody_is_answered() -> None:
    engine = Thinker(None)

    async def test(scene: Scene) -> None:
        with priority("batch", outage_timeout=1000):
            asked = asyncio.ensure_future(whole(scene))
        await asyncio.sleep(500)
        engine.seconds = 130
        assert await asked == ANSWER
        assert figures(scene) == (2, 1, "closed")

    thinking(test, engine)


def test_a_late_call_of_an_evaluation_that_dspy_makes_twice_is_sent_once() -> None:
    engine = Thinker(130)

    async def test(scene: Scene) -> None:
        with priority("batch"):
            first = asyncio.ensure_future(whole(scene))
            sample = asyncio.ensure_future(whole(scene))  # at the same time: a sample of its own
            await asyncio.sleep(121)
            again = asyncio.ensure_future(whole(scene))
            assert await asyncio.gather(first, sample, again) == [ANSWER] * 3
        assert figures(scene) == (2, 0, "closed")

    thinking(test, engine)


def test_a_pools_timeout_that_was_spent_in_a_queue_is_no_failure_of_the_endpoint() -> None:
    async def test(scene: Scene) -> None:
        calls = [asyncio.ensure_future(scene.lm.acall(f"call {n}")) for n in range(2)]
        answered, late = await asyncio.gather(*calls, return_exceptions=True)
        assert answered == [ANSWER]
        assert isinstance(late, LMTimeoutError)
        assert scene.circuit("mock/0") == "closed"

    async def main() -> None:
        door_ = Endpoint("mock/0", engine=Thinker(8), max_connections=1)
        async with running(door_, workers=1, timeout=10, breaker=BreakerConfig(min_calls=1)) as scene:
            await test(scene)

    run_virtual(main())


def test_a_circuit_closes_with_a_probe_that_thinks_for_minutes() -> None:
    engine = Thinker(130)

    async def test(scene: Scene) -> None:
        scene.pool.breaker("mock/0").force_open()
        await asyncio.sleep(10)
        assert await whole(scene) == ANSWER
        assert scene.circuit("mock/0") == "closed"

    thinking(test, engine)


@pytest.mark.parametrize(("pause", "circuit"), [(0, "open"), (30, "closed")])
def test_a_stream_that_is_cut_off_while_its_reader_pauses_is_no_failure_of_the_endpoint(
    pause: float, circuit: str
) -> None:
    class Impatient:
        async def complete(self, request: Request) -> Any:
            return MockLM(ANSWER).answer(request)

        async def stream(self, request: Request) -> Any:
            yield StreamStartEvent(id=None, model=request.model)
            for _ in range(100):
                yield StreamDeltaEvent(TextDelta("word "))
            raise lm15.TransportError("the connection was reset")

    async def test(scene: Scene) -> None:
        async with aclosing(stream(scene)) as events:
            await anext(events)
            await asyncio.sleep(pause)
            with pytest.raises(LMTransportError):
                async for _ in events:
                    pass
        assert scene.circuit("mock/0") == circuit

    thinking(test, Impatient(), breaker=BreakerConfig(min_calls=1))


# -- whose time it was -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["openai/fake", "deepinfra/fake"])
async def test_what_came_while_our_own_loop_was_blocked_is_no_timeout(model: str) -> None:
    with FakeServer(ANSWER, latency=0.2) as server:
        async with running(endpoint(server, model, timeout=0.5), breaker=BreakerConfig(min_calls=1)) as scene:
            server.latency = 0.0
            await whole(scene)  # the client is imported, and a connection is there
            server.latency = 0.2
            asked = asyncio.ensure_future(whole(scene))
            await server.until(lambda: server.active == 1)
            scene.lm.engine.live.loop.call_soon_threadsafe(time.sleep, 1.0)
            assert await asked == ANSWER
            assert figures(scene) == (2, 0, "closed")


def test_a_blocked_loop_puts_a_timeout_off_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = ProviderTimeout(0.2)
        with pytest.raises(TimeoutError):
            async with limit:
                time.sleep(0.5)
                await asyncio.sleep(60)
        assert limit.expired
        assert loop.time() - began >= 0.75

    asyncio.run(main())


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EADDRNOTAVAIL])
async def test_what_this_machine_has_run_out_of_is_no_failure_of_the_endpoint(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(number, "this machine has no more")

    with FakeServer(ANSWER) as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            await whole(scene)
            server.close()
            await server.until(lambda: server.connections == 0)
            monkeypatch.setattr(Connections.of(scene.lm.engine.live.loop), "_connect", refuse)
            with pytest.raises(LMTransportError, match="no more"):
                await whole(scene)
            assert scene.circuit() == "closed"


async def test_the_time_until_a_request_is_sent_is_not_the_providers() -> None:
    class Slow(Thinker):
        """Imports for a while, and then asks a server."""

        async def complete(self, request: Request) -> Any:
            await asyncio.sleep(0.5)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello")
            try:
                return await reader.read()
            finally:
                writer.close()

    with FakeServer(latency=60) as server:
        port = int(server.url.rpartition(":")[2].removesuffix("/v1"))
        client = BoundedClient(Slow(0), endpoint(server, timeout=0.2))
        began = asyncio.get_running_loop().time()
        with pytest.raises(lm15.TimeoutError, match=r"sent nothing for 0\.2 s"):
            await client.complete(None)
        assert asyncio.get_running_loop().time() - began >= 0.7


def test_a_request_that_cannot_be_sent_has_not_been_paid_for() -> None:
    async def main() -> None:
        client = BoundedClient(Thinker(None), Endpoint("openai/m", timeout=5.0, api_key="none"))
        with pytest.raises(lm15.TransportError, match="could not be sent in time"):
            await client.complete(hello("openai/m"))
        assert asyncio.get_running_loop().time() == 60

    run_virtual(main())
