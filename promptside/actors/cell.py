"""The cell: what an actor is to the framework, from its spawn to its last stop.

A cell outlives the instances it makes: a restart gives it a new instance, a higher incarnation and an empty
mailbox, while every `ActorRef` to it stays good. `ref` puts envelopes in, `runner` takes them out and runs them,
`system` and supervisors start, stop and restart it. Everything here runs on the event loop of the cell's node.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any

from promptside.actors import runner
from promptside.actors.actor import BIRTH, Actor, Protocol
from promptside.actors.envelope import CURRENT, Envelope
from promptside.actors.messages import Exit
from promptside.actors.ref import ActorRef
from promptside.actors.state import State
from promptside.errors import ActorStartError, ActorStopped, AskTimeout, MailboxFull

if TYPE_CHECKING:
    from promptside.actors.envelope import Handler
    from promptside.actors.node import Node
    from promptside.actors.system import ActorSystem

__all__ = ["Cell"]

KILL_GRACE = 1.0
"""Seconds that a killed actor's task may take to unwind before the actor counts as ended without it."""


class Cell:
    """One actor's identity, mailbox and state. Private: users hold an `ActorRef`."""

    __slots__ = (
        "_current_ref",
        "active",
        "birth",
        "booted",
        "capacity",
        "children",
        "current",
        "deadline_at",
        "deadline_timer",
        "draining",
        "ended",
        "expected",
        "factory",
        "handled",
        "handlers",
        "id",
        "incarnation",
        "instance",
        "interrupted",
        "kind",
        "name",
        "node",
        "open",
        "parent",
        "path",
        "protocol",
        "queue",
        "reason",
        "retry_at",
        "shutdown",
        "started_at",
        "state",
        "stop_timer",
        "supervised",
        "system",
        "task",
        "thread_id",
        "waiter",
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
        self.system = system
        self.node = node
        self.thread_id = node.thread_id
        self.parent = parent
        self.id = id
        self.path: str = id if parent is None else f"{parent.path}/{id}"
        self.name = name
        self.factory = factory
        self.birth: Context = copy_context()
        self.supervised = supervised
        self.shutdown = shutdown  # instead of the class's, when its supervisor says so
        self.kind = getattr(getattr(factory, "func", factory), "__name__", "actor")
        self.instance: Actor | None = None
        self.protocol: Protocol = Actor.__protocol__
        self.handlers: dict[Any, Handler] = {}
        self.expected: tuple[type[BaseException], ...] = ()
        self.capacity: float = 0
        self.incarnation = 0
        self.handled = 0
        self.state = State.STARTING
        self.open = False  # whether new messages are taken
        self.interrupted = False  # whether the runner must look at `state` before the next message
        self.booted = False  # whether this incarnation's `on_start` has returned
        self.draining = False
        self.reason: object = None
        self.retry_at: float | None = None
        self.started_at = 0.0
        self.queue: deque[Envelope] = EMPTY
        self.current: Envelope | None = None
        self.active: dict[Envelope, asyncio.Task[None]] | None = None  # with concurrency > 1
        self.task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.children: dict[str, Cell] | None = None
        self.deadline_at = math.inf
        self.deadline_timer: asyncio.TimerHandle | None = None
        self.stop_timer: asyncio.TimerHandle | None = None
        self.ended: list[asyncio.Future[None]] | None = None
        self._current_ref: ActorRef[Any] | None = None

    @property
    def ref(self) -> ActorRef[Any]:
        """The one reference without options; made when first wanted."""
        if self._current_ref is None:
            self._current_ref = ActorRef(self)
        return self._current_ref

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that everything of this cell runs on."""
        return self.node.loop

    # -- start -------------------------------------------------------------------------------------------------

    async def launch(self) -> None:
        """Make the next incarnation and run its `on_start`.

        Raises:
            ActorStartError: `__init__` or `on_start` raised; the cell has ended.
        """
        self.incarnation += 1
        self.state = State.STARTING
        self.interrupted = self.draining = self.booted = False
        self.reason = None
        self.queue = deque()
        context = self.birth.copy()
        try:
            instance = context.run(_make, self)
        except Exception as error:
            self._end(error)
            raise ActorStartError(self.path, error) from error
        self.instance = instance
        self.kind = type(instance).__name__
        protocol = self.protocol = instance.__protocol__
        self.handlers = protocol.handlers
        self.expected = protocol.expected
        self.capacity = protocol.mailbox
        self.started_at = self.loop.time()
        if protocol.concurrency > 1:
            self.active = {}
        if protocol.starts:
            await self._run_on_start(instance, context)
        self.state = State.RUNNING
        self.booted = True
        self.retry_at = None
        self.open = True
        self.publish("actor.started", {"class": self.kind})

    async def _run_on_start(self, instance: Actor, context: Context) -> None:
        started: asyncio.Future[None] = self.loop.create_future()
        hook = Envelope(self, type(instance).on_start, (), {}, context, started)
        self.queue.append(hook)
        self.wake()
        try:
            await started
        except asyncio.CancelledError:
            self.kill("start was cancelled")
            raise
        except Exception as error:
            await self.wait_ended()
            raise ActorStartError(self.path, error) from error

    # -- messages ----------------------------------------------------------------------------------------------

    def resolve(self, method: Any) -> Handler:
        """The handler of a method not seen before; raises as `Protocol.resolve` does."""
        if self.instance is None:
            raise ActorStopped(
                self.path, self.reason, started=False, incarnation=self.incarnation, retry_after=self.retry_after()
            )
        return self.protocol.resolve(type(self.instance), method)

    def retry_after(self) -> float | None:
        """Seconds until a restart is expected; None when none is."""
        if self.state is State.STARTING and self.incarnation > 1:
            return 0.0
        if self.supervised and self.state in (State.CRASHED, State.KILLED, State.STOPPED):
            return 0.0 if self.retry_at is None else max(0.0, self.retry_at - self.loop.time())
        return None

    def put(self, envelope: Envelope) -> None:
        """Take a message into the mailbox, or refuse it by the rules.

        Raises:
            ActorStopped: It is an ask, and the actor does not run.
            MailboxFull: The mailbox is full and rejects.
        """
        if not self.open:
            self.refuse(envelope, self.reason if self.reason is not None else self.state.value)
            return
        if len(self.queue) >= self.capacity and not self._make_room(envelope):
            return
        self.queue.append(envelope)
        if envelope.deadline < self.deadline_at:
            self.watch_deadline(envelope.deadline)
        if self.waiter is not None or self.task is None:
            self.wake()

    def put_safely(self, envelope: Envelope) -> None:
        """`put` for a message from another thread: what would be raised there becomes the reply or a dead letter."""
        try:
            if envelope.reply is None or not envelope.reply.done():
                self.put(envelope)
        except (ActorStopped, MailboxFull) as error:
            if envelope.reply is None:
                self.system.dead_letter(self, envelope.method, type(error).__name__)
            else:
                envelope.reply.set_exception(error)

    def post(self, message: object) -> None:
        """Put a plain message of the framework's own, which no bound refuses. Any thread."""
        if get_ident() != self.thread_id:
            self.loop.call_soon_threadsafe(self.post, message)
            return
        receive = type(self.instance).receive if self.instance is not None else Actor.receive
        envelope = Envelope(self, receive, (message,), {}, Context())
        if self.open:
            self.queue.append(envelope)
            self.wake()
        else:
            self.refuse(envelope, self.state.value)

    def _make_room(self, envelope: Envelope) -> bool:
        """Whether the full mailbox has room for `envelope` after its policy was applied."""
        answered = [e for e in self.queue if e.reply is not None and e.reply.done()]
        if answered:  # given up by their askers
            for each in answered:
                self.queue.remove(each)
            return True
        overflow = self.protocol.overflow
        if overflow == "reject":
            raise MailboxFull(self.path, int(self.capacity))
        dropped = self.queue.popleft() if overflow == "drop_oldest" else envelope
        if dropped.reply is None:
            self.system.dead_letter(self, dropped.method, "mailbox full")
        else:
            dropped.reply.set_exception(MailboxFull(self.path, int(self.capacity)))
        return overflow == "drop_oldest"

    def refuse(self, envelope: Envelope, reason: object) -> None:
        """Tell the asker of a message that will not be run, or count a dead letter."""
        reply = envelope.reply
        if reply is None:
            self.system.dead_letter(self, envelope.method, _describe(reason))
        elif not reply.done():
            reply.set_exception(
                ActorStopped(
                    self.path, reason, started=False, incarnation=self.incarnation, retry_after=self.retry_after()
                )
            )

    def wake(self) -> None:
        """See to it that the runner looks at the mailbox."""
        if self.active is not None:
            runner.dispatch(self)
        elif self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self.task is None:
            self.task = self.loop.create_task(runner.run(self), name=self.path)

    # -- deadlines and cancellation ----------------------------------------------------------------------------

    def under_way(self) -> Iterator[Envelope]:
        """The messages whose handlers have begun."""
        if self.current is not None:
            yield self.current
        if self.active:
            yield from self.active

    def watch_deadline(self, deadline: float) -> None:
        """Arm the cell's one timer, which is enough: asks that are answered in time leave it for the next one."""
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        self.deadline_at = deadline
        self.deadline_timer = self.loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self.deadline_timer = None
        self.deadline_at = math.inf
        now = self.loop.time()
        following = math.inf
        running = tuple(self.under_way())
        for envelope in (*running, *self.queue):
            reply = envelope.reply
            if reply is None or reply.done():
                continue
            if envelope.deadline <= now:
                self.time_out(envelope, started=envelope in running)
            else:
                following = min(following, envelope.deadline)
        if following < math.inf:
            self.watch_deadline(following)

    def time_out(self, envelope: Envelope, *, started: bool) -> None:
        """Give `envelope` the outcome `AskTimeout`, and cancel its handler if that had begun."""
        assert envelope.reply is not None
        envelope.reply.set_exception(AskTimeout(self.path, envelope.method, envelope.timeout, started=started))
        if started:
            self.abandon(envelope)

    def abandon(self, envelope: Envelope) -> None:
        """Cancel the handler of an ask that nobody waits for any more; in the queue it is skipped by itself."""
        task = self._task_of(envelope)
        if task is None or envelope.cancelled:
            return
        envelope.cancelled = True
        if asyncio.current_task(self.loop) is task:
            # A cancel from the task's own step would outlive the message if this were its last step.
            self.loop.call_soon(self._cancel, envelope)
        else:
            task.cancel()

    def _cancel(self, envelope: Envelope) -> None:
        task = self._task_of(envelope)
        if task is not None:
            task.cancel()

    def _task_of(self, envelope: Envelope) -> asyncio.Task[None] | None:
        """The task in which the handler of `envelope` runs now."""
        if self.active is not None:
            return self.active.get(envelope)
        return self.task if self.current is envelope and not envelope.finished else None

    # -- failure and stop --------------------------------------------------------------------------------------

    def handler_failed(self, envelope: Envelope, error: BaseException) -> None:
        """Decide what an exception that left a handler means: an answer, the end of a cancelled ask, or a crash."""
        reply = envelope.reply
        if envelope.cancelled or self.state is State.KILLED:
            return
        if reply is not None:
            if not reply.done():
                alien = not isinstance(error, Exception)  # CancelledError, KeyboardInterrupt, SystemExit
                reply.set_exception(self.stopped(error, started=True) if alien else error)
            if isinstance(error, self.expected) and self.booted:
                return
        self.crash(error)

    def stopped(self, reason: object, *, started: bool) -> ActorStopped:
        """The error for an ask that ends because the actor does."""
        return ActorStopped(
            self.path, reason, started=started, incarnation=self.incarnation, retry_after=self.retry_after()
        )

    def crash(self, error: BaseException) -> None:
        """The incarnation is lost: answer what waits, let `on_stop` run, tell whoever watches."""
        if self.state in (State.KILLED, State.STOPPED):
            return
        self.publish("actor.crashed", {"error": type(error).__name__, "message": str(error), "state": self.state.value})
        if self.state is State.CRASHED:
            return  # `on_stop` failed too
        self.state = State.CRASHED
        self._close(error, running_too=True)
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
        self._close(reason, running_too=False, keep_queue=drain)
        self._bound_stop(bound, "killed")
        runner.interrupt(self)

    def _shutdown(self) -> float:
        return self.protocol.shutdown if self.shutdown is None else self.shutdown

    def _bound_stop(self, seconds: float, reason: object) -> None:
        if seconds < math.inf and self.stop_timer is None:
            self.stop_timer = self.loop.call_later(seconds, self.kill, reason)

    def kill(self, reason: object = "killed") -> None:
        """End the incarnation at once: no `on_stop`, and what was under way is cancelled."""
        before = self.state
        if before in (State.STOPPED, State.KILLED):
            return
        self.state = State.KILLED
        self.publish("actor.crashed", {"error": "killed", "message": _describe(reason), "state": before.value})
        self._close(reason, running_too=True)
        if runner.cancel(self):
            self.loop.call_later(KILL_GRACE, self._leave_behind, self.incarnation)
        runner.interrupt(self)

    def _leave_behind(self, incarnation: int) -> None:
        """End without the handlers that swallowed their cancellation; the system waits for them when it closes."""
        if self.state is State.KILLED and self.incarnation == incarnation:
            for envelope in self.under_way():
                envelope.cancelled = True
            self.system.left_behind(self.path, runner.tasks(self))
            self.finish()

    def _close(self, reason: object, *, running_too: bool, keep_queue: bool = False) -> None:
        self.open = False
        self.interrupted = True
        self.reason = reason
        if running_too:
            for envelope in tuple(self.under_way()):
                if envelope.reply is not None and not envelope.reply.done():
                    envelope.reply.set_exception(self.stopped(reason, started=True))
        if not keep_queue:
            while self.queue:
                self.refuse(self.queue.popleft(), reason)

    async def wait_ended(self) -> None:
        """Return when the incarnation is over. Cancelling the wait changes nothing."""
        if self.state is State.STOPPED:
            return
        waiter: asyncio.Future[None] = self.loop.create_future()
        if self.ended is None:
            self.ended = []
        self.ended.append(waiter)
        await waiter

    def finish(self) -> None:
        """Called once by the runner when nothing of the incarnation runs any more: end the children, then itself."""
        if self.state is State.STOPPED:
            return
        if self.stop_timer is not None:
            self.stop_timer.cancel()
            self.stop_timer = None
        if self.children:
            self.system.background(self.loop, self._end_after_children())
        else:
            self._end(self.reason)

    async def _end_after_children(self) -> None:
        await self.stop_children()
        self._end(self.reason)

    async def stop_children(self) -> None:
        """Stop the children in reverse order of their start, each within its own `shutdown` seconds."""
        killed = self.state is State.KILLED
        while self.children:
            child = self.children[next(reversed(self.children))]
            if killed:
                child.kill("killed")
            else:
                child.request_stop("shutdown")
            await child.wait_ended()
            child.dispose()

    def _end(self, reason: object) -> None:
        crashed = self.state in (State.CRASHED, State.KILLED)
        self.state = State.STOPPED
        self.reason = reason
        self.instance = None
        self.task = self.waiter = self.current = self.active = None
        self.queue = EMPTY
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
            self.deadline_timer = None
            self.deadline_at = math.inf
        if not crashed:
            self.publish("actor.stopped", {"reason": _describe(reason)})
        waiters, self.ended = self.ended or (), None
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if not self.supervised:
            self.dispose()
        elif self.parent is not None and self.booted and self.parent.open:
            self.parent.post(Exit(ref=self.ref, reason=reason, incarnation=self.incarnation))

    def dispose(self) -> None:
        """Forget the cell: its name is free, and its parent no longer lists it."""
        self.system.registry.release(self)
        siblings = self.system.children if self.parent is None else self.parent.children
        if siblings is not None and siblings.get(self.id) is self:
            del siblings[self.id]

    def publish(self, type: str, data: dict[str, Any]) -> None:
        """Publish an event of this actor."""
        self.system.events.publish(type, self.path, data, incarnation=self.incarnation)


EMPTY: deque[Envelope] = deque(maxlen=0)
"""The mailbox of a cell that takes no messages: an own deque would cost each idle cell 0.6 KiB."""


def _make(cell: Cell) -> Actor:
    BIRTH.set(cell)
    CURRENT.set(None)
    instance = cell.factory()
    if not isinstance(instance, Actor):
        raise TypeError(f"a factory must return an Actor, not {type(instance).__name__}")
    if instance._cell is not cell:
        raise TypeError("a factory must return a new actor at each call; it returned one that lives elsewhere")
    return instance


def _describe(reason: object) -> str:
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
