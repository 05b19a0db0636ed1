"""References from other threads and other event loops, a loop that is closed, and a loop that is blocked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from promptside.actors import ActorRef, ActorSystem, State
from promptside.errors import ActorStopped, AskTimeout, MailboxFull
from tests.support.actors import Boom, Gate, Worker, busy, hear, outcome, started, turns, until


class Small(Worker, mailbox=2): ...


def elsewhere(function: Callable[[], Any]) -> Any:
    """Run a coroutine function on an event loop of its own, in a thread of its own."""
    return asyncio.to_thread(lambda: asyncio.run(function()))


async def test_ask_tell_deliver_and_stop_from_another_loop() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def use() -> list[int]:
            ref.tell(Worker.add, 1)
            await ref.deliver(Worker.add, 1)
            answers = await asyncio.gather(*(ref.ask(Worker.add, 1) for _ in range(50)))
            with pytest.raises(Boom):
                await ref.ask(Worker.call, fail)
            await ref.stop()
            with pytest.raises(ActorStopped):
                await ref.ask(Worker.add, 1)
            return answers

        async def fail(actor: Worker) -> None:
            raise Boom

        class Calm(Worker, expected=(Boom,)): ...

        ref = await system.spawn(Calm)
        assert await elsewhere(use) == list(range(3, 53))
        assert ref.info().state is State.STOPPED


async def test_tell_kill_and_info_from_a_plain_thread() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await asyncio.to_thread(ref.tell, Worker.note, 1)
        await asyncio.to_thread(ref.send_message, 2)
        await until(lambda: ref.info().handled == 2)
        assert (await asyncio.to_thread(ref.info)).state is State.RUNNING
        gate, held = await busy(ref)
        await asyncio.to_thread(ref.kill)
        assert isinstance(await outcome(held), ActorStopped)
        assert gate.outcome == "cancelled"


async def test_a_full_mailbox_from_a_thread_is_a_dead_letter_for_tell_and_an_error_for_ask() -> None:
    async with ActorSystem() as system:
        letters = hear(system.events, "message.dead")
        ref = await system.spawn(Small)
        gate, held = await busy(ref)
        ref.tell(Worker.note, 1)
        ref.tell(Worker.note, 2)
        await asyncio.to_thread(ref.tell, Worker.note, 3)
        await until(lambda: letters)
        assert system.dead_letters == 1
        with pytest.raises(MailboxFull):
            await elsewhere(lambda: ref.ask(Worker.add, 1))
        gate.open.set()
        await held
        assert await ref.ask(Worker.notes) == [1, 2]


async def test_an_ask_from_another_loop_is_cancelled_by_its_asker_and_the_handler_with_it() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        gate = Gate()

        async def ask_and_give_up() -> str:
            try:
                async with asyncio.timeout(0.03):
                    await ref.ask(Worker.hold, gate)
            except TimeoutError:
                return "gave up"
            return "answered"

        assert await elsewhere(ask_and_give_up) == "gave up"
        await until(lambda: gate.outcome == "cancelled")
        assert await ref.ask(Worker.add, 1) == 1


async def test_a_callers_timeout_works_while_the_actors_loop_is_blocked() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        told: list[BaseException] = []
        over = threading.Event()

        async def ask() -> None:
            try:
                await ref.with_options(timeout=0.02).ask(Worker.add, 100)
            except AskTimeout as error:
                told.append(error)
            over.set()

        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        assert over.wait(5), "the caller waits for a loop that is blocked"
        thread.join()
        assert isinstance(told[0], AskTimeout)
        assert not told[0].started
        await turns()
        assert await ref.ask(Worker.add, 0) == 0, "an ask that has timed out is not run later"


async def test_a_blocked_home_loop_does_not_stop_an_actor_on_another_node() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        ref = await system.with_options(node=node).spawn(Worker)
        answers: list[int] = []
        over = threading.Event()

        async def ask() -> None:
            answers.append(await ref.ask(Worker.add, 1))
            over.set()

        thread = threading.Thread(target=lambda: asyncio.run(ask()))
        thread.start()
        assert over.wait(5), "the node's actor waits for the home loop"
        thread.join()
        assert answers == [1]


async def test_a_system_that_has_closed_answers_every_thread_with_actor_stopped() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        near = await system.spawn(Worker)
        far = await system.with_options(node=node).spawn(Worker)
    for ref in (near, far):
        for ask in (ref.ask(Worker.add, 1), elsewhere(lambda ref=ref: ref.ask(Worker.add, 1))):
            error = await outcome(asyncio.ensure_future(ask))
            assert isinstance(error, ActorStopped)
            assert not error.started
        error = await outcome(asyncio.ensure_future(ref.deliver(Worker.add, 1)))
        assert isinstance(error, ActorStopped)
        error = await outcome(asyncio.ensure_future(anext(ref.stream(Worker.count_to, 1))))
        assert isinstance(error, ActorStopped)
        assert await outcome(asyncio.ensure_future(ref.stop())) is None, "it has ended: there is nothing to wait for"
        ref.kill()
        ref.suspend()
        assert ref.info().state is State.STOPPED


def left_on_a_closed_loop() -> ActorRef[Worker]:
    """A ref whose loop was closed by force, without leaving the system."""
    loop = asyncio.new_event_loop()
    system = ActorSystem()

    async def begin() -> ActorRef[Worker]:
        await system.__aenter__()
        return await system.spawn(Worker)

    try:
        return loop.run_until_complete(begin())
    finally:
        loop.close()


@pytest.mark.parametrize("where", ["another thread", "the same thread"])
def test_a_closed_loop_is_actor_stopped(where: str) -> None:
    refs: list[ActorRef[Worker]] = []
    if where == "the same thread":
        refs.append(left_on_a_closed_loop())
    else:
        thread = threading.Thread(target=lambda: refs.append(left_on_a_closed_loop()))
        thread.start()
        thread.join()
    (ref,) = refs

    async def use() -> None:
        for _ in range(2):
            with pytest.raises(ActorStopped):
                await ref.ask(Worker.add, 1)
        with pytest.raises(ActorStopped):
            ref.tell(Worker.add, 1)
        with pytest.raises(ActorStopped):
            await ref.deliver(Worker.add, 1)
        with pytest.raises(ActorStopped):
            await anext(ref.stream(Worker.count_to, 3))
        await ref.stop()
        ref.kill()

    asyncio.run(use())


def test_a_ref_may_be_used_by_another_run_in_the_same_thread() -> None:
    refs: list[ActorRef[Worker]] = []

    async def first() -> None:
        async with ActorSystem() as system:
            refs.append(await system.spawn(Worker))
            await refs[0].ask(Worker.add, 1)

    async def second() -> BaseException:
        try:
            await refs[0].ask(Worker.add, 1)
        except ActorStopped as error:
            return error
        raise AssertionError("it was answered")

    asyncio.run(first())
    assert asyncio.run(second()).started is False


async def test_many_threads_asking_and_cancelling_get_one_outcome_each() -> None:
    class Calm(Worker, expected=(Boom,)): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Calm)

        async def one(number: int) -> str:
            try:
                if number % 5 == 0:
                    async with asyncio.timeout(0.002):
                        await ref.ask(Worker.hold, Gate())
                elif number % 5 == 1:
                    await ref.ask(Worker.fail, Boom())
                else:
                    await ref.ask(Worker.add, 1)
            except TimeoutError:
                return "timeout"
            except Boom:
                return "boom"
            return "answer"

        async def all_of_them() -> list[str]:
            return await asyncio.gather(*(one(number) for number in range(50)))

        outcomes = await asyncio.wait_for(asyncio.gather(*(elsewhere(all_of_them) for _ in range(4))), 20)
        assert [len(each) for each in outcomes] == [50] * 4
        assert await ref.ask(Worker.add, 0) >= 4 * 30
        assert ref.incarnation == 1


async def test_an_actor_is_spawned_from_another_loop_on_its_own_node() -> None:
    async with ActorSystem() as system:
        ref = await elsewhere(lambda: system.spawn(Worker, 5))
        assert await ref.ask(Worker.add, 1) == 6


async def test_a_stop_from_a_blocked_loops_side_is_not_lost() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        ref = await system.with_options(node=node).spawn(Worker)

        async def block(actor: Worker) -> None:
            time.sleep(0.05)

        asked = await started(ref.ask(Worker.call, block))
        await asyncio.wait_for(ref.stop(), 5)
        assert ref.info().state is State.STOPPED
        await outcome(asked)
