"""The runners: how an actor's messages are taken from its mailbox and handled.

A cell with `max_concurrency=1` has one task, made with its first message and kept. Its loop, `_drive`, takes envelopes
and hands each to a generator, `_pump`, that calls the handler; every step of the pump is entered into the
envelope's own context, so that the handler sees the sender's contextvars without a task of its own (measured on
CPython 3.11: 0.15 us a step; a task per message costs 2.5 us). A cell with `max_concurrency` > 1 has a task per
message.

Cancelling a message cancels the task it runs in, and `_settle` then returns the task to the state it had before,
so that the next message, and the scopes that `on_start` opened, are untouched.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator
from typing import Any, cast

from promptside.actors.cell import Cell
from promptside.actors.cycles import descends_from
from promptside.actors.envelope import ANSWERED, CURRENT, Ask, Envelope, make_envelope
from promptside.actors.lifecycle import crash, finish, handler_failed
from promptside.actors.mailbox import take_back
from promptside.actors.state import State

__all__ = ["check", "dispatch", "run"]

BATCH = range(128)
"""Messages that one actor handles in one turn of the event loop before the others get theirs."""

CANCELLED = (
    "the actor's task was cancelled from outside, as a task group that `on_start` opened does when a task in it fails; "
    "`on_stop` has to close the group, whose error then says what failed"
)
"""Why an actor that was idle has crashed."""

READY = object()
"""Yielded by the pump when it wants the next envelope; any other value comes from its handler."""


async def run(cell: Cell) -> None:
    """The task of a cell that handles one message at a time; ends with the incarnation."""
    task = cell.task
    assert task is not None
    try:
        await _drive(cell, task)
    finally:
        if cell.task is task:
            finish(cell)


@types.coroutine
def _drive(cell: Cell, task: asyncio.Task[None]) -> Generator[Any, Any, None]:
    queue = cell.queue
    pump = cast("Generator[Any, Any, None]", _pump(cell))
    send = pump.send
    send(None)
    envelope: Any
    ask: Any
    while True:
        suspended = cell.needs_check and not cell.can_continue()
        if suspended and cell.state is not State.RUNNING:
            break
        if suspended or not queue:
            envelope = ask = enter = signal = None  # an idle actor keeps nothing of its last message
            yield from _wait(cell)
            continue
        for _ in BATCH:
            envelope = queue.popleft()
            if cell.needs_check:
                cell.can_continue()  # there is room for one that `deliver` holds
            ask = envelope.ask
            if ask is None or _still_wanted(cell, envelope, ask):
                cell.current = envelope
                enter = envelope.context.run
                signal = enter(send, envelope)
                if signal is not READY:
                    yield from _steps(pump, enter, signal)
                    if cell.task is not task:
                        return  # abandoned by a kill
                    cell.waits = None
                cell.current = None
                if task.cancelling():
                    yield from _settle(task)
            if cell.needs_check or not queue:
                break
        else:
            yield
    if _wants_on_stop(cell):
        envelope = cell.current = _on_stop(cell)
        enter = envelope.context.run
        yield from _steps(pump, enter, enter(send, envelope))


def _still_wanted(cell: Cell, envelope: Envelope, ask: Ask) -> bool:
    """Whether the asker still waits; one whose deadline has passed gets `AskTimeout`."""
    if ask.reply.done():
        take_back(cell, envelope)
        return False
    if ask.deadline <= cell.node.loop.time():
        ask.queued = False
        cell.time_out(envelope)
        return False
    return True


def _steps(pump: Generator[Any, Any, None], enter: Any, signal: Any) -> Generator[Any, Any, None]:
    """Go on with a handler that waits, until it has ended: every step of it runs in its message's context."""
    while signal is not READY:
        try:
            value = yield signal
        except BaseException as error:  # noqa: BLE001 - whatever reaches the task belongs to the handler
            signal = enter(pump.throw, error)
        else:
            signal = enter(pump.send, value)


def _wait(cell: Cell) -> Generator[Any, Any, None]:
    """Sleep until something has been put into the mailbox, or the state has changed."""
    waiter = cell.waiter = cell.node.loop.create_future()
    try:
        yield from waiter
    except asyncio.CancelledError:
        cell.waiter = None
        crash(cell, asyncio.CancelledError(CANCELLED))


