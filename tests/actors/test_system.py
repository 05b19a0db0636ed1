"""The system: what it needs, and that nothing of it is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from promptside.actors import ActorRef, ActorSystem, Portal, State
from promptside.actors.tree import TreeNode
from promptside.errors import ActorStopped
from tests.support.actors import Boom, Gate, Worker, busy, outcome, started, turns


def tasks_left() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def timers_left() -> list[str]:
    loop: Any = asyncio.get_running_loop()
    return [repr(handle) for handle in loop._scheduled if not handle.cancelled() and "promptside" in repr(handle)]


class Family(Worker):
    async def bear(self, number: int) -> list[ActorRef[Worker]]:
        return [await self.spawn(Worker) for _ in range(number)]


async def test_nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    threads = threading.active_count()
    before = tasks_left()
    async with ActorSystem() as system:
        node = await system.start_node("far")
        refs = [await system.spawn(Family, shutdown) for shutdown in range(3)]
        far = await system.with_options(node=node).spawn(Family)
        children = await refs[0].ask(Family.bear, 5)
        await far.ask(Family.bear, 5)
        asked = [await started(child.ask(Worker.hold, Gate())) for child in children]
        for ref in (*refs, far):
            ref.tell(Worker.add, 1)
        children[0].kill()
        children[1].tell(Worker.fail, Boom())
        for task in asked:
            task.cancel()
    await asyncio.wait(asked)
    assert tasks_left() - set(asked) == before
    assert timers_left() == []
    assert threading.active_count() == threads
    assert all(ref.info().state is State.STOPPED for ref in (*refs, far, *children))
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_actors_are_stopped_in_reverse_order_of_their_start() -> None:
    log: list[str] = []

    class Leaving(Worker):
        async def on_stop(self, reason: object) -> None:
            log.append(f"{self.ref.name} {reason}")

    async with ActorSystem() as system:
        for name in ("first", "second", "third"):
            await system.with_options(name=name).spawn(Leaving)
    assert log == ["third shutdown", "second shutdown", "first shutdown"]


async def test_asks_under_way_when_the_system_closes_have_an_outcome() -> None:
    class Short(Worker, shutdown=0.02): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Short)
        _, held = await busy(ref)
        queued = await started(ref.ask(Worker.add, 1))
    for task, began in ((held, True), (queued, False)):
        error = await outcome(task)
        assert isinstance(error, ActorStopped)
        assert error.started is began


async def test_an_exception_in_the_block_closes_the_system_and_goes_on() -> None:
    with pytest.raises(Boom):
        async with ActorSystem() as system:
            ref = await system.spawn(Worker)
            await ref.ask(Worker.add, 1)
            raise Boom
    assert ref.info().state is State.STOPPED
    assert tasks_left() == set()


async def test_a_cancellation_of_the_block_closes_the_system_to_its_end() -> None:
    log: list[str] = []

    class Leaving(Worker):
        async def on_stop(self, reason: object) -> None:
            await turns(5)
            log.append("left")

    async def application() -> None:
        async with ActorSystem() as system:
            await system.spawn(Leaving)
            await asyncio.Event().wait()

    running = await started(application())
    running.cancel()
    await turns(2)
    running.cancel()
    assert isinstance(await outcome(running), asyncio.CancelledError)
    assert log == ["left"]
    assert tasks_left() == set()


async def test_a_spawn_outside_the_block_is_an_error_that_says_so() -> None:
    system = ActorSystem()
    for use in (system.spawn(Worker), system.start_node("far")):
        result = await outcome(asyncio.ensure_future(use))
        assert isinstance(result, RuntimeError)
        assert "async with ActorSystem()" in str(result)
    async with system:
        pass
    result = await outcome(asyncio.ensure_future(system.spawn(Worker)))
    assert isinstance(result, RuntimeError | ActorStopped), "an actor of a system that has closed is never stopped"
    with pytest.raises(RuntimeError, match="new ActorSystem"):
        await system.__aenter__()
    result = await outcome(asyncio.ensure_future(system.start_node("late")))
    try:
        assert isinstance(result, RuntimeError), "a thread of a system that has closed is never joined"
    finally:
        if not isinstance(result, Exception):
            await result.stop()


async def test_an_actor_spawned_while_the_system_closes_is_refused_or_stopped() -> None:
    born: list[ActorRef[Worker]] = []

    class Bearing(Worker):
        async def on_stop(self, reason: object) -> None:
            try:
                born.append(await self.system.spawn(Worker))
            except Exception:
                return
            await born[0].ask(Worker.add, 1)

    async with ActorSystem() as system:
        await system.spawn(Bearing)
    assert all(ref.info().state is State.STOPPED for ref in born)
    assert tasks_left() == set()


async def test_a_handler_that_ignores_its_cancellation_does_not_keep_the_system_open_for_ever(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("promptside.actors.lifecycle.KILL_GRACE", 0.02)
    monkeypatch.setattr("promptside.actors.system.ABANDONED_GRACE", 0.02)
    go = asyncio.Event()

    class Stubborn(Worker, shutdown=0.02): ...

    async def ignore(actor: Worker) -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    async with asyncio.timeout(5):
        async with ActorSystem() as system:
            ref = await system.spawn(Stubborn)
            asked = await started(ref.ask(Worker.call, ignore))
    assert isinstance(await outcome(asked), ActorStopped)
    assert ref.info().state is State.STOPPED
    assert any(record.levelno == logging.ERROR and ref.path in record.getMessage() for record in caplog.records)
    go.set()
    await turns()
    assert tasks_left() == set()


async def test_two_systems_in_one_loop_know_nothing_of_each_other() -> None:
    async with ActorSystem("one") as one, ActorSystem("two") as two:
        first = await one.with_options(name="desk").spawn(Worker, 1)
        second = await two.with_options(name="desk").spawn(Worker, 2)
        assert await first.ask(Worker.add, 0) == 1
        assert await second.ask(Worker.add, 0) == 2
        assert first != second


async def test_an_ended_actor_is_collected() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.ask(Worker.add, 1)
        _, held = await busy(ref)
        instance = weakref.ref(ref._cell.instance)
        ref.kill()
        await outcome(held)
        del held, _
        await turns()
        gc.collect()
        assert instance() is None


def test_asyncio_run_that_ends_early_leaves_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Somebody forgot `async with`: the loop cancels what is left."""

    async def forgetful() -> None:
        system = ActorSystem()
        await system.__aenter__()
        ref = await system.spawn(Worker)
        await ref.ask(Worker.add, 1)
        other = await system.spawn(Worker)
        other.tell(Worker.hold, Gate())
        await turns()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(forgetful())
        gc.collect()
    assert caught == []
    assert [record for record in caplog.records if record.name == "asyncio"] == []


