"""Nodes: another event loop in a thread of its own, the same tree and the same semantics."""

from __future__ import annotations

import asyncio
import threading

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, State
from promptside.errors import ActorStartError, ActorStopped, AskTimeout
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Gate, Worker, outcome, until


class Placed(Worker):
    """A gate belongs to one loop, so the actor makes its own."""

    async def thread(self) -> int:
        return threading.get_ident()

    async def bear(self) -> ActorRef[Placed]:
        return await self.spawn(Placed)

    async def wait(self, log: list[str]) -> None:
        log.append("entered")
        try:
            await asyncio.Event().wait()
        finally:
            log.append("left")


async def test_an_actor_runs_in_its_nodes_thread_and_its_children_with_it() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        ref = await system.with_options(node=node).spawn(Placed)
        child = await ref.ask(Placed.bear)
        assert await ref.ask(Placed.thread) == await child.ask(Placed.thread) == node.thread_id
        assert node.thread_id != threading.get_ident()
        assert "on node far" in str(system.tree())
        assert node.name == "far"


async def test_a_start_that_fails_on_a_node_is_told_with_its_cause() -> None:
    boom = Boom()

    class Failing(Worker):
        async def on_start(self) -> None:
            raise boom

    async with ActorSystem() as system:
        node = await system.start_node("far")
        with pytest.raises(ActorStartError) as raised:
            await system.with_options(node=node).spawn(Failing)
        assert raised.value.__cause__ is boom


async def test_crash_kill_timeout_and_cancel_across_nodes() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        far = system.with_options(node=node)
        ref = await far.spawn(Placed)
        boom = Boom()
        with pytest.raises(Boom) as raised:
            await ref.ask(Worker.fail, boom)
        assert raised.value is boom
        for how in ("timeout", "cancel", "kill", "stop"):
            ref = await far.spawn(Placed)
            log: list[str] = []
            timeout = 0.05 if how == "timeout" else 30
            asked = asyncio.ensure_future(ref.with_options(timeout=timeout).ask(Placed.wait, log))
            await until(lambda log=log: log)
            if how == "cancel":
                asked.cancel()
            elif how == "kill":
                ref.kill()
            elif how == "stop":
                await ref.stop(shutdown=0.02)
            kinds = {"timeout": AskTimeout, "cancel": asyncio.CancelledError}
            error = await outcome(asked)
            assert isinstance(error, kinds.get(how, ActorStopped)), how
            await until(lambda log=log: log == ["entered", "left"])
            if how in ("timeout", "cancel"):
                assert await ref.ask(Worker.add, 1) == 1


async def test_a_child_on_another_node_is_restarted_and_stopped_by_its_supervisor() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far")
        supervisor = await system.spawn(Supervisor, [ChildSpec("child", Placed, node=node)])
        child = await supervisor.ask(Supervisor.child, "child")
        child.kill()
        await until(lambda: child.incarnation == 2 and child.info().state is State.RUNNING)
        assert await child.ask(Placed.thread) == node.thread_id
        await supervisor.stop()
        assert child.info().state is State.STOPPED


async def test_nodes_end_with_the_system_and_their_threads_are_joined() -> None:
    before = threading.active_count()
    async with ActorSystem() as system:
        nodes = [await system.start_node(f"node-{number}") for number in range(3)]
        for node in nodes:
            ref = await system.with_options(node=node).spawn(Placed)
            ref.tell(Placed.wait, [])
            ref.kill()
    assert all(node.loop.is_closed() for node in nodes)
    await until(lambda: threading.active_count() == before)


async def test_two_nodes_ask_each_other_many_times_at_once() -> None:
    class Relay(Actor, max_concurrency=100):
        async def relay(self, other: ActorRef[Worker], amount: int) -> int:
            return await other.ask(Worker.add, amount)

    async with ActorSystem() as system:
        one, two = await system.start_node("one"), await system.start_node("two")
        relay = await system.with_options(node=one).spawn(Relay)
        counter = await system.with_options(node=two).spawn(Placed)
        answers = await asyncio.gather(*(relay.ask(Relay.relay, counter, 1) for _ in range(200)))
        assert sorted(answers) == list(range(1, 201))


async def test_on_stop_runs_on_the_node() -> None:
    threads: list[int] = []

    class Leaving(Worker):
        async def on_stop(self, reason: object) -> None:
            threads.append(threading.get_ident())

    async with ActorSystem() as system:
        node = await system.start_node("far")
        thread = node.thread_id
        await system.with_options(node=node).spawn(Leaving)
    assert threads == [thread]


async def test_a_cancelled_spawn_on_a_node_is_ended_there() -> None:
    gate_log: list[str] = []

    class Starting(Worker):
        async def on_start(self) -> None:
            gate_log.append("entered")
            try:
                await Gate().walk()
            finally:
                gate_log.append("left")

    async with ActorSystem() as system:
        node = await system.start_node("far")
        spawn = asyncio.ensure_future(system.with_options(node=node).spawn(Starting))
        await until(lambda: gate_log)
        spawn.cancel()
        assert isinstance(await outcome(spawn), asyncio.CancelledError)
        await until(lambda: gate_log == ["entered", "left"])
    assert system.tree().children == ()
