"""`TaskSupervisor.map`: order, demand, failure, and every way to leave it early."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest

from promptside import (
    ActorStopped,
    ActorSystem,
    AskCycleError,
    AskTimeout,
    MaxChildrenReached,
    NotStarted,
    Supervisor,
)
from promptside.actors import State
from promptside.supervision.tasks.supervisor import TaskSupervisor
from promptside.testing import run_virtual
from tests.supervision.test_tasks import double, elsewhere, names
from tests.support.actors import Boom, Worker, hear, outcome, started, turns, until


class Board:
    """Gates by number: which items have entered, and how they left."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.left: dict[int, str] = {}
        self._gates: dict[int, asyncio.Event] = {}

    def gate(self, number: int) -> asyncio.Event:
        return self._gates.setdefault(number, asyncio.Event())

    async def walk(self, number: int) -> int:
        self.entered.append(number)
        try:
            await self.gate(number).wait()
        except asyncio.CancelledError:
            self.left[number] = "cancelled"
            raise
        self.left[number] = "passed"
        return number


class Source:
    """Numbers from 0 on, as an async iterator that notes what is taken and whether it is closed."""

    def __init__(self, count: float = math.inf, error: Exception | None = None) -> None:
        self.count = count
        self.error = error
        self.taken = 0
        self.closed = False
        self.threads: set[int] = set()

    async def items(self) -> AsyncIterator[int]:
        try:
            while self.taken < self.count:
                self.threads.add(threading.get_ident())
                await asyncio.sleep(0)
                self.taken += 1
                yield self.taken - 1
            if self.error is not None:
                raise self.error
        finally:
            await asyncio.sleep(0)
            self.closed = True

    def plain(self) -> Iterator[int]:
        while self.taken < self.count:
            self.taken += 1
            yield self.taken - 1
        if self.error is not None:
            raise self.error


async def odd_fails(number: int) -> int:
    if number % 2:
        raise Boom(number)
    return number


def read(source: Source, kind: str) -> Any:
    return source.plain() if kind == "sync" else source.items()


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])
ORDERS = pytest.mark.parametrize("ordered", [True, False])


@KINDS
@ORDERS
@pytest.mark.parametrize("width", [1, 3, 1000])
async def test_every_item_has_its_result(kind: str, ordered: bool, width: int) -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        items = read(Source(100), kind)
        results = [each async for each in tasks.map(double, items, max_concurrency=width, ordered=ordered)]
        assert sorted(results) == [2 * number for number in range(100)]
        if ordered:
            assert results == sorted(results)
        assert [each async for each in tasks.map(double, [], ordered=ordered)] == []
        await until(lambda: names(system) == [])


async def test_an_async_iterator_without_aclose_is_a_source_as_well() -> None:
    class Countdown:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Countdown:
            return self

        async def __anext__(self) -> int:
            if self.left == 0:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        assert [each async for each in tasks.map(double, Countdown())] == [4, 2, 0]


async def test_results_come_in_the_order_of_the_items() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(board.walk, range(3))
        first = await started(anext(results))
        board.gate(2).set()
        board.gate(1).set()
        await until(lambda: len(board.left) == 2)
        assert not first.done()
        board.gate(0).set()
        assert [await first, *[each async for each in results]] == [0, 1, 2]


async def test_unordered_results_come_as_they_are_ready() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(board.walk, range(3), ordered=False)
        for number in (2, 0, 1):
            board.gate(number).set()
            assert await anext(results) == number
        assert [each async for each in results] == []


async def test_nothing_is_taken_before_the_first_result_is_wanted() -> None:
    source = Source()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(double, source.plain())
        await turns()
        assert source.taken == 0
        await results.aclose()
        assert source.taken == 0


@KINDS
@ORDERS
async def test_a_slow_consumer_slows_the_source(kind: str, ordered: bool) -> None:
    source = Source()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(double, read(source, kind), max_concurrency=4, ordered=ordered)
        async with aclosing(results):
            got = 0
            async for _ in results:
                got += 1
                assert source.taken - got <= 4
                await turns(20)
                assert source.taken - got == 4
                if got == 20:
                    break


