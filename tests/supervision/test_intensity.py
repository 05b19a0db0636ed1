"""`add_restart`: the sliding window of restarts."""

from __future__ import annotations

from promptside.supervision.intensity import add_restart


def test_restarts_up_to_the_maximum_are_allowed_and_the_next_one_is_not() -> None:
    history: tuple[float, ...] = ()
    for now in (0.0, 1.0, 2.0):
        history, allowed = add_restart(history, now, 3, 5.0)
        assert allowed
    history, allowed = add_restart(history, 3.0, 3, 5.0)
    assert not allowed
    assert history == (0.0, 1.0, 2.0, 3.0)


def test_a_restart_leaves_the_window_only_when_it_is_older_than_the_window_is_long() -> None:
    assert add_restart((0.0,), 5.0, 1, 5.0) == ((0.0, 5.0), False)
    assert add_restart((0.0,), 5.1, 1, 5.0) == ((5.1,), True)


def test_no_restart_is_allowed_when_the_maximum_is_zero() -> None:
    assert add_restart((), 0.0, 0, 5.0) == ((0.0,), False)
