"""The life of an actor: how an incarnation starts, fails, stops, drains and ends; functions on its cell.

Called by the spawner, by `runner`, by references and by supervisors. Everything here runs on the event loop of the
cell's node, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextvars import Context
from functools import partial
from typing import Any

from promptside.actors.cell import EMPTY, NEW_CELL, Cell
from promptside.actors.cycles import running
from promptside.actors.envelope import CURRENT, Ask, Envelope, make_envelope
from promptside.actors.loop_thread import LoopHangs
from promptside.actors.messages import Down, Exit
from promptside.actors.node import NodeClosed
from promptside.actors.options import is_actor
from promptside.actors.state import State
from promptside.actors.tree import last_child
from promptside.errors import ActorStartError, MaxRestartsExceeded
from promptside.texts import describe, facts, is_error, is_word, kind_of, text_of
from promptside.waiting import wait_through_cancellation

__all__ = [
    "crash",
    "finish",
    "handler_failed",
    "kill",
    "launch",
    "on_linked_exit",
    "remove",
    "request_end",
    "request_stop",
    "terminate",
    "wait_ended",
]

KILL_GRACE = 1.0
"""Seconds that a killed actor's task may take to unwind before the actor counts as ended without it."""


async def launch(cell: Cell) -> None:
    """Make the next incarnation and run its `on_start`.

    Raises:
        ActorStartError: `__init__` or `on_start` raised; the incarnation has ended.
    """
    cell.incarnation += 1
    cell.state = State.STARTING
    cell.needs_check = cell.suspended = cell.draining = cell.has_started = cell.stop_hook_started = False
    cell.reason = None
    cell.queue = deque()
    cell.hook_context = cell.spawn_context.copy()
    try:
        cell.check_parent()
        instance = cell.hook_context.run(_make, cell)
    except BaseException as error:  # a CancelledError is its own: nothing waits here, so it was not cancelled
        crash(cell, error)
        if issubclass(type(error), KeyboardInterrupt):
            raise
        raise ActorStartError(cell.path, error) from error
    cell.instance = instance
    cell.started_at = cell.node.loop.time()
    if cell.options.starts:
        await _run_on_start(cell, cell.hook_context)
    else:
        _begin(cell)


def _begin(cell: Cell) -> None:
    """`on_start` has returned: handle what came meanwhile, and what comes."""
    cell.state = State.RUNNING
    cell.has_started = True
    cell.open = True
    cell.runtime.note("actor.started", cell, {"class": cell.kind})
    if cell.queue or cell.needs_check:
        cell.runtime.runner.check(cell)


async def _run_on_start(cell: Cell, context: Context) -> None:
    started: asyncio.Future[None] = cell.node.loop.create_future()
    spawner = running(CURRENT.get())
    envelope = make_envelope(cell, on_start, (), {}, context, ask := Ask(started, sender=spawner))
    ask.queued = True
    if spawner is not None:
        spawner.waits.add(envelope)
    cell.queue.appendleft(envelope)  # what `__init__` has sent comes after it
    cell.wake()
    try:
        await started
    except asyncio.CancelledError:
        kill(cell, "its start was cancelled")
        await _await_end(cell)
        raise
    except Exception as error:
        await _await_end(cell)
        raise ActorStartError(cell.path, error) from error
    finally:
        if spawner is not None:
            spawner.waits.discard(envelope)
        del started, ask, envelope  # an error holds this frame, which must not lead back to it


async def _await_end(cell: Cell) -> None:
    """Wait for the end of a killed incarnation, which is bounded."""
    await wait_through_cancellation(lambda: wait_ended(cell), lambda: cell.state is State.STOPPED)


def handler_failed(cell: Cell, envelope: Envelope, error: BaseException) -> None:
    """Decide what an exception that left a handler means: an answer, the end of a cancelled ask, or a crash."""
    ask = envelope.ask
    if cell.current is not envelope and (cell.active is None or envelope not in cell.active):
        return  # abandoned by an incarnation that has ended
    if cell.state is State.KILLED or (cell.state is State.CRASHED and not cell.stop_hook_started):
        return
    if ask is not None:
        if ask.cancelled:
            if issubclass(type(error), Exception):
                cell.runtime.dead_letter(cell, envelope.method, f"cancelled, then {describe(error)}")
            return
        expected = cell.has_started and issubclass(type(error), cell.expected)
        if not ask.reply.done():
            own = expected or issubclass(type(error), Exception)  # else CancelledError, KeyboardInterrupt, SystemExit
            ask.reply.set_exception(error if own else cell.stopped(error, started=envelope.begun))
        if expected:
            cell.failed += 1
            return
    crash(cell, error, failed=envelope)


