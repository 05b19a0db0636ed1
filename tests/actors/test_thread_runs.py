"""Messages that a thread handles itself on behalf of an actor: slots, stops, kills, races, counts."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem
from promptside.actors.spi import CURRENT, ThreadRun, cell_of
from promptside.actors.state import State
from promptside.errors import ActorStopped
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import outcome, started, turns, until


class Host(Actor, max_concurrency=2, shutdown=60):
    async def serve(self) -> str:
        return "served"

    async def hold(self, go: asyncio.Event) -> None:
        await go.wait()


def run_of(ref: ActorRef[Any], cancelled: list[str] | None = None) -> ThreadRun:
    return ThreadRun(cell_of(ref), Host.serve, lambda: None if cancelled is None else cancelled.append("cancelled"))


async def entered(ref: ActorRef[Any], cancelled: list[str] | None = None) -> ThreadRun:
    """One that was entered in another thread."""
    run = run_of(ref, cancelled)
    assert await asyncio.to_thread(run.enter)
    return run


async def test_it_is_a_message_of_the_actor_until_its_end() -> None:
    async with ActorSystem() as system:
        host = await system.spawn(Host)
        run = await entered(host)
        assert host.info().current == ("serve",)
        assert host.info().handled == 0
        await asyncio.to_thread(run.end)
        assert host.info().current == ()
        assert host.info().handled == 1
        assert run.error is None


async def test_it_takes_a_slot_and_what_waited_for_the_slot_goes_on_after_it() -> None:
    async with ActorSystem() as system:
        host = await system.spawn(Host)
        runs = [await entered(host) for _ in range(2)]
        assert not await asyncio.to_thread(run_of(host).enter)
        ask = await started(host.ask(Host.serve))
        await turns()
        assert not ask.done()
        await asyncio.to_thread(runs[0].end)
        assert await ask == "served"
        runs[1].end()


async def test_a_stop_waits_for_its_end_and_none_begins_after_it() -> None:
    async with ActorSystem() as system:
        host = await system.spawn(Host)
        run = await entered(host)
        stop = await started(host.stop())
        await turns()
        assert not stop.done()
        assert not await asyncio.to_thread(run_of(host).enter)
        await asyncio.to_thread(run.end)
        await stop
        assert run.error is None
        assert not await asyncio.to_thread(run_of(host).enter)


async def test_a_kill_ends_it_for_the_actor_at_once_and_tells_its_thread() -> None:
    cancelled: list[str] = []
    async with ActorSystem() as system:
        specs = [ChildSpec("host", Host)]
        supervisor = await Supervisor.start(system, specs)
        host = supervisor.child("host")
        run = await entered(host, cancelled)
        host.kill()
        assert cancelled == ["cancelled"]
        assert isinstance(run.error, ActorStopped)
        assert run.error.started
        await until(lambda: host.incarnation == 2 and host.info().state is State.RUNNING)
        assert host.info().current == ()
        run.end()
        assert host.info().handled == 0
        assert await host.ask(Host.serve) == "served"


async def test_its_caller_can_cancel_it_from_any_thread() -> None:
    cancelled: list[str] = []
    async with ActorSystem() as system:
        host = await system.spawn(Host)
        run = await entered(host, cancelled)
        await asyncio.to_thread(run.cancel)
        await until(lambda: not host.info().current)
        assert (cancelled, run.error) == (["cancelled"], None)
        run.end()
        assert host.info().handled == 0


async def test_a_suspended_actor_takes_none() -> None:
    async with ActorSystem() as system:
        host = await system.spawn(Host)
        host.suspend()
        await turns()
        assert not await asyncio.to_thread(run_of(host).enter)
        host.resume()
        await until(lambda: not host.info().suspended)
        (await entered(host)).end()


def test_there_is_none_where_the_loop_of_the_actor_is_closed() -> None:
    async def main() -> ActorRef[Host]:
        async with ActorSystem() as system:
            host = await system.spawn(Host)
            late.append(await entered(host))
            host.kill()
        return host

    late: list[ThreadRun] = []
    host = asyncio.run(main())
    late[0].end()
    late[0].cancel()
    assert not run_of(host).enter()


async def test_the_asks_that_wait_know_whom_they_wait_for() -> None:
    class Asker(Actor):
        async def ask_in_a_thread(self, run: list[ThreadRun]) -> set[Any]:
            message = CURRENT.get()
            assert message is not None
            run.append(await entered(host))
            before = set(message.waits)
            await asyncio.to_thread(run[0].end)
            return before - message.waits

    async with ActorSystem() as system:
        host = await system.spawn(Host)
        asker = await system.spawn(Asker)
        runs: list[ThreadRun] = []
        (waited_for,) = await asker.ask(Asker.ask_in_a_thread, runs)
        assert waited_for.cell is cell_of(host)


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_of_runs_that_begin_beside_an_end_each_is_refused_or_known(end: str) -> None:
    """In each round some threads run without a pause while the actor ends; the end waits for no run for ever."""

    class Wide(Host, max_concurrency=1000):
        pass

    async with ActorSystem() as system:
        for _ in range(10):
            host = await system.spawn(Wide)
            late = list[ThreadRun]()
            over, has_run, done = threading.Event(), threading.Event(), list[int]()

            def work(
                host: Any = host, late: Any = late, over: Any = over, has_run: Any = has_run, done: Any = done
            ) -> None:
                count = 0
                while (run := run_of(host)).enter():
                    if over.is_set() and run.error is None:
                        late.append(run)
                    has_run.set()
                    if run.error is None:
                        count += 1
                    run.end()
                done.append(count)

            threads = [threading.Thread(target=work) for _ in range(4)]
            for thread in threads:
                thread.start()
            await asyncio.to_thread(has_run.wait, 60)
            if end == "kill":
                host.kill()
            await asyncio.wait_for(host.stop(), 60)
            over.set()
            for thread in threads:
                await asyncio.to_thread(thread.join)
            assert not late
            assert end == "kill" or host.info().handled == sum(done)


async def test_runs_of_many_threads_are_counted_each() -> None:
    class Wide(Host, max_concurrency=1000):
        pass

    def work() -> None:
        for _ in range(2_000):
            run = run_of(host)
            assert run.enter()
            run.end()

    async with ActorSystem() as system:
        host = await system.spawn(Wide)
        await asyncio.gather(*(asyncio.to_thread(work) for _ in range(8)))
        assert host.info().handled == 16_000
        assert host.info().current == ()


async def test_what_the_actor_expires_or_lists_is_looked_at_while_threads_come_and_go() -> None:
    class Wide(Host, max_concurrency=1000):
        pass

    def work() -> None:
        while not over.is_set():
            runs = [run_of(host) for _ in range(20)]
            assert all(run.enter() for run in runs)
            for run in runs:
                run.end()

    over = threading.Event()
    async with ActorSystem() as system:
        host = await system.spawn(Wide)
        working = [asyncio.ensure_future(asyncio.to_thread(work)) for _ in range(4)]
        go = asyncio.Event()
        try:
            for _ in range(50):
                host.info()
                call = await outcome(await started(host.with_options(timeout=0.001).ask(Host.hold, go)))
                assert isinstance(call, TimeoutError)
        finally:
            over.set()
        await asyncio.gather(*working)
