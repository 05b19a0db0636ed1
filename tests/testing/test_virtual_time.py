"""Virtual time: no waiting, exact times, threads in real time, and a deadlock that says where everybody waits."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.to_thread
import pytest

from promptside import Actor, ActorSystem
from promptside.errors import AskTimeout
from promptside.testing import Deadlock, VirtualTimeLoop, run_virtual


def now() -> float:
    return asyncio.get_running_loop().time()


def test_a_year_takes_no_time_and_the_time_is_exact() -> None:
    async def main() -> float:
        await asyncio.sleep(365 * 86400 + 0.3)
        await asyncio.sleep(0)
        return now()

    begun = time.monotonic()
    assert run_virtual(main()) == 365 * 86400 + 0.3
    assert time.monotonic() - begun < 5


def test_the_time_stands_still_while_something_is_ready() -> None:
    async def main() -> tuple[float, list[str]]:
        said: list[str] = []
        asyncio.get_running_loop().call_later(1e-9, said.append, "timer")
        for _ in range(100):
            await asyncio.sleep(0)
        said.append("main")
        before = now()
        await asyncio.sleep(1e-9)
        return before, said

    assert run_virtual(main()) == (0.0, ["main", "timer"])


def test_timers_run_in_the_order_of_their_times_and_not_before() -> None:
    async def main() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        ran: list[tuple[float, float]] = []
        for when in (3.0, 1e12, 0.1, 0.1 + 0.2, 7.5, 0.3):
            loop.call_at(when, lambda when=when: ran.append((when, loop.time())))
        loop.call_at(2.0, ran.clear).cancel()
        await asyncio.sleep(2e12)
        return ran

    assert run_virtual(main()) == [(when, when) for when in (0.1, 0.3, 0.1 + 0.2, 3.0, 7.5, 1e12)]


async def by_asyncio_timeout() -> None:
    async with asyncio.timeout(50):
        await asyncio.sleep(100)


async def by_wait_for() -> None:
    await asyncio.wait_for(asyncio.Event().wait(), 50)


async def by_anyio() -> None:
    with anyio.fail_after(50):
        await anyio.sleep(100)


@pytest.mark.parametrize("wait", [by_asyncio_timeout, by_wait_for, by_anyio])
def test_timeouts_pass_at_their_virtual_time(wait: Callable[[], Awaitable[None]]) -> None:
    async def main() -> float:
        with pytest.raises(TimeoutError):
            await wait()
        return anyio.current_time()

    assert run_virtual(main()) == 50.0


def test_actors_live_in_virtual_time() -> None:
    class Slow(Actor):
        async def work(self) -> float:
            await asyncio.sleep(3)
            return now()

    async def main() -> float:
        async with ActorSystem() as system:
            slow = await system.spawn(Slow)
            with pytest.raises(AskTimeout):
                await slow.with_options(timeout=2).ask(Slow.work)
            return await slow.ask(Slow.work)

    assert run_virtual(main()) == 5.0


def test_an_exception_of_main_is_raised_and_tasks_that_it_leaves_are_cancelled() -> None:
    cancelled: list[bool] = []

    async def left() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def main() -> None:
        task = asyncio.ensure_future(left())
        await asyncio.sleep(1)
        assert not task.done()
        raise ValueError("of main")

    with pytest.raises(ValueError, match="of main"):
        run_virtual(main())
    assert cancelled == [True]


async def in_asyncios_thread(work: Callable[[], None]) -> None:
    await asyncio.to_thread(work)


async def in_anyios_thread(work: Callable[[], None]) -> None:
    await anyio.to_thread.run_sync(work)


InThread = Callable[[Callable[[], None]], Coroutine[Any, Any, None]]


@pytest.mark.parametrize("in_thread", [in_asyncios_thread, in_anyios_thread])
def test_the_time_does_not_jump_past_a_call_in_a_thread(in_thread: InThread) -> None:
    async def main() -> float:
        async with asyncio.timeout(60):
            await in_thread(lambda: time.sleep(0.05))
        before = now()
        await asyncio.sleep(1000)  # jumps again, although the idle thread is still there
        return before

    assert run_virtual(main()) == 0.0


def test_a_timeout_beside_a_call_in_a_thread_passes_in_real_time() -> None:
    release = threading.Event()

    async def main() -> float:
        call = asyncio.get_running_loop().run_in_executor(None, release.wait)
        begun = time.monotonic()
        await asyncio.sleep(0.1)
        assert time.monotonic() - begun >= 0.05
        release.set()
        await call
        return now()

    assert run_virtual(main()) == 0.1


def test_a_loop_without_timers_waits_for_another_thread() -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        said: asyncio.Future[str] = loop.create_future()
        thread = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(said.set_result, "from a thread"))
        thread.start()
        answer = await said
        thread.join()
        return answer

    assert run_virtual(main()) == "from a thread"


def test_a_deadlock_is_raised_at_once_and_names_who_waits_where() -> None:
    async def listen(event: asyncio.Event) -> None:
        await event.wait()

    async def main() -> None:
        await asyncio.sleep(2.5)
        listener = asyncio.get_running_loop().create_task(listen(asyncio.Event()), name="listener")
        await asyncio.gather(listener)

    begun = time.monotonic()
    with pytest.raises(Deadlock) as deadlock:
        run_virtual(main())
    assert time.monotonic() - begun < 2
    assert deadlock.value.now == 2.5
    assert "at virtual time 2.5 s" in str(deadlock.value)
    assert any(where.startswith("listener: ") and where.endswith(" in wait") for where in deadlock.value.waiting)
    assert any(__file__ in where and where.endswith(" in main") for where in deadlock.value.waiting)


def test_a_deadlock_of_many_names_some() -> None:
    async def main() -> None:
        await asyncio.gather(*(asyncio.Event().wait() for _ in range(30)))

    with pytest.raises(Deadlock, match="and 11 more"):
        run_virtual(main())


def test_a_loop_in_the_same_thread_is_refused() -> None:
    async def inner() -> None:
        pass

    async def main() -> None:
        with pytest.raises(RuntimeError, match="from a plain function"):
            run_virtual(inner())

    run_virtual(main())


def test_several_coroutines_share_a_loop_and_its_time() -> None:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(1))
        runner.run(asyncio.sleep(2))
        assert runner.get_loop().time() == 3.0


def test_only_a_coroutine_runs_in_virtual_time() -> None:
    with pytest.raises(ValueError, match=r"^run_virtual: main=None: give a coroutine"):
        run_virtual(None)
