"""What if it is killed, stopped, cancelled or blocked just then: an answer each, for supervisors and their children."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

import pytest

from promptside import (
    Actor,
    ActorError,
    ActorRef,
    ActorStartError,
    ActorStopped,
    ActorSystem,
    AskCycleError,
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    MaxRestartsExceeded,
    Supervisor,
)
from promptside.actors import Node, State
from promptside.testing import run_virtual
from tests.support.actors import doomed_system, hear, outcome, started, turns, until
from tests.support.children import Child, Stage

BACKOFF = Backoff(initial=5.0, jitter=0.0)


class Does(Actor, timeout=math.inf):
    """Does what the test says when it starts, and when it is asked."""

    def __init__(self, at_start: Callable[[Does], Awaitable[object]] | None = None) -> None:
        self.at_start = at_start

    async def on_start(self) -> None:
        if self.at_start is not None:
            await self.at_start(self)

    async def do(self, what: Callable[[Does], Awaitable[object]]) -> Any:
        return await what(self)


async def for_ever(_: object) -> None:
    await asyncio.get_running_loop().create_future()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threads()
    yield
    assert threads() == before


async def held(node: Node) -> threading.Event:
    """Block the node's event loop until the event is set."""
    inside, release = threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        release.wait(10)

    node.loop.call_soon_threadsafe(hold)
    await asyncio.to_thread(inside.wait, 10)
    return release


# -- a child against its own supervisor --------------------------------------------------------------------------


@pytest.mark.parametrize("start", [1, 2])
async def test_an_ask_to_its_own_supervisor_while_it_starts_a_child_is_a_cycle(start: int) -> None:
    stage, caught = Stage(), []

    async def ask(self: Does) -> None:
        if self.ref.incarnation == start:
            try:
                await self.system.whereis("supervisor").ask(Supervisor.which_children)
            except AskCycleError as error:
                caught.append(error.cycle)

    async with ActorSystem() as system:
        await stage.open(system, ChildSpec("a", partial(Does, ask)))
        a = await stage.child("a")
        if start == 2:
            a.kill()
            await until(lambda: a.incarnation == 2 and a.info().state is State.RUNNING)
        assert caught == [("supervisor", "supervisor/a", "supervisor")]


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_child_that_ends_its_supervisor_while_it_is_started_by_it_ends_with_it(start: int, how: str) -> None:
    stage = Stage()

    async def end(self: Does) -> None:
        if self.ref.incarnation == start:
            supervisor = self.system.whereis("supervisor")
            if how == "stop":
                await supervisor.stop()
            else:
                supervisor.kill()
            await for_ever(self)

    async with ActorSystem() as system:
        opening = asyncio.ensure_future(stage.open(system, "first", ChildSpec("a", partial(Does, end))))
        if start == 1:
            assert isinstance(await outcome(opening), ActorStartError)
        else:
            supervisor = await opening
            (await stage.child("a")).kill()
            await until(lambda: supervisor.info().state is State.STOPPED)
        assert system.tree().children == ()


def test_a_child_that_has_itself_terminated_is_killed_after_its_shutdown_as_in_otp() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, ChildSpec("a", Does, shutdown=3.0))
            a = await stage.child("a")
            begin = asyncio.get_running_loop().time()
            with pytest.raises(ActorStopped):
                await a.ask(Does.do, lambda _: supervisor.ask(Supervisor.terminate_child, "a"))
            assert asyncio.get_running_loop().time() - begin == pytest.approx(3.0)
            assert await stage.states() == {"a": "stopped"}

    run_virtual(main())


async def test_a_link_to_a_supervisor_does_not_end_it_because_it_traps_exits_as_in_otp() -> None:
    async def link(self: Does) -> None:
        self.link(self.system.whereis("supervisor"))

    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, ChildSpec("a", partial(Does, link)))
        stranger = await system.spawn(Does, link)
        a = await stage.child("a")
        stranger.kill()
        a.kill()
        await until(lambda: a.incarnation == 2 and a.info().state is State.RUNNING)
        assert await stage.states() == {"a": "running"}
        assert supervisor.incarnation == 1
        assert system.dead_letters == 0


