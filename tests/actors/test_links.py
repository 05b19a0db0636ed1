"""Monitors and links: who is told of an end, what, and how often."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, Down, Exit, Monitor, State
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Worker, busy, turns, until


class Bonded(Worker):
    async def watch(self, ref: ActorRef[Worker]) -> Monitor:
        return self.monitor(ref)

    async def tie(self, ref: ActorRef[Worker]) -> None:
        self.link(ref)

    async def untie(self, ref: ActorRef[Worker]) -> None:
        self.unlink(ref)


class Trapping(Bonded, trap_exit=True): ...


BOOM = Boom("the end")


async def end(ref: ActorRef[Worker], how: str) -> object:
    """End an actor and return the reason that others are told."""
    if how == "crash":
        ref.tell(Worker.fail, BOOM)
        reason: object = BOOM
    elif how == "kill":
        ref.kill()
        reason = "killed"
    else:
        await ref.stop(how)
        reason = how
    await until(lambda: ref.info().state is State.STOPPED)
    await turns()
    return reason


@pytest.mark.parametrize("how", ["normal", "shutdown", "own words", "crash", "kill"])
async def test_a_monitor_is_told_once_with_the_reason(how: str) -> None:
    async with ActorSystem() as system:
        watcher, watched = await system.spawn(Bonded), await system.spawn(Worker)
        await watcher.ask(Bonded.watch, watched)
        reason = await end(watched, how)
        assert await watcher.ask(Worker.notes) == [Down(ref=watched, reason=reason, incarnation=1)]


async def test_a_monitor_of_an_actor_that_does_not_run_is_told_at_once() -> None:
    async with ActorSystem() as system:
        watcher, watched = await system.spawn(Bonded), await system.spawn(Worker)
        await watched.stop()
        await watcher.ask(Bonded.watch, watched)
        assert await watcher.ask(Worker.notes) == [Down(ref=watched, reason="noproc", incarnation=0)]


async def test_a_monitor_taken_back_is_not_told_and_two_monitors_are_told_twice() -> None:
    async with ActorSystem() as system:
        watcher, watched = await system.spawn(Bonded), await system.spawn(Worker)
        monitors = [await watcher.ask(Bonded.watch, watched) for _ in range(3)]
        monitors[0].cancel()
        monitors[0].cancel()
        await watched.stop()
        assert len(await watcher.ask(Worker.notes)) == 2


async def test_a_monitor_does_not_end_its_watcher_and_a_watcher_that_ends_harms_nobody() -> None:
    async with ActorSystem() as system:
        watcher, watched = await system.spawn(Bonded), await system.spawn(Worker)
        await watcher.ask(Bonded.watch, watched)
        await watcher.stop()
        await end(watched, "crash")
        assert system.dead_letters == 0


async def test_a_monitor_is_for_one_incarnation() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", Worker)])
        child = await supervisor.ask(Supervisor.child, "child")
        watcher = await system.spawn(Bonded)
        await watcher.ask(Bonded.watch, child)
        for incarnation in (2, 3):
            child.kill()
            await until(lambda incarnation=incarnation: child.incarnation == incarnation)
        downs = await watcher.ask(Worker.notes)
        assert [(down.reason, down.incarnation) for down in downs] == [("killed", 1)]


async def test_a_restarted_watcher_is_not_told_what_its_predecessor_watched() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("watcher", Bonded)])
        watcher = await supervisor.ask(Supervisor.child, "watcher")
        watched = await system.spawn(Worker)
        await watcher.ask(Bonded.watch, watched)
        watcher.kill()
        await until(lambda: watcher.incarnation == 2 and watcher.info().state is State.RUNNING)
        await watched.stop()
        assert await watcher.ask(Worker.notes) == []


async def test_watchers_that_have_ended_are_not_kept() -> None:
    async with ActorSystem() as system:
        watched = await system.spawn(Worker)
        for _ in range(10):
            watcher = await system.spawn(Bonded)
            await watcher.ask(Bonded.watch, watched)
            await watcher.ask(Bonded.tie, watched)
            await watcher.stop()
        links = watched._cell.links
        assert links is not None
        assert (len(links.monitors), len(links.linked)) == (0, 0)


@pytest.mark.parametrize("how", ["shutdown", "own words", "crash", "kill"])
@pytest.mark.parametrize("first", [True, False])
async def test_a_link_ends_the_other_side_with_the_same_reason(how: str, first: bool) -> None:
    async with ActorSystem() as system:
        one, other = await system.spawn(Bonded), await system.spawn(Worker)
        watcher = await system.spawn(Bonded)
        await one.ask(Bonded.tie, other)
        ending, following = (one, other) if first else (other, one)
        await watcher.ask(Bonded.watch, following)
        reason = await end(ending, how)
        await until(lambda: following.info().state is State.STOPPED)
        await turns()
        assert [down.reason for down in await watcher.ask(Worker.notes)] == [reason]


async def test_a_normal_end_leaves_the_other_side_running() -> None:
    async with ActorSystem() as system:
        one, other = await system.spawn(Bonded), await system.spawn(Worker)
        await one.ask(Bonded.tie, other)
        await other.stop()
        assert await one.ask(Worker.add, 1) == 1


@pytest.mark.parametrize("how", ["normal", "own words", "crash", "kill"])
async def test_an_actor_that_traps_exits_receives_them(how: str) -> None:
    async with ActorSystem() as system:
        trapping, other = await system.spawn(Trapping), await system.spawn(Worker)
        await trapping.ask(Bonded.tie, other)
        reason = await end(other, how)
        assert await trapping.ask(Worker.notes) == [Exit(ref=other, reason=reason, incarnation=1)]


async def test_a_link_to_an_actor_that_does_not_run_is_told_as_noproc() -> None:
    async with ActorSystem() as system:
        gone = await system.spawn(Worker)
        await gone.stop()
        trapping, plain = await system.spawn(Trapping), await system.spawn(Bonded)
        await trapping.ask(Bonded.tie, gone)
        assert await trapping.ask(Worker.notes) == [Exit(ref=gone, reason="noproc", incarnation=0)]
        plain.tell(Bonded.tie, gone)
        await until(lambda: plain.info().state is State.STOPPED)


async def test_an_unlinked_actor_goes_on() -> None:
    async with ActorSystem() as system:
        one, other = await system.spawn(Bonded), await system.spawn(Worker)
        await one.ask(Bonded.tie, other)
        await one.ask(Bonded.untie, other)
        await end(other, "crash")
        assert await one.ask(Worker.add, 1) == 1


async def test_a_ring_of_links_ends_as_a_whole_and_once() -> None:
    async with ActorSystem() as system:
        crashes: list[object] = []
        system.events.on("actor.crashed", crashes.append)
        ring = [await system.spawn(Bonded) for _ in range(5)]
        for index, ref in enumerate(ring):
            await ref.ask(Bonded.tie, ring[(index + 1) % 5])
        await end(ring[0], "crash")
        await until(lambda: all(ref.info().state is State.STOPPED for ref in ring))
        assert len(crashes) == 5


async def test_a_link_to_itself_is_none() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Bonded)
        await ref.ask(Bonded.tie, ref)
        assert await ref.ask(Worker.add, 1) == 1


async def test_a_linked_actor_that_is_supervised_is_restarted() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", functools.partial(Bonded, 3))])
        child = await supervisor.ask(Supervisor.child, "child")
        other = await system.spawn(Worker)
        await child.ask(Bonded.tie, other)
        await end(other, "crash")
        await until(lambda: child.incarnation == 2 and child.info().state is State.RUNNING)
        assert await child.ask(Worker.add, 1) == 4


async def test_monitors_and_links_reach_across_nodes() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        far = system.with_options(node=node)
        watcher, watched = await system.spawn(Bonded), await far.spawn(Worker)
        await watcher.ask(Bonded.watch, watched)
        await watched.stop()
        await until(lambda: watcher.info().handled == 2)
        assert [down.reason for down in await watcher.ask(Worker.notes)] == ["normal"]
        one, other = await system.spawn(Bonded), await far.spawn(Worker)
        await one.ask(Bonded.tie, other)
        await until(lambda: other._cell.links is not None and other._cell.links.linked)
        other.tell(Worker.fail, BOOM)
        await until(lambda: one.info().state is State.STOPPED)
        one, other = await system.spawn(Bonded), await far.spawn(Worker)
        await one.ask(Bonded.tie, other)
        await until(lambda: other._cell.links is not None and other._cell.links.linked)
        one.kill()
        await until(lambda: other.info().state is State.STOPPED)


async def test_an_exit_reaches_an_actor_that_is_busy_or_suspended() -> None:
    async with ActorSystem() as system:
        one, other = await system.spawn(Bonded), await system.spawn(Worker)
        await one.ask(Bonded.tie, other)
        gate, held = await busy(one)
        one.suspend()
        other.tell(Worker.fail, BOOM)
        await until(lambda: one.info().state is State.STOPPED)
        assert gate.outcome == "cancelled"
        await asyncio.wait({held})
        assert held.exception() is not None


class Tied(Actor):
    async def tie(self, how: str, ref: Any) -> None:
        getattr(self, how)(ref)


@pytest.mark.parametrize("wrong", [None, "other"])
@pytest.mark.parametrize("how", ["monitor", "link", "unlink"])
async def test_what_is_no_reference_is_not_tied(how: str, wrong: Any) -> None:
    async with ActorSystem() as system:
        one = await system.spawn(Tied)
        with pytest.raises(ValueError, match=rf"^{how}: ref={wrong!r}: give the reference of an actor"):
            await one.ask(Tied.tie, how, wrong)
