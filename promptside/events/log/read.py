"""Reads back the logs that `SQLiteSink` and `JSONLSink` write, also while they are written.

Called by users and by ``python -m promptside events``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from promptside import clock
from promptside.checks import check, check_path, is_number
from promptside.events.event import Event, build_event
from promptside.events.log.codec import attributes, from_record
from promptside.events.log.log_file import ForeignFile, identity, kind_of
from promptside.events.log.sqlite_layout import FIELDS, check_log
from promptside.events.patterns import compile_pattern

__all__ = ["read"]

CHUNK: Final = 500
"""Events that are held in memory at a time."""

HEAD: Final = 64
"""Bytes of the first line, which has a unique `id`; they differ after a file was truncated and begun anew."""

POLL: Final = 0.1
"""Seconds between two checks for new events."""

BUSY: Final = 5.0
"""Seconds that a reader waits for a lock; in WAL mode only the opening and the end of a writer take one."""

Wanted = Callable[[Event], bool]

_logger = logging.getLogger("promptside.events")


def read(
    path: str | PathLike[str],
    *,
    type: str = "*",
    source: str | None = None,
    trace_id: str | None = None,
    run_id: str | None = None,
    session_id: str | None = None,
    since: float | datetime | None = None,
    until: float | datetime | None = None,
    follow: bool = False,
) -> Iterator[Event]:
    """Read the events of a log, in their order, that match every argument.

    ::

        for event in read("run.db", type="lm.*.failed", since=time.time() - 3600):
            print(event.time, event.source, event.data)

    The file may be written meanwhile, by this process or another. Memory is bounded. Cost: O(events in the file), about
    5 us an event of a SQLite file. A ``sink.gap``, if `type` matches that, says how many events the writer lost.

    Args:
        path: A file of `SQLiteSink` or `JSONLSink`.
        type: A pattern, as for `EventBus.subscribe`.
        source: A path: events from there and from below it, ``"lm"`` meaning ``"lm/worker-1"`` as well.
        trace_id: Only events with this value.
        run_id: Only events with this value.
        session_id: Only events with this value.
        since: Not before this time: seconds since the epoch, or a `datetime` with its time zone.
        until: Before this time, likewise.
        follow: Wait for more at the end of the file, in `time.sleep`, until the time `until`, or for ever. A file that
            replaces the one at `path`, or is truncated and begun anew, is read from its beginning.

    Returns:
        An iterator; close or delete it to end one that follows.

    Raises:
        FileNotFoundError: There is no such file; or another `OSError` of opening it.
        ForeignFile: The file is no log of events.
        sqlite3.Error: SQLite cannot read the file.
        ValueError: An argument is not valid.
    """
    check_path("read", "path", path)
    file = Path(path)
    keys = {"trace_id": trace_id, "run_id": run_id, "session_id": session_id}
    exact = {key: value for key, value in keys.items() if value is not None}
    first = -math.inf if since is None else _seconds("since", since)
    last = math.inf if until is None else _seconds("until", until)
    matches = compile_pattern(type)

    def wanted(event: Event) -> bool:
        return (
            first <= event.time < last
            and matches(event.type)
            and (source is None or event.source == source or event.source.startswith(f"{source}/"))
            and all(getattr(event, key) == value for key, value in exact.items())
        )

    conditions: dict[str, Any] = {f"{key} = ?": value for key, value in exact.items()}
    if since is not None:
        conditions["time >= ?"] = first
    if until is not None:
        conditions["time < ?"] = last
    if "*" not in type:
        conditions["type = ?"] = type
    _open(file, conditions).close()  # errors are raised now, not by the first `next`
    return _read(file, conditions, wanted, last if follow else None)


def _read(path: Path, conditions: dict[str, Any], wanted: Wanted, follow_until: float | None) -> Iterator[Event]:
    while True:
        with closing(_open(path, conditions)) as log:
            while True:
                over = follow_until is None or clock.wall() >= follow_until
                replaced = not over and log.is_replaced()
                while (events := log.next_chunk()) is not None:
                    yield from filter(wanted, events)
                if over:
                    return
                if replaced:
                    break
                time.sleep(POLL)


class _Log(ABC):
    """An open log, with the position up to which it has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity = identity(path)

    @abstractmethod
    def next_chunk(self) -> list[Event] | None:
        """Return the next events, at most `CHUNK` and perhaps none of them, or None at the present end of the file."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def is_replaced(self) -> bool:
        """Whether another log is at the path by now."""
        return identity(self.path) not in (None, self._identity) and _is_log_at(self.path)


class _EmptyLog(_Log):
    """An empty file, which may become a log of either kind."""

    def next_chunk(self) -> list[Event] | None:
        return None

    def close(self) -> None:
        pass

    def is_replaced(self) -> bool:
        return _is_log_at(self.path)


class _SQLiteLog(_Log):
    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        super().__init__(path)
        # Only one thread at a time can be inside the generator that owns the connection.
        self._connection = sqlite3.connect(
            f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=BUSY, check_same_thread=False
        )
        try:
            self._is_log = check_log(self._connection, path)
        except BaseException:
            self._connection.close()
            raise
        where = " AND ".join(["seq > ? AND seq <= ?", *conditions])
        self._query = f"SELECT seq, {', '.join(FIELDS)} FROM events WHERE {where} ORDER BY seq LIMIT {CHUNK}"  # noqa: S608 - values are bound
        self._values = tuple(conditions.values())
        self._position = self._end = 0

    def next_chunk(self) -> list[Event] | None:
        if not self._is_log:
            self._is_log = check_log(self._connection, self.path)
            if not self._is_log:
                return None
        if self._position == self._end:
            # The end is fixed first: events that do not match are then passed once, and not at every check.
            ((end,),) = self._connection.execute("SELECT ifnull(max(seq), 0) FROM events")
            self._end = end
            if self._position == end:
                return None
        # All at once: the writer cannot reset its WAL while a query is open.
        rows = self._connection.execute(self._query, (self._position, self._end, *self._values)).fetchall()
        self._position = rows[-1][0] if len(rows) == CHUNK else self._end
        return [_event(*row) for row in rows]

    def close(self) -> None:
        self._connection.close()


class _LinesLog(_Log):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = path.open("rb")
        self._head = b""
        self._number = 0

    def next_chunk(self) -> list[Event] | None:
        events: list[Event] = []
        for _ in range(CHUNK):
            start = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(start)  # a line that is being written; it is read again when it is whole
                return events or None
            self._head = self._head or line[:HEAD]
            self._number += 1
            try:
                events.append(from_record(json.loads(line)))
            except ValueError:
                _logger.warning("line %d of %s is not an event and is skipped", self._number, self.path)
        return events

    def close(self) -> None:
        self._file.close()

    def is_replaced(self) -> bool:
        # Truncated and begun anew, as by logrotate's `copytruncate`. A sink that undoes a batch leaves the head.
        position = self._file.tell()
        self._file.seek(0)
        anew = self._file.read(len(self._head)) != self._head
        self._file.seek(0 if anew else position, os.SEEK_END if anew else os.SEEK_SET)
        return anew or super().is_replaced()


def _event(position: int, id: str, seq: int, type: str, source: str, time: float, data: str, *keys: Any) -> Event:
    return build_event(id, seq, type, source, time, attributes(json.loads(data)), *keys)


def _open(path: Path, conditions: dict[str, Any]) -> _Log:
    kind = kind_of(path)
    if kind == "sqlite":
        return _SQLiteLog(path, conditions)
    return _LinesLog(path) if kind == "jsonl" else _EmptyLog(path)


def _is_log_at(path: Path) -> bool:
    try:
        return kind_of(path) != "empty"
    except (OSError, ForeignFile):
        return False


def _seconds(field: str, value: float | datetime) -> float:
    if not isinstance(value, datetime):
        check("read", field, value, is_number(value), "give seconds since the epoch, or a datetime with its time zone")
        return value
    if value.tzinfo is None:
        raise ValueError(f"{field}={value!r} has no time zone; call its `astimezone`, or give seconds since the epoch")
    return value.timestamp()
