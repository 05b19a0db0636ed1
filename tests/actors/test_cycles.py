"""Asks that could never be answered fail at once; asks that can be answered are never refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem
from promptside.errors import AskCycleError
from tests.support.actors import Gate, Worker, busy, outcome, started, turns, until

Step = Callable[[Worker], Awaitable[Any]]


class Wide(Worker, max_concurrency=2): ...


class Source(Actor):
    async def relay(self, other: ActorRef[Worker]) -> AsyncIterator[int]:
        yield await other.ask(Worker.add, 1)


async def at_once(awaitable: Awaitable[Any]) -> Any:
    """Its outcome, which must come without any timeout having to pass."""
    task = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({task}, timeout=4)
    if not done:
        task.cancel()
        await asyncio.wait({task})
        pytest.fail("it hangs")
    return await outcome(task)


def chain(*refs: ActorRef[Worker]) -> Step:
    """A step that asks the first of `refs`, which asks the next, and so on; the last one answers."""

    async def step(actor: Worker) -> Any:
        if not refs:
            return "end"
        return await refs[0].ask(Worker.call, chain(*refs[1:]))

    return step


async def spawn_three(system: ActorSystem) -> tuple[ActorRef[Worker], ActorRef[Worker], ActorRef[Worker]]:
    return await system.spawn(Worker), await system.spawn(Worker), await system.spawn(Worker)


async def all_still_work(*refs: ActorRef[Worker]) -> None:
    for ref in refs:
        assert isinstance(await at_once(ref.ask(Worker.add, 0)), int)


async def test_an_ask_to_itself_fails_at_once_and_names_the_cycle() -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="a").spawn(Worker)
        caught: list[BaseException] = []

        async def ask_self(actor: Worker) -> str:
            try:
                await actor.ref.ask(Worker.add, 1)
            except AskCycleError as error:
                caught.append(error)
            return "went on"

        assert await at_once(ref.ask(Worker.call, ask_self)) == "went on"
        assert caught[0].cycle == ("a", "a")
        assert "tell" in str(caught[0])
        await all_still_work(ref)


async def test_a_cycle_of_two_and_of_three_fails_at_its_last_ask_and_names_them_all() -> None:
    class Calm(Worker, expected=(AskCycleError,)): ...

    async with ActorSystem() as system:
        a, b, c = [await system.with_options(name=name).spawn(Calm) for name in "abc"]
        error = await at_once(a.ask(Worker.call, chain(b, a)))
        assert isinstance(error, AskCycleError)
        assert error.cycle == ("a", "b", "a")
        error = await at_once(a.ask(Worker.call, chain(b, c, a)))
        assert isinstance(error, AskCycleError)
        assert error.cycle == ("a", "b", "c", "a")
        error = await at_once(a.ask(Worker.call, chain(b, c, b)))
        assert isinstance(error, AskCycleError)
        assert error.cycle == ("b", "c", "b")
        await all_still_work(a, b, c)


@pytest.mark.parametrize("size", [2, 3, 5])
async def test_crossing_callers_are_found_at_the_last_of_them(size: int) -> None:
    class Calm(Worker, expected=(AskCycleError,)): ...

    async with ActorSystem() as system:
        refs = [await system.spawn(Calm) for _ in range(size)]
        inside = [asyncio.Event() for _ in refs]
        go = [asyncio.Event() for _ in refs]

        async def cross(actor: Worker, number: int) -> Any:
            inside[number].set()
            await go[number].wait()
            return await refs[(number + 1) % size].ask(Worker.add, 1)

        asked = [
            asyncio.ensure_future(ref.ask(Worker.call, lambda actor, n=n: cross(actor, n)))
            for n, ref in enumerate(refs)
        ]
        for event in inside:
            await event.wait()
        for event in go:
            event.set()
            await turns(3)
        results = [await at_once(task) for task in asked]
        assert sum(isinstance(each, AskCycleError) for each in results) == 1
        assert sum(isinstance(each, int) for each in results) == size - 1
        await all_still_work(*refs)


async def test_crossing_tells_are_found_too() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)
        go = asyncio.Event()
        results: list[Any] = []

        def cross(other: ActorRef[Worker]) -> Step:
            async def step(actor: Worker) -> None:
                await go.wait()
                try:
                    results.append(await other.ask(Worker.add, 1))
                except AskCycleError as error:
                    results.append(error)

            return step

        a.tell(Worker.call, cross(b))
        b.tell(Worker.call, cross(a))
        await turns(5)
        go.set()
        await until(lambda: len(results) == 2)
        assert sorted(type(each).__name__ for each in results) == ["AskCycleError", "int"]


@pytest.mark.parametrize("how", ["gather", "group", "task", "wait_for", "thread"])
async def test_a_cycle_through_child_tasks_of_a_handler_is_found(how: str) -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)

        async def back(actor: Worker) -> str:
            try:
                return str(await a.ask(Worker.add, 1))
            except AskCycleError:
                return "cycle"

        async def through(actor: Worker) -> Any:
            ask = b.ask(Worker.call, back)
            if how == "gather":
                return (await asyncio.gather(ask, asyncio.sleep(0)))[0]
            if how == "group":
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(ask)
                return task.result()
            if how == "task":
                return await asyncio.ensure_future(ask)
            if how == "wait_for":
                return await asyncio.wait_for(ask, 4)
            return await asyncio.to_thread(asyncio.run, ask)

        assert await at_once(a.ask(Worker.call, through)) == "cycle"
        await all_still_work(a, b)


async def test_with_concurrency_a_message_that_descends_from_one_inside_has_a_slot_of_its_own() -> None:
    async with ActorSystem() as system:
        wide, b = await system.spawn(Wide), await system.spawn(Worker)
        assert await at_once(wide.ask(Worker.call, chain(b, wide))) == "end"
        assert await at_once(wide.ask(Worker.call, chain(wide, wide, wide, b, wide))) == "end"
        held = [await busy(wide) for _ in range(2)]
        queued = await started(wide.ask(Worker.add, 1))
        assert not queued.done(), "it descends from nothing inside"
        for gate, _ in held:
            gate.open.set()
        await queued
        await asyncio.gather(*(task for _, task in held))


async def test_with_concurrency_all_slots_taken_by_descendants_of_one_another_is_no_deadlock() -> None:
    async with ActorSystem() as system:
        wide = await system.spawn(Wide)
        others = [await system.spawn(Worker) for _ in range(4)]
        asked = [started(wide.ask(Worker.call, chain(other, wide))) for other in others]
        tasks = [await each for each in asked]
        assert [await at_once(task) for task in tasks] == ["end"] * 4


async def test_a_descendant_that_arrives_while_the_wide_actor_is_suspended_is_not_forgotten() -> None:
    async with ActorSystem() as system:
        wide = await system.spawn(Wide)
        back = await system.spawn(Worker)
        go = asyncio.Event()

        async def later(actor: Worker) -> Any:
            await go.wait()
            return await back.ask(Worker.call, chain(wide))

        asked = [await started(wide.ask(Worker.call, later)) for _ in range(2)]
        wide.suspend()
        go.set()
        await turns()
        stranger = await started(wide.ask(Worker.add, 1))
        wide.resume()
        assert [await at_once(task) for task in asked] == ["end", "end"]
        assert await at_once(stranger) == 1


@pytest.mark.parametrize("last", ["the single actor", "the wide actor"])
async def test_a_cycle_through_every_slot_of_a_wide_actor_is_found(last: str) -> None:
    """All slots of the wide actor wait for an actor that waits in the wide actor's queue."""
    async with ActorSystem() as system:
        wide, single = await system.spawn(Wide), await system.spawn(Worker)
        go_wide, go_single = asyncio.Event(), asyncio.Event()
        results: list[Any] = []

        def step(go: asyncio.Event, other: ActorRef[Worker]) -> Step:
            async def ask_other(actor: Worker) -> None:
                await go.wait()
                try:
                    results.append(await other.ask(Worker.add, 1))
                except AskCycleError as error:
                    results.append(error)

            return ask_other

        tasks = [await started(wide.ask(Worker.call, step(go_wide, single))) for _ in range(2)]
        tasks.append(await started(single.ask(Worker.call, step(go_single, wide))))
        for event in (go_wide, go_single) if last == "the single actor" else (go_single, go_wide):
            event.set()
            await turns(3)
        try:
            await until(lambda: len(results) == 3)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        assert sum(isinstance(each, AskCycleError) for each in results) >= 1