# -- starts that go wrong ----------------------------------------------------------------------------------------


class Refuses(Actor):
    """Starts once, and then fails in one way or another."""

    def __new__(cls, how: str, made: list[None]) -> Any:
        made.append(None)
        if len(made) > 1 and how == "returns no actor":
            return "an actor"
        return super().__new__(cls)

    def __init__(self, how: str, made: list[None]) -> None:
        self.how = how if len(made) > 1 else ""
        if self.how == "CancelledError in __init__":
            raise asyncio.CancelledError

    async def on_start(self) -> None:
        if self.how == "CancelledError in on_start":
            raise asyncio.CancelledError
        if self.how == "killed":
            self.ref.kill()
            await for_ever(self)
        if self.how == "stopped":
            await self.ref.stop()


@pytest.mark.parametrize(
    "how", ["CancelledError in __init__", "CancelledError in on_start", "returns no actor", "killed", "stopped"]
)
async def test_a_restart_that_fails_in_whatever_way_counts_and_the_budget_ends_it(how: str) -> None:
    stage, made = Stage(), list[None]()
    async with doomed_system() as system:
        supervisor = await stage.open(system, "first", ChildSpec("a", lambda: Refuses(how, made)), max_restarts=3)
        (await stage.child("a")).kill()
        await until(lambda: supervisor.info().state is State.STOPPED)
        assert len(made) == 1 + 3
        assert stage.read() == "stop first"


@pytest.mark.parametrize("how", ["CancelledError in __init__", "returns no actor", "killed", "stopped"])
async def test_a_new_child_that_fails_in_whatever_way_is_its_askers_alone(how: str) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "first")
        with pytest.raises(ActorStartError):
            await supervisor.ask(Supervisor.start_child, ChildSpec("a", lambda: Refuses(how, [None])))
        assert await stage.states() == {"first": "running"}
        assert supervisor.incarnation == 1


async def test_an_init_that_fails_is_a_crash_in_the_events_and_in_the_statistics() -> None:
    async with ActorSystem() as system:
        heard = hear(system.events, "actor.*")
        with pytest.raises(ActorStartError):
            await system.spawn(Refuses, "CancelledError in __init__", [None])
        assert [event.type for event in heard] == ["actor.crashed"]
        statistics = system.statistics()
        assert (statistics.started, statistics.stopped, statistics.crashed) == (0, 0, 1)


def test_a_start_that_swallows_its_kill_does_not_come_back_to_life() -> None:
    async def swallow(self: Does) -> None:
        try:
            await for_ever(self)
        except asyncio.CancelledError:
            await asyncio.sleep(0.5)

    async def main() -> None:
        async with ActorSystem() as system:
            starting = await started(system.with_options(name="a").spawn(Does, swallow))
            a = system.whereis("a")
            heard = hear(system.events, "actor.started")
            a.kill()
            await asyncio.sleep(0.75)  # its on_start has returned
            assert a.info().state is State.STOPPED
            assert isinstance(await outcome(starting), ActorStartError)
            assert heard == []

    run_virtual(main())


def test_a_start_that_was_left_behind_does_not_open_the_mailbox_of_the_next_incarnation() -> None:
    async def start(self: Does) -> None:
        if self.ref.incarnation == 2:
            try:
                await for_ever(self)
            except asyncio.CancelledError:
                await asyncio.sleep(2.0)
        elif self.ref.incarnation == 3:
            await asyncio.sleep(10.0)

    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(system, ChildSpec("a", partial(Does, start)))
            a = await stage.child("a")
            a.kill()
            await asyncio.sleep(0.1)
            a.kill()  # left behind after a second, and ends after two
            await asyncio.sleep(3.0)
            assert (a.incarnation, a.info().state) == (3, State.STARTING)
            await asyncio.sleep(10.0)
            assert a.info().state is State.RUNNING

    run_virtual(main())


