"""`LMPool.history`: the last interactions as plain records, and nowhere else."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request
from dspy.utils.exceptions import LMServerError

from promptside import ActorSystem
from promptside.pools import Endpoint, RetryConfig, labels
from promptside.pools.accounting.history import History
from promptside.pools.accounting.ledger import Ledger
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.modules import Answer
from tests.support.pools import async_engine, running


def mock(*answers: Any, **settings: Any) -> Endpoint:
    return Endpoint("mock/mock", engine=MockLM(*answers, **settings))


def asked(record: dict[str, Any]) -> str:
    return str(record["messages"][-1]["parts"][0]["text"])


async def test_a_record_holds_the_whole_interaction_as_json() -> None:
    with FakeServer("hello there") as server:
        async with running(server) as scene:
            with labels(session="alice", run="nightly"):
                await scene.pool.lm(cache=False, temperature=0.5).acall("one two")
            record = scene.pool.history()[0]
            assert json.loads(json.dumps(record)) == record
            assert asked(record) == "one two"
            assert record["answer"]["parts"][0]["text"] == "hello there"
            assert record["settings"]["temperature"] == 0.5
            assert record["usage"]["output_tokens"] == 2
            assert (record["model"], record["endpoint"]) == ("openai/fake", "openai/fake")
            assert (record["program"], record["session"], record["run"]) == (None, "alice", "nightly")
            assert (record["finish_reason"], record["error"]) == ("stop", None)
            assert record["seconds"] > 0
            assert record["time"] > 1e9
            assert record["cost"] is None, "no price table has this model"


async def test_the_last_n_are_kept_oldest_first_and_no_more_than_the_bound() -> None:
    async with running(mock("hello"), max_history_size=8) as scene:
        for number in range(10):
            await scene.lm.acall(f"call {number}")
        assert [asked(record) for record in scene.pool.history()] == [f"call {n}" for n in range(4, 10)]
        assert [asked(record) for record in scene.pool.history(2)] == ["call 8", "call 9"]
        assert len(scene.pool.history(1000)) == 8
        assert scene.pool.history(0) == []
        with pytest.raises(ValueError, match=r"LMPool\.history: n=-1: give a whole number >= 0"):
            scene.pool.history(-1)
    async with running(mock("hello"), max_history_size=0) as scene:
        assert await scene.lm.acall("hello") == ["hello"]
        assert scene.pool.history() == []


async def test_they_are_found_by_lm_program_session_and_run() -> None:
    async with running(mock("hello")) as scene:
        other = scene.pool.lm(cache=False)
        with labels(session="alice"):
            await scene.lm.acall("1")
            await asyncio.to_thread(scene.lm.copy(temperature=1.0), "2")
            with labels(run="nightly"):
                await other.acall("3")
        program = await Program(Answer, name="qa", lm=other).start(scene.system)
        await program.acall(question="4")

        def found(**wanted: Any) -> list[str]:
            return [asked(record).splitlines()[-1][:40] for record in scene.pool.history(**wanted)]

        assert found(lm=scene.lm) == ["1", "2"], "a copy is the same LM"
        assert len(found(lm=other)) == 2
        assert found(session="alice") == ["1", "2", "3"]
        assert found(session="alice", run="nightly") == found(run="nightly") == ["3"]
        assert len(found(program="qa")) == 1
        assert found(session="bob") == []


async def test_a_streamed_answer_is_whole_and_one_that_is_under_way_is_there_without_it() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            request = Request(model="openai/fake", messages=(Message.user("hello"),))
            server.fail(Fault.slow_tokens(0.01))
            stream = async_engine(scene.lm).stream(request)
            await anext(stream)
            record = scene.pool.history()[-1]
            assert (record["seconds"], record["error"]) == (None, None)
            assert [event async for event in stream]
            assert list(await asyncio.to_thread(lambda: list(scene.lm.engine.stream(request))))
            for record in scene.pool.history():
                assert record["answer"]["parts"][0]["text"] == "one two three"
                assert record["usage"]["output_tokens"] == 3
                assert record["seconds"] > 0


async def test_a_failed_a_cancelled_and_an_abandoned_call_are_remembered_as_such() -> None:
    with FakeServer("one two three") as server:
        async with running(server) as scene:
            server.fail(Fault.status(400))
            with pytest.raises(dspy.LMInvalidRequestError):
                await scene.lm.acall("refused")
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("cancelled"))
            await server.until(lambda: server.active == 1)
            call.cancel()
            await asyncio.wait([call])
            await server.until(lambda: server.requests[-1].aborted)
            server.fail(Fault.slow_tokens(0.05))
            stream = async_engine(scene.lm).stream(Request(model="openai/fake", messages=(Message.user("abandoned"),)))
            await anext(stream)
            await stream.aclose()  # type: ignore[attr-defined]
            await server.until(lambda: server.requests[-1].aborted)
            records = scene.pool.history()
            assert [asked(record) for record in records] == ["refused", "cancelled", "abandoned"]
            errors = [record["error"]["type"] for record in records]
            assert errors == ["LMInvalidRequestError", "CancelledError", "CancelledError"]


async def test_what_is_not_data_is_a_marker_and_the_other_fields_survive() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    history = History(3)
    tool: Any = {"function": threading.Lock(), "name": "search"}
    request = Request(model="m", messages=(Message.user("hello"),))
    object.__setattr__(request, "tools", (tool,))
    interaction = history.begin(None, request, {}, Ledger("lm").open({}))
    interaction.on_chunks(["not an event"])
    interaction.end(Hostile())
    record = history.last(1, lambda _: True)[0]
    assert record["tools"] == [{"function": "<lock>", "name": "search"}]
    assert record["error"] == {"type": "Hostile", "message": "<Hostile, whose str raised RuntimeError>"}
    assert record["answer"] is None
    assert asked(record) == "hello"
    json.dumps(record)


async def test_embeddings_are_remembered_by_their_texts_and_without_the_vectors() -> None:
    with FakeServer() as server:
        async with running(server, retry=RetryConfig(attempts=1)) as scene:
            embedder = scene.pool.embedder(caching=False, dimensions=3)
            with labels(session="alice"):
                vectors = await embedder.acall(["two words", "one"])
            server.fail(Fault.status(500))
            with pytest.raises(LMServerError):
                await embedder.acall("again")
            good, failed = records = scene.pool.history()
            assert json.loads(json.dumps(records)) == records
            assert good["messages"] == ["two words", "one"]
            assert good["answer"] == dict(zip(("vectors", "dimensions"), vectors.shape, strict=True))
            assert (good["usage"]["input_tokens"], good["settings"], good["tools"]) == (3, {"dimensions": 3}, [])
            assert (good["model"], good["session"], good["error"]) == (scene.lm.model, "alice", None)
            assert good["seconds"] > 0
            assert (failed["messages"], failed["answer"], failed["error"]["type"]) == (["again"], None, "LMServerError")


async def test_nothing_of_it_goes_to_the_bus() -> None:
    async with running(mock("the answer is private")) as scene:
        await scene.lm.acall("the question is private")
        scene.pool.history()
        assert "private" not in repr(scene.told)
        assert "private" in repr(scene.pool.history())


async def test_a_hit_in_a_cache_is_no_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    from dspy.clients.cache import Cache

    monkeypatch.setattr(dspy, "cache", Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=""))
    async with running(mock("hello")) as scene:
        lm = scene.pool.lm(cache=True)
        await lm.acall("once")
        await lm.acall("once")
        assert len(scene.pool.history()) == scene.pool.costs()["total"]["calls"] == 1
        assert isinstance(scene.system, ActorSystem)


async def test_reading_while_many_threads_call_is_consistent() -> None:
    async with running(mock("hello"), max_history_size=20) as scene:
        calls = [asyncio.to_thread(scene.lm, f"call {number}") for number in range(60)]
        running_calls = asyncio.gather(*calls)
        while not running_calls.done():
            for record in scene.pool.history(20):
                assert asked(record).startswith("call ")
            await asyncio.sleep(0)
        await running_calls
        assert len(scene.pool.history(100)) == 20
