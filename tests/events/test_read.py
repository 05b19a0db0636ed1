"""Reading a log: what is asked for, following a live writer, and files that are replaced, empty or foreign."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from promptside import clock
from promptside.events import Event, EventBus
from promptside.events.event import build_event
from promptside.events.log.read import read
from promptside.events.sinks import ForeignFile, JSONLSink, SQLiteSink
from tests.support.actors import until
from tests.support.sinks import BOTH, QUICK, Durable, log, publish

both = pytest.mark.parametrize("sink_class", BOTH)


class Follower:
    """Reads in a thread until an event of the type `end`."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.events: list[Event] = []
        self._reading = read(path, follow=True, **options)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        for event in self._reading:
            if event.type == "end":
                break
            self.events.append(event)
        self._reading.close()  # type: ignore[attr-defined]

    @property
    def seqs(self) -> list[int]:
        return [event.seq for event in self.events]


def with_times(events: list[Event], path: Path, sink_class: Durable) -> None:
    """Write events as they are, their times included."""
    sink = sink_class(path)
    sink._open()
    sink._write(events)
    sink._close()


@both
async def test_each_filter_selects_and_all_of_them_together(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = await sink_class(path).start(bus := EventBus())
    bus.publish("lm.call.started", "lm", trace_id="t1", run_id="r1", session_id="s1")
    bus.publish("lm.call.failed", "lm/worker-1", trace_id="t1", run_id="r2")
    bus.publish("lm.attempt.failed", "lm/worker-1/x", trace_id="t2", session_id="s1")
    bus.publish("tool.started", "lmx", trace_id="t2")
    await sink.stop()

    def seqs(**asked: Any) -> list[int]:
        return [event.seq for event in read(path, **asked)]

    assert seqs() == [1, 2, 3, 4]
    assert seqs(type="lm.*") == [1, 2, 3]
    assert seqs(type="lm.*.failed") == [2, 3]
    assert seqs(type="tool.started") == [4]
    assert seqs(type="nothing") == []
    assert seqs(source="lm") == [1, 2, 3]
    assert seqs(source="lm/worker-1") == [2, 3]
    assert seqs(trace_id="t1") == [1, 2]
    assert seqs(run_id="r2") == [2]
    assert seqs(session_id="s1") == [1, 3]
    assert seqs(type="lm.*.failed", source="lm", trace_id="t2", session_id="s1") == [3]
    assert seqs(trace_id="' OR 1 --") == []


@both
def test_since_is_included_and_until_is_not(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    nothing = (None,) * 7
    with_times([build_event(f"b-{n}", n, "a", "here", 100.0 * n, {}, *nothing) for n in range(1, 6)], path, sink_class)

    assert [event.seq for event in read(path, since=200, until=400.0)] == [2, 3]
    moment = datetime.fromtimestamp(300, UTC)
    assert [event.seq for event in read(path, since=moment)] == [3, 4, 5]
    assert [event.seq for event in read(path, until=moment)] == [1, 2]
    with pytest.raises(ValueError, match=r"since=.*no time zone"):
        read(path, since=moment.replace(tzinfo=None))


@both
async def test_a_long_log_is_read_in_bounded_memory_and_can_be_left_early(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = await sink_class(path).start(bus := EventBus())
    publish(bus, 20_000)
    await sink.stop()

    tracemalloc.start()
    assert sum(1 for _ in read(path)) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
    events = read(path)
    assert [event.seq for event in itertools.islice(events, 3)] == [1, 2, 3]
    del events


async def written(sink_class: Durable, folder: Path, count: int) -> tuple[Path, EventBus, SQLiteSink | JSONLSink]:
    """A log with so many events, its bus and its sink."""
    path = folder / "log"
    sink = await sink_class(path, **QUICK).start(bus := EventBus())
    publish(bus, count)
    await until(lambda: sink.written == count)
    return path, bus, sink


@both
async def test_a_follower_sees_what_is_written_until_it_has_had_enough(sink_class: Durable, tmp_path: Path) -> None:
    path, bus, sink = await written(sink_class, tmp_path, 2)
    follower = Follower(path)
    only_odd = Follower(path, source="odd")
    await until(lambda: len(follower.events) == 2)
    publish(bus, 1200)
    bus.publish("a", "odd")
    await until(lambda: len(follower.events) == 1203)
    bus.publish("end", "here")
    await until(lambda: not follower.thread.is_alive())
    await sink.stop()
    sink = await sink_class(path, **QUICK).start(bus := EventBus())
    bus.publish("b", "odd")
    await until(lambda: len(only_odd.events) == 2)
    await sink.stop()

    assert follower.seqs == list(range(1, 1204))
    assert [event.type for event in only_odd.events] == ["a", "b"]
    sink = await sink_class(path, **QUICK).start(bus := EventBus())
    bus.publish("end", "odd")
    await sink.stop()
    await until(lambda: not only_odd.thread.is_alive())


def test_following_ends_at_its_time(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()

    assert list(read(path, follow=True, until=clock.wall() + 0.3)) == []


@both
async def test_a_follower_of_an_empty_file_sees_what_it_becomes(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    assert log(path) == []
    follower = Follower(path)
    sink = await sink_class(path, **QUICK).start(bus := EventBus())
    publish(bus, 3)
    bus.publish("end", "here")
    await until(lambda: not follower.thread.is_alive())
    await sink.stop()

    assert follower.seqs == [1, 2, 3]


@both
async def test_a_follower_goes_on_with_the_file_that_takes_the_place(sink_class: Durable, tmp_path: Path) -> None:
    path, bus, sink = await written(sink_class, tmp_path, 3)
    follower = Follower(path)
    await until(lambda: len(follower.events) == 3)
    path.unlink()
    publish(bus, 3)
    await until(lambda: len(follower.events) == 6)
    bus.publish("end", "here")
    await until(lambda: not follower.thread.is_alive())
    await sink.stop()

    assert follower.seqs == [1, 2, 3, 4, 5, 6]


WRITER = """
import asyncio, sys
from promptside.events import EventBus, sinks

async def main():
    bus = EventBus()
    sink = await getattr(sinks, sys.argv[1])(sys.argv[2], interval=0.01).start(bus)
    for number in range(300):
        bus.publish("lm.call.stopped", "lm")
        await asyncio.sleep(0.001)
    bus.publish("end", "lm")
    await bus.aclose()

asyncio.run(main())
"""


@both
def test_a_follower_sees_the_events_of_a_writer_in_another_process(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    follower = Follower(path)
    subprocess.run([sys.executable, "-c", WRITER, sink_class.__name__, str(path)], check=True, timeout=150)
    follower.thread.join(10)

    assert follower.seqs == list(range(1, 301))


async def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, half = tmp_path / "log", tmp_path / "half"
    sink = await JSONLSink(path).start(bus := EventBus())
    publish(bus, 2)
    bus.publish("end", "here")
    await sink.stop()
    text = path.read_bytes()
    half.write_bytes(text[: len(text) // 2])
    assert [event.seq for event in read(half)] == [1]
    follower = Follower(half)
    await until(lambda: follower.events)
    with half.open("ab") as file:
        file.write(text[len(text) // 2 :])
    await until(lambda: not follower.thread.is_alive())

    assert follower.seqs == [1, 2]


async def test_a_line_that_is_no_event_is_passed_over_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    sink = await JSONLSink(path).start(bus := EventBus())
    publish(bus, 2)
    await sink.stop()
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"noise\n" + json.dumps({"id": 1}).encode() + b"\n" + second)

    assert [event.seq for event in read(path)] == [1, 2]
    assert [record.getMessage()[:6] for record in caplog.records] == ["line 2", "line 3"]


def test_what_is_wrong_is_said_at_the_call(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("hello\n")
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    with pytest.raises(ForeignFile, match="foreign"):
        read(foreign)
    with pytest.raises(ValueError, match="pattern="):
        read(foreign, type="l*")
    with pytest.raises(OSError, match="directory"):
        read(tmp_path)


async def test_the_iterator_may_be_advanced_by_one_thread_after_the_other(tmp_path: Path) -> None:
    for sink_class in BOTH:
        path = tmp_path / sink_class.__name__
        sink = await sink_class(path).start(bus := EventBus())
        publish(bus, 2)
        await sink.stop()
        events: Iterator[Event] = read(path)
        got: list[int] = []
        for _ in range(2):
            thread = threading.Thread(target=lambda events=events, got=got: got.append(next(events).seq))
            thread.start()
            thread.join()
        assert got == [1, 2]
        assert list(events) == []
