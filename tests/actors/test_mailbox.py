"""The mailbox: its bound, its three policies, and what may pass a full one."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import ActorSystem, State
from promptside.errors import MailboxFull
from tests.support.actors import Worker, busy, hear, outcome, started, turns


class Rejecting(Worker, mailbox=2): ...


class Oldest(Worker, mailbox=2, overflow="drop_oldest"): ...


class Newest(Worker, mailbox=2, overflow="drop_newest"): ...


async def test_a_full_mailbox_rejects_in_the_sender_and_names_its_bound() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Rejecting)
        gate, held = await busy(ref)
        ref.tell(Worker.note, 1)
        asked = await started(ref.ask(Worker.add, 1))
        for send in (lambda: ref.tell(Worker.note, 2), lambda: ref.send_message("x")):
            with pytest.raises(MailboxFull) as raised:
                send()
            assert raised.value.capacity == 2
            assert "ref.deliver" in str(raised.value)
        with pytest.raises(MailboxFull):
            await ref.ask(Worker.add, 1)
        with pytest.raises(MailboxFull):
            await anext(ref.stream(Worker.count_to, 1))
        gate.open.set()
        assert (await held, await asked) == ("passed", 1)
        assert await ref.ask(Worker.notes) == [1]


async def test_drop_oldest_makes_a_dead_letter_of_the_oldest() -> None:
    async with ActorSystem() as system:
        letters = hear(system.events, "message.dead")
        ref = await system.spawn(Oldest)
        gate, held = await busy(ref)
        for number in (1, 2, 3):
            ref.tell(Worker.note, number)
        assert (system.dead_letters, len(letters)) == (1, 1)
        assert letters[0].data["reason"] == "mailbox full"
        gate.open.set()
        await held
        assert await ref.ask(Worker.notes) == [2, 3]


async def test_drop_oldest_tells_the_asker_whose_message_was_dropped() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Oldest)
        gate, held = await busy(ref)
        asked = await started(ref.ask(Worker.add, 1))
        ref.tell(Worker.note, 1)
        ref.tell(Worker.note, 2)
        assert isinstance(await outcome(asked), MailboxFull)
        gate.open.set()
        await held
        assert await ref.ask(Worker.add, 0) == 0


async def test_drop_newest_makes_a_dead_letter_of_the_newest_and_fails_an_ask() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Newest)
        gate, held = await busy(ref)
        for number in (1, 2, 3):
            ref.tell(Worker.note, number)
        with pytest.raises(MailboxFull):
            await ref.ask(Worker.add, 1)
        assert system.dead_letters >= 1
        gate.open.set()
        await held
        assert await ref.ask(Worker.notes) == [1, 2]


async def test_every_message_that_is_dropped_is_counted_asks_included() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Oldest)
        gate, held = await busy(ref)
        asked = await started(ref.ask(Worker.add, 1))
        ref.tell(Worker.note, 1)
        ref.tell(Worker.note, 2)
        await outcome(asked)
        assert system.dead_letters == 1
        gate.open.set()
        await held


async def test_asks_that_were_given_up_make_room() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Rejecting)
        gate, held = await busy(ref)
        given_up = [await started(ref.ask(Worker.add, 100)) for _ in range(2)]
        for task in given_up:
            task.cancel()
        await asyncio.wait(given_up)
        assert ref.info().mailbox == system.statistics().queued == system.tree().children[0].mailbox == 0
        ref.tell(Worker.note, 1)
        ref.tell(Worker.note, 2)
        assert ref.info().mailbox == system.statistics().queued == system.tree().children[0].mailbox == 2
        gate.open.set()
        await held
        assert await ref.ask(Worker.notes) == [1, 2]
        assert await ref.ask(Worker.add, 0) == 0


async def test_stop_kill_suspend_and_info_pass_a_full_mailbox() -> None:
    async with ActorSystem() as system:
        for end in ("stop", "kill"):
            ref = await system.spawn(Rejecting)
            gate, held = await busy(ref)
            ref.tell(Worker.note, 1)
            ref.tell(Worker.note, 2)
            assert ref.info().mailbox == 2
            ref.suspend()
            assert ref.info().suspended
            if end == "stop":
                stop = await started(ref.stop())
                gate.open.set()
                await stop
            else:
                ref.kill()
            await outcome(held)
            await turns()
            assert ref.info().state is State.STOPPED


async def test_a_down_message_is_refused_by_no_bound_and_dropped_by_no_policy() -> None:
    async with ActorSystem() as system:
        for kind in (Rejecting, Oldest, Newest):
            watcher = await system.spawn(kind)
            watched = await system.spawn(Worker)

            async def watch(actor: Worker, watched=watched) -> None:
                actor.monitor(watched)

            await watcher.ask(Worker.call, watch)
            gate, held = await busy(watcher)
            watcher.tell(Worker.note, 1)
            watcher.tell(Worker.note, 2)
            await watched.stop()
            if kind is not Rejecting:
                watcher.tell(Worker.note, 3)
                watcher.tell(Worker.note, 4)
                watcher.tell(Worker.note, 5)
            gate.open.set()
            await held
            notes = await watcher.ask(Worker.notes)
            assert [each for each in notes if not isinstance(each, int)], f"{kind.__name__} lost its Down"


async def test_a_mailbox_without_bound_takes_what_comes() -> None:
    class Endless(Worker, mailbox=float("inf")): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Endless)
        for number in range(5000):
            ref.tell(Worker.note, number)
        assert len(await ref.ask(Worker.notes)) == 5000


async def test_a_long_queue_does_not_keep_the_loop_from_others() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        other = await system.spawn(Worker)
        for number in range(1000):
            ref.tell(Worker.note, number)
        await other.ask(Worker.add, 1)
        assert ref.info().mailbox > 0, "the other actor had to wait for the whole queue"
