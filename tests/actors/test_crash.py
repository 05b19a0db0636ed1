"""A crash: what it is, who is told what, and that nobody is left waiting."""

from __future__ import annotations

import asyncio
import functools
import json
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, Down, State
from promptside.actors.lifecycle import abandon_handlers, crash
from promptside.actors.spi import cell_of
from promptside.backoff import Backoff
from promptside.errors import ActorStartError, ActorStopped, MaxRestartsExceeded
from promptside.supervision import ChildSpec, Supervisor
from promptside.testing import run_virtual
from tests.support.actors import Boom, Gate, Worker, busy, hear, outcome, started, turns, until


class Wide(Worker, max_concurrency=2): ...


async def supervised(system: ActorSystem, start, **options) -> tuple[ActorRef[Supervisor], ActorRef[Worker]]:
    supervisor = await system.spawn(Supervisor, [ChildSpec("child", start, **options)], max_restarts=100)
    return supervisor, await supervisor.ask(Supervisor.child, "child")


@pytest.mark.parametrize("kind", [Worker, Wide])
async def test_the_running_ask_gets_its_exception_and_the_queued_ones_fail_at_once_as_not_started(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        first = await busy(ref)
        gates = [first]
        if kind is Wide:
            gates.append(await busy(ref))
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(3)]
        boom = Boom()
        crash(cell_of(ref), boom)
        for task in queued:
            error = await outcome(task)
            assert isinstance(error, ActorStopped)
            assert (error.started, error.reason, error.incarnation, error.retry_after) == (False, boom, 1, None)
        for gate, held in gates:
            error = await outcome(held)
            assert isinstance(error, ActorStopped)
            assert error.started
            await until(lambda gate=gate: gate.outcome == "cancelled")


async def test_a_handler_that_fails_answers_its_asker_and_fails_those_who_queue() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        gate, boom = Gate(), Boom()

        async def fail_later(actor: Worker) -> None:
            await gate.walk()
            raise boom

        asked = await started(ref.ask(Worker.call, fail_later))
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(3)]
        ref.tell(Worker.add, 1)
        gate.open.set()
        assert await outcome(asked) is boom
        for task in queued:
            error = await outcome(task)
            assert isinstance(error, ActorStopped)
            assert not error.started
        assert system.dead_letters == 1
        late = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(late, ActorStopped)
        assert not late.started
        assert late.retry_after is None


async def test_with_concurrency_a_crash_cancels_the_others_inside_and_tells_their_askers() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Wide)
        gate, held = await busy(ref)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom())
        error = await outcome(held)
        assert isinstance(error, ActorStopped)
        assert error.started
        await until(lambda: gate.outcome == "cancelled")


async def test_a_supervised_actor_comes_back_with_new_state_and_the_same_ref() -> None:
    async with ActorSystem() as system:
        _, ref = await supervised(system, functools.partial(Worker, 10))
        assert await ref.ask(Worker.add, 1) == 11
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom())
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        assert await ref.ask(Worker.add, 1) == 11


def test_asks_while_a_restart_waits_fail_at_once_with_retry_after() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            _, ref = await supervised(system, Worker, backoff=Backoff(initial=3, jitter=0))
            with pytest.raises(Boom):
                await ref.ask(Worker.fail, Boom())
            await asyncio.sleep(1)
            error = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
            assert isinstance(error, ActorStopped)
            assert not error.started
            assert error.retry_after == pytest.approx(2)
            ref.tell(Worker.add, 1)
            assert system.dead_letters == 1
            await asyncio.sleep(2)
            assert await ref.ask(Worker.add, 1) == 1

    run_virtual(main())


async def test_the_errors_of_the_crash_itself_say_that_a_restart_is_pending() -> None:
    async with ActorSystem() as system:
        _, ref = await supervised(system, Worker)
        _, held = await busy(ref)
        queued = await started(ref.ask(Worker.add, 1))
        ref.kill()
        for task, began in ((held, True), (queued, False)):
            error = await outcome(task)
            assert isinstance(error, ActorStopped)
            assert (error.started, error.incarnation) == (began, 1)
            assert error.retry_after is not None


@pytest.mark.parametrize("restart", ["temporary", "transient"])
async def test_an_ask_to_a_child_that_ended_for_good_promises_no_restart(restart: str) -> None:
    async with ActorSystem() as system:
        _, ref = await supervised(system, Worker, restart=restart)
        await ref.stop()
        await turns()
        error = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(error, ActorStopped)
        assert error.retry_after is None


async def test_an_ask_to_a_child_whose_supervisor_has_stopped_promises_no_restart() -> None:
    async with ActorSystem() as system:
        supervisor, ref = await supervised(system, Worker)
        await supervisor.stop()
        error = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(error, ActorStopped)
        assert error.retry_after is None


