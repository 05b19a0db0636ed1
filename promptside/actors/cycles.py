"""Cycles in the wait-for graph: asks that could never be answered.

Called by `ref` for each ask made while a message is handled. Nodes are messages: a message waits for the asks that
its handler, or tasks and threads that the handler started, have under way; an ask that is still queued waits for the
message that its actor is handling, or, with `max_concurrency` > 1, for the first of those inside to end. A
descendant of a message inside gets a slot of its own and does not wait.

The walk reads other nodes' cells without a lock. An answer that arrives meanwhile can only break a cycle, so a cycle is
reported only if every message on it is still unanswered at the end of the walk.
"""

from __future__ import annotations

from promptside.actors.cell import Cell
from promptside.actors.envelope import Envelope

__all__ = ["descends_from", "find_cycle", "running", "waits_for_end"]


def running(message: Envelope | None) -> Envelope | None:
    """The message on whose behalf something is asked; None when its handling is over."""
    return message if message is not None and message.running else None


def descends_from(message: Envelope | None, cell: Cell) -> bool:
    """Whether `message`, or one on whose behalf it was asked, is being handled by `cell` right now."""
    while message is not None:
        if message.cell is cell and message.running:
            return True
        message = None if message.ask is None else message.ask.sender
    return False


def waits_for_end(message: Envelope | None, cell: Cell) -> bool:
    """Whether `message`, or one on whose behalf it is handled, must end before `cell` can: it runs there or below."""
    while message is not None:
        above: Cell | None = message.cell if message.running else None
        while above is not None:
            if above is cell:
                return True
            above = above.parent
        message = None if message.ask is None else message.ask.sender
    return False


def find_cycle(sender: Envelope, target: Cell) -> tuple[str, ...] | None:
    """Paths around the cycle that an ask from `sender` to `target` would close, or None.

    The ask waits for a slot of `target`. If every message there waits, through any number of asks, for `sender` or for
    a message that waits for `sender`, none of them can ever go on.
    Cost: O(n) in the unanswered asks among the actors reached, O(n * longest chain) with branches; O(1) when `target`
    has a free slot.

    Args:
        sender: The message in whose handling the ask is made; it is running.
        target: The actor to be asked.
    """
    inside = _occupants(target)
    has_more = target.active is not None and target.has_started
    if not inside or (has_more and descends_from(sender, target)):
        return None
    waiting, below = {sender}, sender
    while below.ask is not None and (above := below.ask.sender) is not None and below in above.waits:
        waiting.add(above)
        below = above
    # What each message reached waits for: per ask, the messages one of which must end before it is answered.
    needs: dict[Envelope, list[tuple[Envelope, ...]]] = {}
    stack = list(inside)
    while stack:
        message = stack.pop()
        if message in needs or not _unanswered(message):
            continue
        needs[message] = [(ask,) if ask.running else _occupants(ask.cell) for ask in tuple(message.waits)]
        stack += [each for group in needs[message] for each in group]
    stuck = set(needs)  # until it is shown that they can end

    def answerable(group: tuple[Envelope, ...]) -> bool:
        return not group or not stuck.issuperset(group)

    shrinks = True
    while shrinks:
        ending = {m for m in stuck if m not in waiting and all(answerable(group) for group in needs[m])}
        stuck -= ending
        shrinks = bool(ending)
    if not stuck.issuperset(inside):
        return None
    message = inside[0]
    names = [target.path]
    while message not in waiting and len(names) <= len(needs):
        message = next(group for group in needs[message] if not answerable(group))[0]
        names.append(message.cell.path)
    while message in waiting and message is not sender:  # and from there on, whom the sender is handled for
        message = next(each for each in waiting if each in message.waits)
        names.append(message.cell.path)
    return (*names, target.path)


def _occupants(cell: Cell) -> tuple[Envelope, ...]:
    """The messages one of which must end before `cell` begins with another; none if it has a slot free."""
    slots = cell.options.max_concurrency if cell.has_started else 1  # `on_start` alone
    taken = len(cell.active or ()) + (cell.current is not None)
    return tuple(cell.running_messages()) if taken >= slots else ()


def _unanswered(message: Envelope) -> bool:
    return message.running or (message.ask is not None and not message.ask.reply.done())