async def test_no_more_than_max_concurrency_run_at_one_time_and_as_many_as_that_do() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        async with aclosing(tasks.map(board.walk, range(10), max_concurrency=3)) as results:
            first = await started(anext(results))
            await until(lambda: len(board.entered) == 3)
            await turns()
            assert len(board.entered) == 3
            board.gate(1).set()  # finished, and not read: its place is not free
            await until(lambda: 1 in board.left)
            await turns()
            assert board.entered == [0, 1, 2]
            board.gate(0).set()
            assert await first == 0
            await until(lambda: len(board.entered) == 4)


async def test_a_result_is_given_out_while_the_source_makes_its_consumer_wait() -> None:
    async def rare() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()
        yield 2

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        for ordered in (True, False):
            async with aclosing(tasks.map(double, rare(), ordered=ordered)) as results:
                assert await asyncio.wait_for(anext(results), 5) == 2


@pytest.mark.timeout(300)  # 4 s; under coverage on a busy machine 20
@pytest.mark.parametrize("size", [10_000, pytest.param(100_000, marks=pytest.mark.nightly)])
async def test_a_long_source_leaves_memory_flat(size: int) -> None:
    class Item:
        pass

    alive: weakref.WeakSet[Item] = weakref.WeakSet()

    def items() -> Iterator[Item]:
        for _ in range(size):
            item = Item()
            alive.add(item)
            yield item

    async def same(item: Item) -> Item:
        return item

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        count = most = actors = 0
        async for _ in tasks.map(same, items(), max_concurrency=8):
            count += 1
            if count % 97 == 0:
                most, actors = max(most, len(alive)), max(actors, system.statistics().actors)
        assert count == size
        assert most <= 8 + 3  # the window, and those in the hands of source, consumer and a task that ends
        assert actors <= 8 + 2
        gc.collect()
        assert len(alive) <= 1


# -- failure -------------------------------------------------------------------------------------------------------


@KINDS
async def test_a_failing_item_raises_in_its_place_and_cancels_the_rest(kind: str) -> None:
    boom, board, source = Boom(), Board(), Source()

    async def walk(number: int) -> int:
        await board.walk(number)
        if number == 1:
            raise boom
        return number

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        crashes = hear(system.events, "actor.crashed")
        results = tasks.map(walk, read(source, kind), max_concurrency=3)
        first = await started(anext(results))
        await until(lambda: 2 in board.entered)
        board.gate(1).set()
        await until(lambda: 1 in board.left)
        board.gate(0).set()
        assert await first == 0
        await until(lambda: names(system) == ["walk-4"])  # the source is given up before the failure is read
        with pytest.raises(Boom) as raised:
            await anext(results)
        assert raised.value is boom
        assert board.left == {0: "passed", 1: "passed", 2: "cancelled"}
        assert source.taken == 3  # nothing more is taken once an item has failed
        assert source.closed == (kind == "async")
        assert names(system) == []
        assert crashes == []
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_unordered_a_failing_item_raises_as_soon_as_it_fails() -> None:
    board = Board()

    async def walk(number: int) -> int:
        if number == 1:
            raise Boom
        return await board.walk(number)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        with pytest.raises(Boom):
            await anext(tasks.map(walk, range(3), ordered=False))
        assert board.left == {0: "cancelled", 2: "cancelled"}


@ORDERS
async def test_with_return_exceptions_they_are_yielded_in_place_and_nothing_is_cancelled(ordered: bool) -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(odd_fails, range(6), ordered=ordered, return_exceptions=True)
        shown = [("boom", each.args[0]) if isinstance(each, Boom) else each async for each in results]
        expected = [0, ("boom", 1), 2, ("boom", 3), 4, ("boom", 5)]
        assert sorted(map(str, shown)) == sorted(map(str, expected))
        if ordered:
            assert shown == expected


@KINDS
@ORDERS
async def test_an_error_of_the_source_is_raised_after_the_items_before(kind: str, ordered: bool) -> None:
    boom = Boom()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = []
        with pytest.raises(Boom) as raised:
            async for result in tasks.map(double, read(Source(3, boom), kind), ordered=ordered, return_exceptions=True):
                results.append(result)
        assert raised.value is boom
        assert sorted(map(str, results)) == ["0", "2", "4"]
        assert names(system) == []


