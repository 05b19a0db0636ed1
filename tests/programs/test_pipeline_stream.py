"""`Pipeline.stream` and `stream_call`: pieces of the last stage's fields, and every way in which a stream can end."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing, closing
from typing import Any

import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.lm15 import StreamDeltaEvent, StreamEndEvent, StreamStartEvent, TextDelta
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamResponse

from promptside import ActorStopped, ActorSystem
from promptside.pools import Endpoint, LMPool
from promptside.programs import ChatAdapter, Piece, Program
from promptside.programs.hosting.streaming import stream_call
from promptside.programs.pipeline.groups import branch, parallel
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import stage
from promptside.testing import FakeServer, Fault, MockLM
from tests.programs.test_pipeline import names, search
from tests.support.actors import Boom, outcome, started, until
from tests.support.call_tree import listen, outline
from tests.support.modules import Answer, SyncAnswer, lm

QA = "question -> answer"
TEXT = "Owls hunt at night and sleep by day"


async def read(stream: AsyncGenerator[Any, None]) -> tuple[dict[tuple[str, str], str], dspy.Prediction]:
    """The text of each field, by predictor and field; and the prediction, which must be last."""
    pieces: dict[tuple[str, str], str] = defaultdict(str)
    items = [item async for item in stream]
    assert isinstance(items[-1].prediction, dspy.Prediction)
    for item in items[:-1]:
        assert isinstance(item.value, StreamResponse)
        assert item.prediction is None
        pieces[item.predictor, item.field] += item.text
    return dict(pieces), items[-1].prediction


class Faucet(MockLM):
    """A model that writes a word each time it is allowed to, for ever or until its words are used up."""

    def __init__(
        self, words: int | None = None, error: Exception | None = None, marker: str = "\n[[ ## completed ## ]]"
    ) -> None:
        super().__init__("unused")
        self.written = 0
        self.closed = threading.Event()
        self.async_engine.stream = self._write_later  # type: ignore[method-assign]
        self._words = words
        self._error = error
        self._marker = marker

    async def _write_later(self, request: Any) -> Any:
        with closing(self.stream(request)) as events:
            for event in events:
                yield event

    def stream(self, request: Any) -> Any:
        try:
            yield StreamStartEvent(id="answer-1", model="mock")
            for head in ("[[ ##", " answer", " ## ]]", "\n"):
                yield StreamDeltaEvent(TextDelta(head))
            while self._words is None or self.written < self._words:
                self.written += 1
                yield StreamDeltaEvent(TextDelta(f"word{self.written} "))
            if self._error is not None:
                raise self._error
            if self._marker:
                yield StreamDeltaEvent(TextDelta(self._marker))
            yield StreamEndEvent(finish_reason="stop")
        finally:
            self.closed.set()


@pytest.mark.parametrize("source", [Answer, SyncAnswer], ids=["async", "thread"])
async def test_the_last_stage_streams_its_fields_and_then_the_prediction(source: Any) -> None:
    async with ActorSystem() as system:
        pipeline = Pipeline(
            [("first", "question -> hint"), stage(source, inputs={"question": "hint"}, outputs="answer")], lm=lm(TEXT)
        )
        await pipeline.start(system)
        pieces, prediction = await read(pipeline.stream(question="What do owls do?", lm=lm(TEXT)))
        assert pieces == {("predict", "answer"): TEXT}
        assert (prediction.hint, prediction.answer) == (TEXT, TEXT)
        assert names(system).count("pipeline/calls") == 1
        assert not any("streamedcall" in name for name in names(system))


@pytest.mark.parametrize(
    "adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()], ids=lambda a: str(type(a))
)
async def test_the_pieces_are_those_of_streamify(adapter: Any) -> None:
    module = dspy.ChainOfThought(QA)
    listeners = [dspy.streaming.StreamListener(field) for field in ("reasoning", "answer")]
    with dspy.context(adapter=adapter, lm=lm(TEXT)):
        streamed = dspy.streamify(module, stream_listeners=listeners, is_async_program=True)
        expected = [item async for item in streamed(question="q")]
        async with ActorSystem() as system:
            pipeline = await Pipeline([module]).start(system)
            items = [item async for item in pipeline.stream(question="q")]
    assert [item.value for item in items[:-1] if item.text] == [item for item in expected[:-1] if item.chunk]
    assert len(items) > 4


async def test_only_fields_that_the_stage_gives_are_streamed() -> None:
    async with ActorSystem() as system:
        cot = dspy.ChainOfThought(QA)
        whole = await Pipeline([cot], lm=lm({"default": {"reasoning": "so so", "answer": "yes yes"}})).start(system)
        assert (await read(whole.stream(question="q")))[0] == {
            ("predict", "reasoning"): "so so",
            ("predict", "answer"): "yes yes",
        }
        part = Pipeline([stage(dspy.ChainOfThought(QA), outputs="answer")], name="part", lm=lm("yes yes"))
        await part.start(system)
        assert (await read(part.stream(question="q")))[0] == {("predict", "answer"): "yes yes"}


async def test_a_group_or_a_pipeline_at_the_end_streams_what_is_last_in_it() -> None:
    async with ActorSystem() as system:
        both = parallel(("left", "question -> a"), stage("question -> b", outputs={"b": "c"}))
        inner = Pipeline(
            [("draft", "question -> draft"), ("end", "draft -> d")], name="inner", outputs="d", lm=lm("d d")
        )
        chosen = branch("question", {"one": inner}, otherwise="question -> d")
        groups = await Pipeline([both], lm=lm("x y")).start(system, name="groups")
        branches = await Pipeline([chosen], lm=lm("e e")).start(system, name="branches")
        assert (await read(groups.stream(question="q")))[0] == {("self", "a"): "x y", ("self", "b"): "x y"}
        assert (await read(branches.stream(question="one")))[0] == {("self", "d"): "d d"}
        assert (await read(branches.stream(question="two")))[0] == {("self", "d"): "e e"}


async def test_concurrent_streams_each_hear_their_own() -> None:
    def echo(request: Any) -> str:
        number = request.messages[-1].parts[0].text.split("<<")[1].split(">>")[0]
        return f"answer number {number} of all"

    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(Answer(), outputs="answer")]).start(system)
        model = MockLM(echo).lm()
        streams = [read(pipeline.stream(question=f"<<{number}>>", lm=model)) for number in range(30)]
        for number, (pieces, _) in enumerate(await asyncio.gather(*streams)):
            assert pieces == {("predict", "answer"): f"answer number {number} of all"}


async def test_a_predictor_that_is_called_twice_is_streamed_twice() -> None:
    class Twice(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.write = dspy.Predict(QA)

        async def aforward(self, question: str) -> dspy.Prediction:
            await self.write.acall(question=question)
            return await self.write.acall(question=question)

    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(Twice, outputs="answer")], lm=lm("a b c")).start(system)
        pieces, _ = await read(pipeline.stream(question="q"))
        assert pieces == {("write", "answer"): "a b ca b c"}


async def test_pieces_come_over_http_while_the_answer_is_written() -> None:
    with FakeServer(TEXT) as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            stages = [stage(search, outputs="context"), "context, question -> answer"]
            pipeline = await Pipeline(stages, lm=pool.lm(cache=False)).start(system)
            items = [item async for item in pipeline.stream(question="q")]
            assert len(items) > 4
            assert "".join(item.text for item in items) == TEXT == items[-1].prediction.answer


@pytest.mark.parametrize("source", [Answer, SyncAnswer], ids=["async", "thread"])
async def test_leaving_early_disconnects_from_the_provider(source: Any) -> None:
    with FakeServer(TEXT) as server:
        server.fail(Fault.slow_tokens(0.05))
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            pipeline = await Pipeline([stage(source, outputs="answer")]).start(system)
            async with aclosing(pipeline.stream(question="q", lm=pool.lm(cache=False))) as stream:
                await anext(stream)
            await server.until(lambda: server.requests[0].aborted)


async def test_a_connection_that_is_cut_is_an_error_after_the_pieces_before_it() -> None:
    with FakeServer(TEXT) as server:
        server.fail(Fault.cut_stream(tokens=12), times=10)
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            pipeline = await Pipeline([QA], lm=pool.lm(cache=False)).start(system)
            pieces = ""
            with pytest.raises(dspy.LMError):
                async for item in pipeline.stream(question="q"):
                    pieces += item.text
            assert pieces
            assert TEXT.startswith(pieces)
            assert len(server.requests) == 1


async def test_a_slow_reader_holds_the_model_back() -> None:
    async with ActorSystem() as system:
        faucet = Faucet()
        pipeline = await Pipeline([QA], lm=faucet.lm()).start(system)
        async with aclosing(pipeline.stream(question="q")) as stream:
            await anext(stream)
            held = 0
            while held < faucet.written < 100:
                held = faucet.written
                await asyncio.sleep(0.05)
            assert held < 100
            await anext(stream)
        assert faucet.closed.is_set()


@pytest.mark.parametrize("source", [Answer, SyncAnswer], ids=["async", "thread"])
async def test_leaving_early_cancels_the_call_and_nothing_else(source: Any) -> None:
    async with ActorSystem() as system:
        faucet = Faucet()
        pipeline = await Pipeline([stage(source, outputs="answer")], lm=faucet.lm()).start(system)
        task = asyncio.current_task()
        assert task is not None
        async with aclosing(pipeline.stream(question="q")) as stream:
            async for _ in stream:
                break
        await until(faucet.closed.is_set)  # a thread takes a moment to unwind
        assert not task.cancelling()
        await asyncio.sleep(0)
        assert not any("streamedcall" in name for name in names(system))
        assert system.statistics().crashed == 0
        assert (await pipeline(question="q", lm=lm("still here"))).answer == "still here"


async def test_a_stream_that_is_dropped_is_closed() -> None:
    async with ActorSystem() as system:
        faucet = Faucet()
        pipeline = await Pipeline([QA], lm=faucet.lm()).start(system)
        async for _ in pipeline.stream(question="q"):
            break
        await until(faucet.closed.is_set)
        await until(lambda: not any("streamedcall" in name for name in names(system)))


async def test_a_reader_that_is_cancelled_cancels_the_call() -> None:
    async with ActorSystem() as system:
        faucet = Faucet(words=3)
        waits = asyncio.Event()

        async def wait(answer: str) -> str:
            waits.set()
            await asyncio.Event().wait()
            return answer

        both = parallel(QA, stage(wait, inputs={"answer": "question"}, outputs="b"))
        pipeline = await Pipeline([both], lm=faucet.lm()).start(system)
        reader = await started(read(pipeline.stream(question="q")))
        await waits.wait()
        reader.cancel()
        assert isinstance(await outcome(reader), asyncio.CancelledError)
        assert not any("streamedcall" in name for name in names(system))


async def test_what_the_model_raises_comes_after_the_pieces_before_it() -> None:
    async with ActorSystem() as system:
        faucet = Faucet(words=3, error=Boom("cut"))
        pipeline = await Pipeline([QA], lm=faucet.lm()).start(system)
        pieces = ""
        with pytest.raises(dspy.LMError, match="cut"):
            async for item in pipeline.stream(question="q"):
                pieces += item.text
        assert pieces == "word1 word2 word3"


async def test_an_answer_that_ends_without_its_last_marker_is_whole() -> None:
    async with ActorSystem() as system:
        faucet = Faucet(words=3, marker="")
        pipeline = await Pipeline([QA], lm=faucet.lm()).start(system)
        pieces, prediction = await read(pipeline.stream(question="q"))
        assert pieces["self", "answer"].rstrip() == prediction.answer == "word1 word2 word3"


async def test_what_a_model_of_the_users_own_sends_passes_through() -> None:
    async def write(question: str) -> str:
        await dspy.settings.send_stream.send({"tokens": 3})
        return "x"

    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(write, outputs="answer")]).start(system)
        first, last = [item async for item in pipeline.stream(question="q")]
        assert first == Piece(value={"tokens": 3})
        assert last.prediction == dspy.Prediction(answer="x")


async def test_a_call_that_cancels_itself_ends_its_stream() -> None:
    async def give_up(question: str) -> str:
        raise asyncio.CancelledError

    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(give_up, outputs="answer")]).start(system)
        with pytest.raises(ActorStopped):
            await read(pipeline.stream(question="q"))
        await until(lambda: not any("streamedcall" in name for name in names(system)))


class OwnAdapter(dspy.ChatAdapter):  # type: ignore[misc]
    """A subclass whose answers look as before."""


@pytest.mark.parametrize(
    "adapter",
    [OwnAdapter(), BAMLAdapter(), ChatAdapter(), dspy.TwoStepAdapter(lm(TEXT))],
    ids=lambda adapter: type(adapter).__name__,
)
async def test_an_adapter_of_any_class_has_its_answer_and_pieces_where_they_can_be_told(adapter: Any) -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA], lm=lm(TEXT)).start(system)
        with dspy.context(adapter=adapter):
            pieces, prediction = await read(pipeline.stream(question="q"))
    assert prediction.answer == TEXT
    told = "".join(pieces.values()).strip('"')  # of JSON, the listener leaves the quotes
    assert told == ("" if isinstance(adapter, dspy.TwoStepAdapter) else TEXT)


async def test_a_module_that_makes_an_adapter_of_its_own_for_the_second_try_is_streamed() -> None:
    def answer(request: Any) -> dict[str, Any]:
        if "discussion" in str(request):
            return {"discussion": "hm", "advice": {"self": "say more"}}
        return {"answer": "abc" if "hint_" not in str(request) else "abcdefgh"}

    def refined() -> dspy.Refine:
        return dspy.Refine(dspy.Predict(QA), N=2, reward_fn=lambda _, told: float(len(told.answer) > 5), threshold=1.0)

    async with ActorSystem() as system:
        program = await Program(refined).start(system)
        pieces, prediction = await read(program.stream(question="q", lm=MockLM(answer).lm(cache=False)))
    assert prediction.answer == "abcdefgh"
    assert "abcdefgh" in "".join(pieces.values())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lm": 5}, r"^Pipeline: lm=5: give a dspy\.LM"),
        ({"status": 5}, r"^Pipeline\.stream: status=5: give a StatusMessageProvider"),
    ],
)
async def test_an_argument_of_a_stream_that_is_not_valid_is_named_before_it_begins(
    wrong: dict[str, Any], message: str
) -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA]).start(system)
        with pytest.raises(ValueError, match=message):
            pipeline.stream(question="q", **wrong)


async def test_stopping_the_pipeline_ends_its_streams() -> None:
    async with ActorSystem() as system:
        faucet = Faucet()
        pipeline = await Pipeline([QA], lm=faucet.lm()).start(system)
        stream = pipeline.stream(question="q")
        await anext(stream)
        await pipeline.stop()
        with pytest.raises(ActorStopped):
            async for _ in stream:
                pass
        assert faucet.closed.is_set()
        assert names(system) == []


async def test_a_pipeline_whose_system_has_closed_is_as_one_that_was_stopped() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA]).start(system)
    with pytest.raises(ActorStopped):
        await anext(pipeline.stream(question="q"))


async def test_a_stage_that_crashes_in_mid_stream_ends_the_stream_with_what_happened() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([("qa", QA)], lm=Faucet().lm()).start(system)
        with pytest.raises(ActorStopped) as caught:
            async for _ in pipeline.stream(question="q"):
                system.whereis("pipeline.qa").kill()
        assert caught.value.started
        assert (await read(pipeline.stream(question="q", lm=lm("well again"))))[1].answer == "well again"


async def test_an_answer_from_a_cache_has_no_pieces() -> None:
    async with ActorSystem() as system:
        model = MockLM("from the cache").lm(cache=True)
        pipeline = await Pipeline([QA], lm=model).start(system)
        question = f"cached in {threading.get_ident()} {id(model)}"
        await pipeline(question=question)
        pieces, prediction = await read(pipeline.stream(question=question))
        assert pieces == {}
        assert prediction.answer == "from the cache"


async def test_status_messages_come_between_the_pieces_even_from_a_blocked_loop() -> None:
    class Status(StatusMessageProvider):  # type: ignore[misc]
        def lm_start_status_message(self, instance: Any, inputs: dict[str, Any]) -> str:
            return "thinking"

        def lm_end_status_message(self, outputs: Any) -> str:
            return "done"

    for source in (Answer, SyncAnswer):
        async with ActorSystem() as system:
            pipeline = await Pipeline([stage(source, outputs="answer")]).start(system)
            stream = pipeline.stream(question="q", lm=lm(TEXT), status=Status())
            items = [item async for item in stream]
            told = [item.status for item in items if item.status is not None]
            assert told == ["thinking", "done"]
            assert items[0] == Piece(status="thinking", value=StatusMessage("thinking"))
            assert "".join(item.text for item in items) == TEXT


async def test_a_streamed_call_is_told_as_every_call() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA], lm=lm(TEXT)).start(system)
        told = listen(system)
        await read(pipeline.stream(question="q"))
        assert outline(told).splitlines() == ["pipeline pipeline", "  module Predict", "    lm.call mock/mock"]


async def test_any_program_can_be_streamed() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm(TEXT)).start(system)
        parent = system.whereis("Answer")
        pieces, prediction = await read(stream_call(parent, lambda: program.acall(question="q")))
        assert pieces == {("predict", "answer"): TEXT}
        assert prediction.answer == TEXT
        assert (await read(stream_call(parent, lambda: program.acall(question="q"), fields={"hint"})))[0] == {}
