"""Handles that outlive their actors (an LM pool, a program, a task supervisor) stand in one place of a tree at a time.

Called by the actor of such a handle, in its `__init__`.
"""

from __future__ import annotations

from typing import Any

from promptside.actors import Actor, ActorRef, State

__all__ = ["stands_elsewhere"]


def stands_elsewhere(actor: Actor, before: ActorRef[Any] | None) -> bool:
    """Whether `before`, the actor that the handle had until now, is another one than `actor` and has not ended."""
    return before is not None and before != actor.ref and before.info().state is not State.STOPPED
