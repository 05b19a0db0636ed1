"""`tell_after` and `tell_every` against a model: when, how often, and what a busy actor or its end does to them."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from dataclasses import dataclass
from functools import partial

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

from promptside import Actor, ActorRef, ChildSpec, Supervisor
from promptside.actors import Timer
from tests.support.state_machine import ActorMachine

Log = list[tuple[float, int]]
seconds = st.integers(1, 24).map(lambda eighths: eighths / 8)  # exact in binary, so that times can be compared


class Clock(Actor, mailbox=1):
    """Notes when its timers tell it something."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.gate: asyncio.Future[None] | None = None

    async def tick(self, number: int) -> None:
        self.log.append((asyncio.get_running_loop().time(), number))

    async def block(self) -> None:
        self.gate = asyncio.get_running_loop().create_future()
        await self.gate
        self.gate = None

    async def set_timer(self, number: int, delay: float, repeats: bool) -> Timer:
        return (self.tell_every if repeats else self.tell_after)(delay, Clock.tick, number)


@dataclass
class Model:
    """A timer, in the model."""

    number: int
    interval: float | None
    due: float
    skipped: int = 0
    told: bool = False  # whether its message is queued or handled


class Timers(ActorMachine):
    """The model: the timers that are set, what they have told, and what was handled when."""

    @initialize()
    def open(self) -> None:
        self.log: Log = []
        spec = ChildSpec("clock", partial(Clock, self.log))
        supervisor = self.run(self.system.spawn(Supervisor, [spec], max_restarts=1_000_000))
        self.ref: ActorRef[Clock] = self.run(supervisor.ask(Supervisor.child, "clock"))
        self.timers: dict[int, Timer] = {}
        self.models: dict[int, Model] = {}
        self.live: list[Model] = []
        self.queue: deque[tuple[float, Model]] = deque()
        self.handled: dict[tuple[float, int], float] = {}  # when and what: when it was told
        self.blocked = False
        self.numbers = itertools.count(1)

    def settle(self) -> None:
        for _ in range(20):
            self.run(asyncio.sleep(0))

    # -- the model ----------------------------------------------------------------------------------------------

    def handle(self, now: float) -> None:
        while self.queue and not self.blocked:
            told, model = self.queue.popleft()
            model.told = False
            self.handled[now, model.number] = told

    def pass_time(self, until: float) -> None:
        while due := [model for model in self.live if model.due <= until]:
            model = min(due, key=lambda model: model.due)
            now = model.due
            if model.told:
                model.skipped += 1
            else:
                model.told = True
                self.queue.append((now, model))
            self.handle(now)
            if model.interval is None:
                self.live.remove(model)
            else:
                model.due += model.interval

    # -- the rules ----------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.blocked)
    @rule(delay=st.one_of(st.just(0.0), seconds))
    def tell_after(self, delay: float) -> None:
        self.set_timer(delay, None)

    @precondition(lambda self: not self.blocked)
    @rule(interval=seconds)
    def tell_every(self, interval: float) -> None:
        self.set_timer(interval, interval)

    def set_timer(self, delay: float, interval: float | None) -> None:
        number = next(self.numbers)
        model = self.models[number] = Model(number, interval, self.loop.time() + delay)
        self.live.append(model)
        self.timers[number] = self.run(self.ref.ask(Clock.set_timer, number, delay, interval is not None))
        self.wait(0.0)

    @rule(seconds=seconds)
    def wait(self, seconds: float) -> None:
        self.advance(seconds)
        self.settle()
        self.pass_time(self.loop.time())

    @precondition(lambda self: self.timers)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.timers)))
        self.timers[number].cancel()
        self.live = [model for model in self.live if model.number != number]

    @precondition(lambda self: not self.blocked)
    @rule()
    def block(self) -> None:
        self.blocked = True
        self.ref.tell(Clock.block)
        self.settle()

    @precondition(lambda self: self.blocked)
    @rule()
    def let_go(self) -> None:
        self.blocked = False
        self.handle(self.loop.time())
        actor = self.ref._cell.instance
        assert isinstance(actor, Clock)
        assert actor.gate is not None
        actor.gate.set_result(None)
        self.settle()

    @rule(kill=st.booleans())
    def restart(self, kill: bool) -> None:
        self.live.clear()
        self.queue.clear()
        self.blocked = False
        if kill:
            self.ref.kill()
        else:
            self.run(self.ref.stop(shutdown=0))
        self.settle()

    # -- what must be the same ----------------------------------------------------------------------------------

    @invariant()
    def messages_come_when_they_are_due_and_in_order(self) -> None:
        assert sorted(self.log) == sorted(self.handled)
        order = [(now, self.handled[now, number]) for now, number in self.log]
        assert order == sorted(order)

    @invariant()
    def ticks_that_found_the_one_before_unhandled_are_counted(self) -> None:
        skipped = {number: timer.skipped for number, timer in self.timers.items()}
        assert skipped == {number: self.models[number].skipped for number in self.timers}

    @invariant()
    def only_live_timers_are_kept(self) -> None:
        assert len(self.ref._cell.timers or ()) == len(self.live)


pytestmark = pytest.mark.timeout(400)  # Hypothesis takes up to 300 s to shrink a failure
TestTimers = Timers.TestCase
