"""A sink that writes one line of JSON per event: for `jq`, log shippers and eyes."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Final

from promptside.events.event import Event
from promptside.events.log.codec import to_line
from promptside.events.log.log_file import ForeignFile, identity, kind_of
from promptside.events.sinks.file import FileSink

__all__ = ["JSONLSink"]

BLOCK: Final = 65_536
"""Bytes read in one step to find the end of the last whole line."""


class JSONLSink(FileSink):
    """Appends events to a file, one JSON object a line, for `promptside.events.read` and other tools.

    A line holds `id`, `seq`, `type`, `source`, `time`, `data` and the optional fields that are set. A value that JSON
    cannot hold is a marker, ``{"unserializable": "PosixPath"}``. Batches are not forced to the disk: they survive the
    death of the process, not of the machine. If a killed process left a part of a line at the end, it is cut off when
    the file is opened again. One sink at a time may write a file. When the file is moved or removed, a new one is begun
    at the next batch.

    Args:
        path: The file; made if it is not there, unlike its directory.
        **options: As for `FileSink`.
    """

    _file: io.FileIO | None = None

    def _open(self) -> None:
        file = self._file = io.FileIO(self.path, "a+")
        if kind_of(self.path) == "sqlite":
            raise ForeignFile(self.path, "it is a SQLite file, and SQLiteSink writes those")
        self._identity = identity(self.path)
        file.truncate(_end_of_last_line(file))

    def _append(self, events: Sequence[Event]) -> None:
        text = memoryview("".join(map(to_line, events)).encode())
        file = self._file
        assert file is not None
        before = file.seek(0, os.SEEK_END)
        try:
            while text:
                text = text[file.write(text) :]
        except OSError:
            file.truncate(before)
            raise

    def _close(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            file.close()


def _end_of_last_line(file: io.FileIO) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = file.seek(max(0, end - BLOCK))
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
