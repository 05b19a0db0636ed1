"""A kill: at once, without `on_stop`, through whatever the actor is doing."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import ActorRef, ActorSystem, State
from promptside.errors import ActorStopped
from tests.support.actors import Gate, Worker, busy, hear, outcome, started, turns, until


class Wide(Worker, max_concurrency=3): ...


@pytest.mark.parametrize("kind", [Worker, Wide])
async def test_a_kill_cancels_what_runs_and_answers_running_and_queued_asks(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        inside = [await busy(ref) for _ in range(kind.__options__.max_concurrency)]
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(2)]
        ref.kill()
        for (gate, held), began in [*((each, True) for each in inside), *(((Gate(), each), False) for each in queued)]:
            error = await outcome(held)
            assert isinstance(error, ActorStopped)
            assert (error.started, error.reason) == (began, "killed")
            if began:
                await until(lambda gate=gate: gate.outcome == "cancelled")
        await until(lambda: ref.info().state is State.STOPPED)


async def test_on_stop_does_not_run() -> None:
    log: list[object] = []

    class Hooked(Worker):
        async def on_stop(self, reason: object) -> None:
            log.append(reason)

    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        ref = await system.spawn(Hooked)
        ref.kill()
        assert ref.info().state is State.STOPPED
        busy_one = await system.spawn(Hooked)
        _, held = await busy(busy_one)
        busy_one.kill()
        await outcome(held)
        await until(lambda: busy_one.info().state is State.STOPPED)
        assert log == []
        assert [event.data["error"] for event in crashes] == ["killed", "killed"]


async def test_a_kill_during_on_stop_ends_it() -> None:
    gate = Gate()

    class Leaving(Worker):
        async def on_stop(self, reason: object) -> None:
            await gate.walk()

    async with ActorSystem() as system:
        ref = await system.spawn(Leaving)
        stop = await started(ref.stop())
        await gate.entered.wait()
        ref.kill()
        await asyncio.wait_for(stop, 4)
        assert gate.outcome == "cancelled"


async def test_a_kill_during_on_start_makes_the_spawn_fail() -> None:
    gate = Gate()
    refs: list[ActorRef[Worker]] = []

    class Starting(Worker):
        async def on_start(self) -> None:
            refs.append(self.ref)
            await gate.walk()

    async with ActorSystem() as system:
        spawn = await started(system.spawn(Starting))
        await gate.entered.wait()
        refs[0].kill()
        assert type(await outcome(spawn)).__name__ == "ActorStartError"
        assert gate.outcome == "cancelled"
        assert system.tree().children == ()


async def test_an_actor_may_kill_itself() -> None:
    async with ActorSystem() as system:
        for kind in (Worker, Wide):
            for wait in (False, True):
                ref = await system.spawn(kind)

                async def end(actor: Worker, wait: bool = wait) -> None:
                    actor.ref.kill()
                    if wait:
                        await asyncio.Event().wait()

                error = await outcome(asyncio.ensure_future(ref.ask(Worker.call, end)))
                assert isinstance(error, ActorStopped)
                assert error.started
                await until(lambda ref=ref: ref.info().state is State.STOPPED)


async def test_a_kill_passes_a_suspension() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        ref.suspend()
        asked = await started(ref.ask(Worker.add, 1))
        ref.kill()
        assert isinstance(await outcome(asked), ActorStopped)
        await until(lambda: ref.info().state is State.STOPPED)


async def test_the_children_of_a_killed_actor_are_killed_without_on_stop() -> None:
    log: list[str] = []

    class Child(Worker):
        async def on_stop(self, reason: object) -> None:
            log.append("on_stop")

    class Parent(Worker):
        async def bear(self) -> ActorRef[Child]:
            return await self.spawn(Child)

    async with ActorSystem() as system:
        parent = await system.spawn(Parent)
        child = await parent.ask(Parent.bear)
        gate, held = await busy(child)
        parent.kill()
        await outcome(held)
        await until(lambda: parent.info().state is State.STOPPED)
        assert child.info().state is State.STOPPED
        assert gate.outcome == "cancelled"
        assert log == []


async def test_a_kill_twice_and_after_the_end_does_nothing() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        ref.kill()
        ref.kill()
        await turns()
        ref.kill()
        assert ref.info().state is State.STOPPED


async def test_no_timer_of_a_kill_is_left_once_the_actor_has_ended() -> None:
    loop = asyncio.get_running_loop()
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        _, held = await busy(ref)
        ref.kill()
        await outcome(held)
        await until(lambda: ref.info().state is State.STOPPED)
    left = [handle for handle in loop._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]
    assert [handle for handle in left if "_leave_behind" in repr(handle)] == []
