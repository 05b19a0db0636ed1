"""The layout of a SQLite file of events, which `SQLiteSink` writes and `read` reads."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from promptside.events.log.codec import KEYS
from promptside.events.log.log_file import ForeignFile

__all__ = ["FIELDS", "LAYOUT", "check_log"]

FIELDS: Final = ("id", "event_seq", "type", "source", "time", "data", *KEYS)
"""Columns in the order of the fields of `Event`; `Event.seq` is `event_seq`, and `seq` the position in the file."""

APPLICATION_ID: Final = 0x70736576
"""Marks the file as a log of events, in its header (``psev``)."""

VERSION: Final = 1
"""Version of the layout, in the header's `user_version`."""

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


def check_log(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a SQLite file is a log of events, or False if it is empty.

    Raises:
        ForeignFile: It holds something else.
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
