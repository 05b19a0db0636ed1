"""`ForkGuard`: whether an event bus is a copy in a fork of its process. Made by the bus."""

from __future__ import annotations

import logging
import os

from promptside.events.reports import Reports

__all__ = ["ForkGuard"]


class ForkGuard:
    """Knows its process. In a fork of it, a lock may be held, and by nobody; and the listeners are elsewhere."""

    def __init__(self) -> None:
        self._process = os.getpid()

    def trouble(self) -> str | None:
        """What is wrong in a fork; None in its own process."""
        if self._process == os.getpid():
            return None
        return (
            f"nobody hears the event bus of process {self._process} in a fork of it; open an ActorSystem after the fork"
        )

    def refuses(self, reports: Reports) -> bool:
        """Whether this is a fork, which is said once."""
        if (trouble := self.trouble()) is not None:
            reports.write("forks", logging.ERROR, trouble)
        return trouble is not None

    def check(self) -> None:
        """Raise `RuntimeError` in a fork."""
        if (trouble := self.trouble()) is not None:
            raise RuntimeError(trouble)
