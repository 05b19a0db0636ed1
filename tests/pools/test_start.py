"""How a pool is made, where it runs, and how it is started, stopped and started again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import fields
from functools import partial
from typing import Any, get_type_hints

import dspy
import pytest
from dspy.lm15 import Request, ServerError

from promptside import ActorRef, ActorSystem, Backoff, ChildSpec, Supervisor
from promptside.errors import AlreadyRunning, EvaluationAborted, NotStarted
from promptside.pools import (
    BreakerConfig,
    CircuitOpen,
    Endpoint,
    LMConfig,
    LMPool,
    LMPoolConfig,
    LMPoolSettings,
    PoolUnavailable,
    RetryConfig,
    WorkerLost,
    batch_run,
    priority,
)
from promptside.pools.clients import ahead
from promptside.testing import FakeServer, MockLM, run_virtual
from promptside.testing.virtual_time import VirtualTimeLoop
from tests.support.actors import outcome
from tests.support.pools import endpoint, running


def mock(text: str = "hello", name: str = "mock/mock") -> Endpoint:
    return Endpoint(name, engine=MockLM(text, model=name))


def nodes() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-")]


# -- made --------------------------------------------------------------------------------------------------------------


def test_models_endpoints_and_configs_are_endpoints_alone_or_in_one_list() -> None:
    given = "openai/gpt-4o-mini", Endpoint("gemini/gemini-2.5-flash", name="flash"), LMConfig(model="groq/llama")
    for pool in (LMPool(*given), LMPool(list(given)), LMPool(given)):
        assert [endpoint.name for endpoint in pool.endpoints] == ["openai/gpt-4o-mini", "flash", "groq/llama"]
    assert LMPool("openai/gpt-4o-mini").lm().model == "openai/gpt-4o-mini"


def test_the_settings_of_a_config_hold_for_the_lm_of_its_model() -> None:
    config = LMConfig(provider="openai", model="a", api_key="none", temperature=0.5, max_tokens=7)
    pool = LMPool(config, "openai/b")
    assert {"temperature": 0.5, "max_tokens": 7}.items() <= pool.lm().kwargs.items()
    assert pool.lm(temperature=0.1).kwargs["temperature"] == 0.1
    assert pool.lm("openai/b").kwargs.get("max_tokens") != 7


def test_every_field_of_the_config_is_a_keyword_of_the_pool() -> None:
    assert get_type_hints(LMPoolSettings) == get_type_hints(LMPoolConfig)
    assert LMPoolSettings.__optional_keys__ == {field.name for field in fields(LMPoolConfig)}


def test_keywords_stand_over_a_config_that_is_shared() -> None:
    shared = LMPoolConfig(workers=3, timeout=7.0)
    pool = LMPool("openai/a", config=shared, name="other", workers=1)
    assert (pool.name, pool.config.name, pool.config.workers, pool.config.timeout) == ("other", "other", 1, 7.0)
    assert shared == LMPoolConfig(workers=3, timeout=7.0)
    with pytest.raises(TypeError, match="deadline"):
        LMPool("openai/a", deadline=3)  # type: ignore[call-arg]


# -- started and stopped -----------------------------------------------------------------------------------------------


def test_a_script_has_a_pool_for_a_block() -> None:
    before = nodes()
    with LMPool(mock()) as pool:
        lm = pool.lm(cache=False)
        assert lm("hello") == ["hello"]
        assert pool.running
    with pytest.raises(PoolUnavailable, match="has ended"):
        lm("late")
    assert nodes() == before


async def test_async_code_has_a_pool_for_a_block_and_again_later() -> None:
    pool = LMPool(mock())
    lm = pool.lm(cache=False)
    for _ in range(2):
        async with pool:
            assert await lm.acall("hello") == ["hello"]
        with pytest.raises(PoolUnavailable, match="has ended"):
            await lm.acall("late")


async def test_a_stopped_pool_starts_again_with_its_lms_its_costs_and_new_figures() -> None:
    async with running(mock()) as scene:
        pool = scene.pool
        for start in (1, 2):
            assert await scene.lm.acall(f"start {start}") == ["hello"]
            assert pool.costs()["total"]["calls"] == start
            assert pool.stats()["mock/mock"]["attempts"] == 1
            assert nodes().count("promptside-lm") == 1
            await pool.stop()
            assert not pool.running
            assert "promptside-lm" not in nodes()
            await pool.start(scene.system)
        with pytest.raises(AlreadyRunning):
            await pool.start(scene.system)


async def test_a_pool_that_was_never_started_has_no_actor() -> None:
    pool = LMPool(mock())
    with pytest.raises(NotStarted, match="LMPool 'lm' is not started"):
        _ = pool.ref
    assert (pool.path, pool.running, pool.worker_refs(), pool.stats()) == ("lm", False, {}, {})
    with pytest.raises(PoolUnavailable, match="is not started"):
        pool.breaker("mock/mock").reset()
    assert repr(pool) == "<LMPool lm not started>"


@pytest.mark.parametrize("way", ["start", "child_spec"])
async def test_a_pool_runs_on_the_loop_that_it_is_given(way: str) -> None:
    class Where:
        """Answers with the name of the thread in which it is asked."""

        async def complete(self, request: Request) -> Any:
            return await MockLM(threading.current_thread().name).async_engine.complete(request)

    pool = LMPool(Endpoint("mock/mock", engine=Where()))
    async with ActorSystem() as system:
        supervisor = await Supervisor.start(system)
        if way == "start":
            await pool.start(system, node=system.home)
        else:
            await supervisor.start_child(pool.child_spec(node=system.home))
        assert await pool.lm(cache=False).acall("where?") == [threading.current_thread().name]
        await (pool.ref.stop() if way == "start" else supervisor.terminate_child("lm"))
        with pytest.raises(PoolUnavailable, match="was stopped"):
            await pool.lm(cache=False).acall("late")


async def test_a_drain_gives_requests_under_way_more_time_than_the_shutdown_of_the_pool() -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    class Slow:
        async def complete(self, request: Request) -> Any:
            asked.set()
            await answer.wait()
            return await MockLM("hello").async_engine.complete(request)

    async with ActorSystem() as system:
        pool = await LMPool(Endpoint("mock/mock", engine=Slow()), shutdown=0).start(system, node=system.home)
        call = asyncio.create_task(pool.lm(cache=False).acall("hello"))
        await asked.wait()
        with pytest.raises(ValueError, match=r"LMPool\.stop: drain=-1: give seconds >= 0"):
            await pool.stop(drain=-1)
        assert pool.running
        stopping = asyncio.create_task(pool.stop(drain=60))
        with pytest.raises(PoolUnavailable):
            while True:
                await pool.lm(cache=False).acall("late")
        answer.set()
        assert await call == ["hello"]
        await stopping


# -- in virtual time ---------------------------------------------------------------------------------------------------


class Provider:
    """Down in the virtual seconds from `since` to `until`."""

    def __init__(self, since: float, until: float) -> None:
        self.since = since
        self.until = until

    async def complete(self, request: Request) -> Any:
        if self.since <= asyncio.get_running_loop().time() < self.until:
            raise ServerError("down")
        return await MockLM("hello").async_engine.complete(request)


def test_an_outage_of_1000_seconds_passes_in_virtual_time_and_a_batch_waits_for_its_end() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        endpoint = Endpoint("mock/mock", engine=Provider(10, 1010))
        breaker, retry = BreakerConfig(min_calls=2, open_for=5), RetryConfig(attempts=1)
        async with ActorSystem() as system:
            changes: list[str] = []
            system.events.on("breaker.*", lambda event: changes.append(event.type))
            pool = await LMPool(endpoint, breaker=breaker, retry=retry).start(system)
            lm = pool.lm(cache=False)
            assert await lm.acall("before") == ["hello"]
            await asyncio.sleep(20)
            with priority("batch", run="nightly", outage_timeout=2000):
                batch = asyncio.create_task(lm.acall("batch"))
            await asyncio.sleep(60)
            assert pool.breaker("mock/mock").state == "open"
            with pytest.raises(CircuitOpen):
                await lm.acall("serving")
            assert await batch == ["hello"]
            assert loop.time() > 1010
            assert changes[0] == "breaker.opened"
            assert changes[-1] == "breaker.closed"
            assert pool.breaker("mock/mock").state == "closed"

    run_virtual(main())


class CountingLoop(VirtualTimeLoop):
    """Counts how often it wakes up."""

    wakes = 0

    def _run_once(self) -> None:
        self.wakes += 1
        super()._run_once()  # type: ignore[misc]


async def without_a_worker(then: Callable[[ActorRef[Any]], Awaitable[None]]) -> tuple[int, Any]:
    """How often the loop woke up while a call waited an hour for a worker, and what it came to after `then`."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, CountingLoop)
    async with ActorSystem() as system:
        pool = await LMPool(mock(), workers=1, timeout=7200).start(system)
        supervisor = pool.ref
        supervisor.suspend()  # the restart has to wait
        (worker,) = pool.worker_refs().values()
        worker.kill()
        call = asyncio.create_task(pool.lm(cache=False).acall("hello"))
        await asyncio.sleep(60)
        before = loop.wakes
        await asyncio.sleep(3600)
        woken = loop.wakes - before
        assert not call.done()
        await then(supervisor)
        (result,) = await asyncio.gather(call, return_exceptions=True)
        return woken, result