async def test_a_killed_item_is_a_failure_of_that_item() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(board.walk, range(3), max_concurrency=2, return_exceptions=True)
        first = await started(anext(results))
        await until(lambda: len(board.entered) == 2)
        assert names(system) == ["source-1", "walk-2", "walk-3"]
        system.whereis("tasks")._cell.children["walk-2"].ref.kill()
        error = await first
        assert isinstance(error, ActorStopped)
        assert error.reason == "killed"
        board.gate(1).set()
        board.gate(2).set()
        assert [each async for each in results] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"items": 5}, TypeError, "items=5 is not iterable"),
        ({"items": double}, TypeError, "is not iterable"),
        ({"max_concurrency": 0}, ValueError, "max_concurrency=0"),
        ({"max_concurrency": 2.0}, ValueError, "max_concurrency=2.0"),
        ({"max_concurrency": True}, ValueError, "max_concurrency=True"),
    ],
)
def test_a_wrong_argument_is_named_at_the_call(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskSupervisor().map(double, **({"items": [1]} | arguments))


# -- leaving early -------------------------------------------------------------------------------------------------


@KINDS
@ORDERS
async def test_breaking_out_cancels_the_rest_and_closes_the_source(kind: str, ordered: bool) -> None:
    board, source = Board(), Source()
    board.gate(0).set()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        async with aclosing(tasks.map(board.walk, read(source, kind), max_concurrency=3, ordered=ordered)) as results:
            async for _ in results:
                await until(lambda: len(board.entered) == 4)
                break
        assert board.left == {0: "passed", 1: "cancelled", 2: "cancelled", 3: "cancelled"}
        assert source.closed == (kind == "async")
        assert names(system) == []


async def test_without_aclosing_the_end_of_the_iterator_does_the_same() -> None:
    board, source = Board(), Source()
    board.gate(0).set()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        async for _ in tasks.map(board.walk, source.items(), max_concurrency=2):
            break
        gc.collect()
        await until(lambda: source.closed and names(system) == [])


@KINDS
async def test_cancelling_the_consumer_cancels_the_tasks_and_closes_the_source(kind: str) -> None:
    board, source = Board(), Source()

    async def consume() -> None:
        async for _ in tasks.map(board.walk, read(source, kind), max_concurrency=2):
            pass

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        consumer = asyncio.ensure_future(consume())
        await until(lambda: len(board.entered) == 2)
        consumer.cancel()
        assert isinstance(await outcome(consumer), asyncio.CancelledError)
        assert board.left == {0: "cancelled", 1: "cancelled"}
        assert source.closed == (kind == "async")
        assert names(system) == []


async def test_a_consumer_that_is_cancelled_again_while_the_source_closes_has_cancelled_all_of_it() -> None:
    board, closing, may_close = Board(), asyncio.Event(), asyncio.Event()

    async def items() -> AsyncIterator[int]:
        try:
            for number in range(100):
                yield number
        finally:
            closing.set()
            await may_close.wait()

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        consumer = asyncio.ensure_future(_collect(tasks.map(board.walk, items(), max_concurrency=2)))
        await until(lambda: len(board.entered) == 2)
        consumer.cancel()
        await closing.wait()
        assert not consumer.done()
        consumer.cancel()
        assert isinstance(await outcome(consumer), asyncio.CancelledError)
        await until(lambda: board.left == {0: "cancelled", 1: "cancelled"})
        assert names(system) == ["source-1"]
        may_close.set()
        await until(lambda: names(system) == [])


def test_a_source_that_swallows_its_cancellation_starts_nothing_more() -> None:
    started_items = []

    async def deaf() -> AsyncIterator[int]:
        yield 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield 2

    async def note(number: int) -> int:
        started_items.append(number)
        return number

    async def main() -> None:
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system)
            async with aclosing(tasks.map(note, deaf())) as results:
                assert await anext(results) == 1
                await turns()
            assert names(system) == []
            assert asyncio.get_running_loop().time() == 0.0  # nothing had to be killed
        assert started_items == [1]

    run_virtual(main())


