"""`promptside.pools.resilience.breaker`: the state machine of a circuit breaker, with time passed in.

The tests lettered A to F are the faults that six published breakers were found to have.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promptside.pools import BreakerConfig, CircuitBreaker
from promptside.pools.resilience.breaker import BreakerState, Outcome, Permit


def acquire(breaker: CircuitBreaker, now: float) -> Permit:
    permit = breaker.acquire(now)
    assert permit is not None
    return permit


def run(breaker: CircuitBreaker, outcomes: list[Outcome], now: float = 0.0) -> None:
    for outcome in outcomes:
        breaker.record(acquire(breaker, now), outcome, now)


def opened(now: float = 0.0, **config: Any) -> CircuitBreaker:
    """A breaker that has just opened, after two failures."""
    breaker = CircuitBreaker(BreakerConfig(**{"min_calls": 2, "open_for": 5.0, "jitter": 0, **config}))
    run(breaker, ["failure", "failure"], now)
    assert breaker.state == "open"
    return breaker


def test_a_it_opens_on_consecutive_failures_and_refuses_until_its_time_is_over() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=3, open_for=5.0, jitter=0))
    run(breaker, ["failure", "failure"], now=1.0)
    assert breaker.state == "closed"
    run(breaker, ["failure"], now=1.0)
    assert breaker.state == "open"
    assert breaker.acquire(1.0) is None
    assert breaker.acquire(5.9) is None
    assert breaker.acquire(6.0) is not None


def test_b_a_hundred_calls_at_half_open_let_one_probe_through() -> None:
    breaker = opened()
    assert sum(breaker.acquire(5.0) is not None for _ in range(100)) == 1
    assert breaker.state == "half_open"


def test_b_as_many_probes_as_configured_are_let_through_and_all_must_succeed() -> None:
    breaker = opened(probes=3)
    probes = [permit for _ in range(100) if (permit := breaker.acquire(5.0)) is not None]
    assert len(probes) == 3
    for probe in probes[:2]:
        breaker.record(probe, "success", 5.1)
    assert breaker.state == "half_open"
    assert breaker.acquire(5.1) is None
    breaker.record(probes[2], "success", 5.2)
    assert breaker.state == "closed"


def test_c_a_steady_rate_at_the_threshold_opens_it_and_one_below_does_not() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=10, failure_rate=0.5))
    run(breaker, ["success", "failure"] * 5)
    assert breaker.state == "open"
    breaker = CircuitBreaker(BreakerConfig(min_calls=10, failure_rate=0.5))
    run(breaker, ["success", "success", "failure"] * 50)
    assert breaker.state == "closed"


def test_d_an_ignored_outcome_does_not_wipe_the_failures_before_it() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=3))
    run(breaker, ["failure", "failure", "ignored", "ignored", "failure"])
    assert breaker.state == "open"


def test_e_ignored_outcomes_never_open_it() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=1))
    run(breaker, ["ignored"] * 100)
    assert breaker.state == "closed"


def test_f_stale_outcomes_that_arrive_after_a_recovery_are_dropped() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=2, open_for=5.0))
    slow = [acquire(breaker, 0.0) for _ in range(50)]
    run(breaker, ["failure", "failure"])
    run(breaker, ["success"], now=5.0)
    assert breaker.state == "closed"
    for permit in slow:
        breaker.record(permit, "failure", 6.0)
    assert breaker.state == "closed"
    run(breaker, ["failure"], now=6.0)
    assert breaker.state == "closed", "one failure of this generation is below the minimum of two"


def test_a_stale_success_does_not_close_a_half_open_breaker() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=2, open_for=5.0))
    slow = acquire(breaker, 0.0)
    run(breaker, ["failure", "failure"])
    acquire(breaker, 5.0)
    breaker.record(slow, "success", 5.1)
    assert breaker.state == "half_open"


def test_a_success_never_opens_it() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=5))
    run(breaker, ["failure"] * 4 + ["success"] * 2)
    assert breaker.state == "closed"
    run(breaker, ["failure"])
    assert breaker.state == "open"


def test_failures_older_than_the_window_are_forgotten() -> None:
    breaker = CircuitBreaker(BreakerConfig(window=10.0, min_calls=3))
    run(breaker, ["failure", "failure"], now=0.0)
    run(breaker, ["failure"], now=10.1)
    assert breaker.state == "closed"
    run(breaker, ["failure", "failure"], now=10.1)
    assert breaker.state == "open"


def test_a_failing_probe_opens_it_again_for_the_whole_time() -> None:
    breaker = opened(max_open_for=5.0)
    run(breaker, ["failure"], now=6.0)
    assert breaker.state == "open"
    assert breaker.retry_after(6.0) == 5.0
    assert breaker.acquire(10.9) is None
    run(breaker, ["success"], now=11.0)
    assert breaker.state == "closed"


def test_each_failing_probe_in_a_row_doubles_the_time_it_is_open_up_to_a_bound() -> None:
    breaker = opened(max_open_for=18.0)
    now, times = 0.0, []
    for _ in range(4):
        times.append(breaker.retry_after(now))
        now += times[-1]
        run(breaker, ["failure"], now)
    assert times == [5.0, 10.0, 18.0, 18.0]
    now += 18.0
    run(breaker, ["success"], now)
    run(breaker, ["failure", "failure"], now)
    assert breaker.retry_after(now) == 5.0, "a probe that succeeds ends the row"


def test_the_time_it_is_open_is_drawn_a_little_shorter_but_never_below_what_the_provider_asks() -> None:
    config = BreakerConfig(min_calls=1, open_for=10.0, jitter=0.2)
    for drawn, open_for in ((0.0, 10.0), (0.5, 9.0), (1.0, 8.0)):
        breaker = CircuitBreaker(config, jitter=lambda drawn=drawn: drawn)  # type: ignore[misc]
        run(breaker, ["failure"])
        assert breaker.retry_after(0.0) == pytest.approx(open_for)
        breaker.reset()
        breaker.record(acquire(breaker, 0.0), "failure", 0.0, retry_after=9.5)
        assert breaker.retry_after(0.0) == max(open_for, 9.5)


def test_slow_answers_open_it_at_their_own_rate() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=4, slow_after=2.0, slow_rate=0.5))
    for began, ended in ((0.0, 1.9), (0.0, 2.0), (1.0, 2.0)):
        breaker.record(Permit(0, 1, began), "success", ended)
    assert breaker.state == "closed", "below the minimum of calls"
    breaker.record(Permit(0, 1, 0.0), "ignored", 9.0)
    assert breaker.state == "closed", "a caller that went away after long says nothing"
    breaker.record(Permit(0, 1, 0.0), "success", 9.0)
    assert breaker.state == "open"


def test_a_good_answer_never_opens_it_and_old_slow_ones_are_forgotten() -> None:
    breaker = CircuitBreaker(BreakerConfig(window=10.0, min_calls=2, slow_after=2.0, slow_rate=0.5))
    breaker.record(Permit(0, 1, 0.0), "success", 2.0)
    run(breaker, ["success"], now=2.0)
    assert breaker.state == "closed", "half are slow, but the last one was good"
    run(breaker, ["success", "success"], now=20.0)
    breaker.record(Permit(0, 1, 0.0), "success", 20.0)
    assert breaker.state == "closed", "one of three in the window"


def test_a_slow_probe_opens_it_again() -> None:
    breaker = opened(slow_after=2.0)
    probe = acquire(breaker, 5.0)
    breaker.record(probe, "success", 7.0)
    assert breaker.state == "open"
    run(breaker, ["success"], now=17.0)
    assert breaker.state == "closed"


def test_it_can_be_opened_by_hand_for_its_time() -> None:
    breaker = CircuitBreaker(BreakerConfig(open_for=5.0, jitter=0))
    stale = acquire(breaker, 0.0)
    breaker.force_open(1.0)
    assert (breaker.state, breaker.retry_after(1.0)) == ("open", 5.0)
    breaker.record(stale, "success", 2.0)
    run(breaker, ["success"], now=6.0)
    assert breaker.state == "closed"


def test_isolated_it_lets_nothing_through_until_it_is_reset() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=1))
    slow = acquire(breaker, 0.0)
    breaker.isolate()
    assert breaker.retry_after(1e9) == math.inf
    assert breaker.acquire(1e9) is None
    breaker.record(slow, "success", 1e9)
    assert breaker.state == "open"
    breaker.reset()
    assert breaker.retry_after(1e9) == 0
    run(breaker, ["success"], now=1e9)


def test_what_changes_nothing_is_not_told() -> None:
    changes: list[tuple[BreakerState, BreakerState]] = []
    breaker = CircuitBreaker(on_change=lambda before, after: changes.append((before, after)))
    breaker.reset()
    breaker.isolate()
    breaker.force_open(0.0)
    assert changes == [("closed", "open")]


def test_an_ignored_probe_gives_its_place_to_the_next_one() -> None:
    breaker = opened()
    probe = acquire(breaker, 5.0)
    assert breaker.acquire(5.0) is None
    breaker.record(probe, "ignored", 5.1)
    assert breaker.state == "half_open"
    assert breaker.acquire(5.1) is not None


def test_a_probe_that_is_never_recorded_does_not_leave_it_half_open_for_ever() -> None:
    breaker = opened(probe_timeout=30.0)
    lost = acquire(breaker, 5.0)
    assert breaker.acquire(34.9) is None
    assert breaker.retry_after(34.0) == pytest.approx(1.0)
    assert breaker.retry_after(35.0) == 0.0
    next_one = acquire(breaker, 35.0)
    assert breaker.acquire(36.0) is None
    breaker.record(next_one, "success", 36.0)
    assert breaker.state == "closed"
    breaker.record(lost, "failure", 37.0)
    assert breaker.state == "closed"


@pytest.mark.parametrize(("outcome", "state"), [("success", "closed"), ("failure", "open"), ("ignored", "half_open")])
def test_a_probe_that_ends_after_its_deadline_decides_all_the_same(outcome: Outcome, state: str) -> None:
    breaker = opened(probe_timeout=30.0)
    late = acquire(breaker, 5.0)
    acquire(breaker, 40.0)
    breaker.record(late, outcome, 135.0)
    assert breaker.state == state


def test_a_probe_recorded_twice_counts_once() -> None:
    breaker = opened(probes=2)
    probe = acquire(breaker, 5.0)
    breaker.record(probe, "success", 5.1)
    breaker.record(probe, "success", 5.1)
    assert breaker.state == "half_open"


def test_a_providers_retry_after_is_the_floor_of_the_open_time() -> None:
    breaker = CircuitBreaker(BreakerConfig(min_calls=1, open_for=5.0, jitter=0))
    breaker.record(acquire(breaker, 0.0), "failure", 0.0, retry_after=60.0)
    assert breaker.retry_after(0.0) == 60.0
    breaker = CircuitBreaker(BreakerConfig(min_calls=1, open_for=5.0, jitter=0))
    breaker.record(acquire(breaker, 0.0), "failure", 0.0, retry_after=1.0)
    assert breaker.retry_after(0.0) == 5.0


def test_retry_after_counts_down_and_is_zero_when_an_attempt_may_be_made() -> None:
    breaker = opened()
    assert breaker.retry_after(0.0) == 5.0
    assert breaker.retry_after(4.0) == 1.0
    assert breaker.retry_after(5.0) == 0.0
    probe = acquire(breaker, 5.0)
    assert breaker.retry_after(5.0) == 30.0
    breaker.record(probe, "ignored", 5.0)
    assert breaker.retry_after(5.0) == 0.0
    run(breaker, ["success"], now=5.0)
    assert breaker.retry_after(5.0) == 0.0


def test_a_closed_breaker_starts_counting_anew() -> None:
    breaker = opened()
    run(breaker, ["success"], now=5.0)
    run(breaker, ["failure"], now=5.0)
    assert breaker.state == "closed"


def test_every_change_of_state_is_told_once_in_order() -> None:
    changes: list[tuple[BreakerState, BreakerState]] = []
    config = BreakerConfig(min_calls=1, open_for=5.0, jitter=0)
    breaker = CircuitBreaker(config, on_change=lambda before, after: changes.append((before, after)))
    run(breaker, ["failure"])
    run(breaker, ["failure"], now=5.0)
    run(breaker, ["success"], now=15.0)
    assert changes == [
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("open", "half_open"),
        ("half_open", "closed"),
    ]


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("window", 0, "give seconds > 0"),
        ("window", math.nan, "give seconds > 0"),
        ("min_calls", 0, "give a whole number >= 1"),
        ("min_calls", 2.5, "give a whole number >= 1"),
        ("failure_rate", 0, "give a share in (0, 1]"),
        ("failure_rate", 1.1, "give a share in (0, 1]"),
        ("failure_rate", "half", "give a share in (0, 1]"),
        ("slow_rate", 0, "give a share in (0, 1]"),
        ("slow_after", 0, "give seconds > 0"),
        ("open_for", -1.0, "give finite seconds > 0"),
        ("max_open_for", 0, "give finite seconds > 0"),
        ("jitter", 1, "give a share in [0, 1)"),
        ("probes", 0, "give a whole number >= 1"),
        ("probe_timeout", "30", "give seconds > 0"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value_and_the_remedy(field: str, value: object, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:
        BreakerConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"BreakerConfig: {field}={value!r}: {remedy}"


STEPS = st.lists(
    st.tuples(
        st.floats(0, 20),
        st.one_of(st.none(), st.tuples(st.integers(0, 30), st.sampled_from(["success", "failure", "ignored"]))),
    ),
    max_size=80,
)


@given(steps=STEPS, probes=st.integers(1, 3))
def test_whatever_happens_probes_are_bounded_and_refusals_end(steps: list[Any], probes: int) -> None:
    """Each step lets time pass, then acquires a permit, or records an outcome of one acquired before."""
    breaker = CircuitBreaker(BreakerConfig(min_calls=2, open_for=5.0, probes=probes, probe_timeout=10.0))
    now = 0.0
    permits: list[Permit] = []
    for seconds, step in steps:
        now += seconds
        if step is not None and permits:
            breaker.record(permits[step[0] % len(permits)], step[1], now)
            continue
        wait = breaker.retry_after(now)
        permit = breaker.acquire(now)
        if permit is None:
            assert wait > 0
            continue
        assert wait == 0
        permits.append(permit)
        assert sum(deadline > now for deadline in breaker._probes.values()) <= probes
    now += breaker.retry_after(now)
    assert breaker.acquire(now) is not None, "a breaker never refuses for ever"


def test_the_settings_of_a_breaker_are_a_config() -> None:
    with pytest.raises(ValueError, match=r"^CircuitBreaker: config=5: give a BreakerConfig"):
        CircuitBreaker(5)
