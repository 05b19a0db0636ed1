"""`Maker`: makes the modules of a program where they will be used; `HomeThread`: a thread that they belong to.

Some objects work in one thread alone, the one that made them: a `sqlite3` connection, an interpreter, what a
`threading.local` holds. Modules that are awaited are therefore made on the event loop, and others in a thread. Where
such an object is found in what was made there, that thread is kept, and it runs the synchronous calls of the program,
one after the other. Otherwise these run in any thread, many at a time.

Called by the actors of a program when they start.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import logging
import queue
import sqlite3
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final, TypeAlias, TypeVar

import anyio
import dspy

from promptside.errors import ProgramError
from promptside.programs.hosting.entry import entry_of, prefers_loop
from promptside.supervision.handle import Handle
from promptside.texts import repr_of, text_of

__all__ = ["HomeThread", "Maker", "ModuleSource", "explain_thread"]

T = TypeVar("T")

Calls: TypeAlias = "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]"

ModuleSource: TypeAlias = dspy.Module | Callable[[], dspy.Module]

SEARCHED: Final = 10_000
"""Objects in a module that are looked at, for one of a single thread."""

AGAIN: Final = (
    "The factory was called a second time, on the event loop, where what it makes is awaited. Give Program the "
    "module's class, or a functools.partial of it, and it is called there alone."
)

OPAQUE: Final = (str, bytes, type, types.ModuleType, logging.Logger, threading.Thread, dspy.BaseLM, Handle)
"""What is not searched: it holds no such object, or nearly everything there is."""


class HomeThread:
    """A thread that runs one call after the other; made on the event loop that its callers are on.

    It is one of anyio's worker threads, held for as long as it is needed: in no other can DSPy stream.

    Args:
        name: Of the thread, for that time.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._under_way = 0
        self._hold()

    def _hold(self) -> None:
        self._calls: Calls = queue.SimpleQueue()
        self._thread: list[Any] = []
        work = anyio.to_thread.run_sync(
            _work, self._calls, self._thread, self._name, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
        self._held = asyncio.ensure_future(work)  # noqa: TID251 - ended by `shutdown`
        self._end = weakref.finalize(self, self._calls.put, None)

    @property
    def is_current(self) -> bool:
        """Whether this code runs there."""
        return threading.current_thread() in self._thread

    def shutdown(self) -> None:
        """Let it go after the calls that it has. A later call takes another one."""
        self._end()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function there, in the caller's context. Cancelled, it is left to end by itself if it has begun."""
        if not self._end.alive:
            self._hold()
        future: Future[T] = Future()
        self._under_way += 1
        self._calls.put((future, functools.partial(copy_context().run, function)))
        self._tell()
        try:
            return await asyncio.wrap_future(future)
        finally:
            self._under_way -= 1
            self._tell()

    def _tell(self) -> None:
        for thread in self._thread:
            thread.waits_for_calls = not self._under_way  # `promptside.testing.virtual_time` asks for it


def _work(calls: Calls, held: list[Any], name: str) -> None:
    thread = threading.current_thread()
    before, thread.name = thread.name, name
    held.append(thread)
    try:
        while (call := calls.get()) is not None:
            _run(*call)
            del call
    finally:
        held.clear()
        thread.name = before
        vars(thread).pop("waits_for_calls", None)


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function())
        except StopIteration as error:  # which no future of asyncio takes
            future.set_exception(RuntimeError(f"a module raised StopIteration({text_of(error)})"))
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            future.set_exception(error)


class Maker:
    """Makes the modules of one program, or of a part that was swapped in, at its start and at restarts.

    Args:
        source: The module, or its factory.
        name: Of the program.
        one_thread: Whether a module that runs in threads always runs in the one that made it.
        home: The thread in which it is made, if there is one already.

    Attributes:
        home: The thread that the modules belong to, if they do.
        bound: Whether they belong to one thread, be it that of the event loop.
    """

    def __init__(
        self, source: ModuleSource, name: str, *, one_thread: bool = False, home: HomeThread | None = None
    ) -> None:
        self.home = home
        self.bound = home is not None
        self._source = source
        self._name = name
        self._one_thread = one_thread
        factory = source.func if isinstance(source, functools.partial) else source
        self._on_loop = isinstance(factory, type) and prefers_loop(factory)

    @property
    def makes_new(self) -> bool:
        """Whether each call of `make` gives another module."""
        return not isinstance(self._source, dspy.Module)

    async def make(self) -> dspy.Module:
        """The module.

        Raises:
            TypeError: The source gives no module.
            Exception: Whatever the factory raised.
        """
        source = self._source
        if isinstance(source, dspy.Module):
            # Made elsewhere; but an interpreter belongs to the thread that uses it first.
            if self.home is None and _runs_in_thread(source) and (self._one_thread or _has_interpreter(source)):
                self.home = HomeThread(f"{self._name}, its modules")
            return source
        if self.home is not None:
            return await self.home.run(lambda: _call(source))
        if not self._on_loop:
            module = await self._make_in_thread(source)
            if module is not None:
                return module
            self._on_loop = True
            try:
                module = _call(source)
            except Exception as error:
                error.add_note(AGAIN)
                raise
        else:
            module = _call(source)
        self.bound = await _is_bound(*_bindings(module))
        return module

    async def _make_in_thread(self, source: Callable[[], dspy.Module]) -> dspy.Module | None:
        """The module, made in a thread of its own; None if that has to be done on the event loop."""
        home = HomeThread(f"{self._name}, its modules")
        keep = False
        try:
            module, bindings = await home.run(lambda: _made(source))
            self.bound = await _is_bound(*bindings)
            threaded = _runs_in_thread(module)
            keep = threaded and (self.bound or self._one_thread)
            if keep:
                self.home = home
            return module if threaded or not self.bound else None
        except RuntimeError as error:
            if "event loop" not in text_of(error):
                raise
            return None
        finally:
            if not keep:
                home.shutdown()

    def make_here(self) -> dspy.Module:
        """The module, made in this thread."""
        return self._source if isinstance(self._source, dspy.Module) else _call(self._source)


