"""Looks at an actor and at a system: `ActorRef.info`, `ActorSystem.statistics`."""

from __future__ import annotations

from dataclasses import dataclass

from promptside.actors.cell import Cell
from promptside.actors.mailbox import queued
from promptside.actors.state import State

__all__ = ["ActorInfo", "SystemStatistics", "inspect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorInfo:
    """An actor as it was when it was looked at.

    Attributes:
        path: Its place in the tree.
        name: Its registered name, if any.
        kind: Name of its class.
        state: Where it is in its life.
        suspended: Whether it takes no messages until `resume`.
        incarnation: 1 for the first start.
        mailbox: Messages queued.
        current: Names of the methods being handled now.
        cancelling: Of those, the ones that were cancelled and have not ended: a handler that swallows its cancellation
            stays here.
        handled: Messages handled to their end, by every incarnation.
        failed: Of the asks, those answered with an expected exception.
        uptime: Seconds since this incarnation started; 0 when it does not run.
        children: Paths of its children, in the order of their start.
    """

    path: str
    name: str | None
    kind: str
    state: State
    suspended: bool
    incarnation: int
    mailbox: int
    current: tuple[str, ...]
    cancelling: tuple[str, ...]
    handled: int
    failed: int
    uptime: float
    children: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemStatistics:
    """A system as it was when it was looked at.

    Attributes:
        actors: Actors in the tree, whatever their state.
        queued: Messages in their mailboxes.
        started: Incarnations that have started so far, restarts included.
        stopped: Of those, how many ended in order.
        crashed: Crashes and kills so far, failed starts included.
        dead_letters: Messages that were dropped, expired or could not be delivered, so far.
    """

    actors: int
    queued: int
    started: int
    stopped: int
    crashed: int
    dead_letters: int


def inspect(cell: Cell) -> ActorInfo:
    """Read the cell; from another thread, the fields may be of slightly different moments."""
    running = tuple(cell.running_messages())
    return ActorInfo(
        path=cell.path,
        name=cell.name,
        kind=cell.kind,
        state=cell.state,
        suspended=cell.suspended,
        incarnation=cell.incarnation,
        mailbox=queued(cell),
        current=tuple(each.method for each in running),
        cancelling=tuple(each.method for each in running if each.ask is not None and each.ask.cancelled),
        handled=cell.handled + cell.handled_in_threads,
        failed=cell.failed,
        uptime=0.0 if cell.instance is None else cell.node.loop.time() - cell.started_at,
        children=tuple(child.path for child in tuple((cell.children or {}).values())),
    )
