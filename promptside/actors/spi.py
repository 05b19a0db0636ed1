"""The interface for framework code: supervisors, pools and programs use cells where a reference does not suffice.

Users have no need of it. Rooms above import from `promptside.actors` and from here, and from no other module of the
room. What is done with a cell runs on the event loop of its node, unless it says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from promptside.actors.actor import Actor
from promptside.actors.cell import Cell
from promptside.actors.cycles import descends_from, running
from promptside.actors.envelope import CURRENT, Ask, Envelope, Reply, make_envelope, receive_posted
from promptside.actors.lifecycle import (
    kill,
    launch,
    remove,
    request_end,
    request_stop,
    terminate,
    wait_ended,
)
from promptside.actors.node import LOOP_CLOSED, Node, NodeClosed
from promptside.actors.ref import ActorRef
from promptside.actors.system import ActorSystem
from promptside.actors.task_run import ask_in_task
from promptside.actors.thread_run import ThreadRun

__all__ = [
    "CURRENT",
    "LOOP_CLOSED",
    "Ask",
    "Cell",
    "Envelope",
    "NodeClosed",
    "Reply",
    "ThreadRun",
    "add_cell",
    "ask_in_task",
    "call_when_ended",
    "cell_of",
    "dead_letter",
    "descends_from",
    "kill",
    "launch",
    "make_envelope",
    "on_escalation",
    "receive_posted",
    "reclaim_name",
    "release_name",
    "remove",
    "report_shutdown",
    "request_end",
    "request_end_of_children",
    "request_stop",
    "running",
    "seconds_until_restart",
    "terminate",
    "top_cells",
    "wait_ended",
]


def cell_of(actor: Actor | ActorRef[Any]) -> Cell:
    """The cell of an actor or a reference. Any thread.

    Raises:
        RuntimeError: The actor was constructed directly and not spawned.
    """
    return actor._cell if isinstance(actor, ActorRef) else actor._spawned()


def request_end_of_children(cell: Cell) -> None:
    """Begin the end of all its children at the same time: there is no order among them. In `on_stop`."""
    drain_until = cell.drain_until if cell.draining else None
    for child in tuple((cell.children or {}).values()):
        child.node.call(partial(request_end, child, "shutdown", drain_until=drain_until))


def call_when_ended(actor: Actor, function: Callable[[], object]) -> None:
    """Call it on the actor's loop when this incarnation is over, even if it is killed. In the actor's `__init__`."""
    cell = actor._spawned()
    waiter: asyncio.Future[None] = cell.node.loop.create_future()
    waiter.add_done_callback(lambda _: function())
    cell.ended = {} if cell.ended is None else cell.ended
    cell.ended[waiter] = None


def add_cell(
    factory: Callable[[], Actor],
    parent: Cell,
    id: str,
    *,
    name: str | None = None,
    node: Node | None = None,
    shutdown: float | None = None,
) -> Cell:
    """A new cell in the tree that its parent supervises, not yet launched.

    Args:
        factory: Makes the actor, at each launch.
        parent: Gets an `Exit` message at each of its ends.
        id: The last part of its path; a number is added where it is taken.
        name: A unique name in the registry.
        node: Where it runs; the parent's node by default.
        shutdown: Seconds that an ordered stop may take; the class's by default.

    Raises:
        NameTaken: Another live actor holds the name.
        ActorStopped: The parent has ended.
    """
    runtime = parent.ref.system._runtime
    return runtime.add_cell(factory, parent=parent, id=id, name=name, node=node, supervised=True, shutdown=shutdown)


def release_name(cell: Cell) -> None:
    """Free the name of a cell that has ended, and is not restarted until its supervisor is asked to."""
    cell.restart_at = None
    cell.runtime.release_name(cell)


def reclaim_name(cell: Cell, restart_at: float | None) -> None:
    """Undo `release_name`, and expect a restart at that time of the loop; raises `NameTaken`."""
    cell.runtime.claim_name(cell)
    cell.restart_at = restart_at


def seconds_until_restart(actor: ActorRef[Any]) -> float | None:
    """Seconds until an actor, or what it is a part of, is expected to be restarted; None if it is not. Any thread."""
    above: ActorRef[Any] | None = actor
    while above is not None:
        if (seconds := above.retry_after) is not None:
            return seconds
        above = above.parent
    return None


def dead_letter(cell: Cell, method: str, reason: str) -> None:
    """Count and publish a message to `cell` that will not be handled. Any thread."""
    cell.runtime.dead_letter(cell, method, reason)


def report_shutdown(cell: Cell) -> None:
    """A supervisor ends itself in order, because its significant children have ended."""
    cell.runtime.escalate(cell, "shutdown")


def on_escalation(system: ActorSystem, callback: Callable[[Exception | None], object]) -> None:
    """Call `callback`, in any thread, when a supervisor at the top of the tree has ended by itself.

    It gets the error that says so: `MaxRestartsExceeded`, or `SupervisorCrashed`, also for one that was killed; or None
    when the supervisor has shut down in order, because its significant children have ended.
    """
    system._runtime.on_escalation = callback


def top_cells(system: ActorSystem) -> tuple[Cell, ...]:
    """The cells at the top of a system's tree, in the order of their start. Any thread."""
    return tuple(system._runtime.children.values())
