"""A pipeline: stages wired by the names of their fields, started as one supervision tree, called, mapped, streamed."""

import asyncio

import dspy

from promptside import ActorSystem, Pipeline, branch, parallel, stage
from promptside.errors import PipelineError
from promptside.testing import MockLM

FACTS = {
    "owl": "Owls hunt at night.",
    "night": "At night, the moths are out.",
    "moon": "The moon is full tonight.",
}


def search(question: str) -> list[str]:
    return [fact for word, fact in FACTS.items() if word in question]


async def count(question: str) -> int:
    return len(question.split())


retrieve = parallel(stage(search, outputs="context"), stage(count, outputs="words"))
brief = stage("context, question -> answer", name="brief")
thorough = stage(dspy.ChainOfThought("context, question -> answer"), name="thorough", outputs="answer")
answer = branch(lambda words: words < 5, {True: brief, False: thorough})

model = MockLM({"[[ ## question ## ]]\nWhy": "They follow the moths.", "default": "At night, when moths fly."})
rag = Pipeline(retrieve >> answer, name="rag", outputs="question, answer", lm=model.lm())


async def main() -> None:
    try:
        retrieve >> stage("passages, question -> answer", name="typo")
    except PipelineError as error:
        print(error, end="\n\n")

    async with ActorSystem() as system:
        await rag.start(system)
        print(system.tree(), end="\n\n")

        prediction = await rag(question="When do owls hunt?")
        print(prediction.answer)

        questions = ({"question": f"Why do {n} owls fly at night?"} for n in range(1, 1_000_000))
        async for prediction in rag.map(questions, max_concurrency=4):
            print(prediction.question, "->", prediction.answer)
            if prediction.question.startswith("Why do 3"):
                break

        async for piece in rag.stream(question="When do owls hunt?"):
            print(piece.text, end="|")
        print(piece.prediction.answer)


asyncio.run(main())
