"""Subscriptions: order, overflow, cancellation, loops and threads."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import pytest

from promptside.events import Event, EventBus, Subscription


async def take(stream: Subscription, count: int) -> list[int]:
    """Return `seq` of the next events."""
    return [(await anext(stream)).seq for _ in range(count)]


async def rest(stream: Subscription) -> list[int]:
    """Return `seq` of every event up to the end of the stream."""
    return [event.seq async for event in stream]


async def waits(task: asyncio.Task[object]) -> None:
    """Let everything run that can, and state that the task still waits."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


@asynccontextmanager
async def waiting_consumer(
    count: int, pattern: str = "*", **options: Any
) -> AsyncIterator[tuple[EventBus, Subscription, asyncio.Task[list[int]]]]:
    """A bus, a subscription, and a task that waits for its next events."""
    bus = EventBus()
    async with bus.subscribe(pattern, **options) as stream:
        consumer = asyncio.create_task(take(stream, count))
        await waits(consumer)
        yield bus, stream, consumer


async def test_a_subscriber_gets_what_matches_in_order_and_only_inside_its_block() -> None:
    bus = EventBus()
    bus.publish("lm.call.started", "/before")

    async with bus.subscribe("lm.*") as stream:
        bus.publish("lm.call.started", "/a")
        bus.publish("tool.started", "/b")
        bus.publish("lm.call.stopped", "/c")
        received = [await anext(stream), await anext(stream)]
    bus.publish("lm.call.started", "/after")

    assert [(event.seq, event.source) for event in received] == [(2, "/a"), (4, "/c")]
    assert await rest(stream) == []
    assert stream.dropped == 0


async def test_the_default_pattern_is_everything() -> None:
    bus = EventBus()
    async with bus.subscribe() as stream:
        bus.publish("a", "/")
        bus.publish("b.c.d", "/")
        assert await take(stream, 2) == [1, 2]


async def test_seq_counts_events_without_a_listener_and_has_no_gaps() -> None:
    bus = EventBus()
    async with bus.subscribe("b") as stream:
        for name in ("a", "b", "a", "a", "b"):
            bus.publish(name, "/")
        assert await take(stream, 2) == [2, 5]
    async with bus.subscribe() as stream:
        for name in ("a", "b", "c"):
            bus.publish(name, "/")
        assert await take(stream, 3) == [6, 7, 8]


async def test_a_consumer_that_waits_is_woken_by_the_next_event() -> None:
    async with waiting_consumer(2) as (bus, _, consumer):
        bus.publish("a", "/")
        await waits(consumer)
        bus.publish("a", "/")
        assert await consumer == [1, 2]


async def test_a_slow_subscriber_loses_only_its_own_oldest_events() -> None:
    bus = EventBus()
    async with bus.subscribe(max_queue=3) as slow, bus.subscribe(max_queue=10) as roomy:
        for _ in range(10):
            bus.publish("a", "/")

        assert (slow.dropped, roomy.dropped) == (7, 0)
        assert await take(slow, 3) == [8, 9, 10]
        assert await take(roomy, 10) == list(range(1, 11))


async def test_drop_newest_keeps_what_is_queued_and_counts_the_rest() -> None:
    bus = EventBus()
    async with bus.subscribe(max_queue=3, overflow="drop_newest") as stream:
        for _ in range(5):
            bus.publish("a", "/")
        assert stream.dropped == 2
        assert await take(stream, 3) == [1, 2, 3]
        bus.publish("a", "/")
        assert await take(stream, 1) == [6]
        assert stream.dropped == 2


async def test_a_queue_of_one_wakes_its_consumer_with_the_newest_event() -> None:
    async with waiting_consumer(1, max_queue=1) as (bus, stream, consumer):
        bus.publish("a", "/")
        bus.publish("a", "/")
        assert await consumer == [2]
        assert stream.dropped == 1


@pytest.mark.parametrize("max_queue", [0, -1])
def test_a_queue_without_room_is_refused(max_queue: int) -> None:
    with pytest.raises(ValueError, match=f"subscribe: max_queue={max_queue}: give a whole number >= 1"):
        EventBus().subscribe(max_queue=max_queue)


def test_an_unknown_policy_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"overflow='block'.*drop_oldest, drop_newest"):
        EventBus().subscribe(overflow="block")  # type: ignore[arg-type]