async def test_a_child_that_crashes_while_its_supervisor_still_starts_another_is_restarted() -> None:
    gate = Gate()
    children: list[ActorRef[Worker]] = []

    class First(Worker):
        async def on_start(self) -> None:
            children.append(self.ref)

    class Second(Worker):
        async def on_start(self) -> None:
            await gate.walk()

    async with ActorSystem() as system:
        starting = asyncio.ensure_future(
            system.spawn(Supervisor, [ChildSpec("first", First), ChildSpec("second", Second)])
        )
        await gate.entered.wait()
        children[0].tell(Worker.fail, Boom())
        await until(lambda: children[0].info().state is State.STOPPED)
        gate.open.set()
        await starting
        await until(lambda: children[0].incarnation == 2)
        assert await children[0].ask(Worker.add, 1) == 1


async def test_on_stop_is_called_with_the_exception_of_the_crash() -> None:
    reasons: list[object] = []

    class Hooked(Worker):
        async def on_stop(self, reason: object) -> None:
            reasons.append(reason)

    async with ActorSystem() as system:
        ref = await system.spawn(Hooked)
        boom = Boom()
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, boom)
        await until(lambda: ref.info().state is State.STOPPED)
        assert reasons == [boom]


async def test_a_crash_stops_the_children() -> None:
    class Parent(Worker):
        async def bear(self) -> ActorRef[Worker]:
            return await self.spawn(Worker)

    async with ActorSystem() as system:
        parent = await system.spawn(Parent)
        child = await parent.ask(Parent.bear)
        parent.tell(Worker.fail, Boom())
        await until(lambda: parent.info().state is State.STOPPED)
        assert child.info().state is State.STOPPED


async def test_an_exception_in_receive_is_a_crash() -> None:
    class Brittle(Actor):
        async def receive(self, message: object) -> None:
            raise Boom(str(message))

    async with ActorSystem() as system:
        ref = await system.spawn(Brittle)
        ref.send_message("hello")
        await until(lambda: ref.info().state is State.STOPPED)


async def test_every_crash_is_published_once_and_logged_when_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom("unheard"))
        await until(lambda: ref.info().state is State.STOPPED)
        assert [record.levelname for record in caplog.records if "unheard" in record.getMessage()] == ["ERROR"]
        crashes = hear(system.events, "actor.crashed")
        ref = await system.spawn(Worker)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom("heard"))
        await until(lambda: ref.info().state is State.STOPPED)
        assert [event.data["message"] for event in crashes] == ["heard"]


async def test_a_generator_exit_ends_the_actor_and_the_asker_is_told() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        result = await outcome(asyncio.ensure_future(ref.ask(Worker.fail, GeneratorExit())))
        assert isinstance(result, ActorStopped)
        assert result.started
        await until(lambda: ref.info().state is State.STOPPED)


async def test_an_actor_that_crashes_again_and_again_gives_each_ask_one_outcome() -> None:
    async with ActorSystem() as system:
        _, ref = await supervised(system, Worker)

        async def one(number: int) -> str:
            try:
                if number % 7 == 0:
                    await ref.ask(Worker.fail, Boom())
                else:
                    await ref.ask(Worker.add, 1)
            except Boom:
                return "boom"
            except ActorStopped as error:
                assert not error.started
                assert error.retry_after is not None
                return "stopped"
            return "answered"

        outcomes: list[str] = []
        for start in range(0, 280, 14):
            outcomes += await asyncio.wait_for(asyncio.gather(*(one(start + each) for each in range(14))), 5)
            await until(lambda: ref.info().state is State.RUNNING)
        assert len(outcomes) == 280
        assert {"boom", "stopped"} <= set(outcomes)


async def test_the_handlers_of_a_dead_incarnation_cannot_answer_or_crash_the_next() -> None:
    """A handler that swallows its cancellation outlives its incarnation; its failure then is nobody's."""
    async with ActorSystem() as system:
        _, ref = await supervised(system, Worker)
        go, entered = asyncio.Event(), asyncio.Event()
        ended: list[int] = []

        async def stubborn(actor: Worker) -> None:
            entered.set()
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    pass
            ended.append(1)
            raise Boom("from the grave")

        asked = await started(ref.ask(Worker.call, stubborn))
        await entered.wait()
        ref.kill()
        error = await outcome(asked)
        assert isinstance(error, ActorStopped)
        assert error.started
        abandon_handlers(cell_of(ref))  # what the grace of a second would do
        await until(lambda: ref.incarnation == 2 and ref.info().state is State.RUNNING)
        gate, held = await busy(ref)
        go.set()
        await until(lambda: ended)
        await turns()
        assert ref.incarnation == 2
        assert ref.info().current == ("hold",)
        gate.open.set()
        assert await held == "passed"
        assert await ref.ask(Worker.add, 1) == 1


# -- task groups that on_start opens -------------------------------------------------------------------------------


