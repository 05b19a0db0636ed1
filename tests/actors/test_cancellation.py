"""Cancelling an ask: it reaches the handler, at whatever moment, and nothing but that handler."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator

import anyio
import pytest

from promptside.actors import Actor, ActorSystem, State
from promptside.actors.lifecycle import crash
from promptside.actors.spi import cell_of
from promptside.errors import ActorStopped, AskTimeout
from promptside.testing import run_virtual
from tests.support.actors import Boom, Gate, Worker, busy, outcome, started, turns, until


class Wide(Worker, max_concurrency=4): ...


KINDS = pytest.mark.parametrize("kind", [Worker, Wide])


async def three_clean_messages(ref) -> None:
    """The next messages are untouched, those that wait and those that do not."""
    for _ in range(3):
        gate, held = await busy(ref)
        await turns(2)
        gate.open.set()
        assert await held == "passed"
        assert await ref.ask(Worker.add, 0) == 0
    assert ref.incarnation == 1
    assert ref.info().state is State.RUNNING
    assert ref.info().cancelling == ()


@KINDS
async def test_a_cancel_reaches_the_handler(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        gate, held = await busy(ref)
        held.cancel()
        assert isinstance(await outcome(held), asyncio.CancelledError)
        await until(lambda: gate.outcome == "cancelled")
        await three_clean_messages(ref)


@KINDS
async def test_a_cancel_while_the_awaited_future_is_already_done_is_still_only_this_messages(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        gate, held = await busy(ref)
        held.cancel()
        await asyncio.sleep(0)  # the asker's step is next; the handler's future is resolved before it
        gate.open.set()
        assert isinstance(await outcome(held), asyncio.CancelledError)
        await turns()
        await three_clean_messages(ref)


@KINDS
@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("after", range(4))
async def test_a_cancel_around_the_handlers_last_step_does_not_reach_the_next_message(
    kind: type[Worker], before: int, after: int
) -> None:
    """The wake of the handler and the cancel of the asker, in every order within a few turns."""
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        gate, held = await busy(ref)
        following = asyncio.ensure_future(ref.ask(Worker.call, lambda actor: asyncio.sleep(0, "untouched")))
        loop = asyncio.get_running_loop()
        delayed(loop, before, gate.open.set)
        delayed(loop, after, held.cancel)
        result = await outcome(held)
        assert result == "passed" or isinstance(result, asyncio.CancelledError)
        assert await following == "untouched"
        await three_clean_messages(ref)


def delayed(loop: asyncio.AbstractEventLoop, number: int, function) -> None:
    if number == 0:
        function()
    else:
        loop.call_soon(delayed, loop, number - 1, function)


@KINDS
async def test_a_handler_that_catches_its_cancel_in_its_last_step_leaves_nothing_behind(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        entered = asyncio.Event()

        async def swallow(actor: Worker) -> str:
            entered.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            return "swallowed"

        held = await started(ref.ask(Worker.call, swallow))
        await entered.wait()
        held.cancel()
        assert isinstance(await outcome(held), asyncio.CancelledError)
        await turns()
        await three_clean_messages(ref)


@KINDS
async def test_a_cancel_issued_by_the_handler_in_its_own_last_step_does_not_reach_the_next_message(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        asker: list[asyncio.Task[object]] = []

        async def cancel_my_asker(actor: Worker) -> str:
            await asyncio.sleep(0)
            asker[0].cancel()
            return "done"

        asker.append(asyncio.ensure_future(ref.ask(Worker.call, cancel_my_asker)))
        following = asyncio.ensure_future(ref.ask(Worker.call, lambda actor: asyncio.sleep(0, "untouched")))
        await outcome(asker[0])
        assert await following == "untouched"
        await three_clean_messages(ref)


@KINDS
async def test_a_handler_that_cancels_its_own_task_in_its_last_step_does_not_reach_the_next_message(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)

        async def cancel_myself(actor: Worker) -> str:
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            return "done"

        asked = asyncio.ensure_future(ref.ask(Worker.call, cancel_myself))
        following = asyncio.ensure_future(ref.ask(Worker.call, lambda actor: asyncio.sleep(0, "untouched")))
        assert await outcome(asked) == "done"
        assert await following == "untouched"
        await three_clean_messages(ref)


class Producer(Worker):
    async def close_my_reader(self, reader: list[AsyncIterator[int]], then_wait: bool) -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(0)
        await reader[0].aclose()  # type: ignore[attr-defined]
        if then_wait:
            try:
                await asyncio.Event().wait()
            finally:
                self.seen.append("cancelled")


@pytest.mark.parametrize("then_wait", [False, True])
async def test_a_cancel_from_the_handlers_own_step_is_its_own_and_not_the_next_messages(then_wait: bool) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Producer)
        reader: list[AsyncIterator[int]] = []
        reader.append(ref.stream(Producer.close_my_reader, reader, then_wait))
        assert await anext(reader[0]) == 1
        following = asyncio.ensure_future(ref.ask(Worker.call, lambda actor: asyncio.sleep(0, "untouched")))
        assert await following == "untouched"
        assert await ref.ask(Worker.notes) == (["cancelled"] if then_wait else [])
        await three_clean_messages(ref)


@KINDS
async def test_a_cancel_during_on_stop_does_not_reach_it(kind: type[Worker]) -> None:
    leaving, leave, left = asyncio.Event(), asyncio.Event(), []

    class Leaving(kind):
        async def on_stop(self, reason: object) -> None:
            leaving.set()
            await leave.wait()
            left.append(reason)

    async with ActorSystem() as system:
        ref = await system.spawn(Leaving)
        gate, held = await busy(ref)
        queued = await started(ref.ask(Worker.add, 1))
        stop = await started(ref.stop())
        gate.open.set()
        await leaving.wait()
        held.cancel()
        queued.cancel()
        await turns()
        assert left == []
        leave.set()
        await stop
        assert left == ["normal"]


async def test_a_cancel_in_the_same_turn_as_the_last_message_before_on_stop_does_not_reach_on_stop() -> None:
    left: list[object] = []

    class Leaving(Worker):
        async def on_stop(self, reason: object) -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            left.append(reason)

    for before in range(4):
        for after in range(4):
            left.clear()
            async with ActorSystem() as system:
                ref = await system.spawn(Leaving)
                gate, held = await busy(ref)
                stop = await started(ref.stop())
                loop = asyncio.get_running_loop()
                delayed(loop, before, gate.open.set)
                delayed(loop, after, held.cancel)
                await stop
                await outcome(held)
            assert left == ["normal"], (before, after)


@KINDS
async def test_a_handler_that_shields_its_work_finishes_it(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        gate = Gate()
        works: list[asyncio.Task[str]] = []

        async def shield(actor: Worker) -> str:
            work = asyncio.ensure_future(gate.walk())
            works.append(work)
            return await asyncio.shield(work)

        held = await started(ref.ask(Worker.call, shield))
        await gate.entered.wait()
        held.cancel()
        assert isinstance(await outcome(held), asyncio.CancelledError)
        await turns()
        assert gate.outcome == "waiting"
        await three_clean_messages(ref)
        gate.open.set()
        assert await works[0] == "passed"


@KINDS
async def test_a_handler_that_shields_and_waits_for_its_work_finishes_it_before_the_next_message(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        gate = Gate()

        async def insist(actor: Worker) -> None:
            work = asyncio.ensure_future(gate.walk())
            try:
                await asyncio.shield(work)
            except asyncio.CancelledError:
                await work
                actor.seen.append("insisted")
                raise

        held = await started(ref.ask(Worker.call, insist))
        await gate.entered.wait()
        held.cancel()
        await outcome(held)
        await turns()
        assert ref.info().cancelling == ("call",)
        gate.open.set()
        await until(lambda: not ref.info().current)
        assert await ref.ask(Worker.notes) == ["insisted"]
        await three_clean_messages(ref)


@KINDS
def test_a_handler_that_swallows_its_cancellation_shows_in_info_and_harms_nobody(kind: type[Worker]) -> None:
    run_virtual(_swallow(kind))


async def _swallow(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        go, entered = asyncio.Event(), asyncio.Event()

        async def stubborn(actor: Worker) -> None:
            entered.set()
            while not go.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go.wait()

        held = await started(ref.with_options(timeout=0.02).ask(Worker.call, stubborn))
        await entered.wait()
        assert ref.info().cancelling == ()
        assert isinstance(await outcome(held), AskTimeout)
        await turns()
        assert (ref.info().current, ref.info().cancelling) == (("call",), ("call",))
        go.set()
        await until(lambda: not ref.info().current)
        await three_clean_messages(ref)


@KINDS
async def test_an_error_in_the_cleanup_of_a_cancelled_handler_is_reported_and_no_crash(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        letters: list[object] = []
        system.events.on("message.dead", letters.append)
        ref = await system.spawn(kind)
        entered = asyncio.Event()

        async def fail_in_cleanup(actor: Worker) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                raise Boom("in the cleanup")

        held = await started(ref.ask(Worker.call, fail_in_cleanup))
        await entered.wait()
        held.cancel()
        assert isinstance(await outcome(held), asyncio.CancelledError)
        await until(lambda: letters)
        await three_clean_messages(ref)


async def test_with_concurrency_a_cancel_hits_one_of_several() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Wide)
        held = [await busy(ref) for _ in range(4)]
        held[1][1].cancel()
        await until(lambda: held[1][0].outcome == "cancelled")
        assert [gate.outcome for gate, _ in held] == ["waiting", "cancelled", "waiting", "waiting"]
        for gate, _ in held:
            gate.open.set()
        results = [await outcome(task) for _, task in held]
        assert [each for each in results if each == "passed"] == ["passed"] * 3


async def test_with_concurrency_a_cancel_before_the_handlers_first_step_leaves_the_actor_working() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Wide)
        task = asyncio.ensure_future(ref.ask(Worker.add, 1))
        await asyncio.sleep(0)
        task.cancel()
        await outcome(task)
        await turns()
        assert ref.info().current == ()
        assert ref.incarnation == 1
        assert await ref.ask(Worker.add, 0) in (0, 1)


async def test_a_cancel_is_passed_on_through_nested_asks() -> None:
    async with ActorSystem() as system:
        refs = [await system.spawn(Worker) for _ in range(4)]
        gate = Gate()

        def through(index: int):
            async def ask_next(actor: Worker) -> object:
                if index == len(refs):
                    return await gate.walk()
                return await refs[index].ask(Worker.call, through(index + 1))

            return ask_next

        asked = await started(refs[0].ask(Worker.call, through(1)))
        await gate.entered.wait()
        asked.cancel()
        await until(lambda: gate.outcome == "cancelled")
        for ref in refs:
            await three_clean_messages(ref)


@KINDS
async def test_cancel_scopes_and_task_groups_work_inside_a_handler(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)

        async def anyio_fail_after(actor: Worker) -> None:
            with anyio.fail_after(0.01):
                await anyio.sleep_forever()

        async def anyio_group(actor: Worker) -> int:
            done: list[int] = []

            async def add() -> None:
                await anyio.sleep(0)
                done.append(1)

            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(add)
            return len(done)

        async def anyio_scope(actor: Worker) -> bool:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await anyio.sleep_forever()
            return scope.cancelled_caught

        async def asyncio_timeout(actor: Worker) -> None:
            async with asyncio.timeout(0.01):
                await asyncio.Event().wait()

        async def asyncio_group(actor: Worker) -> int:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0, number)) for number in (1, 2)]
            return sum(task.result() for task in tasks)

        async def group_of_failures(actor: Worker) -> str:
            caught = "nothing"
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(actor.fail(Boom()))
                    group.create_task(asyncio.Event().wait())
            except* Boom:
                caught = "caught"
            return caught

        for function, expected in (
            (anyio_group, 3),
            (anyio_scope, True),
            (asyncio_group, 3),
            (group_of_failures, "caught"),
        ):
            assert await ref.ask(Worker.call, function) == expected
            await three_clean_messages(ref)
        for function in (anyio_fail_after, asyncio_timeout):

            async def caught(actor: Worker, function=function) -> str:
                try:
                    await function(actor)
                except TimeoutError:
                    return "timed out"
                return "not"

            assert await ref.ask(Worker.call, caught) == "timed out"
            await three_clean_messages(ref)


@KINDS
async def test_a_cancel_passes_through_scopes_and_groups_and_takes_their_children_with_it(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        ended: list[str] = []

        async def child(name: str, ready: asyncio.Event) -> None:
            ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(name)

        async def in_anyio(actor: Worker, ready: asyncio.Event) -> None:
            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(child, "anyio", ready)

        async def in_asyncio(actor: Worker, ready: asyncio.Event) -> None:
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                group.create_task(child("asyncio", ready))

        for function, name in ((in_anyio, "anyio"), (in_asyncio, "asyncio")):
            for how in ("cancel", "timeout"):
                ready = asyncio.Event()
                timeout = 0.02 if how == "timeout" else 60
                asked = await started(
                    ref.with_options(timeout=timeout).ask(Worker.call, lambda actor, f=function, r=ready: f(actor, r))
                )
                await ready.wait()
                if how == "cancel":
                    asked.cancel()
                await outcome(asked)
                await until(lambda: not ref.info().current)
                assert ended == [name], how
                ended.clear()
                await three_clean_messages(ref)


async def test_a_handler_that_shields_by_an_anyio_scope_is_cancelled_all_the_same_and_the_scope_stays_sound() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        entered = asyncio.Event()

        async def shielded(actor: Worker) -> None:
            with anyio.CancelScope(shield=True):
                entered.set()
                await anyio.sleep_forever()

        asked = await started(ref.ask(Worker.call, shielded))
        await entered.wait()
        asked.cancel()
        await until(lambda: not ref.info().current)
        await three_clean_messages(ref)


class BaseSupervisor(Worker):
    """Opens a task group in `on_start` and closes it in `on_stop`."""

    def __init__(self, events: list[str]) -> None:
        super().__init__()
        self.events = events

    async def on_start(self) -> None:
        self.group = anyio.create_task_group()
        await self.group.__aenter__()
        self.group.start_soon(self.background)

    async def background(self) -> None:
        self.events.append("background began")
        try:
            await anyio.sleep_forever()
        finally:
            self.events.append("background ended")

    async def on_stop(self, reason: object) -> None:
        self.group.cancel_scope.cancel()
        await self.group.__aexit__(None, None, None)
        self.events.append("closed")


async def test_a_task_group_opened_in_on_start_survives_cancelled_and_timed_out_messages_until_on_stop() -> None:
    events: list[str] = []
    async with ActorSystem() as system:
        ref = await system.spawn(BaseSupervisor, events)
        for _ in range(3):
            gate, held = await busy(ref)
            held.cancel()
            await outcome(held)
            await until(lambda gate=gate: gate.outcome == "cancelled")
            timed_out = await outcome(asyncio.ensure_future(ref.with_options(timeout=0.01).ask(Worker.hold, Gate())))
            assert isinstance(timed_out, AskTimeout)

            async def with_scope(actor: Worker) -> str:
                with anyio.move_on_after(0.005):
                    await anyio.sleep_forever()
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(0))
                return "fine"

            assert await ref.ask(Worker.call, with_scope) == "fine"
            assert events == ["background began"]
        await ref.stop()
        assert events == ["background began", "background ended", "closed"]


async def test_a_task_group_opened_in_on_start_is_closed_by_on_stop_after_a_crash_too() -> None:
    events: list[str] = []
    async with ActorSystem() as system:
        ref = await system.spawn(BaseSupervisor, events)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)
        assert events == ["background began", "background ended", "closed"]


async def test_a_handler_that_raises_cancelled_error_by_itself_is_a_crash_and_its_asker_is_told() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def cancelled_elsewhere(actor: Worker) -> None:
            work = asyncio.ensure_future(asyncio.Event().wait())
            work.cancel()
            await work

        result = await outcome(asyncio.ensure_future(ref.ask(Worker.call, cancelled_elsewhere)))
        assert isinstance(result, ActorStopped)
        assert result.started


async def test_current_task_is_the_same_from_the_first_step_of_a_handler_to_its_last() -> None:
    async with ActorSystem() as system:
        for kind in (Worker, Wide):
            ref = await system.spawn(kind)
            tasks: list[object] = []

            async def look(actor: Worker, tasks=tasks) -> None:
                tasks.append(asyncio.current_task())
                await asyncio.sleep(0)
                tasks.append(asyncio.current_task())
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await asyncio.Event().wait()
                tasks.append(asyncio.current_task())

                async def inner() -> AsyncIterator[int]:
                    try:
                        tasks.append(asyncio.current_task())
                        yield 1
                    finally:
                        tasks.append(asyncio.current_task())

                async with contextlib.aclosing(inner()) as items:
                    async for _ in items:
                        break
                try:
                    await asyncio.Event().wait()
                finally:
                    tasks.append(asyncio.current_task())

            asked = await started(ref.ask(Worker.call, look))
            await until(lambda tasks=tasks: len(tasks) == 5)
            asked.cancel()
            await until(lambda tasks=tasks: len(tasks) == 6)
            assert len(set(tasks)) == 1
            assert tasks[0] is not None


async def test_a_cancel_in_the_turn_of_a_crash_leaves_no_unretrieved_exception(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for end in ("crash", "kill", "timeout", "mailbox"):
        async with ActorSystem() as system:
            ref = await system.spawn(Worker)
            _, held = await busy(ref)
            queued = await started(ref.ask(Worker.add, 1))
            if end == "crash":
                crash(cell_of(ref), Boom())
            elif end == "kill":
                ref.kill()
            elif end == "timeout":
                ref._cell.time_out(ref._cell.current)
            else:
                ref._cell.refuse(ref._cell.queue[0])
            held.cancel()
            queued.cancel()
            await outcome(held)
            await outcome(queued)
            del held, queued
    gc.collect()
    assert [record.message for record in caplog.records if "never retrieved" in record.message] == []


async def test_cancelling_the_asker_twice_cancels_the_handler_once() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        hits: list[int] = []
        entered = asyncio.Event()

        async def count(actor: Worker) -> None:
            entered.set()
            for _ in range(2):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    hits.append(1)
                    await turns(5)
                    return

        held = await started(ref.ask(Worker.call, count))
        await entered.wait()
        held.cancel()
        await turns(2)
        held.cancel()
        await outcome(held)
        await until(lambda: not ref.info().current)
        assert hits == [1]


class Resource(Actor):
    """Does what a user's handler does with a connection."""

    def __init__(self) -> None:
        self.released = 0

    async def use(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self.released += 1

    async def count(self) -> int:
        return self.released


async def test_an_asynchronous_cleanup_of_a_cancelled_handler_runs_to_its_end_before_the_next_message() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Resource)
        for number in range(1, 4):
            asked = await started(ref.ask(Resource.use))
            asked.cancel()
            await outcome(asked)
            assert await ref.ask(Resource.count) == number
