"""Embeddings through a pool: DSPy's interface, over real servers that fail."""

from __future__ import annotations

import asyncio
import copy
import json
import sys
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.utils.exceptions import (
    LMAuthError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
)

from promptside.errors import EvaluationAborted
from promptside.pools import BreakerConfig, Budget, BudgetExceeded, CircuitOpen, Endpoint, LMPool, RetryConfig
from promptside.pools.clients.embeddings import _read
from promptside.pools.context.batch import batch_run
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.pools import KEY, endpoint, running

pytestmark = pytest.mark.usefixtures("empty_cache")


async def test_texts_become_rows_in_order_and_one_text_a_vector() -> None:
    with FakeServer() as server:
        async with running(server) as scene:
            embedder = scene.pool.embedder(caching=False)
            rows = await embedder.acall(["a", "b", "a"])
            assert rows.dtype == np.float32
            assert rows.shape == (3, 8)
            assert np.array_equal(rows[0], rows[2])
            assert not np.array_equal(rows[0], rows[1])
            one = await asyncio.to_thread(embedder, "b")
            assert one.shape == (8,)
            assert np.array_equal(one, rows[1])
            assert (await embedder.acall([])).shape == (0,)
            assert [request.body["input"] for request in server.requests] == [["a", "b", "a"], ["b"]]
            assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
            assert [request.body["model"] for request in server.requests] == ["fake", "fake"]


async def test_batches_are_sent_at_the_same_time_and_put_together_in_order() -> None:
    with FakeServer() as server:
        async with running(server) as scene:
            server.fail(Fault.hang(), times=4)
            embedder = scene.pool.embedder(batch_size=2, caching=False, dimensions=8)
            texts = [f"text {number}" for number in range(7)]
            call = asyncio.create_task(embedder.acall(texts))
            await server.until(lambda: server.active == 4)
            server.release()
            rows = await call
            assert all(request.body["dimensions"] == 8 for request in server.requests)
            assert np.array_equal(rows, await embedder.acall(texts, batch_size=100))
            assert [len(request.body["input"]) for request in server.requests[4:]] == [7]


async def test_dspys_cache_is_shared_by_sync_and_async_calls() -> None:
    with FakeServer() as server:
        async with running(server) as scene:
            embedder = scene.pool.embedder()
            rows = await embedder.acall(["cached embedding"])
            assert np.array_equal(await asyncio.to_thread(embedder, ["cached embedding"]), rows)
            assert len(server.requests) == 1
            await embedder.acall(["cached embedding"], caching=False)
            await embedder.acall(["cached embedding"], dimensions=8)
            assert len(server.requests) == 3


async def test_a_call_is_told_counted_and_charged_as_any_other() -> None:
    with FakeServer() as server:
        server.fail(Fault.status(500))
        async with running(server) as scene:
            await scene.pool.embedder(caching=False).acall(["two words", "one"])
            assert scene.types("lm.*") == [
                "lm.call.started",
                "lm.attempt.started",
                "lm.attempt.failed",
                "lm.attempt.started",
                "lm.attempt.stopped",
                "lm.call.stopped",
            ]
            assert scene.events("lm.call.stopped")[0].data["input_tokens"] == 3
            assert scene.pool.stats()["openai/fake"]["attempts"] == 2
            assert scene.pool.costs()["total"]["input_tokens"] == 3


FAILURES: dict[str, tuple[Fault, type[LMError], int]] = {
    "500": (Fault.status(500), LMServerError, 2),
    "529": (Fault.status(529), LMServerError, 2),
    "429": (Fault.status(429, retry_after=0.01), LMRateLimitError, 2),
    "reset": (Fault.reset(), LMTransportError, 2),
    "malformed": (Fault.malformed(), LMProviderError, 2),
    "401": (Fault.status(401), LMAuthError, 1),
    "400": (Fault.status(400), LMInvalidRequestError, 1),
}


@pytest.mark.parametrize("name", FAILURES)
async def test_a_failure_is_retried_where_that_may_help_and_typed_as_dspy_types_it(name: str) -> None:
    fault, kind, requests = FAILURES[name]
    with FakeServer() as server:
        server.fail(fault, times=None)
        async with running(server, retry=RetryConfig(attempts=2, initial=0, max_rate_limited=2)) as scene:
            with pytest.raises(kind) as caught:
                await scene.pool.embedder(caching=False).acall(["a"])
            assert type(caught.value) is kind
            assert len(server.requests) == requests