def crash(cell: Cell, error: object, *, failed: Envelope | None = None) -> None:
    """The incarnation is lost: fail its asks, let `on_stop` run, then end it."""
    again = cell.state is State.CRASHED
    if cell.state in (State.KILLED, State.STOPPED) or (again and failed is None):
        return
    before, known = cell.state, error if is_error(error) else None
    told: dict[str, Any] = facts(known) if known is not None else dict.fromkeys(("error", "message"), text_of(error))
    cell.runtime.note("actor.crashed", cell, {**told, "state": before.value}, known)
    if again:  # it was `on_stop` that failed
        if issubclass(type(cell.reason), asyncio.CancelledError) and known is not None:
            cell.reason = error  # it has closed the task group that had cancelled the actor, which tells why
        return
    if before is State.RUNNING or issubclass(type(error), MaxRestartsExceeded):
        cell.runtime.escalate(cell, error)
    cell.state = State.CRASHED
    _close(cell, error, running_too=True)
    for envelope in tuple(cell.running_messages()):
        if envelope is not failed:
            cell.cancel(envelope)
    _bound_stop(cell, _shutdown(cell), error)
    cell.runtime.runner.check(cell)


def request_stop(cell: Cell, reason: object, *, shutdown: float | None = None, drain: bool = False) -> None:
    """Begin an ordered stop; `wait_ended` waits for its end."""
    if cell.state not in (State.STARTING, State.RUNNING):
        return
    bound = _shutdown(cell) if shutdown is None else shutdown
    if bound == 0 or cell.state is State.STARTING:
        kill(cell, reason if bound else "killed")
        return
    cell.state = State.STOPPING
    cell.draining = drain
    if shutdown is not None:
        cell.drain_until = cell.node.loop.time() + shutdown
    _close(cell, reason, running_too=False, keep_queue=drain)
    _bound_stop(cell, bound, "killed")
    if cell.instance is not None:
        cell.instance._stop_requested()
    cell.runtime.runner.check(cell)


def kill(cell: Cell, reason: object = "killed") -> None:
    """End the incarnation at once, without `on_stop`; its handlers are cancelled."""
    before = cell.state
    if before in (State.STOPPED, State.KILLED):
        return
    cell.runtime.note("actor.crashed", cell, {"error": "killed", "message": describe(reason), "state": before.value})
    cell.state = State.KILLED
    if before is State.RUNNING:
        cell.runtime.escalate(cell, reason)
    _close(cell, reason, running_too=True)
    if cell.stop_timer is not None:
        cell.stop_timer.cancel()
    if cell.cancel_tasks():
        cell.stop_timer = cell.node.loop.call_later(KILL_GRACE, abandon_handlers, cell)
    cell.runtime.runner.check(cell)


def abandon_handlers(cell: Cell) -> None:
    """End without the handlers that swallowed their cancellation; the system waits for them when it closes."""
    cell.runtime.abandoned(cell.path, tuple(each for each in cell.tasks() if isinstance(each, asyncio.Task)))
    finish(cell)


def _shutdown(cell: Cell) -> float:
    return cell.options.shutdown if cell.shutdown is None else cell.shutdown


def _bound_stop(cell: Cell, seconds: float, reason: object) -> None:
    if seconds < math.inf and cell.stop_timer is None:
        cell.stop_timer = cell.node.loop.call_later(seconds, kill, cell, reason)


def _close(cell: Cell, reason: object, *, running_too: bool, keep_queue: bool = False) -> None:
    """Take no more messages, and answer those that will not be handled."""
    cell.open = False
    cell.needs_check = True
    cell.reason = reason
    cell.end_owned()
    if running_too:
        for envelope in tuple(cell.running_messages()):
            if envelope.ask is not None and not envelope.ask.reply.done():
                envelope.ask.reply.set_exception(cell.stopped(reason, started=envelope.begun))
    while cell.senders:
        taken, _ = cell.senders.popitem(last=False)
        if not taken.done():
            taken.set_exception(cell.stopped(reason, started=False))
    if not keep_queue:
        while cell.queue:
            cell.refuse(cell.queue.popleft())
        cell.given_up = 0


async def wait_ended(cell: Cell) -> None:
    """Return when the incarnation is over. Cancelling the wait changes nothing."""
    if cell.state is State.STOPPED:
        return
    waiter: asyncio.Future[None] = cell.node.loop.create_future()
    ended = cell.ended = {} if cell.ended is None else cell.ended
    ended[waiter] = None
    try:
        await waiter
    finally:
        ended.pop(waiter, None)


def finish(cell: Cell) -> None:
    """Called by the runner when nothing of the incarnation runs any more: end the children, then itself."""
    if cell.state is State.STOPPED:
        return
    ended_in_a_message = cell.state is State.STOPPING and cell.current is not None and not cell.current.over
    if cell.state in (State.STARTING, State.RUNNING) or ended_in_a_message:  # its task was ended from outside
        crash(cell, asyncio.CancelledError("the actor's task was cancelled"))
    if cell.stop_timer is not None:
        cell.stop_timer.cancel()
        cell.stop_timer = None
    if cell.children:
        cell.runtime.background(cell, _end_after_children(cell))
    else:
        _end(cell)


async def _end_after_children(cell: Cell) -> None:
    """Stop the children in reverse order of their start, each within its own `shutdown` seconds; then end."""
    killed = is_word(cell.reason, "killed")
    if killed:
        for each in tuple((cell.children or {}).values()):
            each.node.call(kill, each)
    while (child := last_child(cell.children)) is not None:
        reason = "killed" if killed else "shutdown"
        drain_until = cell.drain_until if cell.draining else None  # it may have been cut short
        await terminate(child, reason, at_once=killed, drain_until=drain_until)
        await remove(child)
    _end(cell)


