"""A storm: 200 actors under 20,000 random operations in virtual time, from a seed; nothing is lost, nothing is left.

Each ask, made by a client or within a handler, has one `Token`; what its asker got is held against what its handler
did.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from promptside import Actor, ActorRef, ActorStartError, ActorSystem, ChildSpec, Supervisor
from promptside.errors import ActorStopped, AskCycleError, AskTimeout, MailboxFull
from promptside.events import Event
from promptside.testing import VirtualTimeLoop, run_virtual

ACTORS = 200
OPERATIONS = 20_000
CLIENTS = 100
TOO_LONG = 3600.0
"""Virtual seconds after which a storm hangs; it takes about a minute."""

OUTCOMES = {
    "result",
    "stream read",
    "own exception",
    "ActorStopped",
    "AskTimeout",
    "AskCycleError",
    "MailboxFull",
    "CancelledError",
}


class Crash(Exception):
    """Leaves a handler, and is a crash."""


class Answer(Exception):
    """Leaves a handler, and is an answer."""


class Token:
    """One message on its way to a place, and what its handler did."""

    __slots__ = ("entered", "error", "kind", "number", "place")

    def __init__(self, kind: str, number: int, place: int) -> None:
        self.kind = kind
        self.number = number
        self.place = place
        self.entered = 0
        self.error: BaseException | None = None


class Storm:
    """The weather: what happens next, and the record of what happened."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numbers = itertools.count()
        self.places: list[ActorRef[Wind] | None] = [None] * ACTORS
        self.outcomes: Counter[str] = Counter()
        self.begun: Counter[str] = Counter()
        self.taken: list[Token] = []
        self.refused: list[Token] = []
        self.dead: Counter[str] = Counter()
        self.faults: list[str] = []
        self.loose: set[asyncio.Task[Any]] = set()

    def token(self, kind: str) -> tuple[Token, ActorRef[Wind]]:
        """A message, and any actor, ended ones included."""
        self.begun[kind] += 1
        token = Token(kind, next(self.numbers), self.random.randrange(ACTORS))
        return token, self.at(token.place)

    def somebody(self) -> ActorRef[Wind]:
        return self.at(self.random.randrange(ACTORS))

    def at(self, place: int) -> ActorRef[Wind]:
        ref = self.places[place]
        assert ref is not None
        return ref

    def check(self, fine: bool, what: str, token: Token, outcome: object) -> None:
        if not fine:
            kind = KINDS[token.place % 4].__name__
            self.faults.append(f"{token.kind} to a {kind}: {what}: {outcome!r}, entered {token.entered} times")

    # -- what clients and handlers do ---------------------------------------------------------------------------

    async def ask(self, depth: int) -> None:
        """Ask somebody; whatever the outcome is, it is the only one and it is true."""
        token, ref = self.token("ask")
        ref = ref.with_options(timeout=self.random.choice((0.2, 1.0, 5.0, 30.0)))
        try:
            result = await ref.ask(Wind.work, token, depth)
        except BaseException as error:
            self.judge(token, error)
            raise
        self.outcomes["result"] += 1
        self.check(result is token and token.entered == 1, "a result", token, result)

    def judge(self, token: Token, error: BaseException) -> None:
        """Hold the failure of an ask against what its handler did."""
        own = error is token.error
        self.outcomes["own exception" if own else type(error).__name__] += 1
        if own:
            self.check(token.entered == 1, "the handler's own exception", token, error)
        elif isinstance(error, ActorStopped | AskTimeout):
            self.check(error.started == bool(token.entered), "whether it had begun", token, error)
        elif isinstance(error, AskCycleError | MailboxFull):
            self.check(not token.entered, "it was refused and ran", token, error)
        else:
            self.check(isinstance(error, asyncio.CancelledError), "not an outcome of an ask", token, error)

    async def stream(self, depth: int) -> None:
        """Read some items of somebody's stream, in order."""
        token, ref = self.token("stream")
        wanted = self.random.choice((1, 5, 1000))
        ref = ref.with_options(timeout=self.random.choice((0.5, 5.0)))
        seen = 0
        try:
            async with aclosing(ref.stream(Wind.items, token, 60)) as items:
                async for item in items:
                    self.check(item == seen, f"item {seen} is {item}", token, None)
                    seen += 1
                    if seen == wanted:
                        break
                    if self.random.random() < 0.1:
                        await asyncio.sleep(0.1)
        except BaseException as error:
            self.judge(token, error)
            raise
        self.outcomes["stream read"] += 1
        self.check(seen == min(wanted, 60), "a stream that ended early", token, seen)

    def tell(self) -> None:
        token, ref = self.token("tell")
        try:
            ref.tell(Wind.hear, token)
        except MailboxFull:
            self.refused.append(token)
        else:
            self.taken.append(token)

    async def deliver(self) -> None:
        token, ref = self.token("deliver")
        try:
            await ref.deliver(Wind.hear, token)
        except (ActorStopped, asyncio.CancelledError):
            self.refused.append(token)
            raise
        self.taken.append(token)

    def loosen(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside the client or handler; the storm waits for it at its end."""
        task = asyncio.get_running_loop().create_task(work)
        self.loose.add(task)
        task.add_done_callback(self.over)
        return task

    def over(self, task: asyncio.Task[Any]) -> None:
        self.loose.discard(task)
        if not task.cancelled():
            task.exception()

    async def stop(self) -> None:
        chance = self.random.random()
        await self.somebody().stop(
            self.random.choice(("normal", "shutdown", "bored")),
            drain=60.0 if chance < 0.3 else 0.0,
            shutdown=0 if chance > 0.9 else None,
        )

    async def suspend(self) -> None:
        ref = self.somebody()
        ref.suspend()
        await asyncio.sleep(self.random.random() * 2)
        ref.resume()

    async def cancelled(self, work: Coroutine[Any, Any, Any]) -> None:
        """Something whose caller is cancelled, from at once to late."""
        task = self.loosen(work)
        await asyncio.sleep(self.random.choice((0, 0.05, 0.5, 3)))
        task.cancel()


class Wind(Actor):
    """Does at random what an actor may do, itself and to others."""

    def __init__(self, storm: Storm, place: int) -> None:
        self.storm = storm
        self.place = place
        self.inside = 0
        storm.places[place] = self.ref

    async def on_start(self) -> None:
        if self.storm.random.random() < 0.1:
            await asyncio.sleep(0.1)
        if self.storm.random.random() < 0.02 and self.ref.incarnation > 1:
            raise Crash("in on_start")
        if self.place % 10 == 0:
            self.tell_every(3.0, Wind.tick)
        if self.place % 7 == 0:
            await self.spawn(Child, self.storm)

    async def on_stop(self, reason: object) -> None:
        chance = self.storm.random.random()
        if chance < 0.1:
            await asyncio.sleep(chance * 20)
        elif chance < 0.12:
            raise Crash("in on_stop")

    async def receive(self, message: Any) -> None:
        await asyncio.sleep(0)

    async def tick(self) -> None:
        await asyncio.sleep(0.01)

    async def hear(self, token: Token) -> None:
        token.entered += 1
        await self.live(token, 2)

    async def work(self, token: Token, depth: int) -> Token:
        token.entered += 1
        await self.live(token, depth)
        return token

    async def items(self, token: Token, count: int) -> AsyncIterator[int]:
        token.entered += 1
        try:
            for item in range(count):
                if self.storm.random.random() < 0.05:
                    await asyncio.sleep(0.05)
                if self.storm.random.random() < 0.001:
                    raise Crash("in a stream")
                yield item
        except Exception as error:
            token.error = error
            raise

    async def live(self, token: Token, depth: int) -> None:
        self.inside += 1
        concurrency = type(self).__options__.max_concurrency
        self.storm.check(concurrency > 1 or self.inside == 1, "not one at a time", token, self.inside)
        try:
            await self.do(depth)
        except asyncio.CancelledError:
            if self.storm.random.random() < 0.05:
                await asyncio.sleep(0.2)
                return
            raise
        except Exception as error:
            token.error = error
            raise
        finally:
            self.inside -= 1

    async def do(self, depth: int) -> None:
        storm, chance = self.storm, self.storm.random.random()
        if chance < 0.3:
            return
        if chance < 0.5:
            await asyncio.sleep(storm.random.choice((0, 0.01, 0.1, 1)))
        elif chance < 0.7 and depth > 0:
            try:
                await storm.ask(depth - 1)
            except Exception:
                if storm.random.random() < 0.2:
                    raise
        elif chance < 0.73 and depth > 0:
            await asyncio.gather(storm.ask(depth - 1), storm.ask(depth - 1), return_exceptions=True)
        elif chance < 0.8:
            storm.tell()
        elif chance < 0.82:
            raise Answer
        elif chance < 0.84:
            raise Crash("in a handler")
        elif chance < 0.85:
            self.stop()
        elif chance < 0.87:
            monitor = self.monitor(storm.somebody())
            if storm.random.random() < 0.3:
                monitor.cancel()
        elif chance < 0.875:
            other = storm.somebody()
            self.link(other)
            if storm.random.random() < 0.5:
                self.unlink(other)
        elif chance < 0.9:
            self.tell_after(storm.random.random(), Wind.tick)
        elif chance < 0.92 and depth > 0:
            await storm.stream(depth - 1)
        elif chance < 0.93:
            child = await self.spawn(Child, storm)
            if storm.random.random() < 0.5:
                await child.ask(Child.add)
        elif chance < 0.94:
            self.ref.kill()
        elif chance < 0.95:
            await storm.stop()
        elif chance < 0.97:
            async with asyncio.timeout(0.3):
                await asyncio.sleep(storm.random.random())


class Serial(Wind, mailbox=8, expected=(Answer, ActorStopped), shutdown=1.0):
    """One message at a time."""


class Wide(Wind, max_concurrency=4, mailbox=8, overflow="drop_oldest", shutdown=1.0):
    """Several messages at a time."""


class Trapper(Wind, mailbox=2, overflow="drop_newest", trap_exit=True):
    """Receives the exits of those it is linked to."""


class Child(Actor):
    """Of an actor in the storm."""

    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        self.total = 0

    async def add(self) -> int:
        await asyncio.sleep(0.01)
        self.total += 1
        return self.total

    async def on_stop(self, reason: object) -> None:
        await asyncio.sleep(0)


KINDS: tuple[type[Wind], ...] = (Serial, Serial, Wide, Trapper)


async def populate(system: ActorSystem, storm: Storm) -> list[int]:
    """Fill every place; returns the places that nobody supervises."""
    specs = [
        ChildSpec(f"wind-{place}", partial(KINDS[place % 4], storm, place), shutdown=(1.0, None, 0)[place % 3])
        for place in range(150)
    ]
    for first in range(0, 100, 20):
        await system.spawn(Supervisor, specs[first : first + 20], max_restarts=1_000_000)
    nested = [
        ChildSpec(
            f"supervisor-{first}",
            partial(Supervisor, specs[first : first + 10], max_restarts=3, max_seconds=5.0),
            restart=("permanent", "transient")[first % 20 == 0],
        )
        for first in range(100, 150, 10)
    ]
    await system.spawn(Supervisor, nested, max_restarts=1_000_000)
    alone = list(range(150, ACTORS))
    for place in alone:
        await system.spawn(KINDS[place % 4], storm, place)
    return alone


async def client(system: ActorSystem, storm: Storm, alone: list[int], operations: int) -> None:
    for _ in range(operations):
        chance = storm.random.random()
        try:
            if chance < 0.45:
                await storm.ask(3)
            elif chance < 0.65:
                storm.tell()
            elif chance < 0.75:
                storm.loosen(storm.cancelled(storm.ask(1)))
            elif chance < 0.78:
                storm.loosen(storm.deliver())
            elif chance < 0.8:
                storm.loosen(storm.cancelled(storm.deliver()))
            elif chance < 0.87:
                await storm.stream(2)
            elif chance < 0.9:
                storm.somebody().kill()
            elif chance < 0.92:
                storm.loosen(storm.stop())
            elif chance < 0.95:
                storm.loosen(storm.suspend())
            elif chance < 0.98:
                storm.somebody().info()
                storm.somebody().send_message("weather")
            else:
                place = storm.random.choice(alone)
                await system.spawn(KINDS[place % 4], storm, place)
        except (Crash, Answer, ActorStopped, AskTimeout, AskCycleError, MailboxFull, ActorStartError, TimeoutError):
            pass
        await asyncio.sleep(storm.random.choice((0, 0, 0.01, 0.2)))


async def rage(storm: Storm) -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.set_exception_handler(lambda _, context: storm.faults.append(f"the loop was told: {context}"))
    hangs = loop.call_later(TOO_LONG, loop.stop)
    async with ActorSystem() as system:

        @system.events.on("message.dead")
        def count(event: Event) -> None:
            storm.dead[event.data["method"]] += 1

        @system.events.on("*")
        def hear(event: Event) -> None:
            pass  # what somebody hears is not logged

        alone = await populate(system, storm)
        await asyncio.gather(*(client(system, storm, alone, OPERATIONS // CLIENTS) for _ in range(CLIENTS)))
        while storm.loose:
            await asyncio.wait(tuple(storm.loose))
    hangs.cancel()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (2, 3))])
def test_every_message_in_a_storm_has_one_true_outcome_and_nothing_is_left(
    seed: int, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = set(threading.enumerate())
    storm = Storm(seed)
    run_virtual(rage(storm))
    gc.collect()

    assert storm.faults == []
    assert storm.outcomes.total() == storm.begun["ask"] + storm.begun["stream"]
    assert storm.outcomes.keys() == OUTCOMES
    assert {token.entered for token in storm.taken} == {0, 1}
    assert {token.entered for token in storm.refused} == {0}
    assert sum(not token.entered for token in storm.taken) == storm.dead["hear"]
    assert set(threading.enumerate()) == threads
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
