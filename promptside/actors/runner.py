"""The runners: how an actor's messages are taken from its mailbox and handled.

A cell with `concurrency=1` has one task, made with its first message and kept. Its loop, `_drive`, takes envelopes
and hands each to a generator, `_pump`, that calls the handler; every step of the pump is entered into the
envelope's own context, so that the handler sees the sender's contextvars without a task of its own (measured on
CPython 3.11: 0.15 us a step; a task per message costs 2.5 us). A cell with `concurrency` > 1 has a task per message.

Cancelling a message cancels the task it runs in, and `_settle` then returns the task to the state it had before,
so that the next message, and the scopes that `on_start` opened, are untouched.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from promptside.actors.envelope import CURRENT, Envelope
from promptside.actors.state import State
from promptside.actors.waits import descends_from

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["cancel", "dispatch", "interrupt", "run", "tasks"]

BATCH = 128
"""Messages that one actor handles in one turn of the event loop before the others get theirs."""

READY = object()
"""What the pump yields when it wants the next envelope; anything else it yields is its handler's."""


async def run(cell: Cell) -> None:
    """The task of a cell that handles one message at a time; ends with the incarnation."""
    task = cell.task
    assert task is not None
    try:
        await _drive(cell, task)
    finally:
        if cell.task is task:
            cell.finish()


@types.coroutine
def _drive(cell: Cell, task: asyncio.Task[None]) -> Generator[Any, Any, None]:
    loop, queue = cell.loop, cell.queue
    pump = _pump(cell)
    send = pump.send
    send(None)
    batch = BATCH
    while cell.task is task:
        if cell.interrupted and not (cell.draining and queue and cell.state is State.STOPPING):
            break
        if not queue:
            waiter = cell.waiter = loop.create_future()
            try:
                yield from waiter
            except asyncio.CancelledError:  # by somebody who cancels every task, as the end of asyncio.run does
                cell.waiter = None
                cell.kill("cancelled")
            batch = BATCH
            continue
        if batch == 0:
            yield
            batch = BATCH
            continue
        batch -= 1
        envelope = queue.popleft()
        reply = envelope.reply
        if reply is not None:
            if reply.done():
                continue
            if envelope.deadline <= loop.time():
                cell.time_out(envelope, started=False)
                continue
        cell.current = envelope
        step = envelope.context.run
        signal = step(send, envelope)
        while signal is not READY:
            try:
                value = yield signal
            except BaseException as error:  # noqa: BLE001 - whatever reaches the task belongs to the handler
                signal = step(pump.throw, error)
            else:
                signal = step(send, value)
        if cell.task is task:
            cell.current = None
        if task.cancelling():
            yield from _settle(task)
    if cell.task is task and _wants_on_stop(cell):
        envelope = cell.current = _on_stop(cell)
        step = envelope.context.run
        signal = step(send, envelope)
        while signal is not READY:
            try:
                value = yield signal
            except BaseException as error:  # noqa: BLE001 - as above
                signal = step(pump.throw, error)
            else:
                signal = step(send, value)


@types.coroutine
def _pump(cell: Cell) -> Generator[Any, Any, None]:
    """Handle the envelopes sent in, one after the other, and yield READY after each."""
    instance = cell.instance
    envelope: Envelope = yield READY
    while True:
        CURRENT.set(envelope)
        try:
            result = yield from envelope.handler(instance, *envelope.args, **envelope.kwargs)
        except GeneratorExit:
            raise
        except BaseException as error:  # the child boundary: every failure of a handler ends here
            envelope.finished = True
            cell.handler_failed(envelope, error)
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
        else:
            envelope.finished = True
            cell.handled += 1
            reply = envelope.reply
            if reply is not None and not reply.done():
                reply.set_result(result)
        envelope = yield READY


def _wants_on_stop(cell: Cell) -> bool:
    ordered = cell.state in (State.STOPPING, State.CRASHED)
    return ordered and cell.booted and cell.protocol.stops


def _on_stop(cell: Cell) -> Envelope:
    assert cell.instance is not None
    return Envelope(cell, type(cell.instance).on_stop, (cell.reason,), {}, cell.birth.copy())


@types.coroutine
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


def interrupt(cell: Cell) -> None:
    """Make the runner look at the cell's state; end a cell at once that runs nothing and has nothing to say."""
    if cell.active is not None:
        _go_on(cell)
    elif cell.task is not None:
        if cell.waiter is not None:
            cell.wake()
    elif _wants_on_stop(cell) or (cell.draining and cell.queue):
        cell.wake()
    else:
        cell.finish()


def tasks(cell: Cell) -> tuple[asyncio.Task[None], ...]:
    """The tasks in which handlers of the cell run now."""
    if cell.active is not None:
        return tuple(cell.active.values())
    return (cell.task,) if cell.task is not None and cell.current is not None else ()


def cancel(cell: Cell) -> bool:
    """Cancel what the cell is handling; whether there was anything."""
    running = tasks(cell)
    for task in running:
        if asyncio.current_task(cell.loop) is task:
            cell.loop.call_soon(task.cancel)
        else:
            task.cancel()
    return bool(running)


# -- concurrency > 1 -------------------------------------------------------------------------------------------


def dispatch(cell: Cell) -> None:
    """Start what may start now; a message that descends from one inside has a slot of its own."""
    active, queue = cell.active, cell.queue
    assert active is not None
    limit = cell.protocol.concurrency
    while queue and len(active) < limit:
        _start(cell, queue.popleft())
    if queue and descends_from(queue[-1].sender, cell):
        _start(cell, queue.pop())


def _start(cell: Cell, envelope: Envelope) -> None:
    assert cell.active is not None
    reply = envelope.reply
    if reply is not None:
        if reply.done():
            return
        if envelope.deadline <= cell.loop.time():
            cell.time_out(envelope, started=False)
            return
    task = cell.loop.create_task(_handle(cell, envelope), name=cell.path, context=envelope.context)
    cell.active[envelope] = task
    active = cell.active

    def over(_: asyncio.Task[None]) -> None:
        envelope.finished = True
        del active[envelope]
        if cell.active is active:
            _go_on(cell)

    task.add_done_callback(over)


async def _handle(cell: Cell, envelope: Envelope) -> None:
    CURRENT.set(envelope)
    try:
        result = await envelope.handler(cell.instance, *envelope.args, **envelope.kwargs)
    except BaseException as error:
        envelope.finished = True
        cell.handler_failed(envelope, error)
        if not isinstance(error, Exception):
            raise  # a cancelled task must end as cancelled
    else:
        envelope.finished = True
        cell.handled += 1
        if envelope.reply is not None and not envelope.reply.done():
            envelope.reply.set_result(result)


def _go_on(cell: Cell) -> None:
    """After a message, or when the state has changed."""
    if not cell.interrupted or (cell.draining and cell.queue and cell.state is State.STOPPING):
        dispatch(cell)
    elif not cell.active:
        if _wants_on_stop(cell):
            hook = _on_stop(cell)
            cell.booted = False  # it is said once
            _start(cell, hook)
        else:
            cell.finish()
