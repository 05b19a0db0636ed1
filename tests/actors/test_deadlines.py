"""Deadlines: carried by the message, inherited by nested asks, and never harmful to the actor."""

from __future__ import annotations

import asyncio
import math

import pytest

from promptside.actors import ActorRef, ActorSystem
from promptside.errors import AskTimeout
from promptside.testing import run_virtual
from tests.support.actors import Gate, Worker, busy, outcome, started, until


async def test_a_timeout_cancels_the_handler_and_leaves_the_state_and_the_queue() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker, 7)
        gate = Gate()
        held = await started(worker.with_options(timeout=0.02).ask(Worker.hold, gate))
        queued = await started(worker.ask(Worker.add, 1))
        error = await outcome(held)
        assert isinstance(error, AskTimeout)
        assert isinstance(error, TimeoutError)
        assert (error.method, error.started, error.timeout) == ("hold", True, 0.02)
        assert await queued == 8
        assert gate.outcome == "cancelled"
        assert worker.incarnation == 1


async def test_a_message_whose_deadline_has_passed_is_not_run() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        gate, held = await busy(worker)
        error = await outcome(asyncio.ensure_future(worker.with_options(timeout=0.02).ask(Worker.add, 100)))
        assert isinstance(error, AskTimeout)
        assert not error.started
        gate.open.set()
        await held
        assert await worker.ask(Worker.add, 0) == 0


async def test_an_expired_message_is_counted_and_published() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        gate, held = await busy(worker)
        await outcome(asyncio.ensure_future(worker.with_options(timeout=0.02).ask(Worker.add, 100)))
        gate.open.set()
        await held
        await worker.ask(Worker.add, 0)
        assert system.dead_letters == 1


async def test_a_handler_that_blocks_past_its_deadline_and_then_answers_has_one_outcome() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)

        async def block(actor: Worker) -> str:
            end = asyncio.get_running_loop().time() + 0.03
            while asyncio.get_running_loop().time() < end:
                pass
            return "late"

        result = await outcome(asyncio.ensure_future(worker.with_options(timeout=0.01).ask(Worker.call, block)))
        assert result == "late" or isinstance(result, AskTimeout)
        assert await worker.ask(Worker.add, 1) == 1


async def test_a_nested_ask_inherits_the_smaller_deadline() -> None:
    async with ActorSystem() as system:
        front = await system.spawn(Worker)
        back = await system.spawn(Worker)
        gate = Gate()
        inner: list[BaseException] = []

        async def ask_back(actor: Worker) -> None:
            try:
                await back.with_options(timeout=60).ask(Worker.hold, gate)
            except BaseException as error:
                inner.append(error)
                raise

        error = await outcome(asyncio.ensure_future(front.with_options(timeout=0.03).ask(Worker.call, ask_back)))
        assert isinstance(error, AskTimeout)
        await until(lambda: gate.outcome == "cancelled")
        assert inner


async def test_a_nested_ask_with_a_smaller_timeout_keeps_its_own() -> None:
    async with ActorSystem() as system:
        front = await system.spawn(Worker)
        back = await system.spawn(Worker)

        async def ask_back(actor: Worker) -> float:
            try:
                await back.with_options(timeout=0.02).ask(Worker.hold, Gate())
            except AskTimeout as error:
                return error.timeout
            return math.nan

        assert await front.ask(Worker.call, ask_back) == pytest.approx(0.02)


async def test_the_deadline_travels_through_actors_and_nodes() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        far = await system.with_options(node=node).spawn(Worker)
        front = await system.spawn(Worker)
        gone: list[str] = []

        async def wait_long(actor: Worker) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                gone.append("cancelled")

        async def ask_far(actor: Worker) -> None:
            await far.with_options(timeout=math.inf).ask(Worker.call, wait_long)

        error = await outcome(asyncio.ensure_future(front.with_options(timeout=0.05).ask(Worker.call, ask_far)))
        assert isinstance(error, AskTimeout)
        await until(lambda: gone)


async def test_the_class_sets_the_default_timeout_and_a_ref_overrides_it() -> None:
    class Brisk(Worker, timeout=0.02): ...

    async with ActorSystem() as system:
        brisk = await system.spawn(Brisk)
        error = await outcome(asyncio.ensure_future(brisk.ask(Worker.hold, Gate())))
        assert isinstance(error, AskTimeout)
        assert error.timeout == 0.02
        gate = Gate()
        patient: ActorRef[Brisk] = brisk.with_options(timeout=math.inf)
        assert patient == brisk
        task = await started(patient.ask(Worker.hold, gate))
        short = await outcome(asyncio.ensure_future(brisk.ask(Worker.add, 1)))
        assert isinstance(short, AskTimeout)
        assert not task.done()
        gate.open.set()
        assert await task == "passed"


def test_deadlines_fire_in_their_own_order_whatever_the_order_of_the_asks() -> None:
    run_virtual(_deadlines_in_order())


async def _deadlines_in_order() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        gate, held = await busy(worker.with_options(timeout=math.inf))
        fell: list[float] = []

        async def ask(timeout: float) -> None:
            with pytest.raises(AskTimeout):
                await worker.with_options(timeout=timeout).ask(Worker.add, 1)
            fell.append(timeout)

        await asyncio.gather(*(ask(timeout) for timeout in (0.09, 0.03, 0.06)))
        assert fell == [0.03, 0.06, 0.09]
        gate.open.set()
        await held


async def test_a_timeout_within_one_actor_of_several_messages_at_once_hits_only_its_own() -> None:
    class Wide(Worker, max_concurrency=4): ...

    async with ActorSystem() as system:
        wide = await system.spawn(Wide)
        slow, quick = Gate(), Gate()
        first = await started(wide.ask(Worker.hold, slow))
        second = await started(wide.with_options(timeout=0.02).ask(Worker.hold, quick))
        assert isinstance(await outcome(second), AskTimeout)
        await until(lambda: quick.outcome == "cancelled")
        slow.open.set()
        assert await first == "passed"


async def test_an_asker_under_asyncio_timeout_gets_timeout_error_and_the_handler_is_cancelled() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        gate = Gate()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await worker.ask(Worker.hold, gate)
        await until(lambda: gate.outcome == "cancelled")
        assert await worker.ask(Worker.add, 1) == 1
