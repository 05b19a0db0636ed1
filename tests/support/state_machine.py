"""What the state machines share: an actor system in virtual time for each example, which leaves nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar
from weakref import WeakSet

from hypothesis.stateful import RuleBasedStateMachine

from promptside import ActorSystem
from promptside.testing import VirtualTimeLoop

T = TypeVar("T")


class WatchedLoop(VirtualTimeLoop):
    """Remembers what was made on it, and what it was told."""

    between_steps = False

    def __init__(self) -> None:
        super().__init__()
        self.futures: WeakSet[asyncio.Future[Any]] = WeakSet()
        self.complaints: list[dict[str, Any]] = []

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        self.futures.add(future)
        return future

    def is_running(self) -> bool:
        return self.between_steps or super().is_running()

    def run_until_complete(self, future: Any) -> Any:
        """Between two steps a machine is on the loop still: what it sends is not from elsewhere."""
        self._leave()
        try:
            return super().run_until_complete(future)
        finally:
            self.between_steps = True
            asyncio._set_running_loop(self)

    def _leave(self) -> None:
        self.between_steps = False
        asyncio._set_running_loop(None)

    def close(self) -> None:
        self._leave()
        super().close()

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.complaints.append(context)


class ActorMachine(RuleBasedStateMachine):
    """A machine whose rules act on a real system and on a model, and whose invariants compare them."""

    system: ActorSystem

    def __init__(self) -> None:
        super().__init__()
        self._log = logging.getLogger("promptside")
        self._level = self._log.level
        self._log.setLevel(logging.CRITICAL)
        self.loop = WatchedLoop()
        self.system = ActorSystem()
        self.run(self.system.__aenter__())
        self.tasks: dict[int, asyncio.Task[Any]] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Take one step of the example."""
        return self.loop.run_until_complete(work)

    def settle(self) -> None:
        """Let everything happen that can happen now."""
        self.run(asyncio.sleep(1e-9))

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen that happens in it."""
        self.run(asyncio.sleep(seconds))

    def begin(self, number: int, work: Coroutine[Any, Any, Any]) -> None:
        """Start what has an outcome: `outcome(number)`."""
        self.tasks[number] = self.loop.create_task(work)
        self.settle()

    def outcome(self, number: int) -> str:
        """How it ended: ``"waits"``, ``"result"``, or the name of the exception."""
        task = self.tasks[number]
        if not task.done():
            return "waits"
        if task.cancelled():
            return "CancelledError"
        error = task.exception()
        return "result" if error is None else type(error).__name__

    def before_teardown(self) -> None:
        """What a machine does before the system is closed, such as letting go what is held."""

    def teardown(self) -> None:
        """Close the system; nothing may be left of it. A machine has its own part of the end in `before_teardown`."""
        try:
            try:
                self.before_teardown()
            finally:
                self.run(self.system.__aexit__(None, None, None))
            self.settle()
            assert "waits" not in {self.outcome(number) for number in self.tasks}
            self.tasks.clear()
            assert asyncio.all_tasks(self.loop) == set()
            assert [timer for timer in self.loop._scheduled if not timer.cancelled()] == []
            if self.pending_futures():
                gc.collect()
                assert self.pending_futures() == []
            assert self.loop.complaints == []
        finally:
            self._log.setLevel(self._level)
            self.loop.close()

    def pending_futures(self) -> list[asyncio.Future[Any]]:
        return [future for future in self.loop.futures if not future.done()]
