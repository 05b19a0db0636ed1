"""`ask_in_task`: an ask whose message is handled in the asker's own task, where nothing is lost by it.

Made by hosted modules, for their sub-modules. It is a message of the actor as any other: it takes a slot, it counts, a
stop waits for it, a kill cancels it. But it needs no task, no future and no turn of the event loop, which cost as much
as all else in such a call. What differs from another ask: contextvars that the method sets stay set for the asker, and
an asker whose message is killed goes on when the method has let the cancellation through.
"""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from promptside.actors.actor import Actor
from promptside.actors.cell import Cell
from promptside.actors.cycles import running
from promptside.actors.envelope import ANSWERED, CURRENT, Ask, Envelope, Handler, make_envelope
from promptside.actors.lifecycle import handler_failed
from promptside.actors.ref import ActorRef

__all__ = ["ask_in_task"]

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
R = TypeVar("R")

NO_CONTEXT: Final = Context()

COUNTS: Final = sys.version_info >= (3, 13)
"""Whether a task's count of cancellations is exact."""

MAX_DEPTH: Final = 25
"""Messages within each other in one task. Each takes ten frames of the stack, of which CPython allows 1,000."""


async def ask_in_task(
    ref: ActorRef[A],
    method: Callable[Concatenate[A, P], Coroutine[Any, Any, R]],
    /,
    *args: P.args,
    **kwargs: P.kwargs,
) -> R:
    """As `ActorRef.ask`, which it is where the actor has no slot free now, lives elsewhere, or has a timeout."""
    cell, task = ref._cell, asyncio.current_task()
    timeout = cell.options.timeout if ref._timeout is None else ref._timeout
    sender = running(CURRENT.get())
    depth = _depth(sender)
    if task is None or timeout < math.inf or not _is_free(cell) or depth >= MAX_DEPTH:
        return await ref.ask(method, *args, **kwargs)
    try:
        handler = cell.handlers.get(method) or cell.resolve(method)
        answer: R = await _handle(cell, _Run(cell, task, depth + 1), sender, handler, args, kwargs)
        return answer
    finally:
        del task, sender  # as below


def _depth(sender: Envelope | None) -> int:
    """How many messages the asker's task is handling, one within the other."""
    run = None if sender is None or sender.ask is None else sender.ask.reply
    return run.depth if isinstance(run, _Run) else 0


def _is_free(cell: Cell) -> bool:
    """Whether a message can begin here and now."""
    active = cell.active
    return (
        active is not None
        and cell.open
        and not cell.needs_check
        and not cell.queue
        and len(active) < cell.options.max_concurrency
        and cell.here()
    )


async def _handle(cell: Cell, run: _Run, sender: Envelope | None, handler: Handler, args: Any, kwargs: Any) -> Any:
    active = cell.active
    assert active is not None
    ask = Ask(run, math.inf if sender is None or sender.ask is None else sender.ask.deadline, sender=sender)
    ask.begun = True
    envelope = make_envelope(cell, handler, args, kwargs, NO_CONTEXT, ask)
    active[envelope] = run
    if sender is not None:
        sender.waits.add(envelope)
    token = CURRENT.set(envelope)
    try:
        result = await handler(cell.instance, *args, **kwargs)
    except asyncio.CancelledError as cancelled:
        if run.take_back(cancelled):
            # Others cancel too. Of these a scope of anyio does so at each step of the task, and wants its own error.
            await asyncio.sleep(0)
            raise
        if run.error is None:
            raise
        raise run.error from None
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        run.take_back()
        raise
    except BaseException as error:
        handler_failed(cell, envelope, error)
        run.take_back()
        if run.error is None or run.error is error:
            raise
        raise run.error from error
    else:
        run.take_back()
        if run.error is not None:  # it went on when it was cancelled
            raise run.error
        cell.handled += 1
        return result
    finally:
        ask.reply = ANSWERED  # the context of a timer leads to it, and it to the task and its error
        del envelope.context
        with suppress(ValueError):  # it is collected, in another context
            CURRENT.reset(token)
        del active[envelope]
        if sender is not None:
            sender.waits.discard(envelope)
        if cell.active is active and (cell.needs_check or cell.queue):
            cell.runtime.runner.check(cell)
        del run, ask, envelope, sender, token  # an error holds this frame, which must not lead back to it


class _Run:
    """What handles the message, as its cell sees it, and the reply of its ask.

    Attributes:
        depth: How many such messages its task is handling, one within the other.
        error: What its asker is to be told.
        over: Whether it has been handled.
    """

    __slots__ = ("_asked", "_before", "_cell", "_others", "_task", "depth", "error", "over")

    def __init__(self, cell: Cell, task: asyncio.Task[Any], depth: int) -> None:
        self.depth = depth
        self.error: BaseException | None = None
        self.over = False
        self._asked = 0
        self._cell = cell
        self._task = task
        self._before = self._others = task.cancelling()

    def done(self) -> bool:
        return self.over or self.error is not None

    def set_result(self, result: Any) -> None:
        """The task has it."""

    def set_exception(self, error: BaseException) -> None:
        self.error = error

    def cancel(self) -> None:
        """Cancel the asker's task, until `take_back`.

        In a later step of the loop: what others have cancelled by now is delivered first, and a cancellation from the
        task's own last step would outlive the message.
        """
        self._cell.node.loop.call_soon(self._cancel)

    def _cancel(self) -> None:
        if self.over:
            return
        if not self._asked:
            self._others = self._task.cancelling()
        self._asked += 1
        self._task.cancel(self._mark)

    @property
    def _mark(self) -> str:
        return f"{self._cell.path} has ended"

    def take_back(self, cancelled: asyncio.CancelledError | None = None) -> bool:
        """It is over: undo the cancellations; returns whether others have cancelled the task too.

        Before CPython 3.13, the task's count alone does not tell: a TaskGroup whose failure is handled leaves it
        raised for ever. There `cancelled` or its context must show a cancellation that came before those.
        """
        left = self._task.cancelling()
        for _ in range(self._asked):
            left = self._task.uncancel()
        self.over = True
        return left > self._others or (left > self._before and (COUNTS or self._shows_other(cancelled)))

    def _shows_other(self, error: BaseException | None) -> bool:
        seen = set[int]()  # contexts may go in a circle
        while error is not None and id(error) not in seen:
            if isinstance(error, asyncio.CancelledError) and error.args != (self._mark,):
                return True
            seen.add(id(error))
            error = error.__context__
        return False
