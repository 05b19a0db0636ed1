"""The cell: what an actor is to the framework, from its spawn to its last stop.

A cell outlives the instances it makes: a restart gives it a new instance, a higher incarnation and an empty
mailbox, while every `ActorRef` to it stays good. `ref` puts envelopes in, `runner` takes them out and runs them,
`system` and supervisors start, stop and restart it. Everything here runs on the event loop of the cell's node, unless
it says otherwise.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from promptside.actors import runner
from promptside.actors.actor import BIRTH, Actor, Protocol
from promptside.actors.cycles import running
from promptside.actors.envelope import CURRENT, Ask, Envelope, make_envelope
from promptside.actors.mailbox import EMPTY, Mailbox, describe
from promptside.actors.messages import Exit
from promptside.actors.node import NodeClosed
from promptside.actors.ref import ActorRef
from promptside.actors.state import State
from promptside.callables import name_of
from promptside.errors import ActorStartError, MaxRestartsExceeded

if TYPE_CHECKING:
    from promptside.actors.envelope import Handler
    from promptside.actors.links import Links
    from promptside.actors.node import Node
    from promptside.actors.system import ActorSystem
    from promptside.actors.timers import Timer

__all__ = ["Cell", "describe", "last"]

KILL_GRACE = 1.0
"""Seconds that a killed actor's task may take to unwind before the actor counts as ended without it."""


