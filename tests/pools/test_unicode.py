"""Texts with halves of surrogate pairs: repaired in what is sent and in what is answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, Request, StreamDeltaEvent, TextDelta
from pydantic import BaseModel, PrivateAttr

from promptside import ActorSystem
from promptside.events import Content
from promptside.events.sinks import JSONLSink, SQLiteSink
from promptside.pools import LMPool, labels
from promptside.pools.clients.unicode import PairJoiner, repaired
from promptside.programs import Program, tool
from promptside.testing import FakeServer
from tests.support.pools import async_engine, endpoint, running

HALF = "a \ud83d b"
WHOLE = "a \ufffd b"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (HALF, WHOLE),
        ("caf\udce9", "caf\ufffd"),
        ("\ude00\ud83d", "\ufffd\ufffd"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_two_halves_are_one_character_and_any_other_is_the_replacement_character(text: str, wanted: str) -> None:
    assert repaired(text) == wanted
    nested = {"texts": [{text: (text, 1)}], "set": {text}, "message": Message.user(text)}
    assert repaired(nested) == {"texts": [{wanted: (wanted, 1)}], "set": {wanted}, "message": Message.user(wanted)}


def test_a_pydantic_model_is_repaired_with_what_it_holds_beside_its_fields() -> None:
    class Said(BaseModel, extra="allow"):
        content: Any
        inner: Said | None = None
        _cost: float = PrivateAttr(default=0.0)

    made = Said.model_construct(content="plain", inner=Said.model_construct(content=HALF), more=HALF)
    made._cost = 0.5
    fixed = repaired(made)
    assert (fixed.inner.content, fixed.more, fixed.content, fixed._cost) == (WHOLE, WHOLE, "plain", 0.5)
    assert repaired(fixed) is fixed


def test_what_needs_no_repair_is_the_same_object() -> None:
    for value in ("plain", "caf\xe9 \U0001f600", {"a": [("b", None)]}, Message.user("b"), dspy.Predict, b"\xff", 1.5):
        assert repaired(value) is value


def pieces(*texts: str, part: int = 0) -> list[Any]:
    return [StreamDeltaEvent(TextDelta(text=text, part_index=part)) for text in texts]


def test_a_pair_that_is_cut_between_two_pieces_comes_whole_with_the_second() -> None:
    for texts in (("a\ud83d", "\ude00b"), ("a", "\ud83d", "\ude00b"), ("a", "\ud83d\ude00", "b")):
        joiner = PairJoiner()
        found = [event.delta.text for piece in pieces(*texts) for event in joiner.feed(piece)]
        assert "".join(found) == "a\U0001f600b"
        assert all(found)


def test_pieces_of_two_parts_are_not_mixed_up_and_a_half_at_the_end_is_the_replacement_character() -> None:
    joiner = PairJoiner()
    for piece in (*pieces("a\ud83d"), *pieces("b", part=1)):
        [event] = joiner.feed(piece)
        assert event.delta.text in "ab"
    answered = dspy.lm15.StreamEndEvent(finish_reason="stop", usage=None)
    last, end = joiner.feed(answered)
    assert (last.delta.text, last.delta.part_index, end) == ("\ufffd", 0, answered)


REQUESTS: dict[str, Any] = {
    "prompt": ((HALF,), {}),
    "messages": ((), {"messages": [{"role": "user", "content": HALF}]}),
    "parts": ((), {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]}),
    "setting": (("hello",), {"stop": [HALF]}),
}


@pytest.mark.filterwarnings("ignore:.*messages:DeprecationWarning")
@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("model", ["openai/fake", "together_ai/fake"])  # the second is asked by litellm
async def test_a_request_is_sent_with_its_texts_repaired(model: str, name: str) -> None:
    args, settings = REQUESTS[name]
    with FakeServer("fine") as server:
        async with running(endpoint(server, model)) as scene:
            assert await scene.lm.acall(*args, **settings) == ["fine"]
            assert await asyncio.to_thread(scene.lm, *args, **settings) == ["fine"]
    for request in server.requests:
        body = json.dumps(request.body, ensure_ascii=False)
        assert WHOLE in body
        body.encode()


@pytest.mark.usefixtures("empty_cache")
async def test_a_typed_request_and_the_settings_of_the_lm_are_repaired_and_the_answer_is_cached() -> None:
    with FakeServer("fine") as server:
        async with running(server) as scene:
            lm = scene.pool.lm(user=HALF)
            request = Request(model=lm.model, system=HALF, messages=(Message.user(HALF),), config=Config(stop=(HALF,)))
            for _ in range(2):
                assert (await lm.acall(request)).text == "fine"
                assert await lm.acall(HALF) == ["fine"]
            assert len(server.requests) == 2
            assert json.dumps(server.requests[0].body, ensure_ascii=False).count(WHOLE) == 3
            assert server.requests[1].body["user"] == WHOLE


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("model", ["openai/fake", "hosted_vllm/fake"])
async def test_texts_to_embed_are_repaired_and_harm_no_circuit(model: str) -> None:
    with FakeServer() as server:
        async with running(endpoint(server, model)) as scene:
            embedder = scene.pool.embedder(user=HALF)
            for _ in range(2):
                assert (await embedder.acall([HALF, "x"])).shape == (2, 8)
            assert (await asyncio.to_thread(embedder, HALF)).shape == (8,)
            assert [request.body["input"] for request in server.requests] == [[WHOLE, "x"], [WHOLE]]
            assert scene.circuit(model) == "closed"


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("model", ["openai/fake", "together_ai/fake"])
async def test_an_answer_is_repaired_whole_and_streamed(model: str) -> None:
    with FakeServer("x \ud83d\ude00 \ud83d y \ud83d") as server:
        async with running(endpoint(server, model)) as scene:
            wanted = "x \U0001f600 \ufffd y \ufffd"
            assert await scene.pool.lm().acall("hello") == [wanted]
            request = Request(model=model, messages=(Message.user("hello"),))
            events = [event async for event in async_engine(scene.lm).stream(request)]
            assert "".join(event.delta.text for event in events if event.type == "delta") == wanted
            for record in scene.pool.history():
                assert record["answer"]["parts"][0]["text"] == wanted


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_agent_outlives_what_its_tool_returns_and_the_tool_what_the_model_asks(asynchronous: bool) -> None:
    asked: list[str] = []

    if asynchronous:

        @tool
        async def scrape(url: str) -> str:
            """Fetch a page."""
            asked.append(url)
            return HALF
    else:

        @tool
        def scrape(url: str) -> str:
            """Fetch a page."""
            asked.append(url)
            return HALF

    steps = iter(["scrape", "finish"])

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        step = next(steps, None)
        return {
            "next_thought": "hm",
            "next_tool_name": step,
            "next_tool_args": {"url": HALF} if step == "scrape" else {},
            "reasoning": "so",
            "answer": "menu",
        }

    with FakeServer(answer) as server:
        async with running(server) as scene:
            agent = await Program(
                lambda: dspy.ReAct("question -> answer", tools=[scrape], max_iters=3), lm=scene.lm
            ).start(scene.system)
            assert (await agent.acall(question=HALF)).answer == "menu"
            assert WHOLE in json.dumps(server.requests[1].body, ensure_ascii=False)
            assert asked == [WHOLE]
            assert await scene.lm.acall("the next call")


async def test_demos_and_labels_are_no_harm_and_sinks_lose_no_event(tmp_path: Path) -> None:
    with FakeServer("fine") as server:
        async with ActorSystem(content=Content()) as system:
            sinks = [SQLiteSink(tmp_path / "a.db"), JSONLSink(tmp_path / "a.jsonl")]
            for sink in sinks:
                await sink.start(system.events)
            pool = await LMPool(endpoint(server)).start(system)

            def make() -> dspy.Module:
                predict = dspy.Predict("question -> answer")
                predict.demos = [dspy.Example(question=HALF, answer=HALF)]
                return predict

            program = await Program(make, name="qa", lm=pool.lm(cache=False)).start(system)
            with labels(session=HALF):
                assert (await program.acall(question=HALF)).answer == "fine"
            json.dumps(pool.history(), ensure_ascii=False).encode()
    lines = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert "sink.gap" not in {json.loads(line)["type"] for line in lines}
    assert WHOLE in json.dumps(server.requests[0].body, ensure_ascii=False)