class Group(Worker):
    """Holds a task group open from its start to its end."""

    def __init__(self, kind: str, failing: asyncio.Event) -> None:
        super().__init__()
        self.kind = kind
        self.failing = failing
        self.stack = AsyncExitStack()

    async def on_start(self) -> None:
        group: Any = anyio.create_task_group() if self.kind == "anyio" else asyncio.TaskGroup()
        await self.stack.enter_async_context(group)
        (group.start_soon(self.poll) if self.kind == "anyio" else group.create_task(self.poll()))

    async def poll(self) -> None:
        await self.failing.wait()
        if self.ref.incarnation == 1:
            raise Boom("the broker is gone")

    async def on_stop(self, reason: object) -> None:
        closed.append(reason)
        await self.stack.aclose()


closed: list[object] = []


@pytest.mark.parametrize("busy_with", ["nothing", "a tell", "an ask", "a stream"])
@pytest.mark.parametrize("kind", ["asyncio", "anyio"])
async def test_a_task_that_fails_in_a_group_opened_in_on_start_is_the_crash(kind: str, busy_with: str) -> None:
    closed.clear()

    class Watcher(Worker):
        async def watch(self, ref: ActorRef[Any]) -> None:
            self.monitor(ref)

    async with ActorSystem() as system:
        failing, gate = asyncio.Event(), Gate()
        crashes = hear(system.events, "actor.crashed")
        _, ref = await supervised(system, functools.partial(Group, kind, failing))
        watcher = await system.spawn(Watcher)
        await watcher.ask(Watcher.watch, ref)
        asked = None
        if busy_with == "a tell":
            ref.tell(Worker.hold, gate)
        elif busy_with == "an ask":
            asked = await started(ref.ask(Worker.hold, gate))
        elif busy_with == "a stream":
            asked = await started(anext(ref.stream(Worker.count_to, 10_000)))  # type: ignore[arg-type]
        await turns()
        failing.set()
        await until(lambda: ref.incarnation == 2 and ref.state is State.RUNNING)

        (down,) = [each for each in await watcher.ask(Worker.notes) if isinstance(each, Down)]
        assert isinstance(down.reason, ExceptionGroup)
        assert down.reason.subgroup(Boom) is not None
        assert crashes[-1].data["error"] == "ExceptionGroup"
        assert len(closed) == 1
        if asked is not None and busy_with == "an ask":
            assert isinstance(await outcome(asked), ActorStopped)


@pytest.mark.parametrize("kind", [Worker, Wide])
@pytest.mark.parametrize("how", ["tell", "ask", "on_start", "__init__", "on_stop"])
async def test_a_crash_is_told_with_its_parts_its_causes_and_its_place_in_the_event_and_in_the_log(
    kind: type[Worker], how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail_whole() -> None:
        try:
            raise KeyError("user_id")
        except KeyError as error:
            raise ExceptionGroup("two", [ConnectionRefusedError("db:5432"), ValueError("no")]) from error

    class Failing(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            if how == "__init__":
                fail_whole()

        async def on_start(self) -> None:
            if how == "on_start":
                fail_whole()

        async def on_stop(self, reason: object) -> None:
            if how == "on_stop":
                fail_whole()

        async def break_down(self) -> None:
            fail_whole()

    async def meet_it(system: ActorSystem) -> None:
        if how in ("on_start", "__init__"):
            with pytest.raises(ActorStartError, match="ConnectionRefusedError: db:5432; ValueError: no"):
                await system.spawn(Failing)
            return
        ref = await system.spawn(Failing)
        if how == "on_stop":
            await ref.stop()
        elif how == "tell":
            ref.tell(Failing.break_down)
        else:
            await outcome(asyncio.ensure_future(ref.ask(Failing.break_down)))
        await until(lambda: ref.state is State.STOPPED)

    async with ActorSystem() as system:
        await meet_it(system)
    for told in ("ExceptionGroup: two", "db:5432", "in fail_whole"):
        assert told in caplog.text.replace("('two'", ": two")

    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        await meet_it(system)
        [data] = [event.data for event in crashes]
    assert (data["error"], data["traceback"][-1][2]) == ("ExceptionGroup", "fail_whole")
    assert [part["error"] for part in data["parts"]] == ["ConnectionRefusedError", "ValueError"]
    assert [(cause["error"], cause["message"]) for cause in data["causes"]] == [("KeyError", "'user_id'")]
    assert json.loads(json.dumps(data)) == data


async def test_what_a_supervisor_gave_up_for_names_the_parts_of_a_group() -> None:
    async def fail(actor: Worker) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())

    async def refuse() -> None:
        raise ConnectionRefusedError("db:5432")

    with pytest.raises(MaxRestartsExceeded, match="ConnectionRefusedError: db:5432") as raised:
        async with ActorSystem() as system:
            top = await system.spawn(Supervisor, [ChildSpec("child", Worker)], max_restarts=0)
            child = await top.ask(Supervisor.child, "child")
            child.tell(Worker.call, fail)
            await until(lambda: top.state is State.STOPPED)
    assert isinstance(raised.value.__cause__, ExceptionGroup)
