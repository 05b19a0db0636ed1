"""Cycles in the wait-for graph: asks that could never be answered.

Called by `ref` for each ask made while a message is handled. Nodes are messages: a message waits for the asks it
has made; an ask that is still queued waits for the message its actor is handling. An actor with `concurrency` > 1
never makes a queue wait for the message inside, because descendants of that message get a slot of their own.

The graph is walked on the asker's event loop. Across nodes the walk reads other loops' messages without a lock:
sets are copied before they are walked, and an answer that came meanwhile can only make a cycle disappear, which
the walk then misses by reporting it; so only messages that are unfinished at the end of the walk are reported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptside.actors.cell import Cell
    from promptside.actors.envelope import Envelope

__all__ = ["descends_from", "find_cycle"]


def descends_from(sender: Envelope | None, cell: Cell) -> bool:
    """Whether `sender`, or a message it was sent on behalf of, is being handled by `cell` right now."""
    while sender is not None:
        if sender.cell is cell and not sender.finished:
            return True
        sender = sender.sender
    return False


def find_cycle(sender: Envelope, target: Cell) -> tuple[str, ...] | None:
    """Paths around the cycle that an ask from `sender` to `target` would close, or None.

    The ask waits for the message that `target` is handling; if that message waits, through any number of asks,
    for `sender` or for a message that `sender` is part of, nobody can ever go on.
    Cost: O(asks under way among the actors reached), and O(1) when `target` is idle.
    """
    blocked: set[Envelope] = set()
    ancestor: Envelope | None = sender
    while ancestor is not None:
        if not ancestor.finished:
            blocked.add(ancestor)
        if ancestor.reply is None:
            break  # nobody waits for a tell: its sender went on
        ancestor = ancestor.sender
    first = target.current
    if first is None:
        return None
    seen: set[Envelope] = set()
    stack: list[tuple[Envelope, tuple[str, ...]]] = [(first, (target.path,))]
    while stack:
        message, path = stack.pop()
        if message in blocked and not message.finished:
            return (*path, target.path) if message.cell is target else (*path, sender.cell.path, target.path)
        if message in seen or message.finished:
            continue
        seen.add(message)
        for ask in tuple(message.waits or ()):
            # Inside its handler the ask waits for what its handler waits for; in the queue, for the message ahead.
            running = ask.cell.current
            stack.append((ask, (*path, ask.cell.path)))
            if running is not None and running is not ask:
                stack.append((running, (*path, ask.cell.path)))
    return None