def test_actors_work_on_a_loop_in_debug_mode() -> None:
    async def use() -> int:
        async with ActorSystem() as system:
            ref = await system.spawn(Worker)
            _, held = await busy(ref)
            held.cancel()
            await outcome(held)
            return await ref.ask(Worker.add, 1)

    assert asyncio.run(use(), debug=True) == 1


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
@pytest.mark.parametrize("concurrency", [1, 3])
async def test_actors_work_on_a_loop_with_eager_tasks(concurrency: int) -> None:
    class Some(Worker, max_concurrency=concurrency): ...

    loop = asyncio.get_running_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    try:
        async with asyncio.timeout(5):
            async with ActorSystem() as system:
                ref = await system.spawn(Some)
                assert await ref.ask(Worker.add, 1) == 1
                gate, held = await busy(ref)
                assert "hold" in ref.info().current
                gate.open.set()
                assert await held == "passed"
                _, held = await busy(ref)
                held.cancel()
                await outcome(held)
                assert [item async for item in ref.stream(Worker.count_to, 100)] == list(range(1, 101))
                assert await ref.ask(Worker.add, 1) == 2
                with pytest.raises(Boom):
                    await ref.ask(Worker.fail, Boom())
    finally:
        loop.set_task_factory(None)
    assert tasks_left() == set()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (250.0, "4 min 10 s"), (11_100.0, "3 h 5 min"), (1_062_000.0, "12 d 7 h")],
)
def test_the_tree_tells_uptimes_as_a_person_would(seconds: float, text: str) -> None:
    node = TreeNode(
        name="a", kind="A", state="running", restarts=0, mailbox=0, uptime=seconds, node="home", children=()
    )
    assert str(node) == f"a  [A]  running, up {text}"


async def test_a_system_says_what_it_is() -> None:
    system = ActorSystem("desk")
    assert repr(system) == "<ActorSystem desk not started>"
    async with system:
        assert repr(system) == "<ActorSystem desk running>"
    assert repr(system) == "<ActorSystem desk closed>"


@pytest.mark.parametrize("wrong", [None, "a path", 5])
async def test_what_is_no_actor_or_one_of_another_system_is_refused(wrong: Any) -> None:
    async with ActorSystem() as system, ActorSystem() as other:
        foreign = await other.spawn(Worker)
        for ref in (wrong, foreign):
            with pytest.raises(ValueError, match=r"join: ref=.*: give the reference of an actor of this system"):
                system.join("group", ref)
        for parent in (foreign, wrong or 0):
            with pytest.raises(ValueError, match=r"with_options: parent=.*: give the reference"):
                system.with_options(parent=parent)
        with pytest.raises(ValueError, match=r"with_options: node="):
            system.with_options(node=wrong or 0)
        assert system.members("group") == ()


WRONG: dict[str, Callable[[ActorSystem, Any], object]] = {
    "ActorSystem: name=": lambda _, wrong: ActorSystem(wrong),
    "Portal: system=": lambda _, wrong: Portal(wrong),
    "start_node: name=": lambda system, wrong: system.start_node(wrong),
    "stop_node: node=": lambda system, wrong: system.stop_node(wrong),
    "whereis: name=": lambda system, wrong: system.whereis(wrong),
    "leave: group=": lambda system, wrong: system.leave(wrong, wrong),
    "leave: ref=": lambda system, wrong: system.leave("group", wrong),
    "members: group=": lambda system, wrong: system.members(wrong),
}


@pytest.mark.parametrize("wrong", [None, 5, []], ids=repr)
@pytest.mark.parametrize("message", WRONG)
async def test_what_is_no_name_or_part_of_the_system_is_named_in_the_error(message: str, wrong: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(ValueError, match=f"^{message}{re.escape(repr(wrong))}: give "):
            await WRONG[message](system, wrong)
