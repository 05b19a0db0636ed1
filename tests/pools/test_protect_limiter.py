"""A limiter around any function: who waits, who is next, and what of a refusal the others are spared."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from promptside import ActorSystem, Event
from promptside.clock import monotonic
from promptside.errors import QueueTimeout
from promptside.pools import BreakerConfig, CircuitOpen, LimiterConfig, priority, protect


class TooMany(Exception):
    """As an HTTP client says it."""

    def __init__(self, retry_after: float | None = None) -> None:
        super().__init__("too many requests")
        self.status_code = 429
        self.retry_after = retry_after


class Service:
    """An async function of which each call stays until it is let go; by the names of the calls."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.doors: dict[str, asyncio.Future[str]] = {}
        self._changed = asyncio.Event()

    async def call(self, name: str) -> str:
        self.begun.append(name)
        self.doors[name] = asyncio.get_running_loop().create_future()
        self._changed.set()
        return await self.doors[name]

    async def until(self, *names: str) -> None:
        """Until these have begun, in this order."""
        while self.begun != list(names):
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), 10)


async def settled(turns: int = 20) -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_one_more_waits_until_another_has_ended_and_first_come_is_first_served() -> None:
    service = Service()
    call = protect(service.call, max_concurrency=1)
    calls = {name: asyncio.create_task(call(name)) for name in "abc"}
    await service.until("a")
    await settled()
    assert service.begun == ["a"]
    service.doors["a"].set_exception(ValueError("a failure gives its place, too"))
    await service.until("a", "b")
    service.doors["b"].set_result("of b")
    await service.until("a", "b", "c")
    service.doors["c"].set_result("of c")
    ended = await asyncio.gather(*calls.values(), return_exceptions=True)
    assert [str(each) for each in ended] == ["a failure gives its place, too", "of b", "of c"]


async def test_callers_of_class_serving_come_before_batch() -> None:
    service = Service()
    call = protect(service.call, max_concurrency=1)
    first = asyncio.create_task(call("first"))
    await service.until("first")
    with priority("batch"):
        batch = asyncio.create_task(call("batch"))
    await settled()
    serving = asyncio.create_task(call("serving"))
    await settled()
    service.doors["first"].set_result("")
    await service.until("first", "serving")
    service.doors["serving"].set_result("")
    await service.until("first", "serving", "batch")
    service.doors["batch"].set_result("")
    await asyncio.gather(first, batch, serving)


@pytest.mark.parametrize("steps", range(3))
async def test_a_cancelled_call_leaves_the_queue_and_gives_back_the_slot_that_it_just_got(steps: int) -> None:
    service = Service()
    call = protect(service.call, max_concurrency=1)
    calls = {name: asyncio.create_task(call(name)) for name in "abcd"}
    await service.until("a")
    await settled()
    calls["b"].cancel()
    await settled()
    calls["a"].cancel()
    await settled(steps)
    calls["c"].cancel()  # before, as or after it gets the slot of a
    await settled()
    assert service.begun[-1] == "d"
    service.doors["d"].set_result("of d")
    assert await calls["d"] == "of d"
    assert [calls[name].cancelled() for name in "abc"] == [True] * 3


async def test_a_call_waits_for_its_turn_no_longer_than_it_may() -> None:
    service = Service()
    call = protect(service.call, name="search", max_concurrency=1, queue_timeout=0.01)
    first = asyncio.create_task(call("first"))
    await service.until("first")
    with pytest.raises(QueueTimeout, match=r"waited 0\.01 s in the queue of the pool 'search'"):
        await call("late")
    service.doors["first"].set_result("done")
    assert await first == "done"
    service.begun.clear()
    again = asyncio.create_task(call("again"))
    await service.until("again")
    service.doors["again"].set_result("")
    await again


def test_a_thread_waits_for_its_turn_no_longer_than_it_may() -> None:
    entered, go = threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        assert go.wait(10)

    held = protect(hold, max_concurrency=1, queue_timeout=0.01)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(held)
        assert entered.wait(10)
        with pytest.raises(QueueTimeout):
            held()
        go.set()
        first.result(10)
    held()


async def test_who_waits_fails_at_once_when_the_circuit_opens() -> None:
    service = Service()
    call = protect(service.call, max_concurrency=2, breaker=BreakerConfig(min_calls=1, open_for=60))
    calls = {name: asyncio.create_task(call(name)) for name in "abcd"}
    await service.until("a", "b")
    await settled()
    service.doors["a"].set_exception(ConnectionError("down"))
    with pytest.raises(ConnectionError):
        await calls["a"]
    for name in "cd":
        with pytest.raises(CircuitOpen):
            await calls[name]
    assert service.begun == ["a", "b"]
    service.doors["b"].set_result("b was under way")
    await calls["b"]