async def test_a_consumer_cancelled_while_it_waits_loses_nothing() -> None:
    async with waiting_consumer(1) as (bus, stream, consumer):
        consumer.cancel()
        bus.publish("a", "/")
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert await take(stream, 1) == [1]


async def test_a_consumer_cancelled_between_its_event_and_its_next_step_loses_nothing() -> None:
    async with waiting_consumer(1) as (bus, stream, consumer):
        bus.publish("a", "/")
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        bus.publish("a", "/")
        assert await take(stream, 2) == [1, 2]


async def test_one_cancelled_subscriber_leaves_the_delivery_to_the_others_whole() -> None:
    bus = EventBus()
    async with bus.subscribe() as first, bus.subscribe() as second, bus.subscribe() as third:
        consumers = [asyncio.create_task(take(stream, 2)) for stream in (first, second, third)]
        for consumer in consumers:
            await waits(consumer)
        bus.publish("a", "/")
        consumers[1].cancel()
        bus.publish("a", "/")
        assert await consumers[0] == [1, 2]
        assert await consumers[2] == [1, 2]
        with pytest.raises(asyncio.CancelledError):
            await consumers[1]


async def test_an_exception_in_the_body_unsubscribes() -> None:
    bus = EventBus()

    async def fail() -> None:
        async with bus.subscribe():
            assert bus.wants("a")
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert not bus.wants("a")


async def test_close_gives_what_is_queued_and_then_ends() -> None:
    bus = EventBus()
    async with bus.subscribe() as stream:
        bus.publish("a", "/")
        stream.close()
        stream.close()
        bus.publish("a", "/")
        assert await rest(stream) == [1]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_close_ends_a_consumer_that_waits() -> None:
    bus = EventBus()
    async with bus.subscribe() as stream:
        consumer = asyncio.create_task(rest(stream))
        await waits(consumer)
        await asyncio.to_thread(stream.close)
        assert await consumer == []


async def test_two_readers_of_one_subscription_must_subscribe_twice() -> None:
    async with waiting_consumer(1, "lm.*") as (bus, stream, consumer):
        with pytest.raises(RuntimeError, match=r"two tasks.*'lm\.\*'"):
            await anext(stream)
        bus.publish("lm.call.started", "/")
        assert await consumer == [1]


async def test_a_reader_that_takes_the_event_of_a_woken_one_leaves_it_waiting_for_the_next() -> None:
    async with waiting_consumer(1) as (bus, stream, consumer):
        bus.publish("a", "/")
        assert await take(stream, 1) == [1]
        await waits(consumer)
        bus.publish("a", "/")
        assert await consumer == [2]


async def test_reading_without_entering_is_refused() -> None:
    with pytest.raises(RuntimeError, match="outside the loop of its `async with`"):
        await anext(EventBus().subscribe())


async def test_a_subscription_is_entered_once() -> None:
    bus = EventBus()
    stream = bus.subscribe()
    async with stream:
        with pytest.raises(RuntimeError, match="opened before"):
            await stream.__aenter__()
        assert bus.wants("a")
    with pytest.raises(RuntimeError, match="opened before"):
        await stream.__aenter__()
    assert not bus.wants("a")


async def test_a_subscription_closed_before_it_is_entered_is_not_entered() -> None:
    bus = EventBus()
    stream = bus.subscribe()
    stream.close()
    with pytest.raises(RuntimeError, match="opened before"):
        await stream.__aenter__()
    assert not bus.wants("a")


async def test_a_second_reader_is_not_robbed_of_its_wake_up_by_the_first() -> None:
    bus = EventBus()

    async def publish() -> None:
        bus.publish("a", "/")

    async with bus.subscribe() as stream, asyncio.timeout(10):
        first = asyncio.create_task(take(stream, 1))
        await waits(first)
        bus.publish("a", "/")  # the first reader is on_cancel, and runs once this one waits
        assert await take(stream, 1) == [1]
        publisher = asyncio.create_task(publish())  # runs after the first reader
        assert await take(stream, 1) == [2]
        await publisher
        with pytest.raises(RuntimeError, match="two tasks"):
            await first


async def test_leaving_during_a_publish_is_safe_for_everyone() -> None:
    bus = EventBus()
    async with bus.subscribe() as leaving, bus.subscribe() as staying:
        bus.on("a", lambda event: leaving.close())
        bus.publish("a", "/")
        bus.publish("a", "/")
        assert await rest(leaving) == [1]
        assert await take(staying, 2) == [1, 2]


