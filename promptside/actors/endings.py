"""Why an actor does not run, and whether it will again.

Called by cells and references. A parameter `cell` is a `Cell`, which is above.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from promptside.actors.state import State
from promptside.texts import is_word

__all__ = ["retry_after", "why_ended"]

SYSTEM_ENDED = "its actor system has ended"


def retry_after(cell: Any) -> float | None:
    """Seconds until a restart is expected; None when none is, or when what it is a part of has ended."""
    if cell.state is State.RUNNING or cell.restart_at is None:
        return None
    if any(each.state not in (State.STARTING, State.RUNNING) for each in _above(cell)):
        return None
    seconds: float = cell.restart_at - cell.node.loop.time()
    return max(0.0, seconds)


def why_ended(cell: Any) -> object:
    """Why it takes no message; of a part of what has ended, why that has."""
    for above in _above(cell):
        if not _is_shutdown(cell) or above.reason is None:
            break
        cell = above
    if _is_shutdown(cell) and cell.parent is None and cell.runtime.closed:
        return SYSTEM_ENDED
    return cell.state.value if cell.reason is None else cell.reason


def _is_shutdown(cell: Any) -> bool:
    return is_word(cell.reason, "shutdown")


def _above(cell: Any) -> Iterator[Any]:
    while (cell := cell.parent) is not None:
        yield cell
