"""The actors of a task supervisor: one for itself, one for each call of a function.

`TaskSupervisor` and its maps use `TaskSupervisorActor` by plain calls. The step of the caller makes and starts a task:
a message to the actor for each task would cost as much again. The outcome is the reply of an ask, so deadlines,
cancellation and cycles are as for every ask.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import Context
from typing import Any

from promptside.actors import Actor, Node, State
from promptside.actors.spi import (
    LOOP_CLOSED,
    Ask,
    Cell,
    Envelope,
    NodeClosed,
    Reply,
    cell_of,
    dead_letter,
    launch,
    make_envelope,
    request_end_of_children,
    request_stop,
    wait_ended,
)
from promptside.callables import function_of, is_async, name_of
from promptside.errors import ActorStopped, MaxChildrenReached
from promptside.supervision.handle import Handle
from promptside.texts import kind_of, repr_of

__all__ = ["BackgroundTask", "MapSource", "Task", "TaskReply", "TaskSupervisorActor", "check_async"]


class Task(Actor, expected=(Exception,)):
    """One call of a function. An exception of the function is an answer."""

    _ended = False  # whether the function has returned or raised
    _drains = True  # whether it may finish while its supervisor drains

    def _stop_requested(self) -> None:
        """Cancel the function: to an ordered stop, a task is its one message, and OTP does not wait for it either."""
        cell = cell_of(self)
        if self._ended or (self._drains and cell.draining):
            return
        for envelope in tuple(cell.running_messages()):
            if envelope.ask is not None and not envelope.ask.reply.done():
                envelope.ask.reply.set_exception(cell.stopped(cell.reason, started=envelope.begun))
            cell.abandon(envelope)


class BackgroundTask(Task, expected=()):
    """A task without a caller that waits. An exception of the function is a crash."""


class MapSource(Task):
    """What reads the source of a map, on the consumer's event loop."""

    _drains = False


