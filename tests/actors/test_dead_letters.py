"""Dead letters: each lost message is counted once, published once, and logged when nobody listens."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import ActorSystem, State
from promptside.actors.lifecycle import crash
from promptside.actors.spi import cell_of
from tests.support.actors import Boom, Gate, Worker, busy, hear, outcome, started, turns, until


class Small(Worker, mailbox=2, overflow="drop_oldest"): ...


@pytest.mark.parametrize("how", ["stop", "kill", "crash"])
async def test_queued_tells_of_an_actor_that_ends_are_dead_letters_with_the_reason(how: str) -> None:
    async with ActorSystem() as system:
        letters = hear(system.events, "message.dead")
        ref = await system.spawn(Worker)
        gate, held = await busy(ref)
        for number in range(3):
            ref.tell(Worker.note, number)
        ref.send_message("plain")
        if how == "stop":
            stop = await started(ref.stop("done"))
            gate.open.set()
            await stop
            reason = "done"
        elif how == "kill":
            ref.kill()
            reason = "killed"
        else:
            crash(cell_of(ref), Boom("broken"))
            reason = "Boom: broken"
        await outcome(held)
        await until(lambda: ref.info().state is State.STOPPED)
        assert system.dead_letters == len(letters) == 4
        assert {event.data["reason"] for event in letters} == {reason}
        assert {event.source for event in letters} == {ref.path}


async def test_an_ask_that_fails_is_no_dead_letter_because_its_asker_knows() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.stop()
        await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert system.dead_letters == 0


async def test_unheard_dead_letters_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.stop()
        ref.tell(Worker.add, 1)
        logged = [record.getMessage() for record in caplog.records]
        assert any("message.dead" in line and ref.path in line for line in logged)


async def test_what_was_cancelled_while_it_was_queued_is_no_dead_letter() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        gate, held = await busy(ref)
        queued = await started(ref.ask(Worker.add, 1))
        queued.cancel()
        await outcome(queued)
        gate.open.set()
        await held
        await turns()
        assert system.dead_letters == 0


async def test_every_message_is_handled_answered_or_counted() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Small)
        sent = 200
        for number in range(sent):
            ref.tell(Worker.note, number)
            if number % 3 == 0:
                await asyncio.sleep(0)
        await until(lambda: ref.info().mailbox == 0)
        assert len(await ref.ask(Worker.notes)) + system.dead_letters == sent


async def test_messages_sent_after_the_system_has_closed_are_counted() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await outcome(asyncio.ensure_future(ref.with_options(timeout=0.01).ask(Worker.hold, Gate())))
    before = system.dead_letters
    ref.tell(Worker.add, 1)
    ref.send_message(1)
    await turns()
    assert system.dead_letters == before + 2
