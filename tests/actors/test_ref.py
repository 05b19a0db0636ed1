"""What a reference tells of its actor, and what it says to those who take it for the actor."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from promptside import Actor, ActorRef, ActorSystem, Backoff, Supervisor
from promptside.actors import State
from tests.support.actors import Boom, Worker, until


class Parent(Worker):
    async def bear(self) -> ActorRef[Worker]:
        return await self.spawn(Worker)


async def test_a_reference_knows_its_system_node_and_parent() -> None:
    async with ActorSystem() as system:
        node = await system.start_node("aside")
        above = await system.with_options(node=node).spawn(Parent)
        below = await above.ask(Parent.bear)
        assert below.system is system
        assert (above.node, below.node) == (node, node)
        assert (above.parent, below.parent) == (None, above)


async def test_a_reference_knows_the_state_of_its_actor_and_when_it_will_run_again() -> None:
    async with ActorSystem() as system:
        spec = Worker.child_spec("worker", backoff=Backoff(initial=60.0, maximum=60.0, jitter=0.0))
        await system.with_options(name="desk").spawn(Supervisor, [spec])
        worker = await system.whereis("desk").ask(Supervisor.child, "worker")
        assert (worker.state, worker.retry_after) == (State.RUNNING, None)
        worker.tell(Worker.fail, Boom())
        await until(lambda: (worker.retry_after or 0) > 50)
        assert worker.state is State.STOPPED


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("add", "ask it: `await ref.ask(Worker.add, ...)`, or tell it: `ref.tell(Worker.add, ...)`"),
        ("count_to", "read it: `async for item in ref.stream(Worker.count_to, ...)`"),
    ],
)
async def test_a_method_called_on_a_reference_says_what_to_write_instead(name: str, remedy: str) -> None:
    async with ActorSystem() as system:
        ref: Any = await system.spawn(Worker)
        with pytest.raises(AttributeError) as error:
            getattr(ref, name)
        assert str(error.value) == f"'ActorRef' object has no attribute {name!r}; {remedy}"


@pytest.mark.parametrize("name", ["nothing", "total", "on_start", "receive", "spawn", "_add", "__add__", "__wrapped__"])
async def test_what_is_no_message_is_an_ordinary_missing_attribute(name: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        with pytest.raises(AttributeError) as error:
            getattr(ref, name)
        assert str(error.value) == f"'ActorRef' object has no attribute {name!r}"
        assert not hasattr(ref, name)
        assert getattr(ref, name, 3) == 3


async def test_the_messages_of_actors_are_no_attributes_of_references() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        assert "ask" in dir(ref)
        assert "add" not in dir(ref)
        assert not hasattr(ActorRef, "add")


async def test_a_reference_can_be_copied() -> None:
    async with ActorSystem() as system:
        ref = (await system.spawn(Worker)).with_options(timeout=7.0)
        twin = copy.copy(ref)
        assert twin == ref
        assert await twin.ask(Worker.add, 1) == 1
        assert not hasattr(ActorRef.__new__(ActorRef), "add"), "an empty one, as copying makes it"


async def test_every_actor_has_a_child_spec() -> None:
    class Counter(Actor):
        def __init__(self, start: int, *, step: int = 1) -> None:
            self.total, self.step = start, step

        async def add(self) -> int:
            self.total += self.step
            return self.total

    spec = Counter.child_spec("counter", 10, step=5, restart="transient", name="counter", shutdown=2.0)
    assert (spec.id, spec.restart, spec.name, spec.shutdown) == ("counter", "transient", "counter", 2.0)
    assert Counter.child_spec("plain").start is Counter
    async with ActorSystem() as system:
        desk = await Supervisor.start(system, [spec])
        assert await desk.child("counter").ask(Counter.add) == 15
