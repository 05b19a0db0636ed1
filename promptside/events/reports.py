"""`Reports`: what the library logs on its own account.

The bus, hooks and sinks log here what they lose. Somebody's log handler may tell an actor, publish an event, or raise;
so a line never leads to another one of the same thread, a flood is a few lines and a sum, and nothing is raised.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from typing import ClassVar, Final

from promptside import clock
from promptside.texts import facts, tb_of

__all__ = ["Reports"]

LINES: Final = 10
"""Lines of a kind in one window, unless its reporter says otherwise; the rest is summed up."""

WINDOW: Final = 10.0
"""Seconds."""

_writing = threading.local()


class Reports:
    """Lines in a logger, with a bound on each kind of them.

    Args:
        logger: Where they go.
    """

    # Reentrant, because a finalizer may report while its thread does; held for the counters only, never for a line.
    _lock: ClassVar = threading.RLock()

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._kinds: dict[str, _Kind] = {}

    def write(
        self, kind: str, level: int, text: str, *, error: BaseException | None = None, lines: int = LINES
    ) -> None:
        """Log a line, or count it where there were `lines` of its kind already. From any thread; it raises nothing.

        Args:
            kind: What the sum is of; one of a few.
            level: As for `logging`.
            text: The line, made of safe texts alone.
            error: An exception whose traceback is logged with it.
            lines: Of this kind in ten seconds.
        """
        now = clock.monotonic()
        with self._lock:
            counted = self._kinds.get(kind)
            if counted is None:
                counted = self._kinds[kind] = _Kind(level, now)
            nested, left_out = getattr(_writing, "now", False), 0
            if now - counted.since >= WINDOW and not nested:
                left_out = counted.renew(now)
            if nested or counted.lines >= lines:
                counted.left_out += 1
                self._sum_up_later(kind, counted)
                return
            counted.lines += 1
        self._sum_up(kind, level, left_out)
        self._log(level, text, error)

    @classmethod
    def renew_lock(cls) -> None:
        """In a fork: a thread that was not copied may hold the lock."""
        cls._lock = threading.RLock()

    def close(self) -> None:
        """Log the sums that are due; lines may still come afterwards."""
        now = clock.monotonic()
        with self._lock:
            due = [(kind, counted.level, counted.renew(now)) for kind, counted in self._kinds.items()]
        for each in due:
            self._sum_up(*each)

    def _sum_up_later(self, kind: str, counted: _Kind) -> None:
        """Log the sum when the window is over; without an event loop, the next line or the end does."""
        loop = asyncio._get_running_loop()
        if loop is None or counted.timer is not None:
            return

        def over() -> None:
            with self._lock:
                left_out = counted.renew(clock.monotonic())
            self._sum_up(kind, counted.level, left_out)

        counted.timer = loop, loop.call_later(WINDOW, over)

    def _sum_up(self, kind: str, level: int, left_out: int) -> None:
        if left_out and not getattr(_writing, "now", False):
            self._log(level, f"{kind}: {left_out:,} more, which were counted and not logged one by one", None)

    def _log(self, level: int, text: str, error: BaseException | None) -> None:
        if error is not None and not _can_print(error):
            places = [f"\n  File {file!r}, line {line}, in {name}" for file, line, name in facts(error)["traceback"]]
            text, error = "".join((text, *places)), None
        _writing.now = True
        try:
            self._logger.log(level, "%s", text, exc_info=None if error is None else (type(error), error, tb_of(error)))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001, S110 - of a handler of the logger; nobody is left to be told
            pass
        finally:
            _writing.now = False


if sys.platform != "win32":
    os.register_at_fork(after_in_child=Reports.renew_lock)


class _Kind:
    """The lines of one kind in its window."""

    def __init__(self, level: int, since: float) -> None:
        self.level = level
        self.since = since
        self.lines = 0
        self.left_out = 0
        self.timer: tuple[asyncio.AbstractEventLoop, asyncio.TimerHandle] | None = None

    def renew(self, now: float) -> int:
        """Begin a new window; returns how many lines the last one has left out."""
        left_out, self.left_out, self.lines, self.since = self.left_out, 0, 0, now
        if self.timer is not None:
            (loop, timer), self.timer = self.timer, None
            if asyncio._get_running_loop() is loop:
                timer.cancel()
            else:
                with suppress(RuntimeError):  # it is closed
                    loop.call_soon_threadsafe(timer.cancel)
        return left_out


def _can_print(error: BaseException) -> bool:
    """Whether `logging` can print it: its notes may be a property that raises, its text one that cannot be encoded."""
    try:
        "".join(traceback.format_exception(error)).encode()
    except BaseException:  # noqa: BLE001
        return False
    return True
