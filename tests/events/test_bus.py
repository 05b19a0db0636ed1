"""The bus: who hears, what is logged when nobody does, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import tracemalloc
import weakref
from typing import Any

import pytest

from promptside.events import CATALOGUE, Event, EventBus


class Silent:
    async def __call__(self, event: Event) -> None: ...


def other_tasks() -> set[asyncio.Task[object]]:
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


async def test_wants_follows_the_listeners() -> None:
    bus = EventBus()
    assert not bus.wants("lm.call.started")
    assert not bus.wants_any(("lm.call.started", "tool.started"))
    hook = bus.on("lm.*", lambda event: None)
    assert bus.wants("lm.call.started")
    assert bus.wants_any(("tool.started", "lm.call.started"))
    assert not bus.wants("tool.started")
    async with bus.subscribe("tool.started"):
        assert bus.wants("tool.started")
        hook.detach()
        assert not bus.wants("lm.call.started")
        assert bus.wants_any(("lm.call.started", "tool.started"))
    assert not bus.wants_any(("lm.call.started", "tool.started"))


@pytest.mark.parametrize(
    ("type", "level"),
    [("actor.crashed", logging.ERROR), ("supervisor.gave_up", logging.ERROR), ("message.dead", logging.WARNING)],
)
def test_losses_reach_the_log_only_without_a_listener(type: str, level: int, caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    assert bus.wants(type), "the payload is needed for the log"
    bus.publish(type, "/worker", {"reason": "boom"})
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("promptside", level)
    for part in (type, "/worker", "boom"):
        assert part in record.getMessage()

    hook = bus.on("*", lambda event: None)
    bus.publish(type, "/worker")
    assert len(caplog.records) == 1
    hook.detach()
    bus.publish(type, "/worker")
    assert len(caplog.records) == 2


def test_every_other_type_is_silent_without_a_listener(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    for name in CATALOGUE.keys() - {"actor.crashed", "supervisor.gave_up", "message.dead"}:
        bus.publish(name, "/")
    assert not caplog.records


def test_a_type_outside_the_catalogue_reaches_listeners() -> None:
    bus = EventBus()
    received: list[str] = []
    bus.on("shop.*", lambda event: received.append(event.type))
    bus.publish("shop.order.paid", "/shop")
    assert received == ["shop.order.paid"]


def test_types_with_ids_in_them_do_not_fill_the_memory() -> None:
    bus = EventBus()
    tracemalloc.start()
    try:
        for number in range(20_000):
            bus.publish(f"order.{number}", "/shop")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000, "20,000 remembered types are above 2 MB"


def test_a_finalizer_that_publishes_during_a_publish_does_not_block() -> None:
    bus = EventBus()
    received: list[str] = []

    class Dying:
        def __del__(self) -> None:
            bus.publish("died", "/")

    class Pattern(str):
        """A type whose comparison, under the bus's lock, triggers the finalizer."""

        __slots__ = ()

        def __hash__(self) -> int:
            Dying()
            return hash(str(self))

    bus.on("*", lambda event: received.append(event.type))
    publisher = threading.Thread(target=bus.publish, args=(Pattern("a"), "/"), daemon=True)
    publisher.start()
    publisher.join(10)
    assert not publisher.is_alive()
    assert "a" in received
    assert "died" in received


async def test_aclose_ends_every_iterator_after_what_is_queued() -> None:
    bus = EventBus()

    async def read(pattern: str, entered: asyncio.Event) -> list[int]:
        async with bus.subscribe(pattern) as stream:
            entered.set()
            return [event.seq async for event in stream]

    entered = [asyncio.Event(), asyncio.Event()]
    readers = [asyncio.create_task(read(p, e)) for p, e in zip(("a", "b"), entered, strict=True)]
    for event in entered:
        await event.wait()
    bus.publish("a", "/")
    bus.publish("a", "/")
    await bus.aclose()
    bus.publish("a", "/")

    assert await asyncio.gather(*readers) == [[1, 2], []]
    assert not other_tasks()


async def test_aclose_lets_hooks_handle_what_is_queued_and_leaves_no_task() -> None:
    bus = EventBus()
    handled: list[int] = []
    plain: list[int] = []
    hook_of_the_plain = bus.on("a", lambda event: plain.append(event.seq))

    @bus.on("a")
    async def note(event: Event) -> None:
        await asyncio.sleep(0)
        handled.append(event.seq)

    for _ in range(3):
        bus.publish("a", "/")
    await bus.aclose()
    bus.publish("a", "/")

    assert handled == plain == [1, 2, 3]
    assert (note.attached, note.dropped, hook_of_the_plain.attached) == (False, 0, False)
    assert not bus.wants("a")
    assert not other_tasks()


