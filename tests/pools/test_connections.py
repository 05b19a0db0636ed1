"""Connections that died in a pause, through a pool and real sockets: replaced, and nobody has failed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import litellm
import pytest
from dspy.lm15 import Message, Request
from dspy.utils.exceptions import LMTransportError

from promptside.actors import ActorSystem
from promptside.pools import BreakerConfig, Endpoint, LMPool, RetryConfig
from promptside.pools.clients import connections
from promptside.pools.clients.connections import Connections, Use
from promptside.pools.clients.one_request import install, one_request
from promptside.testing import FakeServer, Fault
from tests.support.actors import until
from tests.support.pools import Scene, async_engine, endpoint, running
from tests.support.raw_http import read_request
from tests.support.tls_proxy import by_proxy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic

ANSWER = "one two three"

MODELS = ("openai/fake", "cohere/fake", "custom_openai/fake")  # by lm15, and by two clients of litellm
EMBEDDERS = ("openai/fake", "hosted_vllm/fake")  # by openai and by litellm

Ask: TypeAlias = Callable[[Scene], Awaitable[Any]]


async def whole(scene: Scene) -> Any:
    return (await scene.lm.acall("hello"))[0]


async def streamed(scene: Scene) -> Any:
    request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
    events = [event async for event in async_engine(scene.lm).stream(request)]
    return "".join(event.delta.text for event in events if event.type == "delta")


async def embedded(scene: Scene) -> Any:
    return len(await scene.pool.embedder(caching=False).acall(["a", "b"]))


WAYS: list[tuple[str, Ask, Any]] = [
    *((model, ask, ANSWER) for model in MODELS for ask in (whole, streamed)),
    *((model, embedded, 2) for model in EMBEDDERS),
]
every_way = pytest.mark.parametrize(
    ("model", "ask", "answer"), WAYS, ids=[f"{model.partition('/')[0]}-{ask.__name__}" for model, ask, _ in WAYS]
)


def address(server: FakeServer, model: str) -> str:
    return server.url_for("cohere") if "cohere" in model else server.url


@asynccontextmanager
async def warm(server: FakeServer, model: str, ask: Ask, **settings: Any) -> AsyncIterator[Scene]:
    """A pool that keeps one connection, and whose circuit would open with the first failure."""
    door = endpoint(server, model, api_base=address(server, model))
    settings = {"breaker": BreakerConfig(min_calls=1), "retry": RetryConfig(attempts=1), "workers": 1, **settings}
    async with running(door, **settings) as scene:
        await ask(scene)
        await asyncio.sleep(0)
        yield scene


def facts(scene: Scene) -> tuple[int, int, str]:
    (figures,) = scene.pool.stats().values()
    return figures["attempts"], figures["failures"], figures["circuit"]


@every_way
async def test_a_kept_connection_that_is_reset_when_it_is_used_is_replaced_uncounted(
    model: str, ask: Ask, answer: Any
) -> None:
    with FakeServer(ANSWER) as server:
        async with warm(server, model, ask) as scene:
            server.fail(Fault.reset())
            assert await ask(scene) == answer
            assert facts(scene) == (2, 0, "closed")
            assert len(server.requests) == 3
            assert server.requests[2].connection > server.requests[1].connection


@every_way
async def test_kept_connections_that_the_server_closed_are_replaced_uncounted(
    model: str, ask: Ask, answer: Any
) -> None:
    with FakeServer(ANSWER) as server:
        async with warm(server, model, ask) as scene:
            await asyncio.to_thread(server.close)
            await asyncio.to_thread(server.start)
            assert await ask(scene) == answer
            assert facts(scene) == (2, 0, "closed")


@every_way
async def test_a_new_connection_that_is_reset_has_failed(model: str, ask: Ask, answer: Any) -> None:
    with FakeServer(ANSWER) as server:
        async with warm(server, model, ask) as scene:
            server.script([Fault.reset(), Fault.reset()])  # of the kept one, and of the one in its place
            with pytest.raises(LMTransportError):
                await ask(scene)
            assert facts(scene) == (2, 1, "open")
            assert len(server.requests) == 3


@pytest.mark.parametrize("fault", [Fault.half_body(), Fault.cut_stream(1)], ids=lambda fault: fault.kind)
@pytest.mark.parametrize(("model", "ask"), [way[:2] for way in WAYS[:4]])
async def test_an_answer_of_which_a_byte_has_come_is_not_asked_for_again(fault: Fault, model: str, ask: Ask) -> None:
    with FakeServer(ANSWER) as server:
        async with warm(server, model, ask) as scene:
            server.fail(fault)
            with pytest.raises(LMTransportError):
                await ask(scene)
            assert facts(scene) == (2, 1, "open")
            assert len(server.requests) == 2


async def test_a_kept_connection_that_ends_long_after_the_request_has_ended_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "DEAD_WITHIN", -1.0)
    with FakeServer(ANSWER) as server:
        async with warm(server, "openai/fake", whole) as scene:
            server.fail(Fault.reset())
            with pytest.raises(LMTransportError):
                await whole(scene)
            assert facts(scene) == (2, 1, "open")


@pytest.mark.parametrize(("model", "ask"), [(way[0], way[1]) for way in WAYS])
async def test_a_kept_connection_expires(model: str, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.05)
    with FakeServer(ANSWER) as server:
        async with warm(server, model, ask) as scene:
            await server.until(lambda: server.connections == 0)
            await ask(scene)
            assert facts(scene) == (2, 0, "closed")


async def test_a_connection_in_use_does_not_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "IDLE_SECONDS", 0.01)
    with FakeServer(ANSWER) as server:
        async with warm(server, "openai/fake", whole) as scene:
            server.fail(Fault.slow_tokens(0.1))
            assert await streamed(scene) == ANSWER
            assert facts(scene) == (2, 0, "closed")


BODY = json.dumps({"choices": [{"index": 0, "finish_reason": "stop", "message": {"content": ANSWER}}]}).encode()
REPLY = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)


@pytest.mark.parametrize("gone", ["closed", "forgotten"])
async def test_a_burst_after_a_pause_in_which_all_connections_died_opens_no_circuit(gone: str) -> None:
    dead: set[asyncio.StreamWriter] = set()
    kept: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.add(writer)
        while await read_request(reader):
            if writer in dead:
                break
            await asyncio.sleep(0.05)
            writer.write(REPLY)
        writer.transport.abort()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        door = Endpoint("openai/fake", api_base=url, api_key="none")
        async with running(door, retry=RetryConfig(attempts=1)) as scene:
            await asyncio.gather(*(whole(scene) for _ in range(30)))
            dead |= kept
            if gone == "closed":
                for writer in dead:
                    writer.close()
            assert await asyncio.gather(*(whole(scene) for _ in range(30))) == [ANSWER] * 30
            assert facts(scene) == (60, 0, "closed")


UNASKED = {
    "an error of a request that nobody sent": b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n",
    "an answer to nobody": REPLY.replace(b"one", b"two"),
    "what is no HTTP": b"\x15\x03\x03\x00\x02",
}


@pytest.mark.parametrize("unasked", UNASKED)
async def test_what_a_server_says_between_two_requests_is_not_taken_for_the_answer_to_the_next(unasked: str) -> None:
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await read_request(reader):
            writer.write(REPLY)
            if not closed.is_set():
                await asyncio.sleep(0.05)  # the client has it, and keeps the connection
                writer.write(UNASKED[unasked])
        closed.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        door = {"model": "openai/fake", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "none"}
        async with running(Endpoint(**door), retry=RetryConfig(attempts=1)) as scene:
            assert await whole(scene) == ANSWER
            await closed.wait()
            assert await whole(scene) == ANSWER
            assert facts(scene) == (2, 0, "closed")


@pytest.mark.parametrize("said", [b"HTTP/1.1 2", REPLY[:-5]], ids=["half a status line", "half a body"])
async def test_a_kept_connection_that_ends_within_an_answer_is_a_failure(said: bytes) -> None:
    """What the server did, it may have done for the whole request."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            requests.append(request)
            writer.write(REPLY if len(requests) == 1 else said)
            if len(requests) > 1:
                break
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        door = Endpoint("openai/fake", api_base=url, api_key="none")
        async with running(door, retry=RetryConfig(attempts=1)) as scene:
            await whole(scene)
            with pytest.raises(LMTransportError):
                await whole(scene)
            assert facts(scene) == (2, 1, "closed")
            assert len(requests) == 2