async def restart(supervisor: ActorRef[Any]) -> None:
    supervisor.resume()


async def kill(supervisor: ActorRef[Any]) -> None:
    supervisor.kill()


async def stop(supervisor: ActorRef[Any]) -> None:
    await supervisor.stop()


@pytest.mark.parametrize(("then", "expected"), [(restart, list), (kill, WorkerLost), (stop, WorkerLost)])
def test_a_call_without_a_worker_sleeps_until_one_is_back_or_none_will_be(
    then: Callable[[ActorRef[Any]], Awaitable[None]], expected: type[object]
) -> None:
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        woken, result = runner.run(without_a_worker(then))
    assert isinstance(result, expected), result
    assert woken <= 10, "once for the sleep of the test, and not for a look at the worker"


async def test_calls_go_on_when_the_whole_pool_was_killed_and_restarted() -> None:
    pool = LMPool(mock())
    lm: dspy.LM = pool.lm(cache=False)
    async with ActorSystem() as system:
        await Supervisor.start(system, [pool.child_spec()])
        old = pool.worker_refs()
        started = asyncio.get_running_loop().create_future()
        home = asyncio.get_running_loop()
        system.events.on("actor.restarted", lambda event: home.call_soon_threadsafe(started.set_result, event.source))
        pool.ref.kill()
        assert (await started).endswith("lm")
        assert await lm.acall("hello") == ["hello"]
        assert pool.worker_refs().keys() == old.keys()
        assert set(pool.worker_refs().values()).isdisjoint(old.values())