def test_a_cancelled_start_three_supervisors_deep_is_over_when_the_deepest_is() -> None:
    entered = asyncio.Event()

    async def stubborn(self: Does) -> None:
        entered.set()
        while True:
            try:
                await for_ever(self)
            except asyncio.CancelledError:
                await asyncio.sleep(0.5)
                return

    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system)
            three = Supervisor.child_spec("three", [ChildSpec("deep", partial(Does, stubborn))])
            two = Supervisor.child_spec("two", [three])
            asking = await started(supervisor.ask(Supervisor.start_child, two))
            await entered.wait()
            asking.cancel()
            await asyncio.wait({asking})
            assert await stage.states() == {}
            assert system.tree().children[0].children == ()

    run_virtual(main())


# -- giving up -----------------------------------------------------------------------------------------------------


def test_supervisors_that_give_up_one_above_the_other_end_the_system_with_the_topmost() -> None:
    async def main() -> None:
        stage = Stage()
        async with doomed_system() as system:
            three = Supervisor.child_spec("three", [stage.spec("leaf")], max_restarts=1)
            two = Supervisor.child_spec("two", [three], max_restarts=1)
            await stage.open(system, two, max_restarts=1)
            kills = 0
            while system.failure is None:
                cell = system.whereis("supervisor")._cell
                for id in ("two", "three", "leaf"):
                    assert cell.children is not None
                    cell = cell.children[id]
                cell.ref.kill()
                kills += 1
                await asyncio.sleep(0.001)
            assert kills == 2**3
            assert system.failure.path == "supervisor"
            assert isinstance(system.failure.__cause__, MaxRestartsExceeded)
            assert system.failure.__cause__.path == "supervisor/two"
            assert system.tree().children == ()

    run_virtual(main())


def test_the_wait_of_a_former_incarnation_is_nothing_to_the_next() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(system, DynamicSupervisor.child_spec("inner"), max_restarts=1)
            inner: ActorRef[Any] = await stage.child("inner")
            child = await inner.ask(DynamicSupervisor.start_child, stage.spec("a", backoff=BACKOFF))
            child.kill()
            await asyncio.sleep(1.0)
            inner.kill()
            await asyncio.sleep(10.0)
            assert inner.incarnation == 2
            assert await inner.ask(DynamicSupervisor.which_children) == []

    run_virtual(main())


def test_no_timer_outlives_the_supervisor_whose_child_waits() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, stage.spec("a", backoff=BACKOFF))
            await stage.crash("a")
            await supervisor.stop()
            loop: Any = asyncio.get_running_loop()
            assert [timer for timer in loop._scheduled if not timer.cancelled()] == []

    run_virtual(main())


# -- what is said meanwhile ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["temporary child is killed", "terminate_child", "supervisor stops", "system closes"])
async def test_nobody_is_promised_a_restart_that_will_not_come(how: str) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        restart = "temporary" if how.startswith("temporary") else "permanent"
        supervisor = await stage.open(system, stage.spec("a", restart, shutdown=0.01))
        a = await stage.child("a")
        asks = [await started(a.ask(Child.hang)), await started(a.ask(Child.ping))]
        if how == "temporary child is killed":
            a.kill()
        elif how == "terminate_child":
            await supervisor.ask(Supervisor.terminate_child, "a")
        elif how == "supervisor stops":
            await supervisor.stop()
        else:
            await system.drain(0)
        for ask in asks:
            stopped = await outcome(ask)
            assert isinstance(stopped, ActorStopped)
            assert stopped.retry_after is None


def test_the_promised_restart_is_counted_from_the_end_of_a_slow_sibling() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(
                system, stage.spec("a", backoff=BACKOFF), stage.spec("b", shutdown=3.0), strategy="one_for_all"
            )
            a, b = await stage.child("a"), await stage.child("b")
            b.tell(Child.hang)
            await stage.crash("a")
            await asyncio.sleep(4.0)
            with pytest.raises(ActorStopped) as stopped:
                await a.ask(Child.ping)
            assert stopped.value.retry_after == pytest.approx(4.0, abs=0.01)

    run_virtual(main())


