"""What holds for every sink that writes a file: order, ends, losses and their gap, errors and recovery, any value."""

from __future__ import annotations

import gc
import logging
import math
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import pytest

from promptside import Actor, ActorSystem
from promptside.events import Event, EventBus
from promptside.events.sinks import ForeignFile, JSONLSink, SQLiteSink
from tests.support.actors import until
from tests.support.sinks import (
    BOTH,
    KEYS,
    QUICK,
    Durable,
    accounted,
    descriptors,
    full_disk,
    log,
    names,
    publish,
    rows,
    writers,
)

pytestmark = pytest.mark.parametrize("sink_class", BOTH)


class Quiet(Actor):
    async def nothing(self) -> None: ...


async def test_what_was_published_is_what_is_read(sink_class: Durable, tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    received: list[Event] = []
    bus.on("*", received.append)
    sink = await sink_class(path).start(bus)
    bus.publish("actor.started", "lm/ünïcode")
    bus.publish(
        "lm.call.stopped",
        "lm",
        {"tokens": 3, "text": 'two\nlines \u2028 "quoted" \U0001f600', "nested": {"list": [1, None, True, 0.5]}},
        incarnation=0,
        **{**KEYS, "trace_id": ""},
    )
    await sink.stop()

    assert log(path) == received
    assert (sink.written, sink.lost, sink.error) == (2, 0, None)


async def test_a_sink_writes_its_pattern_from_start_to_stop(sink_class: Durable, tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    publish(bus, 1)
    sink = await sink_class(path, pattern="lm.*").start(bus)
    publish(bus, 2)
    publish(bus, 1, "actor.started")
    await sink.stop()
    publish(bus, 1)

    assert [event.seq for event in log(path)] == [2, 3]
    assert not bus.wants("lm.call.stopped")


async def test_a_sink_ends_with_its_system_after_the_last_event(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    before = descriptors()
    async with ActorSystem() as system:
        sink = await sink_class(path, interval=30).start(system.events)
        await system.with_options(name="quiet").spawn(Quiet)
        assert writers() == ["promptside-sink/log"]

    assert sink.ended.done()
    assert writers() == []
    assert descriptors() <= before
    assert names(tmp_path) == ["log"]
    assert [event.type for event in log(path)][-1] == "actor.stopped"


async def test_events_wait_for_the_interval_or_for_a_whole_batch(sink_class: Durable, tmp_path: Path) -> None:
    bus = EventBus()
    slow = await sink_class(tmp_path / "slow", interval=30, batch_size=10).start(bus)
    publish(bus, 9)
    quick = await sink_class(tmp_path / "quick", interval=0.01, batch_size=10).start(bus)
    publish(bus, 1, "last")
    await until(lambda: slow.written == 10)
    await until(lambda: quick.written == 1)
    publish(bus, 1)
    await until(lambda: quick.written == 2)
    assert slow.written == 10
    await bus.aclose()

    assert slow.written == 11


async def test_threads_that_publish_at_once_are_written_in_the_order_of_seq(
    sink_class: Durable, tmp_path: Path
) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path, **QUICK).start(bus)
    publishers = [threading.Thread(target=publish, args=(bus, 1000)) for _ in range(4)]
    for publisher in publishers:
        publisher.start()
    for publisher in publishers:
        publisher.join()
    await sink.stop()

    assert [event.seq for event in log(path)] == list(range(1, 4001))


async def test_an_existing_log_is_appended_to(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(3):
        bus = EventBus()
        sink = await sink_class(path).start(bus)
        publish(bus, 2)
        await sink.stop()

    assert [event.seq for event in log(path)] == [1, 2] * 3
    assert len({event.id for event in log(path)}) == 6


async def test_a_full_disk_loses_nothing_while_the_buffer_lasts(
    sink_class: Durable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path, **QUICK).start(bus)
    with full_disk(100_000):
        publish(bus, 3000)
        await until(lambda: sink.error)
        publish(bus, 3000)
    await until(lambda: sink.written == 6000)
    await sink.stop()

    assert [event.seq for event in log(path)] == list(range(1, 6001))
    assert (sink.lost, sink.error) == (0, None)
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.WARNING]


async def test_a_full_disk_beyond_the_buffer_is_one_gap_and_no_other_loss(sink_class: Durable, tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    received: list[Event] = []
    bus.on("*", received.append)
    other = await JSONLSink(tmp_path / "other").start(bus)
    sink = await sink_class(path, max_queue=100, batch_size=1000, **QUICK).start(bus)
    with full_disk(10_000):
        while sink.error is None:
            publish(bus, 50)
            await until(lambda: sink.error or sink.written == len(received))
        publish(bus, 500)
    await until(lambda: sink.error is None)
    await until(lambda: sink.written > 100)
    publish(bus, 10)
    await bus.aclose()

    events = log(path)
    (gap,) = [event for event in events if event.type == "sink.gap"]
    assert accounted(events) == [event.seq for event in received]
    assert gap.data["count"] == sink.lost >= 400
    assert (gap.source, gap.seq) == ("sink/log", gap.data["last_seq"])
    assert "Error" in gap.data["reason"]
    assert [event.type for event in events[-10:]] == ["lm.call.stopped"] * 10
    assert other.lost == 0
    assert log(tmp_path / "other") == received


async def test_a_publisher_that_is_too_fast_leaves_one_gap(sink_class: Durable, tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path, max_queue=10, interval=30).start(bus)
    with bus._lock:  # the writer, which may be quick or slow, closes no gap within the burst
        publish(bus, 25)
    await until(lambda: sink.written == 11)
    publish(bus, 5)
    await sink.stop()

    assert accounted(log(path)) == list(range(1, 31))
    assert [event.type for event in log(path)].index("sink.gap") == 10
    assert log(path)[10].data == {"first_seq": 11, "last_seq": 25, "count": 15, "reason": "10 events waited"}


async def test_a_gap_that_is_open_at_the_end_is_written(sink_class: Durable, tmp_path: Path) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path, max_queue=10, pattern="lm.*").start(bus)
    with bus._lock:
        for _ in range(20):
            publish(bus, 1)
            publish(bus, 1, "actor.started")
    await sink.stop()

    *_, gap = log(path)
    assert (gap.type, gap.data["first_seq"], gap.data["last_seq"], gap.data["count"]) == ("sink.gap", 21, 39, 10)


@pytest.mark.parametrize("take_away", [Path.unlink, lambda path: path.rename(path.with_name("moved"))])
async def test_a_file_that_is_taken_away_is_begun_anew(
    sink_class: Durable, tmp_path: Path, take_away: Any, caplog: pytest.LogCaptureFixture
) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path, **QUICK).start(bus)
    publish(bus, 5)
    await until(lambda: sink.written == 5)
    take_away(path)
    publish(bus, 5)
    await until(lambda: sink.written == 10)
    publish(bus, 5)
    await sink.stop()

    assert [event.seq for event in log(path)] == list(range(6, 16))
    assert sink.lost == 0
    assert not caplog.records  # seen before it is written to, not by an error


async def test_a_directory_that_is_gone_is_waited_for_and_what_is_left_at_the_end_is_logged(
    sink_class: Durable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bus, path = EventBus(), tmp_path / "away" / "log"
    path.parent.mkdir()
    sink = await sink_class(path, flush_timeout=0.2, max_queue=100, batch_size=10, **QUICK).start(bus)
    path.parent.rename(tmp_path / "moved")
    publish(bus, 5)
    await until(lambda: sink.error)
    path.parent.mkdir()
    await until(lambda: sink.written == 5)
    assert [event.seq for event in log(path)] == [1, 2, 3, 4, 5]
    path.parent.rename(tmp_path / "moved again")
    publish(bus, 30)
    await sink.stop()

    assert sink.lost == 30
    assert "ends without its last 30 events" in caplog.records[-1].getMessage()
    assert writers() == []


class Hostile:
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


async def test_a_value_that_is_not_json_becomes_a_marker_and_the_rest_survives(
    sink_class: Durable, tmp_path: Path
) -> None:
    bus, path = EventBus(), tmp_path / "log"
    sink = await sink_class(path).start(bus)
    cycle: list[object] = [1]
    cycle.append(cycle)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    data = {
        "path": PurePosixPath("/tmp"),
        "hostile": Hostile(),
        "nan": math.nan,
        "set": {1},
        "bytes": b"x",
        "huge": 10**5000,
        "half": "a\ud800b",
        "cycle": cycle,
        "view": MappingProxyType({"a": (1, 2)}),
        "keys": {1: "int", None: "none", False: "false", (1,): "tuple", (2,): "tuple", math.inf: "float"},
        "kept": [1, "two", {"three": 3.0}],
    }
    bus.publish("odd", "here", {"deep": deep})
    bus.publish("odd", "here", data)
    bus.publish("odd", PurePosixPath("here"), {"fine": 1}, trace_id=7, incarnation=2**70)  # type: ignore[arg-type]
    bus.publish("odd", None, [1], session_id="\udc80")  # type: ignore[arg-type]
    bus.publish("even", "there", {"fine": 2}, trace_id="t")
    await sink.stop()

    deep_one, odd, wrong, no_mapping, even = log(path)
    assert odd.data == {
        "path": {"unserializable": "PurePosixPath"},
        "hostile": {"unserializable": "Hostile"},
        "nan": {"unserializable": "float", "value": "nan"},
        "set": {"unserializable": "set"},
        "bytes": {"unserializable": "bytes"},
        "huge": {"unserializable": "int"},
        "half": "a\ud800b",
        "cycle": [1, {"unserializable": "list"}],
        "view": {"a": [1, 2]},
        "keys": {"false": "false", "null": "none", "<tuple>": "tuple", "<tuple>'": "tuple", "<float>": "float"}
        | {"1": "int"},
        "kept": [1, "two", {"three": 3.0}],
    }
    assert "unserializable" in str(deep_one.data)
    assert (wrong.data, even.data, even.trace_id) == ({"fine": 1}, {"fine": 2}, "t")
    assert "PurePosixPath" in str(wrong.source)
    assert no_mapping.data == {"value": [1]}
    assert (sink.written, sink.lost, sink.error) == (5, 0, None)


async def test_a_foreign_file_is_refused_and_left_as_it_is(sink_class: Durable, tmp_path: Path) -> None:
    bus = EventBus()
    database = tmp_path / "other.db"
    rows(database, "CREATE TABLE mine (a)")
    text = tmp_path / "text"
    text.write_text("hello\n")
    json_document = tmp_path / "document"
    json_document.write_text('{"id":"a","b":2}')
    for path in (database, text, json_document):
        before = path.read_bytes()
        with pytest.raises(ForeignFile, match=path.name):
            await sink_class(path).start(bus)
        assert path.read_bytes() == before
    other = await (JSONLSink if sink_class is SQLiteSink else SQLiteSink)(tmp_path / "log").start(bus)
    publish(bus, 1)
    await other.stop()
    with pytest.raises(ForeignFile):
        await sink_class(tmp_path / "log").start(bus)

    assert writers() == []
    assert not bus.wants("lm.call.stopped")


async def test_what_cannot_be_opened_is_said_at_the_start(sink_class: Durable, tmp_path: Path) -> None:
    bus = EventBus()
    with pytest.raises(Exception, match=r"unable to open|No such file"):
        await sink_class(tmp_path / "missing" / "log").start(bus)
    sink = await sink_class(tmp_path / "log").start(bus)
    with pytest.raises(RuntimeError, match="started before"):
        await sink.start(bus)
    await bus.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await sink_class(tmp_path / "log").start(bus)

    assert writers() == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_queue", 0), ("batch_size", 0), ("interval", -1.0), ("interval", math.inf), ("flush_timeout", math.nan)],
)
def test_a_wrong_number_is_refused_by_name(sink_class: Durable, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}="):
        sink_class(tmp_path / "log", **{name: value})  # type: ignore[arg-type]


async def test_a_stop_without_a_start_and_a_second_stop_do_nothing(sink_class: Durable, tmp_path: Path) -> None:
    await sink_class(tmp_path / "never").stop()
    sink = await sink_class(tmp_path / "log").start(EventBus())
    await sink.stop()
    await sink.stop()

    assert not (tmp_path / "never").exists()


CHILD = """
import asyncio, sys
from promptside.events import EventBus
from promptside.events import sinks

async def main():
    bus = EventBus()
    sink = await getattr(sinks, sys.argv[1])(sys.argv[2], interval=0.05).start(bus)
    while True:
        for _ in range(50):
            bus.publish("lm.call.stopped", "lm", {"text": "x" * 200})
        print(sink.written, flush=True)
        await asyncio.sleep(0.001)

asyncio.run(main())
"""


def test_a_killed_process_leaves_a_whole_log_with_all_that_was_written(sink_class: Durable, tmp_path: Path) -> None:
    path = tmp_path / "log"
    for _ in range(2):
        before = len(log(path)) if path.exists() else 0
        child = subprocess.Popen([sys.executable, "-c", CHILD, sink_class.__name__, str(path)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        written = 0
        while written < 1_000:
            written = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()

        if sink_class is SQLiteSink:
            assert rows(path, "PRAGMA integrity_check") == [("ok",)]
            assert rows(path, "SELECT min(seq), max(seq) = count(*) FROM events") == [(1, 1)]
        seqs = [event.seq for event in log(path)][before:]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) >= written


# -- the interpreter's exit ----------------------------------------------------------------------------------------

LEFT_OPEN = """
import asyncio, os, sys, threading
from promptside import Actor, ActorSystem
from promptside.events.sinks import JSONLSink, SQLiteSink

async def enter():
    system = await ActorSystem().__aenter__()
    await {sink}(sys.argv[1], interval=30).start(system.events)
    return system

loop = asyncio.new_event_loop()
system = loop.run_until_complete(enter())
for n in range(100):
    system.events.publish("cell.run", "notebook", {{"n": n}})
"""

LEAVING = """
class Leaving(Actor):
    async def leave(self): sys.exit(3)

ref = loop.run_until_complete(system.spawn(Leaving))

async def leave():
    ref.tell(Leaving.leave)
    await asyncio.sleep(60)

loop.run_until_complete(leave())
"""

FORKING = """
pid = os.fork()
if not pid:
    sys.exit(5)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
"""

EXITS = {
    "the last line": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "sys.exit in a handler": (LEAVING, 3),
    "an error": ("raise OSError('no')", 1),
    "a closed loop": ("loop.close()", 0),
    "a fork that ends before": (FORKING, 0),
}


@pytest.mark.parametrize("how", EXITS)
def test_what_was_published_is_written_at_an_ordinary_exit_of_the_interpreter(
    sink_class: Durable, how: str, tmp_path: Path
) -> None:
    source, code = EXITS[how]
    path = tmp_path / "log"
    script = LEFT_OPEN.format(sink=sink_class.__name__) + source
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == code, done.stderr
    assert [event.data["n"] for event in log(path) if event.type == "cell.run"] == list(range(100))


async def test_a_sink_that_has_ended_is_not_kept_until_the_exit(sink_class: Durable, tmp_path: Path) -> None:
    bus = EventBus()
    sink = await sink_class(tmp_path / "log").start(bus)
    forgotten = weakref.ref(sink)
    await sink.stop()
    del sink, bus
    gc.collect()
    assert forgotten() is None
