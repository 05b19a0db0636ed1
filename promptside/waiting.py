"""Waits that a cancellation does not end, for an end that is bounded and must be reached.

Called where something is closed. A task's own cancellation comes once, and is kept to be raised afterwards; a cancel
scope of anyio cancels again at each step, and is shut out instead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext
from typing import Any

__all__ = ["cancellations", "deliver_cancellation", "finish", "shielded_from_scopes", "wait_through_cancellation"]


def cancellations() -> int:
    """How often the running task was cancelled: not at all where foreign code raises a cancellation by itself.

    A frame that asks by itself would hold the task, which holds its error, which holds the frame.
    """
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


async def wait_through_cancellation(
    wait: Callable[[], Awaitable[object]], done: Callable[[], bool]
) -> asyncio.CancelledError | None:
    """Await `wait()` until `done()`; returns the last cancellation that came meanwhile, for the caller to raise."""
    cancelled: asyncio.CancelledError | None = None
    with shielded_from_scopes():
        while not done():
            try:
                await wait()
            except asyncio.CancelledError as error:
                cancelled = error
    return cancelled


async def finish(work: Coroutine[Any, Any, object]) -> None:
    """Await `work` to its end; a cancellation that came meanwhile is raised after that."""
    task = asyncio.ensure_future(work)  # noqa: TID251 - ends here
    cancelled = await wait_through_cancellation(lambda: asyncio.wait({task}), task.done)
    task.result()
    if cancelled is not None:
        raise cancelled


def shielded_from_scopes() -> AbstractContextManager[Any]:
    """A block that no cancel scope of anyio around it reaches; `Task.cancel` does."""
    anyio = sys.modules.get("anyio")  # where nothing has imported it, there are no scopes
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


async def deliver_cancellation() -> None:
    """Let a cancel scope of anyio that was shut out cancel now; raises its `CancelledError`."""
    if "anyio" in sys.modules:
        from anyio.lowlevel import checkpoint_if_cancelled

        await checkpoint_if_cancelled()
