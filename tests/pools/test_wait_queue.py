"""How calls wait for an endpoint: bounded, in order, serving before batch; and what a provider's limit makes of it."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest
from dspy.lm15 import RateLimitError, Request
from dspy.utils.exceptions import LMRateLimitError, LMServerError

from promptside import ActorSystem
from promptside.errors import PoolSaturated, QueueTimeout
from promptside.pools import BreakerConfig, CircuitOpen, Endpoint, LimiterConfig, LMPool, RetryConfig, priority
from promptside.pools.lm.queue import EndpointQueue, QueueBound, QueuedCall
from promptside.pools.resilience.limiter import Limiter, Slot
from promptside.pools.resilience.retry import RetryBudget
from promptside.testing import FakeServer, Fault, MockLM, run_virtual
from tests.support.actors import turns, until
from tests.support.pools import endpoint, running


class Scene:
    """A queue with one slot, and those who have come to it."""

    def __init__(self, most: int = 1, *, max_queue: int = 100, queue_timeout: float = 1e9) -> None:
        self.saturated = 0
        self.bound = QueueBound("lm", max_queue, queue_timeout, self._saturated)
        clock = asyncio.get_running_loop().time
        self.queue = EndpointQueue(Limiter(most, LimiterConfig()), self.bound, clock)
        self.order: list[str] = []
        self.slots: list[Slot] = []

    def _saturated(self) -> None:
        self.saturated += 1

    async def come(self, name: str, *, batch: bool = False, queued: QueuedCall | None = None) -> Slot | None:
        slot = await self.queue.acquire_for("model", queued or self.bound.new_call(batch=batch))
        self.order.append(name)
        if slot is not None:
            self.slots.append(slot)
        return slot

    def leave(self) -> None:
        self.queue.release(self.slots.pop(), "success")


def test_within_a_class_first_come_is_first_and_serving_is_before_batch() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.come("first")
        waiting = [
            asyncio.create_task(scene.come(name, batch=name.startswith("batch")))
            for name in ("batch 1", "a", "batch 2", "b", "c")
        ]
        await turns()
        for _ in range(5):
            scene.leave()
            await asyncio.sleep(1)  # of the virtual clock: the pace allows one
        assert scene.order == ["first", "a", "b", "c", "batch 1", "batch 2"]
        await asyncio.gather(*waiting)
        assert scene.bound.waiting == len(scene.queue) == 0

    run_virtual(main())


def test_a_call_that_comes_back_has_its_old_place() -> None:
    async def main() -> None:
        scene = Scene()
        old = scene.bound.new_call(batch=False)
        await scene.come("holder")
        newer = asyncio.create_task(scene.come("newer"))
        await turns()
        older = asyncio.create_task(scene.come("older", queued=old))
        await turns()
        for _ in range(2):
            scene.leave()
            await turns()
        await asyncio.gather(newer, older)
        assert scene.order == ["holder", "older", "newer"]

    run_virtual(main())


def test_a_full_queue_refuses_new_calls_tells_it_once_and_takes_those_back_that_it_knows() -> None:
    async def main() -> None:
        scene = Scene(max_queue=2)
        known = scene.bound.new_call(batch=False)
        await scene.come("holder", queued=known)
        waiting = [asyncio.create_task(scene.come(f"call {n}")) for n in range(2)]
        await turns()
        for _ in range(3):
            with pytest.raises(PoolSaturated, match="2 calls wait already") as refused:
                await scene.come("one too many")
            assert isinstance(refused.value, dspy.LMError)
        assert (refused.value.pool, refused.value.max_queue) == ("lm", 2)
        assert scene.saturated == 1
        back = asyncio.create_task(scene.come("back", queued=known))
        await turns()
        for _ in range(3):
            scene.leave()
            await turns()
        await asyncio.gather(back, *waiting)
        assert scene.order == ["holder", "back", "call 0", "call 1"]
        room = [asyncio.create_task(scene.come("room")) for _ in range(2)]
        await turns()
        with pytest.raises(PoolSaturated):
            await scene.come("again")
        assert scene.saturated == 2
        for task in room:
            task.cancel()
        await asyncio.wait(room)
        assert scene.bound.waiting == 0

    run_virtual(main())


def test_a_call_that_waits_for_too_long_is_told_so_and_leaves_no_gap() -> None:
    async def main() -> None:
        scene = Scene(queue_timeout=5.0)
        await scene.come("holder")
        with pytest.raises(QueueTimeout, match="waited 5 s in the queue of the pool 'lm'") as late:
            await scene.come("late")
        assert isinstance(late.value, TimeoutError)
        assert isinstance(late.value, dspy.LMError)
        assert asyncio.get_running_loop().time() == 5.0
        next_one = asyncio.create_task(scene.come("next"))
        await turns()
        scene.leave()
        await next_one

    run_virtual(main())


@pytest.mark.parametrize("steps", range(4))
def test_a_call_that_is_cancelled_as_it_gets_its_slot_gives_it_on(steps: int) -> None:
    async def main() -> None:
        scene = Scene()
        await scene.come("holder")
        cancelled = asyncio.create_task(scene.come("cancelled"))
        following = asyncio.create_task(scene.come("following"))
        await turns()
        scene.leave()
        await turns(steps)
        cancelled.cancel()
        await asyncio.wait({cancelled})
        if not cancelled.cancelled():
            scene.leave()
        await following
        assert scene.queue.limiter.in_flight == 1

    run_virtual(main())


def test_those_who_wait_are_woken_to_look_again() -> None:
    async def main() -> None:
        scene = Scene()
        await scene.come("holder")
        waiting = [asyncio.create_task(scene.come("on_cancel")) for _ in range(3)]
        await turns()
        waiting[0].cancel()
        scene.queue.wake_all()
        assert await asyncio.gather(*waiting[1:]) == [None, None]
        assert scene.bound.waiting == 0

    run_virtual(main())


def test_who_waits_at_a_closed_gate_goes_on_when_it_opens() -> None:
    async def main() -> None:
        scene = Scene(10)
        slot = await scene.come("refused")
        assert slot is not None
        scene.queue.release(slot, "limited", retry_after=60.0)
        scene.slots.clear()
        await scene.come("patient")
        assert 60.0 <= asyncio.get_running_loop().time() <= 66.0

    run_virtual(main())


def test_retries_are_a_share_of_the_calls_of_the_last_seconds() -> None:
    budget = RetryBudget(0.2, 3, window=10.0)
    assert [budget.acquire(0.0) for _ in range(4)] == [True, True, True, False]
    for _ in range(10):
        budget.call(1.0)
    assert [budget.acquire(1.0) for _ in range(3)] == [True, True, False]
    assert [budget.acquire(10.5) for _ in range(4)] == [True, True, True, False], "2 of the calls at 1.0, 3 anyway"
    assert [budget.acquire(30.0) for _ in range(4)] == [True, True, True, False]


# -- in a pool ---------------------------------------------------------------------------------------------------------


async def test_a_saturated_pool_refuses_and_tells_and_a_queued_call_may_run_out_of_time() -> None:
    with FakeServer("hello") as server:
        door = endpoint(server, max_connections=1)
        async with running(door, workers=1, max_queue=1, queue_timeout=0.2) as scene:
            server.fail(Fault.hang(), times=None)
            holder = asyncio.create_task(scene.lm.acall("holder"))
            await server.until(lambda: server.active == 1)
            late = asyncio.create_task(scene.lm.acall("late"))
            await until(lambda: scene.pool.stats()["openai/fake"]["waiting"] == 1)
            for _ in range(3):
                with pytest.raises(PoolSaturated):
                    await scene.lm.acall("one too many")
            assert [event.data for event in scene.events("pool.saturated")] == [{"waiting": 1, "max_queue": 1}]
            with pytest.raises(QueueTimeout):
                await late
            server.heal()
            assert await holder == ["hello"]
            assert len(server.requests) == 1
            assert scene.circuit() == "closed"


async def test_batch_holds_its_share_and_serving_goes_before_it() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.hang(), times=None)
        limiter = LimiterConfig(batch_share=0.5)
        async with running(endpoint(server, max_connections=4), workers=1, limiter=limiter) as scene:
            with priority("batch", run="nightly"):
                batch = [asyncio.create_task(scene.lm.acall(f"batch {n}")) for n in range(10)]
            await server.until(lambda: server.active == 2)
            await until(lambda: scene.pool.stats()["openai/fake"]["waiting"] == 8)
            serving = [asyncio.create_task(scene.lm.acall(f"serving {n}")) for n in range(3)]
            await server.until(lambda: server.active == 4)
            assert scene.pool.stats()["openai/fake"]["waiting"] == 9
            server.release()
            await server.until(lambda: len(server.requests) >= 5)
            sent = [request.body["messages"][-1]["content"].split()[0] for request in server.requests]
            assert sorted(sent[:4]) == ["batch", "batch", "serving", "serving"]
            assert sent[4] == "serving", "before the eight that came earlier"
            server.heal()
            assert await asyncio.gather(*batch, *serving) == [["hello"]] * 13


async def test_one_429_holds_back_every_caller_until_the_provider_may_be_asked() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.status(429, retry_after=0.3))
            first = asyncio.create_task(scene.lm.acall("first"))
            changed = await scene.until("limiter.changed")
            assert changed.data["reason"] == "closed"
            assert 0 < changed.data["closed_for"] <= 0.33 + 1e-6  # the difference of two times of a clock that is large
            assert await asyncio.gather(first, *(scene.lm.acall(f"call {n}") for n in range(20))) == [["hello"]] * 21
            refused, *answered = server.requests
            assert len(answered) == 21
            assert min(request.time for request in answered) - refused.time >= 0.29
            assert scene.circuit() == "closed"


async def test_a_gate_that_outlasts_the_timeout_fails_those_who_wait_there_at_once() -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, max_connections=1), workers=1, timeout=20.0) as scene:
            server.script([Fault.hang(), Fault.status(429, retry_after=3600)])
            holder = asyncio.create_task(scene.lm.acall("holder"))
            await server.until(lambda: server.active == 1)
            waiting = [asyncio.create_task(scene.lm.acall(f"call {n}")) for n in range(5)]
            await until(lambda: scene.pool.stats()["openai/fake"]["waiting"] == 5)
            server.release()
            assert await holder == ["hello"]
            errors = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(error) for error in errors] == [LMRateLimitError] * 5
            assert len(server.requests) == 2
            with pytest.raises(LMRateLimitError, match="asked for a wait of") as refused:
                await scene.lm.acall("later")
            assert refused.value.retry_after is not None
            assert refused.value.retry_after > 3000


async def test_while_one_endpoint_is_limited_the_next_one_answers_also_those_who_wait() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        doors = endpoint(first, "openai/a", max_connections=1), endpoint(second, "openai/b", max_connections=1)
        async with running(*doors, workers=1) as scene:
            first.script([Fault.hang(), Fault.status(429, retry_after=60)])
            holder = asyncio.create_task(scene.lm.acall("holder"))
            await first.until(lambda: first.active == 1)
            waiting = [asyncio.create_task(scene.lm.acall(f"call {n}")) for n in range(5)]
            await until(lambda: scene.pool.stats()["openai/a"]["waiting"] == 5)
            first.release()
            assert await holder == ["first"]
            assert await asyncio.gather(*waiting) == [["second"]] * 5
            assert len(first.requests) == 2


async def test_an_outage_does_not_multiply_the_traffic() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.status(500), times=None)
        retry = RetryConfig(attempts=3, initial=0, retry_ratio=0.1, min_retries=0)
        async with running(server, retry=retry, breaker=BreakerConfig(min_calls=10_000)) as scene:
            errors = await asyncio.gather(*(scene.lm.acall(f"{n}") for n in range(100)), return_exceptions=True)
            assert {type(error) for error in errors} == {LMServerError}
            assert 100 <= len(server.requests) <= 110


async def test_the_circuit_of_an_endpoint_is_opened_held_open_and_reset_by_hand() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        async with running(endpoint(first, "openai/a"), endpoint(second, "openai/b")) as scene:
            circuit = scene.pool.breaker("openai/a")
            assert circuit.state == "closed"
            circuit.isolate()
            assert await scene.lm.acall("hello") == ["second"]
            assert (circuit.state, scene.circuit("openai/a")) == ("open", "open")
            scene.pool.breaker("openai/b").isolate()
            with pytest.raises(CircuitOpen, match="is held open; it lets nothing through until it is reset") as held:
                await scene.pool.lm("openai/b", cache=False).acall("hello")
            assert held.value.retry_after is None
            circuit.reset()
            assert await scene.lm.acall("hello") == ["first"]
            circuit.force_open()
            scene.pool.breaker("openai/b").reset()
            assert await scene.lm.acall("hello") == ["second"]
            told = [(event.type, event.data["endpoint"]) for event in scene.events("breaker.*")]
            assert told == [
                ("breaker.opened", "openai/a"),
                ("breaker.opened", "openai/b"),
                ("breaker.closed", "openai/a"),
                ("breaker.opened", "openai/a"),
                ("breaker.closed", "openai/b"),
            ]
            with pytest.raises(ValueError, match="breaker: endpoint='c': give one of openai/a, openai/b"):
                scene.pool.breaker("c")


def test_a_known_rate_of_requests_and_tokens_is_kept() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        for limit, calls, seconds in (({"rpm": 60.0}, 20, 19 / 0.95), ({"tpm": 60.0}, 5, 4 * 2 / 0.95)):
            async with ActorSystem() as system:
                pool = await LMPool(Endpoint("mock/mock", engine=MockLM("hello"), **limit)).start(system)
                lm = pool.lm(cache=False)
                began = loop.time()
                for number in range(calls):
                    await lm.acall(f"call{number}")  # one token in, one out
                assert loop.time() - began == pytest.approx(seconds, rel=0.2)

    run_virtual(main())


# -- goodput -----------------------------------------------------------------------------------------------------------


class Provider:
    """Lets so many requests a second through, a fourth of that from the third to the ninth second."""

    def __init__(self, retry_after: float | None, latency: float) -> None:
        self.retry_after = retry_after
        self.latency = latency
        self.requests = self.refused = 0
        self._level, self._at = 20.0, 0.0

    async def complete(self, request: Request) -> Any:
        now = asyncio.get_running_loop().time()
        rate = 25.0 if 3.0 <= now < 9.0 else 100.0
        self._level = min(rate / 5, self._level + (now - self._at) * rate)
        self._at = now
        self.requests += 1
        if self._level < 1:
            self.refused += 1
            await asyncio.sleep(0.01)
            raise RateLimitError("too many requests", retry_after=self.retry_after)
        self._level -= 1
        await asyncio.sleep(self.latency)
        return await MockLM("hello").async_engine.complete(request)


@pytest.mark.parametrize("latency", [0.2, pytest.param(2.0, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("retry_after", [1.0, pytest.param(None, marks=pytest.mark.nightly)])
def test_no_call_fails_and_little_is_wasted_when_the_providers_limit_is_cut_to_a_fourth(
    retry_after: float | None, latency: float
) -> None:
    async def main() -> None:
        provider = Provider(retry_after, latency)
        async with ActorSystem() as system:
            pool = await LMPool(Endpoint("mock/mock", engine=provider)).start(system)
            lm = pool.lm(cache=False)
            callers = asyncio.Semaphore(300)

            async def call(number: int) -> Any:
                async with callers:
                    return await lm.acall(f"call {number}")

            assert await asyncio.gather(*(call(n) for n in range(1500))) == [["hello"]] * 1500
        assert provider.requests == 1500 + provider.refused
        assert provider.refused <= 0.05 * provider.requests

    run_virtual(main())