async def test_a_server_that_closes_after_each_answer_without_a_word_has_never_failed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(REPLY)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with running(Endpoint("openai/fake", api_base=url, api_key="none")) as scene:
            assert [await whole(scene) for _ in range(20)] == [ANSWER] * 20
            assert facts(scene) == (20, 0, "closed")


@pytest.mark.parametrize("model", MODELS)
async def test_a_connection_through_a_proxy_is_watched_as_any_other(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with FakeServer(ANSWER) as server:
        base = address(server, model)
        async with by_proxy(base, monkeypatch, str(tmp_path)) as (url, asked), ActorSystem() as system:
            door = Endpoint(model, api_base=url, api_key="none")
            pool = await LMPool(door, retry=RetryConfig(attempts=1), workers=1).start(system, node=system.home)
            lm, watched = pool.lm(cache=False), Connections.of(asyncio.get_running_loop())
            assert await lm.acall("hello") == [ANSWER]
            server.fail(Fault.reset())
            assert await lm.acall("hello") == [ANSWER]
            server.close()
            server.start()
            assert await lm.acall("hello") == [ANSWER]
            assert len(asked) == 3
            (figures,) = pool.stats().values()
            assert figures["failures"] == 0
            assert len(watched._open) == 1
            await pool.stop()
            await until(lambda: len(watched._open) == 0)
            await server.until(lambda: server.connections == 0)


@pytest.mark.parametrize("model", ["cohere/fake", "custom_openai/fake"])
async def test_code_around_a_pool_may_use_a_connection_that_the_pool_has_used(model: str) -> None:
    with FakeServer(ANSWER) as server:
        base = address(server, model)
        door = Endpoint(model, api_base=base, api_key="none")
        messages = [{"role": "user", "content": "hello"}]
        async with ActorSystem() as system:
            pool = await LMPool(door, workers=1).start(system, node=system.home)
            for _ in range(2):
                await pool.lm(cache=False).acall("hello")
                own = await litellm.acompletion(model, messages, api_base=base, api_key="none", max_retries=0)
                assert own.choices[0].message.content == ANSWER
            server.latency = 0.1
            own = asyncio.create_task(
                litellm.acompletion(model, messages, api_base=base, api_key="none", max_retries=0)
            )
            await server.until(lambda: len(server.requests) == 5)
            await pool.stop()
            assert (await own).choices[0].message.content == ANSWER
            assert server.total_connections == 1
        await litellm.close_litellm_async_clients()


async def test_what_a_client_starts_for_its_callbacks_is_no_part_of_the_request() -> None:
    over = asyncio.Event()

    async def callback(url: str) -> int:
        await over.wait()
        async with httpx.AsyncClient(follow_redirects=True) as client:
            return (await client.get(url)).status_code

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await read_request(reader):
            moved = b"/moved" in request
            writer.write(b"HTTP/1.1 307 Moved\r\nlocation: /here\r\n" if moved else b"HTTP/1.1 200 OK\r\n")
            writer.write(b"content-length: 0\r\n\r\n")
        writer.close()

    install()
    watched = Connections.of(asyncio.get_running_loop())
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/moved"
        with Use(watched, "a client") as use, use.running(), one_request():
            task = asyncio.create_task(callback(url))
            await asyncio.sleep(0)
        over.set()
        assert await task == 200
        assert not use.is_sent
        assert len(watched._open) == 0


@pytest.mark.parametrize("model", ["cohere/fake", "custom_openai/fake"])
@pytest.mark.parametrize("turns", range(3, 30, 3))
async def test_the_end_of_another_pool_fails_no_request_that_is_about_to_be_written(model: str, turns: int) -> None:
    with FakeServer(ANSWER) as server:
        base = address(server, model)
        async with ActorSystem() as system:
            pools = [
                await LMPool(
                    Endpoint(model, api_base=base, api_key="none"),
                    name=name,
                    workers=1,
                    retry=RetryConfig(attempts=1),
                ).start(system, node=system.home)
                for name in ("other", "own")
            ]
            other, own = (pool.lm(cache=False) for pool in pools)
            await other.acall("hello")
            asked = asyncio.create_task(own.acall("hello"))
            for _ in range(turns):
                await asyncio.sleep(0)
            for ref in pools[0].worker_refs().values():
                ref.kill()
            assert await asked == [ANSWER]