async def test_a_server_that_hangs_is_a_timeout() -> None:
    with FakeServer() as server:
        server.fail(Fault.hang(), times=None)
        async with running(endpoint(server, timeout=0.2), retry=RetryConfig(attempts=1)) as scene:
            with pytest.raises(LMTimeoutError):
                await scene.pool.embedder(caching=False).acall(["a"])


async def test_an_open_circuit_fails_fast_and_another_endpoint_answers() -> None:
    with FakeServer() as a, FakeServer() as b:
        a.fail(Fault.status(500), times=None)
        async with running(a, breaker=BreakerConfig(min_calls=1)) as scene:
            embedder = scene.pool.embedder(caching=False)
            with pytest.raises((LMServerError, CircuitOpen)):
                await embedder.acall(["a"])
            before = len(a.requests)
            with pytest.raises(CircuitOpen):
                await asyncio.to_thread(embedder, ["a"])
            assert len(a.requests) == before
        async with running(endpoint(a, name="a"), endpoint(b, name="b")) as scene:
            assert (await scene.pool.embedder(caching=False).acall(["a"])).shape == (1, 8)
            assert len(b.requests) == 1


async def test_the_first_batch_that_fails_cancels_the_others() -> None:
    with FakeServer() as server:
        server.script([Fault.hang(), Fault.status(400)])
        async with running(server, retry=RetryConfig(attempts=1)) as scene:
            with pytest.raises(LMInvalidRequestError):
                await scene.pool.embedder(batch_size=1, caching=False).acall(["a", "b"])
            await server.until(lambda: [request.aborted for request in server.requests] == [True, False])