def explain_thread(error: Exception, path: str) -> ProgramError | None:
    """The error of a module that used something in another thread than made it, with the remedy; None for others."""
    text = text_of(error)
    foreign = (
        (isinstance(error, sqlite3.ProgrammingError) and "created in a thread" in text)
        or (isinstance(error, dspy.CodeInterpreterError) and "across threads" in text)
        or (isinstance(error, AttributeError) and isinstance(error.obj, threading.local))
    )
    if not foreign:
        return None
    return ProgramError(
        f"{path!r} uses in a worker thread what was made in another one: {type(error).__name__}: {text}. Give Program "
        "a factory, such as the module's class, that makes it: with max_threads=1 all runs in the thread that made it; "
        "or make it in `forward`"
    )


def _call(source: Callable[[], object]) -> dspy.Module:
    module = source() if callable(source) else source
    if not isinstance(module, dspy.Module):
        raise TypeError(f"source={repr_of(source)}: give a dspy.Module, or a callable that returns one")
    return module


def _made(source: Callable[[], object]) -> tuple[dspy.Module, tuple[list[sqlite3.Connection], bool]]:
    module = _call(source)
    return module, _bindings(module)


def _runs_in_thread(module: dspy.Module) -> bool:
    return entry_of(module).threaded


async def _is_bound(connections: list[sqlite3.Connection], certain: bool) -> bool:
    return certain or (bool(connections) and await anyio.to_thread.run_sync(lambda: any(map(_refuses, connections))))


def _refuses(connection: sqlite3.Connection) -> bool:
    """Whether it does not work in this thread; asked in another one than made it."""
    try:
        connection.cursor()
    except sqlite3.ProgrammingError as error:
        return "thread" in str(error)
    return False


def _bindings(module: dspy.Module) -> tuple[list[sqlite3.Connection], bool]:
    """What binds a module to this thread, which has just made it: connections that may, and whether anything does."""
    thread = threading.current_thread()
    connections: list[sqlite3.Connection] = []
    for value in _within(module):
        if isinstance(value, sqlite3.Cursor):
            connections.append(value.connection)
        elif isinstance(value, sqlite3.Connection):
            connections.append(value)
        elif isinstance(value, threading.local):
            # One with an `__init__` makes its data in each thread that uses it.
            if vars(value) and type(value).__init__ is object.__init__:
                return connections, True
        elif isinstance(value, dspy.PythonInterpreter) or value is thread or _is_ident(value, thread):
            return connections, True
    return connections, False


def _is_ident(value: object, thread: threading.Thread) -> bool:
    return type(value) is int and value == thread.ident


def _has_interpreter(module: dspy.Module) -> bool:
    return any(isinstance(value, dspy.PythonInterpreter) for value in _within(module))


def _within(module: dspy.Module) -> Iterator[Any]:
    """The objects in the attributes of a module, nearest first."""
    waiting: collections.deque[Any] = collections.deque([module])
    seen: set[int] = set()
    while waiting and len(seen) < SEARCHED:
        value = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, OPAQUE):
            continue
        if isinstance(value, dict):
            waiting.extend(itertools.islice(value.values(), SEARCHED))
        elif isinstance(value, (list, tuple, set, frozenset, collections.deque)):
            waiting.extend(itertools.islice(value, SEARCHED))
        elif isinstance(value, types.MethodType):
            waiting.append(value.__self__)
        elif isinstance(value, types.FunctionType):
            waiting.extend(_cells(value))
        elif isinstance(value, functools.partial):
            waiting += (value.func, value.args, value.keywords)
        else:
            waiting.append(getattr(value, "__dict__", None))


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue
