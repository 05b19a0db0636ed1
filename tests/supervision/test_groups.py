"""one_for_all and rest_for_one, significant children, and starts that fail within a group."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from promptside import ActorSystem, Supervisor
from promptside.actors import State
from promptside.testing import run_virtual
from tests.support.children import Stage


@pytest.mark.parametrize(
    ("strategy", "diary"),
    [
        ("one_for_one", "stop b, start b"),
        ("one_for_all", "stop b, stop c, stop a, start a, start b, start c"),
        ("rest_for_one", "stop b, stop c, start b, start c"),
    ],
)
def test_the_strategy_decides_who_is_stopped_and_started_with_the_child_that_failed(strategy: Any, diary: str) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(system, "a", "b", "c", strategy=strategy)
            refs = [await stage.child(id) for id in "abc"]
            await stage.crash("b")
            assert stage.read() == diary
            assert [ref.incarnation for ref in refs] == [1 + (f"start {id}" in diary) for id in "abc"]

    run_virtual(main())


def test_a_group_restart_counts_once_and_a_temporary_member_does_not_come_back() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            temporary = stage.spec("t", "temporary")
            await stage.open(system, "a", temporary, "b", strategy="one_for_all", max_restarts=1)
            await stage.crash("a")
            assert stage.read() == "stop a, stop b, stop t, start a, start b"
            assert await stage.states() == {"a": "running", "b": "running"}

    run_virtual(main())


def test_a_start_that_fails_within_a_group_is_tried_again_with_its_group() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            moody = stage.spec("b", failures=[False, True, True])
            await stage.open(system, "a", moody, "c", strategy="rest_for_one")
            await stage.crash("a")
            assert stage.read() == "stop a, stop c, stop b, start a, refuse b, refuse b, start b, start c"
            assert await stage.states() == dict.fromkeys("abc", "running")

    run_virtual(main())


def test_a_crash_of_a_sibling_in_the_same_moment_costs_the_group_one_restart() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            await stage.open(system, "a", "b", "c", strategy="one_for_all", max_restarts=1)
            a, c = await stage.child("a"), await stage.child("c")
            a.kill()
            c.kill()
            await asyncio.sleep(0.001)
            assert stage.read() == "stop b, start a, start b, start c"

    run_virtual(main())


def test_asks_to_a_member_of_the_group_fail_at_once_while_a_slow_sibling_holds_its_restart() -> None:
    class Slow(Exception):
        pass

    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            supervisor = await stage.open(system, "a", stage.spec("b", shutdown=3.0), "c", strategy="one_for_all")
            a, b, c = [await stage.child(id) for id in "abc"]
            b.tell(type(b)._cell and b._cell.actor_class.hang)  # holds its stop for 3 seconds
            await asyncio.sleep(0)
            a.kill()
            await asyncio.sleep(1)
            assert c.info().state is State.STOPPED
            with pytest.raises(Exception, match="a restart is expected in 0 s"):
                await c.ask(c._cell.actor_class.ping)
            await asyncio.sleep(3)
            assert await c.ask(c._cell.actor_class.ping) == "c"
            assert supervisor.incarnation == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("auto_shutdown", "first", "second"),
    [("any_significant", "stopped", "stopped"), ("all_significant", "running", "stopped")],
)
def test_the_end_of_significant_children_ends_the_supervisor(auto_shutdown: Any, first: str, second: str) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            significant = [stage.spec(id, "transient", significant=True) for id in "bc"]
            supervisor = await stage.open(system, "a", *significant, auto_shutdown=auto_shutdown)
            b, c = await stage.child("b"), await stage.child("c")
            await b.stop()
            await asyncio.sleep(0.001)
            assert supervisor.info().state.value == first
            await c.stop()
            await asyncio.sleep(0.001)
            assert supervisor.info().state.value == second
            assert system.failure is None
            assert stage.read() == "stop b, stop c, stop a"

    run_virtual(main())


def test_a_significant_child_that_is_restarted_ends_nothing() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            stage = Stage()
            significant = stage.spec("a", "transient", significant=True)
            supervisor = await stage.open(system, significant, auto_shutdown="any_significant")
            await stage.crash("a")
            assert stage.read() == "stop a, start a"
            assert (await supervisor.ask(Supervisor.count_children)).active == 1

    run_virtual(main())
