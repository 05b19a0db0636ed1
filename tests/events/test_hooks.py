"""Hooks: plain and asynchronous functions, their failures, and detaching."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
from typing import Any

import pytest

from promptside.events import Event, EventBus, Hook

WAY_TOO_MANY = 20


class Recorder:
    """An asynchronous callable that tells when it has received enough."""

    def __init__(self, enough: int) -> None:
        self.received: list[int] = []
        self.done = asyncio.Event()
        self._enough = enough

    async def __call__(self, event: Event) -> None:
        self.received.append(event.seq)
        if len(self.received) == self._enough:
            self.done.set()


def task_of_the_hook() -> asyncio.Task[object]:
    """Return the only task beside the test's own."""
    (task,) = asyncio.all_tasks() - {asyncio.current_task()}
    return task


def test_a_plain_hook_runs_inline_in_the_publishing_thread() -> None:
    bus = EventBus()
    threads: list[threading.Thread] = []

    @bus.on("lm.*")
    def note(event: Event) -> None:
        threads.append(threading.current_thread())

    bus.publish("lm.call.started", "/")
    assert threads == [threading.current_thread()]
    bus.publish("tool.started", "/")
    assert len(threads) == 1
    publisher = threading.Thread(target=bus.publish, args=("lm.call.started", "/"))
    publisher.start()
    publisher.join()
    assert threads[1] is publisher


def test_a_decorated_function_is_a_hook_that_can_be_called_and_detached() -> None:
    bus = EventBus()
    received: list[str] = []

    @bus.on("a")
    def note(event: Event) -> None:
        received.append(event.source)

    assert isinstance(note, Hook)
    assert (note.pattern, note.attached, note.failures, note.dropped) == ("a", True, 0, 0)
    assert "note" in repr(note)
    assert "'a'" in repr(note)
    bus.publish("a", "/bus")
    note(Event("x-1", 1, "a", "/direct", 0.0, {}))
    note.detach()
    note.detach()
    bus.publish("a", "/late")

    assert received == ["/bus", "/direct"]
    assert not note.attached
    assert not bus.wants("a")


def test_a_function_given_with_its_pattern_is_a_hook_at_once() -> None:
    bus = EventBus()
    received: list[int] = []
    hook = bus.on("a", lambda event: received.append(event.seq))
    bus.publish("a", "/")
    hook.detach()
    bus.publish("a", "/")

    assert isinstance(hook, Hook)
    assert received == [1]
    with pytest.raises(ValueError, match="whole names"):
        bus.on("a*", received.append)


@pytest.mark.parametrize("callback", [5, "print"])
def test_what_cannot_be_called_is_refused_at_once(callback: Any) -> None:
    bus = EventBus()
    with pytest.raises(TypeError, match=rf"^callback={callback!r}: give a function of one event"):
        bus.on("lm.*", callback)
    with pytest.raises(TypeError, match=rf"^callback={callback!r}: give a function of one event"):
        bus.on("lm.*")(callback)
    bus.publish("lm.done", "here")


def test_one_function_is_called_for_two_patterns() -> None:
    bus = EventBus()
    received: list[str] = []

    @bus.on("a")
    @bus.on("b")
    def note(event: Event) -> None:
        received.append(event.type)

    bus.publish("a", "/")
    bus.publish("b", "/")
    note.detach()
    bus.publish("a", "/")
    bus.publish("b", "/")

    assert received == ["a", "b", "b"], "the outer handle detaches the outer pattern"


def test_a_raising_hook_reaches_the_log_and_neither_publisher_nor_others(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    before: list[int] = []
    after: list[int] = []
    bus.on("a", lambda event: before.append(event.seq))

    @bus.on("a")
    def broken(event: Event) -> None:
        raise LookupError("no such thing")

    bus.on("a", lambda event: after.append(event.seq))

    bus.publish("a", "/here", {"k": "v"})

    assert before == after == [1]
    assert broken.attached
    assert broken.failures == 1
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("promptside.events", logging.ERROR)
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], LookupError)
    assert "broken" in record.getMessage()
    assert "/here" in record.getMessage()


