"""The SQLite file: its layout, its guards, locks, and readers beside the writer."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from promptside.events import EventBus
from promptside.events.sinks import ForeignFile, SQLiteSink, sqlite
from tests.support.actors import until
from tests.support.sinks import QUICK, accounted, locked, log, publish, rows


async def written(path: Path, count: int) -> None:
    sink = await SQLiteSink(path).start(bus := EventBus())
    publish(bus, count)
    await sink.stop()


async def test_the_table_is_what_any_tool_can_query(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    sink = await SQLiteSink(path, pattern="lm.*").start(bus := EventBus())
    bus.publish("actor.started", "lm")
    bus.publish("lm.call.stopped", "lm", {"tokens": 3}, run_id="r", incarnation=2)
    await sink.stop()

    query = (
        "SELECT seq, event_seq, type, source, json_extract(data, '$.tokens'), run_id, trace_id, incarnation FROM events"
    )
    assert rows(path, query) == [(1, 2, "lm.call.stopped", "lm", 3, "r", None, 2)]
    assert rows(path, "PRAGMA journal_mode") == [("wal",)]


async def test_seq_has_no_gaps_over_several_writers_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    for count in (1, 2223, 19, 4001):
        await written(path, count)

    assert rows(path, "SELECT min(seq), max(seq), count(*) FROM events") == [(1, 6244, 6244)]


@pytest.mark.parametrize("statement", ["UPDATE events SET type = 'x'", "DELETE FROM events WHERE seq = 1"])
async def test_events_can_neither_be_changed_nor_deleted(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "run.db"
    await written(path, 2)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        rows(path, statement)


async def test_a_lock_of_another_loses_nothing_that_fits_and_one_gap_beyond(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.db"
    sink = await SQLiteSink(path, max_queue=20, batch_size=1000, **QUICK).start(bus := EventBus())
    with locked(path):
        publish(bus, 5)
        await until(lambda: sink.error)
        publish(bus, 30)
    await until(lambda: sink.error is None and sink.written + sink.lost == 36)
    with locked(path):
        publish(bus, 5)
        await until(lambda: sink.error)
    await sink.stop()

    events = log(path)
    assert accounted(events) == list(range(1, 41))
    (gap,) = [event for event in events if event.type == "sink.gap"]
    assert gap.data["count"] == sink.lost >= 10
    assert gap.data["reason"] == "OperationalError('database is locked')"
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"] * 2


async def test_a_lock_that_never_ends_does_not_hold_up_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "run.db"
    sink = await SQLiteSink(path, flush_timeout=0.1, max_queue=50, batch_size=10, **QUICK).start(bus := EventBus())
    publish(bus, 1)
    await until(lambda: sink.written)
    with locked(path):
        publish(bus, 100)
        await sink.stop()

    assert [event.seq for event in log(path)] == [1]
    assert sink.lost == 100
    assert "ends without its last" in caplog.records[-1].getMessage()


async def test_others_read_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    sink = await SQLiteSink(path, **QUICK).start(bus := EventBus())
    publish(bus, 10)
    await until(lambda: sink.written == 10)
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
    publish(bus, 10)
    await until(lambda: sink.written == 20)
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (10,)
    reader.execute("ROLLBACK")
    assert reader.execute("SELECT count(*) FROM events").fetchone() == (20,)
    reader.close()
    await sink.stop()


async def test_two_writers_of_one_file_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    buses = [EventBus(), EventBus()]
    sinks = [await SQLiteSink(path, **QUICK).start(bus) for bus in buses]
    threads = [threading.Thread(target=publish, args=(bus, 3000)) for bus in buses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sink in sinks:
        await sink.stop()

    assert rows(path, "SELECT max(seq), count(*), count(DISTINCT id) FROM events") == [(6000, 6000, 6000)]


async def test_another_version_of_the_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.db"
    await written(path, 1)
    rows(path, "PRAGMA user_version = 99")

    with pytest.raises(ForeignFile, match="version 99"):
        await SQLiteSink(path).start(EventBus())


async def test_data_beyond_sqlites_limit_becomes_a_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.db"
    monkeypatch.setattr(sqlite, "MAX_DATA", 1000)
    insert = SQLiteSink._insert

    def limited(self: SQLiteSink, events: Any, to_row: Any) -> None:
        assert self._connection is not None
        self._connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2000)
        insert(self, events, to_row)

    monkeypatch.setattr(SQLiteSink, "_insert", limited)
    sink = await SQLiteSink(path).start(bus := EventBus())
    bus.publish("small", "here", {"a": 1})
    bus.publish("big", "here", {"a": "x" * 3000})
    await sink.stop()

    small, big = log(path)
    assert small.data == {"a": 1}
    assert big.data == {"unserializable": "dict of 3008 characters"}
