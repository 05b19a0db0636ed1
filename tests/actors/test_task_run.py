"""`actors.task_run`: an ask whose message is handled in the asker's own task, beside `ActorRef.ask`.

Whatever happens to it, the asker, the actor and its counts are told the same in both ways.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, State
from promptside.actors.spi import ask_in_task, cell_of
from promptside.errors import ActorStopped, AskTimeout
from promptside.events import Event
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Gate, outcome, turns, until

SEEN: ContextVar[str] = ContextVar("SEEN", default="nothing")

with_each_way = pytest.mark.parametrize("ask", [ask_in_task, ActorRef.ask])


class Helper(Actor, max_concurrency=10, expected=(ValueError,), timeout=math.inf):
    """A sub-module's actor, as an actor."""

    async def call(self, what: Callable[[], Any]) -> Any:
        return await what()

    async def call_below(self, ask: Any, other: ActorRef[Helper], what: Callable[[], Any]) -> Any:
        return await ask(other, Helper.call, what)

    async def end_itself(self) -> str:
        self.ref.kill()
        return "killed itself"


async def passed(gate: Gate) -> str:
    return await gate.walk()


async def stubborn(gate: Gate) -> str:
    """Goes on when it is cancelled."""
    try:
        await gate.walk()
    except asyncio.CancelledError:
        return "went on"
    return "not cancelled"


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


async def nested(system: ActorSystem, ask: Any) -> tuple[ActorRef[Helper], ActorRef[Helper], asyncio.Task[Any]]:
    """An actor that asks another one, whose message has begun; and the task that has asked the first."""
    outer, inner, gate = await system.spawn(Helper), await system.spawn(Helper), Gate()
    task = asyncio.create_task(ask(outer, Helper.call_below, ask, inner, lambda: passed(gate)))
    await gate.entered.wait()
    return outer, inner, task


async def test_it_is_handled_in_the_askers_task_and_counts_as_any_other() -> None:
    async def work() -> Any:
        SEEN.set("below")
        return asyncio.current_task()

    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        assert await ask_in_task(ref, Helper.call, work) is asyncio.current_task()
        assert SEEN.get() == "below"
        assert await ref.ask(Helper.call, work) is not asyncio.current_task()
        info = ref.info()
        assert (info.handled, info.failed, info.mailbox) == (2, 0, 0)


@with_each_way
async def test_an_expected_error_is_the_answer_and_the_actor_goes_on(ask: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        error = ValueError("no")
        with pytest.raises(ValueError, match="no") as caught:
            await ask(ref, Helper.call, lambda: fail(error))
        assert caught.value is error
        info = ref.info()
        assert (info.handled, info.failed, info.state) == (0, 1, State.RUNNING)


@with_each_way
async def test_another_error_is_the_answer_too_and_a_crash(ask: Any) -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("helper", Helper)])
        ref = await supervisor.ask(Supervisor.child, "helper")
        gate, error = Gate(), Boom()
        other = asyncio.create_task(ask(ref, Helper.call, lambda: passed(gate)))
        await gate.entered.wait()
        with pytest.raises(Boom) as caught:
            await ask(ref, Helper.call, lambda: fail(error))
        assert caught.value is error
        assert isinstance(stopped := await outcome(other), ActorStopped)
        assert stopped.started
        await until(lambda: ref.incarnation == 2 and ref.state is State.RUNNING)


@with_each_way
@pytest.mark.parametrize("own", [False, True], ids=["another's", "its own"])
async def test_a_cancellation_ends_the_asker_and_harms_no_actor(ask: Any, own: bool) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate = Gate()
        asker = asyncio.create_task(ask(ref, Helper.call, lambda: passed(gate)))
        await gate.entered.wait()
        if own:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asker
        else:
            asker.cancel()
        assert isinstance(await outcome(asker), asyncio.CancelledError)
        await until(lambda: gate.outcome == "cancelled")
        await turns()
        assert ref.state is State.RUNNING
        assert cell_of(ref).tasks() == ()


