"""The README's first program: an LM pool, a supervised program, a crash, and the tree afterwards."""

import asyncio

import dspy

from promptside import ActorSystem, Endpoint, LMPool, Program
from promptside.testing import MockLM


async def main() -> None:
    async with ActorSystem() as system:
        model = MockLM({"France": "Paris", "Japan": "Tokyo", "default": "I do not know"})
        pool = await LMPool(Endpoint("mock/atlas", engine=model)).start(system)
        atlas = await Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm()).start(system)

        print((await atlas.acall(question="What is the capital of France?")).answer)
        async with system.events.subscribe("actor.restarted") as restarts:
            atlas.ref.kill()  # a crash: its supervisor starts it again
            event = await anext(restarts)
        print(event.type, event.source)
        print((await atlas.acall(question="What is the capital of Japan?")).answer)
        print(system.tree())


asyncio.run(main())
