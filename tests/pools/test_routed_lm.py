"""Which model answered: in DSPy's cache, usage and history, and in the pool's history and events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import dspy
import pytest
from dspy.lm15 import Message, Request
from dspy.utils.usage_tracker import track_usage

from promptside.pools import Aggregate, Best, Endpoint
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.modules import Answer
from tests.support.pools import Scene, endpoint, running

BIG, SMALL = "openai/big", "openai/small"

Way = Callable[[dspy.LM, Scene], Awaitable[str]]


async def awaited(lm: dspy.LM, scene: Scene) -> str:
    return str((await lm.acall("who?"))[0])


async def in_a_thread(lm: dspy.LM, scene: Scene) -> str:
    return str((await asyncio.to_thread(lm, "who?"))[0])


async def through_forward(lm: dspy.LM, scene: Scene) -> str:
    return str((await asyncio.to_thread(lm.forward, "who?")).choices[0].message.content)


async def through_aforward(lm: dspy.LM, scene: Scene) -> str:
    return str((await lm.aforward("who?")).choices[0].message.content)


async def as_a_request(lm: dspy.LM, scene: Scene) -> str:
    return str((await lm.acall(Request(model=lm.model, messages=(Message.user("who?"),)))).text)


async def by_a_program(lm: dspy.LM, scene: Scene) -> str:
    program = await Program(Answer, lm=lm).start(scene.system)
    try:
        return str((await program.acall(question="who?")).answer)
    finally:
        await program.stop()


async def streamed(lm: dspy.LM, scene: Scene) -> str:
    program = await Program(Answer, lm=lm).start(scene.system)
    try:
        return str([piece.prediction async for piece in program.stream(question="who?")][-1].answer)
    finally:
        await program.stop()


WAYS = [awaited, in_a_thread, through_forward, through_aforward, as_a_request, by_a_program, streamed]


def statuses(server: FakeServer) -> list[int | None]:
    return [request.status for request in server.requests]


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", WAYS)
async def test_an_answer_of_a_backup_is_not_in_the_cache_as_the_first_models(way: Way) -> None:
    with FakeServer("big") as first, FakeServer("small") as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL)) as scene:
            lm = scene.pool.lm()
            first.fail(Fault.status(503), times=None)
            for _ in range(2):
                assert await way(lm, scene) == "small"
            assert statuses(backup) == [200, 200]
            first.heal()
            scene.pool.breaker(BIG).reset()
            for _ in range(2):
                assert await way(lm, scene) == "big"
            assert statuses(first).count(200) == 1, "its own answer is in the cache"


@pytest.mark.usefixtures("empty_cache")
async def test_another_address_of_the_model_and_a_model_that_no_endpoint_has_answer_as_themselves() -> None:
    with FakeServer("hello") as one, FakeServer("hello") as two:
        doors = endpoint(one, BIG, name="eu"), endpoint(two, BIG, name="us")
        async with running(*doors) as scene:
            one.fail(Fault.status(503), times=None)
            for lm in (scene.pool.lm(), scene.pool.lm()):
                assert await lm.acall("who?") == ["hello"]
            assert statuses(two) == [200]
            one.heal()
            tuned = scene.pool.lm().copy(model="openai/tuned")
            for _ in range(2):
                assert await tuned.acall("who?") == ["hello"]
            assert [request.body["model"] for request in one.requests[-1:]] == ["tuned"]
            assert statuses(one).count(200) == 1


@pytest.mark.usefixtures("empty_cache")
async def test_callers_that_share_a_call_each_name_the_backup_and_none_caches_it() -> None:
    with FakeServer("big") as first, FakeServer("small", latency=0.05) as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL)) as scene:
            lm = scene.pool.lm(temperature=0.0)
            first.fail(Fault.status(401), times=None)
            answers = await asyncio.gather(*(lm.acall("who?") for _ in range(3)))
            assert answers == [["small"]] * 3
            assert statuses(backup) == [200]
            assert [entry["model"] for entry in lm.history] == [SMALL] * 3
            assert [record["model"] for record in scene.pool.history()] == [SMALL] * 3
            assert {event.data["response_model"] for event in scene.events("lm.call.stopped")} == {SMALL}
            first.heal()
            assert await lm.acall("who?") == ["big"]


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("way", [awaited, in_a_thread, as_a_request, by_a_program, streamed])
async def test_usage_histories_and_events_name_the_model_that_answered(way: Way) -> None:
    with FakeServer("big") as first, FakeServer("small") as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL, name="spare")) as scene:
            lm = scene.pool.lm()
            first.fail(Fault.status(503), times=None)
            with track_usage() as tracker:
                await way(lm, scene)
            assert list(tracker.get_total_tokens()) == [SMALL]
            assert tracker.get_total_tokens()[SMALL]["completion_tokens"] > 0
            assert lm.history[-1]["model"] == SMALL
            assert lm.model == BIG
            record = scene.pool.history()[-1]
            assert (record["model"], record["requested_model"], record["endpoint"]) == (SMALL, BIG, "spare")
            event = scene.events("lm.call.stopped")[-1]
            found = {name: event.data[name] for name in ("model", "response_model", "endpoint")}
            assert found == {"model": BIG, "response_model": SMALL, "endpoint": "spare"}


async def test_concurrent_calls_of_one_lm_are_not_mixed_up() -> None:
    with FakeServer("big") as first, FakeServer("small") as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL), route="round_robin") as scene:
            lm = scene.pool.lm(cache=False)
            answers = await asyncio.gather(*(lm.acall(f"call {n}") for n in range(20)))
            for entry in lm.history:
                assert entry["model"] == f"openai/{entry['outputs'][0]}"
            assert sorted(answer[0] for answer in answers) == ["big"] * 10 + ["small"] * 10


@pytest.mark.usefixtures("empty_cache")
async def test_several_completions_are_counted_under_each_model_that_gave_some() -> None:
    with FakeServer("big") as first, FakeServer("small") as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL)) as scene:
            lm = scene.pool.lm()
            first.script([None, Fault.status(401), None])
            with track_usage() as tracker:
                answers = await lm.acall("who?", n=3, temperature=1.0)
            assert answers == ["big", "small", "big"]
            assert {model: usage["completion_tokens"] for model, usage in tracker.get_total_tokens().items()} == {
                BIG: 2,
                SMALL: 1,
            }
            assert lm.history[-1]["model"] == f"{BIG}, {SMALL}"
            assert await lm.acall("who?", n=3, temperature=1.0) == ["big"] * 3, "the mixture is not in the cache"


@pytest.mark.usefixtures("empty_cache")
async def test_a_vote_answers_in_its_own_name_and_is_cached_unless_a_backup_made_its_answer() -> None:
    with FakeServer("big") as first, FakeServer("small") as backup:
        async with running(endpoint(first, BIG), endpoint(backup, SMALL)) as scene:
            best = scene.pool.vote(combine=Best(score=lambda request, answer: 1.0), name="best")
            for _ in range(2):
                assert await best.acall("who?") == ["big"]
            assert len(first.requests) == len(backup.requests) == 1
            assert scene.pool.history()[-1]["model"] == best.model == best.history[-1]["model"]

            class Merge(dspy.Module):  # type: ignore[misc]
                async def aforward(self, question: str, answers: list[str]) -> dspy.Prediction:
                    return dspy.Prediction(merged=(await dspy.settings.lm.acall("merge"))[0])

            merged = scene.pool.vote(combine=Aggregate(program=Merge()), name="merged")
            first.script([None, Fault.status(401)])
            assert await merged.acall("who else?") == ["small"]
            assert await merged.acall("who else?") == ["big"], "it was not cached: a backup wrote it"
            before = len(first.requests)
            assert await merged.acall("who else?") == ["big"]
            assert len(first.requests) == before


async def test_an_override_of_forward_is_called_as_by_any_lm() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM({"indeed": "overridden", "default": "hello"}))) as scene:
        lm = scene.pool.lm(cache=False)
        assert await asyncio.to_thread(lm, "who?") == ["hello"]
        forward = lm.forward
        lm.forward = lambda prompt, messages, **kwargs: forward(f"{prompt} Indeed, indeed")
        with pytest.warns(DeprecationWarning, match="custom LMs"):
            assert await asyncio.to_thread(lm, "who?") == ["overridden"]
