"""`Scores`: what the scores of an evaluation say, and how sure of it one can be.

Made by `evaluate`, as `Evaluation.scores`, and by users from whatever metrics return. It calls numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from promptside.checks import check, is_number
from promptside.texts import repr_of

__all__ = ["Scores"]

RESAMPLES = 2_000
"""Of a bootstrap: Efron and Tibshirani take at least 1,000 for an interval."""


class Scores:
    """Scores of examples, on the metric's own scale.

    ::

        result = await evaluate(program, devset, metric)
        print(result.scores)  # 0.830 (95% confidence: 0.745 to 0.891), n=100
        better = (result.scores - before.scores).interval()[0] > 0  # of another program on the same devset

    Args:
        scores: What a metric returned, example by example: bools, ints, floats, or predictions with a `score`.

    Attributes:
        values: (n,), float64, in the order of the examples.

    Raises:
        ValueError: There are none, or one is no number.
    """

    __slots__ = ("_is_difference", "values")

    def __init__(self, scores: Iterable[Any]) -> None:
        valid = isinstance(scores, Iterable) and not isinstance(scores, str | bytes)
        check("Scores", "scores", scores, valid, "give the score of each example, in a list or another iterable")
        self.values: NDArray[np.float64] = np.fromiter(map(_number, scores), np.float64)
        check("Scores", "scores", scores, self.values.size > 0, "give at least one score")
        self._is_difference = False

    def __len__(self) -> int:
        return self.values.size

    @property
    def mean(self) -> float:
        """The mean; a hundredth of DSPy's `score`, which is a percentage."""
        return float(self.values.mean())

    @property
    def std(self) -> float:
        """The sample's standard deviation (n - 1 in the denominator); 0.0 for a single score."""
        return float(self.values.std(ddof=1)) if self.values.size > 1 else 0.0

    def percentile(self, q: float) -> float:
        """The score that `q` percent of the examples do not exceed, interpolated linearly.

        Args:
            q: In [0, 100].

        Raises:
            ValueError: `q` is out of range.
        """
        check("percentile", "q", q, is_number(q) and 0 <= q <= 100, "give a number from 0 to 100")
        return float(np.percentile(self.values, q))

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """An interval for the mean that another sample of such examples would have.

        Where all scores are 0 or 1, it is Wilson's score interval (E. B. Wilson, "Probable Inference, the Law of
        Succession, and Statistical Inference", 1927), which is honest for few examples too: 20 right of 20 give 0.84 to
        1. Otherwise it is the percentile bootstrap (B. Efron and R. Tibshirani, "An Introduction to the Bootstrap",
        1993, chapter 13) with 2,000 resamples of a fixed seed; for fewer than some 20 examples it is too narrow. Both
        take the examples to be independent of each other.

        Cost: the bootstrap O(2,000 n): 0.03 s for 1,000 examples, 2 s for 100,000.

        Args:
            confidence: In (0, 1).

        Raises:
            ValueError: `confidence` is out of range.
        """
        valid = is_number(confidence) and 0 < confidence < 1
        check("interval", "confidence", confidence, valid, "give a number between 0 and 1, such as 0.95")
        if not self._is_difference and np.isin(self.values, (0.0, 1.0)).all():
            return self._wilson(NormalDist().inv_cdf((1 + confidence) / 2))
        generator, n = np.random.default_rng(0), self.values.size
        rows = max(1, 1_000_000 // n)  # at a time, for the sake of memory
        means = [
            self.values[generator.integers(n, size=(min(rows, RESAMPLES - begun), n))].mean(axis=1)
            for begun in range(0, RESAMPLES, rows)
        ]
        low, high = np.quantile(np.concatenate(means), ((1 - confidence) / 2, (1 + confidence) / 2))
        return float(low), float(high)

    def _wilson(self, z: float) -> tuple[float, float]:
        n, p = self.values.size, self.mean
        middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
        half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
        return max(0.0, middle - half), min(1.0, middle + half)

    def __sub__(self, other: Scores) -> Scores:
        """The differences, example by example: to compare two programs on the same examples, in the same order.

        Its interval is narrower than those of the two, for how hard an example is cancels out.

        Raises:
            ValueError: The two are not of the same number of examples.
        """
        valid = isinstance(other, Scores) and len(self) == len(other)
        check("Scores", "other", other, valid, f"give scores of the same {len(self)} examples")
        difference = Scores(self.values - other.values)
        difference._is_difference = True
        return difference

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.mean:.3f} (95% confidence: {low:.3f} to {high:.3f}), n={len(self)}"

    def __repr__(self) -> str:
        return f"Scores(mean={self.mean:.4g}, std={self.std:.4g}, n={len(self)})"


def _number(score: Any) -> float:
    try:
        return float(score)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Scores: scores: {repr_of(score)} is no score; give what a metric returned") from error