async def test_the_source_is_read_and_closed_in_one_task_and_one_context() -> None:
    topic: contextvars.ContextVar[str] = contextvars.ContextVar("topic")
    seen = set()

    async def items() -> AsyncIterator[int]:
        token = topic.set("inside")
        try:
            async with asyncio.timeout(60):
                for number in range(100):
                    seen.add(asyncio.current_task())
                    yield number
        finally:
            seen.add(asyncio.current_task())
            topic.reset(token)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        topic.set("outside")
        async with aclosing(tasks.map(double, items())) as results:
            assert [await anext(results) for _ in range(10)] == list(range(0, 20, 2))
        assert topic.get() == "outside"
    assert len(seen) == 1


# -- the end of the supervisor -------------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("how", ["stop", "kill", "close"])
@pytest.mark.parametrize("return_exceptions", [True, False])
async def test_the_end_of_the_supervisor_ends_the_map(kind: str, how: str, return_exceptions: bool) -> None:
    board, source = Board(), Source()
    board.gate(0).set()
    results: list[Any] = []

    async def consume() -> None:
        items = read(source, kind)
        async for each in tasks.map(board.walk, items, max_concurrency=2, return_exceptions=return_exceptions):
            results.append(each)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        consumer = asyncio.ensure_future(consume())
        await until(lambda: len(board.entered) == 3)
        if how == "stop":
            await tasks.stop()
        elif how == "kill":
            system.whereis("tasks").kill()
    error = await outcome(consumer)
    assert isinstance(error, ActorStopped)
    assert results[0] == 0
    assert {type(each) for each in results[1:]} <= {ActorStopped}
    assert board.left == {0: "passed", 1: "cancelled", 2: "cancelled"}
    await until(lambda: source.closed == (kind == "async"))


async def test_what_had_finished_is_read_after_the_end_of_the_supervisor() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results = tasks.map(double, range(100), max_concurrency=4)
        assert await anext(results) == 0
        await turns()
        await tasks.stop()
        read_later = []
        with pytest.raises(ActorStopped):
            async for each in results:
                read_later.append(each)
        assert read_later == [2, 4, 6, 8]


async def test_a_drain_lets_the_items_under_way_finish_and_takes_no_more() -> None:
    board, source, results = Board(), Source(), []

    async def consume() -> None:
        async for each in tasks.map(board.walk, source.items(), max_concurrency=2):
            results.append(each)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        consumer = asyncio.ensure_future(consume())
        await until(lambda: len(board.entered) == 2)
        stop = await started(tasks.stop(drain=math.inf))
        await until(lambda: source.closed)
        assert not stop.done()
        board.gate(0).set()
        board.gate(1).set()
        await stop
        assert isinstance(await outcome(consumer), ActorStopped)
        assert results == [0, 1]
        assert source.taken == 2


async def test_a_map_does_not_go_on_in_the_next_incarnation() -> None:
    tasks, board = TaskSupervisor(), Board()
    async with ActorSystem() as system:
        await system.spawn(Supervisor, [tasks.child_spec()])
        ref = system.whereis("tasks")
        first = await started(anext(tasks.map(board.walk, range(3))))
        await until(lambda: len(board.entered) == 3)
        ref.kill()
        assert isinstance(await outcome(first), ActorStopped)
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        assert [each async for each in tasks.map(double, range(3))] == [0, 2, 4]


async def test_before_the_start_a_map_fails_with_its_first_item() -> None:
    with pytest.raises(NotStarted):
        await anext(TaskSupervisor().map(double, [1]))


# -- max_tasks -----------------------------------------------------------------------------------------------------


async def test_with_max_tasks_reached_items_wait_for_room() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=2).start(system)
        held = await started(tasks.run(board.walk, 100))
        other = await started(tasks.run(board.walk, 101))
        results = asyncio.ensure_future(_collect(tasks.map(board.walk, range(4))))
        await turns()
        assert board.entered == [100, 101]
        for number in range(4):
            board.gate(number).set()
        board.gate(100).set()
        assert await asyncio.wait_for(results, 5) == [0, 1, 2, 3]
        board.gate(101).set()
        assert [await held, await other] == [100, 101]


