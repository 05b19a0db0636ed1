"""The threads that the library starts, and the event loops that it waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from promptside.threads import Heartbeat, where_loop_is


@contextmanager
def running() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="desk")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def answer_of(heartbeat: Heartbeat) -> None:
    assert heartbeat._beat is not None
    heartbeat._beat.result(timeout=60)


def test_a_loop_that_stays_in_one_callback_is_blocked_until_it_leaves_it() -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait_for_a_thread() -> None:
        entered.set()
        leave.wait()

    with running() as loop:
        heartbeat = Heartbeat()
        loop.call_soon_threadsafe(wait_for_a_thread)
        entered.wait()
        try:
            assert [heartbeat.missed(loop) for _ in range(4)] == [0, 1, 2, 3]
            assert where_loop_is(loop).startswith("'desk' in wait_for_a_thread (")
        finally:
            leave.set()
        answer_of(heartbeat)
        assert heartbeat.missed(loop) == 0


def test_a_loop_that_goes_from_callback_to_callback_is_late_and_not_blocked() -> None:
    """What is due on it is behind much else, as on a busy machine."""
    entered, leave = threading.Semaphore(0), threading.Semaphore(0)

    def step() -> None:
        entered.release()
        leave.acquire()

    def all_at_once() -> None:
        for _ in range(6):
            loop.call_soon(step)

    with running() as loop:
        heartbeat = Heartbeat()
        loop.call_soon_threadsafe(all_at_once)
        for _ in range(6):
            entered.acquire()
            assert heartbeat.missed(loop) == 0
            leave.release()
        answer_of(heartbeat)


def test_a_loop_that_does_not_run_does_nothing() -> None:
    loop, heartbeat = asyncio.new_event_loop(), Heartbeat()
    assert [heartbeat.missed(loop) for _ in range(3)] == [0, 1, 2]
    assert where_loop_is(loop) == "it does not run"
    loop.close()
    assert [Heartbeat().missed(loop) for _ in range(2)] == [0, 0]
