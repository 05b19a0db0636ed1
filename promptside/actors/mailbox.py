"""The mailbox: how a message gets into an actor, waits there, expires, is cancelled or refused.

The lower half of a `Cell`: `ref` puts envelopes in, `runner` takes them out. It knows an actor's state and never
changes it; starting, failing and stopping are the upper half's.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, cast

from promptside.actors import runner
from promptside.actors.envelope import Envelope, make_envelope
from promptside.actors.node import LOOP_CLOSED
from promptside.actors.state import State
from promptside.errors import ActorStopped, AskTimeout, MailboxFull

if TYPE_CHECKING:
    from promptside.actors.actor import Actor, Protocol
    from promptside.actors.cell import Cell
    from promptside.actors.envelope import Handler
    from promptside.actors.node import Node
    from promptside.actors.system import ActorSystem

__all__ = ["EMPTY", "Mailbox", "describe"]


class Mailbox:
    """The messages of one actor. Its subclass `Cell` sets the fields that are declared and not made here."""

    __slots__ = (
        "active",
        "capacity",
        "current",
        "deadline_at",
        "deadline_timer",
        "interrupted",
        "open",
        "queue",
        "restart_at",
        "room",
        "suspended",
        "task",
        "waiter",
        "waits",
    )

    system: ActorSystem
    node: Node
    path: str
    protocol: Protocol
    actor_class: type[Actor]
    state: State
    reason: object
    incarnation: int
    draining: bool

    def __init__(self) -> None:
        self.open = False  # whether new messages are taken
        self.restart_at: float | None = None  # of the loop's time, when a restart is expected; None when none is
        self.interrupted = False  # whether the runner must ask `may_go_on` before the next message
        self.suspended = False
        self.capacity: float = 0
        self.queue: deque[Envelope] = EMPTY
        self.current: Envelope | None = None
        self.waits: set[Envelope] | None = None  # what the current message waits for, if it is a tell
        self.active: dict[Envelope, asyncio.Task[None]] | None = None  # with concurrency > 1
        self.task: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self.room: deque[tuple[asyncio.Future[None], Envelope]] | None = None  # `deliver` waiting for room
        self.deadline_at = math.inf
        self.deadline_timer: asyncio.TimerHandle | None = None

    @property
    def _cell(self) -> Cell:
        return cast("Cell", self)

    def resolve(self, method: Any, *, stream: bool = False) -> Handler:
        """The handler of a method not seen before; raises as `Protocol.resolve` does. Any thread."""
        return self.protocol.resolve(self.actor_class, method, stream=stream)

    def retry_after(self) -> float | None:
        """Seconds until a restart is expected; None when none is."""
        parent = self._cell.parent
        ends = parent is not None and parent.state not in (State.STARTING, State.RUNNING)
        if self.state is State.RUNNING or self.restart_at is None or ends:
            return None
        return max(0.0, self.restart_at - self.node.loop.time())

    def put(self, envelope: Envelope) -> None:
        """Take a message into the mailbox, or refuse it by the rules.

        Raises:
            MailboxFull: The mailbox is full and rejects.
        """
        if not self.open:
            self.refuse(envelope)
            return
        if len(self.queue) >= self.capacity and not self._make_room(envelope):
            return
        self.queue.append(envelope)
        ask = envelope.ask
        if ask is not None and ask.deadline < self.deadline_at:
            self.watch_deadline(ask.deadline)
        if self.waiter is not None or self.task is None:
            self.wake()

    def put_safely(self, envelope: Envelope) -> None:
        """`put` where the sender cannot be told: a full mailbox becomes the reply, or makes a dead letter."""
        ask = envelope.ask
        if ask is not None and ask.reply.done():
            return
        try:
            self.put(envelope)
        except MailboxFull as error:
            if ask is None:
                self.system.dead_letter(self._cell, envelope.method, "mailbox full")
            else:
                ask.reply.set_exception(error)

    def post(self, message: object) -> None:
        """Put a plain message of the framework's own, which no bound refuses. Any thread."""
        if not self._cell.here():
            self.node.call(self.post, message)
        else:
            self.put_own(make_envelope(self._cell, receive_posted, (message,), {}, Context(), None))

    def put_own(self, envelope: Envelope) -> None:
        """Put a message of a timer or the framework: no bound refuses it, and during `on_start` it waits."""
        if self.open or self.state is State.STARTING:
            self.queue.append(envelope)
            self.wake()

    def _drop_given_up(self) -> bool:
        """Take asks that nobody waits for any more out of the full mailbox; whether there were any."""
        given_up = [each for each in self.queue if each.ask is not None and each.ask.reply.done()]
        for each in given_up:
            self.queue.remove(each)
        return bool(given_up)

    def _make_room(self, envelope: Envelope) -> bool:
        """Whether the full mailbox has room for `envelope` after its policy was applied."""
        if self._drop_given_up():
            return True
        overflow = self.protocol.overflow
        if overflow == "reject":
            raise MailboxFull(self.path, int(self.capacity))
        dropped = envelope
        if overflow == "drop_oldest":
            dropped = next((each for each in self.queue if each.handler is not receive_posted), envelope)
        if dropped is not envelope:
            self.queue.remove(dropped)
        if dropped.ask is not None:
            dropped.ask.reply.set_exception(MailboxFull(self.path, int(self.capacity)))
        self.system.dead_letter(self._cell, dropped.method, "mailbox full")
        return dropped is not envelope

    def refuse(self, envelope: Envelope) -> None:
        """Tell the asker of a message that will not be run, or count a dead letter."""
        ask = envelope.ask
        if ask is None:
            if envelope.handler is not receive_posted:  # the news of another actor's end, which nobody waits for
                self.system.dead_letter(self._cell, envelope.method, describe(self.reason or self.state.value))
        elif not ask.reply.done():
            ask.reply.set_exception(self.stopped(self.reason or self.state.value, started=False))

    def stopped(self, reason: object, *, started: bool) -> ActorStopped:
        """The error for an ask that ends because the actor does."""
        return ActorStopped(
            self.path, reason, started=started, incarnation=self.incarnation, retry_after=self.retry_after()
        )

    async def wait_for_room(self, envelope: Envelope) -> None:
        """Put `envelope` as soon as the mailbox has room; raises `ActorStopped` if that will not be."""
        if not self.open:
            raise self.stopped(self.reason or self.state.value, started=False)
        if not self.room and (len(self.queue) < self.capacity or self._drop_given_up()):
            self.put(envelope)
            return
        taken: asyncio.Future[None] = self.node.loop.create_future()
        if self.room is None:
            self.room = deque()
        self.room.append((taken, envelope))
        self.interrupted = True
        try:
            await taken
        except asyncio.CancelledError:
            if taken.done() and envelope in self.queue:  # cancelled in the turn that let it in
                self.queue.remove(envelope)
                self._let_in()
            raise

    def may_go_on(self) -> bool:
        """Whether the runner may take a message although `interrupted` is set."""
        if self.state is State.RUNNING:
            self._let_in()
            self.interrupted = self.suspended or bool(self.room)
            return not self.suspended
        return self.state is State.STOPPING and self.draining and bool(self.queue)

    def _let_in(self) -> None:
        """Put what `deliver` holds where there is room now."""
        room = self.room
        while room and (room[0][0].done() or len(self.queue) < self.capacity or self._drop_given_up()):
            taken, envelope = room.popleft()
            if not taken.done():
                taken.set_result(None)
                self.queue.append(envelope)

    def wake(self) -> None:
        """See to it that the runner looks at the mailbox; raises `ActorStopped` when the loop was closed under it."""
        self._check_loop()
        if self.active is not None:
            if not self.interrupted or self.may_go_on():
                runner.dispatch(self._cell)
        elif self.waiter is not None:
            waiter, self.waiter = self.waiter, None
            if not waiter.done():
                waiter.set_result(None)
        elif self.task is None:
            # Not `loop.create_task`: a factory of eager tasks would run it before `task` is known.
            self.task = asyncio.Task(runner.run(self._cell), loop=self.node.loop, name=self.path)

    def _check_loop(self) -> None:
        if self.node.loop.is_closed():
            raise self.stopped(LOOP_CLOSED, started=False)

    def suspend(self, on: bool) -> None:
        """Take no further message until told otherwise."""
        self.suspended = on
        self.interrupted = True
        if not on and self.state is State.RUNNING:
            runner.interrupt(self._cell)

    # -- deadlines and cancellation ----------------------------------------------------------------------------

    def under_way(self) -> Iterator[Envelope]:
        """The messages whose handlers have begun."""
        if self.current is not None:
            yield self.current
        if self.active:
            yield from self.active

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
        for envelope in (*self.under_way(), *self.queue):
            ask = envelope.ask
            if ask is None or ask.reply.done():
                continue
            if ask.deadline <= now:
                self.time_out(envelope)
            else:
                following = min(following, ask.deadline)
        if following < math.inf:
            self.watch_deadline(following)

    def time_out(self, envelope: Envelope) -> None:
        """Give `envelope` the outcome `AskTimeout`, and cancel its handler if that had begun."""
        ask, started = envelope.ask, envelope.begun
        assert ask is not None
        ask.reply.set_exception(AskTimeout(self.path, envelope.method, ask.timeout, started=started))
        self.abandon(envelope)
        if not started:
            self.system.dead_letter(self._cell, envelope.method, "expired")

    def abandon(self, envelope: Envelope) -> None:
        """Cancel the handler of an ask that nobody waits for any more; in the queue it is skipped by itself."""
        ask = envelope.ask
        if not envelope.running:
            self._let_in()
        if ask is None or ask.cancelled or not envelope.running:
            return
        ask.cancelled = True
        self._cancel(envelope)

    def _cancel(self, envelope: Envelope) -> None:
        task = self._task_of(envelope)
        if task is None:
            return
        if asyncio.current_task(self.node.loop) is task:
            # A cancel from the task's own step would outlive the message if this were its last step.
            self.node.loop.call_soon(self._cancel, envelope)
        else:
            task.cancel()

    def _task_of(self, envelope: Envelope) -> asyncio.Task[None] | None:
        """The task in which the handler of `envelope` runs now."""
        if self.active is not None:
            return self.active.get(envelope)
        return self.task if self.current is envelope else None


EMPTY: deque[Envelope] = deque(maxlen=0)
"""The mailbox of a cell that takes no messages: an own deque would cost each idle cell 0.6 KiB."""


async def receive_posted(actor: Actor, message: object) -> None:
    """Hand a message of the framework to `receive`; what marks it in the mailbox."""
    await actor.receive(message)


receive_posted.__name__ = "receive"  # for dead letters


def describe(reason: object) -> str:
    """A reason as a text for events and logs."""
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, BaseException) else str(reason)