async def test_items_that_wait_for_room_are_given_up_with_their_map() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=1).start(system)
        held = await started(tasks.run(board.walk, 100))
        consumer = await started(_collect(tasks.map(board.walk, range(4))))
        await turns()
        consumer.cancel()
        assert isinstance(await outcome(consumer), asyncio.CancelledError)
        board.gate(100).set()
        assert await held == 100
        await turns()
        assert board.entered == [100]
        assert await tasks.run(double, 1) == 2


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_items_that_wait_for_room_are_told_of_the_end_of_the_supervisor(how: str) -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=1).start(system)
        held = await started(tasks.run(board.walk, 100))
        consumer = await started(_collect(tasks.map(board.walk, range(4))))
        await turns()
        if how == "stop":
            await tasks.stop()
        else:
            system.whereis("tasks").kill()
        assert isinstance(await outcome(consumer), ActorStopped)
        assert isinstance(await outcome(held), ActorStopped)
        assert board.entered == [100]


async def test_items_that_wait_for_room_are_told_at_once_that_a_drain_takes_no_more() -> None:
    board = Board()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=1).start(system)
        held = await started(tasks.run(board.walk, 100))
        consumer = await started(_collect(tasks.map(board.walk, range(4))))
        await turns()
        stop = await started(tasks.stop(drain=math.inf))
        assert isinstance(await outcome(consumer), ActorStopped)
        assert not held.done()
        board.gate(100).set()
        assert await held == 100
        await stop


async def test_a_map_within_a_task_that_could_wait_for_ever_fails_instead() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=2).start(system)

        async def outer(number: int) -> list[int]:
            return await _collect(tasks.map(double, range(number)))

        results = [each async for each in tasks.map(outer, [3, 3], return_exceptions=True)]
        assert [type(each) for each in results] == [MaxChildrenReached, MaxChildrenReached]
        assert [each async for each in tasks.map(outer, [3, 3], max_concurrency=1)] == [[0, 2, 4], [0, 2, 4]]


# -- in handlers, and from elsewhere -------------------------------------------------------------------------------


def test_items_inherit_the_deadline_of_the_message_being_handled() -> None:
    async def main() -> None:
        board = Board()
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system)
            worker = await system.spawn(Worker)
            with pytest.raises(AskTimeout):
                await worker.with_options(timeout=2.0).ask(
                    Worker.call, lambda _: _collect(tasks.map(board.walk, range(3)))
                )
            await turns(20)
            assert asyncio.get_running_loop().time() == 2.0
            assert board.left == dict.fromkeys(range(3), "cancelled")
            assert names(system) == []

    run_virtual(main())


async def test_an_item_whose_deadline_has_passed_before_it_begins_is_not_run_and_leaves_no_actor() -> None:
    board = Board()

    def late() -> Iterator[int]:
        time.sleep(0.03)  # blocks the event loop until the message has expired
        yield 1

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        worker = await system.spawn(Worker)
        with pytest.raises(AskTimeout):
            await worker.with_options(timeout=0.01).ask(Worker.call, lambda _: _collect(tasks.map(board.walk, late())))
        await until(lambda: names(system) == [])
    assert board.entered == []


@KINDS
async def test_an_item_that_asks_the_actor_which_waits_for_it_is_told_of_the_cycle(kind: str) -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        worker = await system.spawn(Worker)

        async def ask_back(number: int) -> int:
            return await worker.ask(Worker.add, number)

        async def consume(_: Worker) -> Any:
            return await _collect(tasks.map(ask_back, read(Source(3), kind), return_exceptions=True))

        assert [type(each) for each in await worker.ask(Worker.call, consume)] == [AskCycleError] * 3


async def test_a_source_that_asks_the_actor_which_waits_for_it_is_told_of_the_cycle() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        worker = await system.spawn(Worker)

        async def items() -> AsyncIterator[int]:
            yield await worker.ask(Worker.add, 1)

        with pytest.raises(AskCycleError):
            await worker.ask(Worker.call, lambda _: _collect(tasks.map(double, items())))