@with_each_way
@pytest.mark.parametrize("work", [passed, stubborn])
async def test_a_killed_actor_tells_the_asker_whose_task_goes_on_uncancelled(ask: Any, work: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate = Gate()

        async def asker() -> tuple[Any, int]:
            with pytest.raises(ActorStopped) as caught:
                await ask(ref, Helper.call, lambda: work(gate))
            await asyncio.sleep(0.001)  # a cancellation that was left behind would end this
            task = asyncio.current_task()
            assert task is not None
            return caught.value, task.cancelling()

        task = asyncio.create_task(asker())
        await gate.entered.wait()
        ref.kill()
        stopped, cancelling = await task
        assert stopped.started
        assert cancelling == 0
        await until(lambda: ref.state is State.STOPPED)


@with_each_way
async def test_a_message_that_kills_its_own_actor_leaves_no_cancellation_behind(ask: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        with pytest.raises(ActorStopped):
            await ask(ref, Helper.end_itself)
        await asyncio.sleep(0.001)
        await until(lambda: ref.state is State.STOPPED)


@with_each_way
async def test_of_two_actors_the_one_that_was_killed_is_told(ask: Any) -> None:
    async with ActorSystem() as system:
        outer, inner, task = await nested(system, ask)
        inner.kill()
        assert isinstance(stopped := await outcome(task), ActorStopped)
        assert stopped.path == inner.path
        await until(lambda: outer.state is State.STOPPED)  # for it did not expect that


@pytest.mark.parametrize("first", ["outer", "inner", "asker"])
async def test_a_kill_of_each_and_a_cancellation_at_once_end_the_asker_as_cancelled(first: str) -> None:
    async with ActorSystem() as system:
        outer, inner, task = await nested(system, ask_in_task)
        ends = {"outer": outer.kill, "inner": inner.kill, "asker": task.cancel}
        for end in (ends.pop(first), *ends.values()):
            end()
        assert isinstance(await outcome(task), asyncio.CancelledError)
        await until(lambda: outer.state is inner.state is State.STOPPED)


async def handle_a_failed_group(gate: Gate) -> str:
    """Before CPython 3.13, it leaves the task's count of cancellations raised."""
    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(ValueError("no")))
            await asyncio.sleep(0)
    return await gate.walk()


@with_each_way
async def test_a_kill_is_told_after_a_failed_group_was_handled(ask: Any) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate = Gate()
        task = asyncio.create_task(ask(ref, Helper.call, lambda: handle_a_failed_group(gate)))
        await gate.entered.wait()
        ref.kill()
        assert isinstance(await outcome(task), ActorStopped)


@with_each_way
async def test_a_kill_is_told_where_the_contexts_of_its_cancellation_go_in_a_circle(ask: Any) -> None:
    async def in_a_circle(gate: Gate) -> None:
        try:
            await handle_a_failed_group(gate)
        except asyncio.CancelledError as error:
            other = ValueError()
            error.__context__, other.__context__ = other, error
            raise

    async with ActorSystem() as system:
        ref, gate = await system.spawn(Helper), Gate()
        task = asyncio.create_task(ask(ref, Helper.call, lambda: in_a_circle(gate)))
        await gate.entered.wait()
        ref.kill()
        assert isinstance(await outcome(task), ActorStopped)


@with_each_way
async def test_a_cancellation_before_a_kill_ends_the_asker_as_cancelled_though_its_cleanup_takes_long(ask: Any) -> None:
    async def clean_up(gate: Gate, cleaning: Gate) -> None:
        try:
            await gate.walk()
        finally:
            await cleaning.walk()

    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate, cleaning = Gate(), Gate()
        task = asyncio.create_task(ask(ref, Helper.call, lambda: clean_up(gate, cleaning)))
        await gate.entered.wait()
        task.cancel()
        await cleaning.entered.wait()
        ref.kill()
        assert isinstance(await outcome(task), asyncio.CancelledError)


@with_each_way
async def test_a_deadline_of_anyio_that_passes_while_a_killed_message_ends_is_the_deadlines(ask: Any) -> None:
    async def in_group(gate: Gate, cleaning: Gate) -> None:
        async def one() -> None:
            try:
                await gate.walk()
            finally:
                await cleaning.walk()

        async with asyncio.TaskGroup() as group:
            group.create_task(one())

    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate, cleaning, scope = Gate(), Gate(), anyio.CancelScope()

        async def asker() -> str:
            with scope:
                await ask(ref, Helper.call, lambda: in_group(gate, cleaning))
            return "left"

        task = asyncio.create_task(asker())
        await gate.entered.wait()
        ref.kill()
        await cleaning.entered.wait()
        scope.cancel()
        await turns()
        cleaning.open.set()
        ended = await outcome(task)
        assert ended == "left" if ask is ask_in_task else isinstance(ended, ActorStopped)
        assert task.cancelling() == 0


async def test_a_message_that_hangs_when_it_is_cancelled_is_cancelled_again_at_the_bound_of_the_shutdown() -> None:
    class Slow(Helper, max_concurrency=10, timeout=math.inf, shutdown=0.01):
        """Has no time for its end."""

    async def hang(gate: Gate) -> None:
        try:
            await gate.walk()
        except asyncio.CancelledError:
            await Gate().walk()

    async with ActorSystem() as system:
        ref, gate = await system.spawn(Slow), Gate()
        task = asyncio.create_task(ask_in_task(ref, Slow.call, lambda: hang(gate)))
        await gate.entered.wait()
        with pytest.raises(Boom):
            await ref.ask(Slow.call, lambda: fail(Boom()))
        assert isinstance(await outcome(task), ActorStopped)
        assert task.cancelling() == 0


async def test_messages_within_each_other_take_tasks_of_their_own_where_the_stack_would_end() -> None:
    tasks = set()

    async with ActorSystem() as system:
        refs = [await system.spawn(Helper) for _ in range(100)]

        async def go(depth: int) -> int:
            tasks.add(asyncio.current_task())
            return depth if depth == 100 else await ask_in_task(refs[depth], Helper.call, lambda: go(depth + 1))

        assert await go(0) == 100
    assert 2 < len(tasks) < 10


async def test_an_ordered_stop_waits_for_it() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate = Gate()
        task = asyncio.create_task(ask_in_task(ref, Helper.call, lambda: passed(gate)))
        await gate.entered.wait()
        stop = asyncio.create_task(ref.stop())
        await until(lambda: ref.state is State.STOPPING)
        await turns()
        assert not stop.done()
        gate.open.set()
        await task
        await stop


async def test_where_there_is_no_slot_or_a_timeout_it_is_an_ask_as_any_other() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Helper)
        gate = Gate()
        held = [asyncio.create_task(ref.ask(Helper.call, lambda: passed(gate))) for _ in range(10)]
        await until(lambda: len(cell_of(ref).tasks()) == 10)
        waiting = asyncio.create_task(ask_in_task(ref, Helper.call, lambda: passed(gate)))
        await until(lambda: ref.info().mailbox == 1)
        gate.open.set()
        await asyncio.gather(*held, waiting)
        with pytest.raises(AskTimeout):
            await ask_in_task(ref.with_options(timeout=0.001), Helper.call, lambda: passed(Gate()))
        await ref.stop()
        with pytest.raises(ActorStopped) as caught:
            await ask_in_task(ref, Helper.call, lambda: passed(gate))
        assert not caught.value.started


@with_each_way
async def test_the_deadline_of_the_message_around_it_holds_below(ask: Any) -> None:
    class Asker(Actor):
        async def go(self, other: ActorRef[Helper]) -> None:
            await ask(other, Helper.call, lambda: passed(Gate()))

    async with ActorSystem() as system:
        ref, other = await system.spawn(Asker), await system.spawn(Helper)
        with pytest.raises(AskTimeout):
            await ref.with_options(timeout=0.01).ask(Asker.go, other)
        await until(lambda: not cell_of(other).tasks())
        assert other.state is State.RUNNING


async def test_a_coroutine_that_is_dropped_in_the_middle_leaves_the_actor_free() -> None:
    async with ActorSystem() as system:
        told: list[Event] = []
        system.events.on("actor.crashed", told.append)
        ref = await system.spawn(Helper)

        async def step() -> None:
            coroutine = ask_in_task(ref, Helper.call, lambda: passed(Gate()))
            coroutine.send(None)
            coroutine.close()

        await step()
        assert cell_of(ref).tasks() == ()
        assert ref.state is State.RUNNING
        assert told == []
