"""`Pipeline.map`: concurrency, order, failures, and every way to leave it early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import aclosing, closing
from typing import Any

import dspy
import pytest

from promptside import ActorStopped, ActorSystem, Event
from promptside.errors import PipelineError
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import stage
from promptside.testing import MockLM, run_virtual
from tests.programs.test_pipeline import names
from tests.support.actors import Boom, outcome, turns, until
from tests.support.modules import lm


class Source:
    """Questions from 0 on, which notes what is taken from it and whether it was closed."""

    def __init__(self, count: int | None = None, error: Exception | None = None) -> None:
        self.taken = 0
        self.closed = False
        self._count = count
        self._error = error

    def plain(self) -> Generator[dict[str, Any], None, None]:
        try:
            while self._count is None or self.taken < self._count:
                self.taken += 1
                yield {"n": self.taken - 1}
            if self._error is not None:
                raise self._error
        finally:
            self.closed = True

    async def items(self) -> AsyncIterator[dict[str, Any]]:
        with closing(self.plain()) as items:
            for item in items:
                await asyncio.sleep(0)
                yield item


class Work:
    """A stage that counts what is under way, and holds what it is told to hold."""

    def __init__(self, *, seconds: float = 0.0, hold: bool = False) -> None:
        self.running = self.most = self.cancelled = 0
        self._seconds = seconds
        self._hold = hold

    async def __call__(self, n: int) -> dict[str, int]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (asyncio.Event().wait() if self._hold else asyncio.sleep(self._seconds))
            return {"square": n * n}
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def pipeline_of(system: ActorSystem, work: Any) -> Pipeline:
    return await Pipeline([stage(work, outputs="square")], inputs="n", outputs="n, square").start(system)


async def odd_fails(n: int) -> int:
    await asyncio.sleep(0)
    if n % 2:
        raise Boom(n)
    return n


KINDS = pytest.mark.parametrize("kind", ["plain", "items"])


@KINDS
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("max_concurrency", [1, 7, 1000])
async def test_every_item_has_its_prediction(kind: str, ordered: bool, max_concurrency: int) -> None:
    async with ActorSystem() as system:
        work, source = Work(), Source(50)
        pipeline = await pipeline_of(system, work)
        results = [
            each
            async for each in pipeline.map(getattr(source, kind)(), max_concurrency=max_concurrency, ordered=ordered)
        ]
        assert all(isinstance(each, dspy.Prediction) for each in results)
        assert sorted((each.n, each.square) for each in results) == [(n, n * n) for n in range(50)]
        if ordered:
            assert [each.n for each in results] == list(range(50))
        assert work.most <= max_concurrency


@KINDS
@pytest.mark.parametrize("max_concurrency", [1, 4])
async def test_a_slow_consumer_slows_the_source(kind: str, max_concurrency: int) -> None:
    async with ActorSystem() as system:
        work, source = Work(), Source()
        pipeline = await pipeline_of(system, work)
        async with aclosing(pipeline.map(getattr(source, kind)(), max_concurrency=max_concurrency)) as results:
            read = 0
            async for _ in results:
                read += 1
                await turns(30)
                assert source.taken <= read + max_concurrency
                if read == 10:
                    break
        assert source.closed
        assert work.most <= max_concurrency


@KINDS
async def test_leaving_early_cancels_what_runs_and_closes_the_source(kind: str) -> None:
    async with ActorSystem() as system:
        held, source = Work(hold=True), Source()
        pipeline = await pipeline_of(system, first_then(held))
        async with aclosing(pipeline.map(getattr(source, kind)(), max_concurrency=5)) as results:
            async for _ in results:
                await until(lambda: held.running >= 4)  # 5 where another has begun in the place of the first
                break
        assert held.cancelled >= 4
        assert held.running == 0
        assert source.closed
        assert names(system) == ["pipeline", "pipeline/calls"]


def first_then(work: Work) -> Any:
    async def run(n: int) -> dict[str, int]:
        return {"square": 0} if n == 0 else await work(n)

    return run


async def test_a_failing_item_is_raised_with_its_number_and_ends_the_rest() -> None:
    async with ActorSystem() as system:
        pipeline, source = await pipeline_of(system, odd_fails), Source()
        with pytest.raises(Boom) as caught:
            async for _ in pipeline.map(source.items(), max_concurrency=2, ordered=True):
                pass
        assert caught.value.__notes__ == [
            "in the stage 'odd_fails'",
            "in item 1 of the map over the pipeline 'pipeline'",
        ]
        assert source.closed
        assert names(system) == ["pipeline", "pipeline/calls"]


async def test_failing_items_may_be_taken_as_results() -> None:
    async with ActorSystem() as system:
        pipeline = await pipeline_of(system, odd_fails)
        items: list[Any] = [{"n": 0}, {"n": 1}, {}, {"n": 2, "m": 3}, {"n": 4}]
        results = [each async for each in pipeline.map(items, ordered=True, return_exceptions=True)]
        assert [type(each) for each in results] == [
            dspy.Prediction,
            Boom,
            PipelineError,
            PipelineError,
            dspy.Prediction,
        ]
        assert "in item 2 of the map" in results[2].__notes__[0]
        assert "in item 3 of the map" in results[3].__notes__[0]


@KINDS
async def test_what_the_source_raises_is_raised_after_its_items(kind: str) -> None:
    async with ActorSystem() as system:
        pipeline, source, read = await pipeline_of(system, Work()), Source(5, Boom()), []
        with pytest.raises(Boom):
            async for each in pipeline.map(getattr(source, kind)(), max_concurrency=2, ordered=True):
                read.append(each.n)
        assert read == [0, 1, 2, 3, 4]


async def test_a_caller_that_is_cancelled_cancels_what_runs() -> None:
    async with ActorSystem() as system:
        held, source = Work(hold=True), Source()
        pipeline = await pipeline_of(system, held)

        async def read() -> None:
            async for _ in pipeline.map(source.items(), max_concurrency=3):
                pass

        reader = asyncio.ensure_future(read())
        await until(lambda: held.running == 3)
        reader.cancel()
        assert isinstance(await outcome(reader), asyncio.CancelledError)
        await until(lambda: held.cancelled == 3 and source.closed)
        assert source.taken == 3


async def test_stopping_the_pipeline_ends_a_map_after_what_had_finished() -> None:
    async with ActorSystem() as system:
        held, source, read = Work(hold=True), Source(), []
        pipeline = await pipeline_of(system, first_then(held))

        async def consume() -> None:
            async for each in pipeline.map(source.items(), max_concurrency=3):
                read.append(each.n)

        reader = asyncio.ensure_future(consume())
        await until(lambda: held.running == 3)
        await pipeline.stop()
        assert isinstance(await outcome(reader), ActorStopped)
        assert read == [0]
        await until(lambda: source.closed)
        assert names(system) == []


async def test_a_stage_that_crashes_in_mid_map_fails_its_items_alone() -> None:
    async with ActorSystem() as system:
        entered, go_on = asyncio.Event(), asyncio.Event()

        class Slow(dspy.Module):  # type: ignore[misc]
            async def aforward(self, n: int) -> dspy.Prediction:
                if n < 2:
                    entered.set()
                    await go_on.wait()
                return dspy.Prediction(square=n * n)

        pipeline = await Pipeline([("slow", stage(Slow, outputs="square"))]).start(system)
        results: list[Any] = []

        async def consume() -> None:
            async for each in pipeline.map(Source(4).items(), max_concurrency=2, ordered=True, return_exceptions=True):
                results.append(each)

        reader = asyncio.ensure_future(consume())
        await entered.wait()
        system.whereis("pipeline.slow").kill()
        await outcome(reader)
        assert [type(each).__name__ for each in results[:2]] == ["ActorStopped", "ActorStopped"]
        assert [each.square for each in results[2:]] == [4, 9]


@pytest.mark.parametrize("victims", [["one"], ["two"], ["one", "two"], ["two", "two"]])
async def test_every_item_has_exactly_one_outcome_while_stages_are_killed(victims: list[str]) -> None:
    async with ActorSystem() as system:
        model = MockLM(lambda request: str(request.messages[-1].parts[0].text.split("<<")[1].split(">>")[0]))
        stages = [("one", "n -> m"), stage("n, m -> square", name="two")]
        pipeline = await Pipeline(stages, lm=model.lm(), outputs="n, square").start(system)
        calls = 0

        @system.events.on("module.started")
        def strike(event: Event) -> None:
            nonlocal calls
            calls += 1
            if calls > 40 and victims and event.source.startswith(f"pipeline/{victims[-1]}/"):
                calls = 0
                system.whereis(f"pipeline.{victims.pop()}").kill()

        items = [{"n": f"<<{number}>>"} for number in range(120)]
        outcomes = [each async for each in pipeline.map(items, max_concurrency=8, ordered=True, return_exceptions=True)]
        assert victims == []
        lost = [each for each in outcomes if isinstance(each, Exception)]
        assert len(outcomes) == 120
        assert 1 <= len(lost) <= 16
        assert all(isinstance(each, ActorStopped) and each.started for each in lost)
        for number, each in enumerate(outcomes):
            assert each in lost or (each.n, each.square) == (f"<<{number}>>", f"{number}")


async def test_a_source_that_waits_does_not_hold_back_results() -> None:
    async def source() -> AsyncIterator[dict[str, int]]:
        yield {"n": 2}
        await asyncio.Event().wait()

    async with ActorSystem() as system:
        pipeline = await pipeline_of(system, Work())
        async with aclosing(pipeline.map(source())) as results:
            assert (await anext(results)).square == 4


def test_as_many_items_are_under_way_as_there_is_demand_for() -> None:
    async def main() -> float:
        async with ActorSystem() as system:
            work = Work(seconds=1.0)
            pipeline = await pipeline_of(system, work)
            loop = asyncio.get_running_loop()
            began = loop.time()
            assert len([each async for each in pipeline.map(Source(64).items(), max_concurrency=16)]) == 64
            assert work.most == 16
            return loop.time() - began

    assert run_virtual(main()) == pytest.approx(4.0)


async def test_a_map_within_a_stage_goes_on() -> None:
    async with ActorSystem() as system:
        inner = await Pipeline([stage(odd_fails, name="even", outputs="m")]).start(system, name="inner")

        async def total(numbers: list[int]) -> int:
            return sum([each.m async for each in inner.map({"n": n} for n in numbers)])

        outer = await Pipeline([stage(total, outputs="total"), "total -> answer"], lm=lm("x")).start(system)
        async for each in outer.map([{"numbers": [2, 4]}, {"numbers": [6]}], max_concurrency=1, ordered=True):
            assert each.answer == "x"


@pytest.mark.parametrize(
    ("options", "error"), [({"max_concurrency": 0}, ValueError), ({"max_concurrency": 1.5}, ValueError)]
)
async def test_what_cannot_be_is_refused_at_once(options: dict[str, Any], error: type[Exception]) -> None:
    async with ActorSystem() as system:
        pipeline = await pipeline_of(system, Work())
        with pytest.raises(error, match=r"max_concurrency=.*: give a whole number >= 1"):
            pipeline.map([], **options)
        with pytest.raises(TypeError, match="not iterable"):
            pipeline.map(42)  # type: ignore[call-overload]
