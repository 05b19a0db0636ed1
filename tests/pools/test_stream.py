"""Streamed answers through the pool: real pieces, a reader who holds the provider back, an early end, faults."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request, StreamDeltaEvent, StreamStartEvent, TextDelta
from dspy.utils.exceptions import (
    LMInvalidRequestError,
    LMProviderError,
    LMServerError,
    LMStreamAssemblyError,
    LMTransportError,
)

from promptside.errors import LMPoolError
from promptside.pools import BreakerConfig, CircuitOpen, Endpoint, RetryConfig, WorkerLost
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.pools import Scene, async_engine, endpoint, running

LONG = "word " * 5000
"""More than the queues and buffers between the provider and a reader who does not read."""


def request(scene: Scene) -> Request:
    return Request(model=scene.lm.model, messages=(Message.user("hello"),))


def stream(scene: Scene) -> AsyncGenerator[Any, None]:
    events: Any = async_engine(scene.lm).stream(request(scene))
    return events


def stream_sync(scene: Scene) -> Iterator[Any]:
    return scene.lm.engine.stream(request(scene))


def text(events: list[Any]) -> list[str]:
    return [event.delta.text for event in events if event.type == "delta"]


async def read_into(read: list[Any], events: AsyncGenerator[Any, None]) -> None:
    async for event in events:
        read += [event]


async def test_the_pieces_arrive_one_by_one_and_then_what_was_counted() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            events = [event async for event in stream(scene)]
            assert [event.type for event in events] == ["start", "delta", "delta", "delta", "end"]
            assert text(events) == ["one ", "two ", "three"]
            assert scene.pool.stats()["openai/fake"]["output_tokens"] == 3
            await scene.until("lm.call.stopped")
            assert scene.types("lm.*") == [
                "lm.call.started",
                "lm.attempt.started",
                *["lm.stream.chunk"] * 3,
                "lm.attempt.stopped",
                "lm.call.stopped",
            ]
            assert scene.events("lm.attempt.stopped")[0].data["output_tokens"] == 3


async def test_a_thread_streams_as_the_loop_does() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            events = await asyncio.to_thread(lambda: list(stream_sync(scene)))
            assert text(events) == ["one ", "two ", "three"]


async def test_the_first_piece_is_read_before_the_last_one_is_sent() -> None:
    with FakeServer(LONG) as server:
        async with running(server) as scene, aclosing(stream(scene)) as events:
            assert (await anext(events)).type == "start"
            assert (await anext(events)).delta.text == "word "
            assert server.active == 1


async def test_streamify_yields_real_pieces_and_the_prediction() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            with dspy.context(lm=scene.lm):
                listener = dspy.streaming.StreamListener(signature_field_name="answer")
                program = dspy.streamify(dspy.Predict("question -> answer"), stream_listeners=[listener])
                pieces = [piece async for piece in program(question="count")]
            assert isinstance(pieces[-1], dspy.Prediction)
            assert pieces[-1].answer == "one two three"
            chunks = [piece.chunk for piece in pieces[:-1]]
            assert "".join(chunks) == "one two three"
            assert len(chunks) > 1, "a stream of a single piece would be a cache hit to DSPy"
            assert server.requests[0].body["stream"] is True


async def test_streamify_of_a_synchronous_program_streams_from_its_thread() -> None:
    class Sync(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            return self.predict(question=question)

    with FakeServer("one two three") as server:
        async with running(server) as scene:
            with dspy.context(lm=scene.lm):
                program = dspy.streamify(Sync())
                pieces = [piece async for piece in program(question="count")]
            assert pieces[-1].answer == "one two three"
            assert len(pieces) > 3


# -- readers who are slow, or leave ------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_the_provider_back() -> None:
    with FakeServer({"hello": LONG, "default": "short"}) as server:
        async with running(server, workers=1) as scene, aclosing(stream(scene)) as events:
            await anext(events)
            for number in range(20):
                assert await scene.lm.acall(f"call {number}") == ["short"]
            await until(lambda: scene.workers()[0].info().current == ("stream",))  # it waits for room
            first = scene.events("lm.attempt.started")[0].call_id
            assert first not in {event.call_id for event in scene.events("lm.attempt.stopped")}
            assert len(text([event async for event in events])) == 5000
            await scene.until("lm.attempt.stopped", output_tokens=5000)


async def test_leaving_early_disconnects_from_the_provider_and_counts_nothing() -> None:
    with FakeServer(LONG) as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.slow_tokens(0.01))
            async with aclosing(stream(scene)) as events:
                async for event in events:
                    if event.type == "delta":
                        break
            await server.until(lambda: server.requests[0].aborted)
            assert (await scene.until("lm.attempt.failed")).data["error"] == "CancelledError"
            assert (await scene.until("lm.call.failed")).data["error"] == "CancelledError"
            assert scene.circuit() == "closed"
            assert scene.pool.stats()["openai/fake"]["failures"] == 0


async def test_a_thread_that_leaves_early_disconnects_too() -> None:
    def read(scene: Scene) -> None:
        with closing(stream_sync(scene)) as events:  # type: ignore[type-var]
            next(events)

    with FakeServer(LONG) as server:
        async with running(server) as scene:
            server.fail(Fault.slow_tokens(0.01))
            await asyncio.to_thread(read, scene)
            await server.until(lambda: server.requests[0].aborted)


async def test_a_stream_that_is_dropped_unread_disconnects_when_it_is_collected() -> None:
    with FakeServer(LONG) as server:
        async with running(server) as scene:
            server.fail(Fault.slow_tokens(0.01))
            events = stream_sync(scene)
            await asyncio.to_thread(next, events)
            del events
            gc.collect()
            await server.until(lambda: server.requests[0].aborted)


@pytest.mark.parametrize("fault", [Fault.hang(), Fault.slow_tokens(0.01)], ids=lambda fault: fault.kind)
async def test_cancelling_the_reader_disconnects_whether_or_not_a_piece_has_come(fault: Fault) -> None:
    begun = asyncio.Event()

    async def read(scene: Scene) -> None:
        async with aclosing(stream(scene)) as events:
            async for _ in events:
                begun.set()

    with FakeServer(LONG) as server:
        async with running(server) as scene:
            server.fail(fault)
            reader = asyncio.create_task(read(scene))
            await server.until(lambda: server.active == 1)
            if fault.kind == "slow_tokens":
                await begun.wait()
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await server.until(lambda: server.requests[0].aborted)
            assert (await scene.until("lm.call.failed")).data["error"] == "CancelledError"


async def test_an_unread_stream_holds_its_connection_and_gives_it_back_at_its_end() -> None:
    with FakeServer(LONG) as server:
        async with running(endpoint(server, max_connections=1), workers=1) as scene:
            async with aclosing(stream(scene)) as events:
                await anext(events)
                waiting = asyncio.create_task(scene.lm.copy(model="openai/other").acall("next"))
                await scene.until("lm.call.started", model="openai/other")
                assert len(server.requests) == 1
            assert await waiting == [LONG]
            assert len(server.requests) == 2


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault.status(500), Fault.reset(), Fault.cut_stream(0), Fault.malformed()],
    ids=lambda fault: fault.kind,
)
async def test_a_failure_before_the_first_piece_is_retried(fault: Fault) -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            server.fail(fault, times=2)
            events = [event async for event in stream(scene)]
            assert text(events) == ["one ", "two ", "three"]
            assert len(server.requests) == 3
            assert len(scene.events("lm.attempt.failed")) == 2
            assert scene.types("lm.call.*")[0] == "lm.call.started"


async def test_a_failure_after_the_first_piece_is_the_readers_and_not_repeated() -> None:
    with FakeServer("one two three") as server:
        async with running(server, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.cut_stream(2))
            read: list[Any] = []
            with pytest.raises(LMTransportError):
                await read_into(read, stream(scene))
            assert text(read) == ["one ", "two "]
            assert len(server.requests) == 1
            assert scene.circuit() == "open"
            assert scene.types("lm.*")[-2:] == ["lm.attempt.failed", "lm.call.failed"]
            assert scene.events("lm.call.failed")[0].data["error"] == "LMTransportError"


async def test_a_failure_right_after_the_first_piece_is_told_as_the_end_of_the_call() -> None:
    class Hasty:
        """Fails without letting anything else run in between."""

        async def complete(self, request: Request) -> Any:
            return MockLM().answer(request)

        async def stream(self, request: Request) -> Any:
            yield StreamStartEvent(id=None, model=request.model)
            yield StreamDeltaEvent(TextDelta("one "))
            raise dspy.LMServerError("down")

    async with running(Endpoint("hasty/model", engine=Hasty())) as scene:
        read: list[Any] = []
        with pytest.raises(LMServerError):
            await read_into(read, stream(scene))
        assert text(read) == ["one "]
        assert (await scene.until("lm.call.failed")).data["error"] == "LMServerError"
        assert len(scene.events("lm.call.*")) == 2


async def test_a_refusal_of_a_stream_is_raised_at_once() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            server.fail(Fault.status(400))
            with pytest.raises(LMInvalidRequestError):
                await anext(stream(scene))
            assert len(server.requests) == 1
            assert scene.types("lm.call.*") == ["lm.call.started", "lm.call.failed"]


async def test_a_stream_falls_back_and_an_open_circuit_refuses_it() -> None:
    with FakeServer("first") as first, FakeServer("second") as second:
        doors = endpoint(first, "openai/a"), endpoint(second, "openai/b")
        breaker = BreakerConfig(min_calls=1)
        async with running(*doors, retry=RetryConfig(attempts=1), breaker=breaker) as scene:
            first.fail(Fault.status(500))
            assert text([event async for event in stream(scene)]) == ["second"]
            second.fail(Fault.status(500), times=None)
        async with running(*doors, retry=RetryConfig(attempts=1), breaker=breaker) as scene:
            first.fail(Fault.status(500))
            with pytest.raises(LMServerError):
                await anext(stream(scene))
            with pytest.raises(CircuitOpen):
                await anext(stream(scene))
            with pytest.raises(CircuitOpen):
                await asyncio.to_thread(lambda: list(stream_sync(scene)))


async def test_a_stream_that_hangs_before_its_first_piece_ends_at_the_timeout() -> None:
    with FakeServer("hello") as server:
        async with running(server, timeout=1.0, breaker=BreakerConfig(min_calls=1)) as scene:
            server.fail(Fault.hang())
            with pytest.raises(LMProviderError, match="no answer within"):
                await anext(stream(scene))
            await server.until(lambda: server.requests[0].aborted)
            await scene.until("breaker.opened")
            assert scene.types("lm.call.*") == ["lm.call.started", "lm.call.failed"]


async def test_a_stream_inside_a_killed_worker_is_lost_and_says_so() -> None:
    with FakeServer(LONG) as server:
        async with running(server) as scene:
            server.fail(Fault.slow_tokens(0.005))
            events = stream(scene)
            await anext(events)
            for worker in scene.workers():
                worker.kill()
            with pytest.raises(WorkerLost):
                await read_into([], events)
            await server.until(lambda: server.requests[0].aborted)
            assert len(server.requests) == 1
            assert scene.circuit() == "closed"


async def test_a_stream_under_way_when_the_system_ends_is_lost_and_says_so() -> None:
    with FakeServer(LONG) as server:
        async with running(server) as scene:
            server.fail(Fault.slow_tokens(0.005))
            events = stream(scene)
            await anext(events)
        with pytest.raises(LMPoolError):
            await read_into([], events)


async def test_an_engine_that_cannot_stream_says_so() -> None:
    class Mute:
        async def complete(self, request: Request) -> Any:
            return MockLM().answer(request)

    async with running(Endpoint("mute/model", engine=Mute())) as scene:
        with pytest.raises(dspy.utils.exceptions.LMUnexpectedError, match="stream"):
            await anext(stream(scene))


async def test_a_stream_without_an_end_is_passed_on_as_it_is_and_dspy_says_so() -> None:
    class Short:
        async def complete(self, request: Request) -> Any:
            return MockLM().answer(request)

        async def stream(self, request: Request) -> Any:
            yield StreamStartEvent(id=None, model=request.model)

    async with running(Endpoint("short/model", engine=Short())) as scene:
        assert [event.type async for event in stream(scene)] == ["start"]
        assert [event.type for event in await asyncio.to_thread(lambda: list(stream_sync(scene)))] == ["start"]
        with dspy.context(lm=scene.lm):
            program = dspy.streamify(dspy.Predict("question -> answer"))
            with pytest.raises(LMStreamAssemblyError, match="without a completion event"):
                await anext(program(question="?"))
