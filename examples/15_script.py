"""A script without asyncio: a pool for its LM calls, in a `with` block.

A function stands for the language model; in your script, give the names of models: LMPool("openai/gpt-4o-mini", ...).
"""

from __future__ import annotations

import dspy

from promptside import Endpoint, LMPool, Program, session
from promptside.testing import MockLM

MODEL = MockLM({"France": "Paris", "Japan": "Tokyo", "default": "I do not know"})


def main() -> None:
    with LMPool(Endpoint("mock/atlas", engine=MODEL)) as pool:
        atlas = dspy.Predict("question -> answer")
        with dspy.context(lm=pool.lm()):  # or, for the whole script: dspy.configure(lm=pool.lm())
            print(atlas(question="What is the capital of France?").answer)

            with session("ada"):  # its calls are counted under this name
                print(atlas(question="What is the capital of Japan?").answer)
        print("calls of ada:", pool.costs()["by_session"]["ada"]["calls"])

        with Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm()) as program:
            print("supervised:", program(question="What is the capital of France?").answer)


if __name__ == "__main__":
    main()