def test_five_failures_in_a_row_detach_a_hook_with_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    calls = 0

    @bus.on("a")
    def broken(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise LookupError

    for _ in range(WAY_TOO_MANY):
        bus.publish("a", "/")

    assert calls == 5
    assert not broken.attached
    assert not bus.wants("a")
    assert len(caplog.records) == 6
    assert "detached after 5 failures in a row" in caplog.records[-1].getMessage()


def test_a_success_between_failures_keeps_a_hook_attached() -> None:
    bus = EventBus()

    @bus.on("a")
    def moody(event: Event) -> None:
        if event.seq % 5:
            raise LookupError

    for _ in range(WAY_TOO_MANY):
        bus.publish("a", "/")

    assert moody.attached
    assert moody.failures == 0


def test_a_cancelled_error_from_a_plain_hook_does_not_cancel_the_publisher() -> None:
    bus = EventBus()

    @bus.on("a")
    def broken(event: Event) -> None:
        raise asyncio.CancelledError

    bus.publish("a", "/")

    assert broken.failures == 1


def test_an_interrupt_within_a_hook_is_not_swallowed() -> None:
    bus = EventBus()

    @bus.on("a")
    def interrupted(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bus.publish("a", "/")


def test_a_hook_that_detaches_itself_is_called_no_more() -> None:
    bus = EventBus()
    received: list[int] = []

    @bus.on("a")
    def once(event: Event) -> None:
        received.append(event.seq)
        once.detach()

    bus.publish("a", "/")
    bus.publish("a", "/")

    assert received == [1]


def test_a_hook_detached_by_an_earlier_one_does_not_get_the_event_in_delivery() -> None:
    bus = EventBus()
    received: list[int] = []
    bus.on("a", lambda event: later.detach())
    later = bus.on("a", lambda event: received.append(event.seq))
    last: list[int] = []
    bus.on("a", lambda event: last.append(event.seq))

    bus.publish("a", "/")

    assert received == []
    assert last == [1]


def test_a_hook_added_by_a_hook_is_called_from_the_next_event_on() -> None:
    bus = EventBus()
    received: list[int] = []

    @bus.on("a")
    def add(event: Event) -> None:
        add.detach()
        bus.on("a", lambda event: received.append(event.seq))

    bus.publish("a", "/")
    bus.publish("a", "/")

    assert received == [2]


async def test_a_hook_may_publish_and_is_not_called_for_what_it_publishes_itself() -> None:
    bus = EventBus()

    @bus.on("*")
    def echo(event: Event) -> None:
        bus.publish("echo", "/hook")

    other: list[str] = []
    bus.on("*", lambda event: other.append(event.type))
    async with bus.subscribe() as stream:
        bus.publish("a", "/")
        assert [(await anext(stream)).type for _ in range(2)] == ["a", "echo"]

    assert sorted(other) == ["a", "echo"]
    assert echo.dropped == 1
    assert echo.attached


def test_a_plain_function_that_returns_a_coroutine_must_be_async() -> None:
    bus = EventBus()

    async def work(event: Event) -> None: ...

    hook = bus.on("a", lambda event: work(event))
    bus.publish("a", "/")

    assert hook.failures == 1


async def test_an_asynchronous_hook_runs_in_order_in_a_task_of_its_own() -> None:
    bus = EventBus()
    enough = asyncio.Event()
    steps: list[tuple[str, int]] = []
    tasks: set[object] = set()

    @bus.on("a")
    async def slow(event: Event) -> None:
        tasks.add(asyncio.current_task())
        steps.append(("in", event.seq))
        await asyncio.sleep(0)
        steps.append(("out", event.seq))
        if event.seq == 3:
            enough.set()

    for _ in range(3):
        bus.publish("a", "/")
    assert steps == [], "the publisher did not wait"
    await enough.wait()

    assert steps == [(way, seq) for seq in (1, 2, 3) for way in ("in", "out")]
    assert len(tasks) == 1
    assert asyncio.current_task() not in tasks
    await bus.aclose()


@pytest.mark.parametrize("wrap", [lambda callback: callback, functools.partial])
async def test_whatever_can_be_awaited_is_an_asynchronous_hook(wrap: object) -> None:
    bus = EventBus()
    recorder = Recorder(enough=1)
    callback = recorder if wrap is not functools.partial else functools.partial(Recorder.__call__, recorder)
    bus.on("a", callback)

    bus.publish("a", "/")
    await recorder.done.wait()

    assert recorder.received == [1]
    await bus.aclose()


def test_an_asynchronous_hook_wants_a_running_loop() -> None:
    bus = EventBus()

    async def work(event: Event) -> None: ...

    with pytest.raises(RuntimeError, match="no running event loop"):
        bus.on("a", work)
    assert not bus.wants("a")


async def test_an_asynchronous_hook_runs_on_its_own_loop_whatever_thread_publishes() -> None:
    bus = EventBus()
    home = asyncio.get_running_loop()
    loops: list[object] = []
    done = asyncio.Event()

    @bus.on("a")
    async def note(event: Event) -> None:
        loops.append(asyncio.get_running_loop())
        done.set()

    async def publish() -> None:
        bus.publish("a", "/elsewhere")

    await asyncio.to_thread(asyncio.run, publish())
    await done.wait()

    assert loops == [home]
    await bus.aclose()


async def test_a_slow_asynchronous_hook_drops_its_oldest_events_and_counts_them() -> None:
    bus = EventBus()
    recorder = Recorder(enough=1000)
    hook = bus.on("a", recorder)

    for _ in range(1005):
        bus.publish("a", "/")
    await recorder.done.wait()

    assert hook.dropped == 5
    assert recorder.received == list(range(6, 1006))
    await bus.aclose()


async def test_an_asynchronous_hook_that_never_waits_lets_others_run() -> None:
    bus = EventBus()
    recorder = Recorder(enough=1000)
    bus.on("a", recorder)
    for _ in range(1000):
        bus.publish("a", "/")

    await asyncio.sleep(0)
    await asyncio.sleep(0)

    assert 0 < len(recorder.received) < 1000
    await recorder.done.wait()
    await bus.aclose()


async def test_a_raising_asynchronous_hook_goes_on_with_the_next_event(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    done = asyncio.Event()

    @bus.on("a")
    async def moody(event: Event) -> None:
        if event.seq == 3:
            done.set()
            return
        raise LookupError if event.seq == 1 else asyncio.CancelledError

    for _ in range(3):
        bus.publish("a", "/")
    await done.wait()
    await bus.aclose()

    assert [record.name for record in caplog.records] == ["promptside.events"] * 2


async def test_five_failures_in_a_row_detach_an_asynchronous_hook(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    calls = 0

    @bus.on("a")
    async def broken(event: Event) -> None:
        nonlocal calls
        calls += 1
        raise LookupError

    for _ in range(WAY_TOO_MANY):
        bus.publish("a", "/")
    await asyncio.wait([task_of_the_hook()])

    assert calls == 5
    assert not broken.attached
    assert broken.dropped == WAY_TOO_MANY - 5, "what was queued for it is counted"
    assert not bus.wants("a")
    assert "detached after 5 failures in a row" in caplog.records[-1].getMessage()


async def test_a_success_between_failures_keeps_an_asynchronous_hook_attached() -> None:
    bus = EventBus()
    done = asyncio.Event()

    @bus.on("a")
    async def moody(event: Event) -> None:
        if event.seq == WAY_TOO_MANY:
            done.set()
        if event.seq % 5:
            raise LookupError

    for _ in range(WAY_TOO_MANY):
        bus.publish("a", "/")
    await done.wait()

    assert moody.attached
    await bus.aclose()


async def test_a_detached_asynchronous_hook_begins_no_further_call() -> None:
    bus = EventBus()
    received: list[int] = []

    @bus.on("a")
    async def once(event: Event) -> None:
        received.append(event.seq)
        once.detach()

    for _ in range(3):
        bus.publish("a", "/")
    await asyncio.wait([task_of_the_hook()])

    assert received == [1]
    assert once.dropped == 2


def test_a_loop_that_ends_takes_its_asynchronous_hook_along() -> None:
    bus = EventBus()

    async def register() -> Hook:
        return bus.on("a", Recorder(enough=1))

    hook = asyncio.run(register())
    assert not hook.attached
    assert not bus.wants("a")


def test_a_hook_that_swallows_its_cancellation_does_not_keep_the_loop_from_ending() -> None:
    bus = EventBus()

    async def register() -> Hook:
        began = asyncio.Event()

        @bus.on("a")
        async def stubborn(event: Event) -> None:
            began.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise LookupError from None

        bus.publish("a", "/")
        await began.wait()
        return stubborn

    hook = asyncio.run(register())
    assert not hook.attached


def test_an_asynchronous_hook_whose_loop_was_closed_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    bus = EventBus()
    loop = asyncio.new_event_loop()

    async def register() -> tuple[Hook, asyncio.Task[object]]:
        return bus.on("a", Recorder(enough=1)), task_of_the_hook()

    hook, task = loop.run_until_complete(register())
    loop.close()

    bus.publish("a", "/")

    assert not hook.attached
    assert not bus.wants("a")
    assert hook.dropped == 1
    assert "event loop is closed" in caplog.text
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # what asyncio says of it is not the point here
