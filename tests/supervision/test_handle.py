"""`Handle`: started in one place at a time, used from anywhere, ended with everything that it started."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import pickle
import threading
import weakref
from typing import Any

import pytest

from promptside import (
    Actor,
    ActorStartError,
    ActorSystem,
    AlreadyRunning,
    Backoff,
    ChildNotFound,
    ChildSpec,
    DynamicSupervisor,
    InvalidChildSpec,
    NameTaken,
    NotStarted,
    Supervisor,
    TaskSupervisor,
)
from promptside.supervision import Handle
from promptside.testing import run_virtual
from tests.support.actors import until


class Counter(Actor):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total


class Slow(Actor):
    """Starts when its gate opens."""

    def __init__(self, handle: SlowHandle) -> None:
        handle.claim(self)
        self._handle = handle

    async def on_start(self) -> None:
        self._handle.begun.set()
        await self._handle.gate.wait()
        self._handle.attach(self, self)

    async def answer(self) -> str:
        return "here"


class SlowHandle(Handle[Slow]):
    def __init__(self, name: str = "slow") -> None:
        super().__init__(name)
        self.gate, self.begun = asyncio.Event(), asyncio.Event()

    def _make_actor(self) -> Slow:
        return Slow(self)


class Unstartable(Actor):
    async def on_start(self) -> None:
        raise ValueError("no")


async def double(number: int) -> int:
    return 2 * number


async def thread_name() -> str:
    return threading.current_thread().name


def own_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-")}


async def test_what_was_not_started_says_how_to_start_it_and_is_not_called_safe_to_retry() -> None:
    with pytest.raises(NotStarted, match=r"TaskSupervisor 'tasks' is not started; `await it.start\(system\)`") as error:
        await TaskSupervisor().run(double, 1)
    assert (error.value.kind, error.value.name) == ("TaskSupervisor", "tasks")
    assert "retry" not in str(error.value)


def test_before_its_start_a_handle_has_its_name_for_a_path_and_no_actor() -> None:
    tasks = TaskSupervisor("tasks")
    assert (tasks.path, tasks.running) == ("tasks", False)
    with pytest.raises(NotStarted):
        _ = tasks.ref


async def test_a_second_start_is_refused_and_the_first_goes_on() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        with pytest.raises(AlreadyRunning, match=r"'tasks' runs already, at 'tasks'; stop it first") as error:
            await tasks.start(system, name="again", node="again")
        assert (error.value.kind, error.value.name, error.value.path) == ("TaskSupervisor", "tasks", "tasks")
        assert await tasks.run(double, 1) == 2
        assert own_threads() == set()


async def test_of_two_starts_at_the_same_time_one_is_refused_and_leaves_no_thread() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        results = await asyncio.gather(
            tasks.start(system, name="a", node="a"), tasks.start(system, name="b", node="b"), return_exceptions=True
        )
        assert sorted(type(each).__name__ for each in results) == ["AlreadyRunning", "TaskSupervisor"]
        assert len(own_threads()) == 1
        assert await tasks.run(double, 1) == 2


async def test_a_child_of_a_supervisor_cannot_be_started_elsewhere_too() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        await Supervisor.start(system, [tasks.child_spec()])
        with pytest.raises(AlreadyRunning, match="at 'supervisor/tasks'"):
            await tasks.start(system)
        async with ActorSystem() as other:
            with pytest.raises(ActorStartError, match="runs already"):
                await Supervisor.start(other, [tasks.child_spec()])


async def test_after_a_stop_it_starts_again_and_elsewhere() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        assert tasks.running
        await tasks.stop()
        assert not tasks.running
        await tasks.start(system, node="elsewhere")
        assert await tasks.run(thread_name) == "promptside-elsewhere"
        await tasks.stop()
    async with ActorSystem() as other:
        assert await (await tasks.start(other)).run(double, 2) == 4


async def test_a_node_of_its_own_ends_with_a_stop_and_with_a_start_that_fails() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system, node="mine")
        assert own_threads() == {"promptside-mine"}
        await tasks.stop()
        assert own_threads() == set()

        await system.with_options(name="tasks").spawn(Counter)
        with pytest.raises(NameTaken):
            await tasks.start(system, node="mine")
        with pytest.raises(NameTaken):
            await tasks.start(system)
        assert own_threads() == set()
        await tasks.start(system, name="other")
        assert (tasks.name, tasks.path) == ("other", "other")


async def test_a_start_under_another_name_that_fails_leaves_the_name_as_it_was() -> None:
    async with ActorSystem() as system:
        await system.with_options(name="taken").spawn(Counter)
        tasks = TaskSupervisor()
        with pytest.raises(NameTaken):
            await tasks.start(system, name="taken")
        assert tasks.name == "tasks"
        await tasks.start(system)


async def test_the_node_of_an_actor_that_crashed_ends_with_the_next_start() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system, node="first")
        tasks.ref.kill()
        await until(lambda: not tasks.running)
        await tasks.start(system, node="second")
        assert own_threads() == {"promptside-second"}
    assert own_threads() == set()


async def test_a_drain_lets_work_end_and_a_stop_without_it_does_not() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        go, begun = asyncio.Event(), asyncio.Event()

        async def work() -> str:
            begun.set()
            await go.wait()
            return "done"

        running = asyncio.create_task(tasks.run(work))
        await begun.wait()
        stopping = asyncio.create_task(tasks.stop(drain=60))
        await asyncio.sleep(0)
        go.set()
        assert await running == "done"
        await stopping


@pytest.mark.parametrize("drain", [-1, "5", float("nan")])
async def test_a_drain_that_is_no_number_of_seconds_is_named(drain: Any) -> None:
    with pytest.raises(ValueError, match=r"TaskSupervisor.stop: drain=.*: give seconds >= 0"):
        await TaskSupervisor().stop(drain=drain)


async def test_a_name_that_is_no_part_of_a_path_is_refused_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="TaskSupervisor: name='a/b': give a non-empty text without /"):
        TaskSupervisor("a/b")
    async with ActorSystem() as system:
        with pytest.raises(ValueError, match="name=''"):
            await TaskSupervisor().start(system, name="")
        assert str(system.tree()).count("\n") == 0


async def test_async_with_starts_it_in_a_system_of_its_own_and_ends_that() -> None:
    async with TaskSupervisor() as tasks:
        assert await tasks.run(double, 3) == 6
        with pytest.raises(AlreadyRunning):
            async with tasks:
                pass
        assert await tasks.run(double, 4) == 8
    assert not tasks.running


def test_with_starts_it_on_a_loop_in_a_thread_of_its_own_and_ends_that() -> None:
    with TaskSupervisor("script") as tasks:
        assert asyncio.run(tasks.run(thread_name)) == "promptside-script-portal"
    assert not tasks.running
    assert own_threads() == set()


def test_a_with_block_that_cannot_start_leaves_nothing_behind() -> None:
    class Broken(TaskSupervisor):
        def _make_actor(self) -> Any:
            return Unstartable()

    with pytest.raises(ActorStartError), Broken():
        pass
    assert own_threads() == set()


async def test_a_supervisor_has_a_handle_for_its_children() -> None:
    async with ActorSystem() as system:
        desk = await Supervisor.start(system, [ChildSpec("counter", Counter)], name="desk", strategy="one_for_all")
        assert await desk.child("counter").ask(Counter.add, 5) == 5
        assert [child.id for child in await desk.which_children()] == ["counter"]

        added = await desk.start_child(ChildSpec("second", Counter))
        assert desk.child("second") == added
        await desk.terminate_child("second")
        assert await desk.restart_child("second") == added
        await desk.terminate_child("second")
        await desk.delete_child("second")
        with pytest.raises(ChildNotFound, match="counter"):
            desk.child("second")
        assert (await desk.count_children()).active == 1


async def test_a_dynamic_supervisor_has_one_too() -> None:
    async with ActorSystem() as system:
        desk = await DynamicSupervisor.start(system, name="desk", max_children=2)
        ref = await desk.start_child(ChildSpec("counter", Counter))
        assert await ref.ask(Counter.add, 1) == 1
        await desk.terminate_child(ref)
        assert await desk.which_children() == []


async def test_a_supervisor_that_is_not_valid_is_refused_before_it_starts() -> None:
    async with ActorSystem() as system:
        with pytest.raises(InvalidChildSpec, match="strategy='all'"):
            await Supervisor.start(system, strategy="all")
        with pytest.raises(InvalidChildSpec, match="max_children=0"):
            await DynamicSupervisor.start(system, max_children=0)
        assert str(system.tree()).count("\n") == 0


def test_in_virtual_time_a_node_of_its_own_is_the_callers_loop() -> None:
    async def main() -> str:
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system, node="elsewhere")
            name = await tasks.run(thread_name)
            await tasks.stop()
            assert await (await tasks.start(system)).run(double, 1) == 2
            return name

    assert run_virtual(main()) == threading.current_thread().name


# -- starts, stops and restarts that overlap ---------------------------------------------------------------------------


async def test_a_handle_that_waits_for_its_restart_cannot_be_started_elsewhere() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        spec = tasks.child_spec(backoff=Backoff(initial=60, maximum=60, jitter=0))
        await Supervisor.start(system, [spec])
        tasks.ref.kill()
        await until(lambda: not tasks.running)
        assert tasks.started
        assert repr(tasks) == "<TaskSupervisor tasks restarting>"
        with pytest.raises(AlreadyRunning):
            await tasks.start(system, name="elsewhere")


async def test_a_start_that_overlaps_one_in_a_tree_is_refused() -> None:
    async with ActorSystem() as system:
        slow = SlowHandle()
        starting = asyncio.create_task(Supervisor.start(system, [slow.child_spec()]))
        await slow.begun.wait()
        with pytest.raises(AlreadyRunning, match="at 'supervisor/slow'"):
            await slow.start(system, name="elsewhere")
        slow.gate.set()
        await starting
        assert await slow.ref.ask(Slow.answer) == "here"


@pytest.mark.parametrize("node", [None, "own"])
async def test_a_stop_ends_a_start_that_is_under_way(node: str | None) -> None:
    async with ActorSystem() as system:
        slow = SlowHandle()
        starting = asyncio.create_task(slow.start(system, node=node))
        await (asyncio.sleep(0) if node else slow.begun.wait())
        await slow.stop()
        with pytest.raises(ActorStartError):
            await starting
        assert not slow.started
        assert own_threads() == set()


async def test_a_start_that_was_stopped_before_its_node_ran_ends_and_can_be_repeated() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        starting = asyncio.create_task(tasks.start(system, node="own"))
        await asyncio.sleep(0)
        await tasks.stop()
        with pytest.raises(ActorStartError, match="stopped during its start"):
            await starting
        assert not tasks.started
        assert own_threads() == set()
        assert (await tasks.start(system)).running


async def test_a_start_that_was_stopped_does_not_keep_a_supervisor_from_starting_it() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        starting = asyncio.create_task(tasks.start(system, node="own"))
        await asyncio.sleep(0)
        await tasks.stop()
        with pytest.raises(ActorStartError):
            await starting
        await Supervisor.start(system, [tasks.child_spec()])
        assert await tasks.run(double, 2) == 4


@pytest.mark.parametrize("restart", ["transient", "temporary"])
async def test_a_stop_calls_off_a_restart_that_is_due(restart: Any) -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        backoff = Backoff(initial=0.2, maximum=0.2, jitter=0)
        desk = await Supervisor.start(system, [tasks.child_spec(restart=restart, backoff=backoff)])
        tasks.ref.kill()
        await until(lambda: not tasks.running)
        await tasks.stop()
        assert not tasks.started
        assert [child.state for child in await desk.which_children()] in ([], ["stopped"])
        assert (await tasks.start(system)).running


async def test_a_stop_of_a_child_that_starts_again_calls_the_restart_off() -> None:
    async with ActorSystem() as system:
        slow = SlowHandle()
        slow.gate.set()
        desk = await Supervisor.start(system, [slow.child_spec(restart="transient")])
        slow.gate.clear()
        slow.begun.clear()
        slow.ref.kill()
        await slow.begun.wait()
        await slow.stop()
        assert not slow.started
        assert [child.state for child in await desk.which_children()] == ["stopped"]


async def test_a_permanent_child_that_is_stopped_is_started_again() -> None:
    async with ActorSystem() as system:
        tasks = TaskSupervisor()
        await Supervisor.start(system, [tasks.child_spec()])
        await tasks.stop()
        await until(lambda: tasks.running)
        assert tasks.ref.incarnation == 2


# -- names, nodes, copies ----------------------------------------------------------------------------------------------


async def test_another_name_holds_for_one_start() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system, name="other")
        assert tasks.name == "other"
        await tasks.stop()
        assert (await tasks.start(system)).name == "tasks"


@pytest.mark.parametrize("node", [5, "", "a/b", []])
async def test_a_node_that_is_none_is_refused_by_name(node: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(
            ValueError, match=r"TaskSupervisor: node=.*: give a node of this system, or a non-empty text"
        ):
            await TaskSupervisor().start(system, node=node)


async def test_a_node_of_another_system_is_refused() -> None:
    async with ActorSystem() as system, ActorSystem() as other:
        with pytest.raises(ValueError, match="give a node of this system"):
            await TaskSupervisor().start(system, node=other.home)
        with pytest.raises(ValueError, match="TaskSupervisor: system=None: give the ActorSystem"):
            await TaskSupervisor().start(None)  # type: ignore[arg-type]


async def test_a_copy_of_a_handle_or_a_reference_is_the_same_one_and_neither_can_be_pickled() -> None:
    @dataclasses.dataclass
    class Record:
        one: object
        several: list[object]

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        for each in (tasks, tasks.ref):
            assert copy.copy(each) == each
            assert copy.deepcopy([each]) == [each]
            assert dataclasses.asdict(Record(each, [each])) == {"one": each, "several": [each]}
            assert each in weakref.WeakSet([each])
            with pytest.raises(TypeError, match="belongs to its process and cannot be pickled"):
                pickle.dumps(each)


async def test_with_works_where_a_loop_runs_as_in_a_notebook() -> None:
    with TaskSupervisor("cell") as tasks:
        assert await tasks.run(thread_name) == "promptside-cell-portal"
    assert own_threads() == set()


def test_an_exit_without_an_enter_says_so() -> None:
    with pytest.raises(RuntimeError, match="was not entered by `with`"):
        TaskSupervisor().__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="was not entered by `async with`"):
        asyncio.run(TaskSupervisor().__aexit__(None, None, None))
