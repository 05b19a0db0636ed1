"""What listeners, files and threads do to the event system at the worst moment, and that nobody else loses by it."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from promptside.events import Event, EventBus, Subscription, read
from promptside.events.content import project
from promptside.events.log import log_file
from promptside.events.sinks import JSONLSink, PrometheusMetrics, SQLiteSink, StructlogSink
from promptside.events.sinks import sink as sinks
from tests.support.actors import until
from tests.support.sinks import BOTH, QUICK, Durable, log, publish, writers

# -- subscriptions -----------------------------------------------------------------------------------------------------


def test_a_thread_without_a_loop_wakes_the_consumers_of_several_loops() -> None:
    bus, received = EventBus(), []

    async def consume() -> None:
        async with bus.subscribe("a") as stream:
            with suppress(TimeoutError):
                received.append((await asyncio.wait_for(anext(stream), 30)).seq)

    consumers = [threading.Thread(target=asyncio.run, args=(consume(),)) for _ in range(2)]
    for consumer in consumers:
        consumer.start()
    end = time.monotonic() + 30
    while len(bus._idle) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    bus.publish("a", "/thread")
    for consumer in consumers:
        consumer.join()

    assert received == [1, 1]


async def test_consumers_on_other_loops_that_come_and_go_miss_nothing_between() -> None:
    """Every consumer reads a stretch of events, one or many at a time, some of its waits cancelled in the middle."""
    bus, over, wrong = EventBus(), threading.Event(), []

    async def consume(chance: random.Random) -> None:
        async with bus.subscribe("a", max_queue=1_000_000) as stream:
            seqs: list[int] = []
            while len(seqs) < 50:
                outage_timeout = chance.choice([0.0001, 5.0])
                try:
                    async with asyncio.timeout(outage_timeout):
                        seqs += await some(stream, many=chance.random() < 0.5)
                except TimeoutError:
                    if outage_timeout > 1:
                        wrong.append(f"asleep over {len(stream._queue)} events")
                        return
            if seqs != list(range(seqs[0], seqs[0] + len(seqs))):
                wrong.append(f"a gap in {seqs}")

    async def some(stream: Subscription, *, many: bool) -> list[int]:
        if not many:
            return [(await anext(stream)).seq]
        batches = stream.batches()
        try:
            return [event.seq for event in await anext(batches)]
        finally:
            await batches.aclose()

    async def come_and_go(seed: int) -> None:
        everybody.wait(20)
        chance = random.Random(seed)
        for _ in range(30):
            await asyncio.gather(*(consume(chance) for _ in range(3)))
            if wrong:
                return

    def publish_on() -> None:
        everybody.wait(20)
        while not over.is_set():
            publish(bus, 5, "a")
            time.sleep(0.0005)

    interval = sys.getswitchinterval()
    # Not before every thread has begun: the tracer of coverage cannot be set by two at a time.
    everybody = threading.Barrier(8 + 3, lambda: sys.setswitchinterval(1e-5))
    publishers = [threading.Thread(target=publish_on) for _ in range(8)]
    try:
        for publisher in publishers:
            publisher.start()
        async with asyncio.timeout(40):
            await asyncio.gather(*(asyncio.to_thread(asyncio.run, come_and_go(seed)) for seed in range(3)))
    finally:
        over.set()
        sys.setswitchinterval(interval)
        for publisher in publishers:
            publisher.join()

    assert wrong == []
    assert (bus._subscriptions, bus._idle) == ((), set())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_consumer_whose_loop_is_closed_while_it_waits_is_let_go() -> None:
    bus = EventBus()

    async def consume() -> None:
        async with bus.subscribe("a") as stream:
            await anext(stream)

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # of the task that is destroyed while it waits
    task = loop.create_task(consume())
    loop.run_until_complete(asyncio.sleep(0))
    assert not task.done()
    loop.close()
    bus.publish("a", "/")

    assert (bus._subscriptions, bus._idle) == ((), set())


class Finalized:
    """Garbage in a cycle, which tells its end on the bus, in the middle of whatever is running."""

    def __init__(self, bus: EventBus) -> None:
        self.bus, self.itself = bus, self

    def __del__(self) -> None:
        self.bus.publish("a", "/finalizer")


async def test_finalizers_that_publish_within_a_publish_lose_no_event() -> None:
    bus, received = EventBus(), [0, 0]

    async def consume(number: int) -> None:
        async with bus.subscribe("a", max_queue=10_000) as stream:
            async for _ in stream:
                received[number] += 1

    consumers = [asyncio.create_task(consume(number)) for number in range(2)]
    await asyncio.sleep(0)
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(500):
            Finalized(bus)
            publish(bus, 1, "a")
            await asyncio.sleep(0)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    await bus.aclose()
    await asyncio.gather(*consumers)

    assert received == [1000, 1000]


# -- sinks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sink_class", BOTH)
@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_log_that_is_moved_takes_its_events_with_it(sink_class: Durable, goes_on: bool, tmp_path: Path) -> None:
    bus, path, moved = EventBus(), tmp_path / "log", tmp_path / "log.1"
    sink = await sink_class(path, **QUICK).start(bus)
    publish(bus, 5)
    await until(lambda: sink.written == 5)
    path.rename(moved)
    if goes_on:
        publish(bus, 5)
    await sink.stop()

    assert [event.seq for event in log(moved)] == [1, 2, 3, 4, 5]
    assert not goes_on or [event.seq for event in log(path)] == [6, 7, 8, 9, 10]


async def test_a_log_whose_first_line_is_longer_than_what_is_looked_at_is_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "MAX_LINE", 1000)
    bus, path = EventBus(), tmp_path / "log"
    sink = await JSONLSink(path).start(bus)
    bus.publish("a", "/", {"text": "x" * 2000})
    publish(bus, 1)
    await sink.stop()

    assert [event.seq for event in log(path)] == [1, 2]


async def test_following_goes_on_in_a_file_that_is_cut_off_under_it(tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await JSONLSink(path, **QUICK).start(bus)
    publish(bus, 5)
    await until(lambda: sink.written == 5)
    events = read(path, follow=True, until=time.time() + 60)
    assert [next(events).seq for _ in range(5)] == [1, 2, 3, 4, 5]
    os.truncate(path, 0)  # as logrotate's `copytruncate`
    publish(bus, 2)
    await until(lambda: sink.written == 7)

    assert await asyncio.to_thread(lambda: [event.seq for event in islice(events, 2)]) == [6, 7]
    await sink.stop()


async def test_sinks_that_are_stuck_end_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "STUCK_GRACE", 0.3)
    bus = EventBus()
    source, target = os.pipe()
    streams = [os.fdopen(os.dup(target), "w") for _ in range(4)]
    started = [await StructlogSink(stream, flush_timeout=0.2, interval=0).start(bus) for stream in streams]
    publish(bus, 3000)  # more than the pipe holds, and nobody reads
    loop = asyncio.get_running_loop()
    before = loop.time()
    await bus.aclose()
    took = loop.time() - before
    os.close(source)
    os.close(target)
    await until(lambda: all(sink.ended.done() for sink in started))
    for stream in streams:
        with suppress(BrokenPipeError):
            stream.close()

    assert 0.5 <= took < 1.8, "one after another they take 2 s"


async def test_a_sink_that_gets_no_thread_is_not_left_on_the_bus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = EventBus()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            await SQLiteSink(tmp_path / "log").start(bus)

    assert not bus.wants("a")
    async with asyncio.timeout(1):
        await bus.aclose()
    assert "promptside-sink/log" not in writers()  # those of other tests may be ending


# -- metrics and content -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [{"tool": "odd", "seconds": 10**400}, {"tool": 10**5000}, ["odd"]])
async def test_an_event_that_cannot_be_counted_hides_no_other_and_counts_none_twice(data: Any) -> None:
    registry, bus = CollectorRegistry(), EventBus()
    metrics = await PrometheusMetrics(registry, flush_timeout=0.2, interval=0.01).start(bus)
    publish_tool(bus, {"tool": "before", "seconds": 1.0})
    publish_tool(bus, data)
    publish_tool(bus, {"tool": "after", "seconds": 1.0})
    await until(lambda: metrics.written == 3 or metrics.error)

    for tool in ("before", "after"):
        assert registry.get_sample_value("promptside_tool_calls_total", {"tool": tool, "outcome": "answered"}) == 1
    assert metrics.error is None
    await bus.aclose()


async def test_a_name_that_is_no_unicode_fails_no_scrape() -> None:
    registry, bus = CollectorRegistry(), EventBus()
    metrics = await PrometheusMetrics(registry, interval=0.01).start(bus)
    publish_tool(bus, {"tool": "half \ud800", "seconds": 1.0})
    await until(lambda: metrics.written == 1)

    assert b'tool="half ?"' in generate_latest(registry)
    await bus.aclose()


def publish_tool(bus: EventBus, data: Any) -> None:
    bus.publish("tool.stopped", "atlas/forward", data)


class Long(list[int]):
    """A list that counts how many of its items are looked at."""

    seen = 0

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.seen += 1
            yield item


def test_a_list_of_millions_costs_no_more_than_what_is_copied_of_it() -> None:
    long = Long(range(1_000_000))
    copied = project(long)

    assert copied[-1] == f"<{1_000_000 - (len(copied) - 1)} more>"
    assert long.seen < 2000


# -- memory ------------------------------------------------------------------------------------------------------------


async def test_a_subscriber_that_never_reads_costs_its_queue_and_no_other_events(tmp_path: Path) -> None:
    bus = EventBus()
    plain: list[Event] = []
    bus.on("*", plain.append)
    await SQLiteSink(tmp_path / "log").start(bus)
    async with bus.subscribe(max_queue=10) as never, bus.subscribe(max_queue=10_000) as other:
        publish(bus, 5000)
        assert (len(never._queue), never.dropped, other.dropped) == (10, 4990, 0)
    await bus.aclose()

    assert [event.seq for event in plain] == [event.seq for event in log(tmp_path / "log")] == list(range(1, 5001))
    assert [event.seq async for event in other] == list(range(1, 5001))
