"""What a pool tells of calls that are made without a program: each call a tree of its own, with its figures."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dspy
import pytest
from dspy.lm15 import InvalidRequestError, Message, Request, ServerError
from dspy.utils.callback_context import ACTIVE_CALL_ID
from dspy.utils.exceptions import LMError

from promptside import ActorSystem
from promptside.events import Content
from promptside.events.span import TRACE_PARENT, Span, TraceParent
from promptside.pools import BreakerConfig, CircuitOpen, Endpoint, LMPool
from promptside.pools.context.call_tree import TREE, CallTree
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.call_tree import listen, outline, outlines
from tests.support.pools import async_engine, endpoint, running


def mock(*answers: Any) -> Endpoint:
    return Endpoint("mock/mock", engine=MockLM(*answers))


def request(model: str = "mock/mock") -> Request:
    return Request(model=model, messages=(Message.user("hello"),))


async def test_a_bare_call_is_a_tree_of_its_own_below_the_dspy_call_around_it() -> None:
    async with running(mock("hello")) as scene:
        ACTIVE_CALL_ID.set("outer")  # type: ignore[arg-type]
        for call in (scene.lm.acall("async"), asyncio.to_thread(scene.lm, "sync")):
            await call
        assert outlines(scene.told) == ["lm.call mock/mock\n  lm.attempt mock/mock"] * 2
        started = scene.events("lm.call.started")
        assert {event.parent_id for event in started} == {"outer"}
        assert len({event.trace_id for event in started}) == 2


async def test_a_bare_call_joins_the_trace_around_it() -> None:
    async with running(mock("hello")) as scene:
        TRACE_PARENT.set(TraceParent("ab" * 16, "cd" * 8))
        await scene.lm.acall("hello")
        assert {event.trace_id for event in scene.events("lm.*")} == {"ab" * 16}
        assert [event.data.get("remote_parent") for event in scene.events("lm.*")] == ["cd" * 8, None, None, None]


async def test_retries_are_attempts_of_one_call_and_their_figures_add_up() -> None:
    with FakeServer("hello") as server:
        async with running(server) as scene:
            server.fail(Fault.status(500), times=2)
            await scene.lm.acall("one two three")
            failed = "  lm.attempt openai/fake: LMServerError"
            assert outline(scene.told) == f"lm.call openai/fake\n{failed}\n{failed}\n  lm.attempt openai/fake"
            (call,) = scene.events("lm.call.stopped")
            figures = {"attempts": 3, "cache_hit": False, "input_tokens": 3, "output_tokens": 1}
            assert figures.items() <= call.data.items()
            assert "cost" not in call.data, "no price table has this model"


async def test_a_refused_call_has_no_attempts_and_says_when_to_come_again() -> None:
    def down(request: Request) -> str:
        raise ServerError("down")

    async with running(mock(down), breaker=BreakerConfig(min_calls=1, open_for=5.0)) as scene:
        for _ in range(2):
            with pytest.raises((CircuitOpen, dspy.LMServerError)):
                await scene.lm.acall("hello")
        (first, second) = scene.events("lm.call.failed")
        assert (first.data["attempts"], second.data["attempts"]) == (1, 0)
        assert second.data["error"] == "LMCircuitOpen"
        assert 0 < second.data["retry_after"] <= 10


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_is_priced_by_the_table_in_memory_streamed_or_not(streamed: bool) -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, "openai/gpt-4o-mini")) as scene:
            if streamed:
                engine = async_engine(scene.lm)
                assert [event async for event in engine.stream(request("openai/gpt-4o-mini"))]
            else:
                await scene.lm.acall("hello")
            (attempt,), call = scene.events("lm.attempt.stopped"), await scene.until("lm.call.stopped")
            tokens = attempt.data["input_tokens"], attempt.data["output_tokens"]
            assert min(tokens) > 0
            assert attempt.data["cost"] == call.data["cost"] == pytest.approx(tokens[0] * 0.15e-6 + tokens[1] * 0.6e-6)


async def test_without_a_price_table_in_memory_nothing_is_priced_and_nothing_fetched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fetch() -> None:
        raise AssertionError("it looked for the price table")

    with FakeServer("hello") as server:
        async with running(endpoint(server, "openai/gpt-4o-mini")) as scene:
            monkeypatch.setattr("dspy.clients.model_metadata._data", None)
            monkeypatch.setattr("dspy.clients.model_metadata._load", fetch)
            answer = await async_engine(scene.lm).complete(request("openai/gpt-4o-mini"))
            assert answer.usage.output_tokens == 1
            assert "cost" not in scene.events("lm.call.stopped")[0].data
            assert scene.events("lm.call.stopped")[0].data["output_tokens"] == 1


async def test_a_price_table_that_cannot_be_read_leaves_the_answer_unpriced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("not a price")

    with FakeServer("hello") as server:
        async with running(endpoint(server, "openai/gpt-4o-mini")) as scene:
            monkeypatch.setattr("promptside.pools.clients.prices.estimate_cost", broken)
            assert await scene.lm.acall("hello") == ["hello"]
            assert "cost" not in scene.events("lm.attempt.stopped")[0].data
            assert scene.circuit("openai/gpt-4o-mini") == "closed"


async def test_an_answer_without_a_count_is_told_without_figures() -> None:
    class Silent:
        async def complete(self, request: Request) -> Any:
            answer = MockLM().answer(request)
            return type(answer)(
                id=None, model="m", message=answer.message, finish_reason="stop", usage=type(answer.usage)()
            )

    async with running(Endpoint("silent/model", engine=Silent())) as scene:
        await async_engine(scene.lm).complete(request("silent/model"))
        assert not {"input_tokens", "output_tokens", "cost"} & set(scene.events("lm.call.stopped")[0].data)


async def test_a_pool_of_another_system_tells_its_own_bus_the_whole_call() -> None:
    async with running(mock("hello")) as scene, ActorSystem() as other:
        elsewhere = listen(other)
        foreign = Span(other.events, "lm.call", "there", {"model": "m"}, call_id="outer")
        with dspy.context(**{TREE: CallTree(foreign)}):
            await async_engine(scene.lm).complete(request())
        assert outline(scene.told) == "lm.call mock/mock\n  lm.attempt mock/mock"
        assert scene.events("lm.call.started")[0].parent_id == "outer"
        assert not elsewhere


async def test_calls_that_nobody_hears_are_not_told_and_those_heard_from_then_on_are() -> None:
    async with ActorSystem() as system:
        pool = await LMPool([mock("hello")]).start(system)
        lm = pool.lm(cache=False)
        await lm.acall("unheard")
        told = listen(system, "lm.call.stopped")
        await lm.acall("heard")
        (event,) = told
        assert event.data["output_tokens"] == 1
        assert pool.stats()["mock/mock"]["attempts"] == 2


@pytest.mark.parametrize("content", [None, Content()])
async def test_each_piece_of_a_stream_is_told_below_its_attempt(content: Content | None) -> None:
    async with ActorSystem(content=content) as system:
        told = listen(system)
        pool = await LMPool([mock("one two three")]).start(system)
        engine: Any = async_engine(pool.lm())
        pieces = [event.delta.text async for event in engine.stream(request()) if event.type == "delta"]
    attempt = next(event for event in told if event.type == "lm.attempt.started")
    chunks = [event for event in told if event.type == "lm.stream.chunk"]
    assert [chunk.data["index"] for chunk in chunks] == list(range(len(pieces)))
    assert [chunk.data["characters"] for chunk in chunks] == [len(piece) for piece in pieces]
    assert {(chunk.parent_id, chunk.trace_id) for chunk in chunks} == {(attempt.call_id, attempt.trace_id)}
    assert [chunk.data.get("outputs") for chunk in chunks] == (pieces if content else [None] * len(pieces))


async def test_one_setting_of_the_system_lets_events_carry_content_redacted_first() -> None:
    def redact(type: str, content: Any) -> Any:
        return json.loads(json.dumps(content).replace("4711", "****"))

    def answer(request: Request) -> str:
        if "is it" in str(request.messages):
            return "the code is 4711"
        raise InvalidRequestError("no 4711")

    async with ActorSystem(content=Content(redact=redact)) as system:
        told = system.events.subscribe("*.*.*")
        async with told as stream:
            pool = await LMPool([mock(answer)]).start(system)
            lm = pool.lm(cache=False)
            await lm.acall("is it 4711?")
            program = await Program(lambda: dspy.Predict("question -> answer"), lm=lm).start(system)
            with pytest.raises(LMError):
                await program.acall(question="4711")
            await pool.stop()
        events = [event async for event in stream if event.type.startswith("lm.call")]
    assert [event.type for event in events] == [
        "lm.call.started",
        "lm.call.stopped",
        "lm.call.started",
        "lm.call.failed",
    ]
    texts = [json.dumps(dict(event.data)) for event in events]
    assert all("****" in text and "4711" not in text for text in texts)
    assert "is it ****?" in texts[0]
    assert "the code is ****" in texts[1]
    assert "no ****" in texts[3]


def test_content_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"content='all': give a promptside.events.Content"):
        ActorSystem(content="all")  # type: ignore[arg-type]
