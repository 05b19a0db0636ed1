"""The program of docs/tutorial.md: plain, supervised, killed, listened to, scored, improved while it runs."""

import asyncio
import re

import dspy
from dspy.lm15 import Request, ServerError

from promptside import ActorSystem, Endpoint, LMPool, Program, Service, Supervisor, evaluate
from promptside.testing import MockLM

CAPITALS = {"France": "Paris", "Japan": "Tokyo", "Kenya": "Nairobi", "Peru": "Lima"}
QUESTIONS = [f"What is the capital of {country}?" for country in CAPITALS]


class Find(dspy.Module):
    """Finds the facts on the country in the question."""

    async def aforward(self, question: str) -> dspy.Prediction:
        facts = [f"{CAPITALS[country]} is the capital of {country}." for country in CAPITALS if country in question]
        return dspy.Prediction(facts=facts)


class Atlas(dspy.Module):
    """Answers from facts."""

    def __init__(self) -> None:
        super().__init__()
        self.find = Find()
        self.answer = dspy.ChainOfThought("facts, question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        found = await self.find.acall(question=question)
        return await self.answer.acall(facts=found.facts, question=question)


def model(request: Request) -> str:
    """Stands for a language model: it repeats the fact, or one word of it if it is told to."""
    fact = re.search(r"(\w+) is the capital of \w+\.", str(request.messages))
    if fact is None:
        return "I do not know."
    return fact[1] if "one word" in str(request.system) else fact[0]


def down(request: Request) -> str:
    raise ServerError("bad gateway")


async def run_plainly() -> None:
    with dspy.context(lm=MockLM(model).lm()):
        prediction = await Atlas().acall(question=QUESTIONS[0])
    print("plain:", prediction.answer)


async def start(system: ActorSystem) -> Program:
    first = Endpoint("mock/first", engine=MockLM(down))
    second = Endpoint("mock/second", engine=MockLM(model, latency=0.1))
    pool = LMPool(first, second)
    atlas = Program(Atlas, name="atlas", lm=pool.lm(cache=False), attempts=2)
    await Supervisor.start(system, [pool.child_spec(), atlas.child_spec()], name="app")
    return atlas


service = Service(start, name="tutorial")


async def call(atlas: Program) -> None:
    predictions = await asyncio.gather(*(atlas.acall(question=question) for question in QUESTIONS * 5))
    print(len(predictions), "answers, such as", predictions[-1].answer)
    prediction = await asyncio.to_thread(atlas, question=QUESTIONS[0])
    print("from a thread:", prediction.answer)


async def kill(system: ActorSystem, atlas: Program) -> None:
    calls = [asyncio.create_task(atlas.acall(question=question)) for question in QUESTIONS]
    await asyncio.sleep(0.05)  # now they wait for the model
    atlas.submodule("find").kill()
    atlas.submodule("answer.predict").kill()
    print(len(await asyncio.gather(*calls)), "answers, and none lost")
    print(system.tree())


async def listen(system: ActorSystem, atlas: Program) -> None:
    async with system.events.subscribe("*") as stream:
        await atlas.acall(question="What is the capital of France?")
    async for event in stream:
        print(f"  {event.type:19} {event.source}")


DEVSET = [
    dspy.Example(question=question, answer=capital).with_inputs("question")
    for question, capital in zip(QUESTIONS, CAPITALS.values(), strict=True)
]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.answer == prediction.answer)


async def improve(atlas: Program) -> None:
    before = await evaluate(atlas, DEVSET, exact)
    better = atlas.copy()
    for predictor in better.predictors():
        predictor.signature = predictor.signature.with_instructions("Answer with one word.")
    await atlas.swap_state(better.dump_state())
    after = await evaluate(atlas, DEVSET, exact)
    print(f"score: {before.score}, then {after.score}")
    if after.score < before.score:
        await atlas.rollback()
    for version in atlas.versions:
        print(f"version {version.number} by {version.change}")


async def main() -> None:
    await run_plainly()
    async with service:
        atlas, system = service.app, service.system
        await call(atlas)
        await kill(system, atlas)
        await listen(system, atlas)
        await improve(atlas)


if __name__ == "__main__":
    asyncio.run(main())