class Cell(Mailbox):
    """One actor's identity, mailbox and state. Private: users hold an `ActorRef`."""

    __slots__ = (
        "_ref",
        "actor_class",
        "birth",
        "bonds",
        "booted",
        "children",
        "drain_until",
        "draining",
        "ended",
        "expected",
        "factory",
        "failed",
        "farewell",
        "handled",
        "handlers",
        "hooks",
        "id",
        "incarnation",
        "instance",
        "kind",
        "name",
        "node",
        "owns_node",
        "parent",
        "path",
        "protocol",
        "reason",
        "shutdown",
        "started_at",
        "state",
        "stop_timer",
        "streams",
        "supervised",
        "system",
        "timers",
    )

    def __init__(
        self,
        system: ActorSystem,
        node: Node,
        parent: Cell | None,
        id: str,
        factory: Callable[[], Actor],
        *,
        name: str | None = None,
        supervised: bool = False,
        shutdown: float | None = None,
    ) -> None:
        super().__init__()
        self.system = system
        self.node = node
        self.owns_node = False  # whether the node was started for this cell, and ends with it
        self.parent = parent
        self.id = id
        self.path: str = id if parent is None else f"{parent.path}/{id}"
        self.name = name
        self.factory = factory
        self.birth: Context = copy_context()  # the spawner's
        self.hooks: Context | None = None  # the incarnation's copy, for `__init__`, `on_start` and `on_stop`
        self.supervised = supervised
        self.restart_at = 0.0 if supervised else None
        self.shutdown = shutdown  # instead of the class's, when its supervisor says so
        self.kind = name_of(factory)
        self.actor_class: type[Actor] = Actor
        self.instance: Actor | None = None
        self.protocol: Protocol = Actor.__protocol__
        self.handlers: dict[Any, Handler] = {}
        self.streams: dict[Any, Handler] = {}
        self.expected: tuple[type[BaseException], ...] = ()
        self.incarnation = 0
        self.handled = 0  # messages handled to their end, by every incarnation
        self.failed = 0  # of the asks, those answered with an expected exception
        self.state = State.STARTING
        self.booted = False  # whether this incarnation's `on_start` has returned
        self.farewell = False  # whether its `on_stop` has begun
        self.draining = False
        self.drain_until = 0.0
        self.reason: object = None
        self.started_at = 0.0
        self.children: dict[str, Cell] | None = None
        self.bonds: Links | None = None
        self.timers: set[Timer] | None = None
        self.stop_timer: asyncio.TimerHandle | None = None
        self.ended: list[asyncio.Future[None]] | None = None
        self._ref: ActorRef[Any] | None = None

    @property
    def ref(self) -> ActorRef[Any]:
        """The one reference without options; made when first wanted. Any thread."""
        if self._ref is None:
            self._ref = ActorRef(self)
        return self._ref

    def here(self) -> bool:
        """Whether the caller is in the thread of this cell's event loop."""
        return get_ident() == self.node.thread_id

    # -- start -------------------------------------------------------------------------------------------------

    async def launch(self) -> None:
        """Make the next incarnation and run its `on_start`.

        Raises:
            ActorStartError: `__init__` or `on_start` raised; the incarnation has ended.
        """
        self.incarnation += 1
        self.state = State.STARTING
        self.interrupted = self.suspended = self.draining = self.booted = self.farewell = False
        self.reason = None
        self.queue = deque()
        self.hooks = self.birth.copy()
        try:
            self._check_parent()
            instance = self.hooks.run(_make, self)
        except (Exception, asyncio.CancelledError) as error:  # nothing waits here, so nobody cancelled it
            self.crash(error)
            raise ActorStartError(self.path, error) from error
        self.instance = instance
        self.actor_class = type(instance)
        self.kind = self.actor_class.__name__
        protocol = self.protocol = instance.__protocol__
        self.handlers = protocol.handlers
        self.streams = protocol.streams
        self.expected = protocol.expected
        self.capacity = protocol.mailbox
        self.started_at = self.node.loop.time()
        self.active = {} if protocol.concurrency > 1 else None
        if protocol.starts:
            await self._run_on_start(self.hooks)
        else:
            self.begin()

    def _check_parent(self) -> None:
        """A supervisor that was asked to stop meanwhile would wait for this start; raises `ActorStopped`."""
        parent = self.parent if self.supervised else None
        if parent is not None and parent.state not in (State.STARTING, State.RUNNING) and not parent.draining:
            raise parent.stopped(parent.reason, started=False)

    def begin(self) -> None:
        """`on_start` has returned: take messages."""
        self.state = State.RUNNING
        self.booted = True
        self.open = True
        self.system.note("actor.started", self, {"class": self.kind})

    async def _run_on_start(self, context: Context) -> None:
        started: asyncio.Future[None] = self.node.loop.create_future()
        spawner = running(CURRENT.get())
        envelope = make_envelope(self, on_start, (), {}, context, Ask(started, sender=spawner))
        if spawner is not None:
            spawner.waits.add(envelope)
        self.queue.append(envelope)
        self.wake()
        try:
            await started
        except asyncio.CancelledError:
            self.kill("its start was cancelled")
            await self._await_end()
            raise
        except Exception as error:
            await self._await_end()
            raise ActorStartError(self.path, error) from error
        finally:
            if spawner is not None:
                spawner.waits.discard(envelope)

    async def _await_end(self) -> None:
        """Wait for the end of what was killed, whoever cancels the wait; that end is bounded."""
        while self.state is not State.STOPPED:
            try:
                await self.wait_ended()
            except asyncio.CancelledError:
                continue

    # -- failure and stop --------------------------------------------------------------------------------------

    def handler_failed(self, envelope: Envelope, error: BaseException) -> None:
        """Decide what an exception that left a handler means: an answer, the end of a cancelled ask, or a crash."""
        ask = envelope.ask
        if self.current is not envelope and (self.active is None or envelope not in self.active):
            return  # left behind by an incarnation that is gone
        if self.state is State.KILLED or (self.state is State.CRASHED and not self.farewell):
            return
        if ask is not None:
            if ask.cancelled:
                if isinstance(error, Exception):
                    self.system.dead_letter(self, envelope.method, f"cancelled, then {error!r}")
                return
            expected = self.booted and isinstance(error, self.expected)
            if not ask.reply.done():
                own = expected or isinstance(error, Exception)  # else CancelledError, KeyboardInterrupt, SystemExit
                ask.reply.set_exception(error if own else self.stopped(error, started=envelope.begun))
            if expected:
                self.failed += 1
                return
        self.crash(error, failed=envelope)

    def crash(self, error: object, *, failed: Envelope | None = None) -> None:
        """The incarnation is lost: answer what waits, let `on_stop` run, tell whoever watches."""
        again = self.state is State.CRASHED
        if self.state in (State.KILLED, State.STOPPED) or (again and failed is None):
            return
        message = str(error)
        kind = type(error).__name__ if isinstance(error, BaseException) else message
        self.system.note("actor.crashed", self, {"error": kind, "message": message, "state": self.state.value})
        if again:
            return  # it was `on_stop` that failed
        self.state = State.CRASHED
        self._close(error, running_too=True)
        for envelope in tuple(self.under_way()):
            if envelope is not failed:
                self._cancel(envelope)
        self._bound_stop(self._shutdown(), error)
        runner.interrupt(self)

    def request_stop(self, reason: object, *, shutdown: float | None = None, drain: bool = False) -> None:
        """Begin an ordered stop; `wait_ended` waits for its end."""
        if self.state not in (State.STARTING, State.RUNNING):
            return
        bound = self._shutdown() if shutdown is None else shutdown
        if bound == 0 or self.state is State.STARTING:
            self.kill(reason if bound else "killed")
            return
        self.state = State.STOPPING
        self.draining = drain
        if shutdown is not None:
            self.drain_until = self.node.loop.time() + shutdown
        self._close(reason, running_too=False, keep_queue=drain)
        self._bound_stop(bound, "killed")
        if self.instance is not None:
            self.instance._stop_requested()
        runner.interrupt(self)

    def kill(self, reason: object = "killed") -> None:
        """End the incarnation at once: no `on_stop`, and what is under way is cancelled."""
        before = self.state
        if before in (State.STOPPED, State.KILLED):
            return
        self.system.note("actor.crashed", self, {"error": "killed", "message": describe(reason), "state": before.value})
        self.state = State.KILLED
        self._close(reason, running_too=True)
        if self.stop_timer is not None:
            self.stop_timer.cancel()
        if runner.cancel(self):
            self.stop_timer = self.node.loop.call_later(KILL_GRACE, self._leave_behind)
        runner.interrupt(self)

    def _leave_behind(self) -> None:
        """End without the handlers that swallowed their cancellation; the system waits for them when it closes."""
        self.system.left_behind(self.path, runner.tasks(self))
        self.finish()

    def _shutdown(self) -> float:
        return self.protocol.shutdown if self.shutdown is None else self.shutdown

    def _bound_stop(self, seconds: float, reason: object) -> None:
        if seconds < math.inf and self.stop_timer is None:
            self.stop_timer = self.node.loop.call_later(seconds, self.kill, reason)

    def _close(self, reason: object, *, running_too: bool, keep_queue: bool = False) -> None:
        """Take no more messages, and answer those that will not be handled."""
        self.open = False
        self.interrupted = True
        self.reason = reason
        self._cancel_timers()
        if running_too:
            for envelope in tuple(self.under_way()):
                if envelope.ask is not None and not envelope.ask.reply.done():
                    envelope.ask.reply.set_exception(self.stopped(reason, started=envelope.begun))
        while self.room:
            taken, _ = self.room.popleft()
            if not taken.done():
                taken.set_exception(self.stopped(reason, started=False))
        if not keep_queue:
            while self.queue:
                self.refuse(self.queue.popleft())

    def _cancel_timers(self) -> None:
        for timer in tuple(self.timers or ()):
            timer.cancel()

    async def wait_ended(self) -> None:
        """Return when the incarnation is over. Cancelling the wait changes nothing."""
        if self.state is State.STOPPED:
            return
        waiter: asyncio.Future[None] = self.node.loop.create_future()
        if self.ended is None:
            self.ended = []
        self.ended.append(waiter)
        await waiter

    def finish(self) -> None:
        """Called by the runner when nothing of the incarnation runs any more: end the children, then itself."""
        if self.state is State.STOPPED:
            return
        if self.state in (State.STARTING, State.RUNNING):  # its task was ended from outside
            self.crash(asyncio.CancelledError("the actor's task was cancelled"))
        if self.stop_timer is not None:
            self.stop_timer.cancel()
            self.stop_timer = None
        if self.children:
            self.system.background(self, self._end_after_children())
        else:
            self._end(self.reason)

    async def _end_after_children(self) -> None:
        await self.stop_children()
        self._end(self.reason)

    async def stop_children(self) -> None:
        """Stop the children in reverse order of their start, each within its own `shutdown` seconds."""
        killed = self.reason == "killed"
        if killed:
            for each in tuple((self.children or {}).values()):
                each.node.call(each.kill)
        while (child := last(self.children)) is not None:
            reason = "killed" if killed else "shutdown"
            drain_until = self.drain_until if self.draining else None  # it may have been cut short
            await child.terminate(reason, kill=killed, drain_until=drain_until)
            await child.forget()

    def request_end(self, reason: object, *, kill: bool = False, drain_until: float | None = None) -> None:
        """Begin the end that its parent wants.

        Args:
            reason: For `on_stop` and whoever watches.
            kill: Whether to end it at once.
            drain_until: Time of the loop until which what is queued is handled first, here and below; what is not done
                by then is killed, and what has not begun ends as without it. An end without it cuts a drain short.
        """
        if kill:
            self.kill(reason)
        elif drain_until is None or drain_until <= self.node.loop.time():
            self.end_drain()
            self.request_stop(reason)
        else:
            self.request_stop(reason, shutdown=drain_until - self.node.loop.time(), drain=True)

    def end_drain(self) -> None:
        """If it drains, let that be an ordinary stop from here on, here and below: what is queued is refused."""
        if not self.draining:
            return
        self.draining = False
        if self.state is State.STOPPING and (self.queue or runner.tasks(self)):  # else its children are stopping
            if self.stop_timer is not None:
                self.stop_timer.cancel()
                self.stop_timer = None
            self._close(self.reason, running_too=False)
            self._bound_stop(self._shutdown(), "killed")
            if self.instance is not None:
                self.instance._stop_requested()
            runner.interrupt(self)
        for child in tuple((self.children or {}).values()):
            child.node.call(child.end_drain)

    async def terminate(self, reason: object, *, kill: bool = False, drain_until: float | None = None) -> None:
        """`request_end`, and wait for it. Any thread; requests arrive in the order in which they are made."""
        self.node.call(partial(self.request_end, reason, kill=kill, drain_until=drain_until))
        with suppress(NodeClosed):  # then it has ended
            await self.node.run(self.wait_ended())

    async def forget(self) -> None:
        """Dispose of the cell, which has ended, and end the node that was started for it. On the parent's loop."""
        self.dispose()
        if self.owns_node:
            await self.system.stop_node(self.node)

    def retire(self) -> None:
        """It has ended and is not restarted until its supervisor is asked to: its name is free meanwhile."""
        self.restart_at = None
        self.system.registry.release(self)

    def recall(self, restart_at: float | None) -> None:
        """Undo `retire`, with what asks are told until it runs; raises `NameTaken`."""
        if self.name is not None:
            self.system.registry.claim(self.name, self)
        self.restart_at = restart_at

    def _end(self, reason: object) -> None:
        crashed = self.state in (State.CRASHED, State.KILLED)
        self.state = State.STOPPED
        self.reason = reason
        self.instance = self.task = self.waiter = self.current = self.active = self.hooks = None
        self._cancel_timers()
        self.queue = EMPTY
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
            self.deadline_timer = None
            self.deadline_at = math.inf
        if not crashed:
            self.system.note("actor.stopped", self, {"reason": describe(reason)})
        if self.bonds is not None:
            self.bonds.release(self, reason)
        waiters, self.ended = self.ended or (), None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.parent is None and isinstance(reason, MaxRestartsExceeded):
            self.system.escalate(reason)
        if not self.supervised:
            self.dispose()
        elif self.parent is not None and self.booted:
            self.parent.post(Exit(ref=self.ref, reason=reason, incarnation=self.incarnation))

    def dispose(self) -> None:
        """Forget the cell: its name is free, its parent no longer lists it, and nobody will restart it. Any thread."""
        self.supervised = False
        self.restart_at = None
        self.system.registry.release(self)
        siblings = self.system.children if self.parent is None else self.parent.children
        if siblings is not None and siblings.get(self.id) is self:
            del siblings[self.id]


def last(children: dict[str, Cell] | None) -> Cell | None:
    """The child that started last, if there is one; other threads may add and take away meanwhile."""
    while children:
        try:
            return children[next(reversed(children))]
        except (RuntimeError, KeyError, StopIteration):
            pass  # changed just now
    return None


async def on_start(actor: Actor) -> None:
    """The first message of an incarnation; what the framework or a timer has put behind it is handled next."""
    await actor.on_start()
    cell = actor._spawned()
    if cell.instance is actor and cell.state is State.STARTING:  # not killed meanwhile
        cell.begin()


def _make(cell: Cell) -> Actor:
    BIRTH.set(cell)
    CURRENT.set(None)
    instance = cell.factory()
    if not isinstance(instance, Actor):
        raise TypeError(f"a factory must return an Actor, not {type(instance).__name__}")
    if instance._cell is not cell:
        raise TypeError("a factory must return a new actor at each call; it returned one that lives elsewhere")
    return instance
