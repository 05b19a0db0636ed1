"""`Supervisor`: an actor that starts children in order, restarts them when they fail, and stops them in reverse.

Users give it `ChildSpec`s. It is told of a child's end by an `Exit` message from the child's cell, and uses the
cell to start the next incarnation, so every `ActorRef` to the child stays good.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

from promptside.actors import Actor, ActorRef, Exit
from promptside.actors.cell import Cell
from promptside.errors import ActorStartError, InvalidChildSpec, MaxRestartsExceeded, UnhandledMessage
from promptside.supervision.intensity import RestartWindow
from promptside.supervision.spec import ChildInfo, ChildSpec

__all__ = ["Strategy", "Supervisor"]

Strategy = Literal["one_for_one"]

ORDERLY = ("normal", "shutdown")
"""Reasons that are no failure: a transient child is not restarted after them."""


class Supervisor(Actor, mailbox=math.inf, shutdown=math.inf, expected=(Exception,)):
    """Starts its children in order and keeps them running (Erlang/OTP `supervisor`).

    A mistake in an ask to it is the asker's alone.

    When restarts are needed more often than the intensity allows, the supervisor itself fails with
    `MaxRestartsExceeded`, its other children are stopped, and its own supervisor decides.

    Args:
        children: Specs, in the order of their start; they are stopped in reverse.
        strategy: ``"one_for_one"``: a failed child alone is restarted.
        max_restarts: Restarts allowed within `max_seconds`, >= 0.
        max_seconds: Length of the window in seconds, > 0.

    Raises:
        InvalidChildSpec: An id stands twice, or a setting is not valid.
    """

    def __init__(
        self,
        children: Sequence[ChildSpec] = (),
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        _validate(children, strategy, max_restarts, max_seconds)
        self._specs = {spec.id: spec for spec in children}
        self._cells: dict[str, Cell] = {}
        self._window = RestartWindow(max_restarts, max_seconds)

    async def on_start(self) -> None:
        """Start the children, one after the other."""
        for spec in self._specs.values():
            await self._start(spec)

    async def receive(self, message: Any) -> None:
        """Take the `Exit` of a child."""
        if not isinstance(message, Exit):
            raise UnhandledMessage(self.ref.path, message)
        cell = message.ref._cell
        spec = self._specs.get(cell.id)
        if spec is None or self._cells.get(spec.id) is not cell or cell.incarnation != message.incarnation:
            return  # of an incarnation that is gone
        failed = message.reason not in ORDERLY
        if spec.restart == "permanent" or (spec.restart == "transient" and failed):
            await self._restart(spec, cell, message.reason)
        else:
            self._forget(spec)

    async def which_children(self) -> list[ChildInfo]:
        """The children, in the order of their start."""
        return [
            ChildInfo(
                id=spec.id,
                ref=cell.ref,
                restart=spec.restart,
                state=cell.state.value,
                restarts=max(0, cell.incarnation - 1),
            )
            for spec in self._specs.values()
            if (cell := self._cells.get(spec.id)) is not None
        ]

    async def child(self, id: str) -> ActorRef[Any]:
        """Reference to the child with this id; stays good across its restarts.

        Raises:
            KeyError: No such child.
        """
        return self._cells[id].ref

    async def _start(self, spec: ChildSpec) -> None:
        own = self._spawned()
        cell = self.system.plant(
            spec.start,
            parent=own,
            id=spec.id,
            name=spec.name,
            node=spec.node,
            supervised=True,
            shutdown=spec.shutdown,
        )
        try:
            await cell.node.run(cell.launch())
        except BaseException:
            cell.dispose()
            raise
        self._cells[spec.id] = cell

    async def _restart(self, spec: ChildSpec, cell: Cell, reason: object) -> None:
        """Start the next incarnation; a start that fails is a failure like any other, and is counted."""
        while True:
            self._count_restart(spec, reason)
            try:
                await cell.node.run(cell.launch())
            except ActorStartError as error:
                reason = error
                await asyncio.sleep(0)
            else:
                own = self._spawned()
                own.system.events.publish(
                    "actor.restarted", cell.path, {"reason": repr(reason)}, incarnation=cell.incarnation
                )
                return

    def _count_restart(self, spec: ChildSpec, reason: object) -> None:
        own, window = self._spawned(), self._window
        if not window.add(own.node.loop.time(), spec.id, reason):
            error = MaxRestartsExceeded(own.path, window.max_restarts, window.max_seconds, window.history)
            own.system.events.publish("supervisor.gave_up", own.path, {"error": str(error), "child": spec.id})
            raise error

    def _forget(self, spec: ChildSpec) -> None:
        self._cells.pop(spec.id).dispose()
        del self._specs[spec.id]


def _validate(children: Sequence[ChildSpec], strategy: str, max_restarts: int, max_seconds: float) -> None:
    seen: set[str] = set()
    for spec in children:
        if not isinstance(spec, ChildSpec):
            raise InvalidChildSpec(f"children: {spec!r} is not a ChildSpec; wrap it as ChildSpec(id, start)")
        if spec.id in seen:
            raise InvalidChildSpec(f"children: the id {spec.id!r} stands twice; give each child its own")
        seen.add(spec.id)
    if strategy not in get_args(Strategy):
        raise InvalidChildSpec(f"strategy={strategy!r}: use one of {', '.join(get_args(Strategy))}")
    if not isinstance(max_restarts, int) or max_restarts < 0:
        raise InvalidChildSpec(f"max_restarts={max_restarts!r}: give a whole number >= 0")
    if not max_seconds > 0:
        raise InvalidChildSpec(f"max_seconds={max_seconds!r}: give seconds > 0")
