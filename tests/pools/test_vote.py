"""One request to several endpoints at once: what is made of their answers, and of their failures."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request, Response
from dspy.utils.exceptions import ContextWindowExceededError, LMServerError
from dspy.utils.usage_tracker import track_usage

from promptside import ActorSystem
from promptside.errors import EvaluationAborted
from promptside.pools import (
    Aggregate,
    Best,
    BreakerConfig,
    Endpoint,
    EnsembleFailed,
    LMPool,
    Majority,
    PoolUnavailable,
    RetryConfig,
)
from promptside.pools.context.batch import batch_run
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.pools import async_engine, endpoint, running

pytestmark = pytest.mark.usefixtures("empty_cache")

ONCE = RetryConfig(attempts=1, initial=0)


def says(text: str, name: str) -> Endpoint:
    return Endpoint(f"mock/{name}", engine=MockLM(text, model=f"mock/{name}"), name=name)


def length(request: Request, response: Response) -> float:
    return len(response.text or "")


async def test_the_answer_that_most_members_give_is_taken_and_every_member_is_asked_once() -> None:
    with FakeServer("Rome") as a, FakeServer("Paris") as b, FakeServer("  paris") as c:
        doors = [endpoint(server, f"openai/{name}", name=name) for server, name in ((a, "a"), (b, "b"), (c, "c"))]
        async with running(*doors, route="vote") as scene:
            assert await scene.lm.acall("capital of France?") == ["Paris"]
            assert [len(server.requests) for server in (a, b, c)] == [1, 1, 1]
            assert [server.requests[0].body["model"] for server in (a, b, c)] == ["a", "b", "c"]
            (call,), (ended,) = scene.events("lm.call.started"), scene.events("lm.call.stopped")
            attempts = scene.events("lm.attempt.stopped")
            assert sorted(event.data["endpoint"] for event in attempts) == ["a", "b", "c"]
            assert {event.parent_id for event in attempts} == {call.call_id}
            assert {event.trace_id for event in attempts} == {call.trace_id}
            assert (ended.data["attempts"], ended.data["answers"], ended.data["member"]) == (3, 3, "b")
            assert (ended.data["input_tokens"], ended.data["output_tokens"]) == (9, 4)


async def test_sync_and_streaming_callers_get_the_same_answer() -> None:
    async with running(says("one two", "a"), says("one two", "b"), says("three", "c"), route="vote") as scene:
        assert await asyncio.to_thread(scene.lm, "count") == ["one two"]
        engine: Any = async_engine(scene.lm)
        request = Request(model=scene.lm.model, messages=(Message.user("count"),))
        events = [event async for event in engine.stream(request)]
        assert [event.type for event in events] == ["start", "delta", "delta", "end"]
        assert "".join(event.delta.text for event in events[1:-1]) == "one two"
        assert scene.types("lm.call.*").count("lm.call.stopped") == 2


async def test_the_normalizer_decides_what_is_the_same_answer() -> None:
    doors = says("because A: 7", "a"), says("B says 9", "b"), says("so it is 7", "c")
    async with running(*doors) as scene:
        lm = scene.pool.vote(combine=Majority(normalize=lambda text: text[-1]), name="last-digit", cache=False)
        assert await lm.acall("3 + 4?") == ["because A: 7"]


async def test_of_equally_frequent_answers_the_one_listed_first_is_taken() -> None:
    async with running(says("x", "a"), says("y", "b")) as scene:
        assert await scene.pool.vote(cache=False).acall("?") == ["x"]
        assert await scene.pool.vote(["b", "a"], cache=False).acall("?") == ["y"]
        assert await scene.pool.vote(["a", "b", "b"], cache=False).acall("?") == ["y"]


async def test_the_answer_that_scores_highest_is_taken() -> None:
    async with running(says("ab", "a"), says("abcd", "b"), says("abc", "c")) as scene:
        lm = scene.pool.vote(combine=Best(score=length), name="longest", cache=False)
        assert await lm.acall("?") == ["abcd"]
        assert scene.events("lm.call.stopped")[0].data["member"] == "b"


async def test_a_dspy_aggregator_function_is_given_predictions() -> None:
    async with running(says("x", "a"), says("y", "b"), says("y", "c")) as scene:
        lm = scene.pool.vote(combine=Aggregate(program=dspy.majority), name="dspy-majority", cache=False)
        assert await lm.acall("?") == ["y"]
        assert scene.events("lm.call.stopped")[0].data["member"] == "b"


@pytest.mark.parametrize("sync", [False, True])
async def test_a_dspy_program_merges_the_answers_with_the_pools_first_model(sync: bool) -> None:
    seen: list[str] = []

    def first(request: Request) -> str:
        text = str(request.messages)
        seen.append(text)
        return "all of them" if "answers" in text else "x"

    class InAThread(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.merge = dspy.Predict("question, answers: list[str] -> answer")

        def forward(self, question: str, answers: list[str]) -> Any:
            return self.merge(question=question, answers=answers)

    program = InAThread() if sync else dspy.Predict("question, answers: list[str] -> answer")
    model = Endpoint("mock/a", engine=MockLM(first, model="mock/a"), name="a")
    async with running(model, says("y", "b")) as scene:
        lm = scene.pool.vote(combine=Aggregate(program=program), name="merge", cache=False)
        with dspy.context(lm=lm, trace=[]):
            assert await asyncio.wait_for(lm.acall("what?"), 20) == ["all of them"]
            assert not dspy.settings.trace, "the aggregator is no part of the program's trace"
        assert len(seen) == 2
        assert "what?" in seen[1]
        assert "member" not in scene.events("lm.call.stopped")[-1].data


async def test_members_may_fail_while_a_quorum_answers() -> None:
    with FakeServer("yes") as a, FakeServer("yes") as b, FakeServer("no") as c:
        c.fail(Fault.status(500), times=None)
        doors = [endpoint(server, f"openai/{name}", name=name) for server, name in ((a, "a"), (b, "b"), (c, "c"))]
        async with running(*doors, retry=ONCE) as scene:
            assert await scene.pool.vote(cache=False).acall("?") == ["yes"]
            assert [len(server.requests) for server in (a, b, c)] == [1, 1, 1]
            assert scene.events("lm.call.stopped")[0].data["answers"] == 2
            with pytest.raises(EnsembleFailed) as caught:
                await scene.pool.vote(quorum=3, cache=False).acall("?")
            assert [name for name, _ in caught.value.failures] == ["c"]
            assert isinstance(caught.value.__cause__, LMServerError)
            assert scene.events("lm.call.failed")[0].data["error"] == "EnsembleFailed"


async def test_a_quorum_that_cannot_be_reached_cancels_the_members_under_way() -> None:
    def fail_when_the_other_is_under_way(body: Mapping[str, Any]) -> str:
        a.wait_for(lambda: a.active == 1)
        raise RuntimeError("a status of 500")

    with FakeServer("yes") as a, FakeServer(fail_when_the_other_is_under_way) as b:
        a.fail(Fault.hang(), times=None)
        async with running(endpoint(a, "openai/a", name="a"), endpoint(b, "openai/b", name="b"), retry=ONCE) as scene:
            with pytest.raises(EnsembleFailed) as caught:
                await scene.pool.vote(quorum=2, cache=False).acall("?")
            assert [name for name, _ in caught.value.failures] == ["b"]
            await a.until(lambda: a.requests[0].aborted)
            assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_a_cancelled_caller_cancels_every_member_to_its_socket() -> None:
    with FakeServer("yes") as a, FakeServer("yes") as b:
        for server in (a, b):
            server.fail(Fault.hang(), times=None)
        async with running(endpoint(a, "openai/a", name="a"), endpoint(b, "openai/b", name="b")) as scene:
            call = asyncio.create_task(scene.pool.vote(cache=False).acall("?"))
            await a.until(lambda: a.active == 1)
            await b.until(lambda: b.active == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await a.until(lambda: a.requests[0].aborted)
            await b.until(lambda: b.requests[0].aborted)
            failed = await scene.until("lm.call.failed")
            assert failed.data["error"] == "CancelledError"
            assert [scene.circuit("a"), scene.circuit("b")] == ["closed", "closed"]


async def test_in_a_run_the_ensemble_parks_only_while_its_quorum_is_out() -> None:
    with FakeServer("yes") as a, FakeServer("yes") as b, FakeServer("no") as c:
        c.fail(Fault.status(500), times=None)
        doors = [endpoint(server, f"openai/{name}", name=name) for server, name in ((a, "a"), (b, "b"), (c, "c"))]
        breaker = BreakerConfig(min_calls=1, open_for=0.05, jitter=0)
        async with running(*doors, retry=ONCE, breaker=breaker) as scene:
            lm = scene.pool.vote(cache=False)
            with batch_run("nightly"):
                assert await lm.acall("one member is out") == ["yes"]
                b.fail(Fault.status(500))
                assert await lm.acall("two members are out, one of them for once") == ["yes"]
            assert scene.types("lm.call.*") == ["lm.call.started", "lm.call.stopped"] * 2


async def test_a_run_whose_ensemble_never_answers_is_aborted_and_sends_nothing_more() -> None:
    with FakeServer() as a, FakeServer() as b:
        for server in (a, b):
            server.fail(Fault.status(500), times=None)
        async with running(endpoint(a, "openai/a"), endpoint(b, "openai/b"), retry=ONCE) as scene:
            lm = scene.pool.vote(cache=False)
            with pytest.raises(EvaluationAborted) as caught, batch_run("nightly", outage_timeout=0.1):
                await lm.acall("?")
            assert isinstance(caught.value.__cause__, EnsembleFailed)
            assert scene.events("lm.call.failed")[0].data["error"] == "BatchAborted"


async def test_a_run_is_aborted_at_once_where_no_waiting_helps() -> None:
    with FakeServer() as a, FakeServer() as b:
        for server in (a, b):
            server.fail(Fault.status(401), times=None)
        async with running(endpoint(a, "openai/a"), endpoint(b, "openai/b"), retry=ONCE) as scene:
            with pytest.raises(EvaluationAborted), batch_run("nightly"):
                await scene.pool.vote(quorum=1, cache=False).acall("?")
            assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_a_request_that_every_member_refuses_is_the_callers_own_error() -> None:
    with FakeServer() as a, FakeServer() as b:
        for server in (a, b):
            server.fail(Fault.status(400, code="context_length_exceeded"), times=None)
        async with running(endpoint(a, "openai/a"), endpoint(b, "openai/b"), route="vote") as scene:
            with pytest.raises(ContextWindowExceededError):
                await scene.lm.acall("?")


async def test_a_member_never_falls_back_to_another_endpoint() -> None:
    with FakeServer("yes") as a, FakeServer("no") as b:
        a.fail(Fault.status(500), times=None)
        doors = endpoint(a, "openai/fake", name="a"), endpoint(b, "openai/fake", name="b")
        async with running(*doors, retry=ONCE) as scene:
            assert await scene.pool.vote(quorum=1, cache=False).acall("?") == ["no"]
            assert (len(a.requests), len(b.requests)) == (1, 1)


async def test_a_fine_tuned_copy_goes_to_the_first_endpoint_alone() -> None:
    with FakeServer("a") as a, FakeServer("b") as b:
        async with running(endpoint(a, "openai/a"), endpoint(b, "openai/b"), route="vote") as scene:
            assert await scene.lm.copy(model="openai/ft:a:acme").acall("?") == ["a"]
            request = Request(model="openai/ft:a:acme", messages=(Message.user("?"),))
            engine: Any = async_engine(scene.lm)
            assert [event.type async for event in engine.stream(request)] == ["start", "delta", "end"]
            assert not b.requests


async def test_the_usage_of_a_program_is_that_of_all_members() -> None:
    async with running(says("one two", "a"), says("one two", "b"), route="vote") as scene:
        with track_usage() as usage:
            await scene.lm.acall("three little words")
        (total,) = usage.get_total_tokens().values()
        assert (total["prompt_tokens"], total["completion_tokens"]) == (6, 4)


async def test_ensembles_do_not_share_cached_answers() -> None:
    async with running(says("ab", "a"), says("abcd", "b")) as scene:
        longest = scene.pool.vote(combine=Best(score=length), name="longest")
        assert (await scene.pool.vote().acall("cached?"), await longest.acall("cached?")) == (["ab"], ["abcd"])
        assert await longest.acall("cached?") == ["abcd"]
        assert scene.pool.stats()["a"]["attempts"] == 2


async def test_an_ensemble_of_a_stopped_pool_says_so() -> None:
    async with ActorSystem() as system:
        pool = await LMPool([says("x", "a")], route="vote").start(system)
        lm = pool.lm(cache=False)
        await pool.stop()
        with pytest.raises(PoolUnavailable, match="was stopped"):
            await lm.acall("?")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": ["c"]}, r"vote: members=\['c'\]: give a list of endpoints' names, of a, b"),
        ({"members": 5}, "vote: members=5: give a list of endpoints' names, of a, b"),
        ({"members": [5]}, r"vote: members=\[5\]: give a list of endpoints' names, of a, b"),
        ({"members": [["a"]]}, r"vote: members=\[\[.a.\]\]: give a list of endpoints' names, of a, b"),
        ({"members": []}, "members"),
        ({"members": "a"}, "members"),
        ({"combine": "majority"}, r"combine='majority': give Majority\(\)"),
        ({"quorum": 3}, r"quorum=3: give at most 2"),
        ({"quorum": 0}, "quorum=0: give a whole number >= 1"),
        ({"combine": Best(score=length)}, "name=None: give a text without spaces"),
        ({"num_retries": 2}, "the pool retries"),
    ],
)
def test_what_makes_no_ensemble_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    pool = LMPool([says("x", "a"), says("y", "b")])
    with pytest.raises(ValueError, match=message):
        pool.vote(**arguments)


@pytest.mark.parametrize(("kind", "field"), [(Majority, "normalize"), (Best, "score"), (Aggregate, "program")])
def test_what_cannot_be_called_combines_nothing(kind: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: {field}=7"):
        kind(**{field: 7})
