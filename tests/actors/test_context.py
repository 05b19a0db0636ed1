"""The context of a message: the sender's contextvars at every step, and nothing of it in the next message."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar

import pytest

from promptside.actors import Actor, ActorSystem
from tests.support.actors import Worker, outcome, started, until

VAR: ContextVar[str] = ContextVar("VAR", default="unset")


class Wide(Worker, max_concurrency=4): ...


KINDS = pytest.mark.parametrize("kind", [Worker, Wide])


@KINDS
async def test_the_senders_contextvars_are_seen_at_every_step(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)

        async def look(actor: Worker) -> list[str]:
            seen = [VAR.get()]
            await asyncio.sleep(0)
            seen.append(VAR.get())
            seen.append(await asyncio.to_thread(VAR.get))
            seen.append(await asyncio.ensure_future(read()))
            async with asyncio.timeout(1):
                await asyncio.sleep(0)
            seen.append(VAR.get())
            return seen

        async def read() -> str:
            return VAR.get()

        for value in ("one", "two"):
            VAR.set(value)
            assert await ref.ask(Worker.call, look) == [value] * 5


@KINDS
async def test_what_a_handler_sets_is_kept_for_its_steps_and_does_not_leak_into_the_next_message_or_the_sender(
    kind: type[Worker],
) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)

        async def set_it(actor: Worker) -> str:
            VAR.set("mine")
            await asyncio.sleep(0)
            return VAR.get()

        async def get_it(actor: Worker) -> str:
            await asyncio.sleep(0)
            return VAR.get()

        assert await ref.ask(Worker.call, set_it) == "mine"
        assert VAR.get() == "unset"
        assert await ref.ask(Worker.call, get_it) == "unset"


@KINDS
async def test_a_token_is_reset_in_the_handler_that_made_it_under_cancellation_too(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        entered = asyncio.Event()
        seen: list[object] = []

        async def set_and_reset(actor: Worker) -> None:
            token = VAR.set("inside")
            try:
                entered.set()
                await asyncio.Event().wait()
            finally:
                seen.append(VAR.get())
                await asyncio.sleep(0)
                VAR.reset(token)
                seen.append(VAR.get())

        VAR.set("sender")
        asked = await started(ref.ask(Worker.call, set_and_reset))
        await entered.wait()
        asked.cancel()
        await outcome(asked)
        await until(lambda: len(seen) == 2)
        assert seen == ["inside", "sender"]


@KINDS
async def test_an_async_generator_is_closed_in_the_context_that_opened_it(kind: type[Worker]) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        seen: list[str] = []

        async def items() -> AsyncIterator[int]:
            token = VAR.set("generator")
            try:
                yield 1
                yield 2
            finally:
                seen.append(VAR.get())
                await asyncio.sleep(0)
                VAR.reset(token)
                seen.append(VAR.get())

        async def read_one(actor: Worker) -> int:
            async with contextlib.aclosing(items()) as opened:
                async for item in opened:
                    return item
            return 0

        VAR.set("sender")
        assert await ref.ask(Worker.call, read_one) == 1
        assert seen == ["generator", "sender"]


class Teller(Actor):
    async def tokens(self, seen: list[str]) -> AsyncIterator[str]:
        token = VAR.set("producer")
        try:
            while True:
                yield VAR.get()
        finally:
            seen.append(VAR.get())
            await asyncio.sleep(0)
            VAR.reset(token)
            seen.append(VAR.get())


async def test_a_stream_that_its_reader_leaves_is_closed_in_the_producers_own_context() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Teller)
        VAR.set("reader")
        seen: list[str] = []
        async with contextlib.aclosing(ref.stream(Teller.tokens, seen)) as tokens:
            async for token in tokens:
                assert token == "producer"
                assert VAR.get() == "reader"
                break
        await until(lambda: len(seen) == 2)
        assert seen == ["producer", "reader"]


async def test_the_context_is_that_of_the_moment_of_sending() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def look(actor: Worker) -> None:
            actor.seen.append(VAR.get())

        VAR.set("first")
        ref.tell(Worker.call, look)
        VAR.set("second")
        ref.tell(Worker.call, look)
        VAR.set("third")
        assert await ref.ask(Worker.notes) == ["first", "second"]


async def test_nested_asks_carry_the_context_on_and_so_do_other_nodes_and_threads() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        near = await system.spawn(Worker)
        far = await system.with_options(node=node).spawn(Worker)

        async def look(actor: Worker) -> str:
            await asyncio.sleep(0)
            return VAR.get()

        async def pass_on(actor: Worker) -> str:
            return await far.ask(Worker.call, look)

        VAR.set("carried")
        assert await near.ask(Worker.call, pass_on) == "carried"
        assert await asyncio.to_thread(lambda: asyncio.run(near.ask(Worker.call, look))) == "carried"


async def test_a_timers_message_has_the_context_in_which_the_timer_was_set() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Timed)
        VAR.set("when set")
        await ref.ask(Timed.begin)
        VAR.set("later")
        await until(lambda: Timed.seen)
        assert Timed.seen.pop() == "when set"


class Timed(Actor):
    seen: list[str] = []

    async def begin(self) -> None:
        self.tell_after(0, Timed.tick)

    async def tick(self) -> None:
        self.seen.append(VAR.get())


async def test_on_start_and_on_stop_see_the_spawners_context() -> None:
    seen: list[str] = []

    class Hooked(Worker):
        async def on_start(self) -> None:
            await asyncio.sleep(0)
            seen.append(VAR.get())

        async def on_stop(self, reason: object) -> None:
            await asyncio.sleep(0)
            seen.append(VAR.get())

    async with ActorSystem() as system:
        VAR.set("spawner")
        ref = await system.spawn(Hooked)
        VAR.set("another")
        await ref.ask(Worker.add, 1)
        await ref.stop()
    assert seen == ["spawner", "spawner"]


async def test_a_token_set_in_on_start_can_be_reset_in_on_stop() -> None:
    reset: list[str] = []

    class Hooked(Worker):
        async def on_start(self) -> None:
            self.token = VAR.set("held")

        async def on_stop(self, reason: object) -> None:
            VAR.reset(self.token)
            reset.append(VAR.get())

    async with ActorSystem() as system:
        ref = await system.spawn(Hooked)
        await ref.ask(Worker.add, 1)
        await ref.stop()
    assert reset == ["unset"]
