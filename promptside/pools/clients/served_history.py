"""What DSPy's histories keep of served calls: the last so many, and not the last 10,000.

DSPy puts each call, with its prompt and its answer, into the history of its LM, of each module around it, and of all
LMs, which `dspy.inspect_history` prints. A service that answers prompts of 20 kB would keep 200 MB of them.

An `LMPool` has a `ServedHistory` for the calls of its LMs; a `Program` makes each call within `bounded_history`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import dspy
from dspy.clients.base_lm import GLOBAL_HISTORY, record_history

from promptside.pools.context.settings import setting

__all__ = ["MAX_HISTORY_SIZE", "ServedHistory", "bounded_history"]

MAX_HISTORY_SIZE: Final = 100
"""Calls that each history keeps, unless a pool or a program sets another number."""

_FORGETTING: Final = threading.RLock()


class _Entries(list[Any]):
    """A history of DSPy. An entry for which it has no more room leaves the history of all LMs too."""

    def pop(self, index: Any = -1) -> Any:
        """As of a list."""
        entry = super().pop(index)
        with _FORGETTING:
            number = next((number for number, each in enumerate(GLOBAL_HISTORY) if each is entry), None)
            if number is not None:
                del GLOBAL_HISTORY[number]
        return entry


class ServedHistory:
    """Records calls of the LMs of one pool, in place of `dspy.LM.update_history`.

    Args:
        limit: Calls that each history keeps, >= 0; DSPy's own `max_history_size` where that is less.

    Attributes:
        history: The calls that the history of all LMs has from this pool.
    """

    def __init__(self, limit: int) -> None:
        self.history = _Entries()
        self._limit = limit

    def record(self, lm: dspy.LM, entry: dict[str, Any]) -> None:
        """Add a call to the histories of its LM, of the modules around it and of all LMs."""
        limit = min(self._limit, dspy.settings.max_history_size)
        owners = [self, *(dspy.settings.caller_modules or [])]
        if limit:  # with 0, DSPy would still add it to the history of all LMs
            with setting("max_history_size", limit), setting("caller_modules", owners):
                record_history(lm, entry)


@contextmanager
def bounded_history(limit: int) -> Iterator[dict[str, Any]]:
    """Around a call of a program: DSPy's settings for it, so that each history keeps its last `limit` calls.

    Less if DSPy is set to less. Nothing tells whose an entry of all LMs is: that history keeps so many of any.
    """
    limit = min(limit, dspy.settings.max_history_size)
    try:
        yield {"max_history_size": limit} if limit else {"disable_history": True}
    finally:
        if limit and len(GLOBAL_HISTORY) > limit:
            del GLOBAL_HISTORY[:-limit]
