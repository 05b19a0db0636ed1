"""Events that report a loss, in the log: the bus writes those here that have no listener."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from promptside.events.event import Event
from promptside.events.reports import Reports
from promptside.texts import repr_of, text_of

__all__ = ["LOG_LEVELS", "Losses"]

LOG_LEVELS: Final[Mapping[str, int]] = {
    "actor.crashed": logging.ERROR,
    "supervisor.gave_up": logging.ERROR,
    "message.dead": logging.WARNING,
}
"""Types that are logged when they have no listener, with their level."""

LINES: Final[Mapping[str, int]] = {"actor.crashed": 100, "supervisor.gave_up": 100, "message.dead": 10}
"""Events of each that are logged in ten seconds; the rest is summed up."""

DETAILS: Final = frozenset({"traceback", "parts", "causes"})
"""Fields that the log has in its own form."""


class Losses(Reports):
    """The lines of one bus in the logger ``promptside``."""

    def __init__(self) -> None:
        super().__init__(logging.getLogger("promptside"))

    def write_event(self, level: int, event: Event, error: BaseException | None) -> None:
        """Log an event, with the traceback of the error that it tells of."""
        data = event.data
        if type(data) is dict:
            data = {name: value for name, value in data.items() if name not in DETAILS}
        text = f"{event.type} from {text_of(event.source)}: {repr_of(data)}"
        self.write(event.type, level, text, error=error, lines=LINES[event.type])
