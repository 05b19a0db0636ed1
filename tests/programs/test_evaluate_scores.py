"""`Scores`: figures of an evaluation, and the intervals against what the literature and simulation say."""

from __future__ import annotations

import statistics
from typing import Any

import dspy
import numpy as np
import pytest

from promptside.programs.evaluation.scores import Scores


def test_whatever_metrics_return_is_a_score() -> None:
    scores = Scores([True, False, 1, 0.5, np.float32(0.25), dspy.Prediction(score=0.75, feedback="so so")])
    assert scores.values.tolist() == [1.0, 0.0, 1.0, 0.5, 0.25, 0.75]
    assert scores.values.dtype == np.float64
    assert len(scores) == 6


def test_mean_deviation_and_percentiles_are_those_of_the_statistics_module() -> None:
    values = [0.1, 0.4, 0.4, 0.9, 0.2, 0.7]
    scores = Scores(values)
    assert scores.mean == pytest.approx(statistics.mean(values))
    assert scores.std == pytest.approx(statistics.stdev(values))
    assert scores.percentile(50) == pytest.approx(statistics.median(values))
    assert [scores.percentile(0), scores.percentile(100)] == [0.1, 0.9]
    assert Scores([0.5]).std == 0.0


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_the_interval_of_right_and_wrong_is_wilsons_as_printed_by_newcombe(
    right: int, of: int, low: float, high: float
) -> None:
    interval = Scores([True] * right + [False] * (of - right)).interval()
    assert interval == pytest.approx((low, high), abs=0.00006)


def test_all_right_is_not_certain() -> None:
    assert Scores([True] * 20).interval() == pytest.approx((0.8389, 1.0), abs=0.0001)
    assert Scores([1.0]).interval()[0] < 0.25


@pytest.mark.parametrize(("confidence", "least", "most"), [(0.95, 0.90, 0.98), (0.5, 0.42, 0.58)])
def test_the_bootstrap_holds_the_true_mean_about_as_often_as_it_says(
    confidence: float, least: float, most: float
) -> None:
    draw = np.random.default_rng(7)
    truth = 0.5
    held = 0
    for _ in range(300):
        low, high = Scores(draw.uniform(0, 1, 40)).interval(confidence)
        held += low <= truth <= high
    assert least <= held / 300 <= most


def test_the_same_scores_always_have_the_same_interval() -> None:
    values = np.linspace(0, 1, 50)
    assert Scores(values).interval() == Scores(values).interval()
    low, high = Scores(values).interval()
    wide = Scores(values).interval(0.99)
    assert wide[0] < low < 0.5 < high < wide[1]


def test_programs_are_compared_example_by_example() -> None:
    hard = np.linspace(0, 1, 50)  # the examples differ much, the programs little
    before, after = Scores(hard), Scores(hard + 0.02)
    assert before.interval()[1] > after.interval()[0], "apart, they could be the same"
    difference = after - before
    assert difference.mean == pytest.approx(0.02)
    assert difference.interval()[0] > 0.0
    assert (before - before).interval() == (0.0, 0.0), "zeros, and yet no wrong answers of which Wilson would know"
    with pytest.raises(ValueError, match="the same 50 examples"):
        after - Scores([1.0])


def test_figures_are_shown_as_a_reader_wants_them() -> None:
    scores = Scores([True] * 83 + [False] * 17)
    assert str(scores) == "0.830 (95% confidence: 0.745 to 0.891), n=100"
    assert repr(scores) == "Scores(mean=0.83, std=0.3775, n=100)"


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Scores([])
    for confidence in (0, 1, 95):
        with pytest.raises(ValueError, match=f"confidence={confidence}"):
            Scores([1.0]).interval(confidence)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda _: Scores(None), "Scores: scores=None: give the score of each example"),
        (lambda _: Scores("10"), "Scores: scores='10': give the score of each example"),
        (lambda _: Scores(["good"]), "Scores: scores: 'good' is no score"),
        (lambda scores: scores.percentile(None), "percentile: q=None: give a number from 0 to 100"),
        (lambda scores: scores.percentile(101), "percentile: q=101: give a number from 0 to 100"),
        (lambda scores: scores.interval("x"), "interval: confidence='x': give a number between 0 and 1"),
        (lambda scores: scores - 5, "Scores: other=5: give scores of the same 2 examples"),
    ],
)
def test_what_is_no_score_is_named_in_the_error(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call(Scores([0.0, 1.0]))
