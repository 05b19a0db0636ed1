"""`TaskSupervisor`: one function at a time; its life, its bound, and every way in which a task can end."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio.to_thread
import pytest

from promptside import (
    Actor,
    ActorRef,
    ActorStopped,
    ActorSystem,
    AlreadyRunning,
    AskCycleError,
    AskTimeout,
    Down,
    MaxChildrenReached,
    NotStarted,
    Supervisor,
)
from promptside.actors import State
from promptside.supervision.tasks.supervisor import TaskSupervisor
from promptside.testing import run_virtual
from tests.support.actors import Boom, Gate, Worker, hear, outcome, started, turns, until

TOPIC: contextvars.ContextVar[str] = contextvars.ContextVar("topic", default="none")


async def double(number: int) -> int:
    return 2 * number


async def fail(error: BaseException) -> None:
    raise error


async def stubborn(gate: Gate) -> None:
    """Takes no notice of its cancellation."""
    gate.entered.set()
    while not gate.open.is_set():
        try:
            await gate.open.wait()
        except asyncio.CancelledError:
            gate.outcome = "cancelled"


async def unwind(gate: Gate, undone: asyncio.Event) -> None:
    """Takes until `undone` to end after its cancellation."""
    try:
        await gate.walk()
    finally:
        await undone.wait()


def names(system: ActorSystem) -> list[str]:
    """Of the tasks in the tree."""
    return [child.name for child in system.tree().children[0].children]


async def busy(tasks: TaskSupervisor) -> tuple[Gate, asyncio.Task[str]]:
    gate = Gate()
    running = asyncio.ensure_future(tasks.run(gate.walk))
    await gate.entered.wait()
    return gate, running


async def elsewhere(work: Callable[[], Awaitable[Any]]) -> Any:
    """Await `work` on an event loop in a thread of its own."""

    async def main() -> Any:
        return await work()

    return await asyncio.to_thread(lambda: asyncio.run(main()))


# -- run -----------------------------------------------------------------------------------------------------------


async def test_run_returns_what_the_function_returns() -> None:
    async def join(*parts: str, by: str) -> str:
        return by.join(parts)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        assert await tasks.run(join, "a", "b", by="-") == "a-b"


async def test_run_raises_the_functions_own_exception_and_that_is_no_crash() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        crashes, boom = hear(system.events, "actor.crashed"), Boom()
        with pytest.raises(Boom) as raised:
            await tasks.run(fail, boom)
        assert raised.value is boom
        assert await tasks.run(double, 2) == 4
    assert crashes == []


async def test_a_task_stands_in_the_tree_while_it_runs() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor("jobs").start(system)
        gate, running = await busy(tasks)
        assert names(system) == ["walk-1"]
        second = await started(tasks.run(functools.partial(double, 1)))
        assert await second == 2
        gate.open.set()
        assert await running == "passed"
        assert names(system) == []
        assert system.whereis("jobs").info().state is State.RUNNING


async def test_a_task_is_gone_when_run_returns_or_raises() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=1).start(system)
        for _ in range(20):
            await tasks.run(double, 1)
            assert names(system) == []
            with pytest.raises(Boom):
                await tasks.run(fail, Boom())
            assert names(system) == []


async def test_a_task_sees_the_callers_context_variables_and_changes_only_its_own() -> None:
    async def read_and_set() -> str:
        before = TOPIC.get()
        TOPIC.set("changed")
        return before

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        TOPIC.set("theatre")
        assert await tasks.run(read_and_set) == "theatre"
        assert TOPIC.get() == "theatre"


async def test_cancelling_the_caller_cancels_the_task_and_waits_until_it_has_unwound() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        gate, undone = Gate(), asyncio.Event()
        caller = asyncio.ensure_future(tasks.run(unwind, gate, undone))
        await gate.entered.wait()
        caller.cancel()
        await turns()
        assert gate.outcome == "cancelled"
        assert not caller.done()
        undone.set()
        assert isinstance(await outcome(caller), asyncio.CancelledError)
        assert names(system) == []
        assert await tasks.run(double, 1) == 2


async def test_a_caller_that_is_cancelled_before_the_first_step_leaves_nothing() -> None:
    gate = Gate()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        caller = asyncio.ensure_future(tasks.run(gate.walk))
        await asyncio.sleep(0)
        assert names(system) == ["walk-1"]
        caller.cancel()
        assert isinstance(await outcome(caller), asyncio.CancelledError)
        assert names(system) == []
    assert not gate.entered.is_set()


def test_a_task_that_swallows_its_cancellation_holds_its_caller_for_shutdown_and_the_grace_of_a_kill() -> None:
    async def main() -> None:
        gate, loop = Gate(), asyncio.get_running_loop()
        async with ActorSystem() as system:
            tasks = await TaskSupervisor(shutdown=3.0).start(system)
            caller = asyncio.ensure_future(tasks.run(stubborn, gate))
            await gate.entered.wait()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert loop.time() == 4.0
            assert gate.outcome == "cancelled"
            gate.open.set()

    run_virtual(main())


async def test_a_kill_of_one_task_harms_no_other() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        (gate, running), (_, victim) = await busy(tasks), await busy(tasks)
        system.whereis("tasks")._cell.children["walk-2"].ref.kill()
        error = await outcome(victim)
        assert isinstance(error, ActorStopped)
        assert (error.reason, error.started, error.path) == ("killed", True, "tasks/walk-2")
        gate.open.set()
        assert await running == "passed"


async def test_a_function_that_is_not_async_is_refused_before_it_is_called() -> None:
    called = []

    def sync(number: int) -> int:
        called.append(number)
        return number

    class Program:
        def __call__(self, number: int) -> int:
            called.append(number)
            return number

        async def acall(self, number: int) -> int:
            return number

    class AsyncProgram:
        async def __call__(self, number: int) -> int:
            return number

    async def each() -> AsyncIterator[int]:
        yield 1

    @functools.wraps(double)
    def wrapper(number: int) -> Any:
        return double(number)

    async with ActorSystem() as system:
        tasks: Any = await TaskSupervisor().start(system)
        message = r"not an async function.*functools.partial\(anyio.to_thread.run_sync, fn\)"
        for wrong in (sync, functools.partial(sync, 1), Program(), len, each, int):
            with pytest.raises(TypeError, match=message):
                await tasks.run(wrong)
            with pytest.raises(TypeError, match=message):
                tasks.start_soon(wrong)
            with pytest.raises(TypeError, match=message):
                tasks.map(wrong, [1])
        with pytest.raises(TypeError, match=r"run\(fetch, url\)"):
            await tasks.run(double(1))
        with pytest.raises(TypeError, match="5 is not a function"):
            await tasks.run(5)
        with pytest.raises(TypeError, match="not an async function"):
            await tasks.run(lambda: 1)
        assert called == []
        for right in (double, wrapper, AsyncProgram(), Program().acall, lambda number: double(number)):
            assert await tasks.run(functools.partial(right, 3)) in (3, 6)
        assert await tasks.run(functools.partial(anyio.to_thread.run_sync, sync), 5) == 5
        assert called == [5]


async def test_beyond_max_tasks_a_task_is_refused_until_another_has_ended() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=2).start(system)
        (gate, one), (other_gate, two) = await busy(tasks), await busy(tasks)
        with pytest.raises(MaxChildrenReached) as raised:
            await tasks.run(double, 1)
        assert (raised.value.path, raised.value.max_children) == ("tasks", 2)
        with pytest.raises(MaxChildrenReached):
            tasks.start_soon(double, 1)
        gate.open.set()
        await one
        assert await tasks.run(double, 1) == 2
        other_gate.open.set()
        await two


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": ""}, "name=''"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"max_tasks": 0}, "max_tasks=0"),
        ({"max_tasks": 1.5}, "max_tasks=1.5"),
        ({"max_tasks": True}, "max_tasks=True"),
        ({"shutdown": True}, "shutdown=True"),
        ({"shutdown": -1}, "shutdown=-1"),
        ({"shutdown": math.nan}, "shutdown=nan"),
    ],
)
def test_a_setting_that_is_not_valid_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSupervisor(**settings)


# -- in handlers ---------------------------------------------------------------------------------------------------


def test_a_task_inherits_the_deadline_of_the_message_being_handled() -> None:
    async def main() -> None:
        gate = Gate()
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system)
            worker = await system.spawn(Worker)
            with pytest.raises(AskTimeout):
                await worker.with_options(timeout=2.0).ask(Worker.call, lambda _: tasks.run(gate.walk))
            await turns()
            assert gate.outcome == "cancelled"
            assert asyncio.get_running_loop().time() == 2.0
            assert names(system) == []

    run_virtual(main())


async def test_a_task_whose_deadline_has_passed_before_it_begins_is_not_run_and_leaves_no_actor() -> None:
    gate = Gate()

    async def too_late(_: Worker) -> None:
        try:
            await asyncio.Event().wait()
        finally:  # the message has timed out
            with pytest.raises(AskTimeout) as raised:
                await tasks.run(gate.walk)
            assert not raised.value.started
            late.set()

    late = asyncio.Event()
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        worker = await system.spawn(Worker)
        with pytest.raises(AskTimeout):
            await worker.with_options(timeout=0.01).ask(Worker.call, too_late)
        await asyncio.wait_for(late.wait(), 5)
        await until(lambda: names(system) == [])
    assert not gate.entered.is_set()


async def test_a_task_that_asks_the_actor_which_waits_for_it_is_told_of_the_cycle() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        worker = await system.spawn(Worker)

        async def through_a_task(_: Worker) -> None:
            await tasks.run(worker.ask, Worker.add, 1)

        with pytest.raises(AskCycleError) as raised:
            await worker.ask(Worker.call, through_a_task)
        assert "tasks/ask-1" in raised.value.cycle


def test_a_background_task_outlives_the_message_that_started_it_and_its_deadline() -> None:
    async def main() -> None:
        gate = Gate()
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system)
            worker = await system.spawn(Worker)

            async def start(_: Worker) -> ActorRef[Actor]:
                return tasks.start_soon(gate.walk)

            task = await worker.with_options(timeout=2.0).ask(Worker.call, start)
            await asyncio.sleep(3.0)
            gate.open.set()
            await until(lambda: task.info().state is State.STOPPED)
        assert gate.outcome == "passed"

    run_virtual(main())


# -- start_soon ----------------------------------------------------------------------------------------------------


async def test_an_exception_in_a_background_task_is_a_crash_of_that_task_alone() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        crashes = hear(system.events, "actor.crashed")
        gate, running = await busy(tasks)
        ref = tasks.start_soon(fail, Boom("it broke"))
        await until(lambda: ref.info().state is State.STOPPED)
        assert [(crash.source, crash.data["error"], crash.data["message"]) for crash in crashes] == [
            ("tasks/fail-2", "Boom", "it broke")
        ]
        assert names(system) == ["walk-1"]
        gate.open.set()
        assert await running == "passed"


async def test_an_unheard_crash_of_a_background_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        ref = tasks.start_soon(fail, Boom("it broke"))
        await until(lambda: ref.info().state is State.STOPPED)
    assert [record.levelname for record in caplog.records if "it broke" in record.getMessage()] == ["ERROR"]


async def test_a_background_task_can_be_watched_stopped_and_killed() -> None:
    class Watcher(Actor):
        def __init__(self) -> None:
            self.down: list[object] = []

        async def watch(self, ref: ActorRef[Any]) -> None:
            self.monitor(ref)

        async def receive(self, message: object) -> None:
            assert isinstance(message, Down)
            self.down.append(message.reason)

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        watcher = await system.spawn(Watcher)
        gates = [Gate() for _ in range(3)]
        finished, stopped, killed = [tasks.start_soon(gate.walk) for gate in gates]
        for ref, gate in zip((finished, stopped, killed), gates, strict=True):
            await watcher.ask(Watcher.watch, ref)
            await gate.entered.wait()
        gates[0].open.set()
        await until(lambda: finished.info().state is State.STOPPED)
        await stopped.stop("enough")
        killed.kill()
        await until(lambda: killed.info().state is State.STOPPED)
        instance = watcher._cell.instance
        assert isinstance(instance, Watcher)
        await until(lambda: instance.down == ["normal", "enough", "killed"])
        assert [gate.outcome for gate in gates] == ["passed", "cancelled", "cancelled"]
        assert names(system) == []


# -- from elsewhere ------------------------------------------------------------------------------------------------


async def test_run_from_another_event_loop_runs_the_function_on_the_supervisors_own() -> None:
    timeout = TimeoutError("the function's own")

    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        home = threading.get_ident()

        async def where() -> int:
            return threading.get_ident()

        async def work() -> tuple[int, int, BaseException]:
            with pytest.raises(TimeoutError) as raised:
                await tasks.run(fail, timeout)
            return threading.get_ident(), await tasks.run(where), raised.value

        there, ran, error = await elsewhere(work)
        assert there != home
        assert ran == home
        assert error is timeout


async def test_a_caller_on_another_event_loop_that_is_cancelled_has_its_task_unwound() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        gate = Gate()

        async def work() -> str:
            caller = asyncio.ensure_future(tasks.run(gate.walk))
            await until(gate.entered.is_set)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            return gate.outcome

        assert await elsewhere(work) == "cancelled"
        assert names(system) == []


async def test_what_a_thread_starts_runs_and_what_cannot_be_started_is_a_dead_letter() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor(max_tasks=1).start(system)
        dead, gate = hear(system.events, "message.dead"), Gate()
        ref = await asyncio.to_thread(tasks.start_soon, gate.walk)
        await gate.entered.wait()
        refused = await asyncio.to_thread(tasks.start_soon, double, 1)
        await until(lambda: dead)
        assert dead[0].source == refused.path == "tasks/double-2"
        assert "max_children" in dead[0].data["reason"]
        assert refused.info().state is State.STOPPED
        gate.open.set()
        await until(lambda: ref.info().state is State.STOPPED)
        assert gate.outcome == "passed"


async def test_after_the_system_has_closed_a_thread_is_told_so() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)

    async def work() -> BaseException:
        with pytest.raises(ActorStopped) as raised:
            await tasks.run(double, 1)
        return raised.value

    error = await elsewhere(work)
    assert not error.started


def test_after_the_event_loop_was_closed_under_its_system_as_well() -> None:
    async def main() -> TaskSupervisor:
        system = await ActorSystem().__aenter__()
        return await TaskSupervisor().start(system)

    async def later(tasks: TaskSupervisor) -> None:
        text = r"stopped \(its event loop is closed\) before it handled the message; nothing was done$"
        with pytest.raises(ActorStopped, match=text):
            await tasks.run(double, 1)
        with pytest.raises(ActorStopped, match="event loop is closed"):
            await anext(tasks.map(double, [1]))
        with pytest.raises(ActorStopped, match="event loop is closed"):
            tasks.start_soon(double, 1)

    tasks = asyncio.run(main())
    asyncio.run(later(tasks))


# -- life ----------------------------------------------------------------------------------------------------------


async def test_before_its_start_and_after_its_stop_every_use_fails_at_once() -> None:
    tasks = TaskSupervisor()
    await tasks.stop()
    with pytest.raises(NotStarted, match="'tasks' is not started"):
        await tasks.run(double, 1)
    with pytest.raises(NotStarted):
        tasks.start_soon(double, 1)
    async with ActorSystem() as system:
        await tasks.start(system)
        await tasks.stop()
        await tasks.stop()
        with pytest.raises(ActorStopped) as raised:
            await tasks.run(double, 1)
        assert (raised.value.reason, raised.value.started) == ("shutdown", False)
        with pytest.raises(ActorStopped):
            tasks.start_soon(double, 1)
        await tasks.start(system)
        assert await tasks.run(double, 1) == 2


async def test_one_that_runs_is_not_started_a_second_time() -> None:
    async with ActorSystem() as system, ActorSystem() as other:
        tasks = await TaskSupervisor().start(system)
        with pytest.raises(AlreadyRunning, match="runs already"):
            await tasks.start(other)
        assert await tasks.run(double, 1) == 2


async def test_stop_cancels_the_tasks_and_no_crash_is_reported() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        crashes = hear(system.events, "actor.crashed")
        gate, running = await busy(tasks)
        background = Gate()
        ref = tasks.start_soon(background.walk)
        await background.entered.wait()
        await tasks.stop()
        error = await outcome(running)
        assert isinstance(error, ActorStopped)
        assert (error.reason, error.started) == ("shutdown", True)
        assert (gate.outcome, background.outcome) == ("cancelled", "cancelled")
        assert ref.info().state is State.STOPPED
        assert crashes == []
        assert system.tree().children == ()


async def test_a_task_can_stop_its_supervisor() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        _, running = await busy(tasks)
        await tasks.run(tasks.stop)  # does not wait for itself
        assert isinstance(await outcome(running), ActorStopped)
        await until(lambda: system.tree().children == ())


async def test_a_drain_lets_tasks_finish_and_takes_no_more() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        gate, running = await busy(tasks)
        stop = await started(tasks.stop(drain=math.inf))
        with pytest.raises(ActorStopped):
            await tasks.run(double, 1)
        assert not stop.done()
        gate.open.set()
        assert await running == "passed"
        await stop


def test_a_second_stop_cuts_the_drain_short() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            tasks = await TaskSupervisor(shutdown=3.0).start(system)
            gate, running = await busy(tasks)
            drain = await started(tasks.stop(drain=math.inf))
            await tasks.stop()
            await drain
            assert asyncio.get_running_loop().time() <= 3.0
            assert gate.outcome == "cancelled"
            assert isinstance(await outcome(running), ActorStopped)

    run_virtual(main())


async def test_a_caller_that_is_cancelled_during_a_drain_has_its_task_cancelled() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        gate, running = await busy(tasks)
        stop = await started(tasks.stop(drain=math.inf))
        running.cancel()
        await asyncio.wait_for(stop, 5)
        assert isinstance(await outcome(running), asyncio.CancelledError)
        assert gate.outcome == "cancelled"


def test_what_has_not_finished_at_the_end_of_a_drain_is_killed() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            tasks = await TaskSupervisor().start(system)
            crashes = hear(system.events, "actor.crashed")
            calls = [await busy(tasks) for _ in range(3)]
            await tasks.stop(drain=7.0)
            assert asyncio.get_running_loop().time() == 7.0
            assert [gate.outcome for gate, _ in calls] == ["cancelled"] * 3
            assert {type(await outcome(call)) for _, call in calls} == {ActorStopped}
            assert {crash.source for crash in crashes} >= {f"tasks/walk-{number}" for number in (1, 2, 3)}

    run_virtual(main())


async def test_a_drain_of_less_than_no_time_is_refused() -> None:
    with pytest.raises(ValueError, match="drain=-1"):
        await TaskSupervisor().stop(drain=-1)


async def test_a_drain_of_the_system_lets_tasks_finish() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        gate, running = await busy(tasks)
        drain = await started(system.drain(math.inf))
        assert not drain.done()
        gate.open.set()
        assert await running == "passed"
        await drain


def test_many_stubborn_tasks_end_with_their_system_at_the_same_time() -> None:
    async def main() -> None:
        gates = [Gate() for _ in range(10)]
        loop = asyncio.get_running_loop()
        async with ActorSystem() as system:
            tasks = await TaskSupervisor(shutdown=3.0).start(system)
            for gate in gates:
                tasks.start_soon(stubborn, gate)
                await gate.entered.wait()
            loop.call_later(4.5, lambda: [gate.open.set() for gate in gates])
        assert loop.time() == 4.5
        assert {gate.outcome for gate in gates} == {"cancelled"}
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_virtual(main())


async def test_a_kill_of_the_supervisor_ends_every_task() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        calls = [await busy(tasks) for _ in range(3)]
        system.whereis("tasks").kill()
        for gate, call in calls:
            error = await outcome(call)
            assert isinstance(error, ActorStopped)
            assert gate.outcome == "cancelled"
        await until(lambda: system.tree().children == ())


async def test_a_plain_message_is_a_dead_letter_and_harms_nothing() -> None:
    async with ActorSystem() as system:
        tasks = await TaskSupervisor().start(system)
        dead = hear(system.events, "message.dead")
        system.whereis("tasks").send_message("what is this")
        await until(lambda: dead)
        assert await tasks.run(double, 1) == 2


async def test_under_a_supervisor_it_is_restarted_and_the_handle_stays_good() -> None:
    tasks = TaskSupervisor()
    async with ActorSystem() as system:
        await system.spawn(Supervisor, [tasks.child_spec()])
        gate, running = await busy(tasks)
        ref, before = system.whereis("tasks"), tasks._live
        ref.kill()
        assert isinstance(await outcome(running), ActorStopped)
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        assert gate.outcome == "cancelled"
        assert await tasks.run(double, 1) == 2
        assert ref.info().children == ()
        assert before is not None
        assert not before.accepts()  # what still holds the incarnation before cannot add to this one


async def test_while_it_is_restarted_a_task_is_refused_and_safe_to_retry() -> None:
    tasks = TaskSupervisor()
    async with ActorSystem() as system:
        await system.spawn(Supervisor, [tasks.child_spec()])
        ref = system.whereis("tasks")
        ref.kill()
        with pytest.raises(ActorStopped) as raised:
            await tasks.run(double, 1)
        assert not raised.value.started
        assert raised.value.retry_after is not None


async def test_it_can_live_on_a_node_of_its_own() -> None:
    tasks = TaskSupervisor()

    async def where() -> str:
        return threading.current_thread().name

    async with ActorSystem() as system:
        await system.spawn(Supervisor, [tasks.child_spec(node="jobs")])
        assert await tasks.run(where) == "promptside-jobs"
        ref = tasks.start_soon(asyncio.sleep, 60)
        await until(lambda: ref.info().state is State.RUNNING)
        assert ref.info().path in system.whereis("tasks").info().children
    assert ref.info().state is State.STOPPED
