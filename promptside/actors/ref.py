"""`ActorRef`: the only way to an actor, from any event loop and any thread.

Users hold it; it makes envelopes and puts them into the cell's mailbox. On the actor's own loop that is a few
appends; from elsewhere the envelope travels by `call_soon_threadsafe` and the reply travels back the same way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar

from promptside.actors.envelope import CURRENT, Envelope
from promptside.actors.waits import descends_from, find_cycle
from promptside.errors import AskCycleError, AskTimeout

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["ActorRef"]

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")


class ActorRef(Generic[A]):
    """A reference to an actor; stays good across restarts, equal to every other reference to the same actor."""

    __slots__ = ("_cell", "_timeout")

    def __init__(self, cell: Cell, timeout: float | None = None) -> None:
        self._cell = cell
        self._timeout = timeout

    @property
    def path(self) -> str:
        """The actor's place in the tree, such as ``"desk/clerk-1"``."""
        return self._cell.path

    @property
    def name(self) -> str | None:
        """The registered name, if one was given."""
        return self._cell.name

    @property
    def incarnation(self) -> int:
        """1 for the first start, one more with each restart; state is new with each."""
        return self._cell.incarnation

    def with_options(self, *, timeout: float) -> ActorRef[A]:
        """The same actor, asked with another timeout.

        Args:
            timeout: Seconds > 0; `math.inf` waits for ever.
        """
        if not timeout > 0:
            raise ValueError(f"timeout={timeout!r}: give seconds > 0, or math.inf")
        return ActorRef(self._cell, timeout)

    def tell(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, Any]], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Send a message and go on at once; its result is dropped, an exception in it is a crash.

        To an actor that does not run, the message becomes a dead letter: counted, and published.

        Args:
            method: The method, named on the class: ``ref.tell(Counter.add, 1)``.
            *args: For the method.
            **kwargs: For the method.

        Raises:
            MailboxFull: The mailbox is full and its policy is to reject; from another thread, a dead letter instead.
            TypeError: `method` is not a public async method of the actor's class.
            ActorStopped: The actor's event loop is closed.
        """
        cell = self._cell
        handler = cell.handlers.get(method) or self._resolve(method)
        envelope = Envelope(cell, handler, args, kwargs, copy_context())
        if get_ident() == cell.thread_id:
            cell.put(envelope)
        else:
            self._send_across(envelope)

    async def ask(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Send a message and wait for its answer.

        Cancelling or timing out an ask cancels its handler, and harms neither the actor nor its other messages.
        Inside a handler, the ask inherits the deadline of the message being handled where that is earlier.

        Args:
            method: The method, named on the class: ``await ref.ask(Counter.add, 5)``.
            *args: For the method.
            **kwargs: For the method.

        Returns:
            What the method returned.

        Raises:
            Exception: Whatever the method raised, the same object.
            ActorStopped: The actor does not run, or ended first; `started` tells whether the method had begun.
            AskTimeout: No answer within the timeout (the class's, or that of `with_options`).
            AskCycleError: The actor waits, through other asks, for this one's sender.
            MailboxFull: The mailbox is full and its policy is to reject.
            TypeError: `method` is not a public async method of the actor's class.
        """
        cell = self._cell
        handler = cell.handlers.get(method) or self._resolve(method)
        sender = CURRENT.get()
        here = get_ident() == cell.thread_id
        loop = cell.node.loop if here else asyncio.get_running_loop()
        timeout = self._timeout if self._timeout is not None else cell.protocol.timeout
        deadline = loop.time() + timeout
        if sender is not None:
            if sender.finished:
                sender = None
            else:
                if sender.deadline < deadline:
                    timeout += sender.deadline - deadline
                    deadline = sender.deadline
                self._check_cycle(sender)
        reply: asyncio.Future[R] = loop.create_future()
        if not here:
            return await self._ask_across(loop, handler, args, kwargs, reply, timeout, sender)
        envelope = Envelope(cell, handler, args, kwargs, copy_context(), reply, deadline, timeout, sender)
        cell.put(envelope)
        if sender is not None:
            return await self._wait(envelope, sender, reply)
        try:
            return await reply
        except asyncio.CancelledError:
            cell.abandon(envelope)
            raise

    async def _wait(self, envelope: Envelope, sender: Envelope, reply: asyncio.Future[R]) -> R:
        if sender.waits is None:
            sender.waits = set()
        sender.waits.add(envelope)
        try:
            return await reply
        except asyncio.CancelledError:
            envelope.cell.abandon(envelope)
            raise
        finally:
            sender.waits.discard(envelope)

    def _check_cycle(self, sender: Envelope) -> None:
        cell = self._cell
        if cell.active is not None:
            return  # descendants of the messages inside get slots of their own
        if cell.current is not None and (cycle := find_cycle(sender, cell)):
            raise AskCycleError(cycle)

    def _resolve(self, method: Any) -> Any:
        return self._cell.resolve(method)

    # -- from another thread -----------------------------------------------------------------------------------

    def _send_across(self, envelope: Envelope) -> None:
        cell = self._cell
        try:
            cell.node.loop.call_soon_threadsafe(cell.put_safely, envelope)
        except RuntimeError as error:  # the loop is closed
            raise cell.stopped("its event loop is closed", started=False) from error

    async def _ask_across(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        reply: asyncio.Future[R],
        timeout: float,
        sender: Envelope | None,
    ) -> R:
        cell = self._cell
        there = cell.node.loop
        distant = _DistantReply(loop, reply)
        deadline = there.time() + timeout
        envelope = Envelope(cell, handler, args, kwargs, copy_context(), distant, deadline, timeout, sender)
        # The other loop may be blocked, so the asker keeps the time as well.
        timer = None if timeout == math.inf else loop.call_later(timeout, self._time_out_here, envelope, reply)
        if sender is not None:
            sender.waits = sender.waits or set()
            sender.waits.add(envelope)
        try:
            self._send_across(envelope)
            return await reply
        except BaseException:
            if not distant.done():
                distant.give_up()
                try:
                    there.call_soon_threadsafe(cell.abandon, envelope)
                except RuntimeError:
                    pass  # the loop is closed, and with it the handler
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if sender is not None and sender.waits is not None:
                sender.waits.discard(envelope)

    def _time_out_here(self, envelope: Envelope, reply: asyncio.Future[Any]) -> None:
        if not reply.done():
            started = envelope.cell.current is envelope or envelope in (envelope.cell.active or ())
            reply.set_exception(AskTimeout(self.path, envelope.method, envelope.timeout, started=started))

    # -- life --------------------------------------------------------------------------------------------------

    async def stop(self, reason: object = "normal", *, drain: bool = False, shutdown: float | None = None) -> None:
        """Stop the actor in order, and wait until it has ended.

        The message being handled is finished, `on_stop` runs, then the children are stopped in reverse order of
        their start. Called from the actor's own handler, it asks for the stop and returns at once.

        Args:
            reason: Told to `on_stop` and to whoever watches; ``"normal"`` is no failure.
            drain: Handle the queued messages first; otherwise their asks fail and their tells are dead letters.
            shutdown: Seconds before the actor is killed instead; the class's by default. 0 kills at once.
        """
        cell = self._cell
        if get_ident() != cell.thread_id:
            await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(self.stop(reason, drain=drain, shutdown=shutdown), cell.node.loop)
            )
            return
        cell.request_stop(reason, shutdown=shutdown, drain=drain)
        if not descends_from(CURRENT.get(), cell):
            await cell.wait_ended()

    def kill(self) -> None:
        """End the actor at once, as a crash with reason ``"killed"``: its supervisor restarts it. Any thread."""
        cell = self._cell
        if get_ident() == cell.thread_id:
            cell.kill()
            return
        try:
            cell.node.loop.call_soon_threadsafe(cell.kill)
        except RuntimeError:
            pass  # the loop is closed: the actor has ended

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and other._cell is self._cell

    def __hash__(self) -> int:
        return hash(id(self._cell))

    def __repr__(self) -> str:
        return f"<ActorRef {self.path} #{self.incarnation} {self._cell.state.value}>"


class _DistantReply:
    """The reply of an ask from another loop, as the actor's loop sees it: answered at most once, never awaited."""

    __slots__ = ("_given_up", "_loop", "_reply")

    def __init__(self, loop: asyncio.AbstractEventLoop, reply: asyncio.Future[Any]) -> None:
        self._loop = loop
        self._reply = reply
        self._given_up = False

    def done(self) -> bool:
        return self._given_up

    def give_up(self) -> None:
        self._given_up = True

    def set_result(self, result: Any) -> None:
        self._deliver(asyncio.Future.set_result, result)

    def set_exception(self, exception: Any) -> None:
        self._deliver(asyncio.Future.set_exception, exception)

    def _deliver(self, how: Callable[[asyncio.Future[Any], Any], None], outcome: Any) -> None:
        self._given_up = True

        def deliver() -> None:
            if not self._reply.done():
                how(self._reply, outcome)

        try:
            self._loop.call_soon_threadsafe(deliver)
        except RuntimeError:
            pass  # the asker's loop is closed, and with it the asker
