"""`LiveLMPool`: the running parts of an LM pool, in one incarnation; `PoolSlot` finds those of now.

Made by the pool's supervisor, held by the pool. Engines, embedders and votes keep the slot: they outlive restarts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from promptside.actors.spi import LOOP_CLOSED, cell_of, seconds_until_restart
from promptside.errors import NotStarted
from promptside.events import EventBus
from promptside.pools.accounting.history import History
from promptside.pools.accounting.ledger import Ledger
from promptside.pools.errors import PoolUnavailable
from promptside.pools.lm.dispatcher import Dispatcher
from promptside.pools.lm.single_flight import SingleFlight
from promptside.pools.lm.worker import WorkerGroup
from promptside.texts import describe

__all__ = ["LiveLMPool", "PoolSlot"]


@dataclass(slots=True, eq=False)
class LiveLMPool:
    """One incarnation of a pool.

    Attributes:
        path: Path of its supervisor, the source of its events.
        loop: The event loop of its node.
        events: Where everything is published.
        dispatcher: Makes the calls.
        single_flight: The shared calls under way.
        workers: The workers.
        ledger: Usage and budgets of all incarnations.
        history: The interactions of all incarnations.
        stopped: Whether it was stopped in order, and takes no more calls.
    """

    path: str
    loop: asyncio.AbstractEventLoop
    events: EventBus
    dispatcher: Dispatcher
    single_flight: SingleFlight
    workers: WorkerGroup
    ledger: Ledger
    history: History
    stopped: bool = False

    def check(self) -> None:
        """Raise `PoolUnavailable` unless it takes calls. Any thread."""
        supervisor = self.workers.supervisor
        trouble = supervisor.node.trouble
        if self.workers.alive and not self.stopped and trouble is None:
            return
        if trouble not in (None, LOOP_CLOSED):
            raise PoolUnavailable(f"the LM pool {self.path!r} cannot be called: {trouble}")
        seconds = seconds_until_restart(supervisor)
        if seconds is not None:
            soon = f"try again in {seconds:.3g} s" if seconds else "try again"
            raise PoolUnavailable(f"the LM pool {self.path!r} is being restarted; {soon}", retry_after=seconds)
        reason = cell_of(supervisor).why
        if self.stopped and reason in ("normal", "shutdown"):
            raise PoolUnavailable(f"the LM pool {self.path!r} was stopped; start it again")
        cause = reason if isinstance(reason, BaseException) else None
        raise PoolUnavailable(f"the LM pool {self.path!r} has ended ({describe(reason)}); start it again") from cause


class PoolSlot:
    """Finds the running parts of a pool.

    Args:
        running: Returns the incarnation that runs, or ran last; raises `NotStarted`.
        path: The pool's path.
        name: Its own name, by which it is found again for what was saved.

    Attributes:
        name: As given.
    """

    def __init__(self, running: Callable[[], LiveLMPool], path: Callable[[], str], name: str) -> None:
        self.name = name
        self._running = running
        self._path = path

    @property
    def path(self) -> str:
        """The pool's path; its name until it is started."""
        return self._path()

    @property
    def live(self) -> LiveLMPool:
        """The incarnation that runs; raises `PoolUnavailable`."""
        try:
            live = self._running()
        except NotStarted as error:
            raise PoolUnavailable(
                f"the LM pool {self.path!r} is not started; `await pool.start(system)` first, "
                "or use it inside `with LMPool(...) as pool:`"
            ) from error
        live.check()
        return live
