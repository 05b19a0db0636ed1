"""`info`, `suspend`, `resume`, the tree and the figures: looked at without asking the actor."""

from __future__ import annotations

import asyncio

import pytest

from promptside.actors import ActorRef, ActorSystem, State
from promptside.errors import AskTimeout
from tests.support.actors import Boom, Worker, busy, outcome, started, turns, until


class Calm(Worker, expected=(Boom,)):
    async def bear(self) -> ActorRef[Worker]:
        return await self.spawn(Worker)


async def test_info_of_a_busy_actor_says_what_it_does_and_what_waits() -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="desk").spawn(Calm)
        child = await ref.ask(Calm.bear)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom())
        gate, held = await busy(ref)
        ref.tell(Worker.add, 1)
        info = ref.info()
        assert (info.path, info.name, info.kind) == ("desk", "desk", "Calm")
        assert (info.state, info.suspended, info.incarnation) == (State.RUNNING, False, 1)
        assert (info.mailbox, info.current, info.cancelling) == (1, ("hold",), ())
        assert (info.handled, info.failed) == (1, 1)
        assert info.children == (child.path,)
        assert info.uptime >= 0
        gate.open.set()
        await held


async def test_info_of_an_actor_that_has_ended() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.ask(Worker.add, 1)
        await ref.stop()
        info = ref.info()
        assert (info.state, info.mailbox, info.current, info.uptime) == (State.STOPPED, 0, (), 0)
        assert info.handled == 1
        assert "stopped" in repr(ref)
        assert ref.path in repr(ref)


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_a_suspended_actor_finishes_its_message_and_takes_no_other_until_it_is_resumed(concurrency: int) -> None:
    class Some(Worker, max_concurrency=concurrency): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Some)
        gate, held = await busy(ref)
        ref.suspend()
        ref.suspend()
        queued = [await started(ref.ask(Worker.add, 1)) for _ in range(3)]
        gate.open.set()
        assert await held == "passed"
        await turns(20)
        assert not any(task.done() for task in queued)
        assert ref.info().suspended
        ref.resume()
        assert [await task for task in queued] == [1, 2, 3]
        ref.resume()
        assert not ref.info().suspended


async def test_an_idle_actor_that_never_had_a_message_can_be_suspended() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        ref.suspend()
        asked = await started(ref.ask(Worker.add, 1))
        await turns(20)
        assert not asked.done()
        ref.resume()
        assert await asked == 1


async def test_an_ask_to_a_suspended_actor_times_out() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        ref.suspend()
        error = await outcome(asyncio.ensure_future(ref.with_options(timeout=0.02).ask(Worker.add, 1)))
        assert isinstance(error, AskTimeout)
        assert not error.started
        ref.resume()
        assert await ref.ask(Worker.add, 0) == 0


async def test_a_deliver_to_a_suspended_actor_waits_only_for_room() -> None:
    class Small(Worker, mailbox=1): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Small)
        ref.suspend()
        await ref.deliver(Worker.note, 1)
        second = await started(ref.deliver(Worker.note, 2))
        assert not second.done()
        ref.resume()
        await second
        await turns()
        assert await ref.ask(Worker.notes) == [1, 2]


async def test_the_tree_is_data_and_a_text_that_names_every_actor() -> None:
    async with ActorSystem("shop") as system:
        desk = await system.with_options(name="desk").spawn(Calm)
        child = await desk.ask(Calm.bear)
        tree = system.tree()
        assert (tree.name, tree.kind) == ("shop", "system")
        assert [node.name for node in tree.children] == ["desk"]
        assert [node.kind for node in tree.children[0].children] == ["Worker"]
        for word in ("shop", "desk", child.path.rpartition("/")[2], "running"):
            assert word in str(tree)


async def test_statistics_count_starts_ends_crashes_and_dead_letters() -> None:
    async with ActorSystem() as system:
        refs = [await system.spawn(Calm) for _ in range(4)]
        await refs[0].stop()
        refs[1].kill()
        refs[2].tell(Worker.fail, Boom())
        await until(lambda: refs[2].info().state is State.STOPPED)
        refs[2].tell(Worker.add, 1)
        gate, held = await busy(refs[3])
        refs[3].tell(Worker.add, 1)
        figures = system.statistics()
        assert (figures.actors, figures.queued) == (1, 1)
        assert (figures.started, figures.stopped, figures.crashed, figures.dead_letters) == (4, 1, 2, 1)
        gate.open.set()
        await held