async def test_events_published_in_a_thread_wake_the_subscriber() -> None:
    async with waiting_consumer(3) as (bus, stream, consumer):

        def publish() -> None:
            for _ in range(3):
                bus.publish("a", "/thread")

        await asyncio.to_thread(publish)
        assert await consumer == [1, 2, 3]

        again = asyncio.create_task(take(stream, 3))
        await waits(again)
        await asyncio.to_thread(publish)
        async with asyncio.timeout(10):
            assert await again == [4, 5, 6]


async def test_many_threads_give_every_subscriber_one_growing_sequence_without_gaps() -> None:
    bus = EventBus()
    threads, each = 4, 500
    start = threading.Barrier(threads)

    def publish() -> None:
        start.wait()
        for number in range(each):
            bus.publish(f"t.{number % 3}", "/thread")

    async with bus.subscribe(max_queue=threads * each) as all_of_them, bus.subscribe("t.1", max_queue=10_000) as some:
        consumer = asyncio.create_task(take(all_of_them, threads * each))
        with ThreadPoolExecutor(threads) as pool:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(pool, publish) for _ in range(threads)))
        assert await consumer == list(range(1, threads * each + 1))
        some.close()
        received = await rest(some)
        assert received == sorted(received)
        assert len(received) == threads * len(range(1, each, 3))


async def test_a_consumer_and_a_publisher_in_two_threads_lose_nothing_but_what_is_counted() -> None:
    bus = EventBus()
    total = 3000
    async with bus.subscribe(max_queue=1) as stream:

        def publish() -> None:
            for _ in range(total):
                bus.publish("a", "/thread")
            stream.close()

        publisher = asyncio.create_task(asyncio.to_thread(publish))
        received = await rest(stream)
        await publisher
    assert received == sorted(set(received))
    assert received[-1] == total
    assert len(received) + stream.dropped == total


async def test_the_bound_holds_while_the_subscribers_loop_is_blocked() -> None:
    bus = EventBus()
    loop = asyncio.get_running_loop()
    calls = 0
    original = loop.call_soon_threadsafe

    def count(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return original(*args, **kwargs)  # type: ignore[arg-type]

    def publish() -> None:
        for _ in range(100):
            bus.publish("a", "/thread")

    async with bus.subscribe(max_queue=10) as stream:
        consumer = asyncio.create_task(take(stream, 10))
        await waits(consumer)
        loop.call_soon_threadsafe = count  # type: ignore[method-assign, assignment]
        publisher = threading.Thread(target=publish)
        publisher.start()
        publisher.join()  # the loop is blocked here
        loop.call_soon_threadsafe = original  # type: ignore[method-assign]

        assert stream.dropped == 90
        assert calls == 1, "one wake-up, not one callback for each event"
        assert await consumer == list(range(91, 101))


async def test_subscribers_of_two_loops_each_get_everything() -> None:
    bus = EventBus()
    entered = threading.Event()

    async def listen() -> list[int]:
        async with bus.subscribe() as stream:
            entered.set()
            return await take(stream, 3)

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, listen()))
    async with bus.subscribe() as stream:
        await asyncio.to_thread(entered.wait)
        for _ in range(3):
            bus.publish("a", "/")
        assert await take(stream, 3) == [1, 2, 3]
        assert await other == [1, 2, 3]


class TakenBetween(deque[Event]):
    """A queue whose other side takes everything between one side's look at it and its next step."""

    armed = True

    def __len__(self) -> int:
        length = super().__len__()
        if self.armed:
            self.armed = False
            self.clear()
        return length


async def test_batches_hold_all_that_was_queued_in_order_and_wait_for_more() -> None:
    bus = EventBus()
    async with bus.subscribe() as stream:
        batches = stream.batches()
        for _ in range(3):
            bus.publish("a", "/")
        assert [event.seq for event in await anext(batches)] == [1, 2, 3]
        waiting = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        assert not waiting.done()
        bus.publish("a", "/")
        assert [event.seq for event in await waiting] == [4]
        bus.publish("a", "/")
    assert [[event.seq for event in batch] async for batch in batches] == [[5]]


