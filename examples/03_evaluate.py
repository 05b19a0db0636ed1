"""Sixteen reviews, sorted by a small model: with nothing but the task, and with two examples in its prompt.

Run it with `python examples/03_evaluate.py`. It uses a small model on this machine.
"""

import asyncio
import os
import sys
from typing import Literal

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy

from promptside import ActorSystem, Endpoint, LMPool, Program, evaluate
from promptside.pools import Capabilities, EmbeddedModelUnavailable, EmbeddedServer

REVIEWS = {
    "Thank you, the new dashboard is wonderful!": "good",
    "Your support solved it in five minutes. Great work.": "good",
    "I love the export, it saves me an hour every day.": "good",
    "Best tool we have bought this year.": "good",
    "The update is much faster, well done.": "good",
    "Everything works perfectly since yesterday, thanks.": "good",
    "What a friendly and helpful answer!": "good",
    "Setting it up was easy and fun.": "good",
    "The app crashes every time I log in.": "bad",
    "I was charged twice and nobody answers!": "bad",
    "This is the worst service I have ever had.": "bad",
    "We lost a whole day because of your outage.": "bad",
    "Still broken after three weeks. Unacceptable.": "bad",
    "I want my money back, it does not work.": "bad",
    "Your last update deleted my reports.": "bad",
    "The search is useless and terribly slow.": "bad",
}
DEVSET = [dspy.Example(review=review, rating=rating).with_inputs("review") for review, rating in REVIEWS.items()]
DEMOS = [
    dspy.Example(review="Fantastic, exactly what we needed!", rating="good"),
    dspy.Example(review="It failed again and I lost my work.", rating="bad"),
]


class Rate(dspy.Signature):
    """Decide whether the review is good or bad."""

    review: str = dspy.InputField()
    rating: Literal["good", "bad"] = dspy.OutputField()


def bare() -> dspy.Module:
    return dspy.Predict(Rate)


def taught() -> dspy.Module:
    module = dspy.Predict(Rate)
    module.demos = DEMOS
    return module


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.rating == prediction.rating)


async def compare(system: ActorSystem, lm: dspy.LM) -> None:
    programs = [await Program(source, name=source.__name__, lm=lm).start(system) for source in (bare, taught)]
    results = {
        program.name: await evaluate(program, DEVSET, exact, max_concurrency=4, display_progress=True)
        for program in programs
    }

    print(f"\n{'review':<54}{'gold':<8}{'bare':<8}taught")
    for (example, first, right), (_, second, too) in zip(*(each.results for each in results.values()), strict=True):
        ratings = [
            f"{given.get('rating', '')}{'' if good else ' x'}" for given, good in ((first, right), (second, too))
        ]
        print(f"{example.review:<54}{example.rating:<8}{ratings[0]:<8}{ratings[1]}")
    print()
    for name, result in results.items():
        print(f"{name:<8}{result.score:6.2f} %   {result.scores}")
    low, high = (results["taught"].scores - results["bare"].scores).interval()
    print(f"two examples in the prompt are worth {100 * low:.0f} to {100 * high:.0f} points")


async def main(server: EmbeddedServer) -> None:
    params = frozenset({"temperature", "max_tokens", "response_format"})
    supports = Capabilities(response_schema=True, params=params)  # else its answers would not be valid
    endpoint = Endpoint(f"openai/{server.model}", api_base=server.url, api_key="none", supports=supports)
    async with ActorSystem() as system:
        pool = await LMPool(endpoint).start(system)
        with dspy.context(adapter=dspy.JSONAdapter()):
            await compare(system, pool.lm(cache=False, temperature=0.0, max_tokens=24))


if __name__ == "__main__":
    try:
        with EmbeddedServer(max_concurrency=2, context=1024) as server:
            asyncio.run(main(server))
    except EmbeddedModelUnavailable as missing:
        sys.exit(str(missing))
