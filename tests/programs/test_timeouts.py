"""`timeout` of programs and pipelines: what happens at the end of it, and that an outage does not count in a batch."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import dspy
import pytest
from dspy.lm15 import ServerError

from promptside import ActorSystem
from promptside.errors import CallTimeout, PromptsideError, ToolTimeout
from promptside.pools import BreakerConfig, Endpoint, LMPool, RetryConfig
from promptside.pools.context.priority import priority
from promptside.programs import Pipeline, Program, evaluate, parallel, stage
from promptside.programs.hosting.time_limit import TimeLimit
from promptside.testing import FakeServer, Fault, MockLM, run_virtual
from tests.programs.test_pipeline_stream import Faucet
from tests.support.actors import until
from tests.support.call_tree import listen
from tests.support.modules import Answer, SyncAnswer, lm

SHORT = 0.05
"""Seconds; nothing that is tested with it ever answers."""

WAYS = pytest.mark.parametrize("source", [Answer, SyncAnswer], ids=["async", "thread"])


class Never(dspy.Module):  # type: ignore[misc]
    """Never answers; counts how often it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.cancelled = 0

    async def aforward(self, question: str) -> dspy.Prediction:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1


@asynccontextmanager
async def hanging() -> AsyncIterator[tuple[ActorSystem, FakeServer, dspy.LM]]:
    """A system, and a model that never answers."""
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            server.fail(Fault.hang(), times=None)
            yield system, server, pool.lm(cache=False)


async def check_cut_off(server: FakeServer, call: Callable[[float], Awaitable[Any]]) -> None:
    """A call that reaches the provider ends with `CallTimeout`, and disconnects from the provider."""
    for timeout in itertools.accumulate(itertools.repeat(4), lambda seconds, by: seconds * by, initial=0.2):
        with pytest.raises(CallTimeout):
            await call(timeout)
        if server.requests:  # a busy machine takes its time until then
            break
    await server.until(lambda: all(request.aborted for request in server.requests))


# -- programs ----------------------------------------------------------------------------------------------------------


@WAYS
async def test_a_call_that_takes_too_long_is_cancelled_down_to_the_provider(source: Any) -> None:
    async with hanging() as (system, server, model):
        program = await Program(source, name="rag", lm=model).start(system)
        await check_cut_off(server, lambda timeout: program.acall(question="?", timeout=timeout))
        server.heal()
        assert (await program.acall(question="?")).answer == "yes"
        assert program.ref.incarnation == 1


async def test_the_error_names_the_program_and_the_time() -> None:
    async with ActorSystem() as system:
        program = await Program(Never, name="rag", timeout=SHORT).start(system)
        with pytest.raises(
            CallTimeout, match=r"^Program 'rag' did not answer within 0.05 s; the call was cancelled$"
        ) as e:
            await program.acall(question="?")
        assert isinstance(e.value, TimeoutError)
        assert isinstance(e.value, PromptsideError)
        assert (e.value.name, e.value.timeout) == ("rag", SHORT)
        await until(lambda: program.module.cancelled == 1)


async def test_the_timeout_of_a_call_goes_over_that_of_its_program() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("yes"), timeout=1e-9).start(system)
        assert (await program.acall(question="?", timeout=600)).answer == "yes"
        with pytest.raises(CallTimeout, match="within 1e-09 s"):
            await program.acall(question="?")
        with pytest.raises(ValueError, match="Program: timeout=0: give seconds > 0"):
            await program.acall(question="?", timeout=0)


async def test_a_caller_in_a_thread_gets_the_error_too() -> None:
    async with ActorSystem() as system:
        program = await Program(Never, timeout=SHORT).start(system)
        ended: list[BaseException] = []

        def call() -> None:
            try:
                program(question="?")
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        await until(lambda: not thread.is_alive())
        assert [type(error) for error in ended] == [CallTimeout]
        await until(lambda: program.module.cancelled == 1)


async def test_a_stream_that_takes_too_long_ends_with_the_error_after_its_pieces() -> None:
    async with ActorSystem() as system:
        faucet = Faucet()
        program = await Program(Answer, lm=faucet.lm()).start(system)
        pieces = ""
        with pytest.raises(CallTimeout):
            async for piece in program.stream(question="?", timeout=0.5):
                pieces += piece.text
        assert "word1 word2".startswith(pieces[:11])
        await until(lambda: faucet.closed.is_set() or not faucet.written)


async def test_the_timeout_of_a_program_within_another_is_an_exception_there() -> None:
    async with ActorSystem() as system:
        inner = await Program(Never, name="inner", timeout=SHORT).start(system)

        class Outer(dspy.Module):  # type: ignore[misc]
            async def aforward(self, question: str) -> dspy.Prediction:
                try:
                    await inner.acall(question=question)
                except CallTimeout as error:
                    return dspy.Prediction(answer=error.name)

        outer = await Program(Outer, timeout=600).start(system)
        assert (await outer.acall(question="?")).answer == "inner"


