"""Streams: demand, an early end, and every way in which either side can fail."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator

import pytest

from promptside.actors import Actor, ActorSystem, State
from promptside.errors import ActorStopped, AskTimeout
from tests.support.actors import Boom, Worker, busy, outcome, started, turns, until

WINDOW = 32


class Source(Actor):
    def __init__(self) -> None:
        self.produced = 0
        self.closed = 0
        self.gate = asyncio.Event()

    async def numbers(self, count: float = math.inf) -> AsyncIterator[int]:
        try:
            number = 0
            while number < count:
                number += 1
                self.produced = number
                yield number
        finally:
            self.closed += 1

    async def then_fail(self, count: int, error: BaseException) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise error

    async def then_hang(self, count: int) -> AsyncIterator[int]:
        try:
            for number in range(count):
                yield number
            await asyncio.Event().wait()
        finally:
            self.closed += 1

    async def until_opened(self) -> AsyncIterator[str]:
        yield "waiting"
        await self.gate.wait()
        yield "opened"

    async def peek(self) -> tuple[int, int]:
        return self.produced, self.closed


class Wide(Source, max_concurrency=4): ...


KINDS = pytest.mark.parametrize("kind", [Source, Wide])


@KINDS
async def test_items_arrive_in_order_and_the_stream_ends(kind: type[Source]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        assert [item async for item in ref.stream(Source.numbers, 1000)] == list(range(1, 1001))
        assert [item async for item in ref.stream(Source.numbers, 0)] == []
        assert await ref.ask(Source.peek) == (1000, 2)


@KINDS
async def test_an_early_break_stops_the_producer(kind: type[Source]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        async with contextlib.aclosing(ref.stream(Source.numbers)) as numbers:
            async for number in numbers:
                if number == 5:
                    break
        produced, closed = await asyncio.wait_for(ref.ask(Source.peek), 4)
        assert closed == 1
        assert produced <= 5 + WINDOW
        assert ref.incarnation == 1


async def test_an_early_break_without_aclosing_stops_the_producer_as_well() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        async for number in ref.stream(Source.numbers):
            if number == 5:
                break
        produced, closed = await asyncio.wait_for(ref.ask(Source.peek), 4)
        assert closed == 1
        assert produced <= 5 + WINDOW


@KINDS
async def test_a_slow_consumer_holds_the_producer_back_to_the_window(kind: type[Source]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        cell = ref._cell
        async with contextlib.aclosing(ref.stream(Source.numbers)) as numbers:
            taken = 0
            async for _ in numbers:
                taken += 1
                await turns(20)
                assert isinstance(cell.instance, Source)
                assert cell.instance.produced <= taken + WINDOW
                if taken == 100:
                    break


@KINDS
async def test_a_crash_in_the_middle_gives_the_items_and_then_the_error(kind: type[Source]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        boom, items = Boom(), []
        with pytest.raises(Boom) as raised:
            async for item in ref.stream(Source.then_fail, 10, boom):
                items.append(item)
        assert raised.value is boom
        assert items == list(range(10))
        await until(lambda: ref.info().state is State.STOPPED)


async def test_an_expected_exception_ends_a_stream_and_is_no_crash() -> None:
    class Calm(Source, expected=(Boom,)): ...

    async with ActorSystem() as system:
        ref = await system.spawn(Calm)
        with pytest.raises(Boom):
            async for _ in ref.stream(Source.then_fail, 3, Boom()):
                pass
        assert await ref.ask(Source.peek) == (0, 0)
        assert ref.info().failed == 1


async def test_the_timeout_is_for_each_item() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        items = []
        with pytest.raises(AskTimeout) as raised:
            async for item in ref.with_options(timeout=0.03).stream(Source.then_hang, 3):
                items.append(item)
                await asyncio.sleep(0.02)  # the reader's own time, three times over, does not count
        assert items == [0, 1, 2]
        assert raised.value.started
        assert (await ref.ask(Source.peek))[1] == 1


async def test_a_stream_behind_a_busy_actor_times_out_as_not_started() -> None:
    class Both(Source, Worker): ...

    class Mixed(Worker):
        async def one(self) -> AsyncIterator[int]:
            yield 1

    async with ActorSystem() as system:
        ref = await system.spawn(Mixed)
        gate, held = await busy(ref)
        with pytest.raises(AskTimeout) as raised:
            await anext(ref.with_options(timeout=0.02).stream(Mixed.one))
        assert not raised.value.started
        gate.open.set()
        await held
        assert [item async for item in ref.stream(Mixed.one)] == [1]


@KINDS
async def test_cancelling_the_reader_stops_the_producer(kind: type[Source]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)

        async def read() -> None:
            async for _ in ref.stream(Source.then_hang, 3):
                pass

        reader = await started(read())
        await turns()
        reader.cancel()
        assert isinstance(await outcome(reader), asyncio.CancelledError)
        assert (await asyncio.wait_for(ref.ask(Source.peek), 4))[1] == 1


async def test_a_stop_lets_the_stream_end() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        stream = ref.stream(Source.until_opened)
        assert await anext(stream) == "waiting"
        stop = await started(ref.stop())
        assert not stop.done()
        instance = ref._cell.instance
        assert isinstance(instance, Source)
        instance.gate.set()
        assert [item async for item in stream] == ["opened"]
        await stop


@pytest.mark.parametrize("how", ["kill", "shutdown"])
async def test_a_reader_of_an_actor_that_is_killed_gets_its_items_and_then_the_error(how: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        stream = ref.stream(Source.then_hang, 3)
        assert await anext(stream) == 0
        if how == "kill":
            ref.kill()
        else:
            await asyncio.wait_for(ref.stop(shutdown=0.02), 4)
        items = []
        with pytest.raises(ActorStopped) as raised:
            async for item in stream:
                items.append(item)
        assert items == [1, 2]
        assert raised.value.started


async def test_a_stopped_reader_that_waits_for_the_window_does_not_keep_the_actor_from_ending() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        stream = ref.stream(Source.numbers)
        assert await anext(stream) == 1
        await asyncio.wait_for(ref.stop(shutdown=0.02), 4)
        assert ref.info().state is State.STOPPED
        await stream.aclose()


async def test_a_queued_stream_fails_as_not_started_when_the_actor_stops() -> None:
    class Mixed(Worker):
        async def one(self) -> AsyncIterator[int]:
            yield 1

    async with ActorSystem() as system:
        ref = await system.spawn(Mixed)
        gate, held = await busy(ref)
        first = await started(anext(ref.stream(Mixed.one)))
        stop = await started(ref.stop())
        error = await outcome(first)
        assert isinstance(error, ActorStopped)
        assert not error.started
        gate.open.set()
        await stop
        await held


async def test_a_stream_inside_a_handler_inherits_its_deadline() -> None:
    async with ActorSystem() as system:
        source, reader = await system.spawn(Source), await system.spawn(Worker)

        async def read(actor: Worker) -> None:
            async for _ in source.with_options(timeout=60).stream(Source.then_hang, 1):
                pass

        error = await outcome(asyncio.ensure_future(reader.with_options(timeout=0.03).ask(Worker.call, read)))
        assert isinstance(error, AskTimeout)
        assert (await asyncio.wait_for(source.ask(Source.peek), 4))[1] == 1


async def test_reading_from_another_thread_and_loop_has_the_same_semantics() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)

        async def read_all() -> list[int]:
            return [item async for item in ref.stream(Source.numbers, 500)]

        async def read_some() -> int:
            async with contextlib.aclosing(ref.stream(Source.numbers)) as numbers:
                async for number in numbers:
                    if number == 5:
                        return number
            return 0

        async def read_and_fail() -> list[int]:
            items = []
            try:
                async for item in ref.with_options(timeout=0.05).stream(Source.then_hang, 3):
                    items.append(item)
            except AskTimeout:
                items.append(-1)
            return items

        assert await asyncio.to_thread(asyncio.run, read_all()) == list(range(1, 501))
        assert await asyncio.to_thread(asyncio.run, read_some()) == 5
        assert await asyncio.to_thread(asyncio.run, read_and_fail()) == [0, 1, 2, -1]
        assert (await asyncio.wait_for(ref.ask(Source.peek), 4))[1] == 3


async def test_a_stream_from_an_actor_on_another_node_is_held_back_and_stopped_too() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        ref = await system.with_options(node=node).spawn(Source)
        async with contextlib.aclosing(ref.stream(Source.numbers)) as numbers:
            async for number in numbers:
                if number == 3:
                    break
        produced, closed = await asyncio.wait_for(ref.ask(Source.peek), 4)
        assert closed == 1
        assert produced <= 3 + WINDOW
        boom = Boom()
        with pytest.raises(Boom):
            async for _ in ref.stream(Source.then_fail, 3, boom):
                pass


async def test_an_iterator_that_was_never_read_sends_nothing() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Source)
        stream = ref.stream(Source.numbers, 3)
        await stream.aclose()
        assert await ref.ask(Source.peek) == (0, 0)


async def test_other_messages_wait_for_the_end_of_a_stream_unless_the_actor_is_wide() -> None:
    async with ActorSystem() as system:
        for kind in (Source, Wide):
            ref = await system.spawn(kind)
            stream = ref.stream(Source.numbers)
            await anext(stream)
            peek = asyncio.ensure_future(ref.ask(Source.peek))
            await turns()
            assert peek.done() is (kind is Wide)
            await stream.aclose()
            await asyncio.wait_for(peek, 4)


async def test_a_stream_left_open_by_its_reader_ends_with_the_system() -> None:
    async with ActorSystem() as system:

        class Short(Source, shutdown=0.02): ...

        ref = await system.spawn(Short)
        stream = ref.stream(Source.numbers)
        await anext(stream)
    with pytest.raises(ActorStopped):
        async for _ in stream:
            pass
