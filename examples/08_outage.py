"""A provider goes down: a server's calls go elsewhere, an evaluation waits; and a budget ends what costs too much."""

import asyncio
import logging

import dspy
from dspy.lm15 import Request, ServerError

from promptside import ActorSystem, BreakerConfig, Budget, Endpoint, LMPool, Program, batch_run, session
from promptside.pools import BudgetExceeded
from promptside.testing import MockLM


class Provider:
    """A model that is down at times."""

    down = False

    def __call__(self, request: Request) -> str:
        if self.down:
            raise ServerError("bad gateway")
        return "Paris"


DEVSET = [dspy.Example(question=f"{n}?", answer="Paris").with_inputs("question") for n in range(20)]


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


async def serve_through_an_outage(system: ActorSystem) -> None:
    provider = Provider()
    primary = Endpoint("mock/primary", engine=MockLM(provider))
    backup = Endpoint("mock/backup", engine=MockLM("Paris, says the backup"))
    pool = await LMPool(primary, backup, name="serving").start(system)
    atlas = await Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False)).start(
        system
    )

    print("up:  ", (await atlas.acall(question="What is the capital of France?")).answer)
    provider.down = True
    for number in range(10):
        answer = (await atlas.acall(question=f"{number}: what is the capital of France?")).answer
    print("down:", answer)
    circuits = {name: figures["circuit"] for name, figures in pool.stats().items()}
    print("circuits:", circuits)


async def evaluate_through_an_outage(system: ActorSystem) -> None:
    provider = Provider()
    endpoint = Endpoint("mock/primary", engine=MockLM(provider))
    breaker = BreakerConfig(open_for=0.2)
    pool = await LMPool(endpoint, name="batch", breaker=breaker).start(system)
    program = dspy.Predict("question -> answer")
    program.set_lm(pool.lm(cache=False))

    def evaluate() -> float:
        with batch_run("nightly", outage_timeout=60):
            score = dspy.Evaluate(devset=DEVSET, metric=exact, num_threads=4, display_progress=False)(program).score
        return float(score)

    provider.down = True
    evaluating = asyncio.create_task(asyncio.to_thread(evaluate))
    await asyncio.sleep(1)
    provider.down = False
    print("score:", await evaluating)


async def stop_at_a_budget(system: ActorSystem) -> None:
    endpoint = Endpoint("mock/primary", engine=MockLM("Paris"))
    pool = await LMPool(endpoint, name="frugal", budgets={"session": Budget(calls=2)}).start(system)
    lm = pool.lm(cache=False)
    with session("ada"):
        for _ in range(3):
            try:
                await lm.acall("What is the capital of France?")
            except BudgetExceeded as error:
                print("budget:", error)
    print("costs:", pool.costs()["by_session"]["ada"]["calls"], "calls")


async def main() -> None:
    logging.disable()
    async with ActorSystem() as system:
        await serve_through_an_outage(system)
        await evaluate_through_an_outage(system)
        await stop_at_a_budget(system)


asyncio.run(main())
