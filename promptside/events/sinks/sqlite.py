"""A sink that writes into a SQLite file: the log that runs are resumed from and questions are put to.

The layout of the file is here; `promptside.events.log.read` reads it.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Final, Self

from promptside.events.bus import EventBus
from promptside.events.event import Event
from promptside.events.log.codec import KEYS, encode, to_json
from promptside.events.log.log_file import ForeignFile, identity
from promptside.events.sinks.file import FileSink

__all__ = ["FIELDS", "SQLiteSink", "check_log"]

FIELDS: Final = ("id", "event_seq", "type", "source", "time", "data", *KEYS)
"""Columns in the order of the fields of `Event`; `Event.seq` is `event_seq`, and `seq` the position in the file."""

APPLICATION_ID: Final = 0x70736576
"""Marks the file as ours, in its header (``psev``)."""

VERSION: Final = 1
"""Of the layout, in the header's `user_version`."""

LAYOUT: Final = (
    """CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    event_seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    source TEXT NOT NULL,
    time REAL NOT NULL,
    data TEXT NOT NULL,
    trace_id TEXT,
    span_id TEXT,
    parent_id TEXT,
    run_id TEXT,
    call_id TEXT,
    session_id TEXT,
    incarnation INTEGER
)""",
    """CREATE TRIGGER events_are_not_changed BEFORE UPDATE ON events
    BEGIN SELECT RAISE(ABORT, 'the log of events is append-only'); END""",
    """CREATE TRIGGER events_are_not_deleted BEFORE DELETE ON events
    BEGIN SELECT RAISE(ABORT, 'the log of events is append-only'); END""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)

BUSY: Final = 0.25
"""Seconds that one attempt waits for another process's lock."""

MAX_DATA: Final = 100_000_000
"""Characters of an event's `data`; SQLite takes 1,000,000,000 bytes, and refuses the whole batch beyond."""

VALUE_ERRORS: Final = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    OverflowError,
    UnicodeEncodeError,
)
"""What sqlite3 raises for a field that it does not take."""

ROWS: Final = (2000, 200, 20, 1)
"""Rows of one INSERT, as many as are left. A thread gives the GIL away with each statement and, beside a thread that
computes, gets it back after 5 ms: row by row that is 200 events a second. 2,000 rows of 13 values are within SQLite's
limit of 32,766 parameters."""

ABSENT: Final = -0.5
"""Stands for None among the parameters, and is no value of any field. Up to Python 3.11, binding a None takes ten times
as long as binding a number: 1.8 us more for a row."""

_placeholders: Final = f"({','.join([f'nullif(?,{ABSENT})'] * len(FIELDS))})"
_inserts: Final = {
    rows: f"INSERT INTO events ({','.join(FIELDS)}) VALUES {','.join([_placeholders] * rows)}"  # noqa: S608 - constants only
    for rows in ROWS
}
_head: Final = attrgetter("id", "seq", "type", "source", "time")
_keys: Final = attrgetter(*KEYS)


class SQLiteSink(FileSink):
    """Appends events to the table `events` of a SQLite file; `promptside.events.read` reads it, and so does any tool.

    The columns are the fields of `Event`, `data` as JSON text; but `seq` is the position in the file, from 1 and
    without gaps, and `event_seq` is `Event.seq`, the position on the bus. Triggers refuse UPDATE and DELETE. The file
    is in WAL mode: other processes read while it is written, and a killed process leaves it whole, without what was
    published in the last `interval`. It is not forced to the disk at each batch: the death of the machine can take the
    last seconds.

    A value that JSON cannot hold is a marker, ``{"unserializable": "PosixPath"}``. An existing log is appended to. When
    the file is moved or removed, a new one is begun at the next batch; a moved one is whole from then on. Not for
    network file systems, where WAL does not work. Without indices: a question costs O(events), about a second per
    million.

    Args:
        path: The file; made if it is not there, unlike its directory.
        pattern: See `Sink`, as for the following.
        buffer: See `Sink`.
        interval: See `Sink`.
        batch_size: See `Sink`.
        flush_timeout: See `Sink`.
    """

    _connection: sqlite3.Connection | None = None

    async def start(self, events: EventBus) -> Self:
        """As `Sink.start`.

        Raises:
            ForeignFile: The file is there and holds something else.
            sqlite3.Error: It cannot be opened, or is locked.
            RuntimeError: As for `Sink.start`.
        """
        return await super().start(events)

    def _open(self) -> None:
        connection = self._connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
        if not check_log(connection, self.path):
            # One transaction, before the WAL: whoever reads meanwhile sees an empty file or a whole log.
            connection.execute("BEGIN IMMEDIATE")
            if not check_log(connection, self.path):  # another process was not faster
                for statement in LAYOUT:
                    connection.execute(statement)
            connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        self._identity = identity(self.path)

    def _append(self, events: Sequence[Event]) -> None:
        try:
            self._insert(events, _row)
        except VALUE_ERRORS:
            self._insert(events, _safe_row)

    def _insert(self, events: Sequence[Event], to_row: Callable[[Event], Sequence[object]]) -> None:
        connection = self._connection
        assert connection is not None
        connection.execute("BEGIN IMMEDIATE")
        try:
            start = 0
            for size, insert in _inserts.items():
                while len(events) - start >= size:
                    # Rows are taken apart at once: kept, they would be work for the garbage collector.
                    some = events[start : start + size]
                    values = [ABSENT if value is None else value for event in some for value in to_row(event)]
                    connection.execute(insert, values)
                    start += size
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise

    def _close(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                if identity(self.path) != self._identity:
                    # Of a file that was moved SQLite leaves the WAL behind, and with it what was written last.
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()


def _row(event: Event) -> Sequence[object]:
    try:
        data = encode(event.data)
    except Exception:  # noqa: BLE001 - a foreign object may raise whatever it likes
        data = to_json(event.data)
    return (*_head(event), data, *_keys(event))


def _safe_row(event: Event) -> Sequence[object]:
    """Return the row of an event with a field that SQLite does not take, such as a `Path` as `source`."""
    data = to_json(event.data)
    if len(data) > MAX_DATA:
        data = to_json({"unserializable": f"{type(event.data).__name__} of {len(data)} characters"})
    return (*map(_safe, _head(event)), data, *(None if key is None else _safe(key) for key in _keys(event)))


def _safe(value: object) -> object:
    try:
        match value:
            case str():
                value.encode()
                return value
            case int() if -(2**63) <= value < 2**63:
                return value
            case float() if math.isfinite(value):
                return value
    except UnicodeEncodeError:  # half of a surrogate pair: JSON writes it in ASCII
        pass
    return to_json(value)


def check_log(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a SQLite file is a log of events, or False if it is empty.

    Raises:
        ForeignFile: It is neither.
        sqlite3.Error: It cannot be read.
    """
    try:
        ((application,),) = connection.execute("PRAGMA application_id")
        ((version,),) = connection.execute("PRAGMA user_version")
        ((tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.DatabaseError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
            raise ForeignFile(path, "it is not a SQLite file") from None
        raise
    if application == APPLICATION_ID:
        if version != VERSION:
            raise ForeignFile(path, f"its layout has version {version}, and this is promptside's version {VERSION}")
        return True
    if application or tables:
        raise ForeignFile(path, "it is a SQLite file of another application")
    return False
