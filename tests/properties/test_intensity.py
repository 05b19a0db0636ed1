"""The restart window against a model that forgets nothing."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from promptside.supervision.intensity import RestartWindow

pauses = st.one_of(st.just(0.0), st.sampled_from([0.5, 1.0, 5.0]), st.floats(0, 20))


@given(
    max_restarts=st.integers(0, 4),
    max_seconds=st.one_of(st.sampled_from([0.5, 1.0, 5.0]), st.floats(0.001, 30)),
    restarts=st.lists(st.tuples(pauses, st.sampled_from("abc")), max_size=30),
)
def test_a_restart_is_allowed_as_long_as_the_last_seconds_saw_no_more_than_the_maximum(
    max_restarts: int, max_seconds: float, restarts: list[tuple[float, str]]
) -> None:
    window = RestartWindow(max_restarts, max_seconds)
    ever: list[tuple[float, str, int]] = []
    now = 0.0
    for reason, (pause, child) in enumerate(restarts):
        now += pause
        ever.append((now, child, reason))
        recent = [(child, reason) for then, child, reason in ever if now - then <= max_seconds]
        assert window.add(now, child, reason) == (len(recent) <= max_restarts)
        assert window.history == tuple(recent)
