"""Identical deterministic requests at the same time: how many reach the server, and who gets what."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request
from dspy.utils.exceptions import LMError, LMInvalidRequestError, LMServerError
from dspy.utils.usage_tracker import track_usage

from promptside.pools import Endpoint, LMPool, PoolUnavailable, RetryConfig, WorkerLost
from promptside.pools.context.batch import batch_run
from promptside.testing import FakeServer, Fault
from tests.support.actors import until
from tests.support.pools import Scene, running

REQUEST = Request(model="openai/fake", messages=(Message.user("?"),), config=Config(temperature=0))


pytestmark = pytest.mark.usefixtures("empty_cache")


def greedy(scene: Scene, **settings: Any) -> dspy.LM:
    return scene.pool.lm(temperature=0, **settings)


async def joined(scene: Scene, callers: int) -> None:
    """Wait until so many calls are known to the pool."""
    await until(lambda: len(scene.events("lm.call.started")) >= callers)


async def test_fifty_identical_calls_at_once_are_one_request() -> None:
    with FakeServer("Paris") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            calls = [asyncio.create_task(lm.acall("capital of France?")) for _ in range(40)]
            calls += [asyncio.create_task(asyncio.to_thread(lm, "capital of France?")) for _ in range(4)]
            await joined(scene, 44)
            server.heal()
            assert await asyncio.gather(*calls) == [["Paris"]] * 44
            assert len(server.requests) == 1
            shared = [event.data.get("shared", False) for event in scene.events("lm.call.stopped")]
            assert (len(shared), sum(shared)) == (44, 43)
            assert scene.types("lm.attempt.*") == ["lm.attempt.started", "lm.attempt.stopped"]
            total = scene.pool.costs()["total"]
            assert (total["calls"], total["input_tokens"]) == (1, 3)


async def test_what_the_call_used_is_told_once() -> None:
    with FakeServer("one two") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            with track_usage() as usage:
                calls = [asyncio.create_task(lm.acall("three little words")) for _ in range(3)]
                await joined(scene, 3)
                server.heal()
                await asyncio.gather(*calls)
            (total,) = usage.get_total_tokens().values()
            assert (total["prompt_tokens"], total["completion_tokens"]) == (3, 2)


@pytest.mark.parametrize(
    ("fault", "kind"), [(Fault.status(400), LMInvalidRequestError), (Fault.status(500), LMServerError)]
)
async def test_all_of_them_get_the_same_error(fault: Fault, kind: type[LMError]) -> None:
    with FakeServer() as server:
        server.latency = 0.2
        server.fail(fault, times=None)
        async with running(server, retry=RetryConfig(attempts=1)) as scene:
            lm = greedy(scene)
            calls = [asyncio.create_task(lm.acall("?")) for _ in range(10)]
            await joined(scene, 10)
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(error) for error in errors} == {kind}
            assert len(server.requests) == 1
            assert scene.types("lm.call.*").count("lm.call.failed") == 10


async def test_a_cancelled_first_caller_leaves_the_request_to_the_others() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            first = asyncio.create_task(lm.acall("?"))
            await server.until(lambda: server.active == 1)
            second = asyncio.create_task(lm.acall("?"))
            await joined(scene, 2)
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            server.heal()
            assert await second == ["yes"]
            assert len(server.requests) == 1
            assert not server.requests[0].aborted


async def test_the_last_caller_that_is_cancelled_disconnects_and_the_next_call_is_a_new_one() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            calls = [asyncio.create_task(lm.acall("?")) for _ in range(3)]
            await joined(scene, 3)
            await server.until(lambda: server.active == 1)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            await server.until(lambda: server.requests[0].aborted)
            server.heal()
            assert await lm.acall("?") == ["yes"]
            assert len(server.requests) == 2


async def test_one_after_another_there_are_two_calls() -> None:
    with FakeServer("yes") as server:
        async with running(server) as scene:
            engine = greedy(scene).engine
            for _ in range(2):
                await asyncio.to_thread(engine.complete, REQUEST)
            assert len(server.requests) == 2, "it is no cache"


@pytest.mark.parametrize(
    ("settings", "prompts"),
    [
        ({"temperature": 0}, ["a", "b"]),
        ({}, ["a", "a"]),
        ({"temperature": 1.0}, ["a", "a"]),
        ({"temperature": 0, "cache": False}, ["a", "a"]),
    ],
)
async def test_what_differs_or_is_sampled_or_is_not_to_be_cached_is_asked_each_time(
    settings: dict[str, Any], prompts: list[str]
) -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = scene.pool.lm(**settings)
            calls = [asyncio.create_task(lm.acall(prompt)) for prompt in prompts]
            await server.until(lambda: server.active == 2)
            server.heal()
            await asyncio.gather(*calls)


async def test_samples_that_rollout_ids_tell_apart_are_asked_each_time() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = scene.pool.lm(temperature=1.0)
            calls = [asyncio.create_task(lm.acall("?", rollout_id=number)) for number in range(3)]
            await server.until(lambda: server.active == 3)
            server.heal()
            await asyncio.gather(*calls)


async def test_streams_are_never_shared() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            engine = greedy(scene).engine
            assert engine.single_flight
            calls = [asyncio.create_task(asyncio.to_thread(lambda: list(engine.stream(REQUEST)))) for _ in range(2)]
            await server.until(lambda: server.active == 2)
            server.heal()
            await asyncio.gather(*calls)


async def test_a_server_shares_no_call_with_a_run_and_the_calls_of_a_run_share() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            outside = contextvars.copy_context()
            with batch_run("nightly"):
                calls = [asyncio.create_task(lm.acall("?")) for _ in range(2)]
                await joined(scene, 2)
                calls.append(asyncio.create_task(lm.acall("?"), context=outside))
                await server.until(lambda: server.active == 2)
                server.heal()
                assert await asyncio.gather(*calls) == [["yes"]] * 3
            assert len(server.requests) == 2


async def test_a_pool_that_ends_fails_all_of_them() -> None:
    with FakeServer() as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            lm = greedy(scene)
            calls = [asyncio.create_task(lm.acall("?")) for _ in range(3)]
            await joined(scene, 3)
            await server.until(lambda: server.active == 1)
            await scene.pool.stop()
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(error, WorkerLost | PoolUnavailable) for error in errors), errors


async def test_it_can_be_switched_off() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=None)
        async with running(server, single_flight=False) as scene:
            calls = [asyncio.create_task(greedy(scene).acall("?")) for _ in range(2)]
            await server.until(lambda: server.active == 2)
            server.heal()
            await asyncio.gather(*calls)


def test_what_is_neither_on_nor_off_is_refused() -> None:
    with pytest.raises(ValueError, match="single_flight='yes': give True or False"):
        LMPool([Endpoint("openai/fake")], single_flight="yes")  # type: ignore[arg-type]