async def _run(task: Task, fn: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
    """The one message of a task."""
    try:
        work = fn(*args, **kwargs)
        if not inspect.isawaitable(work):
            raise TypeError(_not_async(fn))
        return await work
    finally:
        task._ended = True
        request_stop(cell_of(task), "normal", shutdown=math.inf)  # nothing is left that a bound could end


_run.__name__ = "run"  # for `info()`


class TaskSupervisorActor(Actor, shutdown=math.inf):
    """The actor of a task supervisor: parent of its tasks. Ends when they have ended, each within its own bound.

    Args:
        handle: The task supervisor.
        numbers: Numbers for the names of tasks.
        max_tasks: Tasks at one time.
        task_shutdown: Seconds that a cancelled task may take to unwind.
    """

    _supervises = True

    def __init__(
        self, handle: Handle[TaskSupervisorActor], numbers: Iterator[int], max_tasks: float, task_shutdown: float
    ) -> None:
        handle.claim(self)
        self._numbers = numbers
        self._max_tasks = max_tasks
        self._task_shutdown = task_shutdown
        self._waiting: dict[Envelope, None] = {}  # of maps, for room
        own = cell_of(self)
        self.node = own.node
        if own.children is None:
            own.children = {}
        self._children = own.children  # also filled by sources, in other threads
        handle.attach(self, self)

    async def on_stop(self, reason: object) -> None:
        """End all tasks at the same time; the end of this actor waits for theirs."""
        self._admit_waiting()  # refuses them
        request_end_of_children(cell_of(self))

    async def receive(self, message: object) -> None:
        """Drop it: as in OTP, a stray message is no reason to end the children."""
        dead_letter(cell_of(self), "receive", f"a supervisor takes no {kind_of(message)}")

    # -- for the handle, from any thread unless it says otherwise ---------------------------------------------------

    def accepts(self) -> bool:
        """Whether new tasks are taken."""
        own = cell_of(self)
        return own.open and own.instance is self and own.node.trouble is None

    def stopped(self) -> ActorStopped:
        """Why they are not."""
        own = cell_of(self)
        return own.stopped(own.node.trouble or own.why, started=False)

    def make_envelope(
        self,
        kind: type[Task],
        fn: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reply: Reply,
        sender: Envelope | None,
        context: Context,
        node: Node | None = None,
    ) -> Envelope:
        """The message of a new task, whose cell is not in the tree yet."""
        own = cell_of(self)
        id = f"{name_of(fn)}-{next(self._numbers)}"
        cell = Cell(own.runtime, node or self.node, own, id, kind, shutdown=self._task_shutdown)
        timeout = math.inf
        if sender is not None and sender.ask is not None:
            timeout = max(0.0, sender.ask.deadline - sender.cell.node.loop.time())
        ask = Ask(reply, cell.node.loop.time() + timeout, timeout, sender)
        return make_envelope(cell, _run, (fn, *args), kwargs, context, ask)

    def submit(self, envelope: Envelope, *, waits_for_room: bool = False) -> None:
        """Start a task on its event loop; if that cannot be, the reply says why.

        Args:
            envelope: As `make_envelope` made it.
            waits_for_room: Whether it waits where `max_tasks` run already.
        """
        node = envelope.cell.node
        if envelope.cell.here():
            self._admit(envelope, waits_for_room)
            return
        try:
            node.loop.call_soon_threadsafe(self._admit, envelope, waits_for_room)
        except RuntimeError:  # pragma: no cover - it was closed just now
            self._refuse(envelope, cell_of(self).stopped(LOOP_CLOSED, started=False))

    async def cancel(self, *envelopes: Envelope) -> None:
        """Cancel tasks, and wait until they have ended; a caller that is cancelled meanwhile has only not waited."""
        for each in envelopes:
            each.cell.node.call(self._cancel, each)
        for each in envelopes:
            with suppress(NodeClosed):  # then it has ended
                await each.cell.node.run(wait_ended(each.cell))

    def _cancel(self, envelope: Envelope) -> None:
        cell = envelope.cell
        if cell.incarnation == 0:
            self._waiting.pop(envelope, None)
            cell.state = State.STOPPED
        else:
            cell.abandon(envelope)
            request_stop(cell, "cancelled")

    def reap(self, envelope: Envelope) -> None:
        """End a task that has its outcome and would not end by itself: its message expired before it began."""
        cell = envelope.cell
        if cell.state is State.RUNNING:
            cell.node.call(request_stop, cell, "expired")

    def _admit(self, envelope: Envelope, waits_for_room: bool = False) -> None:
        if not self.accepts():
            self._refuse(envelope, self.stopped())
        elif envelope.cell.factory is MapSource or not self._full():
            self._begin(envelope)
        elif waits_for_room:
            self._waiting[envelope] = None
        else:
            self._refuse(envelope, MaxChildrenReached(self.ref.path, int(self._max_tasks)))

    def _begin(self, envelope: Envelope) -> None:
        cell = envelope.cell
        self._children[cell.id] = cell
        if self._max_tasks < math.inf and cell.factory is not MapSource:
            ended = cell.node.loop.create_future()
            ended.add_done_callback(self._admit_waiting)
            cell.ended = {ended: None}
        with suppress(StopIteration):
            launch(cell).send(None)  # without an `on_start` it has no step that waits
        cell.put(envelope)

    def _refuse(self, envelope: Envelope, error: Exception) -> None:
        envelope.cell.state, envelope.cell.reason = State.STOPPED, error
        assert envelope.ask is not None
        envelope.ask.reply.set_exception(error)

    def _full(self) -> bool:
        children, limit = self._children, self._max_tasks
        return len(children) >= limit and sum(c.factory is not MapSource for c in tuple(children.values())) >= limit

    def _admit_waiting(self, _: object = None) -> None:
        """Start what waits, as far as there is room; refuse it when there will be none."""
        while self._waiting and not (self.accepts() and self._full()):
            envelope = next(iter(self._waiting))
            del self._waiting[envelope]
            self._admit(envelope)


class TaskReply:
    """The reply of a task for another event loop, or for none. An `asyncio.Future` belongs to one loop.

    Args:
        loop: Where `callback` is called; None for the loop on which the task ends.
        callback: Called once, with this reply.
    """

    __slots__ = ("_callback", "_done", "_loop", "error", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop | None, callback: Callable[[TaskReply], object]) -> None:
        self._loop = loop
        self._callback = callback
        self._done = False
        self.value: Any = None
        self.error: Exception | None = None

    def done(self) -> bool:
        """Whether it has its outcome."""
        return self._done

    def set_result(self, result: Any) -> None:
        """The function has returned."""
        self.value = result
        self._settle()

    def set_exception(self, exception: Any) -> None:
        """The function has raised, or the task has ended without it."""
        self.error = exception
        self._settle()

    def take_error(self) -> Exception:
        """The error, to be raised: it is not kept, for it will hold the frames in which this object is."""
        error, self.error = self.error, None
        assert error is not None
        return error

    def _settle(self) -> None:
        self._done = True
        if self._loop is None or asyncio._get_running_loop() is self._loop:
            self._callback(self)
            return
        with suppress(RuntimeError):  # the loop is closed, and with it who waited
            self._loop.call_soon_threadsafe(self._callback, self)


def check_async(fn: object) -> None:
    """Raise `TypeError` for what is not an async function, as far as that can be known without a call."""
    if not callable(fn):
        if inspect.iscoroutine(fn):
            fn.close()
        raise TypeError(f"{repr_of(fn)} is not a function; give the function and its arguments apart: run(fetch, url)")
    # What a wrapper or a lambda returns is seen when it has been called.
    if not (is_async(fn) or is_async(inspect.unwrap(function_of(fn))) or name_of(fn) == "<lambda>"):
        raise TypeError(_not_async(fn))


def _not_async(fn: object) -> str:
    return (
        f"{name_of(fn)} is not an async function; declare it `async def`, or run it in a thread: "
        "functools.partial(anyio.to_thread.run_sync, fn)"
    )