@pytest.mark.parametrize("limited", [True, False])
def test_a_refusal_for_too_many_calls_is_the_limiters_where_there_is_one(limited: bool) -> None:
    def refuse() -> None:
        raise TooMany

    settings: dict[str, Any] = {"max_concurrency": 4, "limiter": LimiterConfig(max_pause=0.001)} if limited else {}
    refused = protect(refuse, breaker=BreakerConfig(min_calls=1), **settings)
    with pytest.raises(TooMany):
        refused()
    assert refused.circuit() == ("closed" if limited else "open")


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_one_refusal_holds_back_all_calls_for_as_long_as_it_asks(asynchronous: bool) -> None:
    begun: list[float] = []

    def answer() -> str:
        begun.append(monotonic())
        if len(begun) == 1:
            raise TooMany(0.05)
        return "answer"

    async def aanswer() -> str:
        return answer()

    async with ActorSystem() as system:
        told: list[Event] = []
        system.events.on("limiter.changed", told.append)
        function: Callable[[], Any] = aanswer if asynchronous else answer
        call: Any = protect(function, name="search", max_concurrency=8, events=system.events)

        async def made() -> Any:
            return await (call() if asynchronous else asyncio.to_thread(call))

        with pytest.raises(TooMany):
            await made()
        assert await asyncio.gather(*(made() for _ in range(4))) == ["answer"] * 4
        assert begun[1] - begun[0] >= 0.05
        assert told[0].source == "search"
        assert told[0].data["endpoint"] == "search"
        assert told[0].data["closed_for"] > 0.04


async def test_a_known_rate_is_kept() -> None:
    begun: list[float] = []

    async def answer() -> None:
        begun.append(monotonic())

    call = protect(answer, max_concurrency=8, rpm=6000)
    await asyncio.gather(*(call() for _ in range(20)))
    assert begun[-1] - begun[0] > 13 / 95  # 0.05 s of the pace may be caught up


def test_threads_share_it_and_every_call_has_its_outcome_and_gives_its_place_back() -> None:
    lock, together, under_way, widest = threading.Lock(), threading.Barrier(3), 0, 0

    def enter(number: int) -> None:
        nonlocal under_way, widest
        with lock:
            under_way += 1
            widest = max(widest, under_way)
        try:
            if number < 0:
                together.wait(10)
            if number % 50 == 7:
                raise TooMany(0.001)
            if number % 10 == 3:
                raise ValueError(number)
        finally:
            with lock:
                under_way -= 1

    config = LimiterConfig(max_pause=0.001)
    guarded = protect(enter, max_concurrency=3, limiter=config, breaker=BreakerConfig(min_calls=10_000))
    outcomes: list[str] = []

    def call(number: int) -> None:
        try:
            guarded(number)
            outcomes.append("answer")
        except (ValueError, TooMany) as error:
            outcomes.append(type(error).__name__)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(call, range(-3, 0)))
        assert widest == 3
        list(threads.map(call, range(397)))
    assert (len(outcomes), outcomes.count("TooMany"), outcomes.count("ValueError")) == (400, 8, 40)
    assert under_way == 0
    assert widest == 3


async def test_a_loop_that_ends_while_its_calls_wait_leaves_the_others_theirs() -> None:
    service = Service()
    call = protect(service.call, max_concurrency=1)
    first = asyncio.create_task(call("first"))
    await service.until("first")

    async def leave() -> None:
        task = asyncio.create_task(call("elsewhere"))
        await settled()
        assert not task.done()

    await asyncio.to_thread(asyncio.run, leave())
    last = asyncio.create_task(call("last"))
    await settled()
    service.doors["first"].set_result("")
    await service.until("first", "last")
    service.doors["last"].set_result("")
    await asyncio.gather(first, last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency=0: give a whole number >= 1"),
        ({"rpm": 60}, "max_concurrency=None: give a number of calls"),
        ({"limiter": LimiterConfig()}, "max_concurrency=None: give a number of calls"),
        ({"queue_timeout": 1}, "max_concurrency=None: give a number of calls"),
        ({"max_concurrency": 1, "rpm": 0}, "rpm=0: give a number > 0 a minute"),
        ({"max_concurrency": 1, "queue_timeout": 0}, "queue_timeout=0: give seconds > 0"),
    ],
)
def test_what_is_not_valid_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"protect: {message}"):
        protect(len, **arguments)