def test_while_a_killed_pool_is_being_restarted_calls_under_way_are_lost_and_new_ones_are_told_when_to_come() -> None:
    async def main() -> None:
        slow = Endpoint("mock/mock", engine=MockLM("hello", latency=10))
        pool = LMPool(slow, Endpoint("openai/embeds", api_key="none"), timeout=600)
        lm: dspy.LM = pool.lm(cache=False)
        async with ActorSystem() as system:
            await Supervisor.start(system, [pool.child_spec(backoff=Backoff(initial=4, jitter=0))])
            started = asyncio.create_task(lm.acall("under way"))
            await asyncio.sleep(1)
            pool.ref.kill()
            with pytest.raises(WorkerLost):
                await started
            await asyncio.sleep(1)
            with pytest.raises(
                PoolUnavailable, match=r"^the LM pool 'supervisor/lm' is being restarted; try again in 3 s$"
            ) as refused:
                await lm.acall("too early")
            assert refused.value.retry_after == pytest.approx(3)
            with pytest.raises(EvaluationAborted) as aborted, batch_run("nightly"):
                await lm.acall("too early")
            assert isinstance(aborted.value.reason, PoolUnavailable)
            with pytest.raises(EvaluationAborted) as aborted, batch_run("nightly"):
                await pool.embedder("openai/embeds", caching=False).acall("too early")
            assert isinstance(aborted.value.reason, PoolUnavailable)
            assert asyncio.get_running_loop().time() < 2.5, "none of them has waited"
            await asyncio.sleep(3)
            assert await lm.acall("again") == ["hello"]

    run_virtual(main())


