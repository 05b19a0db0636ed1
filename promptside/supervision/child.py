"""One child of a supervisor: its spec, its cell, and its phase between two incarnations.

Supervisors make and call it, on their event loop. The cell stays the same across restarts, so every `ActorRef` does.
"""

from __future__ import annotations

import asyncio
import random
from contextvars import Context
from dataclasses import dataclass
from typing import Literal

from promptside.actors import Actor, ChildSpec, State, Timer
from promptside.actors.spi import Cell, add_cell, launch, receive_posted, reclaim_name, terminate
from promptside.errors import InvalidChildSpec
from promptside.supervision.spec import ChildInfo
from promptside.texts import repr_of

__all__ = ["BackoffElapsed", "Child", "RetryStart", "add_child", "check_child"]

Phase = Literal["running", "restarting", "waiting", "stopped"]
"""`restarting`: it failed and will be started. `waiting`: it was stopped with its group, and starts with the group.
`stopped`: it starts when the supervisor is asked to."""


class Child:
    """A supervisor's record of a child.

    Attributes:
        spec: How it is started, restarted and stopped.
        cell: The actor, in all its incarnations.
        phase: The last thing that the supervisor did with it.
        generation: Counts the changes of `phase`. A message about an earlier one is ignored.
        failure: Why it is being restarted. It is kept here alone: the traceback of the next failure would hold a
            message or a variable, and so would each failure of a restart storm.
    """

    __slots__ = ("_failures", "_timer", "cell", "failure", "generation", "phase", "spec")

    def __init__(self, spec: ChildSpec, cell: Cell) -> None:
        self.spec = spec
        self.cell = cell
        self.phase: Phase = "stopped"
        self.generation = 0
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

    def set_phase(self, phase: Phase) -> None:
        """Enter `phase`, and cancel the timer of the phase before."""
        self.phase = phase
        self.generation += 1
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
        self.set_phase("running")

    async def stop(self, phase: Phase) -> None:
        """Stop it, if it runs, and wait for its end, even when the wait is cancelled: that end is bounded.

        Args:
            phase: Its phase from now on.
        """
        self.set_phase(phase)
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
        """Have `BackoffElapsed` posted to the supervisor `own` then, unless the phase changes before."""
        self._timer = Timer(own, seconds, None, receive_posted, (BackoffElapsed(self, self.generation),), {}, Context())

    def info(self) -> ChildInfo:
        """The record for `which_children`."""
        cell, phase = self.cell, self.phase
        state = cell.state.value if phase == "running" else "restarting" if phase == "restarting" else "stopped"
        restarts = max(0, cell.incarnation - 1)
        return ChildInfo(id=self.id, ref=cell.ref, restart=self.spec.restart, state=state, restarts=restarts)


async def add_child(spec: ChildSpec, own: Cell) -> Child:
    """Add a child to the tree below the supervisor `own`, without starting it; raises `NameTaken`."""
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
class RetryStart:
    """A supervisor posts it to itself when a start has failed, so that messages that wait come first.

    Attributes:
        child: The child that did not start.
        generation: Its generation then.
    """

    child: Child
    generation: int


@dataclass(frozen=True, slots=True, eq=False)
class BackoffElapsed:
    """A timer posts it to a supervisor when the wait before a restart is over.

    Attributes:
        child: The child that failed.
        generation: Its generation then.
    """

    child: Child
    generation: int


def check_child(field: str, given: object) -> None:
    """Raise `InvalidChildSpec` unless `given` is a `ChildSpec`."""
    if isinstance(given, ChildSpec):
        return
    remedy = "wrap it as ChildSpec(id, start)"
    if isinstance(given, type) and issubclass(given, Actor):
        remedy = f'give `{given.__name__}.child_spec("id")`'
    elif hasattr(given, "child_spec"):  # a handle
        remedy = "give its `.child_spec()`"
    raise InvalidChildSpec(f"{field}: {repr_of(given)} is not a ChildSpec; {remedy}")
