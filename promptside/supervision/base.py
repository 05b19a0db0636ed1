"""`BaseSupervisor`: every supervisor starts children, restarts them, and gives up.

Base of `Supervisor` and `DynamicSupervisor`. An `Exit` message from a child's cell reports the end of the child.
`strategy` says which children stop and start. The next incarnation has the same cell, so every `ActorRef` stays good.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

from promptside.actors import Actor, ActorRef, ChildSpec, Exit, State
from promptside.actors.spi import cell_of, dead_letter, kill, remove, report_shutdown
from promptside.checks import is_count, is_number
from promptside.errors import InvalidChildSpec, MaxRestartsExceeded
from promptside.supervision.child import BackoffElapsed, Child, RetryStart, add_child
from promptside.supervision.intensity import RestartWindow
from promptside.supervision.spec import ChildCounts, ChildInfo
from promptside.supervision.strategy import AutoShutdown, Plan, Strategy, is_restarted, plan, shuts_down
from promptside.texts import describe, is_error, kind_of, repr_of

__all__ = ["BaseSupervisor", "check_intensity"]

_OWN_MESSAGES = (Exit, RetryStart, BackoffElapsed)


class BaseSupervisor(
    Actor, mailbox=math.inf, timeout=math.inf, shutdown=math.inf, expected=(Exception,), trap_exit=True
):
    """An actor that keeps children running. A mistake in an ask to it is the asker's alone.

    Asks wait for as long as a child takes to start or stop, as in OTP; ``ref.with_options(timeout=...)`` bounds them.

    Args:
        strategy: Which children a failure concerns.
        auto_shutdown: Whether the end of significant children ends the supervisor.
        max_restarts: Restarts allowed within `max_seconds`, >= 0.
        max_seconds: Length of the window in seconds, > 0.
    """

    _supervises = True
    _strategy: Strategy = "one_for_one"
    _auto_shutdown: AutoShutdown = "never"

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self._children: dict[str, Child] = {}
        self._starting: Child | None = None
        self._window = RestartWindow(max_restarts, max_seconds)

    async def which_children(self) -> list[ChildInfo]:
        """The children, in the order of their start."""
        return [child.info() for child in self._children.values()]

    async def count_children(self) -> ChildCounts:
        """How many children there are, and how many run."""
        children = self._children.values()
        supervisors = sum(issubclass(child.cell.actor_class, BaseSupervisor) for child in children)
        return ChildCounts(
            specs=len(children),
            active=sum(child.phase == "running" for child in children),
            supervisors=supervisors,
            workers=len(children) - supervisors,
        )

    async def cancel_restart(self, ref: ActorRef[Any]) -> None:
        """Do not restart a child that has failed and waits for its restart, unless it is permanent.

        Args:
            ref: Of the child; of another actor, or a child that runs, nothing is done.
        """
        child = self._children.get(cell_of(ref).id)
        waits = child is not None and child.cell.ref == ref and child.phase == "restarting"
        if child is not None and waits and child.spec.restart != "permanent":
            child.set_phase("stopped")
            await self._retire(child)

    async def receive(self, message: Any) -> None:
        """Take the `Exit` of a child, or a message of the supervisor to itself."""
        match message if type(message) in _OWN_MESSAGES else None:
            case Exit():
                cell = cell_of(message.ref)
                child = self._children.get(cell.id)
                ended = (cell, message.incarnation, "running")
                if child is not None and (child.cell, child.cell.incarnation, child.phase) == ended:
                    await self._ended(child, message.reason)
            case RetryStart() if message.child.generation == message.generation:
                await self._restart(message.child)
            case BackoffElapsed() if message.child.generation == message.generation:
                await self._start_group(message.child)
            case RetryStart() | BackoffElapsed():
                pass  # it was stopped, or started, meanwhile
            case _:  # as in OTP, no reason to end the children
                dead_letter(cell_of(self), "receive", f"a supervisor takes no {kind_of(message)}")

    def _stop_requested(self) -> None:
        """Do not wait for a child that is being started: its `on_start` may never return."""
        if self._starting is not None:
            cell = self._starting.cell
            cell.node.call(kill, cell, "shutdown")

    @abstractmethod
    async def _retire(self, child: Child) -> None:
        """It has ended, and is not restarted."""

    async def _add(self, spec: ChildSpec) -> Child:
        """Start a new child.

        Raises:
            ActorStartError: It did not start, and is not a child.
            NameTaken: Another live actor holds its name.
        """
        child = await add_child(spec, cell_of(self))
        self._children[child.id] = child
        try:
            await self._start(child)
        except BaseException:
            await self._forget(child)
            raise
        return child

    async def _start(self, child: Child) -> None:
        self._starting = child
        try:
            await child.start()
        finally:
            self._starting = None

    async def _stop(self, child: Child) -> None:
        """Stop a child for good."""
        try:
            await child.stop("stopped")
        finally:
            if child.cell.state is State.STOPPED:
                await self._retire(child)

    async def _forget(self, child: Child) -> None:
        del self._children[child.id]
        child.set_phase("stopped")
        await remove(child.cell)

    async def _ended(self, child: Child, reason: object) -> None:
        spec = child.spec
        if is_restarted(spec.restart, reason):
            child.failure = reason
            await self._restart(child)
            return
        child.set_phase("stopped")
        await self._retire(child)
        if not spec.significant:
            return
        others = any(other.alive and other.spec.significant for other in self._children.values())
        if shuts_down(self._auto_shutdown, significant=True, others=others):
            self.stop("shutdown")
            report_shutdown(cell_of(self))

    async def _restart(self, child: Child) -> None:
        """A child has failed, or a start of it: count it, stop its group, and start that, now or after its backoff."""
        own, window = cell_of(self), self._window
        now = own.node.loop.time()
        if not window.add(now, child.id, child.failure):
            self._give_up(child)
        seconds = child.failed(now)
        todo = self._plan(child)
        child.set_phase("restarting")
        for id in todo.stop:
            await self._children[id].stop("waiting")
        for id in todo.forget:
            await self._forget(self._children[id])
        if seconds == 0:
            await self._start_group(child)
            return
        for id in todo.start:
            self._children[id].cell.restart_at = own.node.loop.time() + seconds
        child.start_in(seconds, own)

    async def _start_group(self, child: Child) -> None:
        """Start a failed child and those that were stopped with it. A start that fails is a failure like any other."""
        own = cell_of(self)
        for id in self._plan(child).start:
            each = self._children[id]
            if own.state is not State.RUNNING:
                return  # a stop was asked for meanwhile
            if each.phase == "running":
                continue  # it was added while the group waited
            cell = each.cell
            why = describe(cell.reason)  # not the reason itself: the exceptions of a storm would hold each other
            try:
                await self._start(each)
            except Exception as error:  # noqa: BLE001 - in whatever way it fails, it is a failed start
                each.set_phase("restarting")
                each.failure = error
                own.node.loop.call_soon(own.post, RetryStart(each, each.generation))  # after a turn of the loop
                return
            self.system.events.publish("actor.restarted", cell.path, {"reason": why}, incarnation=cell.incarnation)

    def _plan(self, child: Child) -> Plan:
        if self._strategy == "one_for_one":  # not a look at each of 10,000 dynamic children: 9 ms
            return Plan(stop=(), forget=(), start=(child.id,))
        return plan(self._strategy, [(each.id, each.spec.restart) for each in self._children.values()], child.id)

    def _give_up(self, child: Child) -> None:
        own, window, reason = cell_of(self), self._window, child.failure
        error = MaxRestartsExceeded(own.path, window.max_restarts, window.max_seconds, window.history)
        self.system.events.publish("supervisor.gave_up", own.path, {"error": str(error), "child": child.id})
        raise error from (reason if is_error(reason) else None)


def check_intensity(max_restarts: int, max_seconds: float) -> None:
    """Raises `InvalidChildSpec` unless both are in their range."""
    if not is_count(max_restarts, least=0):
        raise InvalidChildSpec(f"max_restarts={repr_of(max_restarts)}: give a whole number >= 0")
    if not is_number(max_seconds) or not max_seconds > 0:
        raise InvalidChildSpec(f"max_seconds={repr_of(max_seconds)}: give seconds > 0")