async def test_a_cancelled_caller_disconnects() -> None:
    with FakeServer() as server:
        server.fail(Fault.hang(), times=None)
        async with running(server) as scene:
            call = asyncio.create_task(scene.pool.embedder(caching=False).acall(["a"]))
            await server.until(lambda: server.active == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.until(lambda: server.requests[0].aborted)
            assert scene.circuit() == "closed"


async def test_a_spent_budget_stops_embeddings_before_the_network() -> None:
    with FakeServer() as server:
        async with running(server, budget=Budget(calls=1)) as scene:
            embedder = scene.pool.embedder(caching=False)
            await embedder.acall(["a"])
            with pytest.raises(BudgetExceeded):
                await embedder.acall(["a"])
            assert len(server.requests) == 1


async def test_in_a_run_a_spent_budget_is_an_abort_and_no_score() -> None:
    with FakeServer() as server:
        async with running(server, budget=Budget(calls=1)) as scene:
            embedder = scene.pool.embedder(caching=False)
            with pytest.raises(EvaluationAborted) as caught, batch_run("nightly"):
                await embedder.acall(["a"])
                await embedder.acall(["a"])
            assert isinstance(caught.value.__cause__, BudgetExceeded)
            assert len(server.requests) == 1


async def test_in_a_run_an_outage_is_waited_out() -> None:
    with FakeServer() as server:
        server.fail(Fault.status(500), times=3)
        breaker = BreakerConfig(min_calls=1, open_for=0.02, jitter=0)
        async with running(server, breaker=breaker, retry=RetryConfig(attempts=1, initial=0)) as scene:
            with batch_run("nightly"):
                assert (await scene.pool.embedder(caching=False).acall(["a"])).shape == (1, 8)
            assert len(server.requests) == 4


async def test_another_model_of_the_provider_is_embedded_at_the_first_endpoint() -> None:
    with FakeServer() as server:
        async with running(server) as scene:
            await scene.pool.embedder("openai/text-embedding-3-small", caching=False).acall("a")
            assert server.requests[0].body["model"] == "text-embedding-3-small"


async def test_a_provider_of_another_dialect_is_reached_through_litellm() -> None:
    """Imports litellm, which takes seconds."""
    with FakeServer() as server:
        async with running(endpoint(server, "hosted_vllm/fake"), retry=RetryConfig(attempts=2, initial=0)) as scene:
            embedder = scene.pool.embedder(caching=False)
            assert (await embedder.acall(["a", "b"])).shape == (2, 8)
            assert "litellm" in sys.modules
            server.fail(Fault.status(500), times=None)
            with pytest.raises(LMServerError):
                await embedder.acall(["a"])
            assert len(server.requests) == 3, "litellm adds no retries of its own"


async def test_dspys_retriever_takes_it_and_programs_may_copy_it() -> None:
    with FakeServer() as server:
        async with running(server) as scene:
            embedder = scene.pool.embedder(caching=False)
            assert isinstance(embedder, dspy.Embedder)
            assert np.array_equal(await copy.deepcopy(embedder).acall("a"), await embedder.acall("a"))
            search = await asyncio.to_thread(dspy.retrievers.Embeddings, ["red", "blue"], embedder, k=1)
            found = await asyncio.to_thread(search, "blue")
            assert found.passages == ["blue"]


async def test_without_a_key_the_error_is_dspys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with FakeServer() as server:
        async with running(endpoint(server, api_key=None)) as scene:
            with pytest.raises(LMConfigurationError, match="api_key"):
                await scene.pool.embedder(caching=False).acall("a")
            assert not server.requests


@pytest.mark.parametrize(
    "data",
    [
        [],
        [{"embedding": [0.1], "index": 0}],
        [{"embedding": [0.1]}, {"embedding": [0.1, 0.2]}],
        [{"embedding": []}] * 2,
        [None, None],
        ["x", "y"],
        [[0.1], [0.2]],
        [5, True],
        [{"embedding": [0.1]}, None],
    ],
)
def test_an_answer_without_one_vector_for_each_text_is_the_providers_fault(data: list[Any]) -> None:
    class Answer:
        def __init__(self) -> None:
            self.data = json.loads(json.dumps(data))

    with pytest.raises(Exception, match="the provider answered 2 texts with"):
        _read(Answer(), 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "cohere/embed"}, "model='cohere/embed': give an endpoint's model, or another one of 'openai'"),
        ({"model": "mock/b"}, "the endpoint mock/b has an engine of its own"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_embeds_nothing_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    pool = LMPool([Endpoint("openai/a", api_key=KEY), Endpoint("mock/b", engine=MockLM())])
    with pytest.raises(ValueError, match=message):
        pool.embedder(**arguments)


async def test_another_model_never_stands_in_and_another_address_of_the_same_one_does() -> None:
    """The default too: in a pool of two models it is the first one's."""
    with FakeServer() as first, FakeServer() as same, FakeServer() as other:
        doors = endpoint(first, "openai/a", name="eu"), endpoint(other, "openai/b")
        for route in ("fallback", "round_robin", "least_busy"):
            async with running(*doors, route=route) as scene:
                first.fail(Fault.status(503), times=None)
                for embedder in (scene.pool.embedder(), scene.pool.embedder("openai/a", batch_size=1)):
                    with pytest.raises(LMServerError):
                        await embedder.acall(["one", "two"])
                    scene.pool.breaker("eu").reset()
                first.heal()
                assert (await scene.pool.embedder(batch_size=1).acall(["one", "two", "three"])).shape == (3, 8)
                dspy.cache.reset_memory_cache()
        assert not other.requests
        first.fail(Fault.status(503), times=None)
        async with running(*doors, endpoint(same, "openai/a", name="us")) as scene:
            assert (await scene.pool.embedder(batch_size=2).acall(["one", "two", "three"])).shape == (3, 8)
        assert len(same.requests) == 2
        assert not other.requests


async def test_vectors_of_two_lengths_are_never_put_into_one_array() -> None:
    """Two addresses of what is named as one model, or a cache that was filled when another one stood there."""
    with FakeServer() as server:
        async with running(server) as scene:
            await scene.pool.embedder(dimensions=8).acall(["old"])
            for key in list(dspy.cache.memory_cache):
                dspy.cache.memory_cache[key] = [[1.0, 2.0]]
            with pytest.raises(LMProviderError, match="vectors of 2 and 8 numbers came back for one list of texts"):
                await scene.pool.embedder(batch_size=1, dimensions=8).acall(["old", "new"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"api_key": "secret"}, r"^embedder: api_key: .*Endpoint\(api_key=\.\.\.\)$"),
        ({"num_retries": 3}, r"^embedder: num_retries: the pool retries"),
        ({"input": ["x"]}, r"^embedder: input=\['x'\]: give the texts to the embedder's call"),
    ],
)
def test_an_option_that_is_no_field_of_a_request_is_refused(options: dict[str, Any], message: str) -> None:
    pool = LMPool("openai/text-embedding-3-small")
    with pytest.raises(ValueError, match=message):
        pool.embedder(**options)
    with pytest.raises(ValueError, match=message):
        pool.embedder()("text", **options)
