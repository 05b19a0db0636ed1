"""Many callers at once: a server beside an evaluation with 64 threads, and threads, coroutines and blocked loops alike.

What a server waits for beside a run is shown in virtual time, where it is exact, and with DSPy's own threads by who is
at the provider and who waits.
"""

from __future__ import annotations

import asyncio
import collections
import math
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.primitives.code_interpreter import FinalOutput

from promptside import ActorSystem
from promptside.pools import Endpoint, LimiterConfig, LMPool, batch_run, priority
from promptside.testing import FakeServer, Fault, MockLM, run_virtual
from tests.support.actors import until
from tests.support.pools import Scene, endpoint, running

# -- a server beside an evaluation -------------------------------------------------------------------------------------

WIDTH = 16
"""Requests that the provider has under way at a time."""


class Provider:
    """Answers each request after a second, and counts who has how many under way."""

    def __init__(self) -> None:
        self.active: collections.Counter[str] = collections.Counter()
        self.most: collections.Counter[str] = collections.Counter()

    async def complete(self, request: Request) -> Any:
        kind = (request.messages[0].text or "").split()[0]
        self.active[kind] += 1
        self.most[kind] = max(self.most[kind], self.active[kind])
        await asyncio.sleep(1.0)
        self.active[kind] -= 1
        return await MockLM("hello").async_engine.complete(request)


def serve(clients: int, *, share: float, threads: int) -> tuple[float, Provider]:
    """The 95th percentile of what each of so many clients of a server waits for an answer, beside so many of a run."""
    provider, waited = Provider(), list[float]()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with ActorSystem() as system:
            door = Endpoint("mock/mock", engine=provider, max_connections=WIDTH)
            limiter = LimiterConfig(batch_share=share)
            pool = await LMPool(door, workers=1, limiter=limiter).start(system)
            lm = pool.lm(cache=False)

            async def evaluate(thread: int) -> None:
                while True:
                    await lm.acall(f"batch {thread}")

            async def client(number: int) -> None:
                await asyncio.sleep(2 + 0.37 * number)  # not in step with the run, nor with each other
                for _ in range(20):
                    began = loop.time()
                    assert await lm.acall(f"serving {number}") == ["hello"]
                    waited.append(loop.time() - began)

            with priority("batch", run="nightly"):
                run = [asyncio.create_task(evaluate(thread)) for thread in range(threads)]
            await asyncio.gather(*(client(number) for number in range(clients)))
            for task in run:
                task.cancel()
            await asyncio.wait(run) if run else None

    run_virtual(main())
    return statistics.quantiles(waited, n=20)[-1], provider


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_beside_a_run_with_64_threads_a_servers_p95_rises_by_no_more_than_the_runs_share(share: float) -> None:
    alone, _ = serve(WIDTH, share=share, threads=0)
    beside, provider = serve(WIDTH, share=share, threads=64)
    assert alone == pytest.approx(1.0)
    assert beside <= alone / (1 - share) + 1e-6
    assert provider.most["batch"] == share * WIDTH
    assert provider.most["serving"] >= (1 - share) * WIDTH


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
def test_a_server_that_needs_no_more_than_the_rest_never_waits_for_a_run(share: float) -> None:
    beside, provider = serve(math.floor((1 - share) * WIDTH), share=share, threads=64)
    assert beside == pytest.approx(1.0)
    assert provider.most["batch"] == share * WIDTH


def number(body: Any) -> Any:
    """The number that is asked for, whatever the layout: of a program, of an RLM's code, or without an adapter."""
    asked = re.findall(r"number (\d+)", body["messages"][-1]["content"])[-1]
    return {"answer": asked, "reasoning": "", "code": asked} if body["messages"][0]["role"] == "system" else asked


def examples(size: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"number {n}", answer=str(n)).with_inputs("question") for n in range(size)]


def at_the_provider(server: FakeServer) -> dict[str, int]:
    """Requests that are under way there: of the run, and of the server."""
    served = ["serving" in str(request.body) for request in server.requests if not request.finished]
    return {"batch": served.count(False), "serving": served.count(True)}