async def test_a_wide_actor_with_a_free_slot_is_no_cycle() -> None:
    async with ActorSystem() as system:
        wide, single = await system.spawn(Wide), await system.spawn(Worker)
        go = asyncio.Event()

        async def ask_single(actor: Worker) -> int:
            await go.wait()
            return await single.ask(Worker.add, 1)

        async def ask_wide(actor: Worker) -> int:
            return await wide.ask(Worker.add, 1)

        first = await started(wide.ask(Worker.call, ask_single))
        go.set()
        second = await started(single.ask(Worker.call, ask_wide))
        assert isinstance(await at_once(first), int)
        assert await at_once(second) == 1


@pytest.mark.parametrize("crossing", [False, True])
async def test_a_cycle_through_another_node_is_found(crossing: bool) -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        near = await system.spawn(Worker)
        far = await system.with_options(node=node).spawn(Worker)
        results: list[Any] = []

        async def back(actor: Worker) -> None:
            try:
                results.append(await near.ask(Worker.add, 1))
            except AskCycleError as error:
                results.append(error)

        async def ask_far(actor: Worker) -> Any:
            return await far.ask(Worker.call, back)

        async def ask_far_plainly(actor: Worker) -> None:
            await turns(3)
            try:
                results.append(await far.ask(Worker.add, 1))
            except AskCycleError as error:
                results.append(error)

        if crossing:
            entered = asyncio.Event()

            async def hold_near(actor: Worker) -> None:
                entered.set()
                await ask_far_plainly(actor)

            asked = asyncio.ensure_future(near.ask(Worker.call, hold_near))
            far.tell(Worker.call, back)
            await asyncio.wait({asked}, timeout=4)
            assert asked.done(), "it hangs"
            await until(lambda: len(results) == 2)
        else:
            await at_once(near.ask(Worker.call, ask_far))
            assert isinstance(results[0], AskCycleError)
        await all_still_work(near, far)


