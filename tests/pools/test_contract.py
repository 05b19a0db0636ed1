"""What holds of any model behind a pool, shown for the fake server and for the embedded model alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from dspy.lm15 import Config, Message, Request
from dspy.utils.exceptions import LMInvalidRequestError

from promptside.pools import EmbeddedServer, Endpoint
from promptside.testing import FakeServer
from tests.pools.test_local import embedded, needs_model
from tests.support.pools import Scene, async_engine, endpoint, running

PROMPT = "Tell a long story about a lighthouse."


@dataclass(frozen=True)
class Backend:
    """A model to hold to the contract.

    Attributes:
        endpoint: Where it is.
        set_slow: Whether answers take so long that a call is surely under way when it is cancelled.
        refused: A prompt that it does not take.
    """

    endpoint: Endpoint
    set_slow: Callable[[bool], None]
    refused: str


@asynccontextmanager
async def fake() -> AsyncIterator[Backend]:
    with FakeServer({"story": "Once upon a time there was a light " * 20}) as server:

        def set_slow(slow: bool) -> None:
            server.latency = 60.0 if slow else 0.0

        yield Backend(endpoint(server), set_slow, "no such prompt")


@asynccontextmanager
async def local() -> AsyncIterator[Backend]:
    async with EmbeddedServer(context=2048, max_concurrency=2, max_tokens=300) as server:
        door = Endpoint(f"openai/{server.model}", api_base=server.url, api_key="none")
        yield Backend(door, lambda slow: None, "far " * 4000)  # 300 tokens take it a second


BACKENDS = [pytest.param(fake, id="fake"), pytest.param(local, id="embedded", marks=[embedded, needs_model])]
against_each = pytest.mark.parametrize("backend", BACKENDS)


def request(scene: Scene, prompt: str = PROMPT, **config: Any) -> Request:
    config = {"max_tokens": 30, "temperature": 0.0, **config}
    return Request(model=scene.lm.model, messages=(Message.user(prompt),), config=Config(**config))


async def complete(scene: Scene, prompt: str = PROMPT, **config: Any) -> Any:
    return await async_engine(scene.lm).complete(request(scene, prompt, **config))


@against_each
async def test_it_answers_and_counts(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        answer = await complete(scene)
        assert answer.text
        assert answer.usage.input_tokens > 0
        assert 0 < answer.usage.output_tokens <= 30
        figures = scene.pool.stats()[model.endpoint.name]
        assert figures["output_tokens"] == answer.usage.output_tokens
        assert (figures["attempts"], figures["failures"]) == (1, 0)


@against_each
async def test_it_streams_an_answer_in_pieces_that_ends_with_the_reason_and_the_count(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        events = [event async for event in async_engine(scene.lm).stream(request(scene, max_tokens=10))]
        assert [events[0].type, events[-1].type] == ["start", "end"]
        assert sum(event.type == "delta" and event.delta.text != "" for event in events) > 5
        assert events[-1].finish_reason == "length"
        assert events[-1].usage.output_tokens == 10


@against_each
async def test_it_gives_as_many_answers_as_are_asked_for(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        answers = await scene.lm.acall(PROMPT, n=3, temperature=1.0, max_tokens=20)
        assert len(answers) == 3
        assert all(answers)


@against_each
async def test_an_answer_is_cut_at_the_limit_of_tokens(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        answer = await complete(scene, max_tokens=4)
        assert (answer.finish_reason, answer.usage.output_tokens) == ("length", 4)


@against_each
async def test_an_answer_ends_before_a_stop_text(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        word = (await complete(scene)).text.split()[3]
        answer = await complete(scene, stop=(word,))
        assert word not in answer.text
        assert answer.text
        assert answer.finish_reason == "stop"


@against_each
async def test_a_cancelled_call_counts_for_nothing_and_the_next_one_is_answered(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        model.set_slow(True)
        call = asyncio.create_task(complete(scene, max_tokens=300))
        await scene.until("lm.attempt.started")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        ended = await scene.until("lm.attempt.failed")
        assert ended.data["error"] == "CancelledError"
        model.set_slow(False)
        assert (await complete(scene)).text
        assert scene.pool.stats()[model.endpoint.name]["failures"] == 0
        assert scene.circuit(model.endpoint.name) == "closed"


@against_each
async def test_a_stream_that_is_left_early_is_ended_and_the_next_one_is_whole(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        async with aclosing(async_engine(scene.lm).stream(request(scene, max_tokens=300))) as events:
            async for event in events:
                if event.type == "delta":
                    break
        await scene.until("lm.attempt.failed", error="CancelledError")
        events = [event async for event in async_engine(scene.lm).stream(request(scene))]
        assert events[-1].type == "end"
        assert scene.circuit(model.endpoint.name) == "closed"


@against_each
async def test_calls_at_the_same_time_are_all_answered_from_the_loop_and_from_threads(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        prompts = [f"{PROMPT} It begins at {hour} o'clock." for hour in range(1, 5)]
        calls = [complete(scene, prompt, max_tokens=8) for prompt in prompts]
        threads = [asyncio.to_thread(scene.lm, prompt, max_tokens=8) for prompt in prompts]
        answers = await asyncio.gather(*calls, *threads)
        assert all(answers)
        assert len(scene.events("lm.attempt.stopped")) == 8


@against_each
async def test_a_request_that_is_refused_is_the_callers_error_and_made_once(backend: Any) -> None:
    async with backend() as model, running(model.endpoint) as scene:
        with pytest.raises(LMInvalidRequestError):
            await complete(scene, model.refused)
        assert scene.types("lm.attempt.*") == ["lm.attempt.started", "lm.attempt.failed"]
        assert scene.circuit(model.endpoint.name) == "closed"
        assert (await complete(scene)).text
