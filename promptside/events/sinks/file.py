"""`FileSink`: what sinks that append to a file share: its path, and a new file when the one at that path is another.

Base of `JSONLSink` and `SQLiteSink`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from promptside.events.event import Event
from promptside.events.log.log_file import identity
from promptside.events.sinks.sink import Sink

__all__ = ["FileSink"]


class FileSink(Sink):
    """Appends events to the file at a path. When that is moved or removed, a new one is begun at the next batch.

    Args:
        path: The file; made if it is not there, unlike its directory.
        pattern: See `Sink`, as for the following.
        buffer: See `Sink`.
        interval: See `Sink`.
        batch_size: See `Sink`.
        flush_timeout: See `Sink`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        pattern: str = "*",
        buffer: int = 100_000,
        interval: float = 0.1,
        batch_size: int = 10_000,
        flush_timeout: float = 5.0,
    ) -> None:
        self.path = Path(path)
        super().__init__(
            self.path.name,
            pattern=pattern,
            buffer=buffer,
            interval=interval,
            batch_size=batch_size,
            flush_timeout=flush_timeout,
        )
        self._identity: tuple[int, int] | None = None  # of the file that is open; set by `_open`

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