async def test_an_evaluation_with_64_threads_holds_its_share_and_no_call_of_it_goes_before_a_servers() -> None:
    with FakeServer(number) as server:
        server.fail(Fault.hang(), times=None)
        door = endpoint(server, max_connections=WIDTH)
        async with running(door, workers=1, limiter=LimiterConfig(batch_share=0.25)) as scene:

            def waiting() -> int:
                return int(scene.pool.stats()["openai/fake"]["waiting"])

            def evaluate() -> Any:
                with batch_run("nightly"), dspy.context(lm=scene.lm):
                    program, metric = dspy.Predict("question -> answer"), dspy.evaluate.answer_exact_match
                    return dspy.Evaluate(devset=examples(100), metric=metric, num_threads=64)(program)

            run = asyncio.create_task(asyncio.to_thread(evaluate))
            await until(lambda: waiting() == 60)  # 64 threads and a loop share two cores
            await server.until(lambda: server.active == 4)
            serving = [asyncio.create_task(scene.lm.acall(f"serving number {n}")) for n in range(30)]
            await until(lambda: waiting() == 60 + 18)
            await server.until(lambda: at_the_provider(server) == {"batch": 4, "serving": 12})
            server.release()
            await server.until(lambda: at_the_provider(server) == {"batch": 0, "serving": 16})
            server.release()
            await server.until(lambda: at_the_provider(server) == {"batch": 4, "serving": 2})
            server.heal()
            assert await asyncio.gather(*serving) == [[str(n)] for n in range(30)]
            assert (await run).score == 100.0


# -- threads, coroutines and blocked loops -----------------------------------------------------------------------------


class Twice(dspy.Module):  # type: ignore[misc]
    """Asks twice, the second time for what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.second(question=f"number {self.first(question=question).answer}")

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.second.acall(question=f"number {(await self.first.acall(question=question)).answer}")


class Interpreter:
    """Asks ten times at once for what the code says, in threads, while it blocks the loop that it is called on."""

    def __init__(self) -> None:
        self.tools: dict[str, Callable[..., Any]] = {}

    def start(self) -> None:
        pass

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        if not code.isdigit():
            return None  # what sets it up
        answers = self.tools["llm_query_batched"]([f"number {code}{digit}" for digit in range(10)])
        return FinalOutput({"answer": " ".join(answers)})

    def shutdown(self) -> None:
        pass


async def test_200_threads_200_coroutines_and_code_that_blocks_the_loop_are_all_answered() -> None:
    with FakeServer(number) as server:
        async with running(server) as scene:
            with dspy.context(lm=scene.lm):
                rlms = [dspy.RLM("question -> answer", interpreter_factory=Interpreter) for _ in range(10)]
                blocking = [rlm.acall(question=f"number {n}") for n, rlm in enumerate(rlms)]
                coroutines = [Twice().acall(question=f"number {n}") for n in range(200)]
                answers = asyncio.gather(*blocking, *coroutines)
            programs = [Twice() for _ in range(200)]  # made here: `ast.parse` in threads fails at times before 3.11.8
            with ThreadPoolExecutor(200) as threads:
                sync = [threads.submit(in_a_thread, scene, program, n) for n, program in enumerate(programs)]
                results = await answers
                await asyncio.gather(*map(asyncio.wrap_future, sync))
            assert [result.answer for result in results[:10]] == [
                " ".join(f"{n}{digit}" for digit in range(10)) for n in range(10)
            ]
            assert [result.answer for result in results[10:]] == [str(n) for n in range(200)]
            assert [call.result() for call in sync] == [str(n) for n in range(200)]
            assert len(server.requests) == 10 * 11 + 200 * 2 + 200 * 2
            assert scene.pool.stats()["openai/fake"]["in_flight"] == 0


def in_a_thread(scene: Scene, program: Twice, number: int) -> str:
    with dspy.context(lm=scene.lm):
        return str(program(question=f"number {number}").answer)
