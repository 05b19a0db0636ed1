"""`ask_in_task`: an ask whose message is handled in the asker's own task, where nothing is lost by it.

Made by hosted modules, for their sub-modules. It is a message of the actor as any other: it takes a slot, it counts, a
stop waits for it, a kill cancels it. But it needs no task, no future and no turn of the event loop, which cost as much
as all else in such a call. What differs from another ask: contextvars that the method sets stay set for the asker, and
an asker whose message is killed goes on when the method has let the cancellation through.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from promptside.actors.actor import Actor
from promptside.actors.cell import Cell
from promptside.actors.cycles import running
from promptside.actors.envelope import CURRENT, Ask, Handler, make_envelope
from promptside.actors.lifecycle import handler_failed
from promptside.actors.ref import ActorRef

__all__ = ["ask_in_task"]

A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
R = TypeVar("R")

NO_CONTEXT: Final = Context()


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
    if task is None or timeout < math.inf or not _is_free(cell):
        return await ref.ask(method, *args, **kwargs)
    try:
        answer: R = await _handle(cell, task, cell.handlers.get(method) or cell.resolve(method), args, kwargs)
        return answer
    finally:
        del task  # as below


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


async def _handle(cell: Cell, task: asyncio.Task[Any], handler: Handler, args: Any, kwargs: Any) -> Any:
    run, sender, active = _Run(cell, task), running(CURRENT.get()), cell.active
    assert active is not None
    ask = Ask(run, math.inf if sender is None or sender.ask is None else sender.ask.deadline, sender=sender)
    ask.begun = True
    envelope = make_envelope(cell, handler, args, kwargs, NO_CONTEXT, ask)
    active[envelope] = run
    if sender is not None:
        sender.waits.add(envelope)
    before, token = task.cancelling(), CURRENT.set(envelope)
    try:
        result = await handler(cell.instance, *args, **kwargs)
    except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
        if run.take_back() > before or run.error is None:
            raise  # not by the actor, or not by it alone
        raise run.error from None
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
        run.over = True
        del envelope.context
        with suppress(ValueError):  # it is collected, in another context
            CURRENT.reset(token)
        del active[envelope]
        if sender is not None:
            sender.waits.discard(envelope)
        if cell.active is active and (cell.needs_check or cell.queue):
            cell.runtime.runner.check(cell)
        del run, ask, envelope, sender, task  # an error holds this frame, which must not lead back to it


class _Run:
    """What handles the message, as its cell sees it, and the reply of its ask.

    Attributes:
        error: What its asker is to be told.
        over: Whether it has been handled.
    """

    __slots__ = ("_asked", "_cell", "_task", "error", "over")

    def __init__(self, cell: Cell, task: asyncio.Task[Any]) -> None:
        self.error: BaseException | None = None
        self.over = False
        self._asked = False
        self._cell = cell
        self._task = task

    def done(self) -> bool:
        return self.over or self.error is not None

    def set_result(self, result: Any) -> None:
        """The task has it."""

    def set_exception(self, error: BaseException) -> None:
        self.error = error

    def cancel(self) -> None:
        """Cancel the asker's task, until `take_back`."""
        if self._asked or self.over:
            return
        if asyncio.current_task(self._cell.node.loop) is self._task:
            # A cancellation from the task's own step would outlive the message if this were its last step.
            self._cell.node.loop.call_soon(self.cancel)
            return
        self._asked = True
        self._task.cancel()

    def take_back(self) -> int:
        """Undo the cancellation; returns how many of others are left."""
        if self._asked:
            self._asked = False
            return self._task.uncancel()
        return self._task.cancelling()
