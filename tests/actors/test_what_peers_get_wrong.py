"""Failures seen in other actor frameworks, each reproduced there, and what Elixir does on the same probes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, Down, State
from promptside.actors.lifecycle import crash
from promptside.actors.spi import cell_of
from promptside.errors import ActorStartError, ActorStopped, AskCycleError, AskTimeout, MaxRestartsExceeded
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Gate, Worker, busy, doomed_system, hear, outcome, started, turns, until

AT_ONCE = 0.5
"""Seconds; every timeout in these tests is longer by far, so nothing here is ended by a timeout."""


class Watching(Worker):
    async def watch(self, ref: ActorRef[Any]) -> None:
        self.monitor(ref)


async def at_once(task: asyncio.Future[Any]) -> Any:
    done, _ = await asyncio.wait({task}, timeout=AT_ONCE)
    assert done, "it hangs"
    return await outcome(task)


# -- 1 ---------------------------------------------------------------------------------------------------------


async def test_1_a_self_ask_fails_at_once_and_does_not_hang() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def ask_self(actor: Worker) -> int:
            return await actor.ref.with_options(timeout=math.inf).ask(Worker.add, 1)

        error = await at_once(asyncio.ensure_future(ref.ask(Worker.call, ask_self)))
        assert isinstance(error, AskCycleError)


# -- 2 ---------------------------------------------------------------------------------------------------------


async def test_2_an_ask_to_a_handler_that_crashes_fails_at_once() -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=math.inf)
        boom = Boom()
        assert await at_once(asyncio.ensure_future(ref.ask(Worker.fail, boom))) is boom


async def test_2_asks_that_are_queued_behind_a_crash_fail_at_once() -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=math.inf)
        asked = [asyncio.ensure_future(ref.ask(Worker.fail, Boom()))]
        asked += [asyncio.ensure_future(ref.ask(Worker.add, 1)) for _ in range(10)]
        outcomes = [await at_once(task) for task in asked]
        assert isinstance(outcomes[0], Boom)
        assert all(isinstance(each, ActorStopped) and not each.started for each in outcomes[1:])


# -- 3 ---------------------------------------------------------------------------------------------------------


async def test_3_a_callers_timeout_neither_kills_nor_restarts_the_actor_and_keeps_its_state() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", functools.partial(Worker, 41))])
        ref: ActorRef[Worker] = await supervisor.ask(Supervisor.child, "child")
        for _ in range(5):
            asked = asyncio.ensure_future(ref.with_options(timeout=0.01).ask(Worker.hold, Gate()))
            assert isinstance(await outcome(asked), AskTimeout)
        assert await ref.ask(Worker.add, 1) == 42
        assert ref.incarnation == 1


# -- 4 ---------------------------------------------------------------------------------------------------------


async def test_4_an_ask_discards_no_other_message_of_the_asker() -> None:
    async with ActorSystem() as system:
        asker, asked = await system.spawn(Worker), await system.spawn(Worker)
        gate = Gate()

        async def ask(actor: Worker) -> str:
            return await asked.ask(Worker.hold, gate)

        waiting = await started(asker.ask(Worker.call, ask))
        for number in range(5):
            asker.tell(Worker.note, number)
            asker.send_message(f"plain {number}")
        gate.open.set()
        assert await waiting == "passed"
        assert len(await asker.ask(Worker.notes)) == 10


async def test_4_a_temporary_child_is_not_restarted() -> None:
    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", Worker, restart="temporary")])
        ref = await supervisor.ask(Supervisor.child, "child")
        ref.tell(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)
        await turns()
        assert ref.incarnation == 1
        assert await supervisor.ask(Supervisor.which_children) == []


async def test_4_one_crash_counts_once_against_the_budget() -> None:
    async with doomed_system() as system:
        specs = [ChildSpec(f"child-{number}", Worker) for number in range(4)]
        supervisor = await system.spawn(Supervisor, specs, max_restarts=3)
        children = [await supervisor.ask(Supervisor.child, spec.id) for spec in specs]
        for number in range(3):
            children[number].kill()
            await until(lambda number=number: children[number].incarnation == 2)
        assert supervisor.info().state is State.RUNNING
        children[3].kill()
        await until(lambda: supervisor.info().state is State.STOPPED)


async def test_4_on_stop_runs_at_a_stop_at_a_crash_and_at_the_end_of_the_system() -> None:
    reasons: list[object] = []

    class Ending(Worker):
        async def on_stop(self, reason: object) -> None:
            reasons.append(reason)

    boom = Boom()
    async with ActorSystem() as system:
        refs = [await system.spawn(Ending) for _ in range(3)]
        await refs[0].stop()
        refs[1].tell(Worker.fail, boom)
        await until(lambda: refs[1].info().state is State.STOPPED)
    assert reasons == ["normal", boom, "shutdown"]


# -- 5 ---------------------------------------------------------------------------------------------------------


async def test_5_a_child_that_fails_in_its_start_again_and_again_uses_up_the_budget() -> None:
    starts: list[int] = []

    class Failing(Worker):
        async def on_start(self) -> None:
            starts.append(1)
            if len(starts) > 1:
                raise Boom

    async with doomed_system() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", Failing)], max_restarts=3)
        ref = await supervisor.ask(Supervisor.child, "child")
        ref.kill()
        await until(lambda: supervisor.info().state is State.STOPPED)
        assert len(starts) == 1 + 3
        error = await at_once(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(error, ActorStopped)


async def test_5_messages_queued_at_a_crash_are_not_lost_silently() -> None:
    async with ActorSystem() as system:
        letters = hear(system.events, "message.dead")
        ref = await system.spawn(Worker)
        ref.tell(Worker.fail, Boom())
        for number in range(10):
            ref.tell(Worker.note, number)
        asked = [asyncio.ensure_future(ref.ask(Worker.add, 1)) for _ in range(10)]
        outcomes = [await at_once(task) for task in asked]
        assert all(isinstance(each, ActorStopped) for each in outcomes)
        assert len(letters) == system.dead_letters == 10


# -- 6 ---------------------------------------------------------------------------------------------------------


async def test_6_an_exhausted_restart_budget_escalates() -> None:
    async with doomed_system() as system:
        inner = functools.partial(Supervisor, [ChildSpec("child", Worker)], max_restarts=1)
        outer = await system.spawn(Supervisor, [ChildSpec("inner", inner)], max_restarts=1)
        reasons = hear(system.events, "supervisor.gave_up")
        watcher = await system.spawn(Watching)
        await watcher.ask(Watching.watch, outer)
        inner_ref = await outer.ask(Supervisor.child, "inner")
        for round_ in range(2):
            await until(lambda r=round_: inner_ref.incarnation == r + 1 and inner_ref.info().state is State.RUNNING)
            child = await inner_ref.ask(Supervisor.child, "child")
            child.kill()
            await until(lambda child=child: child.incarnation == 2 and child.info().state is State.RUNNING)
            child.kill()
        await until(lambda: outer.info().state is State.STOPPED)
        await turns()
        (down,) = await watcher.ask(Worker.notes)
        assert isinstance(down, Down)
        assert isinstance(down.reason, MaxRestartsExceeded)
        assert len(reasons) == 3


async def test_6_a_stream_does_not_run_ahead_of_its_consumer() -> None:
    class Source(Actor):
        produced = 0

        async def numbers(self) -> AsyncIterator[int]:
            while True:
                self.produced += 1
                yield self.produced

    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        async with contextlib.aclosing(ref.stream(Source.numbers)) as numbers:
            assert await anext(numbers) == 1
            await turns(200)
            instance = ref._cell.instance
            assert isinstance(instance, Source)
            assert instance.produced <= 1 + 32


# -- 7 ---------------------------------------------------------------------------------------------------------


async def test_7_one_message_at_a_time_though_every_handler_waits() -> None:
    class Careful(Actor):
        inside = 0

        async def enter(self) -> None:
            assert self.inside == 0
            self.inside += 1
            await turns(3)
            self.inside -= 1

    async with ActorSystem() as system:
        ref = await system.spawn(Careful)
        for _ in range(10):
            ref.tell(Careful.enter)
        await asyncio.gather(*(ref.ask(Careful.enter) for _ in range(20)))
        assert ref.incarnation == 1


# -- 8 ---------------------------------------------------------------------------------------------------------


async def test_8_a_stop_leaves_no_ask_hanging() -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=math.inf)
        gate, held = await busy(ref)
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(5)]
        stop = await started(ref.stop())
        outcomes = [await at_once(task) for task in queued]
        assert all(isinstance(each, ActorStopped) for each in outcomes)
        gate.open.set()
        assert await at_once(held) == "passed"
        await stop


@pytest.mark.parametrize("how", ["cancel", "timeout", "asyncio.timeout"])
async def test_8_a_cancellation_reaches_the_handler_so_that_paid_work_does_not_run_on(how: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        gate = Gate()

        async def ask() -> None:
            async with asyncio.timeout(0.02 if how == "asyncio.timeout" else None):
                await ref.with_options(timeout=0.02 if how == "timeout" else math.inf).ask(Worker.hold, gate)

        asked = asyncio.ensure_future(ask())
        await gate.entered.wait()
        if how == "cancel":
            asked.cancel()
        await outcome(asked)
        await until(lambda: gate.outcome == "cancelled")
        assert await ref.ask(Worker.add, 1) == 1


# -- 9 ---------------------------------------------------------------------------------------------------------


async def test_9_the_system_closes_though_a_handler_is_stuck() -> None:
    class Stuck(Worker, shutdown=0.02): ...

    gate = Gate()
    async with asyncio.timeout(3):
        async with ActorSystem() as system:
            ref = await system.spawn(Stuck)
            ref.tell(Worker.hold, gate)
            await gate.entered.wait()
    assert gate.outcome == "cancelled"


# -- 10 --------------------------------------------------------------------------------------------------------


async def test_10_an_exception_of_a_tell_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        watcher, ref = await system.spawn(Watching), await system.spawn(Worker)
        await watcher.ask(Watching.watch, ref)
        boom = Boom("nobody waits for me")
        ref.tell(Worker.fail, boom)
        await until(lambda: ref.info().state is State.STOPPED)
        await turns()
        (down,) = await watcher.ask(Worker.notes)
        assert down.reason is boom
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any("nobody waits for me" in record.getMessage() for record in errors)


# -- 11 --------------------------------------------------------------------------------------------------------


async def test_11_waiting_for_an_answer_does_not_block_the_loop() -> None:
    async with ActorSystem() as system:
        ref, other = await system.spawn(Worker), await system.spawn(Worker)
        gate, held = await busy(ref)
        assert await other.ask(Worker.add, 1) == 1
        ticks = 0
        while ticks < 5:
            await asyncio.sleep(0)
            ticks += 1
        gate.open.set()
        assert await held == "passed"


async def test_11_a_failing_start_surfaces_as_itself() -> None:
    boom = Boom("in init")

    class Failing(Worker):
        def __init__(self) -> None:
            raise boom

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError) as raised:
            await system.spawn(Failing)
        assert raised.value.__cause__ is boom


# -- what Elixir does on the same probes -----------------------------------------------------------------------


async def test_elixir_a_self_call_is_refused_at_once_and_the_server_goes_on() -> None:
    class Calm(Worker, expected=(AskCycleError,)): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Calm, 1)

        async def ask_self(actor: Worker) -> int:
            return await actor.ref.ask(Worker.add, 1)

        assert isinstance(await at_once(asyncio.ensure_future(ref.ask(Worker.call, ask_self))), AskCycleError)
        assert await ref.ask(Worker.add, 1) == 2


@pytest.mark.parametrize("how", ["stopped", "crashed", "killed"])
async def test_elixir_a_call_to_a_dead_server_fails_at_once(how: str) -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=math.inf)
        if how == "stopped":
            await ref.stop()
        elif how == "crashed":
            ref.tell(Worker.fail, Boom())
        else:
            ref.kill()
        await until(lambda: ref.info().state is State.STOPPED)
        for _ in range(3):
            error = await at_once(asyncio.ensure_future(ref.ask(Worker.add, 1)))
            assert isinstance(error, ActorStopped)
            assert not error.started


@pytest.mark.parametrize("how", ["crash", "kill", "stop"])
async def test_elixir_queued_and_running_calls_to_a_server_that_ends_fail_at_once(how: str) -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=math.inf)
        _, held = await busy(ref)
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(3)]
        if how == "crash":
            crash(cell_of(ref), Boom())
        elif how == "kill":
            ref.kill()
        else:
            await ref.stop(shutdown=0.02)
        errors = [await at_once(task) for task in (held, *queued)]
        assert all(isinstance(each, ActorStopped) for each in errors)
        assert [each.started for each in errors] == [True, False, False, False]


async def test_elixir_a_callers_timeout_leaves_the_server_untouched() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker, 5)
        gate, held = await busy(ref)
        asked = asyncio.ensure_future(ref.with_options(timeout=0.02).ask(Worker.add, 100))
        assert isinstance(await outcome(asked), AskTimeout)
        assert not held.done()
        gate.open.set()
        assert await held == "passed"
        assert await ref.ask(Worker.add, 0) == 5


async def test_elixir_a_supervisor_stops_its_children_in_reverse_order() -> None:
    log: list[str] = []

    class Leaving(Worker):
        async def on_start(self) -> None:
            log.append(f"start {self.ref.path.rpartition('/')[2]}")

        async def on_stop(self, reason: object) -> None:
            await turns(3)
            log.append(f"stop {self.ref.path.rpartition('/')[2]}")

    async with ActorSystem() as system:
        supervisor = await system.spawn(Supervisor, [ChildSpec(id, Leaving) for id in "abc"])
        await supervisor.stop()
    assert log == ["start a", "start b", "start c", "stop c", "stop b", "stop a"]
