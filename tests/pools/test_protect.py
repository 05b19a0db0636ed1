"""A breaker around any function: what opens it, who is let through, and what stays of the function."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import math
import re
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from promptside import ActorSystem, Event
from promptside.pools import BreakerConfig, CircuitOpen, protect
from promptside.testing import run_virtual

FAST = BreakerConfig(min_calls=2, open_for=60, jitter=0)


class Search:
    """A retriever that counts, and fails while it is down."""

    def __init__(self) -> None:
        self.calls = 0
        self.down = False

    def find(self, query: str, *, k: int = 3) -> list[str]:
        """Find passages."""
        self.calls += 1
        if self.down:
            raise ConnectionError("down")
        return [query] * k

    async def afind(self, query: str, *, k: int = 3) -> list[str]:
        """Find passages."""
        return self.find(query, k=k)


def test_a_sync_function_stays_what_it_is_until_it_fails_too_often() -> None:
    search = Search()
    find = protect(search.find, breaker=FAST)
    assert find("a", k=2) == ["a", "a"]
    assert inspect.signature(find) == inspect.signature(search.find)
    assert (find.__name__, find.__doc__, find.circuit()) == ("find", "Find passages.", "closed")  # type: ignore[attr-defined]
    search.down = True
    with pytest.raises(ConnectionError):
        find("b")
    assert find.circuit() == "open", "one of two"
    with pytest.raises(CircuitOpen, match="the circuit of find is open") as caught:
        find("c")
    assert caught.value.endpoints == ("find",)
    assert 59 < (caught.value.retry_after or 0) <= 60
    assert search.calls == 2, "nothing reached it while the circuit was open"


async def test_an_async_function_is_awaited_as_before_and_fails_at_once_while_open() -> None:
    search = Search()
    find = protect(search.afind, name="search", breaker=FAST)
    assert inspect.iscoroutinefunction(find)
    assert await find("a", k=1) == ["a"]
    search.down = True
    for _ in range(2):
        with pytest.raises((ConnectionError, CircuitOpen)):
            await find("b")
    with pytest.raises(CircuitOpen, match="the circuit of search is open"):
        await find("c")
    assert search.calls == 2


async def test_a_hundred_concurrent_calls_at_half_open_are_one_probe() -> None:
    search, gate = Search(), asyncio.Event()
    search.down = True

    @functools.partial(protect, breaker=BreakerConfig(min_calls=1, open_for=0.001, jitter=0))
    async def find(query: str) -> list[str]:
        if not search.down:
            await gate.wait()
        return search.find(query)

    with pytest.raises(ConnectionError):
        await find("a")
    search.down = False
    calls: list[asyncio.Task[Any]] = []
    while find.circuit() != "half_open":
        calls = [asyncio.create_task(find(f"call {number}")) for number in range(100)]
        await asyncio.sleep(0.002)
    refused = [call for call in calls if call.done()]
    assert len(refused) == 99
    assert all(isinstance(call.exception(), CircuitOpen) for call in refused)
    gate.set()
    await asyncio.wait(calls)
    assert find.circuit() == "closed"


async def test_its_breaker_is_told_on_the_bus() -> None:
    async with ActorSystem() as system:
        told: list[Event] = []
        system.events.on("breaker.*", told.append)
        search = Search()
        breaker = BreakerConfig(min_calls=1, open_for=0.001, jitter=0)
        find = protect(search.afind, name="search", breaker=breaker, events=system.events)
        search.down = True
        with pytest.raises(ConnectionError):
            await find("a")
        search.down = False
        while find.circuit() != "closed":
            try:
                await find("b")
            except CircuitOpen as error:
                await asyncio.sleep(error.retry_after or 0)
        assert [event.type for event in told] == ["breaker.opened", "breaker.half_opened", "breaker.closed"]
        assert [(event.source, dict(event.data)) for event in told] == [
            ("search", {"endpoint": "search", "before": "closed"}),
            ("search", {"endpoint": "search", "before": "open"}),
            ("search", {"endpoint": "search", "before": "half_open"}),
        ]


async def test_a_handler_of_its_events_may_call_it() -> None:
    async with ActorSystem() as system:
        search = Search()
        find = protect(search.find, breaker=BreakerConfig(min_calls=1), events=system.events)
        seen: list[str] = []

        @system.events.on("breaker.opened")
        def look(event: Event) -> None:
            with pytest.raises(CircuitOpen):
                find("again")
            seen.append(find.circuit())

        search.down = True
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(asyncio.to_thread(find, "a"), 10)
        assert seen == ["open"]


def test_the_callers_own_mistakes_do_not_count_where_it_is_said_which_they_are() -> None:
    def find(query: str) -> str:
        if not query:
            raise ValueError("an empty query")
        return query

    guarded = protect(
        find, breaker=FAST, outcome=lambda error: "ignored" if isinstance(error, ValueError) else "failure"
    )
    for _ in range(10):
        with pytest.raises(ValueError, match="an empty query"):
            guarded("")
    assert guarded.circuit() == "closed"


def test_an_open_circuit_further_inside_says_nothing_about_the_function() -> None:
    search = Search()
    inner = protect(search.find, breaker=BreakerConfig(min_calls=1))
    outer = protect(lambda query: inner(query), name="outer", breaker=FAST)
    search.down = True
    with pytest.raises(ConnectionError):
        outer("a")
    for _ in range(5):
        with pytest.raises(CircuitOpen, match="find"):
            outer("b")
    assert outer.circuit() == "closed"


async def test_a_cancelled_call_counts_nothing() -> None:
    entered = asyncio.Event()

    async def hang() -> None:
        entered.set()
        await asyncio.Event().wait()

    guarded = protect(hang, breaker=BreakerConfig(min_calls=1))
    call = asyncio.create_task(guarded())
    await entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert guarded.circuit() == "closed"


def test_a_function_that_hangs_is_cut_off_and_counted() -> None:
    ended: list[str] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    async def scenario() -> str:
        guarded = protect(hang, timeout=30, breaker=BreakerConfig(min_calls=1))
        with pytest.raises(TimeoutError):
            await guarded()
        return guarded.circuit()

    assert run_virtual(scenario()) == "open"
    assert ended == ["cancelled"]


def seconds_open_after_an_error_with(**attributes: object) -> float:
    busy = type("Busy", (Exception,), attributes)

    def find() -> None:
        raise busy

    guarded = protect(find, breaker=BreakerConfig(min_calls=1))
    with pytest.raises(busy):
        guarded()
    with pytest.raises(CircuitOpen) as caught:
        guarded()
    return caught.value.retry_after or 0


def test_an_error_that_says_when_to_come_again_keeps_it_open_for_so_long() -> None:
    assert seconds_open_after_an_error_with(retry_after=500.0) > 499


@pytest.mark.parametrize("asked", [math.inf, math.nan, -3, True, "5", 10**400, 1e12], ids=lambda asked: str(asked)[:6])
def test_what_is_no_wait_is_not_waited_for(asked: object) -> None:
    assert 0 < seconds_open_after_an_error_with(status=429, retry_after=asked) < 60


def test_threads_share_one_breaker_and_every_call_has_one_outcome() -> None:
    search, barrier = Search(), threading.Barrier(8)
    search.down = True
    find = protect(search.find, breaker=BreakerConfig(min_calls=8, open_for=60))
    outcomes: list[str] = []

    def call(number: int) -> None:
        if number < 8:
            barrier.wait(10)
        try:
            find("a")
        except (ConnectionError, CircuitOpen) as error:
            outcomes.append(type(error).__name__)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(64)))
    assert len(outcomes) == 64
    assert outcomes.count("ConnectionError") == search.calls
    assert 8 <= search.calls < 8 + 8, "those that were under way when it opened"


def test_a_call_whose_loop_was_closed_while_it_waited_holds_up_no_other() -> None:
    held, release = threading.Event(), threading.Event()

    async def work(number: int) -> int:
        if number == 0:
            held.set()
            await asyncio.to_thread(release.wait)
        return number

    protected = protect(work, max_concurrency=1)
    first = threading.Thread(target=lambda: asyncio.run(protected(0)))
    first.start()
    held.wait()
    loop = asyncio.new_event_loop()
    waits = loop.create_task(protected(1))
    loop.call_later(0.1, loop.stop)
    loop.run_forever()
    loop.close()
    release.set()
    first.join()
    assert asyncio.run(asyncio.wait_for(protected(2), 60)) == 2
    assert not waits.done()
    del waits
    gc.collect()


async def test_dspy_takes_it_as_a_tool() -> None:
    search = Search()
    tool = dspy.Tool(protect(search.afind, breaker=FAST))
    assert (tool.name, set(tool.args)) == ("afind", {"query", "k"})
    assert await tool.acall(query="a", k=1) == ["a"]
    search.down = True
    for _ in range(2):
        with pytest.raises((ConnectionError, CircuitOpen)):
            await tool.acall(query="b")
    with pytest.raises(CircuitOpen):
        await tool.acall(query="c")


def test_an_object_that_can_be_called_is_protected() -> None:
    class Retriever:
        def __call__(self, query: str) -> list[str]:
            return [query]

    class AsyncRetriever:
        async def __call__(self, query: str) -> list[str]:
            return [query]

    assert protect(Retriever())("a") == ["a"]
    assert asyncio.run(protect(AsyncRetriever())("a")) == ["a"]
    assert asyncio.run(protect(functools.partial(Search().afind, k=1), name="partial")("a")) == ["a"]


async def pieces() -> AsyncIterator[int]:
    yield 1


def parts() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("fn", "arguments", "message"),
    [
        (7, {}, "fn=7: give a function"),
        (pieces, {}, "give a function that returns"),
        (parts, {}, "give a function that returns"),
        (Search().find, {"breaker": 5}, "breaker=5: give BreakerConfig"),
        (Search().find, {"breaker": {}}, "breaker={}: give BreakerConfig"),
        (Search().find, {"limiter": 5, "max_concurrency": 2}, "limiter=5: give LimiterConfig"),
        (Search().find, {"events": 5}, "events=5: give the bus"),
        (Search().find, {"name": ""}, "name='': give a text"),
        (Search().find, {"timeout": 5}, "timeout=5: a thread cannot be stopped"),
        (Search().afind, {"timeout": 0}, "timeout=0: give seconds > 0"),
        (Search().find, {"outcome": "failure"}, "outcome='failure': give a function of an exception"),
    ],
)
def test_what_cannot_be_protected_is_refused_by_name(fn: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        protect(fn, **arguments)


@pytest.mark.parametrize("verdict", [None, 5, "wrong", []], ids=repr)
def test_an_outcome_that_is_none_is_named_in_the_error(verdict: Any) -> None:
    def divide() -> float:
        return 1 / 0

    divide_safely = protect(divide, outcome=lambda _: verdict, breaker=BreakerConfig(min_calls=1))
    match = f"^protect: outcome={re.escape(repr(verdict))}: return one of .*limited"
    with pytest.raises(ValueError, match=match) as caught:
        divide_safely()
    assert isinstance(caught.value.__context__, ZeroDivisionError)
    assert divide_safely.circuit() == "closed"
