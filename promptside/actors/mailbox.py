"""The bound of a mailbox: whether there is room, what a full one does, and who waits for room.

Functions on a cell, called by `cell`, `runner` and `lifecycle` on the event loop of its node. Each costs the same
whatever the bound: an ask whose asker has gone keeps its place in the queue, and is counted as none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING

from promptside.actors.envelope import ANSWERED, Envelope, receive_posted
from promptside.errors import MailboxFull

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["admit_senders", "give_up", "has_room", "make_room", "queued", "take_back", "wait_for_room"]


def queued(cell: Cell) -> int:
    """How many messages are in it."""
    return len(cell.queue) - cell.given_up


def has_room(cell: Cell) -> bool:
    """Whether one more message goes in."""
    return queued(cell) < cell.capacity


def make_room(cell: Cell, envelope: Envelope) -> bool:
    """Whether the mailbox has room for `envelope` after its policy was applied; raises `MailboxFull`."""
    if has_room(cell):
        return True
    overflow = cell.options.overflow
    if overflow == "reject":
        raise MailboxFull(cell.path, int(cell.capacity))
    dropped = envelope
    if overflow == "drop_oldest":
        queue, kept = cell.queue, cell.hook_context  # of `on_start`, which may not have begun
        while (first := queue[0].ask) is not None and first.reply.done():
            take_back(cell, queue.popleft())
        dropped = next(
            (each for each in queue if each.handler is not receive_posted and each.context is not kept), envelope
        )
    if dropped is not envelope:
        cell.queue.remove(dropped)
    if dropped.ask is not None:
        dropped.ask.queued = False
        dropped.ask.reply.set_exception(MailboxFull(cell.path, int(cell.capacity)))
    cell.runtime.dead_letter(cell, dropped.method, "mailbox full")
    del dropped.context  # it is over, for a timer that waits for its last tick
    return dropped is not envelope


def give_up(cell: Cell, envelope: Envelope) -> None:
    """The asker of a queued message has gone. Cost: O(1), amortized."""
    ask = envelope.ask
    if ask is None or not ask.queued or envelope.over:
        return
    ask.queued = False
    ask.reply, envelope.args, envelope.kwargs = ANSWERED, (), None  # nothing of it is needed until its turn has come
    cell.given_up += 1
    if cell.given_up > 32 and 2 * cell.given_up > len(cell.queue):
        wanted = []
        for each in cell.queue:
            if each.ask is not None and each.ask.reply.done():
                each.ask.queued = False
            else:
                wanted.append(each)
        cell.queue.clear()  # the very queue, which the runner reads
        cell.queue.extend(wanted)
        cell.given_up = 0
    admit_senders(cell)


def take_back(cell: Cell, envelope: Envelope) -> None:
    """An ask without an asker has left the queue."""
    ask = envelope.ask
    assert ask is not None
    if ask.queued:  # the asker, on another loop, has not told yet
        ask.queued = False
    else:
        cell.given_up -= 1


async def wait_for_room(cell: Cell, envelope: Envelope) -> None:
    """Put `envelope` as soon as the mailbox has room; raises `ActorStopped` if that will not be."""
    if not cell.takes:
        raise cell.stopped(cell.why, started=False)
    if not cell.senders and has_room(cell):
        cell.put(envelope)
        return
    taken: asyncio.Future[None] = cell.node.loop.create_future()
    if cell.senders is None:
        cell.senders = OrderedDict()
    cell.senders[taken] = envelope
    cell.needs_check = True
    try:
        await taken
    except asyncio.CancelledError:
        cell.senders.pop(taken, None)
        if envelope in cell.queue:  # cancelled in the turn that let it in
            cell.queue.remove(envelope)
            admit_senders(cell)
        raise
    finally:
        del taken  # an error holds this frame, which must not lead back to it


def admit_senders(cell: Cell) -> None:
    """Put what `deliver` holds where there is room now."""
    senders = cell.senders
    while senders and has_room(cell):
        taken, envelope = senders.popitem(last=False)
        if not taken.done():
            taken.set_result(None)
            cell.queue.append(envelope)
