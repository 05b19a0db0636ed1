"""Event buses compared: fan-out, a publish without a listener, and a durable sink; `python -m benchmarks.events`.

`benchmarks.report` runs `python -m benchmarks.events SUBJECT` for each subject and round. One publisher sends 100
subscribers 1,000 events without a pause, and each subscriber, a task of its own, reads them all: a delivery is one
event that one subscriber has in its hands. The floor is a deque per subscriber.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Metric, Subject, Unsupported, main, measure_each

METRICS = (
    Metric(
        name="fan_out", unit="1/s", title="deliveries, 1 publisher to 100 subscribers, 1,000 events, read in batches"
    ),
    Metric(name="fan_out_each", unit="1/s", title="the same, where one can choose, read event by event"),
    Metric(name="publish_unheard_us", unit="us", title="a publish without a listener", higher_is_better=False),
    Metric(name="sqlite_sink", unit="1/s", title="events from publish until they are in a file, 100,000 at once"),
)

SUBSCRIBERS, EVENTS, LOGGED = 100, 1_000, 100_000
PAYLOAD = {"model": "openai/gpt-4o-mini", "seconds": 0.5, "tokens": 120}


# -- promptside --------------------------------------------------------------------------------------------------


async def promptside_fan_out(*, batches: bool = True) -> float:
    from promptside import EventBus

    bus = EventBus()
    ready = asyncio.Event()
    listening = 0

    async def read() -> None:
        nonlocal listening
        async with bus.subscribe("*") as stream:
            listening += 1
            if listening == SUBSCRIBERS:
                ready.set()
            await (read_batches(stream) if batches else read_each(stream))

    async def read_each(stream: Any) -> None:
        left = EVENTS
        async for _ in stream:
            left -= 1
            if not left:
                return

    async def read_batches(stream: Any) -> None:
        left = EVENTS
        async for batch in stream.batches():
            for _ in batch:
                left -= 1
            if not left:
                return

    async with asyncio.TaskGroup() as group:
        for _ in range(SUBSCRIBERS):
            group.create_task(read())
        await ready.wait()
        await asyncio.sleep(0)
        start = time.perf_counter()
        for _ in range(EVENTS):
            bus.publish("lm.call.stopped", "lm", PAYLOAD)
    return SUBSCRIBERS * EVENTS / (time.perf_counter() - start)


async def promptside_fan_out_each() -> float:
    return await promptside_fan_out(batches=False)


async def promptside_unheard() -> float:
    from promptside import EventBus

    bus = EventBus()
    start = time.perf_counter()
    for _ in range(LOGGED):
        bus.publish("lm.call.stopped", "lm", PAYLOAD)
    return (time.perf_counter() - start) / LOGGED * 1e6


async def promptside_sqlite() -> float:
    from promptside import EventBus
    from promptside.events.sinks import SQLiteSink

    with tempfile.TemporaryDirectory() as folder:
        bus = EventBus()
        sink = await SQLiteSink(Path(folder) / "run.db", max_queue=2 * LOGGED).start(bus)
        start = time.perf_counter()
        for _ in range(LOGGED):
            bus.publish("lm.call.stopped", "lm", PAYLOAD)
        await sink.stop()
        seconds = time.perf_counter() - start
        assert (sink.written, sink.lost) == (LOGGED, 0)
    return LOGGED / seconds


# -- the floor and the peers -------------------------------------------------------------------------------------


async def floor_fan_out() -> float:
    """A deque and a waiter for each subscriber, itself a task that counts what it takes."""
    queues: list[deque[object]] = [deque() for _ in range(SUBSCRIBERS)]
    published = asyncio.Event()

    async def read(queue: deque[object]) -> None:
        left = EVENTS
        while left:
            while queue:
                queue.popleft()
                left -= 1
            if left:
                await published.wait()

    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(read(queue))
        await asyncio.sleep(0)
        start = time.perf_counter()
        for _ in range(EVENTS):
            for queue in queues:
                queue.append(PAYLOAD)
        published.set()
    return SUBSCRIBERS * EVENTS / (time.perf_counter() - start)


async def floor_unheard() -> float:
    listeners: list[Callable[[object], None]] = []

    def publish(event: object) -> None:
        for listener in listeners:
            listener(event)

    start = time.perf_counter()
    for _ in range(LOGGED):
        publish(PAYLOAD)
    return (time.perf_counter() - start) / LOGGED * 1e6


async def floor_sqlite() -> float:
    """Rows of the same facts, already text, by the stdlib's `executemany` in one transaction."""
    import sqlite3

    row = ("a-1", "lm.call.stopped", "lm", 1.0, '{"model":"openai/gpt-4o-mini","seconds":0.5,"tokens":120}')
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        file = sqlite3.connect(Path(folder) / "run.db")
        file.execute("PRAGMA journal_mode=WAL")
        file.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, id, type, source, time, data)")
        file.executemany(
            "INSERT INTO events (id, type, source, time, data) VALUES (?, ?, ?, ?, ?)", (row for _ in range(LOGGED))
        )
        file.commit()
        file.close()
        return LOGGED / (time.perf_counter() - start)


