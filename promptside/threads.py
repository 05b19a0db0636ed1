"""The threads that the library starts, and where they are when they do not end.

Called by sinks, nodes, portals and services. Imports nothing of this project.
"""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
from asyncio.events import Handle
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import thread as executors
from contextlib import suppress
from types import FrameType
from typing import Any, ClassVar, Final

__all__ = ["Heartbeat", "at_exit", "holds_exit", "let_go", "start_thread", "where", "where_loop_is"]

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


def where_loop_is(loop: asyncio.AbstractEventLoop) -> str:
    """`where` the thread is that runs an event loop."""
    running = [each for each in threading.enumerate() if each.ident == _thread_of(loop)]
    return where(running[0]) if running else "it does not run"


class Heartbeat:
    """Whether an event loop is blocked: it stays in one callback. Asked regularly, from another thread or loop.

    A busy machine makes all that is due on a loop late. That loop still goes from one callback to the next.
    """

    SECONDS: ClassVar = 1.0
    """From one question to the next."""

    MAX_MISSED: ClassVar = 5
    """A loop that has missed so many counts as blocked."""

    def __init__(self) -> None:
        self._beat: Future[None] | None = None
        self._callback: FrameType | None = None
        self._missed = 0

    def missed(self, loop: asyncio.AbstractEventLoop) -> int:
        """How many times in a row it was asked and had done nothing since the time before."""
        before, self._callback = self._callback, _callback_of(loop)
        if self._beat is None or self._beat.done():
            self._beat = Future()
            with suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._beat.set_result, None)
            self._missed = 0
        elif self._callback is not None and self._callback is not before:
            self._missed = 0
        else:
            self._missed += 1
        return self._missed


def _thread_of(loop: Any) -> int | None:
    ident: int | None = getattr(loop, "_thread_id", None)
    return ident


def _callback_of(loop: asyncio.AbstractEventLoop) -> FrameType | None:
    """The frame of the callback that the loop is in; of whatever it does where there is none; None if it does not run.

    A frame that is kept is never used for another call.
    """
    frame = innermost = sys._current_frames().get(_thread_of(loop) or 0)
    while frame is not None and frame.f_code is not Handle._run.__code__:
        frame = frame.f_back
    return frame or innermost


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
