"""`DynamicSupervisor`: children that come and go."""

from __future__ import annotations

import asyncio
import math
from contextlib import nullcontext
from typing import Any

import pytest

from promptside import (
    ActorRef,
    ActorStartError,
    ActorSystem,
    Backoff,
    ChildNotFound,
    ChildSpec,
    DynamicSupervisor,
    InvalidChildSpec,
    MaxChildrenReached,
    SupervisorCrashed,
)
from promptside.actors import State
from promptside.actors.lifecycle import crash, terminate, wait_ended
from promptside.supervision import ChildCounts
from promptside.testing import run_virtual
from tests.support.actors import doomed_system, until
from tests.support.children import Child, Stage


async def start(supervisor: ActorRef[DynamicSupervisor], spec: ChildSpec) -> ActorRef[Child]:
    return await supervisor.ask(DynamicSupervisor.start_child, spec)


async def test_children_of_one_spec_get_ids_of_their_own_and_are_restarted_alone() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await system.with_options(name="jobs").spawn(DynamicSupervisor)
        one, two = [await start(supervisor, stage.spec("job")) for _ in range(2)]
        assert one.path == "jobs/job"
        assert two.path.startswith("jobs/job-")
        one.kill()
        await until(lambda: one.incarnation == 2 and one.info().state is State.RUNNING)
        assert two.incarnation == 1
        counts = await supervisor.ask(DynamicSupervisor.count_children)
        assert counts == ChildCounts(specs=2, active=2, supervisors=0, workers=2)


@pytest.mark.parametrize(
    ("restart", "reason"), [("temporary", "boom"), ("temporary", "normal"), ("transient", "normal")]
)
async def test_a_child_that_is_not_restarted_is_forgotten(restart: Any, reason: str) -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor)
        child = await start(supervisor, Stage().spec("job", restart))
        await child.stop(reason)
        assert await supervisor.ask(DynamicSupervisor.which_children) == []
        assert system.tree().children[0].children == ()


async def test_no_more_than_max_children_at_one_time() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor, max_children=2)
        stage = Stage()
        children = [await start(supervisor, stage.spec("job", "temporary")) for _ in range(2)]
        with pytest.raises(MaxChildrenReached, match="has 2 children already") as reached:
            await start(supervisor, stage.spec("job"))
        assert reached.value.max_children == 2
        await supervisor.ask(DynamicSupervisor.terminate_child, children[0])
        await start(supervisor, stage.spec("job"))
        with pytest.raises(ChildNotFound):
            await supervisor.ask(DynamicSupervisor.terminate_child, children[0])
        with pytest.raises(ChildNotFound):
            await supervisor.ask(DynamicSupervisor.terminate_child, supervisor)


async def test_a_child_that_does_not_start_is_the_askers_alone() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor, max_restarts=0)
        with pytest.raises(ActorStartError):
            await start(supervisor, Stage().spec("job", failures=[True]))
        assert await supervisor.ask(DynamicSupervisor.which_children) == []


async def test_restarts_of_all_the_children_share_one_budget() -> None:
    async with doomed_system() as system:
        supervisor = await system.spawn(DynamicSupervisor, max_restarts=2)
        children = [await start(supervisor, Stage().spec("job")) for _ in range(3)]
        for child in children:
            child.kill()
        await until(lambda: supervisor.info().state is State.STOPPED)
        assert all(child.info().state is State.STOPPED for child in children)


@pytest.mark.parametrize("how", ["stop", "drain", "crash"])
def test_all_children_are_stopped_at_the_same_time(how: str) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            supervisor = await system.spawn(DynamicSupervisor)
            children = [await start(supervisor, Stage().spec("job", shutdown=3.0)) for _ in range(100)]
            for child in children:
                child.tell(Child.hang)
            await asyncio.sleep(0)
            loop = asyncio.get_running_loop()
            begin = loop.time()
            if how == "stop":
                await supervisor.stop()
            elif how == "drain":
                await terminate(supervisor._cell, "shutdown", drain_until=begin + 3.0)
            else:
                crash(supervisor._cell, ValueError("by a link"))
                await wait_ended(supervisor._cell)
            assert loop.time() - begin == pytest.approx(3.0)

    with pytest.raises(SupervisorCrashed, match="by a link") if how == "crash" else nullcontext():
        run_virtual(main())


def test_a_child_that_waits_for_its_restart_can_be_ended_and_the_others_go_on() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            supervisor = await system.spawn(DynamicSupervisor)
            backoff = Backoff(initial=5.0, jitter=0.0)
            one, two = [await start(supervisor, Stage().spec("job", backoff=backoff)) for _ in range(2)]
            one.kill()
            two.kill()
            await asyncio.sleep(0.001)
            await supervisor.ask(DynamicSupervisor.terminate_child, one)
            await asyncio.sleep(6)
            assert [child.ref for child in await supervisor.ask(DynamicSupervisor.which_children)] == [two]
            assert two.info().state is State.RUNNING

    run_virtual(main())


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "two", math.nan])
def test_an_invalid_bound_is_refused(value: Any) -> None:
    with pytest.raises(InvalidChildSpec, match="max_children="):
        DynamicSupervisor(max_children=value)


async def test_what_is_no_spec_or_significant_is_refused() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor)
        with pytest.raises(
            InvalidChildSpec, match=r"^start_child: .* is not a ChildSpec; give `Child\.child_spec\(\"id\"\)`"
        ):
            await supervisor.ask(DynamicSupervisor.start_child, Child)  # type: ignore[arg-type]
        with pytest.raises(InvalidChildSpec, match="is significant"):
            await start(supervisor, Stage().spec("job", "transient", significant=True))


async def test_what_is_no_reference_cannot_be_terminated() -> None:
    async with ActorSystem() as system:
        children = await DynamicSupervisor.start(system)
        with pytest.raises(ValueError, match=r"^terminate_child: ref=None: give the reference of a child"):
            await children.terminate_child(None)
