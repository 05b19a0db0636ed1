"""`Evaluation`: what `evaluate` returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dspy.evaluate import EvaluationResult

from promptside.programs.evaluation.scores import Scores

__all__ = ["Evaluation"]


class Evaluation(EvaluationResult):
    """DSPy's `EvaluationResult`, with statistics of its scores, and the errors of the examples that failed.

    Attributes:
        score: 100 times the mean score, rounded to two places.
        results: ``(example, prediction, score)`` for each example, in the order of the devset; empty with
            ``keep_results=False``. The score is as the metric returned it, or `failure_score` for one that failed.
    """

    def __init__(self, score: float, results: list[Any], scores: Scores, errors: dict[int, Exception]) -> None:
        super().__init__(score=score, results=results)
        self._scores = scores
        self._errors = errors

    @property
    def scores(self) -> Scores:
        """All scores, on the metric's own scale."""
        return self._scores

    @property
    def errors(self) -> Mapping[int, Exception]:
        """The exceptions of the examples that failed, their metrics included, by their index in the devset."""
        return self._errors