async def test_items_see_the_consumers_context_variables() -> None:
    topic: contextvars.ContextVar[str] = contextvars.ContextVar("topic")

    async def read_topic(_: int) -> str:
        return topic.get()

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        topic.set("theatre")
        assert [each async for each in tasks.map(read_topic, range(2))] == ["theatre", "theatre"]


@KINDS
@ORDERS
async def test_from_another_event_loop_the_source_is_read_there_and_the_functions_run_at_home(
    kind: str, ordered: bool
) -> None:
    source, ran = Source(50), set()

    async def where(number: int) -> int:
        ran.add(threading.get_ident())
        await asyncio.sleep(0)
        return number

    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=5).start(system)

        async def work() -> tuple[int, list[int]]:
            return threading.get_ident(), await _collect(tasks.map(where, read(source, kind), ordered=ordered))

        there, results = await elsewhere(work)
        assert sorted(results) == list(range(50))
        assert ran == {threading.get_ident()}
        assert source.threads == ({there} if kind == "async" else set())
        await until(lambda: names(system) == [])


async def test_leaving_early_on_another_event_loop_cancels_the_rest_and_closes_the_source() -> None:
    board, source = Board(), Source()
    board.gate(0).set()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)

        async def work() -> bool:
            async with aclosing(tasks.map(board.walk, source.items(), max_concurrency=2)) as results:
                assert await anext(results) == 0
                await until(lambda: len(board.entered) == 3)
            return source.closed

        assert await elsewhere(work)
        await until(lambda: board.left == {0: "passed", 1: "cancelled", 2: "cancelled"})
        await until(lambda: names(system) == [])


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_the_end_of_the_supervisor_ends_a_map_on_another_event_loop(how: str) -> None:
    board, source = Board(), Source()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)

        async def work() -> bool:
            with pytest.raises(ActorStopped):
                await _collect(tasks.map(board.walk, source.items(), max_concurrency=2))
            return source.closed

        consumer = asyncio.ensure_future(elsewhere(work))
        await until(lambda: len(board.entered) == 2)
        if how == "stop":
            await tasks.stop()
        else:
            system.whereis("tasks").kill()
        assert await asyncio.wait_for(consumer, 5)
        assert board.left == {0: "cancelled", 1: "cancelled"}


async def test_an_event_loop_that_ends_in_the_middle_of_its_map_leaves_nothing() -> None:
    board, closed = Board(), threading.Event()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 0
            yield 1
            await asyncio.Event().wait()
        finally:
            closed.set()

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)

        async def work() -> None:
            consumer = asyncio.ensure_future(_collect(tasks.map(board.walk, numbers())))
            await until(lambda: len(board.entered) == 2)
            assert not consumer.done()  # and is cancelled by the end of asyncio.run

        await elsewhere(work)
        assert closed.is_set()
        await until(lambda: names(system) == [])
        assert board.left == {0: "cancelled", 1: "cancelled"}


async def _collect(results: AsyncIterator[Any]) -> list[Any]:
    return [each async for each in results]


async def test_after_a_failure_what_the_source_still_gives_is_not_begun() -> None:
    begun: list[int] = []
    first, more = asyncio.Event(), asyncio.Event()

    async def judge(item: int) -> int:
        begun.append(item)
        if item == 1:
            more.set()
            raise Boom
        await first.wait()
        return item

    async def source() -> AsyncIterator[int]:
        yield 0
        yield 1
        await more.wait()
        first.set()
        yield 2

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        results: list[int] = []
        with pytest.raises(Boom):
            async for result in tasks.map(judge, source(), max_concurrency=8):
                results.append(result)
    assert results == [0]
    assert begun == [0, 1]


async def test_a_generator_exit_of_a_task_or_of_the_source_ends_the_map() -> None:
    async def leave(item: int) -> int:
        raise GeneratorExit

    async def source() -> AsyncIterator[int]:
        yield 1
        raise GeneratorExit

    async def same(item: int) -> int:
        return item

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        for results in (tasks.map(leave, [1, 2]), tasks.map(same, source())):
            with pytest.raises(ActorStopped):
                async with asyncio.timeout(60):
                    async for _ in results:
                        pass
