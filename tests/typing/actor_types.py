"""What mypy and pyright infer about messages; checked by both, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import assert_type

from promptside.actors import Actor, ActorRef, ActorSystem, Node, Portal, Timer


class Counter(Actor, max_concurrency=2, expected=(ValueError,), mailbox=10, overflow="drop_oldest", timeout=1.0):
    def __init__(self, start: int, *, step: int = 1) -> None:
        self.total = start
        self.step = step

    async def add(self, amount: int, *, twice: bool = False) -> int:
        return amount

    async def name(self) -> str | None:
        return None

    async def reset(self) -> None: ...

    async def steps(self, upto: int) -> AsyncIterator[float]:
        yield float(upto)

    def plain(self) -> int:
        return self.total

    async def inside(self) -> None:
        assert_type(await self.ref.ask(Counter.add, 5), int)
        assert_type(self.system, ActorSystem)
        assert_type(await self.spawn(Counter, 1, step=2), ActorRef["Counter"])
        assert_type(self.tell_after(1.0, Counter.add, 5), Timer)
        assert_type(self.tell_every(1.0, Counter.add, amount=5), Timer)
        self.tell_after(1.0, Counter.add, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class BigCounter(Counter):
    async def double(self) -> int:
        return 2 * self.total


class Other(Actor):
    async def add(self, amount: int) -> bytes:
        return bytes(amount)


async def an_ask_has_the_type_of_its_method(counter: ActorRef[Counter], big: ActorRef[BigCounter]) -> None:
    assert_type(await counter.ask(Counter.add, 5), int)
    assert_type(await counter.ask(Counter.add, amount=5, twice=True), int)
    assert_type(await counter.ask(Counter.name), str | None)
    assert_type(await counter.with_options(timeout=1.0).ask(Counter.add, 5), int)
    assert_type(await big.ask(Counter.add, 5), int)
    assert_type(await big.ask(BigCounter.double), int)


async def a_wrong_ask_is_a_type_error(counter: ActorRef[Counter]) -> None:
    await counter.ask(Counter.add, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.ask(Counter.add)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await counter.ask(Counter.name, 6)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await counter.ask(Counter.add, 5, thrice=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await counter.ask(Counter.plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.ask(Counter.steps, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.ask(Other.add, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.ask(BigCounter.double)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.ask("add", 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    counter.ask(Counter.reset)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]


async def a_tell_checks_its_arguments(counter: ActorRef[Counter]) -> None:
    counter.tell(Counter.add, 5)
    counter.tell(Counter.reset)
    await counter.deliver(Counter.add, 5, twice=True)
    counter.send_message({"any": "thing"})
    counter.tell(Counter.add, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    counter.tell(Counter.plain)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    counter.tell(Other.add, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await counter.deliver(Counter.add)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def a_stream_has_the_type_of_its_items(counter: ActorRef[Counter]) -> None:
    assert_type(counter.stream(Counter.steps, 5), AsyncGenerator[float, None])
    async for step in counter.stream(Counter.steps, 5):
        assert_type(step, float)
    counter.stream(Counter.steps, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    counter.stream(Counter.add, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def a_spawn_checks_the_arguments_of_init(system: ActorSystem, node: Node) -> None:
    assert_type(await system.spawn(Counter, 10), ActorRef[Counter])
    assert_type(await system.spawn(Counter, 10, step=2), ActorRef[Counter])
    assert_type(await system.with_options(name="counter", node=node).spawn(Counter, 10), ActorRef[Counter])
    assert_type(await system.spawn(lambda: Counter(3)), ActorRef[Counter])
    await system.spawn(Counter)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await system.spawn(Counter, "10")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await system.with_options().spawn(Counter, stop=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def a_portal_has_the_same_types(portal: Portal, counter: ActorRef[Counter]) -> None:
    assert_type(portal.spawn(Counter, 10), ActorRef[Counter])
    assert_type(portal.ask(counter, Counter.add, 5), int)
    portal.ask(counter, Counter.add, "5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for step in portal.stream(counter, Counter.steps, 5):
        assert_type(step, float)


def class_options_are_checked() -> None:
    class Bad(Actor, max_concurrency="2"): ...  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]

    class Worse(Actor, overflow="block"): ...  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportGeneralTypeIssues]


def timeouts_are_numbers(counter: ActorRef[Counter]) -> None:
    counter.with_options(timeout="5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
