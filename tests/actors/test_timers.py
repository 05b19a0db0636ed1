"""Timers: in order, without flooding, and never longer than their actor."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from promptside.actors import Actor, ActorSystem, State, Timer
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Worker, busy, in_virtual_time, outcome, turns, until


class Clock(Worker):
    timers: list[Timer]

    async def after(self, delay: float, item: object) -> None:
        self.last = self.tell_after(delay, Worker.note, item)

    async def every(self, interval: float, item: object) -> Timer:
        self.last = self.tell_every(interval, Worker.note, item)
        return self.last

    async def cancel(self) -> None:
        self.last.cancel()


def scheduled() -> list[str]:
    loop: Any = asyncio.get_running_loop()
    return [repr(handle) for handle in loop._scheduled if not handle.cancelled() and "Timer._tick" in repr(handle)]


@in_virtual_time
async def test_timers_fire_in_the_order_of_their_times() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        for delay in (0.03, 0.01, 0.02, 0):
            await ref.ask(Clock.after, delay, delay)
        await until(lambda: ref.info().handled == 8)
        assert await ref.ask(Worker.notes) == [0, 0.01, 0.02, 0.03]
        assert scheduled() == []


async def test_a_repeated_timer_ticks_until_it_is_cancelled() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        await ref.ask(Clock.every, 0.002, "tick")
        await until(lambda: ref.info().handled >= 5)
        await ref.ask(Clock.cancel)
        await ref.ask(Clock.cancel)
        ticks = len(await ref.ask(Worker.notes))
        assert ticks >= 3
        await asyncio.sleep(0.01)
        assert len(await ref.ask(Worker.notes)) == ticks
        assert scheduled() == []


async def test_the_ticks_of_a_busy_actor_are_skipped_and_counted() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        timer = await ref.ask(Clock.every, 0.001, "tick")
        gate, held = await busy(ref)
        await until(lambda: timer.skipped >= 5)
        assert ref.info().mailbox <= 1
        gate.open.set()
        await held


async def test_a_blocked_loop_does_not_cause_a_burst() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        timer = await ref.ask(Clock.every, 0.002, "tick")
        loop = asyncio.get_running_loop()
        end = loop.time() + 0.05
        while loop.time() < end:
            pass
        await turns()
        assert timer.skipped >= 15
        assert len(await ref.ask(Worker.notes)) <= 3


@pytest.mark.parametrize("how", ["stop", "kill", "crash"])
async def test_timers_die_with_their_actor(how: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        await ref.ask(Clock.every, 0.001, "tick")
        await ref.ask(Clock.after, 60, "late")
        if how == "stop":
            await ref.stop()
        elif how == "kill":
            ref.kill()
        else:
            ref.tell(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)
        assert scheduled() == []


async def test_timers_die_with_their_incarnation() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("clock", Clock)])
        ref = await supervisor.ask(Supervisor.child, "clock")
        await ref.ask(Clock.after, 0.01, "of the first")
        ref.kill()
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        await asyncio.sleep(0.02)
        assert await ref.ask(Worker.notes) == []


async def test_a_timer_set_by_a_task_that_outlived_its_incarnation_does_not_reach_the_next() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("clock", Clock)])
        ref = await supervisor.ask(Supervisor.child, "clock")
        actors: list[Clock] = []

        async def escape(actor: Clock) -> None:
            actors.append(actor)

        await ref.ask(Worker.call, escape)
        ref.kill()
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        try:
            actors[0].tell_after(0, Worker.note, "from the first")
        except Exception:
            pass
        await turns()
        assert await ref.ask(Worker.notes) == []


@in_virtual_time
async def test_a_timer_message_passes_a_full_mailbox_or_is_counted() -> None:
    class Small(Clock, mailbox=1): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Small)
        await ref.ask(Clock.after, 0.005, "timer")
        gate, held = await busy(ref)
        ref.tell(Worker.note, "full")
        await until(lambda: system.dead_letters or ref.info().mailbox == 2)
        gate.open.set()
        await held
        await turns()
        assert len(await ref.ask(Worker.notes)) + system.dead_letters == 2


async def test_a_timer_that_never_fires_keeps_nothing() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Clock)
        await ref.ask(Clock.after, math.inf, "never")
        assert await ref.ask(Worker.notes) == []
    assert scheduled() == []


@pytest.mark.parametrize(
    "set_timer",
    [
        lambda actor: actor.tell_after(-1, Worker.note, 1),
        lambda actor: actor.tell_after(math.nan, Worker.note, 1),
        lambda actor: actor.tell_every(0, Worker.note, 1),
        lambda actor: actor.tell_every(-1, Worker.note, 1),
        lambda actor: actor.tell_every(math.nan, Worker.note, 1),
        lambda actor: actor.tell_after("1", Worker.note, 1),
        lambda actor: actor.tell_after(1, Worker.receive, 1),
        lambda actor: actor.tell_after(1, Worker.count_to, 1),
        lambda actor: actor.tell_after(1, lambda self: None),
    ],
)
async def test_a_timer_that_cannot_be_set_is_an_error_in_the_caller(set_timer: Callable[[Actor], Timer]) -> None:
    class Calm(Clock, expected=(TypeError, ValueError)): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Calm)

        async def attempt(actor: Worker) -> None:
            set_timer(actor)

        result = await outcome(asyncio.ensure_future(ref.ask(Worker.call, attempt)))
        assert isinstance(result, TypeError | ValueError)
        assert "'<=' not supported" not in str(result)
        assert "'>=' not supported" not in str(result)
        assert scheduled() == []


async def test_an_exception_in_a_timers_message_is_a_crash() -> None:
    class Failing(Actor, expected=(Boom,)):
        async def on_start(self) -> None:
            self.tell_after(0, Failing.tick)

        async def tick(self) -> None:
            raise Boom

    async with ActorSystem() as system:
        ref = await system.spawn(Failing)
        await until(lambda: ref.info().state is State.STOPPED)


async def test_an_interval_that_the_clock_cannot_tell_from_none_ticks_on() -> None:
    class Clock(Actor):
        def __init__(self) -> None:
            self.ticks = 0
            self.tell_every(5e-324, Clock.tick)

        async def tick(self) -> None:
            self.ticks += 1

        async def count(self) -> int:
            return self.ticks

    async with ActorSystem() as system:
        clock = await system.spawn(Clock)
        async with asyncio.timeout(60):
            while await clock.ask(Clock.count) < 10:
                pass