@types.coroutine
def _pump(cell: Cell) -> Generator[Any, Any, None]:
    """Handle the envelopes sent in, one after the other, and yield READY after each."""
    instance = cell.instance
    envelope: Any = yield READY
    while True:
        CURRENT.set(envelope)
        kwargs, ask = envelope.kwargs, envelope.ask
        try:
            if kwargs is None:
                result = yield from envelope.handler(instance, *envelope.args)
            else:
                result = yield from envelope.handler(instance, *envelope.args, **kwargs)
        except GeneratorExit:
            raise
        except BaseException as error:  # the child boundary: every failure of a handler ends here
            handler_failed(cell, envelope, error)
            if issubclass(type(error), (KeyboardInterrupt, SystemExit)):
                raise
        else:
            cell.handled += 1
            if ask is not None:
                reply = ask.reply
                if not reply.done():
                    reply.set_result(result)
        # What the message brought and what it gave: neither an idle actor nor a task that the handler left keeps it.
        del envelope.context, envelope.args
        envelope.kwargs = None
        if ask is not None:
            ask.reply = ANSWERED
        envelope = kwargs = ask = result = reply = None
        envelope = yield READY


def _wants_on_stop(cell: Cell) -> bool:
    ordered = cell.state in (State.STOPPING, State.CRASHED)
    return ordered and cell.has_started and cell.options.stops and not cell.stop_hook_started


def _on_stop(cell: Cell) -> Envelope:
    assert cell.instance is not None
    cell.stop_hook_started = True
    return make_envelope(
        cell, type(cell.instance).on_stop, (cell.reason,), {}, cell.hook_context or cell.spawn_context.copy(), None
    )


def _settle(task: asyncio.Task[None]) -> Generator[Any, Any, None]:
    """Undo the cancellations of a message that is over.

    Up to CPython 3.12 `uncancel` leaves a cancellation that came in the handler's last step pending; the empty
    yield takes it here rather than in the next message (3.13 clears it).
    """
    while task.cancelling():
        task.uncancel()
    if getattr(task, "_must_cancel", False):
        try:
            yield
        except asyncio.CancelledError:
            pass


def check(cell: Cell) -> None:
    """Make the runner look at the cell's state; end a cell at once that runs nothing and has no `on_stop`."""
    if cell.active is not None:
        _go_on(cell, resumed=True)
    elif cell.task is not None:
        if cell.waiter is not None:
            cell.wake()
    elif cell.state is State.RUNNING or _wants_on_stop(cell) or (cell.draining and cell.queue):
        cell.wake()
    else:
        finish(cell)


# -- max_concurrency > 1 -------------------------------------------------------------------------------------------


def dispatch(cell: Cell, *, resumed: bool = False) -> None:
    """Start what may start now; a message that descends from one inside has a slot of its own.

    Args:
        cell: The actor.
        resumed: Whether more than the newest message may not have been looked at.
    """
    active, queue = cell.active, cell.queue
    assert active is not None
    limit = cell.options.max_concurrency if cell.has_started else 1  # `on_start` alone
    while queue and len(active) < limit:
        _start(cell, queue.popleft())
        if cell.needs_check:
            cell.can_continue()  # as in `_drive`
    if not cell.has_started:
        return
    for envelope in tuple(queue) if resumed else (queue[-1],) if queue else ():
        if envelope.ask is not None and descends_from(envelope.ask.sender, cell):
            queue.remove(envelope)
            _start(cell, envelope)


def _start(cell: Cell, envelope: Envelope) -> None:
    assert cell.active is not None
    ask = envelope.ask
    if ask is not None and not _still_wanted(cell, envelope, ask):
        return
    # Not `loop.create_task`: a factory of eager tasks would run the handler before `active` knows it.
    loop = cell.node.loop
    task = asyncio.Task(_handle(cell, envelope), loop=loop, name=cell.path, context=envelope.context)
    cell.active[envelope] = task
    active = cell.active

    def over(task: asyncio.Task[None]) -> None:
        if not envelope.over:  # cancelled before its first step
            if ask is None:
                cell.refuse(envelope)
            elif cell.active is active and not ask.reply.done():
                handler_failed(cell, envelope, asyncio.CancelledError())
        del active[envelope]
        if cell.active is active:
            _go_on(cell)

    task.add_done_callback(over)


async def _handle(cell: Cell, envelope: Envelope) -> None:
    CURRENT.set(envelope)
    ask = envelope.ask
    if ask is not None:
        ask.begun = True
    try:
        result = await envelope.handler(cell.instance, *envelope.args, **(envelope.kwargs or {}))
    except BaseException as error:
        handler_failed(cell, envelope, error)
        if issubclass(type(error), asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit):
            raise  # a cancelled task must end as cancelled; any other error is recorded, and not asyncio's to log
    else:
        cell.handled += 1
        if ask is not None and not ask.reply.done():
            ask.reply.set_result(result)
    finally:
        del envelope.context, envelope.args
        envelope.kwargs = None
        if ask is not None:
            ask.reply = ANSWERED


def _go_on(cell: Cell, *, resumed: bool = False) -> None:
    """After a message, or when the state has changed."""
    if not cell.needs_check or cell.can_continue():
        dispatch(cell, resumed=resumed)
    elif not cell.active and cell.state is not State.RUNNING:
        if _wants_on_stop(cell):
            _start(cell, _on_stop(cell))
        else:
            finish(cell)
