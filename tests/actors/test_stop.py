"""An ordered stop: the current message ends, `on_stop` runs, the children follow in reverse, within a bound."""

from __future__ import annotations

import asyncio
import math

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, State
from promptside.errors import ActorStopped
from tests.support.actors import Boom, Gate, Worker, busy, hear, outcome, started, turns, until


class Recorder(Worker):
    log: list[tuple[str, object]]

    def __init__(self, name: str, log: list[tuple[str, object]]) -> None:
        super().__init__()
        self.name = name
        self.log = log

    async def on_stop(self, reason: object) -> None:
        await asyncio.sleep(0)
        self.log.append((self.name, reason))

    async def bear(self, *names: str) -> list[ActorRef[Worker]]:
        return [await self.spawn(Recorder, name, self.log) for name in names]


class Wide(Worker, max_concurrency=3): ...


@pytest.mark.parametrize("kind", [Worker, Wide])
async def test_the_current_message_is_finished_and_queued_asks_fail_at_once(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        inside = [await busy(ref) for _ in range(kind.__options__.max_concurrency)]
        queued = await started(ref.ask(Worker.add, 1))
        ref.tell(Worker.add, 1)
        stop = await started(ref.stop("enough"))
        error = await outcome(queued)
        assert isinstance(error, ActorStopped)
        assert (error.started, error.reason) == (False, "enough")
        late = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(late, ActorStopped)
        assert not late.started
        assert system.dead_letters == 1
        assert not stop.done()
        assert ref.info().state is State.STOPPING
        for gate, held in inside:
            gate.open.set()
            assert await held == "passed"
        await stop
        assert ref.info().state is State.STOPPED


@pytest.mark.parametrize("kind", [Worker, Wide])
async def test_a_drain_handles_what_is_queued_first_and_takes_nothing_new(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        inside = [await busy(ref) for _ in range(kind.__options__.max_concurrency)]
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(3)]
        stop = await started(ref.stop(drain=60))
        late = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(late, ActorStopped)
        for gate, _ in inside:
            gate.open.set()
        assert [await task for task in queued] == [1, 2, 3]
        await stop
        assert [await task for _, task in inside] == ["passed"] * len(inside)


async def test_on_stop_is_told_the_reason_and_runs_once() -> None:
    log: list[tuple[str, object]] = []
    async with ActorSystem() as system:
        ref = await system.spawn(Recorder, "a", log)
        await asyncio.gather(ref.stop("first"), ref.stop("second"))
        await ref.stop("third")
        assert log == [("a", "first")]


async def test_an_actor_that_never_had_a_message_runs_on_stop_too() -> None:
    log: list[tuple[str, object]] = []
    async with ActorSystem() as system:
        await system.spawn(Recorder, "a", log)
        await system.spawn(Recorder, "b", log)
    assert log == [("b", "shutdown"), ("a", "shutdown")]


async def test_children_stop_after_their_parents_on_stop_in_reverse_order_of_their_start() -> None:
    log: list[tuple[str, object]] = []
    async with ActorSystem() as system:
        parent = await system.spawn(Recorder, "parent", log)
        first, _ = await parent.ask(Recorder.bear, "first", "second")
        await first.ask(Recorder.bear, "grandchild")
        await parent.stop()
        assert log == [("parent", "normal"), ("second", "shutdown"), ("first", "shutdown"), ("grandchild", "shutdown")]
        assert parent.info().children == ()


async def test_a_handler_that_does_not_end_is_killed_after_shutdown_seconds() -> None:
    class Short(Worker, shutdown=0.02): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Short)
        gate, held = await busy(ref)
        await asyncio.wait_for(ref.stop(), 4)
        assert gate.outcome == "cancelled"
        error = await outcome(held)
        assert isinstance(error, ActorStopped)
        assert error.started


async def test_an_on_stop_that_does_not_end_is_killed_after_shutdown_seconds() -> None:
    gate = Gate()

    class Stuck(Worker, shutdown=0.02):
        async def on_stop(self, reason: object) -> None:
            await gate.walk()

    async with ActorSystem() as system:
        ref = await system.spawn(Stuck)
        await asyncio.wait_for(ref.stop(), 4)
        assert gate.outcome == "cancelled"
        ref = await system.spawn(Stuck)
        ref.tell(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)


