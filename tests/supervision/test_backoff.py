"""`Backoff`: how long a failing child waits for its next start, and what is seen of it meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from promptside import ActorStopped, ActorSystem, Backoff, Supervisor
from promptside.testing import run_virtual
from tests.support.children import Child, Stage

EXACT = Backoff(initial=1.0, maximum=10.0, jitter=0.0, reset_after=100.0)


def test_asks_fail_at_once_with_the_time_that_is_left_until_the_restart() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, stage.spec("a", backoff=EXACT), "b")
            a = await stage.child("a")
            await stage.crash("a")
            assert await stage.states() == {"a": "restarting", "b": "running"}
            assert (await supervisor.ask(Supervisor.count_children)).active == 1
            await asyncio.sleep(0.25)
            with pytest.raises(ActorStopped) as stopped:
                await a.ask(Child.ping)
            assert stopped.value.retry_after == pytest.approx(0.749)
            assert not stopped.value.started
            await asyncio.sleep(stopped.value.retry_after + 0.001)
            assert await a.ask(Child.ping) == "a"

    run_virtual(main())


def test_failures_in_a_row_wait_longer_until_the_child_has_run_long_enough() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            failures = [False, True, True]
            await stage.open(system, stage.spec("a", backoff=EXACT, failures=failures), max_restarts=10)
            a = await stage.child("a")
            starts = []

            async def restarts(count: int) -> None:
                async with system.events.subscribe("actor.*") as events:
                    a.kill()
                    async for event in events:
                        if event.type == "actor.restarted":
                            starts.append(asyncio.get_running_loop().time())
                            return

            begin = asyncio.get_running_loop().time()
            await restarts(3)  # fails, and two starts with it: 1 + 2 + 4 seconds
            assert starts[-1] - begin == pytest.approx(7, abs=0.1)
            begin = asyncio.get_running_loop().time()
            await restarts(1)
            assert starts[-1] - begin == pytest.approx(8, abs=0.1)
            await asyncio.sleep(101)
            begin = asyncio.get_running_loop().time()
            await restarts(1)
            assert starts[-1] - begin == pytest.approx(1, abs=0.1)

    run_virtual(main())


def test_a_group_waits_for_the_backoff_of_the_child_that_failed() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(system, stage.spec("a", backoff=EXACT), "b", strategy="one_for_all")
            b = await stage.child("b")
            await stage.crash("a")
            assert stage.read() == "stop a, stop b"
            assert await stage.states() == {"a": "restarting", "b": "stopped"}
            with pytest.raises(ActorStopped) as stopped:
                await b.ask(Child.ping)
            assert stopped.value.retry_after == pytest.approx(1, abs=0.01)
            await asyncio.sleep(1)
            assert stage.read() == "start a, start b"

    run_virtual(main())


def test_a_child_that_is_added_while_a_group_waits_runs_on() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, stage.spec("a", backoff=EXACT), strategy="one_for_all")
            await stage.crash("a")
            b = await supervisor.ask(Supervisor.start_child, stage.spec("b"))
            await asyncio.sleep(1)
            assert stage.read() == "stop a, start b, start a"
            assert b.incarnation == 1

    run_virtual(main())


@pytest.mark.parametrize("how", ["terminate_child", "supervisor", "system"])
def test_what_ends_meanwhile_is_not_restarted_and_leaves_no_timer(how: str) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, stage.spec("a", backoff=EXACT), "b", strategy="one_for_all")
            a, b = await stage.child("a"), await stage.child("b")
            await stage.crash("a")
            if how == "terminate_child":
                await supervisor.ask(Supervisor.terminate_child, "a")
                assert await stage.states() == {"a": "stopped", "b": "stopped"}
            elif how == "supervisor":
                await supervisor.stop()
            if how != "system":
                await asyncio.sleep(20)
                for ref in (a, b):
                    with pytest.raises(ActorStopped) as stopped:
                        await ref.ask(Child.ping)
                    assert stopped.value.retry_after is None
        assert stage.read() == "stop a, stop b"

    run_virtual(main())
