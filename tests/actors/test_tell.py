"""Tell, deliver and plain messages: fire and forget, and what happens to those that cannot be delivered."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import Actor, ActorSystem, State
from promptside.actors.lifecycle import crash
from promptside.actors.spi import cell_of
from promptside.errors import MailboxFull, UnhandledMessage
from tests.support.actors import Boom, Gate, Worker, busy, hear, outcome, started, turns, until


class Fresh(Actor):
    async def never_used(self) -> None: ...


class Small(Worker, mailbox=2): ...


async def test_a_tell_returns_before_the_message_is_handled() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        seen: list[int] = []

        async def note(actor: Worker) -> None:
            seen.append(1)

        worker.tell(Worker.call, note)
        assert seen == []
        await worker.ask(Worker.add, 0)
        assert seen == [1]


async def test_an_exception_in_a_tell_is_a_crash_and_is_published() -> None:
    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        worker = await system.spawn(Worker)
        worker.tell(Worker.fail, Boom("in a tell"))
        await until(lambda: worker.info().state is State.STOPPED)
        assert [(event.data["error"], event.data["message"]) for event in crashes] == [("Boom", "in a tell")]


async def test_an_expected_exception_in_a_tell_is_a_crash_all_the_same() -> None:
    class Parser(Worker, expected=(Boom,)): ...

    async with ActorSystem() as system:
        parser = await system.spawn(Parser)
        parser.tell(Worker.fail, Boom())
        await until(lambda: parser.info().state is State.STOPPED)


async def test_a_tell_to_a_stopped_actor_is_a_dead_letter() -> None:
    async with ActorSystem() as system:
        letters = hear(system.events, "message.dead")
        worker = await system.spawn(Worker)
        await worker.stop()
        worker.tell(Worker.add, 1)
        assert system.dead_letters == 1
        assert [event.data["method"] for event in letters] == ["add"]


async def test_a_tell_of_a_method_never_used_before_to_a_stopped_actor_is_a_dead_letter_too() -> None:
    async with ActorSystem() as system:
        fresh = await system.spawn(Fresh)
        await fresh.stop()
        fresh.tell(Fresh.never_used)
        assert system.dead_letters == 1


async def test_a_wrong_method_told_to_a_stopped_actor_is_a_type_error_still() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        await worker.stop()
        with pytest.raises(TypeError, match="not a method of Worker"):
            worker.tell(Fresh.never_used)  # type: ignore[arg-type]


async def test_a_plain_message_reaches_receive_in_its_order() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        worker.tell(Worker.note, 1)
        worker.send_message({"two": 2})
        worker.tell(Worker.note, 3)
        assert await worker.ask(Worker.notes) == [1, {"two": 2}, 3]


async def test_a_plain_message_to_an_actor_without_receive_is_a_crash_that_names_it() -> None:
    async with ActorSystem() as system:
        watched = await system.spawn(Fresh)
        watcher = await system.spawn(Worker)

        async def watch(actor: Worker) -> None:
            actor.monitor(watched)

        await watcher.ask(Worker.call, watch)
        watched.send_message({"a": 1})
        await until(lambda: watched.info().state is State.STOPPED)
        (down,) = await watcher.ask(Worker.notes)
        assert isinstance(down.reason, UnhandledMessage)
        assert down.reason.message == {"a": 1}


async def test_deliver_waits_for_room_and_keeps_the_order() -> None:
    async with ActorSystem() as system:
        small = await system.spawn(Small)
        gate, held = await busy(small)
        small.tell(Worker.note, 1)
        small.tell(Worker.note, 2)
        third = await started(small.deliver(Worker.note, 3))
        fourth = await started(small.deliver(Worker.note, 4))
        assert not third.done()
        with pytest.raises(MailboxFull):
            small.tell(Worker.note, 9)
        gate.open.set()
        await third
        await fourth
        assert await held == "passed"
        await turns()
        assert await small.ask(Worker.notes) == [1, 2, 3, 4]


async def test_a_deliver_that_is_cancelled_leaves_its_message_out() -> None:
    async with ActorSystem() as system:
        small = await system.spawn(Small)
        gate, held = await busy(small)
        small.tell(Worker.note, 1)
        small.tell(Worker.note, 2)
        third = await started(small.deliver(Worker.note, 3))
        fourth = await started(small.deliver(Worker.note, 4))
        third.cancel()
        gate.open.set()
        await fourth
        await held
        await turns()
        assert await small.ask(Worker.notes) == [1, 2, 4]


async def test_a_deliver_that_is_cancelled_in_the_turn_that_lets_it_in_leaves_its_message_out() -> None:
    async with ActorSystem() as system:
        small = await system.spawn(Small)
        gate, held = await busy(small)
        delivering: list[asyncio.Task[None]] = []
        second = Gate()

        async def cancel_the_deliver(actor: Worker) -> None:
            delivering[0].cancel()  # its message is in the mailbox now, and it has not been told
            await second.walk()

        small.tell(Worker.call, cancel_the_deliver)
        small.tell(Worker.note, 1)
        delivering.append(await started(small.deliver(Worker.note, 2)))
        third = await started(small.deliver(Worker.note, 3))
        gate.open.set()
        assert isinstance(await outcome(delivering[0]), asyncio.CancelledError)
        await third  # there is room for it again
        second.open.set()
        await held
        await turns()
        assert await small.ask(Worker.notes) == [1, 3]


async def test_a_deliver_that_waits_fails_when_the_actor_ends() -> None:
    async with ActorSystem() as system:
        for end in ("stop", "kill", "crash"):
            small = await system.spawn(Small)
            gate, held = await busy(small)
            small.tell(Worker.note, 1)
            small.tell(Worker.note, 2)
            waiting = await started(small.deliver(Worker.note, 3))
            if end == "stop":
                stop = await started(small.stop())
                gate.open.set()
                await stop
            elif end == "kill":
                small.kill()
            else:
                crash(cell_of(small), Boom())
            error = await outcome(waiting)
            assert type(error).__name__ == "ActorStopped", end
            assert not error.started
            await outcome(held)


async def test_deliver_to_a_stopped_actor_fails_at_once() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        await worker.stop()
        error = await outcome(await started(worker.deliver(Worker.note, 1)))
        assert type(error).__name__ == "ActorStopped"


async def test_a_handler_may_tell_itself_and_the_message_comes_after_this_one() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)

        async def tell_self(actor: Worker) -> None:
            actor.ref.tell(Worker.note, "told")
            actor.seen.append("first")

        await worker.ask(Worker.call, tell_self)
        assert await worker.ask(Worker.notes) == ["first", "told"]
