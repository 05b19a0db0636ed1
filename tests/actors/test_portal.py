"""`start_portal` and `Portal`: actors from synchronous code."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from promptside.actors import Actor, ActorSystem, Portal, start_portal
from promptside.errors import ActorStartError, ActorStopped, AskTimeout


class Clerk(Actor):
    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise ValueError("a negative start")
        self.total = start
        self.closed = False

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    async def fail(self) -> None:
        raise ValueError("on request")

    async def hang(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def count(self, upto: int) -> object:  # type: ignore[misc]
        try:
            for number in range(upto):
                yield number
        finally:
            self.closed = True

    async def is_closed(self) -> bool:
        return self.closed


def test_a_script_spawns_asks_tells_and_reads_streams_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with start_portal("script") as portal:
        clerk = portal.spawn(Clerk, 10)
        assert portal.ask(clerk, Clerk.add, 5) == 15
        clerk.tell(Clerk.add, 1)
        assert portal.ask(clerk, Clerk.add, 0) == 16
        assert list(portal.stream(clerk, Clerk.count, 100)) == list(range(100))
        portal.stop(clerk)
        with pytest.raises(ActorStopped):
            portal.ask(clerk, Clerk.add, 1)
    assert threading.active_count() == before


def test_the_handlers_own_exception_and_a_timeout_reach_the_thread() -> None:
    with start_portal() as portal:
        with pytest.raises(ActorStartError, match="a negative start"):
            portal.spawn(Clerk, -1)
        clerk = portal.spawn(Clerk)
        with pytest.raises(AskTimeout):
            portal.ask(clerk.with_options(timeout=0.01), Clerk.hang)
        with pytest.raises(ValueError, match="on request"):
            portal.ask(clerk, Clerk.fail)


def test_a_stream_that_is_left_early_ends_its_producer() -> None:
    with start_portal() as portal:
        clerk = portal.spawn(Clerk)
        items = portal.stream(clerk, Clerk.count, 1_000_000)
        assert list(itertools.islice(items, 3)) == [0, 1, 2]
        items.close()  # type: ignore[attr-defined]
        assert portal.ask(clerk, Clerk.is_closed)


def test_an_exception_in_the_block_ends_the_system_and_is_not_replaced() -> None:
    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"), start_portal() as portal:
        portal.spawn(Clerk)
        raise KeyError("mine")
    assert threading.active_count() == before


async def test_threads_of_a_running_system_use_a_portal_of_their_own() -> None:
    async with ActorSystem() as system:
        clerk = await system.spawn(Clerk)
        portal = Portal(system)
        totals = await asyncio.gather(*(asyncio.to_thread(portal.ask, clerk, Clerk.add, 1) for _ in range(20)))
        assert sorted(totals) == list(range(1, 21))


async def test_a_portal_refuses_to_block_a_running_event_loop() -> None:
    async with ActorSystem() as system:
        clerk = await system.spawn(Clerk)
        with pytest.raises(RuntimeError, match="await the async API instead"):
            Portal(system).ask(clerk, Clerk.add, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda portal: portal.ask(None, Clerk.add), "Portal.ask: ref=None"),
        (lambda portal: list(portal.stream(None, Clerk.add)), "Portal.stream: ref=None"),
        (lambda portal: portal.stop(None), "Portal.stop: ref=None"),
        (lambda portal: portal.call(None), "Portal.call: work=None: give a coroutine"),
    ],
)
def test_what_a_portal_cannot_use_is_named_in_the_error(call: Any, message: str) -> None:
    with start_portal() as portal, pytest.raises(ValueError, match=f"^{message}"):
        call(portal)


def test_a_portal_without_a_valid_name_leaves_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match=r"^ActorSystem: name=5: give"), start_portal(5):
        pass
    assert threading.active_count() == before
