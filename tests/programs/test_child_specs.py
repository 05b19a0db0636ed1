"""Everything that starts has a `child_spec`: a whole application as one supervision tree."""

from __future__ import annotations

import threading

import dspy
import pytest

from promptside import ActorStartError, ActorStopped, ActorSystem, DynamicSupervisor, Supervisor, TaskSupervisor
from promptside.actors import State
from promptside.errors import NotStarted
from promptside.pools import Endpoint, LMPool
from promptside.programs import Program
from promptside.testing import MockLM
from tests.support.actors import until


def nodes() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-")]


async def double(number: int) -> int:
    return 2 * number


async def test_an_application_is_one_tree_whose_handles_work_across_restarts() -> None:
    pool = LMPool([Endpoint("mock/atlas", engine=MockLM({"default": "Paris"}))])
    atlas = Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False))
    tasks = TaskSupervisor()
    children = [pool.child_spec(), atlas.child_spec(), tasks.child_spec(), DynamicSupervisor.child_spec("jobs")]
    with pytest.raises(NotStarted, match="Program 'atlas' is not started"):
        await atlas.acall(question="too early")
    async with ActorSystem() as system:
        app = await system.with_options(name="app").spawn(Supervisor, children, strategy="rest_for_one")
        assert (await atlas.acall(question="one")).answer == "Paris"
        assert await tasks.run(double, 2) == 4
        assert pool.stats()["mock/atlas"]["attempts"] == 1
        assert nodes() == ["promptside-lm"]

        lm = await app.ask(Supervisor.child, "lm")
        program = await app.ask(Supervisor.child, "atlas")
        lm.kill()  # and with it everything after it
        await until(lambda: program.incarnation == 2 and program.info().state is State.RUNNING)
        assert (await atlas.acall(question="two")).answer == "Paris"
        await until(lambda: system.whereis("tasks").info().state is State.RUNNING)
        assert await tasks.run(double, 3) == 6
        assert pool.stats()["mock/atlas"]["attempts"] == 1, "figures are of the incarnation"
        assert nodes() == ["promptside-lm"], "the node is kept across restarts"
        assert (await app.ask(Supervisor.count_children)).supervisors == 3

        await app.ask(Supervisor.terminate_child, "atlas")
        with pytest.raises(ActorStopped) as stopped:
            await atlas.acall(question="three")
        assert not stopped.value.started
        await app.stop()
        assert nodes() == []


async def test_a_call_waits_for_the_restart_of_the_whole_program() -> None:
    pool = LMPool([Endpoint("mock/atlas", engine=MockLM({"default": "Paris"}))])
    atlas = Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False))
    async with ActorSystem() as system:
        await pool.start(system)
        app = await system.spawn(Supervisor, [atlas.child_spec()])
        before = atlas.ref
        (await app.ask(Supervisor.child, "atlas")).kill()
        await until(lambda: before.info().state is not State.RUNNING)
        assert (await atlas.acall(question="one")).answer == "Paris"
        assert atlas.ref != before


async def test_a_handle_stands_in_one_place_at_a_time() -> None:
    pool = LMPool([Endpoint("mock/atlas", engine=MockLM({"default": "Paris"}))])
    atlas = Program(lambda: dspy.Predict("question -> answer"), name="atlas")
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [pool.child_spec(), atlas.child_spec()])
        other = await system.spawn(Supervisor)
        for id, spec in {"lm": pool.child_spec(), "atlas": atlas.child_spec()}.items():
            again = type(spec)(f"{id}-again", spec.start)
            with pytest.raises(ActorStartError, match=r"runs already.* make another"):
                await other.ask(Supervisor.start_child, again)
        assert (await supervisor.ask(Supervisor.count_children)).active == 2
