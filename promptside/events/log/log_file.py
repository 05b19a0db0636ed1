"""Which file is at a path, and which kind of log it is. Used by `FileSink` and `read`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, Literal

from promptside.events.log.codec import from_record

__all__ = ["ForeignFile", "Kind", "identity", "kind_of"]

Kind = Literal["empty", "sqlite", "jsonl"]

SQLITE_HEADER: Final = b"SQLite format 3\0"

LINE_START: Final = b'{"id":"'
"""How the lines of `promptside.events.log.codec.to_line` begin."""

MAX_LINE: Final = 64 * 2**20
"""Bytes read of a first line, so that a foreign file of any size does not fill the memory."""


class ForeignFile(ValueError):
    """The file is no log of events, or one of another version; it was not changed."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path} is not a log of promptside's events: {why}")


def identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file at `path`, or None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def kind_of(path: Path) -> Kind:
    """Return the kind of a log, from its first bytes.

    Raises:
        ForeignFile: It is neither empty nor a SQLite file, and its first line is not an event.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(len(SQLITE_HEADER))
        if head == SQLITE_HEADER:
            return "sqlite"
        file.seek(0)
        line = file.readline(MAX_LINE)
    if not line:
        return "empty"
    try:
        record = json.loads(line)
    except ValueError:
        if len(line) == MAX_LINE and line.startswith(LINE_START):
            return "jsonl"
        # A process that was killed while it wrote its first line leaves the beginning of that line.
        if not line.endswith(b"\n") and LINE_START.startswith(line[: len(LINE_START)]):
            return "empty"
        raise ForeignFile(path, "its first line is not JSON") from None
    try:
        from_record(record)
    except ValueError:
        raise ForeignFile(path, "its first line is not an event") from None
    return "jsonl"
