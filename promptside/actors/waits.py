"""Cycles in the wait-for graph: asks that could never be answered.

Called by `ref` for each ask made while a message is handled. Nodes are messages: a message waits for the asks that
its handler, or tasks and threads that the handler started, have under way; an ask that is still queued waits for the
message that its actor is handling. An actor with `concurrency` > 1 makes no queue wait for a message inside, because
what descends from that message gets a slot of its own.

The walk reads other nodes' cells without a lock. An answer that arrives meanwhile can only break a cycle, so a cycle is
reported only if every message on it is still unanswered at the end of the walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptside.actors.cell import Cell
    from promptside.actors.envelope import Envelope

__all__ = ["descends_from", "find_cycle"]


def descends_from(message: Envelope | None, cell: Cell) -> bool:
    """Whether `message`, or one on whose behalf it was asked, is being handled by `cell` right now."""
    while message is not None:
        if message.cell is cell and message.running:
            return True
        message = None if message.ask is None else message.ask.sender
    return False


def find_cycle(sender: Envelope, target: Cell) -> tuple[str, ...] | None:
    """Paths around the cycle that an ask from `sender` to `target` would close, or None.

    The ask waits for the message that `target` is handling. If that message waits, through any number of asks, for
    `sender` or for a message that waits for `sender`, nobody can ever go on.
    Cost: O(asks under way among the actors reached); O(1) when `target` is idle or its message waits for nothing.

    Args:
        sender: The message in whose handling the ask is made; it is running.
        target: The actor to be asked; it handles one message at a time.
    """
    first = target.current
    if first is None:
        return None
    waiting = {sender}
    above = sender.ask
    while above is not None and above.sender is not None:
        waiting.add(above.sender)
        above = above.sender.ask
    seen: set[Envelope] = set()
    stack: list[tuple[Envelope, tuple[Envelope, ...]]] = [(first, ())]
    while stack:
        message, way = stack.pop()
        if message in seen or not _unanswered(message):
            continue
        seen.add(message)
        way = (*way, message)
        if message in waiting and all(_unanswered(each) for each in way):
            names = [target.path, *(each.cell.path for each in way[1:])]
            while message is not sender:  # and from there on, whom the sender is handled for
                message = next(each for each in waiting if each in message.waits)
                names.append(message.cell.path)
            return (*names, target.path)
        for ask in tuple(message.waits):
            stack.append((ask, way))
            ahead = ask.cell.current
            if ahead is not None and ahead is not ask:
                stack.append((ahead, way))
    return None


def _unanswered(message: Envelope) -> bool:
    return message.running or (message.ask is not None and not message.ask.reply.done())