async def test_batches_lose_nothing_to_publishers_in_other_threads() -> None:
    bus = EventBus()
    events, threads = 2_000, 4

    def publish() -> None:
        for _ in range(events):
            bus.publish("a", "/")

    async with bus.subscribe(max_queue=events * threads) as stream:
        publishing = asyncio.gather(*(asyncio.to_thread(publish) for _ in range(threads)))
        seen: list[int] = []
        async for batch in stream.batches():
            seen += [event.seq for event in batch]
            if len(seen) == events * threads:
                break
        await publishing
    assert seen == list(range(1, events * threads + 1))


def publish_and_take_between(bus: EventBus, stream: Subscription) -> None:
    bus.publish("a", "/")
    stream._queue = TakenBetween(stream._queue)
    bus._routes.clear()  # which hold the queue


async def test_a_full_queue_emptied_by_its_consumer_in_the_meantime_drops_nothing() -> None:
    bus = EventBus()
    async with bus.subscribe(max_queue=1) as stream:
        publish_and_take_between(bus, stream)
        bus.publish("a", "/")
        assert stream.dropped == 0
        assert await take(stream, 1) == [2]


async def test_a_consumer_whose_only_event_is_replaced_in_the_meantime_gets_the_next() -> None:
    bus = EventBus()
    async with bus.subscribe(max_queue=1) as stream:
        publish_and_take_between(bus, stream)
        consumer = asyncio.create_task(take(stream, 1))
        await waits(consumer)
        bus.publish("a", "/")
        assert await consumer == [2]


async def test_an_event_published_by_a_thread_while_the_consumer_goes_to_sleep_is_not_slept_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bus = EventBus()
    loop = asyncio.get_running_loop()
    create_future = loop.create_future

    def publish_first() -> asyncio.Future[object]:
        monkeypatch.setattr(loop, "create_future", create_future)
        publisher = threading.Thread(target=bus.publish, args=("a", "/thread"))
        publisher.start()
        publisher.join()
        return create_future()

    async with bus.subscribe() as stream, asyncio.timeout(10):
        monkeypatch.setattr(loop, "create_future", publish_first)
        assert await take(stream, 1) == [1]


async def test_nothing_arrives_after_close_has_returned_even_from_a_publish_under_way() -> None:
    bus = EventBus()
    async with bus.subscribe() as stream:
        lock = bus._lock

        class CloseFirst:
            """A lock before which another thread closes the subscription."""

            def __enter__(self) -> None:
                bus._lock = lock
                stream.close()
                lock.acquire()

            def __exit__(self, *_: object) -> None:
                lock.release()

        bus.publish("a", "/")  # so that the listeners of this type are known
        bus._lock = CloseFirst()  # type: ignore[assignment]
        bus.publish("a", "/")
        assert await rest(stream) == [1]


async def test_a_loop_closed_between_the_look_and_the_wake_up_is_no_failure_of_the_publisher(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bus = EventBus()
    loop = asyncio.get_running_loop()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("Event loop is closed")

    async with bus.subscribe() as stream:
        consumer = asyncio.create_task(take(stream, 1))
        await waits(consumer)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "call_soon_threadsafe", refuse)
            publisher = threading.Thread(target=bus.publish, args=("a", "/thread"))
            publisher.start()
            publisher.join()
        assert not bus.wants("a")
        assert stream.dropped == 1
        assert "event loop is closed" in caplog.text
        consumer.cancel()


def abandon(bus: EventBus, pattern: str) -> Subscription:
    """Return a subscription whose loop is closed and which was never left."""
    stream = bus.subscribe(pattern)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(stream.__aenter__())
    loop.close()
    return stream


def test_a_subscriber_whose_loop_is_closed_is_dropped_and_the_others_get_events(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = EventBus()
    stream = abandon(bus, "a")
    received: list[Event] = []
    bus.on("*", received.append)

    bus.publish("a", "/")
    bus.publish("a", "/")

    assert [event.seq for event in received] == [1, 2]
    assert stream.dropped == 1, "the second was not even queued"
    assert [record.name for record in caplog.records] == ["promptside.events"]
    assert "event loop is closed" in caplog.text


def test_a_crash_whose_only_listener_has_a_dead_loop_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    abandon(bus, "actor.*")

    bus.publish("actor.crashed", "/worker", {"reason": "boom"})

    assert [(r.name, r.levelno) for r in caplog.records if r.name == "promptside"] == [("promptside", logging.ERROR)]
