"""Prompts are exchanged under a steady stream of calls, rolled back, saved and loaded: no call fails or sees two."""

import asyncio
import tempfile
from collections import Counter

import dspy
from dspy.lm15 import Request

from promptside import ActorSystem, Program
from promptside.testing import MockLM


class Letter(dspy.Module):
    """A greeting and a farewell: two LM calls, which must be in one language."""

    def __init__(self) -> None:
        super().__init__()
        self.greeting = dspy.Predict("name -> line")
        self.farewell = dspy.Predict("name -> line")

    async def aforward(self, name: str) -> dspy.Prediction:
        greeting = await self.greeting.acall(name=name)
        farewell = await self.farewell.acall(name=name)
        return dspy.Prediction(greeting=greeting.line, farewell=farewell.line)


def model(request: Request) -> str:
    """It does as its instructions say."""
    return "German" if "in German" in str(request.system) else "English"


def in_german(letter: dspy.Module) -> dspy.Module:
    """What an optimizer does: it changes a copy."""
    for predictor in letter.predictors():
        predictor.signature = predictor.signature.with_instructions("Write a line in German.")
    return letter


async def main() -> None:
    answers: Counter[str] = Counter()

    async def call(version: int) -> None:
        letter = await program.acall(name="Ada")
        both = {letter.greeting, letter.farewell}
        answers[f"version {version}: {' and '.join(both)}"] += 1

    async def fifty_calls() -> None:
        for _ in range(50):
            calls.create_task(call(program.versions[-1].number))
            await asyncio.sleep(0.005)  # 200 calls/s, so that some are under way at each change

    async with ActorSystem() as system:
        program = await Program(Letter, lm=MockLM(model, latency=0.02).lm()).start(system)
        async with asyncio.TaskGroup() as calls:  # it raises if a call fails
            await fifty_calls()

            better = in_german(program.copy())
            await program.swap_state(better.dump_state())
            await fifty_calls()

            with tempfile.TemporaryDirectory() as folder:
                await program.save(folder)
                await program.rollback()
                await fifty_calls()

                await program.load(folder)
                await fifty_calls()

        for version in program.versions:
            print(f"version {version.number} by {version.change}")
    for answer, count in answers.items():
        print(f"{count} answers of {answer}")


asyncio.run(main())
