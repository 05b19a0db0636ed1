"""In which order a pool tries its endpoints: the pure order, and the requests that reach real servers by it."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptside.pools import Endpoint, LMPool
from promptside.pools.lm.routes import TargetView, order
from promptside.testing import FakeServer, Fault
from tests.support.actors import until
from tests.support.pools import endpoint, running

VIEWS = st.lists(
    st.builds(TargetView, st.integers(0, 50), st.integers(1, 20), st.integers(0, 9), st.booleans()), max_size=6
)


@given(VIEWS)
def test_every_route_tries_every_endpoint_once(targets: list[TargetView]) -> None:
    for route in ("fallback", "round_robin", "least_busy", "vote"):
        assert sorted(order(route, targets)) == list(range(len(targets)))  # type: ignore[arg-type]


@given(VIEWS)
def test_no_endpoint_stands_before_one_that_should_come_first(targets: list[TargetView]) -> None:
    assert order("fallback", targets) == list(range(len(targets)))
    for before, after in zip(ordered := order("round_robin", targets), ordered[1:], strict=False):
        one, other = targets[before], targets[after]
        assert one.closed < other.closed or (one.closed == other.closed and one.last_first <= other.last_first)
    for before, after in zip(ordered := order("least_busy", targets), ordered[1:], strict=False):
        one, other = targets[before], targets[after]
        if one.closed == other.closed:
            assert one.load * other.capacity <= other.load * one.capacity, "a larger one may have more under way"
            if one.load * other.capacity == other.load * one.capacity:
                assert one.last_first <= other.last_first
        else:
            assert other.closed


async def test_round_robin_gives_each_endpoint_the_same_number_of_calls() -> None:
    with FakeServer("a") as a, FakeServer("b") as b, FakeServer("c") as c:
        targets = [endpoint(server, name=name) for server, name in ((a, "a"), (b, "b"), (c, "c"))]
        async with running(*targets, route="round_robin") as scene:
            answers = [(await scene.lm.acall(f"call {number}"))[0] for number in range(9)]
    assert answers == ["a", "b", "c"] * 3
    assert [len(server.requests) for server in (a, b, c)] == [3, 3, 3]


async def test_round_robin_shares_the_calls_of_an_open_circuit_among_all_the_others() -> None:
    with FakeServer("a") as a, FakeServer("b") as b, FakeServer("c") as c:
        a.fail(Fault.status(500), times=None)
        targets = [endpoint(server, name=name) for server, name in ((a, "a"), (b, "b"), (c, "c"))]
        async with running(*targets, route="round_robin") as scene:
            while scene.circuit("a") == "closed":
                await scene.lm.acall("until it opens")
            before = len(a.requests)
            answers = [(await scene.lm.acall(f"call {number}"))[0] for number in range(10)]
            assert len(a.requests) == before, "nothing reaches the dead endpoint"
    assert Counter(answers) == {"b": 5, "c": 5}


async def test_a_failure_is_answered_by_the_next_endpoint_on_every_route() -> None:
    for route in ("fallback", "round_robin", "least_busy"):
        with FakeServer("a") as a, FakeServer("b") as b:
            a.fail(Fault.status(500))
            async with running(endpoint(a, name="a"), endpoint(b, name="b"), route=route) as scene:
                assert await scene.lm.acall("hello") == ["b"]
            assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_the_least_busy_endpoint_is_the_one_with_the_most_room_for_its_size() -> None:
    with FakeServer("small") as small, FakeServer("large") as large:
        for server in (small, large):
            server.fail(Fault.hang(), times=None)
        targets = endpoint(small, name="small", max_connections=1), endpoint(large, name="large", max_connections=3)
        async with running(*targets, route="least_busy", workers=1) as scene:
            calls = []
            for number in range(4):
                calls.append(asyncio.create_task(scene.lm.acall(f"call {number}")))
                await until(lambda count=number + 1: small.active + large.active == count)  # type: ignore[misc]
            assert (small.active, large.active) == (1, 3)
            large.heal()
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            await large.until(lambda: large.active == 0)
            assert await scene.lm.acall("one more") == ["large"], "the small one is full"
            small.heal()
            await asyncio.gather(*calls)


async def test_a_route_keeps_to_the_endpoints_of_the_model_that_is_asked_for() -> None:
    with FakeServer("a") as a, FakeServer("b") as b, FakeServer("b, too") as spare:
        targets = endpoint(a, "openai/a"), endpoint(b, "openai/b"), endpoint(spare, "openai/b", name="spare")
        async with running(*targets, route="round_robin") as scene:
            lm = scene.pool.lm("openai/b", cache=False)
            assert [(await lm.acall(f"call {number}"))[0] for number in range(4)] == ["b", "b, too"] * 2
            assert not a.requests


def test_a_route_that_does_not_exist_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"LMPool: route='random': give one of 'fallback', 'round_robin'"):
        LMPool([Endpoint("openai/fake")], route="random")  # type: ignore[arg-type]
