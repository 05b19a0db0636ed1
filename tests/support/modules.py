"""DSPy modules and actors that the tests of programs share."""

from __future__ import annotations

import threading
from typing import Any

import dspy

from promptside.testing import MockLM


class Answer(dspy.Module):  # type: ignore[misc]
    """Asynchronous, as most of DSPy's own modules are."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.calls = 0

    def forward(self, question: str) -> dspy.Prediction:
        self.calls += 1
        return self.predict(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        self.calls += 1
        prediction = await self.predict.acall(question=question)
        return dspy.Prediction(answer=prediction.answer, calls=self.calls)


class SyncAnswer(dspy.Module):  # type: ignore[misc]
    """Synchronous: it has no `aforward` and must run in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        answer = self.predict(question=question).answer
        return dspy.Prediction(answer=answer, thread=threading.get_ident())


class Failing(dspy.Module):  # type: ignore[misc]
    """Raises what it is given."""

    async def aforward(self, error: Exception | None) -> dspy.Prediction:
        if error is not None:
            raise error
        return dspy.Prediction(answer="well")


def lm(answer: Any, **options: Any) -> dspy.LM:
    return MockLM(answer, **options).lm()
