"""The threads that the library starts, and where they are when they do not end.

Called by sinks, nodes, portals and services. Imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import thread as executors
from contextlib import suppress
from typing import Any, Final

__all__ = ["Heartbeat", "at_exit", "holds_exit", "let_go", "start_thread", "where"]

STDLIB: Final = (sysconfig.get_path("stdlib"), "<frozen")

GREEN: Final = (("gevent", "gevent.monkey", "is_module_patched", "threading"),
                ("eventlet", "eventlet.patcher", "is_monkey_patched", "thread"))  # fmt: skip
"""What makes green threads of threads: its name, and the function of its module that tells, with its argument."""


def start_thread(main: Callable[[], object], name: str) -> threading.Thread:
    """Run `main` in a new daemon thread.

    Raises:
        RuntimeError: The process can have no more threads, or they are green threads, which share one event loop.
    """
    for library, module, function, argument in GREEN:
        patched = getattr(sys.modules.get(module), function, None)
        if patched is not None and patched(argument):
            raise RuntimeError(
                f"{library} has replaced the threads of this process (monkey-patched), and an event loop needs a real "
                f"one: patch without them, `monkey.patch_all(thread=False)`, or run promptside in a process of its own"
            )
    thread = threading.Thread(target=main, name=name, daemon=True)
    thread.start()
    return thread


def where(thread: threading.Thread) -> str:
    """The thread, and the line of the application that it is at: ``'worker_0' in read (/app/desk.py, line 12)``."""
    innermost = frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None and _is_stdlib(frame.f_code.co_filename):
        frame = frame.f_back
    frame = frame or innermost
    if frame is None:
        return f"{thread.name!r}, which has ended"
    return f"{thread.name!r} in {frame.f_code.co_name} ({frame.f_code.co_filename}, line {frame.f_lineno})"


def _is_stdlib(file: str) -> bool:
    return file.startswith(STDLIB) and "site-packages" not in file


class Heartbeat:
    """Whether an event loop does anything. Asked from another thread, or another loop."""

    def __init__(self) -> None:
        self._beat: Future[None] | None = None

    def answers(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it has done anything since it was asked the last time."""
        if self._beat is not None and not self._beat.done():
            return False
        beat = self._beat = Future()
        with suppress(RuntimeError):  # it is closed
            loop.call_soon_threadsafe(beat.set_result, None)
        return True


def holds_exit(thread: threading.Thread) -> bool:
    """Whether the interpreter waits for the thread when it exits."""
    return thread.is_alive() and (not thread.daemon or thread in executors._threads_queues)


def at_exit(function: Callable[[], object]) -> None:
    """Call `function` when the interpreter's exit begins, before it waits for threads, as `atexit` does after that."""
    register: Any = threading._register_atexit  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    register(function)


def let_go(thread: threading.Thread) -> None:
    """Do not wait at the interpreter's exit for a daemon thread of an executor, as is done for each of them."""
    waited_for: Any = executors._threads_queues
    waited_for.pop(thread, None)
