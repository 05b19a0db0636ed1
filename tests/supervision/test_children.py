"""Children that are added, stopped, started again and deleted while their supervisor runs."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from promptside import (
    Actor,
    ActorStartError,
    ActorStopped,
    ActorSystem,
    ChildNotFound,
    ChildSpec,
    InvalidChildSpec,
    InvalidChildState,
    NameNotFound,
    NameTaken,
    Supervisor,
)
from promptside.actors import State
from promptside.supervision import ChildCounts
from tests.support.actors import doomed_system, until
from tests.support.children import Child, Stage


async def test_a_child_is_added_after_the_others_and_stopped_before_them() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "a")
        b = await supervisor.ask(Supervisor.start_child, stage.spec("b"))
        assert await b.ask(Child.ping) == "b"
        b.kill()
        await until(lambda: b.incarnation == 2 and b.info().state is State.RUNNING)
    assert stage.read() == "start b, start b, stop b, stop a"


async def test_a_child_that_does_not_start_is_not_added() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "a")
        with pytest.raises(ActorStartError, match="not yet"):
            await supervisor.ask(Supervisor.start_child, stage.spec("b", failures=[True], name="b"))
        assert await stage.states() == {"a": "running"}
        assert [child.name for child in system.tree().children[0].children] == ["a"]
        await system.with_options(name="b").spawn(Child, "b", [], [])


async def test_an_id_that_is_taken_is_refused_with_the_state_of_its_holder() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "a")
        with pytest.raises(InvalidChildState, match="is running; give the new one another id") as refused:
            await supervisor.ask(Supervisor.start_child, stage.spec("a"))
        assert refused.value.state == "running"
        await supervisor.ask(Supervisor.terminate_child, "a")
        with pytest.raises(InvalidChildState, match="is stopped; start it with restart_child, or delete it first"):
            await supervisor.ask(Supervisor.start_child, stage.spec("a"))
        with pytest.raises(InvalidChildSpec, match="is not a ChildSpec"):
            await supervisor.ask(Supervisor.start_child, Child)  # type: ignore[arg-type]


async def test_a_stopped_child_keeps_its_place_and_comes_back_under_the_same_reference() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, stage.spec("a", name="first"), "b")
        a = await stage.child("a")
        await supervisor.ask(Supervisor.terminate_child, "a")
        assert await stage.states() == {"a": "stopped", "b": "running"}
        assert await supervisor.ask(Supervisor.count_children) == ChildCounts(
            specs=2, active=1, supervisors=0, workers=2
        )
        with pytest.raises(ActorStopped) as stopped:
            await a.ask(Child.ping)
        assert stopped.value.retry_after is None
        with pytest.raises(NameNotFound):
            system.whereis("first")
        assert await supervisor.ask(Supervisor.restart_child, "a") == a
        assert system.whereis("first") == a
        assert await a.ask(Child.ping) == "a"
        assert (await supervisor.ask(Supervisor.which_children))[0].restarts == 1
    assert stage.read() == "stop a, start a, stop b, stop a"


async def test_a_stopped_child_whose_name_was_given_away_does_not_come_back() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, stage.spec("a", name="first"))
        await supervisor.ask(Supervisor.terminate_child, "a")
        other = await system.with_options(name="first").spawn(Child, "other", [], [])
        with pytest.raises(NameTaken):
            await supervisor.ask(Supervisor.restart_child, "a")
        with pytest.raises(NameTaken):
            await supervisor.ask(Supervisor.start_child, stage.spec("b", name="first"))
        assert system.whereis("first") == other
        await other.stop()
        await supervisor.ask(Supervisor.restart_child, "a")
        assert await stage.states() == {"a": "running"}


async def test_a_deleted_child_is_gone_from_the_tree_and_its_id_is_free() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "a", stage.spec("t", "temporary"))
        with pytest.raises(InvalidChildState, match="is running; stop it first with terminate_child"):
            await supervisor.ask(Supervisor.delete_child, "a")
        await supervisor.ask(Supervisor.terminate_child, "a")
        await supervisor.ask(Supervisor.terminate_child, "t")  # temporary: deleted by that
        await supervisor.ask(Supervisor.delete_child, "a")
        assert system.tree().children[0].children == ()
        for method in (Supervisor.delete_child, Supervisor.restart_child, Supervisor.terminate_child):
            with pytest.raises(ChildNotFound, match="has no child 'a'; it has none"):
                await supervisor.ask(method, "a")
        await supervisor.ask(Supervisor.start_child, stage.spec("a"))


async def test_a_restart_that_fails_leaves_the_child_stopped_and_uses_up_no_budget() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, stage.spec("a", failures=[False, True]), max_restarts=0)
        await supervisor.ask(Supervisor.terminate_child, "a")
        with pytest.raises(ActorStartError):
            await supervisor.ask(Supervisor.restart_child, "a")
        assert await stage.states() == {"a": "stopped"}
        await supervisor.ask(Supervisor.restart_child, "a")
        with pytest.raises(InvalidChildState, match="is running"):
            await supervisor.ask(Supervisor.restart_child, "a")


class Slow(Actor):
    """Takes for ever to start, or to stop."""

    def __init__(self, start: asyncio.Event | None, entered: asyncio.Event) -> None:
        self.start = start
        self.entered = entered

    async def on_start(self) -> None:
        if self.start is not None:
            self.entered.set()
            await self.start.wait()

    async def on_stop(self, reason: object) -> None:
        if self.start is None:
            self.entered.set()
            await asyncio.get_running_loop().create_future()


async def test_a_caller_that_is_cancelled_while_a_child_starts_takes_the_child_with_it() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system)
        entered = asyncio.Event()
        spec = ChildSpec("slow", lambda: Slow(asyncio.Event(), entered))
        asking = asyncio.ensure_future(supervisor.ask(Supervisor.start_child, spec))
        await entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await stage.states() == {}
        assert system.tree().children[0].children == ()


async def test_a_caller_that_is_cancelled_while_a_child_stops_leaves_no_child_behind() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        entered = asyncio.Event()
        spec = ChildSpec("slow", lambda: Slow(None, entered), "temporary", shutdown=0.02)
        supervisor = await stage.open(system, spec)
        slow = await supervisor.ask(Supervisor.child, "slow")
        asking = asyncio.ensure_future(supervisor.ask(Supervisor.terminate_child, "slow"))
        await entered.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert await stage.states() == {}
        assert slow.info().state is State.STOPPED


async def test_a_supervisor_that_is_killed_while_a_child_stops_does_not_wait_for_it() -> None:
    stage = Stage()
    async with ActorSystem() as system:
        entered = asyncio.Event()
        supervisor = await stage.open(system, ChildSpec("slow", lambda: Slow(None, entered), shutdown=3600.0))
        slow = await supervisor.ask(Supervisor.child, "slow")
        asking = asyncio.ensure_future(supervisor.ask(Supervisor.terminate_child, "slow"))
        await entered.wait()
        supervisor.kill()
        with pytest.raises(ActorStopped):
            await asking
        await until(lambda: supervisor.info().state is State.STOPPED)
        assert slow.info().state is State.STOPPED


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_a_supervisor_whose_child_never_starts_again_ends_at_once(how: str) -> None:
    starts: list[asyncio.Event] = []
    entered = asyncio.Event()

    def make() -> Slow:
        starts.append(asyncio.Event())
        if len(starts) == 1:
            starts[0].set()
        return Slow(starts[-1], entered)

    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, "a", ChildSpec("slow", make))
        entered.clear()
        (await supervisor.ask(Supervisor.child, "slow")).kill()
        await entered.wait()
        if how == "stop":
            await supervisor.stop()
        else:
            supervisor.kill()
            await until(lambda: supervisor.info().state is State.STOPPED)
        assert len(starts) == 2
        assert stage.read() == ("stop a" if how == "stop" else "")


async def test_a_child_may_have_a_node_of_its_own_that_ends_with_it() -> None:
    def nodes() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("promptside-")]

    stage = Stage()
    async with ActorSystem() as system:
        supervisor = await stage.open(system, stage.spec("a", node="aside"), stage.spec("b", "temporary", node="other"))
        a, b = await stage.child("a"), await stage.child("b")
        assert a._cell.node.name == "aside"
        assert sorted(nodes()) == ["promptside-aside", "promptside-other"]
        a.kill()
        await until(lambda: a.incarnation == 2 and a.info().state is State.RUNNING)
        assert await a.ask(Child.ping) == "a"
        b.kill()
        await until(lambda: nodes() == ["promptside-aside"])
        await supervisor.ask(Supervisor.terminate_child, "a")
        await supervisor.ask(Supervisor.delete_child, "a")
        assert nodes() == []
        await supervisor.ask(Supervisor.start_child, stage.spec("a", node="again"))
        with pytest.raises(ActorStartError):
            await supervisor.ask(Supervisor.start_child, stage.spec("c", failures=[True], node="refused"))
        with pytest.raises(NameTaken):
            await supervisor.ask(Supervisor.start_child, stage.spec("d", name="supervisor", node="taken"))
        assert nodes() == ["promptside-again"]
        await supervisor.stop()
        assert nodes() == []


async def test_a_supervisor_at_the_top_that_gives_up_is_raised_by_the_end_of_the_system() -> None:
    stage = Stage()
    async with doomed_system() as system:
        await stage.open(system, "a", max_restarts=1)
        a = await stage.child("a")
        for _ in range(2):
            await until(lambda: a.info().state is State.RUNNING)
            a.tell(Child.fail)
            await until(lambda: a.info().state is not State.RUNNING)
        await until(lambda: system.failure is not None)
        failure = system.failure
        assert failure is not None
        assert [id for id, _ in failure.history] == ["a", "a"]
        assert isinstance(failure.__cause__, ValueError)


async def test_an_error_of_the_block_goes_before_a_failure_of_the_system_and_carries_it_as_a_note() -> None:
    with pytest.raises(KeyError) as raised:
        async with ActorSystem() as system:
            await Stage().open(system, ChildSpec("a", lambda: Child("a", [], [])), max_restarts=0)
            system.whereis("supervisor")._cell.children["a"].ref.kill()  # type: ignore[index]
            await until(lambda: system.failure is not None)
            raise KeyError("of the block")
    assert any("meanwhile: supervisor 'supervisor' gave up" in note for note in raised.value.__notes__)


@pytest.mark.parametrize(("restart", "starts"), [("permanent", 2), ("transient", 1), ("temporary", 1)])
async def test_giving_up_is_an_orderly_end_to_the_supervisor_above(restart: Any, starts: int) -> None:
    stage = Stage()
    async with ActorSystem() as system:
        inner = Supervisor.child_spec("inner", [stage.spec("leaf")], max_restarts=0, restart=restart)
        supervisor = await stage.open(system, inner)
        ref = await supervisor.ask(Supervisor.child, "inner")
        (await ref.ask(Supervisor.child, "leaf")).kill()
        end = State.RUNNING if starts == 2 else State.STOPPED
        await until(lambda: (ref.incarnation, ref.info().state) == (starts, end))
        await stage.states()
        assert ref.incarnation == starts
        assert system.failure is None


async def test_a_stop_while_a_supervisor_starts_ends_what_had_started_in_order() -> None:
    stage = Stage()
    entered = asyncio.Event()
    async with ActorSystem() as system:
        outer = await system.with_options(name="outer").spawn(Supervisor)
        inner = Supervisor.child_spec(
            "inner", [stage.spec("a"), ChildSpec("s", lambda: Slow(asyncio.Event(), entered))]
        )
        starting = asyncio.ensure_future(outer.ask(Supervisor.start_child, inner))
        await entered.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert stage.read() == "start a, stop a"