async def test_a_cycle_through_a_stream_is_found() -> None:
    async with ActorSystem() as system:
        source, reader = await system.spawn(Source), await system.spawn(Worker)

        async def read(actor: Worker) -> list[int]:
            return [item async for item in source.stream(Source.relay, actor.ref)]

        assert isinstance(await at_once(reader.ask(Worker.call, read)), AskCycleError)


async def test_an_ask_from_a_background_task_that_outlived_its_message_is_no_cycle() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)
        go = asyncio.Event()
        tasks: list[asyncio.Task[Any]] = []

        async def in_background() -> Any:
            await go.wait()
            return await a.ask(Worker.call, chain(b))

        async def begin(actor: Worker) -> None:
            tasks.append(asyncio.ensure_future(in_background()))

        await a.ask(Worker.call, begin)
        go.set()
        assert await at_once(tasks[0]) == "end"


async def test_a_background_task_may_ask_its_actor_while_that_handles_another_message() -> None:
    async with ActorSystem() as system:
        a = await system.spawn(Worker)
        go = asyncio.Event()
        tasks: list[asyncio.Task[Any]] = []

        async def in_background() -> Any:
            await go.wait()
            return await a.ask(Worker.add, 1)

        async def begin(actor: Worker) -> None:
            tasks.append(asyncio.ensure_future(in_background()))

        await a.ask(Worker.call, begin)
        gate, held = await busy(a)
        go.set()
        await turns(5)
        gate.open.set()
        assert await at_once(tasks[0]) == 1
        assert await held == "passed"


async def test_the_handler_of_a_tell_may_ask_its_teller() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)

        async def ask_a(actor: Worker) -> None:
            actor.seen.append(await a.ask(Worker.add, 1))

        async def tell_b(actor: Worker) -> None:
            b.tell(Worker.call, ask_a)
            await turns(5)

        await at_once(a.ask(Worker.call, tell_b))
        assert await at_once(b.ask(Worker.notes)) == [1]


