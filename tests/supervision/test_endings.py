"""What has ended for good says what ended it, and that no restart is to be expected; and what comes back at the top."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest

from promptside import Endpoint, LMPool, Program
from promptside.actors import ActorRef, ActorSystem
from promptside.errors import ActorStartError, ActorStopped, MaxRestartsExceeded, NameTaken
from promptside.pools import PoolUnavailable
from promptside.supervision import Backoff, ChildSpec, DynamicSupervisor, Supervisor, TaskSupervisor
from promptside.testing import MockLM, run_virtual
from tests.support.actors import Boom, Worker, doomed_system, hear, outcome, until


async def ending(ref: ActorRef[Any]) -> ActorStopped:
    error = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
    assert isinstance(error, ActorStopped)
    assert error.retry_after is None
    assert not error.started
    return error


async def nested(system: ActorSystem) -> tuple[ActorRef[Worker], ActorRef[Worker]]:
    """Two workers, one below the supervisor that gives up at its first failure, and one further below."""
    inner = Supervisor.child_spec("inner", [ChildSpec("deep", Worker)])
    top = await Supervisor.start(system, [ChildSpec("first", Worker), inner], name="top", max_restarts=0)
    return top.child("first"), await top.child("inner").ask(Supervisor.child, "deep")


async def test_what_a_supervisor_that_gave_up_had_below_it_names_it() -> None:
    async with doomed_system() as system:
        first, deep = await nested(system)
        pool = LMPool(Endpoint("mock/a", engine=MockLM("Paris")))
        lm = pool.lm(cache=False)
        specs = [pool.child_spec(node=system.home), ChildSpec("frail", Worker)]
        other = await Supervisor.start(system, specs, name="other", max_restarts=0)
        first.tell(Worker.fail, Boom())
        other.child("frail").tell(Worker.fail, Boom())
        await until(lambda: system.tree().children == ())
        for ref in (first, deep):
            error = await ending(ref)
            assert isinstance(error.reason, MaxRestartsExceeded | Boom)
            assert "gave up" in str(error) or "Boom" in str(error)
        assert isinstance((await ending(deep)).reason, MaxRestartsExceeded)
        with pytest.raises(PoolUnavailable, match=r"has ended \(.*gave up") as raised:
            await lm.acall("?")
        assert raised.value.retry_after is None


async def test_what_a_system_that_has_ended_had_says_so() -> None:
    async with ActorSystem() as system:
        first, deep = await nested(system)
        pool = await LMPool(Endpoint("mock/a", engine=MockLM("Paris"))).start(system, node=system.home)
        lm = pool.lm(cache=False)
        tasks = await TaskSupervisor().start(system)
        program = await Program(lambda: dspy.Predict("question -> answer"), lm=lm).start(system)
    for ref in (first, deep):
        assert "its actor system has ended" in str(await ending(ref))
    with pytest.raises(PoolUnavailable, match="its actor system has ended") as raised:
        await lm.acall("?")
    assert raised.value.retry_after is None
    for call in (program.acall(question="?"), tasks.run(asyncio.sleep, 0)):
        with pytest.raises(ActorStopped, match="its actor system has ended") as stopped:
            await call
        assert stopped.value.retry_after is None


@pytest.mark.parametrize("above", ["top", "inner"])
def test_no_restart_is_promised_when_a_supervisor_further_up_has_ended(above: str) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            spec = ChildSpec("deep", Worker, backoff=Backoff(initial=10, jitter=0))
            top = await Supervisor.start(system, [Supervisor.child_spec("inner", [spec])], name="top")
            inner = top.child("inner")
            deep = await inner.ask(Supervisor.child, "deep")
            deep.tell(Worker.fail, Boom())
            await asyncio.sleep(1)
            assert deep.retry_after == pytest.approx(9)
            await (top.ref if above == "top" else inner).stop()
            await ending(deep)

    run_virtual(main())


# -- at the top ----------------------------------------------------------------------------------------------------


class Frail(dspy.Module):  # type: ignore[misc]
    """Crashes when it is told to."""

    async def aforward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def test_a_program_at_the_top_that_gives_up_comes_back_after_its_backoff() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            gave_up = hear(system.events, "supervisor.gave_up")
            program = Program(Frail, name="desk")
            await program.start(system, restart="permanent", backoff=Backoff(initial=10, factor=2, jitter=0))
            assert system.whereis("desk").path.endswith("/desk")
            for wait in (10, 20):
                gave_up.clear()
                while not gave_up:  # its module crashes until its supervisor gives up
                    program.ref.kill()
                    await asyncio.sleep(0.001)
                assert not program.running
                assert program.started
                before = asyncio.get_running_loop().time()
                assert (await program.acall(question="Paris")).answer == "Paris", "calls wait until it is back"
                assert asyncio.get_running_loop().time() == pytest.approx(before + wait, abs=0.1)
            await program.stop()
            assert not program.started
            assert system.tree().children == ()
            await program.start(system)
            assert (await program.acall(question="Rome")).answer == "Rome"
        assert system.failure is None

    run_virtual(main())


def test_a_supervisor_at_the_top_that_gives_up_comes_back_with_new_children() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            top = await Supervisor.start(
                system,
                [ChildSpec("worker", Worker)],
                name="top",
                max_restarts=0,
                restart="permanent",
                backoff=Backoff(initial=5, jitter=0),
            )
            first = top.child("worker")
            first.tell(Worker.fail, Boom())
            await asyncio.sleep(1)
            assert isinstance((await ending(first)).reason, MaxRestartsExceeded | Boom)
            await asyncio.sleep(5)
            assert await top.child("worker").ask(Worker.add, 1) == 1
            dynamic = await DynamicSupervisor.start(system, name="many", restart="permanent")
            assert (await dynamic.count_children()).specs == 0
        assert system.failure is None

    run_virtual(main())


async def test_a_start_that_fails_or_is_cancelled_leaves_nothing_that_would_come_back() -> None:
    async with ActorSystem() as system:

        class Failing(dspy.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                raise Boom

        with pytest.raises(ActorStartError) as raised:
            await Program(Failing, name="desk").start(system, restart="permanent")
        assert "Boom" in str(raised.value)
        assert system.tree().children == ()
        await system.with_options(name="desk").spawn(Worker)
        with pytest.raises(NameTaken):
            await Program(Frail, name="desk").start(system, restart="permanent")
        with pytest.raises(ValueError, match="restart="):
            await Program(Frail, name="other").start(system, restart="always")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="backoff="):
            await Program(Frail, name="other").start(system, backoff=Backoff())
        assert len(system.tree().children) == 1


async def test_what_ends_normally_is_not_kept_by_what_would_restart_it_at_the_top() -> None:
    async with ActorSystem() as system:
        dynamic = await DynamicSupervisor.start(system, name="many", restart="transient")
        await dynamic.ref.stop("normal")
        await until(lambda: system.tree().children == ())
    assert system.failure is None