async def loop_fan_out() -> float:
    received = 0

    def listener(event: object) -> None:
        nonlocal received
        received += 1

    listeners = [listener] * SUBSCRIBERS
    start = time.perf_counter()
    for _ in range(EVENTS):
        for each in listeners:
            each(PAYLOAD)
    return received / (time.perf_counter() - start)


async def queue_fan_out() -> float:
    queues: list[asyncio.Queue[object]] = [asyncio.Queue() for _ in range(SUBSCRIBERS)]

    async def read(queue: asyncio.Queue[object]) -> None:
        for _ in range(EVENTS):
            await queue.get()

    async with asyncio.TaskGroup() as group:
        for queue in queues:
            group.create_task(read(queue))
        await asyncio.sleep(0)
        start = time.perf_counter()
        for _ in range(EVENTS):
            for queue in queues:
                queue.put_nowait(PAYLOAD)
    return SUBSCRIBERS * EVENTS / (time.perf_counter() - start)


async def anyio_fan_out() -> float:
    import anyio

    streams = [anyio.create_memory_object_stream[object](EVENTS) for _ in range(SUBSCRIBERS)]

    async def read(receive: Any) -> None:
        with receive:
            for _ in range(EVENTS):
                await receive.receive()

    async with anyio.create_task_group() as group:
        for _, receive in streams:
            group.start_soon(read, receive)
        await asyncio.sleep(0)
        start = time.perf_counter()
        for _ in range(EVENTS):
            for send, _ in streams:
                send.send_nowait(PAYLOAD)
    seconds = time.perf_counter() - start
    for send, _ in streams:
        send.close()
    return SUBSCRIBERS * EVENTS / seconds


async def blinker_fan_out() -> float:
    import blinker

    signal = blinker.Signal()
    received = 0

    def listener(number: int) -> Callable[..., None]:
        def receive(sender: object, **facts: object) -> None:
            nonlocal received
            received += 1

        return receive

    listeners = [listener(number) for number in range(SUBSCRIBERS)]
    for each in listeners:
        signal.connect(each)
    start = time.perf_counter()
    for _ in range(EVENTS):
        signal.send("lm", event=PAYLOAD)
    return received / (time.perf_counter() - start)


async def not_there() -> float:
    raise Unsupported("it has no such thing")


SUBJECTS = {
    "floor": (floor_fan_out, floor_fan_out, floor_unheard, floor_sqlite),
    "plain-loop": (loop_fan_out, loop_fan_out, not_there, not_there),
    "asyncio-queue": (queue_fan_out, queue_fan_out, not_there, not_there),
    "promptside": (promptside_fan_out, promptside_fan_out_each, promptside_unheard, promptside_sqlite),
    "blinker": (blinker_fan_out, blinker_fan_out, not_there, not_there),
    "anyio": (anyio_fan_out, anyio_fan_out, not_there, not_there),
}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SUBJECTS:
        measures = zip(METRICS, SUBJECTS[sys.argv[1]], strict=True)
        measure_each({metric.name: lambda measure=measure: asyncio.run(measure()) for metric, measure in measures})
    else:
        packages = {"blinker": ("blinker",), "anyio": ("anyio",)}
        subjects = [
            Subject(name=name, command=("benchmarks.events", name), packages=packages.get(name, ()))
            for name in SUBJECTS
        ]
        main("events", METRICS, subjects)
