"""`Supervisor`: what is restarted, when it gives up, and in which order things end; one_for_one."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from promptside import (
    Actor,
    ActorRef,
    ActorStartError,
    ActorStopped,
    ActorSystem,
    ChildNotFound,
    ChildSpec,
    Exit,
    InvalidChildSpec,
    MaxRestartsExceeded,
    Supervisor,
    TaskSupervisor,
)
from promptside.actors import State
from tests.support.actors import doomed_system, until


class Child(Actor):
    """Counts, fails on request, and notes its ends in a list that outlives it."""

    def __init__(self, name: str = "child", diary: list[str] | None = None) -> None:
        self.name = name
        self.diary = diary if diary is not None else []
        self.total = 0

    async def on_start(self) -> None:
        self.diary.append(f"start {self.name}")

    async def on_stop(self, reason: object) -> None:
        self.diary.append(f"stop {self.name} {reason}")

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    async def fail(self) -> None:
        raise ValueError("on request")

    async def finish(self, reason: str = "normal") -> None:
        self.stop(reason)

    async def hang(self) -> None:
        await asyncio.get_running_loop().create_future()


async def supervise(system: ActorSystem, *specs: ChildSpec, **options: Any) -> ActorRef[Supervisor]:
    return await system.with_options(name="supervisor").spawn(Supervisor, specs, **options)


async def fails(ref: ActorRef[Child]) -> None:
    with pytest.raises(ValueError, match="on request"):
        await ref.ask(Child.fail)


async def settled(supervisor: ActorRef[Supervisor]) -> dict[str, str]:
    """States of the children once the supervisor has handled what it was told so far."""
    return {child.id: child.state for child in await supervisor.ask(Supervisor.which_children)}


async def test_children_start_in_order_and_stop_in_reverse() -> None:
    diary: list[str] = []
    async with ActorSystem() as system:
        await supervise(system, *(ChildSpec(name, partial(Child, name, diary)) for name in "abc"))
    assert diary == ["start a", "start b", "start c", "stop c shutdown", "stop b shutdown", "stop a shutdown"]


async def test_a_crashed_child_is_restarted_with_new_state_and_the_same_reference() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child), ChildSpec("b", Child))
        a, b = [await supervisor.ask(Supervisor.child, id) for id in "ab"]
        await a.ask(Child.add, 5)
        await b.ask(Child.add, 7)
        await fails(a)
        assert await settled(supervisor) == {"a": "running", "b": "running"}
        assert a.incarnation == 2
        assert await a.ask(Child.add, 1) == 1
        assert b.incarnation == 1
        assert await b.ask(Child.add, 1) == 8


async def test_a_killed_child_is_restarted_and_the_running_ask_learns_that_it_had_started() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child))
        a = await supervisor.ask(Supervisor.child, "a")
        running = asyncio.ensure_future(a.ask(Child.hang))
        queued = asyncio.ensure_future(a.ask(Child.add, 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        a.kill()
        with pytest.raises(ActorStopped) as stopped:
            await running
        assert stopped.value.started
        with pytest.raises(ActorStopped) as stopped:
            await queued
        assert not stopped.value.started
        assert stopped.value.retry_after == 0.0
        await settled(supervisor)
        assert await a.ask(Child.add, 2) == 2


@pytest.mark.parametrize(
    ("restart", "how", "survives"),
    [
        ("permanent", "crash", True),
        ("permanent", "normal", True),
        ("permanent", "kill", True),
        ("transient", "crash", True),
        ("transient", "normal", False),
        ("transient", "shutdown", False),
        ("transient", "kill", True),
        ("temporary", "crash", False),
        ("temporary", "normal", False),
        ("temporary", "kill", False),
    ],
)
async def test_the_restart_type_decides_who_comes_back(restart: Any, how: str, survives: bool) -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child, restart=restart, name="the-child"))
        a = await supervisor.ask(Supervisor.child, "a")
        if how == "crash":
            await fails(a)
        elif how == "kill":
            a.kill()
        else:
            await a.stop(how)
        await until(lambda: a.info().state in {State.RUNNING, State.STOPPED})
        children = await settled(supervisor)
        kept = {} if restart == "temporary" else {"a": "stopped"}
        assert children == ({"a": "running"} if survives else kept)
        assert a.incarnation == (2 if survives else 1)
        if not survives:  # the name is free again, and nobody is promised a restart
            await system.with_options(name="the-child").spawn(Child)
            with pytest.raises(ActorStopped) as stopped:
                await a.ask(Child.add, 1)
            assert stopped.value.retry_after is None


async def test_more_restarts_than_the_intensity_allows_end_the_supervisor_with_their_history() -> None:
    async with doomed_system() as system:
        heard: list[Any] = []
        system.events.on("supervisor.gave_up", heard.append)
        supervisor = await supervise(system, ChildSpec("a", Child), ChildSpec("b", Child), max_restarts=2)
        a, b = [await supervisor.ask(Supervisor.child, id) for id in "ab"]
        for _ in range(2):
            await fails(a)
            await settled(supervisor)
        await fails(a)
        with pytest.raises(ActorStopped) as stopped:
            await settled(supervisor)
        assert isinstance(stopped.value.reason, MaxRestartsExceeded)
        assert [child for child, _ in stopped.value.reason.history] == ["a", "a", "a"]
        assert [event.source for event in heard] == ["supervisor"]
        await until(lambda: b.info().state is State.STOPPED)


async def test_a_supervisor_of_supervisors_restarts_the_one_that_gave_up() -> None:
    async with ActorSystem() as system:
        inner = partial(Supervisor, [ChildSpec("leaf", Child)], max_restarts=0)
        outer = await supervise(system, ChildSpec("inner", inner))
        child = await outer.ask(Supervisor.child, "inner")
        leaf = await child.ask(Supervisor.child, "leaf")
        await fails(leaf)
        await until(lambda: child.incarnation == 2 and child.info().state is State.RUNNING)
        again = await child.ask(Supervisor.child, "leaf")
        assert again != leaf
        assert await again.ask(Child.add, 3) == 3


class Reluctant(Actor):
    """Starts only when its list of failures is used up."""

    def __init__(self, failures: list[bool]) -> None:
        self.failures = failures

    async def on_start(self) -> None:
        if self.failures and self.failures.pop(0):
            raise OSError("not yet")

    async def fail(self) -> None:
        raise ValueError("on request")


async def test_a_start_that_fails_during_a_restart_is_tried_again_within_the_intensity() -> None:
    async with ActorSystem() as system:
        failures = [False, True, True, False]
        supervisor = await supervise(system, ChildSpec("a", partial(Reluctant, failures)), max_restarts=3)
        a = await supervisor.ask(Supervisor.child, "a")
        with pytest.raises(ValueError, match="on request"):
            await a.ask(Reluctant.fail)
        assert await settled(supervisor) == {"a": "restarting"}  # what is asked meanwhile is answered
        await until(lambda: a.info().state is State.RUNNING)
        assert failures == []


async def test_a_child_that_never_starts_again_ends_its_supervisor_and_not_the_loop() -> None:
    async with doomed_system() as system:
        failures = [False] + [True] * 1000
        supervisor = await supervise(system, ChildSpec("a", partial(Reluctant, failures)), max_restarts=5)
        a = await supervisor.ask(Supervisor.child, "a")
        with pytest.raises(ValueError, match="on request"):
            await a.ask(Reluctant.fail)
        await until(lambda: supervisor.info().state is State.STOPPED)
        assert len(failures) == 1000 - 5


async def test_a_first_start_that_fails_stops_the_children_before_it_and_tells_the_spawner() -> None:
    diary: list[str] = []
    async with ActorSystem() as system:
        specs = [ChildSpec("a", partial(Child, "a", diary)), ChildSpec("b", partial(Reluctant, [True]))]
        with pytest.raises(ActorStartError) as failed:
            await supervise(system, *specs)
        assert "not yet" in str(failed.value)
        assert diary == ["start a", "stop a shutdown"]
        assert system.tree().children == ()
        await supervise(system, ChildSpec("a", Child))  # the name is free again


async def test_a_child_that_does_not_stop_in_time_is_killed() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child, shutdown=0.01))
        a = await supervisor.ask(Supervisor.child, "a")
        hanging = asyncio.ensure_future(a.with_options(timeout=60).ask(Child.hang))
        await asyncio.sleep(0)
        await supervisor.stop()
        with pytest.raises(ActorStopped) as stopped:
            await hanging
        assert stopped.value.reason == "killed"


async def test_children_live_on_the_supervisors_node_and_are_restarted_there_while_the_home_loop_is_blocked() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("other")
        supervisor = await system.with_options(node=node).spawn(Supervisor, [ChildSpec("a", Child)])
        a = await supervisor.ask(Supervisor.child, "a")
        a.kill()
        while a.incarnation == 1 or a.info().state.value != "running":
            pass  # the home loop is blocked by this very loop
        assert await a.ask(Child.add, 4) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"id": ""}, "id=''"),
        ({"id": "a/b"}, "id='a/b'"),
        ({"start": 3}, "start=3"),
        ({"restart": "always"}, "restart='always': use one of permanent, transient, temporary"),
        ({"shutdown": -1}, "shutdown=-1"),
        ({"shutdown": float("nan")}, "shutdown=nan"),
        ({"shutdown": True}, "shutdown=True: give seconds >= 0"),
        ({"significant": 3, "restart": "transient"}, "significant=3: give True or False"),
        ({"name": ""}, "name='': give a non-empty text without /"),
        ({"node": "a/b"}, "node='a/b': give a Node, or a non-empty text without /"),
        ({"significant": True}, "significant=True: a permanent child never ends for good"),
        ({"backoff": 1.0}, "backoff=1.0: give a Backoff(...)"),
    ],
)
def test_an_invalid_child_spec_names_the_field_the_value_and_the_remedy(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidChildSpec) as invalid:
        ChildSpec(**{"id": "a", "start": Child, **arguments})
    assert message in str(invalid.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"children": [ChildSpec("a", Child), ChildSpec("a", Child)]}, "the id 'a' stands twice"),
        ({"children": [Child]}, 'is not a ChildSpec; give `Child.child_spec("id")`'),
        ({"children": [TaskSupervisor()]}, "is not a ChildSpec; give its `.child_spec()`"),
        ({"children": [5]}, "children: 5 is not a ChildSpec; wrap it as ChildSpec(id, start)"),
        ({"children": ChildSpec("a", Child)}, "children=ChildSpec(id='a', "),
        ({"children": ChildSpec("a", Child)}, "): give a list of ChildSpecs"),
        ({"children": None}, "children=None: give a list of ChildSpecs"),
        ({"children": "ab"}, "children='ab': give a list of ChildSpecs"),
        ({"strategy": "all"}, "strategy='all': use one of one_for_one, one_for_all, rest_for_one"),
        ({"auto_shutdown": "any"}, "auto_shutdown='any': use one of never, any_significant, all_significant"),
        ({"children": [ChildSpec("a", Child, "transient", significant=True)]}, "'a' is significant, but auto_shutdown"),
        ({"max_restarts": -1}, "max_restarts=-1"),
        ({"max_seconds": 0}, "max_seconds=0"),
        ({"max_restarts": True}, "max_restarts=True: give a whole number >= 0"),
        ({"max_seconds": True}, "max_seconds=True: give seconds > 0"),
    ],
)
def test_an_invalid_supervisor_says_so_before_anything_starts(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidChildSpec) as invalid:
        Supervisor(**arguments)
    assert message in str(invalid.value)


async def test_an_exit_of_an_incarnation_that_is_gone_restarts_nothing() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child))
        a = await supervisor.ask(Supervisor.child, "a")
        await fails(a)
        assert await settled(supervisor) == {"a": "running"}
        supervisor.send_message(Exit(ref=a, reason="late", incarnation=1))
        assert await settled(supervisor) == {"a": "running"}
        assert a.incarnation == 2


async def test_a_plain_message_to_a_supervisor_is_a_dead_letter_and_ends_nothing() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child))
        supervisor.send_message("hello")
        assert await settled(supervisor) == {"a": "running"}
        assert system.dead_letters == 1


async def test_a_child_with_a_name_is_found_by_it_across_its_restarts() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child, name="the-child"))
        a = system.whereis("the-child")
        await fails(a)
        await settled(supervisor)
        assert system.whereis("the-child") == a
        assert await a.ask(Child.add, 1) == 1


async def test_a_mistake_in_an_ask_to_a_supervisor_does_not_end_its_children() -> None:
    async with ActorSystem() as system:
        supervisor = await supervise(system, ChildSpec("a", Child))
        with pytest.raises(ChildNotFound, match="no child 'nobody'; it has a"):
            await supervisor.ask(Supervisor.child, "nobody")
        with pytest.raises(TypeError):
            await supervisor.ask(Supervisor.child)  # type: ignore[call-arg]
        assert await settled(supervisor) == {"a": "running"}
        assert supervisor.incarnation == 1