async def test_many_asks_at_once_to_a_busy_actor_are_no_cycle() -> None:
    async with ActorSystem() as system:
        hub = await system.spawn(Worker)
        callers = [await system.spawn(Worker) for _ in range(20)]
        gate, held = await busy(hub)
        asked = [await started(caller.ask(Worker.call, chain(hub))) for caller in callers]
        gate.open.set()
        assert [await at_once(task) for task in asked] == ["end"] * 20
        assert await held == "passed"

        async def all_at_once(actor: Worker) -> list[int]:
            return await asyncio.gather(*(hub.ask(Worker.add, 1) for _ in range(20)))

        assert await at_once(callers[0].ask(Worker.call, all_at_once)) == list(range(1, 21))


async def test_an_ask_through_an_actor_that_answers_meanwhile_is_no_cycle() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)
        go = asyncio.Event()
        tasks: list[asyncio.Task[Any]] = []

        async def answer_and_go_on(actor: Worker) -> str:
            async def after_answer() -> Any:
                await go.wait()
                return await a.ask(Worker.add, 1)

            tasks.append(asyncio.ensure_future(after_answer()))
            return "answered"

        async def ask_then_hold(actor: Worker) -> str:
            answer = await b.ask(Worker.call, answer_and_go_on)
            go.set()
            await turns(5)
            return answer

        assert await at_once(a.ask(Worker.call, ask_then_hold)) == "answered"
        assert await at_once(tasks[0]) == 1


async def test_an_ask_that_timed_out_or_was_cancelled_is_on_no_cycle_any_more() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)

        async def ask_b_briefly(actor: Worker) -> str:
            with pytest.raises(TimeoutError):
                await b.with_options(timeout=0.01).ask(Worker.hold, gate)
            given_up.set()
            await go.wait()
            return "went on"

        gate, given_up, go = Gate(), asyncio.Event(), asyncio.Event()
        asked = asyncio.ensure_future(a.ask(Worker.call, ask_b_briefly))
        await given_up.wait()
        other = await started(b.ask(Worker.call, chain(a)))
        assert not other.done(), "b waits for a, and a waits for nobody"
        go.set()
        assert await at_once(asked) == "went on"
        assert await at_once(other) == "end"


async def test_a_diamond_is_no_cycle() -> None:
    async with ActorSystem() as system:
        a, b, c = await spawn_three(system)
        d = await system.spawn(Worker)

        async def fan_out(actor: Worker) -> list[Any]:
            return await asyncio.gather(b.ask(Worker.call, chain(d)), c.ask(Worker.call, chain(d)))

        assert await at_once(a.ask(Worker.call, fan_out)) == ["end", "end"]


async def test_the_second_attempt_after_a_cycle_error_works() -> None:
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)

        async def back(actor: Worker) -> str:
            with pytest.raises(AskCycleError):
                await a.ask(Worker.add, 1)
            a.tell(Worker.add, 1)
            return "told instead"

        async def ask_b(actor: Worker) -> str:
            return await b.ask(Worker.call, back)

        for _ in range(2):
            assert await at_once(a.ask(Worker.call, ask_b)) == "told instead"
        assert await at_once(a.ask(Worker.add, 0)) == 2


async def test_a_handler_that_was_given_up_may_ask_the_actor_that_gave_it_up() -> None:
    """The asker waits for it no longer, so the ask in its cleanup is answered as soon as the asker's message ends."""
    async with ActorSystem() as system:
        a, b = await system.spawn(Worker), await system.spawn(Worker)
        entered, asked_back, go = asyncio.Event(), asyncio.Event(), asyncio.Event()
        results: list[Any] = []

        async def ask_in_cleanup(actor: Worker) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                asked_back.set()
                try:
                    results.append(await a.ask(Worker.add, 1))
                except Exception as error:
                    results.append(error)

        async def ask_and_give_up(actor: Worker) -> str:
            task = asyncio.ensure_future(b.ask(Worker.call, ask_in_cleanup))
            await entered.wait()
            task.cancel()
            await asyncio.wait({task})
            await asked_back.wait()
            await turns()
            await go.wait()
            return "went on"

        asked = asyncio.ensure_future(a.ask(Worker.call, ask_and_give_up))
        await asked_back.wait()
        await turns()
        assert results == []
        go.set()
        assert await at_once(asked) == "went on"
        await until(lambda: results)
        assert results == [1]