def test_a_terminated_child_that_comes_back_with_its_group_after_a_backoff_has_its_name_again() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            specs = stage.spec("a", backoff=BACKOFF), stage.spec("b", name="bee")
            supervisor = await stage.open(system, *specs, strategy="one_for_all")
            await supervisor.ask(Supervisor.terminate_child, "b")
            await stage.crash("a")
            await asyncio.sleep(6.0)
            assert system.whereis("bee") == await stage.child("b")

    run_virtual(main())


# -- many children ---------------------------------------------------------------------------------------------------


async def test_ids_with_numbers_of_their_own_do_not_meet_those_that_are_added() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor)
        for id in [*(f"job-{number}" for number in range(30)), *["job"] * 10]:
            await supervisor.ask(DynamicSupervisor.start_child, stage.spec(id))
        assert (await supervisor.ask(DynamicSupervisor.count_children)).active == 40
    assert sum(line.startswith("stop") for line in stage.diary) == 40


async def test_a_restart_does_not_cost_a_look_at_each_of_ten_thousand_siblings() -> None:
    class Job(Actor):
        pass

    async def seconds(children: int) -> float:
        async with ActorSystem() as system:
            system.events.on("*", lambda _: None)
            supervisor = await system.spawn(DynamicSupervisor, max_restarts=1000)
            spec = ChildSpec("job", Job)
            jobs = [await supervisor.ask(DynamicSupervisor.start_child, spec) for _ in range(children)][:100]
            begin = time.perf_counter()
            for job in jobs:
                job.kill()
            await until(lambda: all(job.incarnation == 2 and job.info().state is State.RUNNING for job in jobs), 30)
            return time.perf_counter() - begin

    assert await seconds(10_000) < 20 * await seconds(100)  # with such a look it is 150 times


def test_a_supervisor_keeps_nothing_of_an_incarnation_that_has_crashed() -> None:
    class Burden:
        pass

    crashed: list[weakref.ref[Burden]] = []

    class Heavy(Actor):
        async def fail(self) -> None:
            burden = Burden()
            crashed.append(weakref.ref(burden))
            raise ValueError(str(burden))

    async def main() -> None:
        async with ActorSystem() as system:
            system.events.on("actor.crashed", lambda event: None)  # else it is logged, and pytest keeps the traceback
            stage = Stage()
            await stage.open(system, ChildSpec("a", Heavy))
            a: ActorRef[Any] = await stage.child("a")
            a.tell(Heavy.fail)
            await asyncio.sleep(60.0)
            assert a.info().state is State.RUNNING
            gc.collect()
            assert [burden() for burden in crashed] == [None]

    run_virtual(main())


# -- other nodes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(1, 10))
async def test_a_caller_that_is_cancelled_at_any_step_of_a_start_on_a_new_node_leaves_no_thread(steps: int) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system)
        asking = asyncio.ensure_future(supervisor.ask(Supervisor.start_child, stage.spec("a", node="x")))
        await turns(steps)
        asking.cancel()
        await asyncio.wait({asking})
        if asking.cancelled():  # perhaps when the child had started, and the answer was on its way
            states = await stage.states()
            assert states in ({}, {"a": "running"})
            assert ("promptside-x" in threads()) == bool(states)


@pytest.mark.parametrize("at", ["the node's start", "the child's start", "a start the node has not seen"])
async def test_a_supervisor_ends_although_its_child_starts_for_ever_on_another_node(at: str) -> None:
    stage = Stage()
    entered = threading.Event()

    async def never(self: Does) -> None:
        entered.set()
        await for_ever(self)

    async with ActorSystem() as system:
        node: Node | str = "x"
        release = threading.Event()
        if at == "a start the node has not seen":
            node = await system.start_node("x")
            release = await held(node)
        supervisor = await stage.open(system, "first")
        asking = asyncio.ensure_future(
            supervisor.ask(Supervisor.start_child, ChildSpec("a", partial(Does, never), node=node))
        )
        await turns(3)
        if at == "the child's start":
            await asyncio.to_thread(entered.wait, 5)
        stopping = await started(supervisor.stop())
        release.set()
        done, _ = await asyncio.wait({stopping}, timeout=5)
        supervisor.kill()  # so that the test ends, if it would not
        assert done, "it waits for a start that never ends"
        assert isinstance(await outcome(asking), ActorError)
        assert stage.read() == "stop first"


