"""`ActorRef`: the only way to an actor, from any event loop and any thread.

Users hold it; it makes envelopes and puts them into the cell's mailbox. On the actor's own loop that is a few
appends; from elsewhere the envelope travels by `call_soon_threadsafe` and the reply travels back the same way.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Concatenate, Generic, NoReturn, ParamSpec, TypeVar, cast

from promptside.actors.cell import Cell
from promptside.actors.cycles import find_cycle, running, waits_for_end
from promptside.actors.endings import retry_after
from promptside.actors.envelope import CURRENT, Ask, DistantReply, Envelope, Handler, make_envelope, receive_sent
from promptside.actors.info import ActorInfo, inspect
from promptside.actors.lifecycle import kill, request_stop, wait_ended
from promptside.actors.mailbox import wait_for_room
from promptside.actors.node import LOOP_CLOSED, Node, NodeClosed
from promptside.actors.state import State
from promptside.actors.stream import Channel
from promptside.checks import check_seconds, is_number
from promptside.errors import AskCycleError, AskTimeout
from promptside.texts import repr_of

if TYPE_CHECKING:
    from promptside.actors.system import ActorSystem

__all__ = ["ActorRef"]

A = TypeVar("A")
P = ParamSpec("P")
R = TypeVar("R")

WINDOW = 32
"""Items of a stream that the producer may be ahead of its consumer."""


class ActorRef(Generic[A]):
    """A reference to an actor; stays good across restarts, equal to every other reference to the same actor."""

    __slots__ = ("__weakref__", "_cell", "_timeout")

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

    @property
    def system(self) -> ActorSystem:
        """The system that the actor lives in."""
        return cast("ActorSystem", self._cell.runtime.system)

    @property
    def node(self) -> Node:
        """The node that hosts the actor."""
        return self._cell.node

    @property
    def parent(self) -> ActorRef[Any] | None:
        """The actor above it; None at the top of the tree."""
        above = self._cell.parent
        return None if above is None else above.ref

    @property
    def state(self) -> State:
        """Where the actor is in its life."""
        return self._cell.state

    @property
    def retry_after(self) -> float | None:
        """Seconds until the actor is expected to run again; None when it runs, or when no restart is expected."""
        return retry_after(self._cell)

    def with_options(self, *, timeout: float) -> ActorRef[A]:
        """The same actor, asked with another timeout.

        Args:
            timeout: Seconds > 0; `math.inf` waits for ever.
        """
        if not is_number(timeout) or not timeout > 0:
            raise ValueError(f"timeout={repr_of(timeout)}: give seconds > 0, or math.inf")
        return ActorRef(self._cell, timeout)

    # -- messages ----------------------------------------------------------------------------------------------

    def tell(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, Any]], /, *args: P.args, **kwargs: P.kwargs
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
            ActorStopped: The actor's event loop is closed or stopped, or the process is a fork of the actor's.
        """
        cell = self._cell
        handler = cell.handlers.get(method) or cell.resolve(method)
        envelope = Envelope()  # `make_envelope`, here for its speed
        envelope.cell = cell
        envelope.handler = handler
        envelope.args = args
        envelope.kwargs = kwargs or None
        envelope.context = copy_context()
        envelope.ask = None
        if asyncio._get_running_loop() is not cell.node.loop:
            self._send_across(envelope)
        elif cell.open and len(cell.queue) < cell.capacity:  # `Cell.put`, for the same reason
            cell.queue.append(envelope)
            if cell.waiter is not None or cell.task is None:
                cell.wake()
        else:
            cell.put(envelope)

    async def ask(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
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
            ActorStopped: The actor does not run, or ended first; `started` is whether the method had begun.
            AskTimeout: No answer within the timeout (the class's, or that of `with_options`).
            AskCycleError: The actor waits, through other asks, for this one's sender.
            MailboxFull: The mailbox is full and its policy is to reject.
            TypeError: `method` is not a public async method of the actor's class.
        """
        cell = self._cell
        handler = cell.handlers.get(method) or cell.resolve(method)
        sender = CURRENT.get()
        if sender is not None or asyncio._get_running_loop() is not cell.node.loop:
            return cast("R", await self._ask_from(sender, handler, args, kwargs))
        loop = cell.node.loop
        timeout = cell.options.timeout if self._timeout is None else self._timeout
        reply: asyncio.Future[R] = loop.create_future()
        ask = Ask(reply, loop.time() + timeout, timeout)
        envelope = make_envelope(cell, handler, args, kwargs, copy_context(), ask)
        cell.put(envelope)
        try:
            return await reply
        except asyncio.CancelledError:
            cell.abandon(envelope)
            raise
        finally:  # an error holds this frame, which must not lead back to it
            del reply, ask, envelope

    async def stream(
        self, method: Callable[Concatenate[A, P], AsyncIterator[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[R, None]:
        """Read what an async generator method yields, as it is yielded: ``async for x in ref.stream(Writer.tokens)``.

        The producer is held back to 32 items ahead of the reader. Leaving the loop early stops it: at once with
        ``contextlib.aclosing``, otherwise when the iterator is collected.

        Args:
            method: The async generator method, named on the class.
            *args: For the method.
            **kwargs: For the method.

        Yields:
            The items, in order.

        Raises:
            AskTimeout: No item came within the timeout, which is for each item.
            Exception: As for `ask`; the items that came before are read first.
        """
        cell = self._cell
        produce = cell.streams.get(method) or cell.resolve(method, stream=True)
        sender = running(CURRENT.get())
        self._check_cycle(sender)
        channel: Channel[R] = Channel(cell.node.loop, WINDOW)
        timeout = cell.options.timeout if self._timeout is None else self._timeout
        deadline = math.inf if sender is None or sender.ask is None else sender.ask.deadline
        ask = Ask(channel, deadline, timeout, sender)
        envelope = make_envelope(cell, produce, (channel, *args), kwargs, copy_context(), ask)
        if sender is not None:
            sender.waits.add(envelope)
        try:
            self._send(envelope)
            while True:
                item = await channel.get(timeout, lambda: self._timed_out(envelope))
                if channel.is_end(item):
                    return
                yield item
        finally:
            if sender is not None:
                sender.waits.discard(envelope)
            if channel.give_up():
                cell.node.call(cell.abandon, envelope)

    async def deliver(
        self, method: Callable[Concatenate[A, P], Coroutine[Any, Any, Any]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """As `tell`, but wait until the mailbox has room; returns when the message is in it.

        Args:
            method: The method, named on the class.
            *args: For the method.
            **kwargs: For the method.

        Raises:
            ActorStopped: The actor does not run, or ended before there was room.
            TypeError: `method` is not a public async method of the actor's class.
        """
        cell = self._cell
        handler = cell.handlers.get(method) or cell.resolve(method)
        envelope = make_envelope(cell, handler, args, kwargs, copy_context(), None)
        try:
            await cell.node.run(wait_for_room(cell, envelope))
        except NodeClosed as error:
            raise cell.stopped(str(error), started=False) from error

    def send_message(self, message: object) -> None:
        """Send a plain message to the actor's `receive`; otherwise as `tell`.

        Args:
            message: Anything; from another thread it is shared, not copied.
        """
        cell = self._cell
        self._send(make_envelope(cell, receive_sent, (message,), {}, copy_context(), None))

    # -- the less common ways of an ask -------------------------------------------------------------------------

    async def _ask_from(
        self, sender: Envelope | None, handler: Handler, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """An ask within a message's handling, or from another loop."""
        cell = self._cell
        sender = running(sender)
        self._check_cycle(sender)
        timeout = cell.options.timeout if self._timeout is None else self._timeout
        if sender is not None and sender.ask is not None:
            timeout = max(0.0, min(timeout, sender.ask.deadline - sender.cell.node.loop.time()))
        loop = asyncio.get_running_loop()
        reply = loop.create_future()
        here = loop is cell.node.loop
        answer = reply if here else DistantReply(loop, reply)
        ask = Ask(answer, cell.node.loop.time() + timeout, timeout, sender)
        envelope = make_envelope(cell, handler, args, kwargs, copy_context(), ask)
        # Another loop may be blocked, so the asker keeps the time as well.
        timer = None if here or timeout == math.inf else loop.call_later(timeout, self._time_out_here, envelope, reply)
        if sender is not None:
            sender.waits.add(envelope)
        try:
            self._send(envelope)
            return await reply
        except asyncio.CancelledError:
            cell.node.call(cell.abandon, envelope)
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if sender is not None:
                sender.waits.discard(envelope)
            del reply, answer, ask, envelope, timer  # as in `ask`

    def _time_out_here(self, envelope: Envelope, reply: asyncio.Future[Any]) -> None:
        if not reply.done():
            reply.set_exception(self._timed_out(envelope))
            self._cell.node.call(self._cell.abandon, envelope)

    def _timed_out(self, envelope: Envelope) -> AskTimeout:
        assert envelope.ask is not None
        return AskTimeout(self.path, envelope.method, envelope.ask.timeout, started=envelope.begun)

    def _check_cycle(self, sender: Envelope | None) -> None:
        if sender is not None and (cycle := find_cycle(sender, self._cell)):
            raise AskCycleError(cycle)

    def _send(self, envelope: Envelope) -> None:
        if self._cell.here():
            self._cell.put(envelope)
        else:
            self._send_across(envelope)

    def _send_across(self, envelope: Envelope) -> None:
        cell = self._cell
        trouble = cell.node.trouble
        if trouble is None and cell.runtime.closed:
            cell.refuse(envelope)
        elif trouble is None:
            try:
                cell.node.loop.call_soon_threadsafe(cell.put_safely, envelope)
            except RuntimeError:
                trouble = LOOP_CLOSED  # just now
        if trouble is not None:
            raise cell.stopped(trouble, started=False)

    # -- life --------------------------------------------------------------------------------------------------

    async def stop(self, reason: object = "normal", *, drain: float = 0.0, shutdown: float | None = None) -> None:
        """Stop the actor in order, and wait until it has ended.

        The message being handled is finished, `on_stop` runs, then the children are stopped in reverse order of
        their start. Called from a handler of the actor or below it, it asks for the stop and returns at once.

        Args:
            reason: Given to `on_stop`, to monitors and to links; ``"normal"`` is no failure.
            drain: Seconds for the queued messages, which are handled first, and for what follows; then the actor is
                killed. With 0, their asks fail and their tells are dead letters.
            shutdown: Without a drain: seconds before the actor is killed; the class's by default. 0 kills at once.

        Raises:
            ValueError: An argument is not >= 0.
        """
        cell = self._cell
        check_seconds("stop", "drain", drain, zero=True)
        if shutdown is not None:
            check_seconds("stop", "shutdown", shutdown, zero=True)
        own = waits_for_end(CURRENT.get(), cell)

        async def stop() -> None:
            request_stop(cell, reason, shutdown=drain or shutdown, drain=drain > 0)
            if not own:
                await wait_ended(cell)

        try:
            await cell.node.run(stop())
        except NodeClosed as error:
            if not error.has_ended:
                raise cell.stopped(str(error), started=False) from error

    def kill(self) -> None:
        """End the actor at once, as a crash with reason ``"killed"``: its supervisor restarts it. Any thread."""
        self._call(kill, self._cell)

    def suspend(self) -> None:
        """Let the actor finish its message and take no further one; stop and kill still reach it. Any thread."""
        self._call(self._cell.suspend, True)

    def resume(self) -> None:
        """Undo `suspend`. Any thread."""
        self._call(self._cell.suspend, False)

    def _call(self, function: Callable[..., object], *args: object) -> None:
        """Call a function on its loop; raises `ActorStopped` where that would be later, or never."""
        trouble = self._cell.node.trouble
        if trouble not in (None, LOOP_CLOSED):
            raise self._cell.stopped(trouble, started=False)
        self._cell.node.call(function, *args)

    def info(self) -> ActorInfo:
        """A look at the actor without asking it: works while it is busy, blocked or ended. Any thread."""
        return inspect(self._cell)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if hasattr(self, name)]  # without the hints at messages

    def __copy__(self) -> ActorRef[A]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ActorRef[A]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{self!r} belongs to its process and cannot be pickled")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorRef) and other._cell is self._cell

    def __hash__(self) -> int:
        return hash(id(self._cell))

    def __repr__(self) -> str:
        return f"<ActorRef {self.path} #{self.incarnation} {self.state.value}>"
