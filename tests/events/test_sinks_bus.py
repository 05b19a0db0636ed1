"""Sinks at the bus: what publishers and other listeners notice, the start, the end and cancellation."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from promptside.events import Event, EventBus, read
from promptside.events.sinks import JSONLSink, OpenTelemetrySpans, PrometheusMetrics, Sink, SQLiteSink, StructlogSink
from tests.support.actors import turns, until
from tests.support.sinks import accounted, publish, writers


class Slow(Sink):
    """Writes into a list, and only while its gate is open."""

    def __init__(self, *, is_open: bool = True, opens: bool = True, **options: float) -> None:
        super().__init__("slow", interval=0, **options)  # type: ignore[arg-type]
        self.events: list[Event] = []
        self.gate = threading.Event()
        self.opening = threading.Event()
        if is_open:
            self.gate.set()
        if opens:
            self.opening.set()
        self.closes = 0

    def _open(self) -> None:
        assert self.opening.wait(10)

    def _write(self, events: Sequence[Event]) -> None:
        assert self.gate.wait(10)
        self.events += events

    def _close(self) -> None:
        self.closes += 1


async def test_a_writer_that_hangs_costs_publishers_and_other_listeners_nothing() -> None:
    bus = EventBus()
    sink = await Slow(is_open=False, max_queue=10).start(bus)
    received: list[int] = []
    bus.on("*", lambda event: received.append(event.seq))
    async with bus.subscribe("*") as stream:
        began = time.perf_counter()
        publish(bus, 1000)
        assert time.perf_counter() - began < 5
        assert [(await anext(stream)).seq for _ in range(1000)] == received == list(range(1, 1001))
    sink.gate.set()
    await bus.aclose()

    assert sink.events[-1].type == "sink.gap"
    assert accounted(sink.events) == list(range(1, 1001))
    assert sink.lost >= 900


async def test_an_event_of_a_sink_is_not_logged_as_without_a_listener(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    sink = await Slow().start(bus)
    bus.publish("actor.crashed", "a")
    await sink.stop()
    assert not caplog.records
    bus.publish("actor.crashed", "b")

    assert [record.getMessage() for record in caplog.records] == ["actor.crashed from b: {}"]


async def test_sinks_end_after_hooks_so_that_they_hold_what_hooks_publish_last() -> None:
    bus = EventBus()
    sink = await Slow().start(bus)

    @bus.on("question")
    async def answer(event: Event) -> None:
        await turns()
        bus.publish("answer", "hook")

    bus.publish("question", "test")
    await bus.aclose()

    assert [event.type for event in sink.events] == ["question", "answer"]


async def test_what_is_published_while_the_sink_opens_is_written() -> None:
    bus = EventBus()
    sink = Slow(opens=False)
    starting = asyncio.create_task(sink.start(bus))
    await turns()
    publish(bus, 3)
    sink.opening.set()
    assert await starting is sink
    await sink.stop()

    assert [event.seq for event in sink.events] == [1, 2, 3]


async def test_a_cancelled_start_leaves_nothing() -> None:
    bus = EventBus()
    sink = Slow(opens=False)
    starting = asyncio.create_task(sink.start(bus))
    await turns()
    starting.cancel()
    await turns()
    assert not bus.wants("lm.call.stopped")
    sink.opening.set()
    with pytest.raises(asyncio.CancelledError):
        await starting

    assert writers() == []
    assert sink.closes == 1


async def cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task once it waits."""
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancelled_stop_still_ends_the_sink_and_the_bus_waits_for_it() -> None:
    bus = EventBus()
    sink = await Slow(is_open=False).start(bus)
    publish(bus, 3)
    await cancel(asyncio.create_task(sink.stop()))
    assert not sink.ended.done()
    closing = asyncio.create_task(bus.aclose())
    await turns(50)
    assert not closing.done()
    sink.gate.set()
    await closing

    assert [event.seq for event in sink.events] == [1, 2, 3]
    assert writers() == []


async def test_a_cancelled_close_of_the_bus_still_ends_its_sinks() -> None:
    bus = EventBus()
    sinks = [await Slow(is_open=False).start(bus) for _ in range(2)]
    publish(bus, 3)
    await cancel(asyncio.create_task(bus.aclose()))
    for sink in sinks:
        sink.gate.set()
        await until(sink.ended.done)

    assert [len(sink.events) for sink in sinks] == [3, 3]


async def test_a_burst_larger_than_the_buffer_is_lossless_once_the_writer_keeps_up() -> None:
    bus = EventBus()
    sink = await Slow(max_queue=10, batch_size=5).start(bus)
    for _ in range(50):
        publish(bus, 10)
        await until(lambda: not sink._buffer)
    await sink.stop()

    assert [event.seq for event in sink.events] == list(range(1, 501))


async def test_many_threads_and_a_tiny_buffer_account_for_every_event() -> None:
    bus = EventBus()
    sink = await Slow(max_queue=3, batch_size=2).start(bus)
    publishers = [threading.Thread(target=publish, args=(bus, 2000)) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    await sink.stop()

    assert accounted(sink.events) == list(range(1, 8001))
    assert sink.lost + sum(event.type != "sink.gap" for event in sink.events) == 8000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSONLSink(None), "JSONLSink: path=None: give a path"),
        (lambda: SQLiteSink(5), "SQLiteSink: path=5: give a path"),
        (lambda: StructlogSink("x"), "StructlogSink: stream='x': give an open stream"),
        (lambda: OpenTelemetrySpans(5), "OpenTelemetrySpans: tracer_provider=5: give a TracerProvider"),
        (lambda: OpenTelemetrySpans(max_age="x"), "OpenTelemetrySpans: max_age='x': give seconds > 0"),
        (lambda: PrometheusMetrics(5), "PrometheusMetrics: registry=5: give a CollectorRegistry"),
        (lambda: PrometheusMetrics(statistics=5), "PrometheusMetrics: statistics=5: give a function"),
        (lambda: read(None), "read: path=None: give a path"),
        (lambda: read("run.db", since="x"), "read: since='x': give seconds"),
        (lambda: asyncio.run(StructlogSink().start(None)), "StructlogSink.start: events=None: give the bus"),
    ],
)
def test_what_a_sink_or_a_reader_cannot_use_is_named_in_the_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
