"""Listeners to events that belong to an incarnation, and end with it however it ends."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from promptside import ActorRef, ActorStartError, ActorStopped, ActorSystem, ChildSpec, Event, Supervisor
from promptside.actors.spi import cell_of
from tests.support.actors import Gate, Worker, turns, until


class Listening(Worker):
    """Listens in each of the ways."""

    async def on_start(self) -> None:
        events = self.system.events
        self.heard: list[str] = []
        self.own(events.on("app.*", lambda event: self.heard.append(event.type)))

        async def hear(event: Event) -> None:
            self.heard.append(f"async {event.type}")

        self.own(events.on("app.*", hear))
        self.stream = self.own(events.subscribe("app.*"))
        self.stream.open()

    async def all_heard(self) -> list[str]:
        return self.heard


def listeners(system: ActorSystem) -> int:
    bus = system.events
    return len(bus._hooks) + len(bus._subscriptions) + len(bus._running_hooks)


async def crash(ref: ActorRef[Any]) -> None:
    ref.tell(Worker.fail, ValueError("crash"))


async def kill(ref: ActorRef[Any]) -> None:
    ref.kill()


async def stop(ref: ActorRef[Any]) -> None:
    await ref.stop()


@pytest.mark.parametrize("end", [crash, kill, stop])
@pytest.mark.parametrize("place", ["here", "far"])
async def test_owned_listeners_end_with_their_incarnation(end: Callable[[Any], Any], place: str) -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far") if place == "far" else system.home
        ref = await system.with_options(node=node).spawn(Listening)
        assert listeners(system) == 4  # an asynchronous hook is a subscription, too
        system.events.publish("app.began", "app")
        heard = await ref.ask(Listening.all_heard)
        await until(lambda: sorted(heard) == ["app.began", "async app.began"])
        await end(ref)
        await until(lambda: listeners(system) == 0)
        system.events.publish("app.went on", "app")
        assert len(heard) == 2


async def test_each_incarnation_has_its_own_alone() -> None:
    async with ActorSystem() as system:
        top = await system.spawn(Supervisor, [ChildSpec("listening", Listening)])
        ref = await top.ask(Supervisor.child, "listening")
        for incarnation in (1, 2, 3):
            assert listeners(system) == 4
            ref.tell(Worker.fail, ValueError("crash"))
            await until(lambda incarnation=incarnation: ref.incarnation > incarnation and ref.state.value == "running")
            await until(lambda: listeners(system) == 4)


async def test_a_failed_start_leaves_none() -> None:
    class Failing(Listening):
        async def on_start(self) -> None:
            await super().on_start()
            raise ValueError("no")

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError):
            await system.spawn(Failing)
        await until(lambda: listeners(system) == 0)


async def test_a_hook_that_is_under_way_may_end_in_an_ordered_stop_and_is_cancelled_at_its_end() -> None:
    gate = Gate()

    class Slow(Worker):
        async def on_start(self) -> None:
            async def hear(event: Event) -> None:
                await gate.walk()

            self.own(self.system.events.on("app.*", hear))

    async with ActorSystem() as system:
        ref = await system.spawn(Slow)
        system.events.publish("app.began", "app")
        await gate.entered.wait()
        await ref.stop()
        await until(lambda: gate.outcome == "cancelled" and listeners(system) == 0)


async def test_what_its_actor_has_closed_is_not_kept() -> None:
    async def listen(actor: Worker) -> None:
        async with actor.own(actor.system.events.subscribe("app.*")):
            pass
        actor.own(actor.system.events.on("app.*", print)).detach()

    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        for _ in range(20):
            await ref.ask(Worker.call, listen)
        gc.collect()
        owned = cell_of(ref).listeners
        assert owned is not None
        assert len(owned) == 0


async def test_an_incarnation_that_has_ended_owns_nothing_more() -> None:
    old: list[Worker] = []

    async def keep(actor: Worker) -> None:
        old.append(actor)

    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.ask(Worker.call, keep)
        with pytest.raises(TypeError, match=r"give what `events.on` or `events.subscribe` has returned"):
            old[0].own("listener")  # type: ignore[type-var]
        await ref.stop()
        hook = system.events.on("*", print)
        with pytest.raises(ActorStopped):
            old[0].own(hook)
        assert not hook.attached


async def test_an_iterator_gives_what_is_queued_and_ends() -> None:
    read: list[str] = []

    class Reading(Worker):
        async def on_start(self) -> None:
            self.task = asyncio.ensure_future(self.read())
            await turns()

        async def read(self) -> None:
            async with self.own(self.system.events.subscribe("app.*")) as stream:
                async for event in stream:
                    read.append(event.type)

    async with ActorSystem() as system:
        ref = await system.spawn(Reading)
        task = cell_of(ref).instance.task
        system.events.publish("app.began", "app")
        ref.kill()
        await asyncio.wait_for(task, 60)
        assert read == ["app.began"]
