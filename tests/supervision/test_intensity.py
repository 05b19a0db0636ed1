"""`RestartWindow`: the sliding window of restarts."""

from __future__ import annotations

from promptside.supervision.intensity import RestartWindow


def test_restarts_up_to_the_maximum_are_allowed_and_the_next_one_is_not() -> None:
    window = RestartWindow(3, 5.0)
    assert [window.add(now, "a", "why") for now in (0.0, 1.0, 2.0, 3.0)] == [True, True, True, False]
    assert window.history == (("a", "why"),) * 4


def test_a_restart_leaves_the_window_only_when_it_is_older_than_the_window_is_long() -> None:
    window = RestartWindow(1, 5.0)
    assert window.add(0.0, "a", "first")
    assert not window.add(5.0, "b", "second")
    assert not window.add(5.1, "c", "third")
    assert window.history == (("b", "second"), ("c", "third"))
    assert window.add(10.2, "d", "fourth")


def test_no_restart_is_allowed_when_the_maximum_is_zero() -> None:
    assert not RestartWindow(0, 5.0).add(0.0, "a", "why")
