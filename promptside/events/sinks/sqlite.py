"""A sink that writes into a SQLite file: the log that runs are resumed from and that SQL can query."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final

from promptside.events.event import Event
from promptside.events.log.codec import KEYS, encode, to_json
from promptside.events.log.log_file import identity
from promptside.events.log.sqlite_layout import FIELDS, LAYOUT, check_log
from promptside.events.sinks.file import FileSink

__all__ = ["SQLiteSink"]

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
"""Errors that sqlite3 raises for a field that it does not take."""

ROWS: Final = (2000, 200, 20, 1)
"""Rows of one INSERT; the largest that is not more than are left. Each statement releases the GIL, and beside a thread
that computes it is got back after 5 ms: row by row that is 200 events a second. 2,000 rows of 13 values are within
SQLite's limit of 32,766 parameters."""

ABSENT: Final = -0.5
"""Stands for None among the parameters; no field has this value. Up to Python 3.11, binding a None takes ten times as
long as binding a number: 1.8 us more for a row."""

_placeholders: Final = f"({','.join([f'nullif(?,{ABSENT})'] * len(FIELDS))})"
_inserts: Final = {
    rows: f"INSERT INTO events ({','.join(FIELDS)}) VALUES {','.join([_placeholders] * rows)}"  # noqa: S608 - constants only
    for rows in ROWS
}
_head: Final = attrgetter("id", "seq", "type", "source", "time")
_keys: Final = attrgetter(*KEYS)


class SQLiteSink(FileSink):
    """Appends events to the table `events` of a SQLite file, for `promptside.events.read` and any SQL tool.

    The columns are the fields of `Event`, `data` as JSON text; but `seq` is the position in the file, from 1 and
    without gaps, and `event_seq` is `Event.seq`, the position on the bus. Triggers refuse UPDATE and DELETE. The file
    is in WAL mode: other processes can read while it is written, and a killed process leaves it whole, without the
    events of the last `interval`. Batches are not forced to the disk: if the machine dies, the last seconds can be
    lost.

    A value that JSON cannot hold is a marker, ``{"unserializable": "PosixPath"}``. An existing log is appended to. When
    the file is moved or removed, a new one is begun at the next batch; the moved one is whole. Not for network file
    systems, where WAL does not work. There are no indices: a query costs O(events), about a second per million.

    Args:
        path: The file; made if it is not there, unlike its directory.
        **options: As for `FileSink`.
    """

    _connection: sqlite3.Connection | None = None

    def _open(self) -> None:
        connection = self._connection = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
        if not check_log(connection, self.path):
            # One transaction, before the WAL: a reader sees an empty file or a whole log.
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
                    # SQLite leaves the WAL of a moved file behind, and with it the last batches.
                    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                connection.close()


def _row(event: Event) -> Sequence[object]:
    try:
        data = encode(event.data)
    except Exception:  # noqa: BLE001 - a foreign object may raise anything
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
