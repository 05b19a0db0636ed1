"""One child of a supervisor: its spec, its cell, and where it is between two incarnations.

Made and called by the supervisors, on their event loop. The cell stays the same across restarts, and with it every
`ActorRef`.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from dataclasses import dataclass
from typing import Literal

from promptside.actors import ChildSpec, State, Timer
from promptside.actors.spi import Cell, add_cell, launch, receive_posted, reclaim_name, terminate
from promptside.supervision.spec import ChildInfo

__all__ = ["Child", "Due", "TryAgain", "plant"]

Phase = Literal["running", "restarting", "waiting", "stopped"]
"""`restarting`: it failed and will be started; `waiting`: it was stopped with its group, and starts with that;
`stopped`: it starts when the supervisor is asked to."""


class Child:
    """What a supervisor keeps of a child.

    Attributes:
        spec: How it is started, restarted and stopped.
        cell: The actor, in all its incarnations.
        phase: What the supervisor has done with it last.
        turn: Counts the changes of `phase`, so that a message about an earlier one is known as late.
        failure: Why it is being restarted. Kept here alone: from a message or a variable, the traceback of the next
            failure would hold it, and so on through the whole storm.
    """

    __slots__ = ("_failures", "_timer", "cell", "failure", "phase", "spec", "turn")

    def __init__(self, spec: ChildSpec, cell: Cell) -> None:
        self.spec = spec
        self.cell = cell
        self.phase: Phase = "stopped"
        self.turn = 0
        self.failure: object = None
        self._failures = 0
        self._timer: Timer | None = None

    @property
    def id(self) -> str:
        """The last part of its path."""
        return self.cell.id

    @property
    def alive(self) -> bool:
        """Whether it runs, or will by itself."""
        return self.phase in ("running", "restarting")

    def turn_to(self, phase: Phase) -> None:
        """Enter `phase`; what was planned for the one before is off."""
        self.phase = phase
        self.turn += 1
        if phase != "restarting":
            self.failure = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def start(self) -> None:
        """Start the next incarnation.

        Raises:
            ActorStartError: `__init__` or `on_start` raised.
            NameTaken: Its name was given away while it was stopped.
        """
        cell = self.cell
        reclaim_name(cell, None if self.spec.restart == "temporary" else 0.0)
        try:
            await cell.node.run(launch(cell))
        except asyncio.CancelledError:
            await self.stop("stopped")  # on another node it may go on starting, or have started
            raise
        self.turn_to("running")

    async def stop(self, phase: Phase) -> None:
        """Stop it, if it runs, and wait for its end: also when the wait is cancelled, for that end is bounded.

        Args:
            phase: What it enters.
        """
        self.turn_to(phase)
        cell, parent = self.cell, self.cell.parent
        if phase == "stopped":
            cell.restart_at = None
        cancelled: asyncio.CancelledError | None = None
        while cell.state is not State.STOPPED:
            try:
                await terminate(cell, "shutdown")
            except asyncio.CancelledError as error:
                if parent is not None and parent.state is State.KILLED:
                    raise  # the end of the parent kills this child
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def failed(self, now: float) -> float:
        """Count a failure; returns the seconds to wait before the next start."""
        backoff = self.spec.backoff
        if backoff is None:
            return 0.0
        if self.phase == "running" and now - self.cell.started_at >= backoff.reset_after:
            self._failures = 0
        self._failures += 1
        return backoff.delay(self._failures, random.random())  # noqa: S311 - jitter, not a secret

    def start_in(self, seconds: float, own: Cell) -> None:
        """Have `Due` posted to the supervisor `own` then, unless the phase changes before."""
        self._timer = Timer(own, seconds, None, receive_posted, (Due(self, self.turn),), {}, Context())

    def info(self) -> ChildInfo:
        """As the supervisor tells it to others."""
        cell, phase = self.cell, self.phase
        state = cell.state.value if phase == "running" else "restarting" if phase == "restarting" else "stopped"
        restarts = max(0, cell.incarnation - 1)
        return ChildInfo(id=self.id, ref=cell.ref, restart=self.spec.restart, state=state, restarts=restarts)


async def plant(spec: ChildSpec, own: Cell) -> Child:
    """The child of the supervisor `own`, in the tree and not yet started; raises `NameTaken`."""
    system = own.ref.system
    node, owned = spec.node, None
    if isinstance(node, str):
        node = owned = await system.start_node(node)
    try:
        cell = add_cell(spec.start, own, spec.id, name=spec.name, node=node, shutdown=spec.shutdown)
    except BaseException:
        if owned is not None:
            await system.stop_node(owned)
        raise
    cell.owns_node = owned is not None
    return Child(spec, cell)


@dataclass(frozen=True, slots=True, eq=False)
class TryAgain:
    """Posted by a supervisor to itself when a start has failed, so that what was asked meanwhile comes first.

    Attributes:
        child: The one that did not start.
        turn: Its turn then.
    """

    child: Child
    turn: int


@dataclass(frozen=True, slots=True, eq=False)
class Due:
    """Posted to a supervisor when the wait before a restart is over.

    Attributes:
        child: The one that failed.
        turn: Its turn then.
    """

    child: Child
    turn: int
