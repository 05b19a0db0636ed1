"""Work on another event loop: its outcome comes back once, and it ends when its caller or its loop does."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from promptside.pools import PoolUnavailable, WorkerLost
from promptside.pools.context.cancel import CallCancelled, CancelToken, with_cancel_token
from promptside.pools.lm.bridge import CrossLoopCall

Made = Callable[[CrossLoopCall[Any]], Awaitable[Any]]


@contextlib.contextmanager
def another_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One in a thread, which ends as the loop of a node does: what runs there is cancelled."""
    loops: list[asyncio.AbstractEventLoop] = []
    ready = threading.Event()

    def run() -> None:
        with asyncio.Runner() as runner:
            loops.append(runner.get_loop())
            loops[0].call_soon(ready.set)
            loops[0].run_forever()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait(10)
    try:
        yield loops[0]
    finally:
        with contextlib.suppress(RuntimeError):
            loops[0].call_soon_threadsafe(loops[0].stop)
        thread.join(10)


async def awaited(crossing: CrossLoopCall[Any]) -> Any:
    return await crossing.result()


async def in_a_thread(crossing: CrossLoopCall[Any]) -> Any:
    return await asyncio.to_thread(crossing.wait)


both = pytest.mark.parametrize("made", [awaited, in_a_thread])


class Work:
    """Runs until it is cancelled, and says when it began and when it ended."""

    def __init__(self) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()

    async def run(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@both
async def test_the_result_or_the_error_itself_comes_back_and_the_callers_context_goes_along(made: Made) -> None:
    class NotAnException(BaseException):
        pass

    async def answer() -> tuple[str, asyncio.AbstractEventLoop]:
        return mark.get(), asyncio.get_running_loop()

    async def fail() -> None:
        raise error

    mark: ContextVar[str] = ContextVar("mark")
    mark.set("the caller's")
    with another_loop() as loop:
        assert await made(CrossLoopCall(loop, answer)) == ("the caller's", loop)
        for error in (ValueError("one"), NotAnException()):
            with pytest.raises(type(error)) as caught:
                await made(CrossLoopCall(loop, fail))
            assert caught.value is error


async def test_a_cancelled_caller_cancels_the_work() -> None:
    work = Work()
    with another_loop() as loop:
        call = asyncio.create_task(CrossLoopCall(loop, work.run).result())
        await asyncio.to_thread(work.begun.wait, 10)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(work.ended.wait, 10)


async def test_a_thread_whose_caller_goes_stops_waiting_and_its_work_is_cancelled() -> None:
    work, token = Work(), CancelToken()

    def call() -> None:
        with with_cancel_token(token):
            CrossLoopCall(loop, work.run).wait()

    with another_loop() as loop:
        waiting = asyncio.create_task(asyncio.to_thread(call))
        await asyncio.to_thread(work.begun.wait, 10)
        token.cancel()
        with pytest.raises(CallCancelled):
            await waiting
        assert await asyncio.to_thread(work.ended.wait, 10)


class Ahead:
    """A loop that has done what it is given before the thread that gave it looks again.

    Args:
        loop: The real one.
        then: Called in that thread.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> None:
        self._loop, self._then = loop, then

    def call_soon_threadsafe(self, callback: Callable[..., Any], *args: Any) -> None:
        done = threading.Event()

        async def settle() -> None:
            callback(*args)
            for _ in range(10):
                await asyncio.sleep(0)
            done.set()

        asyncio.run_coroutine_threadsafe(settle(), self._loop)
        assert done.wait(10)
        self._then()


async def test_a_call_that_a_thread_makes_after_its_caller_went_begins_nothing() -> None:
    work, token = Work(), CancelToken()
    token.cancel()

    def call(loop: Any) -> None:
        with with_cancel_token(token), pytest.raises(CallCancelled):
            CrossLoopCall(loop, work.run).wait()

    with another_loop() as loop:
        await asyncio.to_thread(call, Ahead(loop, lambda: None))
    assert not work.begun.is_set()


async def test_a_caller_that_goes_with_its_pool_ends_the_thread_as_one_that_goes_alone() -> None:
    token = CancelToken()

    async def fail() -> None:
        raise WorkerLost("the LM pool ended during the call")

    def call(loop: Any) -> None:
        with with_cancel_token(token), pytest.raises(CallCancelled):
            CrossLoopCall(loop, fail).wait()

    with another_loop() as loop:
        await asyncio.to_thread(call, Ahead(loop, token.cancel))


async def test_work_that_had_not_begun_when_its_caller_went_never_begins() -> None:
    work, busy, release = Work(), threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        release.wait(10)

    with another_loop() as loop:
        loop.call_soon_threadsafe(block)
        await asyncio.to_thread(busy.wait, 10)
        call = asyncio.create_task(CrossLoopCall(loop, work.run).result())
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
        release.set()
        done = threading.Event()
        loop.call_soon_threadsafe(done.set)
        assert await asyncio.to_thread(done.wait, 10)
        assert not work.begun.is_set()


@both
async def test_a_loop_that_ends_during_the_work_is_told_to_its_caller(made: Made) -> None:
    work = Work()
    with another_loop() as loop:
        call = asyncio.ensure_future(made(CrossLoopCall(loop, work.run)))
        await asyncio.to_thread(work.begun.wait, 10)
        loop.call_soon_threadsafe(loop.stop)
        with pytest.raises(WorkerLost, match="the LM pool ended during the call"):
            await call
        assert work.ended.is_set()


@both
async def test_a_loop_that_ends_just_as_the_work_begins_is_told_to_its_caller(made: Made) -> None:
    work, busy, release = Work(), threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        release.wait(10)

    with another_loop() as loop:
        loop.call_soon_threadsafe(block)
        await asyncio.to_thread(busy.wait, 10)
        crossing = CrossLoopCall(loop, work.run)
        start = crossing._start
        crossing._start = lambda reply: (start(reply), loop.call_soon_threadsafe(loop.stop), release.set())  # type: ignore[assignment,func-returns-value]
        with pytest.raises(WorkerLost, match="the LM pool ended during the call"):
            await made(crossing)
        assert not work.begun.is_set()


@both
async def test_a_loop_that_has_ended_takes_no_work(made: Made) -> None:
    work = Work()
    with another_loop() as loop:
        pass
    with pytest.raises(PoolUnavailable, match="is closed"):
        await made(CrossLoopCall(loop, work.run))
    assert not work.begun.is_set()


def test_an_answer_for_a_loop_that_has_ended_is_dropped() -> None:
    begun, release = threading.Event(), threading.Event()

    async def answer() -> str:
        begun.set()
        await asyncio.to_thread(release.wait, 10)
        return "late"

    async def next_answer() -> str:
        return "the next one"

    with another_loop() as loop:
        here = asyncio.new_event_loop()
        call: Any = here.create_task(CrossLoopCall(loop, answer).result())
        here.run_until_complete(asyncio.sleep(0))
        assert begun.wait(10)
        call._log_destroy_pending = False
        here.close()
        release.set()
        assert asyncio.run(awaited(CrossLoopCall(loop, next_answer))) == "the next one"


@both
async def test_it_may_be_called_from_many_at_once(made: Made) -> None:
    async def echo(number: int) -> int:
        await asyncio.sleep(0)
        return number

    with another_loop() as loop:
        calls = [made(CrossLoopCall(loop, lambda number=number: echo(number))) for number in range(200)]
        assert await asyncio.gather(*calls) == list(range(200))
