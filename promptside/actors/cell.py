"""The cell: one actor's record and its mailbox, kept from its spawn to its last stop.

A restart gives a cell a new instance, a higher incarnation and an empty mailbox; every `ActorRef` to it stays good.
`ref` puts envelopes in, `runner` takes them out and runs them, `lifecycle` starts and ends incarnations. Here a message
waits, expires, is cancelled or is refused. Everything runs on the event loop of the cell's node, unless it says
otherwise.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from promptside.actors.endings import retry_after, why_ended
from promptside.actors.envelope import Envelope, make_envelope, receive_posted
from promptside.actors.mailbox import admit_senders, give_up, make_room
from promptside.actors.node import LOOP_CLOSED, Node
from promptside.actors.options import DEFAULTS, ActorOptions
from promptside.actors.protocols import Cancellable, Links, Runtime
from promptside.actors.state import State
from promptside.callables import name_of
from promptside.errors import ActorStopped, AskTimeout, MailboxFull
from promptside.events.hooks import Hook, end_listener
from promptside.events.subscription import Subscription
from promptside.texts import describe

if TYPE_CHECKING:
    from promptside.actors.envelope import Handler
    from promptside.actors.ref import ActorRef

__all__ = ["EMPTY", "NEW_CELL", "Cell", "Links"]


LATENESS = 2e-6
"""Seconds per queued message that an ask in a long queue may time out late, where others time out just before it."""

LONG = 100
"""Messages in a queue that is long."""


class Cell:
    """One actor's identity, mailbox and state. Private: users hold an `ActorRef`."""

    # fmt: off
    __slots__ = (
        "_ref", "active", "actor_class", "capacity", "children", "current", "deadline_at", "deadline_timer",
        "drain_until", "draining", "ended", "expected", "factory", "failed", "given_up", "handled",
        "handled_in_threads", "handlers", "has_started", "hook_context", "id", "incarnation", "instance", "kind",
        "links", "listeners", "name", "needs_check", "node", "open", "options", "owns_node", "parent", "path", "queue",
        "reason", "restart_at", "runtime", "senders", "shutdown", "spawn_context", "started_at", "state",
        "stop_hook_started", "stop_timer", "streams", "supervised", "suspended", "task", "timers", "waiter", "waits",
    )
    # fmt: on

    def __init__(
        self,
        runtime: Runtime,
        node: Node,
        parent: Cell | None,
        id: str,
        factory: Callable[[], Any],
        *,
        name: str | None = None,
        supervised: bool = False,
        shutdown: float | None = None,
    ) -> None:
        self.runtime = runtime
        self.node = node
        self.owns_node = False  # whether the node was started for this cell, and ends with it
        self.parent = parent
        self.id = id
        self.path: str = id if parent is None else f"{parent.path}/{id}"
        self.name = name
        self.children: dict[str, Cell] | None = None
        self.factory = factory
        self.kind = name_of(factory)
        self.spawn_context: Context = copy_context()
        self.supervised = supervised
        self.shutdown = shutdown  # instead of the class's, when its supervisor says so
        self._ref: ActorRef[Any] | None = None
        # -- the incarnation
        self.instance: Any = None  # an `Actor`
        self.actor_class: type[Any] = object
        self.options: ActorOptions = DEFAULTS
        self.handlers: dict[Any, Handler] = {}
        self.streams: dict[Any, Handler] = {}
        self.expected: tuple[type[BaseException], ...] = ()
        self.incarnation = 0
        self.state = State.STARTING
        self.reason: object = None  # of its end
        self.started_at = 0.0
        self.has_started = False  # whether this incarnation's `on_start` has returned
        self.stop_hook_started = False  # whether its `on_stop` has begun
        self.hook_context: Context | None = None  # of `__init__`, `on_start` and `on_stop`
        self.draining = False
        self.drain_until = 0.0
        self.restart_at = 0.0 if supervised else None  # on the loop's clock, when expected; None when none is
        self.links: Links | None = None
        self.timers: set[Cancellable] | None = None
        self.listeners: WeakSet[Hook | Subscription] | None = None  # of events, which end with it
        self.stop_timer: asyncio.TimerHandle | None = None
        self.ended: dict[asyncio.Future[None], None] | None = None  # who waits for its end
        # -- its messages
        self.open = False  # whether new messages are taken
        self.needs_check = False  # whether the runner must ask `can_continue` before the next message
        self.suspended = False
        self.capacity: float = 0
        self.queue: deque[Envelope] = EMPTY
        self.current: Envelope | None = None
        self.waits: set[Envelope] | None = None  # asks that the current message waits for, if it is a tell
        # With max_concurrency > 1: where they are handled. Threads change it, too.
        self.active: dict[Envelope, Cancellable] | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.given_up = 0  # asks in the queue whose askers have gone
        self.senders: OrderedDict[asyncio.Future[None], Envelope] | None = None  # in `deliver`, waiting for room
        self.deadline_at = math.inf
        self.deadline_timer: asyncio.TimerHandle | None = None
        self.handled = 0  # messages handled to their end, by every incarnation
        self.handled_in_threads = 0  # of `ThreadRun`s, which are not among those
        self.failed = 0  # of the asks, those answered with an expected exception

    @property
    def ref(self) -> ActorRef[Any]:
        """The one reference without options; made when first wanted. Any thread."""
        if self._ref is None:
            made: ActorRef[Any] = self.runtime.make_ref(self)
            self._ref = made
        return self._ref

    def adopt(self, actor_class: type[Any]) -> None:
        """The next incarnation is of this class; called before its `__init__`, which may send it messages."""
        options: ActorOptions = actor_class.__options__
        self.options, self.actor_class, self.kind = options, actor_class, actor_class.__name__
        self.handlers, self.streams = options.handlers, options.streams
        self.expected, self.capacity = options.expected, options.mailbox
        self.active = {} if options.max_concurrency > 1 else None

    def here(self) -> bool:
        """Whether the caller runs on this cell's event loop."""
        return asyncio._get_running_loop() is self.node.loop

    def resolve(self, method: Any, *, stream: bool = False) -> Handler:
        """The handler of a method not seen before; raises as `ActorOptions.resolve` does. Any thread."""
        return self.options.resolve(self.actor_class, method, stream=stream)

    @property
    def takes(self) -> bool:
        """Whether a message goes into the mailbox: while it runs, and, as in OTP, while it starts."""
        return self.open or (self.state is State.STARTING and self.queue is not EMPTY)

    def end_owned(self) -> None:
        """End the timers and the listeners of the incarnation; the second time, what a hook is still at."""
        for timer in tuple(self.timers or ()):
            timer.cancel()
        for listener in tuple(self.listeners or ()):
            end_listener(listener)

    def check_parent(self) -> None:
        """A supervisor that was asked to stop meanwhile would wait for this start; raises `ActorStopped`."""
        parent = self.parent if self.supervised else None
        if parent is not None and parent.state not in (State.STARTING, State.RUNNING) and not parent.draining:
            raise parent.stopped(parent.reason, started=False)

    def put(self, envelope: Envelope) -> None:
        """Take a message into the mailbox, or refuse it by the rules.

        Raises:
            MailboxFull: The mailbox is full and rejects.
        """
        if not self.takes:
            self.refuse(envelope)
            return
        if len(self.queue) >= self.capacity and not make_room(self, envelope):
            return
        self.queue.append(envelope)
        ask = envelope.ask
        if ask is not None:
            ask.queued = True
            if ask.deadline < self.deadline_at:
                self.watch_deadline(ask.deadline)
        if self.open and (self.waiter is not None or self.task is None):
            self.wake()

    def put_safely(self, envelope: Envelope) -> None:
        """`put` without an error for the sender: a full mailbox becomes the reply, or makes a dead letter."""
        ask = envelope.ask
        if ask is not None and ask.reply.done():
            return
        try:
            self.put(envelope)
        except MailboxFull as error:
            if ask is None:
                self.runtime.dead_letter(self, envelope.method, "mailbox full")
            else:
                ask.reply.set_exception(error.with_traceback(None))  # else its frames hold the ask that holds it

    def post(self, message: object) -> None:
        """Put a plain message of the framework's own, which no bound refuses. Any thread."""
        self.node.call(self.put_own, make_envelope(self, receive_posted, (message,), {}, Context(), None))

    def put_own(self, envelope: Envelope) -> None:
        """Put a message of a timer or the framework, which no bound refuses."""
        if self.takes:
            self.queue.append(envelope)
            if self.open:
                self.wake()

    def refuse(self, envelope: Envelope) -> None:
        """Fail an ask that will not be handled, or count a dead letter."""
        ask = envelope.ask
        if ask is None:
            if envelope.handler is not receive_posted:  # not a `Down` or an `Exit`
                self.runtime.dead_letter(self, envelope.method, describe(self.why))
        elif not ask.reply.done():
            ask.queued = False
            ask.reply.set_exception(self.stopped(self.why, started=False))

    @property
    def why(self) -> object:
        """Why it takes no messages; see `why_ended`."""
        return why_ended(self)

    def stopped(self, reason: object, *, started: bool) -> ActorStopped:
        """The error for an ask that ends because the actor does."""
        return ActorStopped(
            self.path, reason, started=started, incarnation=self.incarnation, retry_after=retry_after(self)
        )

    def can_continue(self) -> bool:
        """Whether the runner may take a message although `needs_check` is set."""
        if self.state is State.STARTING:
            return True  # its first message is `on_start`
        if self.state is State.RUNNING:
            admit_senders(self)
            self.needs_check = self.suspended or bool(self.senders)
            return not self.suspended
        return self.state is State.STOPPING and self.draining and bool(self.queue)

    def wake(self) -> None:
        """See to it that the runner looks at the mailbox; raises `ActorStopped` when the loop was closed under it."""
        self._check_loop()
        if self.active is not None:
            if not self.needs_check or self.can_continue():
                self.runtime.runner.dispatch(self)
        elif self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self.task is None:
            # Not `loop.create_task`: a factory of eager tasks would run it before `task` is known.
            self.task = asyncio.Task(self.runtime.runner.run(self), loop=self.node.loop, name=self.path)

    def _check_loop(self) -> None:
        if self.node.loop.is_closed():
            raise self.stopped(LOOP_CLOSED, started=False)

    def suspend(self, on: bool) -> None:
        """Take no further message while `on`."""
        self.suspended = on
        self.needs_check = True
        if not on and self.state is State.RUNNING:
            self.runtime.runner.check(self)

    # -- deadlines and cancellation ----------------------------------------------------------------------------

    def running_messages(self) -> Iterator[Envelope]:
        """The messages whose handlers have begun."""
        if self.current is not None:
            yield self.current
        if self.active:
            yield from tuple(self.active)

    def watch_deadline(self, deadline: float) -> None:
        """Arm the cell's one timer, which is enough: asks that are answered in time leave it for the next one."""
        self._check_loop()
        if self.deadline_timer is not None:
            self.deadline_timer.cancel()
        self.deadline_at = deadline
        self.deadline_timer = self.node.loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self.deadline_timer = None
        self.deadline_at = math.inf
        now = self.node.loop.time()
        following = math.inf
        for envelope in (*self.running_messages(), *self.queue):
            ask = envelope.ask
            if ask is None or ask.reply.done():
                continue
            if ask.deadline <= now:
                self.time_out(envelope)
            else:
                following = min(following, ask.deadline)
        if following < math.inf:  # a look at all of them for each of 50,000 deadlines would take minutes
            waiting = len(self.queue)
            self.watch_deadline(following if waiting < LONG else max(following, now + LATENESS * waiting))

    def time_out(self, envelope: Envelope) -> None:
        """Give `envelope` the outcome `AskTimeout`, and cancel its handler if that had begun."""
        ask, started = envelope.ask, envelope.begun
        assert ask is not None
        ask.reply.set_exception(AskTimeout(self.path, envelope.method, ask.timeout, started=started))
        self.abandon(envelope)
        if not started:
            self.runtime.dead_letter(self, envelope.method, "expired")

    def abandon(self, envelope: Envelope) -> None:
        """Cancel the handler of an ask whose asker has gone; in the queue, the runner skips it."""
        ask = envelope.ask
        if ask is None or ask.cancelled:
            return
        if not envelope.running:
            give_up(self, envelope)
            return
        ask.cancelled = True
        self.cancel(envelope)

    def cancel(self, envelope: Envelope) -> None:
        """Cancel the handler of `envelope`, if it runs."""
        task = self._task_of(envelope)
        if task is None:
            return
        if asyncio.current_task(self.node.loop) is task:
            # A cancel from the task's own step would outlive the message if this were its last step.
            self.node.loop.call_soon(self.cancel, envelope)
        else:
            task.cancel()

    def _task_of(self, envelope: Envelope) -> Cancellable | None:
        """The task, or the run in a thread, that handles `envelope` now."""
        if self.active is not None:
            return self.active.get(envelope)
        return self.task if self.current is envelope else None

    def tasks(self) -> tuple[Cancellable, ...]:
        """The tasks, and the runs in threads, that handle messages now."""
        if self.active is not None:
            return tuple(self.active.values())
        return (self.task,) if self.task is not None and self.current is not None else ()

    def cancel_tasks(self) -> bool:
        """Cancel what is being handled; whether there was anything."""
        tasks = self.tasks()
        for task in tasks:
            self._cancel_task(task)
        return bool(tasks)

    def _cancel_task(self, task: Cancellable) -> None:
        if asyncio.current_task(self.node.loop) is task:
            self.node.loop.call_soon(task.cancel)
        else:
            task.cancel()


EMPTY: deque[Envelope] = deque(maxlen=0)
"""The mailbox of a cell that takes no messages: an own deque would cost each idle cell 0.6 KiB."""

NEW_CELL: ContextVar[Cell | None] = ContextVar("promptside_new_cell", default=None)
"""The cell whose instance is being made; taken by the first `Actor` that is constructed."""
