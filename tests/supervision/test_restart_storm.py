"""A child that fails at each start, at once, under a budget of thousands: what the storm costs everybody else."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest

from promptside import Actor, ActorRef, ActorSystem, ChildSpec, Supervisor
from promptside.actors import State
from tests.support.actors import doomed_system, until
from tests.support.children import Child

BIG = 100_000
"""Bytes in a local variable of the frame that fails, which its exception holds."""

where = pytest.mark.parametrize("fails_in", ["__init__", "on_start"])


class Storm:
    """What makes the child, counts its starts, and lets the first one succeed."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in = fails_in
        self.starts = 0
        self.spec = ChildSpec("storm", partial(Doomed, self))

    def fail(self, place: str) -> None:
        if self.starts > 1 and place == self.fails_in:
            burden = bytearray(BIG)
            raise OSError(f"not with {len(burden)} bytes")

    async def reach(self, starts: int) -> None:
        await until(lambda: self.starts >= starts)


class Doomed(Actor):
    def __init__(self, storm: Storm) -> None:
        self.storm = storm
        storm.starts += 1
        storm.fail("__init__")

    async def on_start(self) -> None:
        self.storm.fail("on_start")


@asynccontextmanager
async def raging(system: ActorSystem, storm: Storm, budget: int = 1_000_000) -> AsyncIterator[ActorRef[Supervisor]]:
    """A supervisor whose second child has begun to fail; the first has nothing to do with it."""
    system.events.on("*", lambda _: None)  # otherwise each crash is logged
    children = [ChildSpec("calm", partial(Child, "calm", [], [])), storm.spec]
    options: Any = {"max_restarts": budget, "max_seconds": 3600.0}
    supervisor = await system.spawn(Supervisor, children, **options)
    (await supervisor.ask(Supervisor.child, "storm")).kill()
    yield supervisor


@where
async def test_it_ends_with_the_budget_and_not_one_start_later(fails_in: str) -> None:
    async with doomed_system() as system:
        storm = Storm(fails_in)
        async with raging(system, storm, budget=2000) as supervisor:
            await until(lambda: supervisor.info().state is State.STOPPED)
        assert storm.starts == 1 + 2000
        assert system.failure is not None
        assert len(system.failure.history) == 32
        assert system.tree().children == ()


@where
async def test_the_loop_turns_at_least_once_for_each_restart(fails_in: str) -> None:
    async with ActorSystem() as system:
        storm = Storm(fails_in)
        async with raging(system, storm):
            await storm.reach(10)
            before, turns = storm.starts, 0
            while storm.starts < before + 500:
                await asyncio.sleep(0)
                turns += 1
        assert turns >= storm.starts - before


@where
async def test_its_exceptions_do_not_pile_up(fails_in: str) -> None:
    async with ActorSystem() as system:
        storm = Storm(fails_in)
        async with raging(system, storm):
            tracemalloc.start()
            try:
                sizes = []
                for starts in (200, 1200):
                    await storm.reach(starts)
                    gc.collect()
                    sizes.append(tracemalloc.get_traced_memory()[0])
            finally:
                tracemalloc.stop()
        assert sizes[1] - sizes[0] < 3 * BIG  # of the 1000 * BIG that have come and gone


@where
async def test_asks_are_answered_in_the_middle_and_other_children_live(fails_in: str) -> None:
    async with ActorSystem() as system:
        storm = Storm(fails_in)
        async with raging(system, storm) as supervisor:
            await storm.reach(50)
            states = {child.id: child.state for child in await supervisor.ask(Supervisor.which_children)}
            assert states == {"calm": "running", "storm": "restarting"}
            calm = await supervisor.ask(Supervisor.child, "calm")
            assert await calm.ask(Child.ping) == "calm"
            assert calm.incarnation == 1
            late = ChildSpec("late", partial(Child, "late", [], []))
            assert await (await supervisor.ask(Supervisor.start_child, late)).ask(Child.ping) == "late"
            await supervisor.ask(Supervisor.terminate_child, "storm")  # and so it is over
            starts = storm.starts
            assert {child.state for child in await supervisor.ask(Supervisor.which_children)} == {"running", "stopped"}
            assert storm.starts == starts


@where
@pytest.mark.parametrize("how", ["stop", "kill", "drain"])
async def test_its_supervisor_can_be_ended_in_the_middle(fails_in: str, how: str) -> None:
    async with ActorSystem() as system:
        storm = Storm(fails_in)
        async with raging(system, storm) as supervisor:
            await storm.reach(50)
            if how == "kill":
                supervisor.kill()
                await until(lambda: supervisor.info().state is State.STOPPED)
            elif how == "stop":
                await supervisor.stop()
            else:
                await system.drain(within=60)
            starts = storm.starts
            assert starts < 1000
            assert system.tree().children == ()
        assert storm.starts == starts