async def test_aclose_cancels_a_hook_that_does_not_finish_and_counts_what_it_missed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus = EventBus()
    cancelled: list[int] = []

    @bus.on("a")
    async def stuck(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(event.seq)
            raise

    for _ in range(3):
        bus.publish("a", "/")
    await bus.aclose(drain=0.01)

    assert cancelled == [1]
    assert (stuck.dropped, stuck.failures) == (2, 0)
    (record,) = caplog.records
    assert "2 events unhandled" in record.getMessage()
    assert not other_tasks()


async def test_aclose_cancelled_while_it_drains_still_ends_the_hooks() -> None:
    bus = EventBus()
    began = asyncio.Event()

    @bus.on("a")
    async def stuck(event: Event) -> None:
        began.set()
        await asyncio.Event().wait()

    bus.publish("a", "/")
    await began.wait()
    hooks = other_tasks()
    closing = asyncio.create_task(bus.aclose(drain=3600))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.wait(hooks)

    assert not other_tasks()
    assert not stuck.attached


async def test_a_hook_may_close_the_bus() -> None:
    bus = EventBus()
    closed = asyncio.Event()

    @bus.on("a")
    async def close(event: Event) -> None:
        await bus.aclose(drain=3600)
        closed.set()

    bus.publish("a", "/")
    tasks = other_tasks()
    await closed.wait()
    await asyncio.wait(tasks)

    assert not close.attached
    assert not other_tasks()


async def test_aclose_ends_hooks_and_iterators_of_another_loop() -> None:
    bus = EventBus()
    ready = threading.Event()
    handled: list[int] = []

    async def elsewhere() -> list[int]:
        @bus.on("a")
        async def note(event: Event) -> None:
            handled.append(event.seq)

        async with bus.subscribe("a") as stream:
            ready.set()
            return [event.seq async for event in stream]

    other = asyncio.create_task(asyncio.to_thread(asyncio.run, elsewhere()))
    await asyncio.to_thread(ready.wait)
    bus.publish("a", "/")
    await bus.aclose()

    assert await other == [1]
    assert handled == [1]


async def test_aclose_reports_a_hook_that_ignores_its_cancellation(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("promptside.events.hooks.CANCEL_GRACE", 0.01)
    bus = EventBus()
    release = asyncio.Event()

    @bus.on("a")
    async def stubborn(event: Event) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    bus.publish("a", "/")
    await asyncio.sleep(0)
    tasks = other_tasks()
    await bus.aclose(drain=0)

    assert "stubborn" in caplog.text
    assert "did not end" in caplog.text
    release.set()
    await asyncio.wait(tasks)
    assert not other_tasks()


async def test_aclose_does_not_wait_for_a_hook_whose_loop_is_closed() -> None:
    bus = EventBus()

    def register() -> asyncio.Task[object]:
        loop = asyncio.new_event_loop()

        async def enter() -> asyncio.Task[object]:
            bus.on("a", Silent())
            (task,) = other_tasks()
            return task

        task = loop.run_until_complete(enter())
        loop.close()
        return task

    task = await asyncio.to_thread(register)
    async with asyncio.timeout(10):
        await bus.aclose(drain=3600)

    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # what asyncio says of it is not the point here


async def test_a_closed_bus_takes_no_listener_and_still_logs_losses(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()

    async def work(event: Event) -> None: ...

    await bus.aclose()
    await bus.aclose()

    with pytest.raises(RuntimeError, match="bus is closed"):
        await bus.subscribe().__aenter__()
    with pytest.raises(RuntimeError, match="bus is closed"):
        bus.on("a", lambda event: None)
    with pytest.raises(RuntimeError, match="bus is closed"):
        bus.on("a", work)
    bus.publish("actor.crashed", "/")
    assert len(caplog.records) == 1
    assert not other_tasks()


async def test_a_bus_that_is_let_go_is_freed() -> None:
    bus = EventBus()
    trace = weakref.ref(bus)
    bus.on("a", lambda event: None)
    bus.on("a", Silent())
    async with bus.subscribe() as stream:
        bus.publish("a", "/")
        assert (await anext(stream)).seq == 1
    await bus.aclose()
    del bus, stream
    await asyncio.sleep(0)  # the loop lets go of the wake-ups that it ran
    gc.collect()

    assert trace() is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bus: bus.publish(None, None, None), "EventBus: type=None: give dotted words"),
        (lambda bus: bus.wants(5), "EventBus: type=5: give dotted words"),
        (lambda bus: bus.attach(None), "attach: sink=None: give a sink"),
        (lambda bus: asyncio.run(bus.aclose(drain="x")), "aclose: drain='x': give seconds >= 0"),
    ],
)
def test_what_the_bus_cannot_use_is_named_in_the_error(call: Any, message: str) -> None:
    bus = EventBus()
    with pytest.raises(ValueError, match=f"^{message}"):
        call(bus)
    asyncio.run(bus.aclose())
