"""What the tests of actors share: a worker with the usual handlers, a gate to hold one inside, and ways to wait."""

from __future__ import annotations

import asyncio
import functools
import gc
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem
from promptside.errors import MaxRestartsExceeded
from promptside.events import Event, EventBus
from promptside.testing import run_virtual


class Boom(Exception):
    """A crash."""


class Gate:
    """Holds a handler inside until it is opened, and tells how the handler left."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.outcome = "waiting"

    async def walk(self) -> str:
        self.entered.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.outcome = "cancelled"
            raise
        self.outcome = "passed"
        return "passed"


class Worker(Actor):
    def __init__(self, total: int = 0) -> None:
        self.total = total
        self.seen: list[Any] = []

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    async def note(self, item: object) -> None:
        self.seen.append(item)

    async def notes(self) -> list[Any]:
        return list(self.seen)

    async def hold(self, gate: Gate) -> str:
        return await gate.walk()

    async def fail(self, error: BaseException) -> None:
        raise error

    async def call(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> Any:
        """Run what the test gives, with the actor."""
        return await function(self)

    async def count_to(self, number: int) -> AsyncIterator[int]:
        for each in range(1, number + 1):
            yield each

    async def receive(self, message: object) -> None:
        self.seen.append(message)


async def turns(number: int = 10) -> None:
    """Let everything else on the loop take some steps."""
    for _ in range(number):
        await asyncio.sleep(0)


@contextmanager
def no_collector() -> Iterator[None]:
    """Within, what is freed is freed by its references alone."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true that no event tells, looking ever less often."""
    end = time.monotonic() + seconds
    pause = 0.0
    while not condition():
        assert time.monotonic() < end, "it did not become true in time"
        await asyncio.sleep(pause)
        pause = min(pause + 0.0001, 0.005)


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an asynchronous test in virtual time: no pause of the machine comes between what it does."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        run_virtual(test(*args, **named))

    return run


async def busy(ref: ActorRef[Worker]) -> tuple[Gate, asyncio.Task[str]]:
    """Ask `ref` to hold a gate, and return once it does."""
    gate = Gate()
    task = asyncio.ensure_future(ref.ask(Worker.hold, gate))
    await gate.entered.wait()
    return gate, task


async def outcome(task: asyncio.Future[Any]) -> BaseException | Any:
    """What a task ended with: its result or its exception."""
    await asyncio.wait({task}, timeout=60)
    assert task.done(), "it hangs"
    if task.cancelled():
        return asyncio.CancelledError()
    error = task.exception()
    return task.result() if error is None else error


async def started(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has taken its first steps."""
    task = asyncio.ensure_future(coroutine)
    await turns(3)
    return task


def hear(bus: EventBus, pattern: str = "*") -> list[Event]:
    """The events that match, as they are published."""
    heard: list[Event] = []
    bus.on(pattern, heard.append)
    return heard


@asynccontextmanager
async def doomed_system() -> AsyncIterator[ActorSystem]:
    """A system in which a supervisor at the top gives up; leaving it raises what happened."""
    with pytest.raises(MaxRestartsExceeded):
        async with ActorSystem() as system:
            yield system
