"""`expected`: exceptions that are answers, and those that are not."""

from __future__ import annotations

import asyncio
import gc

import pytest

from promptside.actors import ActorSystem, State
from tests.support.actors import Boom, Worker, hear, until


class Mishap(Boom):
    """A kind of `Boom`."""


class Calm(Worker, expected=(Boom, KeyError)): ...


class WideAndCalm(Worker, expected=(Boom,), max_concurrency=3): ...


@pytest.mark.parametrize("kind", [Calm, WideAndCalm])
async def test_an_expected_exception_is_answered_and_counted_and_the_state_is_kept(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        ref = await system.spawn(kind)
        await ref.ask(Worker.add, 5)
        for error in (Boom("a"), Mishap("b")):
            with pytest.raises(Boom) as raised:
                await ref.ask(Worker.fail, error)
            assert raised.value is error
        assert await ref.ask(Worker.add, 0) == 5
        assert (ref.incarnation, ref.info().failed, crashes) == (1, 2, [])


async def test_another_exception_is_a_crash() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Calm)
        with pytest.raises(ZeroDivisionError):
            await ref.ask(Worker.fail, ZeroDivisionError())
        await until(lambda: ref.info().state is State.STOPPED)


async def test_by_default_no_exception_is_expected() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        with pytest.raises(Boom):
            await ref.ask(Worker.fail, Boom())
        await until(lambda: ref.info().state is State.STOPPED)


async def test_expected_is_inherited() -> None:
    class Heir(Calm): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Heir)
        with pytest.raises(KeyError):
            await ref.ask(Worker.fail, KeyError("k"))
        assert await ref.ask(Worker.add, 1) == 1


async def test_the_same_exception_object_may_be_raised_for_many_askers() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Calm)
        boom = Boom()
        results = await asyncio.gather(*(ref.ask(Worker.fail, boom) for _ in range(5)), return_exceptions=True)
        assert results == [boom] * 5


async def test_stop_iteration_from_a_handler_is_an_error_and_not_a_hang() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(ref.ask(Worker.fail, StopIteration(1)), 4)


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_an_expected_exception_that_is_no_exception_is_an_answer_too_and_told_nowhere_else(
    concurrency: int,
) -> None:
    class Ended(BaseException): ...

    class Ending(Worker, expected=(Ended,), max_concurrency=concurrency): ...

    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with ActorSystem() as system:
        ref = await system.spawn(Ending)
        with pytest.raises(Ended):
            await ref.ask(Worker.fail, Ended())
        assert await ref.ask(Worker.add, 1) == 1
    gc.collect()
    assert told == []
