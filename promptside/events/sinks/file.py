"""`FileSink`: base of the sinks that append to a file, `JSONLSink` and `SQLiteSink`."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Self, Unpack

from promptside.checks import check_path
from promptside.events.bus import EventBus
from promptside.events.event import Event
from promptside.events.log.log_file import identity
from promptside.events.sinks.sink import Sink, SinkOptions

__all__ = ["FileSink"]


class FileSink(Sink):
    """Appends events to the file at a path. When that is moved or removed, a new one is begun at the next batch.

    Args:
        path: The file; made if it is not there, unlike its directory.
        **options: `pattern`, `buffer`, `interval`, `batch_size` and `flush_timeout`, as for `Sink`.
    """

    def __init__(self, path: str | os.PathLike[str], **options: Unpack[SinkOptions]) -> None:
        check_path(type(self).__name__, "path", path)
        self.path = Path(path)
        super().__init__(self.path.name, **options)
        self._identity: tuple[int, int] | None = None  # of the file that is open; set by `_open`

    async def start(self, events: EventBus) -> Self:
        """As `Sink.start`.

        Raises:
            ForeignFile: The file is there and holds something else.
            OSError: It cannot be opened; of SQLite, a `sqlite3.Error`.
            RuntimeError: As for `Sink.start`.
            ValueError: As for `Sink.start`.
        """
        return await super().start(events)

    def _write(self, events: Sequence[Event]) -> None:
        if identity(self.path) != self._identity:
            self._close()
            self._open()
        self._append(events)
        if identity(self.path) != self._identity:
            raise FileNotFoundError(f"{self.path} was moved or removed while it was written")

    @abstractmethod
    def _append(self, events: Sequence[Event]) -> None:
        """Write a batch to the open file, whole or not at all."""