def request_end(cell: Cell, reason: object, *, at_once: bool = False, drain_until: float | None = None) -> None:
    """Begin the end that its parent wants.

    Args:
        cell: The actor.
        reason: For `on_stop`, monitors and links.
        at_once: Whether to kill it.
        drain_until: Time of the loop until which what is queued is handled first, here and below; what is not done
            by then is killed, and what has not begun ends as without it. An end without it cuts a drain short.
    """
    if at_once:
        kill(cell, reason)
    elif drain_until is None or drain_until <= cell.node.loop.time():
        _end_drain(cell)
        request_stop(cell, reason)
    else:
        request_stop(cell, reason, shutdown=drain_until - cell.node.loop.time(), drain=True)


def _end_drain(cell: Cell) -> None:
    """If it drains, let that be an ordinary stop from here on, here and below: what is queued is refused."""
    if not cell.draining:
        return
    cell.draining = False
    if cell.state is State.STOPPING and (cell.queue or cell.tasks()):  # else its children are stopping
        if cell.stop_timer is not None:
            cell.stop_timer.cancel()
            cell.stop_timer = None
        _close(cell, cell.reason, running_too=False)
        _bound_stop(cell, _shutdown(cell), "killed")
        if cell.instance is not None:
            cell.instance._stop_requested()
        cell.runtime.runner.check(cell)
    for child in tuple((cell.children or {}).values()):
        child.node.call(_end_drain, child)


async def terminate(cell: Cell, reason: object, *, at_once: bool = False, drain_until: float | None = None) -> None:
    """`request_end`, and wait for it. Any thread; requests arrive in the order in which they are made."""
    cell.node.call(partial(request_end, cell, reason, at_once=at_once, drain_until=drain_until))
    try:
        await cell.node.run_to_the_end(wait_ended(cell), after=drain_until)
    except NodeClosed:
        pass  # then it has ended
    except LoopHangs:  # which is told when the thread is joined
        cell.state, cell.needs_check = State.STOPPED, True  # its task ends when that thread goes on


async def remove(cell: Cell) -> None:
    """Remove a cell that has ended, and end the node that was started for it. On the parent's loop."""
    cell.runtime.remove(cell)
    if cell.owns_node:
        await cell.runtime.stop_node(cell.node)


def _end(cell: Cell) -> None:
    reason, crashed = cell.reason, cell.state in (State.CRASHED, State.KILLED)
    cell.state = State.STOPPED
    cell.instance = cell.task = cell.waiter = cell.current = cell.active = cell.hook_context = None
    cell.end_owned()
    cell.queue = EMPTY
    if cell.deadline_timer is not None:
        cell.deadline_timer.cancel()
        cell.deadline_timer = None
        cell.deadline_at = math.inf
    if not crashed:
        cell.runtime.note("actor.stopped", cell, {"reason": describe(reason)})
    _notify_linked(cell, reason)
    waiters, cell.ended = cell.ended or (), None
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
    if not cell.supervised:
        cell.runtime.remove(cell)
    elif cell.parent is not None and cell.has_started:
        cell.parent.post(Exit(ref=cell.ref, reason=reason, incarnation=cell.incarnation))


def _notify_linked(cell: Cell, reason: object) -> None:
    """Tell the end to the cells that monitor this one, or are linked to it."""
    links = cell.links
    if links is None:
        return
    monitors, links.monitors = links.monitors, {}
    linked, links.linked = links.linked, {}
    for own in tuple(links.watching):
        own.cancel()
    for watch in monitors:
        watch.report(Down(ref=cell.ref, reason=reason, incarnation=cell.incarnation))
    for other in linked:
        other.node.call(on_linked_exit, other, cell, reason, cell.incarnation)


def on_linked_exit(cell: Cell, source: Cell, reason: object, incarnation: int) -> None:
    """`source`, linked to `cell`, has ended."""
    if cell.links is None or cell.links.linked.pop(source, cell) is cell:
        return  # unlinked meanwhile
    if cell.options.trap_exit:
        cell.post(Exit(ref=source.ref, reason=reason, incarnation=incarnation))
    elif not is_word(reason, "normal"):
        crash(cell, reason)


async def on_start(actor: Any) -> None:
    """The first message of an incarnation; what the framework or a timer has put behind it is handled next."""
    await actor.on_start()
    cell = actor._cell
    if cell.instance is actor and cell.state is State.STARTING:  # not killed meanwhile
        _begin(cell)


def _make(cell: Cell) -> Any:
    NEW_CELL.set(cell)
    CURRENT.set(None)
    instance: Any = cell.factory()
    if not is_actor(instance):
        raise TypeError(f"a factory must return an Actor, not {kind_of(instance)}")
    if instance._cell is not cell:
        raise TypeError("a factory must return a new actor at each call; it returned one that lives elsewhere")
    return instance
