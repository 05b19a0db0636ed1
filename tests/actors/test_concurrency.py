"""How many messages an actor handles at one time."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import Actor, ActorSystem, State
from promptside.errors import ActorStopped
from tests.support.actors import Boom, Worker, busy, outcome, started, turns, until


class Counting(Actor):
    inside = 0
    most = 0

    async def enter(self) -> int:
        self.inside += 1
        self.most = max(self.most, self.inside)
        await turns(3)
        self.inside -= 1
        return self.most


class Three(Counting, max_concurrency=3): ...


@pytest.mark.parametrize(("kind", "limit"), [(Counting, 1), (Three, 3)])
async def test_no_more_messages_are_inside_than_the_class_says(kind: type[Counting], limit: int) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        tells = 20
        for _ in range(tells):
            ref.tell(Counting.enter)
        assert max(await asyncio.gather(*(ref.ask(Counting.enter) for _ in range(50)))) == limit


async def test_the_next_message_begins_when_one_ends_in_order_of_arrival() -> None:
    class Two(Worker, max_concurrency=2): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Two)
        inside = [await busy(ref) for _ in range(2)]
        order: list[int] = []

        def note(number: int):
            async def append(actor: Worker) -> None:
                order.append(number)

            return append

        queued = [await started(ref.ask(Worker.call, note(number))) for number in range(4)]
        assert ref.info().mailbox == 4
        inside[1][0].open.set()
        await asyncio.gather(*queued)
        assert order == [0, 1, 2, 3]
        inside[0][0].open.set()
        await asyncio.gather(*(task for _, task in inside))


async def test_on_start_comes_before_and_on_stop_after_every_message() -> None:
    log: list[str] = []

    class Two(Worker, max_concurrency=2):
        async def on_start(self) -> None:
            await turns(3)
            log.append("start")

        async def on_stop(self, reason: object) -> None:
            log.append("stop")

    async with ActorSystem() as system:
        ref = await system.spawn(Two)
        inside = [await busy(ref) for _ in range(2)]
        stop = await started(ref.stop())
        inside[0][0].open.set()
        await turns()
        assert log == ["start"]
        inside[1][0].open.set()
        await stop
        assert log == ["start", "stop"]
        await asyncio.gather(*(task for _, task in inside))


async def test_a_crash_of_one_message_ends_all_and_a_late_failure_of_another_is_not_a_second_crash() -> None:
    class Three(Worker, max_concurrency=3): ...

    async with ActorSystem() as system:
        crashes: list[object] = []
        system.events.on("actor.crashed", crashes.append)
        ref = await system.spawn(Three)

        async def fail_when_cancelled(actor: Worker) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                raise Boom("second")

        asked = [await started(ref.ask(Worker.call, fail_when_cancelled)) for _ in range(2)]
        with pytest.raises(Boom, match="first"):
            await ref.ask(Worker.fail, Boom("first"))
        for task in asked:
            assert isinstance(await outcome(task), ActorStopped)
        await until(lambda: ref.info().state is State.STOPPED)
        assert len(crashes) == 1


async def test_a_task_of_a_message_that_somebody_else_cancels_leaves_no_asker_waiting() -> None:
    class Three(Worker, max_concurrency=3): ...

    async with ActorSystem() as system:
        for wait in (False, True):
            ref = await system.spawn(Three)
            asked = asyncio.ensure_future(ref.ask(Worker.call, lambda actor: asyncio.Event().wait()))
            await until(lambda ref=ref: ref._cell.active)
            if wait:
                await turns(3)
            for task in tuple(ref._cell.active.values()):
                task.cancel()
            done, _ = await asyncio.wait({asked}, timeout=4)
            assert done, "the asker hangs"
            assert isinstance(asked.exception(), ActorStopped)