async def test_a_stop_says_itself_how_long_it_waits_and_zero_kills() -> None:
    async with ActorSystem() as system:
        for seconds in (0, 0.02):
            ref = await system.spawn(Worker)
            gate, held = await busy(ref)
            await asyncio.wait_for(ref.stop(shutdown=seconds), 4)
            assert gate.outcome == "cancelled"
            assert isinstance(await outcome(held), ActorStopped)


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5"])
async def test_a_shutdown_out_of_range_is_an_error_that_names_it(seconds: object) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        with pytest.raises(ValueError, match="shutdown="):
            await ref.stop(shutdown=seconds)  # type: ignore[arg-type]
        assert ref.info().state is State.RUNNING


async def test_an_actor_may_stop_itself_in_two_ways_and_its_message_still_ends() -> None:
    async with ActorSystem() as system:
        for way in ("self.stop", "ref.stop"):
            ref = await system.spawn(Worker)

            async def leave(actor: Worker, way: str = way) -> str:
                if way == "self.stop":
                    actor.stop("own wish")
                else:
                    await actor.ref.stop("own wish")
                await asyncio.sleep(0)
                return "ended"

            assert await asyncio.wait_for(ref.ask(Worker.call, leave), 4) == "ended"
            await until(lambda ref=ref: ref.info().state is State.STOPPED)


async def test_a_handler_whose_message_descends_from_an_actor_may_stop_that_actor() -> None:
    async with ActorSystem() as system:
        front, back = await system.spawn(Worker), await system.spawn(Worker)

        async def stop_front(actor: Worker) -> str:
            await front.stop()
            return "asked for it"

        async def ask_back(actor: Worker) -> str:
            return await back.ask(Worker.call, stop_front)

        assert await asyncio.wait_for(front.ask(Worker.call, ask_back), 4) == "asked for it"
        await until(lambda: front.info().state is State.STOPPED)


async def test_a_stop_that_is_cancelled_goes_on() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        gate, held = await busy(ref)
        stop = await started(ref.stop())
        stop.cancel()
        assert isinstance(await outcome(stop), asyncio.CancelledError)
        gate.open.set()
        await held
        await until(lambda: ref.info().state is State.STOPPED)


async def test_an_exception_in_on_stop_is_reported_and_the_actor_ends() -> None:
    class Bad(Worker):
        async def on_stop(self, reason: object) -> None:
            raise Boom("in on_stop")

    async with ActorSystem() as system:
        crashes: list[object] = []
        system.events.on("actor.crashed", crashes.append)
        ref = await system.spawn(Bad)
        await asyncio.wait_for(ref.stop(), 4)
        assert len(crashes) == 1
        assert ref.info().state is State.STOPPED


async def test_an_ask_to_itself_in_on_stop_fails_and_does_not_hang() -> None:
    errors: list[BaseException] = []

    class Asking(Worker):
        async def on_stop(self, reason: object) -> None:
            try:
                await self.ref.ask(Worker.add, 1)
            except Exception as error:
                errors.append(error)

    async with ActorSystem() as system:
        ref = await system.spawn(Asking)
        await asyncio.wait_for(ref.stop(), 4)
    assert len(errors) == 1


async def test_on_stop_may_ask_its_children_because_they_still_run() -> None:
    class Parent(Worker):
        async def on_start(self) -> None:
            self.child = await self.spawn(Worker, 40)

        async def on_stop(self, reason: object) -> None:
            answers.append(await self.child.ask(Worker.add, 2))

    answers: list[int] = []
    async with ActorSystem() as system:
        ref = await system.spawn(Parent)
        await ref.stop()
    assert answers == [42]


