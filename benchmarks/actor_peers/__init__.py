"""The subjects of `benchmarks.actors`: one module each, all written against `Peer`.

`benchmarks.actors` lists them and has `python -m benchmarks.actor_peers MODULE` run for each, once a round, where
`actor_peers.measure` times what the module's class `Subject` offers, the same way for every subject.

Every subject hosts the same actor, written as that library's users would: an ask returns its argument, a tell counts,
a crash raises. A library is used with its defaults, with three exceptions in its favour: mailboxes are made large
enough for the tells, restart budgets large enough for the restarts, and delays before a restart are zero. What else
favours one library is said in its module.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, Generic, TypeVar

from benchmarks.report import Unsupported

__all__ = ["Job", "Peer"]

Ref = TypeVar("Ref")
T = TypeVar("T")
Job = Callable[[], Coroutine[Any, Any, object]]


class Peer(ABC, Generic[Ref]):
    """One actor library, as the benchmark uses it; `Ref` is what the library calls a reference to an actor.

    The loops are inside `ask` and `tell`, so that each subject is called as its users call it and no adapter is
    measured. A fresh peer is opened, in a fresh event loop, for every metric.
    """

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
        self.loop_factory = loop_factory

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `main` to its end within a session, on the loop that the library lives on."""

        async def in_session() -> T:
            async with self.session():
                return await main()

        with asyncio.Runner(loop_factory=self.loop_factory) as runner:
            return runner.run(in_session())

    async def together(self, jobs: Sequence[Job]) -> None:
        """Run the jobs at the same time, each as one caller, until all have ended."""
        await asyncio.gather(*(job() for job in jobs))

    async def checkpoint(self) -> None:
        """Let the others run for one turn of the loop."""
        await asyncio.sleep(0)

    def session(self) -> AbstractAsyncContextManager[object]:
        """Keep the actor system open."""
        return nullcontext()

    @abstractmethod
    async def spawn(self) -> Ref:
        """Start one actor."""

    @abstractmethod
    async def stop(self, ref: Ref) -> None:
        """Stop one actor; it may end later, where the library does not wait for it."""

    async def settle(self) -> None:
        """Return once every stopped actor has ended; for libraries whose stop does not wait."""
        return

    @abstractmethod
    async def ask(self, ref: Ref, times: int) -> object:
        """Ask with 0, 1, ... `times - 1`, each after the answer before, and return the last answer."""

    async def spawn_busy(self, under_way: int) -> Ref:
        """Start one actor, and have it handle so many messages that do not end.

        Raises:
            Unsupported: an actor handles one message at a time.
        """
        raise Unsupported("an actor handles one message at a time")

    async def ask_busy(self, ref: Ref, times: int) -> None:
        """Ask it so often, from a handler of another actor."""
        raise Unsupported("an actor handles one message at a time")

    async def spawn_sink(self) -> Ref:
        """Start one actor whose mailbox holds all the tells of one measurement."""
        return await self.spawn()

    @abstractmethod
    async def tell(self, ref: Ref, times: int) -> None:
        """Tell `times` messages, none waiting until the one before is handled."""

    @abstractmethod
    async def total(self, ref: Ref) -> int:
        """Return how many tells the actor has handled, after at least one turn of the loop."""

    async def spawn_supervised(self) -> Ref:
        """Start one actor under a supervisor that restarts it without limit.

        Raises:
            Unsupported: the library restarts nothing.
        """
        raise Unsupported("no supervisor restarts its actors")

    async def crash(self, ref: Ref) -> None:
        """Crash the supervised actor and return after the next ask that it answers."""
        raise Unsupported("no supervisor restarts its actors")
