"""`Backoff`: its waits and its settings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from promptside import Backoff


def test_the_wait_grows_by_its_factor_up_to_its_maximum() -> None:
    exact = Backoff(initial=1.0, maximum=10.0, jitter=0.0)
    assert [exact.delay(n, 0.9) for n in (1, 2, 3, 4, 5, 5000)] == pytest.approx([1, 2, 4, 8, 10, 10])


@pytest.mark.parametrize("factor", [2, 2.0, 10.0])
def test_the_wait_is_its_maximum_after_any_number_of_failures(factor: float) -> None:
    wait = Backoff(initial=0.1, maximum=7.0, factor=factor, jitter=0.0)
    assert [wait.delay(n, 0.0) for n in (1_024, 1_025, 10_000, 10**9)] == [7.0] * 4


def test_jitter_takes_a_random_share_off_the_wait() -> None:
    assert Backoff(initial=1.0, jitter=0.5).delay(1, 0.5) == pytest.approx(0.75)
    assert Backoff(initial=1.0, jitter=1.0).delay(2, 0.5) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": 0}, "initial=0: give seconds > 0"),
        ({"initial": 2, "maximum": 1}, "maximum=1: give seconds >= initial=2"),
        ({"maximum": math.inf}, "maximum=inf"),
        ({"factor": 0.5}, "factor=0.5: give a factor >= 1"),
        ({"jitter": 1.5}, "jitter=1.5: give a share between 0 and 1"),
        ({"jitter": True}, "jitter=True: give a share between 0 and 1"),
        ({"reset_after": "soon"}, "reset_after='soon'"),
    ],
)
def test_an_invalid_backoff_names_the_field_the_value_and_the_remedy(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError) as invalid:
        Backoff(**arguments)
    assert message in str(invalid.value)