async def test_a_cancelled_start_on_another_node_leaves_no_actor_there() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system)
        node = await system.start_node("x")
        release = await held(node)
        asking = await started(supervisor.ask(Supervisor.start_child, stage.spec("a", node=node)))
        cells = tuple((supervisor._cell.children or {}).values())
        asking.cancel()
        await turns(3)
        release.set()
        await asyncio.wait({asking})
        assert await stage.states() == {}
        assert [cell.state for cell in cells] == [State.STOPPED]


async def test_a_cancelled_restart_on_another_node_has_ended_before_the_next_begins() -> None:
    diary: list[str] = []

    async def slow_to_go(self: Does) -> None:
        incarnation = self.ref.incarnation
        diary.append(f"in {incarnation}")
        if incarnation == 2:
            try:
                await for_ever(self)
            finally:
                await asyncio.sleep(0.1)
                diary.append("out 2")

    stage = Stage()
    async with ActorSystem() as system:
        node = await system.start_node("x")
        supervisor = await stage.open(system, ChildSpec("a", partial(Does, slow_to_go), node=node))
        await supervisor.ask(Supervisor.terminate_child, "a")
        asking = await started(supervisor.ask(Supervisor.restart_child, "a"))
        await until(lambda: diary[-1] == "in 2")
        asking.cancel()
        await asyncio.wait({asking})
        again = await started(supervisor.ask(Supervisor.restart_child, "a"))
        done, _ = await asyncio.wait({again}, timeout=5)
        if not done:
            supervisor.kill()
        assert done, "two incarnations meet"
        assert diary == ["in 1", "in 2", "out 2", "in 3"]


@pytest.mark.parametrize("how", ["cancel", "kill"])
async def test_the_thread_of_a_child_is_joined_although_whoever_ends_it_is_interrupted(how: str) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, stage.spec("a", node="x"))
        a = await stage.child("a")
        await supervisor.ask(Supervisor.terminate_child, "a")
        release = await held(a._cell.node)
        asking = await started(supervisor.ask(Supervisor.delete_child, "a"))
        if how == "cancel":
            asking.cancel()
        else:
            supervisor.kill()
        await asyncio.wait({asking})
        asyncio.get_running_loop().call_later(0.05, release.set)
        closing = threading.Timer(5, release.set)  # so that the test ends, if it would not
        closing.start()
    assert "promptside-x" not in threads()
    closing.cancel()
    closing.join()


@pytest.mark.parametrize("how", ["stop", "kill", "close"])
async def test_a_supervisor_on_a_node_may_give_its_child_another_node(how: str) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        node = await system.start_node("one")
        supervisor = await system.with_options(node=node).spawn(Supervisor, [stage.spec("a", node="two")])
        a: ActorRef[Child] = await supervisor.ask(Supervisor.child, "a")
        a.kill()
        await until(lambda: a.incarnation == 2 and a.info().state is State.RUNNING)
        assert await a.ask(Child.ping) == "a"
        if how == "stop":
            await supervisor.stop()
        elif how == "kill":
            supervisor.kill()
            await until(lambda: supervisor.info().state is State.STOPPED)
        if how != "close":
            assert "promptside-two" not in threads()


async def test_a_child_that_exits_the_program_on_a_node_of_its_own_is_restarted_there() -> None:
    async def leave(_: Does) -> None:
        sys.exit(3)

    stage = Stage()
    async with ActorSystem() as system:
        await stage.open(system, ChildSpec("a", Does, node="x"))
        a: ActorRef[Does] = await stage.child("a")
        assert isinstance(await outcome(await started(a.ask(Does.do, leave))), ActorStopped)
        await until(lambda: a.incarnation == 2 and a.info().state is State.RUNNING)
        assert await stage.states() == {"a": "running"}
    gc.collect()  # asyncio tells of the exit when the task is collected: here, and not in the midst of another test