async def test_the_timeout_of_a_program_cancels_the_programs_within_it() -> None:
    async with ActorSystem() as system:
        inner = await Program(Never, name="inner", timeout=600).start(system)

        class Outer(dspy.Module):  # type: ignore[misc]
            async def aforward(self, question: str) -> dspy.Prediction:
                return await inner.acall(question=question)

        outer = await Program(Outer, name="outer").start(system)
        for timeout in itertools.accumulate(itertools.repeat(4), lambda seconds, by: seconds * by, initial=SHORT):
            with pytest.raises(CallTimeout, match="Program 'outer'"):
                await outer.acall(question="?", timeout=timeout)
            if inner.module.cancelled:
                break
        await until(lambda: not inner.ref.info().current)


# -- pipelines ---------------------------------------------------------------------------------------------------------


async def test_a_pipeline_that_takes_too_long_is_cancelled_down_to_the_provider() -> None:
    async with hanging() as (system, server, model):
        both = parallel(
            ("left", stage(Answer, outputs={"answer": "a"})), ("right", stage(SyncAnswer, outputs={"answer": "b"}))
        )
        pipeline = await Pipeline([both], lm=model).start(system)
        await check_cut_off(server, lambda timeout: pipeline(question="?", timeout=timeout))
        server.heal()
        assert (await pipeline(question="?")).toDict() == {"a": "yes", "b": "yes"}


async def test_every_way_to_call_a_pipeline_ends_with_its_timeout() -> None:
    async with ActorSystem() as system:
        told = listen(system, "pipeline.failed")
        pipeline = await Pipeline([stage(Never, outputs="answer")], name="slow", timeout=SHORT).start(system)
        for call in (pipeline(question="?"), pipeline.acall({"question": "?"}), anext(pipeline.stream(question="?"))):
            with pytest.raises(CallTimeout, match=r"Pipeline 'slow' did not answer within 0.05 s"):
                await call
        items = [{"question": "one"}, {"question": "two"}]
        outcomes = [each async for each in pipeline.map(items, return_exceptions=True)]
        assert [type(each) for each in outcomes] == [CallTimeout] * 2
        assert [event.data["error"] for event in told] == ["CallTimeout"] * 5
        with pytest.raises(ValueError, match="Pipeline: timeout=-1: give seconds > 0"):
            await pipeline(question="?", timeout=-1)
        with pytest.raises(ValueError, match="Pipeline: timeout=0: give seconds > 0"):
            Pipeline([stage(Never, outputs="answer")], timeout=0)


async def test_a_pipeline_in_a_pipeline_keeps_its_own_timeout() -> None:
    async with ActorSystem() as system:
        inner = Pipeline([stage(Never, outputs="answer")], name="inner", timeout=SHORT)
        outer = await Pipeline([inner], timeout=600).start(system)
        with pytest.raises(CallTimeout, match="Pipeline 'inner'"):
            await outer(question="?")


# -- in a batch --------------------------------------------------------------------------------------------------------


def test_the_wait_for_the_end_of_an_outage_does_not_count_in_a_batch() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def limited(seconds: float, limit: float) -> float:
            began = loop.time()
            with pytest.raises(ToolTimeout):
                async with TimeLimit(limit, lambda: ToolTimeout("t", limit)):
                    await asyncio.sleep(seconds)
            return loop.time() - began

        assert await limited(1000, 10) == pytest.approx(10)
        with priority("batch") as batch:
            assert batch is not None
            call = asyncio.create_task(limited(1000, 10))
            await asyncio.sleep(4)
            with batch.waiting(loop.time):
                await asyncio.sleep(3)
                with batch.waiting(loop.time):  # of another call, in the same outage
                    await asyncio.sleep(3)
            assert await call == pytest.approx(16)
            assert await limited(1000, 10) == pytest.approx(10), "the outage before it does not count"

    run_virtual(main())


def test_an_outage_longer_than_the_timeout_costs_an_evaluation_no_score() -> None:
    class Down:
        """A provider that is down until it is set up."""

        def __init__(self) -> None:
            self.up = False

        async def complete(self, request: Any) -> Any:
            if not self.up:
                raise ServerError("down")
            return await MockLM("yes").async_engine.complete(request)

    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            pool = await LMPool(
                [Endpoint("mock/mock", engine=provider)],
                retry=RetryConfig(initial=0.1),
                breaker=BreakerConfig(open_for=5, max_open_for=5),
            ).start(system)
            program = await Program(Answer, lm=pool.lm(cache=False), timeout=30).start(system)
            devset = [dspy.Example(question=f"{n}?", answer="yes").with_inputs("question") for n in range(4)]

            async def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
                return bool(example.answer == prediction.answer)

            call = asyncio.create_task(evaluate(program, devset, exact))
            await asyncio.sleep(300)
            assert not call.done()
            provider.up = True
            assert (await call).score == 100.0
            provider.up = False
            with pytest.raises(dspy.LMError):
                await program.acall(question="serving fails fast")

    run_virtual(main())
