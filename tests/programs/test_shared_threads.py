"""Many short functions in few threads: outcomes, growth, cancellation, the end."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest

from promptside.programs.evaluation.shared_threads import SharedThreads
from tests.support.actors import started, until

MARK: ContextVar[int] = ContextVar("MARK")


@asynccontextmanager
async def sharing(limit: int) -> AsyncIterator[SharedThreads]:
    """Threads, of which none is left in the end."""
    before = set(threading.enumerate())
    shared = SharedThreads(limit)
    try:
        yield shared
    finally:
        shared.close()
        await until(lambda: not own(before))


def own(before: set[threading.Thread]) -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each not in before and each.name == "promptside-evaluation"]


async def test_each_caller_gets_what_its_function_gives_in_its_own_context() -> None:
    async def call(number: int) -> int:
        MARK.set(number)
        return int(await shared.run(lambda: 2 * MARK.get()))

    async with sharing(8) as shared:
        assert await asyncio.gather(*map(call, range(500))) == [2 * number for number in range(500)]


@pytest.mark.parametrize(
    "error", [ValueError("no"), StopIteration("no"), asyncio.CancelledError(), KeyboardInterrupt()]
)
async def test_an_error_is_its_callers_alone(error: BaseException) -> None:
    def fail() -> None:
        raise error

    raised = RuntimeError if isinstance(error, StopIteration) else type(error)  # of a coroutine it is the end
    async with sharing(1) as shared:
        with pytest.raises(raised) as caught:
            await shared.run(fail)
        assert error in (caught.value, caught.value.__cause__)
        assert await shared.run(lambda: "goes on") == "goes on"


async def test_functions_that_wait_have_a_thread_each_up_to_the_limit() -> None:
    together = threading.Barrier(5)
    async with sharing(5) as shared:
        before = set(threading.enumerate())
        await asyncio.gather(*(shared.run(lambda: together.wait(60)) for _ in range(10)))
        assert len(own(before)) == 5


async def test_what_was_not_begun_when_its_caller_is_cancelled_never_begins() -> None:
    go, begun = threading.Event(), list[str]()
    async with sharing(1) as shared:
        first = await started(shared.run(go.wait))
        second = await started(shared.run(lambda: begun.append("second")))
        third = await started(shared.run(lambda: begun.append("third")))
        second.cancel()
        go.set()
        await asyncio.gather(first, third)
        assert begun == ["third"]


async def test_a_function_whose_caller_is_cancelled_is_left_to_end_and_holds_nobody_back() -> None:
    go, entered = threading.Event(), threading.Event()

    def hang() -> None:
        entered.set()
        go.wait()

    async with sharing(2) as shared:
        call = await started(shared.run(hang))
        await until(entered.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        try:
            assert await shared.run(lambda: "in another thread") == "in another thread"
        finally:
            go.set()


async def test_without_a_thread_it_is_an_error_and_with_one_there_are_only_as_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with sharing(4) as shared:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await shared.run(lambda: None)
        before = set(threading.enumerate())
        assert await shared.run(lambda: 1) == 1
        together = [threading.Event(), threading.Event()]
        with monkeypatch.context() as patch:
            refused = list[threading.Thread]()
            patch.setattr(threading.Thread, "start", lambda thread: (refused.append(thread), refuse(thread)))
            calls = [await started(shared.run(event.wait)) for event in together]
            await until(lambda: len(refused) > 1)
        for event in together:
            event.set()
        assert await asyncio.gather(*calls) == [True, True]
        assert len(own(before)) <= 2


async def test_nothing_of_a_call_is_kept_by_threads_that_wait() -> None:
    class Example:
        pass

    async def call(fails: bool) -> weakref.ref[Any]:
        example = Example()

        def metric() -> Example:
            if fails:
                raise ValueError(example)
            return example

        try:
            await shared.run(metric)
        except ValueError:
            pass
        return weakref.ref(example)

    async with sharing(1) as shared:
        kept = [await call(fails=fails) for fails in (False, True)]
        await until(lambda: gc.collect() >= 0 and not any(each() for each in kept))


def test_a_function_that_ends_after_its_loop_has_ended_ends_its_thread() -> None:
    go, before = threading.Event(), set(threading.enumerate())

    async def main() -> None:
        shared = SharedThreads(1)
        call = await started(shared.run(go.wait))
        await until(lambda: bool(own(before)))
        call.cancel()
        shared.close()

    asyncio.run(main())
    threads = own(before)
    go.set()
    for thread in threads:
        thread.join(60)
    assert not own(before)
