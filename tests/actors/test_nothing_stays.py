"""What ends leaves nothing behind, without the garbage collector, and costs what it costs alone."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from promptside import Actor, ActorRef, ActorStopped, ActorSystem, AskTimeout, Down, MailboxFull, TaskSupervisor
from promptside.actors import Portal, State
from promptside.actors.spi import ask_in_task, cell_of
from promptside.testing import run_virtual
from tests.support.actors import Gate, Worker, busy, hear, no_collector, outcome, started, turns, until


class Prompt:
    """A payload that can be counted."""


class Model(Worker, expected=(ValueError,), timeout=30.0):
    async def refuse(self, prompt: Prompt) -> None:
        raise ValueError

    async def crash(self, prompt: Prompt) -> None:
        raise KeyError

    async def hang(self, prompt: Prompt) -> None:
        await asyncio.Event().wait()

    async def pieces(self, prompt: Prompt) -> AsyncIterator[int]:
        yield 1
        raise ValueError

    async def endless(self, prompt: Prompt) -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()


class Narrow(Model, mailbox=1):
    pass


class Patient(Model, max_concurrency=4, timeout=math.inf):
    """Its messages are handled in the task of an asker that wants it."""


class Wide(Model, max_concurrency=4):
    pass


async def read(ref: ActorRef[Model], method: Any, prompt: Prompt) -> None:
    async for _ in ref.stream(method, prompt):
        pass


async def cancelled(work: Awaitable[Any]) -> None:
    task = await started(work)  # type: ignore[arg-type]
    task.cancel()
    await task


async def killed(system: ActorSystem, prompt: Prompt) -> None:
    ref = await system.spawn(Patient)
    task = await started(ask_in_task(ref, Model.hang, prompt))
    ref.kill()
    try:
        await task
    finally:
        del task  # it holds the error, which holds this frame


async def refuse(prompt: Prompt) -> None:
    raise ValueError


Way = Callable[[ActorSystem, dict[str, Any], Prompt], Awaitable[Any]]

WAYS: dict[str, Way] = {
    "error": lambda system, refs, prompt: refs["model"].ask(Model.refuse, prompt),
    "error of several at a time": lambda system, refs, prompt: refs["wide"].ask(Model.refuse, prompt),
    "error on another loop": lambda system, refs, prompt: refs["far"].ask(Model.refuse, prompt),
    "error within a handler": lambda system, refs, prompt: refs["front"].ask(
        Worker.call, lambda actor: refs["model"].ask(Model.refuse, prompt)
    ),
    "timeout": lambda system, refs, prompt: refs["model"].with_options(timeout=0.001).ask(Model.hang, prompt),
    "timeout on another loop": lambda system, refs, prompt: (
        refs["far"].with_options(timeout=0.001).ask(Model.hang, prompt)
    ),
    "timeout in the queue": lambda system, refs, prompt: (
        refs["narrow"].with_options(timeout=0.001).ask(Model.refuse, prompt)
    ),
    "in the asker's task": lambda system, refs, prompt: asyncio.create_task(
        ask_in_task(refs["patient"], Model.refuse, prompt)
    ),
    "in the asker's task, cancelled": lambda system, refs, prompt: cancelled(
        ask_in_task(refs["patient"], Model.hang, prompt)
    ),
    "in the asker's task, killed": lambda system, refs, prompt: killed(system, prompt),
    "cancel": lambda system, refs, prompt: cancelled(refs["model"].ask(Model.hang, prompt)),
    "cancel on another loop": lambda system, refs, prompt: cancelled(refs["far"].ask(Model.hang, prompt)),
    "stopped": lambda system, refs, prompt: refs["gone"].ask(Model.refuse, prompt),
    "stopped, delivered": lambda system, refs, prompt: refs["gone"].deliver(Model.refuse, prompt),
    "mailbox full": lambda system, refs, prompt: refs["full"].ask(Model.refuse, prompt),
    "mailbox full on another loop": lambda system, refs, prompt: refs["far full"].ask(Model.refuse, prompt),
    "stream": lambda system, refs, prompt: read(refs["model"], Model.pieces, prompt),
    "stream on another loop": lambda system, refs, prompt: read(refs["far"], Model.pieces, prompt),
    "stream of the stopped": lambda system, refs, prompt: read(refs["gone"], Model.pieces, prompt),
    "stream without an item in time": lambda system, refs, prompt: read(
        refs["model"].with_options(timeout=0.001), Model.endless, prompt
    ),
    "task": lambda system, refs, prompt: refs["tasks"].run(refuse, prompt),
    "map": lambda system, refs, prompt: anext(refs["tasks"].map(refuse, [prompt], max_concurrency=1)),
    "portal": lambda system, refs, prompt: asyncio.to_thread(Portal(system).ask, refs["model"], Model.refuse, prompt),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_failed_ask_is_no_cycle_of_references(way: str) -> None:
    async with ActorSystem() as system:
        far = await system.start_node("far")
        kinds = {
            "model": Model,
            "wide": Wide,
            "gone": Model,
            "full": Narrow,
            "narrow": Narrow,
            "front": Model,
            "patient": Patient,
        }
        refs: dict[str, Any] = {name: await system.spawn(kind) for name, kind in kinds.items()}
        refs["far"] = await system.with_options(node=far).spawn(Model)
        refs["far full"] = await system.with_options(node=far).spawn(Narrow)
        refs["tasks"] = await TaskSupervisor().start(system)
        await refs["gone"].stop()
        held = [await busy(refs[name]) for name in ("full", "narrow")]
        refs["full"].tell(Worker.note, 1)
        refs["far full"].tell(Model.hang, Prompt())
        await until(lambda: refs["far full"].info().current)
        refs["far full"].tell(Worker.note, 1)
        await until(lambda: refs["far full"].info().mailbox)
        alive: weakref.WeakSet[Prompt] = weakref.WeakSet()
        with no_collector():
            for _ in range(5):
                prompt = Prompt()
                alive.add(prompt)
                with suppress(ValueError, AskTimeout, ActorStopped, MailboxFull, asyncio.CancelledError):
                    await WAYS[way](system, refs, prompt)
                    raise AssertionError("it did not fail")
            del prompt
            await until(lambda: not alive)
        refs["far full"].kill()
        for gate, task in held:
            gate.open.set()
            await task


@pytest.mark.parametrize("kind", [Model, Wide])
@pytest.mark.parametrize("how", ["ask", "tell", "keyword", "refusal", "result", "spawner", "left task", "timer"])
async def test_an_idle_actor_keeps_neither_arguments_nor_result(kind: type[Model], how: str) -> None:
    left: list[Any] = []

    async def give(actor: Worker) -> Prompt:
        result = Prompt()
        alive.add(result)
        if how == "spawner":
            left.append(await actor.spawn(Worker))
        elif how == "left task":
            left.append(asyncio.ensure_future(asyncio.Event().wait()))
        elif how == "timer":
            left.append(actor.tell_every(3600.0, Worker.add, 1))
        return result

    async def forget(actor: Worker) -> None:
        pass

    async with ActorSystem() as system:
        ref = await system.spawn(kind)
        alive: weakref.WeakSet[Prompt] = weakref.WeakSet()
        prompt = Prompt()
        alive.add(prompt)
        with no_collector():
            if how in ("ask", "tell"):
                sent: Any = getattr(ref, how)(Worker.note, prompt)
            elif how == "keyword":
                sent = ref.ask(Worker.note, item=prompt)
            elif how == "refusal":
                sent = ref.ask(Model.refuse, prompt)
            else:
                sent = ref.ask(Worker.call, give)
            if sent is not None:
                with suppress(ValueError):
                    await sent
            await ref.ask(Worker.call, drop_notes)
            del prompt, sent
            await until(lambda: not alive)
        for each in left:
            if isinstance(each, asyncio.Task):
                each.cancel()


async def drop_notes(actor: Worker) -> None:
    actor.seen.clear()


class Job(Actor):
    def __init__(self, load: Prompt) -> None:
        self.load = load


class Watcher(Worker, trap_exit=True):
    async def watch(self, ref: ActorRef[Any], how: str) -> None:
        if how == "link":
            self.link(ref)
        else:
            monitor = self.monitor(ref)
            if how == "cancelled":
                monitor.cancel()
            elif how == "held":
                self.held = monitor


@pytest.mark.parametrize("how", ["monitor", "held", "cancelled", "link"])
@pytest.mark.parametrize("ends", ["before", "stop", "kill"])
@pytest.mark.parametrize("place", ["here", "far"])
async def test_a_monitor_and_a_link_end_with_what_they_watch(how: str, ends: str, place: str) -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far") if place == "far" else system.home
        watcher = await system.spawn(Watcher)
        alive: weakref.WeakSet[Prompt] = weakref.WeakSet()
        for number in range(1, 6):
            load = Prompt()
            alive.add(load)
            ref = await system.with_options(node=node).spawn(Job, load)
            if ends == "before":
                await ref.stop()
            await watcher.ask(Watcher.watch, ref, how)
            if ends == "stop":
                await ref.stop()
            elif ends == "kill":
                ref.kill()
            if how != "cancelled":
                await until(lambda number=number: cell_of(watcher).handled >= 2 * number)
            await until(lambda ref=ref: ref.state is State.STOPPED)
        await node.run(asyncio.sleep(0))  # a `Down` that was sent before its monitor was cancelled has arrived
        await watcher.ask(Worker.call, drop_notes)
        del ref, load
        links = cell_of(watcher).links
        await until(lambda: links is None or not (links.watching or links.linked or links.monitors))
        await until(lambda: gc.collect() >= 0 and not alive)


async def test_a_monitor_that_is_cancelled_before_another_node_has_seen_it_sends_no_down() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        watcher, job = await system.spawn(Watcher), await system.with_options(node=node).spawn(Worker)
        await job.stop()
        release = threading.Event()
        node.loop.call_soon_threadsafe(release.wait, 60)
        await watcher.ask(Watcher.watch, job, "cancelled")
        release.set()
        await node.run(asyncio.sleep(0))
        assert await watcher.ask(Worker.notes) == []


async def test_a_down_that_is_sent_is_the_only_one_and_the_handle_may_be_cancelled_after_it() -> None:
    async with ActorSystem() as system:
        watcher, job = await system.spawn(Watcher), await system.spawn(Worker)
        await watcher.ask(Watcher.watch, job, "held")
        await job.stop()
        downs = await watcher.ask(Worker.notes)
        assert [type(each) for each in downs] == [Down]
        await watcher.ask(Worker.call, cancel_held)


async def cancel_held(actor: Any) -> None:
    actor.held.cancel()
    actor.held.cancel()


async def test_waits_that_are_given_up_leave_nothing() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Narrow)
        gate, task = await busy(ref)
        ref.tell(Worker.note, 1)
        for _ in range(50):
            wait = await started(ref.deliver(Worker.note, Prompt()))
            wait.cancel()
            assert isinstance(await outcome(wait), asyncio.CancelledError)
        cell = cell_of(ref)
        assert not cell.senders
        stops = [await started(ref.stop(drain=3600.0)) for _ in range(20)]
        for each in stops:
            each.cancel()
            await outcome(each)
        assert not cell.ended
        gate.open.set()
        await task


async def test_killed_handlers_that_end_late_are_forgotten() -> None:
    gates: list[Gate] = []

    async def stay(actor: Worker) -> None:
        gate = Gate()
        gates.append(gate)
        while not gate.open.is_set():
            with suppress(asyncio.CancelledError):
                await gate.open.wait()

    async with ActorSystem() as system:
        for _ in range(3):
            ref = await system.spawn(Worker)
            ref.tell(Worker.call, stay)
            await turns()
            ref.kill()
        await until(lambda: len(system._runtime.abandoned_tasks) == 3)
        for gate in gates:
            gate.open.set()
        await until(lambda: not system._runtime.abandoned_tasks)


# -- what grows with others -----------------------------------------------------------------------------------------


class Counted(Exception):
    """A key of a mapping that counts how often it is compared and hashed."""


async def test_an_end_beside_many_groups_looks_at_its_own_alone() -> None:
    async with ActorSystem() as system:
        member = await system.spawn(Worker)
        for number in range(5_000):
            system.join(f"group {number}", member)
        looked: list[str] = []
        registry = system._runtime.registry
        leave = registry._leave
        registry._leave = lambda group, cell: (looked.append(group), leave(group, cell))[1]  # type: ignore[method-assign, func-returns-value]
        other = await system.spawn(Worker)
        system.join("group 7", other)
        await other.stop()
        assert looked == ["group 7"]
        assert system.members("group 7") == (member,)
        await member.stop()
        assert len(looked) == 5_001
        assert registry._groups == registry._joined == {}


class Looked(list[Any]):
    pass


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest", "drop_newest"])
async def test_a_refusal_at_a_full_mailbox_looks_at_no_other_message(overflow: Any) -> None:
    class Busy(Worker, mailbox=5_000, overflow=overflow):
        pass

    async with ActorSystem() as system:
        dead = hear(system.events, "message.dead")
        ref = await system.spawn(Busy)
        gate, task = await busy(ref)
        for number in range(5_000):
            ref.tell(Worker.note, number)
        looks = count_looks(ref)
        for number in range(100):
            with suppress(MailboxFull):
                ref.tell(Worker.note, number)
        assert looks() <= 200
        assert len(dead) == (0 if overflow == "reject" else 100)
        gate.open.set()
        await task


def count_looks(ref: ActorRef[Any]) -> Callable[[], int]:
    """How many messages of the queue are looked at, from now on."""
    cell = cell_of(ref)
    looked = 0

    class Queue(type(cell.queue)):  # type: ignore[misc]
        def __iter__(self) -> Any:
            nonlocal looked
            for each in super().__iter__():
                looked += 1
                yield each

    # The runner holds the very queue, and waits for its gate.
    cell.queue = Queue(cell.queue)
    return lambda: looked


async def test_asks_that_were_given_up_make_room_and_are_not_kept() -> None:
    class Busy(Worker, mailbox=1_000):
        pass

    async with ActorSystem() as system:
        ref = await system.spawn(Busy)
        gate, task = await busy(ref)
        alive: weakref.WeakSet[Prompt] = weakref.WeakSet()
        cell = cell_of(ref)
        for _ in range(5):  # of 1,000 asks each, that leave while the actor is held
            asks = []
            for _ in range(1_000):
                prompt = Prompt()
                alive.add(prompt)
                asks.append(asyncio.ensure_future(ref.ask(Worker.note, prompt)))
            del prompt
            await turns()
            for each in asks:
                each.cancel()
            await asyncio.wait(asks)
            del asks, each
            assert cell.queue.maxlen is None
            assert len(cell.queue) <= 1_032
        ref.tell(Worker.note, "the last")
        await until(lambda: not alive)
        gate.open.set()
        await task
        assert await ref.ask(Worker.notes) == ["the last"]
        assert cell.given_up == 0


@pytest.mark.parametrize("place", ["here", "far"])
async def test_a_mailbox_whose_askers_left_takes_as_many_as_it_says(place: str) -> None:
    class Busy(Worker, mailbox=10):
        pass

    async with ActorSystem() as system:
        node = await system.start_node("far") if place == "far" else system.home
        ref = await system.with_options(node=node).spawn(Busy)
        ref.suspend()
        for _ in range(3):
            asks = [asyncio.ensure_future(ref.ask(Worker.note, number)) for number in range(10)]
            await until(lambda: len(cell_of(ref).queue) - cell_of(ref).given_up == 10)
            with pytest.raises(MailboxFull):
                await ref.ask(Worker.note, "one too many")
            for each in asks:
                each.cancel()
            await asyncio.wait(asks)
            await until(lambda: cell_of(ref).given_up == len(cell_of(ref).queue))
        ref.resume()
        assert await ref.ask(Worker.notes) == []
        assert cell_of(ref).given_up == 0


async def test_an_event_costs_nothing_for_those_who_wait_for_others() -> None:
    async with ActorSystem() as system:
        bus = system.events
        waiting = []
        for number in range(100):
            stream = bus.subscribe(f"other.{number}")
            stream.open()
            waiting.append(await started(anext(stream)))
        async with bus.subscribe("mine") as mine:
            reader = await started(anext(mine))
            bus.publish("mine", "here")
            assert (await reader).type == "mine"
            assert len(bus._idle) == 100
        for each in waiting:
            each.cancel()


def test_asks_of_a_long_queue_that_time_out_one_after_the_other_are_looked_at_together() -> None:
    class Busy(Worker, mailbox=5_000):
        pass

    async def main() -> None:
        async with ActorSystem() as system:
            ref = await system.spawn(Busy)
            ref.suspend()
            asks = []
            for number in range(2_000):
                timed = ref.with_options(timeout=1.0 + number * 1e-5)
                asks.append(asyncio.ensure_future(timed.ask(Worker.note, number)))
            await turns()
            looks = count_looks(ref)
            done, waiting = await asyncio.wait(asks, timeout=2.0)
            assert not waiting
            assert all(isinstance(each.exception(), AskTimeout) for each in done)
            assert looks() < 40_000
            ref.kill()

    run_virtual(main())