async def test_a_child_spawned_in_on_stop_ends_with_its_parent() -> None:
    children: list[ActorRef[Worker]] = []

    class Parent(Worker):
        async def on_stop(self, reason: object) -> None:
            children.append(await self.spawn(Worker))

    async with ActorSystem() as system:
        ref = await system.spawn(Parent)
        await ref.stop()
        assert children[0].info().state is State.STOPPED


async def test_a_child_spawned_by_a_task_that_outlived_its_actor_is_refused() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        actors: list[Worker] = []

        async def escape(actor: Worker) -> None:
            actors.append(actor)

        await ref.ask(Worker.call, escape)
        await ref.stop()
        result = await outcome(asyncio.ensure_future(actors[0].spawn(Worker)))
        assert isinstance(result, Exception), "a child of a parent that has ended: nobody will ever stop it"


async def test_a_timer_set_in_on_stop_dies_with_the_actor() -> None:
    class Setting(Worker):
        async def on_stop(self, reason: object) -> None:
            self.tell_every(0.001, Worker.add, 1)

    async with ActorSystem() as system:
        ref = await system.spawn(Setting)
        await ref.stop()
        timers = [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
        assert [handle for handle in timers if "Timer" in repr(handle)] == []


async def test_stopping_a_suspended_actor_ends_it() -> None:
    log: list[tuple[str, object]] = []
    async with ActorSystem() as system:
        ref = await system.spawn(Recorder, "a", log)
        ref.suspend()
        asked = await started(ref.ask(Worker.add, 1))
        await asyncio.wait_for(ref.stop(), 4)
        assert isinstance(await outcome(asked), ActorStopped)
        assert log == [("a", "normal")]


async def test_an_ask_that_is_answered_by_the_last_message_is_not_answered_twice() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def stop_and_answer(actor: Worker) -> str:
            actor.stop()
            return "answered"

        assert await ref.ask(Worker.call, stop_and_answer) == "answered"
        await until(lambda: ref.info().state is State.STOPPED)


async def test_a_patient_stop_waits_for_ever() -> None:
    class Patient(Worker, shutdown=math.inf): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Patient)
        gate, held = await busy(ref.with_options(timeout=math.inf))
        stop = await started(ref.stop())
        await turns(50)
        assert not stop.done()
        gate.open.set()
        await stop
        await held


async def test_stopping_a_parent_from_its_childs_handler_does_not_wait_for_itself() -> None:
    class Child(Actor):
        async def end_family(self, parent: ActorRef[Worker]) -> str:
            await parent.stop()
            return "asked for it"

    class Parent(Worker):
        async def bear(self) -> ActorRef[Child]:
            return await self.spawn(Child)

    async with ActorSystem() as system:
        parent = await system.spawn(Parent)
        child = await parent.ask(Parent.bear)
        result = await asyncio.wait_for(child.ask(Child.end_family, parent), 4)
        assert result == "asked for it"
        await until(lambda: parent.info().state is State.STOPPED)


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("hook", [False, True], ids=["without on_stop", "with on_stop"])
async def test_a_generator_exit_of_a_handler_that_stops_its_actor_is_an_end_and_not_a_hang(
    slots: int, hook: bool
) -> None:
    class Last(Actor, max_concurrency=slots, timeout=math.inf):
        async def leave(self) -> None:
            self.stop()
            raise GeneratorExit

    class LastWithHook(Last):
        async def on_stop(self, reason: object) -> None:
            pass

    async with ActorSystem() as system:
        ref = await system.spawn(LastWithHook if hook else Last)
        with pytest.raises(ActorStopped) as raised:
            await asyncio.wait_for(ref.ask(Last.leave), 60)
        assert raised.value.started
        await until(lambda: ref.info().state is State.STOPPED)


async def test_an_ordered_stop_with_its_hook_is_told_as_a_stop() -> None:
    class Tidy(Worker):
        async def on_stop(self, reason: object) -> None:
            await asyncio.sleep(0)

    async with ActorSystem() as system:
        told = hear(system.events, "actor.*")
        ref = await system.spawn(Tidy)
        await ref.ask(Tidy.add, 1)
        await ref.stop()
        assert [event.type for event in told] == ["actor.started", "actor.stopped"]