def test_a_pool_whose_supervisor_is_being_restarted_says_so() -> None:
    async def main() -> None:
        pool = LMPool(mock())
        lm: dspy.LM = pool.lm(cache=False)
        middle = ChildSpec("middle", partial(Supervisor, [pool.child_spec()]), backoff=Backoff(initial=4, jitter=0))
        async with ActorSystem() as system:
            top = await Supervisor.start(system, [middle])
            top.child("middle").kill()
            await asyncio.sleep(1)
            with pytest.raises(PoolUnavailable, match=r"is being restarted; try again in 3 s$"):
                await lm.acall("too early")
            await asyncio.sleep(4)
            assert await lm.acall("again") == ["hello"]

    run_virtual(main())


# -- connections that are opened ahead ---------------------------------------------------------------------------------


async def test_connections_that_were_opened_ahead_serve_the_first_requests() -> None:
    with FakeServer("hello", latency=0.05) as server:
        async with ActorSystem() as system:
            pool = await LMPool(endpoint(server), workers=3).start(system, warm=8)
            await server.until(lambda: server.total_connections == 8)
            assert not server.requests
            lm = pool.lm(cache=False)
            assert await asyncio.gather(*(lm.acall(f"call {n}") for n in range(6))) == [["hello"]] * 6
            assert server.total_connections == 8
        await server.until(lambda: server.connections == 0)


async def test_a_connection_that_was_opened_ahead_and_is_dead_by_then_fails_no_call() -> None:
    with FakeServer("hello") as server:
        async with ActorSystem() as system:
            pool = await LMPool(endpoint(server), workers=1, breaker=BreakerConfig(min_calls=1)).start(system, warm=4)
            await server.until(lambda: server.connections == 4)
            server.close()
            await server.until(lambda: server.connections == 0)
            server.start()
            assert await pool.lm(cache=False).acall("hello") == ["hello"]
            assert pool.stats()["openai/fake"]["failures"] == 0


async def test_a_provider_that_cannot_be_reached_or_is_litellms_is_no_reason_not_to_start() -> None:
    async with ActorSystem() as system:
        doors = [Endpoint("openai/m", api_base="http://127.0.0.1:1/v1", api_key="none")]
        doors += [Endpoint("cerebras/m", api_key="none"), mock()]
        pool = await LMPool(doors).start(system, warm=2)
        assert pool.running


async def test_a_start_that_is_cancelled_while_connections_are_opened_leaves_no_pool() -> None:
    connected = asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        with suppress(ConnectionError):
            await reader.read(-1)
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent, ActorSystem() as system:
        port = silent.sockets[0].getsockname()[1]
        pool = LMPool(Endpoint("openai/m", api_base=f"https://127.0.0.1:{port}/v1", api_key="none"))
        starting = asyncio.create_task(pool.start(system, warm=1))
        await connected.wait()
        starting.cancel()
        assert isinstance(await outcome(starting), asyncio.CancelledError)
        assert not pool.running


@pytest.mark.parametrize("by_proxy", [False, True], ids=["direct", "by a proxy"])
async def test_connections_of_which_nothing_is_heard_are_given_up(
    by_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "CONNECT_SECONDS", 0.05)
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.set_result(await reader.read(-1))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, ActorSystem() as system:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        if by_proxy:
            monkeypatch.setenv("https_proxy", f"http://{address}")
            address = "provider.invalid"
        pool = LMPool(Endpoint("openai/m", api_base=f"https://{address}/v1", api_key="none"))
        await pool.start(system, warm=1)
        await heard  # the end, and what was said before


@pytest.mark.parametrize("warm", [-1, True, 1.5, None])
async def test_a_number_of_connections_that_is_none_is_named(warm: Any) -> None:
    async with ActorSystem() as system:
        pool = LMPool(Endpoint("openai/m", api_key="none"))
        with pytest.raises(ValueError, match=rf"LMPool\.start: warm={warm}: give a whole number >= 0"):
            await pool.start(system, warm=warm)
        assert not pool.started
