"""The waits of retries, breakers and limiters: right after any number of failures."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from promptside.pools import BreakerConfig, CircuitBreaker, LimiterConfig, RetryConfig
from promptside.pools.resilience.limiter import Limiter

SECONDS = st.floats(0.001, 1000)
DRAWN = st.floats(0, 1, exclude_max=True)


@given(failures=st.integers(1, 10**9), initial=st.just(0.0) | SECONDS, maximum=st.just(0.0) | SECONDS)
def test_a_retry_waits_no_longer_than_its_maximum(failures: int, initial: float, maximum: float) -> None:
    config = RetryConfig(initial=initial, maximum=maximum)
    longest = min(maximum, initial * 2.0 ** min(failures - 1, 100))
    assert 0 <= config.delay(failures, 0.0) <= longest
    assert config.delay(failures, maximum + 1) == maximum + 1


@given(open_for=SECONDS, maximum=SECONDS, jitter=DRAWN, drawn=DRAWN, failures=st.integers(1, 60))
def test_a_breaker_stays_open_for_twice_as_long_after_each_failed_probe(
    open_for: float, maximum: float, jitter: float, drawn: float, failures: int
) -> None:
    config = BreakerConfig(min_calls=1, open_for=open_for, max_open_for=maximum, jitter=jitter)
    breaker = CircuitBreaker(config, jitter=lambda: drawn)
    assert open_times(breaker, failures) == pytest.approx(
        [min(max(open_for, maximum), open_for * 2.0**n) * (1 - jitter * drawn) for n in range(failures)]
    )


def test_ten_thousand_failures_wait_as_long_as_is_allowed() -> None:
    retry = RetryConfig(initial=0.2, maximum=8.0)
    assert all(0 <= retry.delay(n, 0.0) <= 8.0 for n in range(1, 10_001))
    breaker = CircuitBreaker(BreakerConfig(min_calls=1, open_for=5.0, max_open_for=60.0, jitter=0))
    assert open_times(breaker, 10_000)[-1] == pytest.approx(60.0)
    limiter = Limiter(1, LimiterConfig(max_pause=30.0), jitter=lambda: 0.0)
    assert closed_times(limiter, 10_000)[-1] == pytest.approx(30.0)


def open_times(breaker: CircuitBreaker, failures: int) -> list[float]:
    """Seconds for which it stays open after each of so many failures in a row."""
    now, times = 0.0, []
    for _ in range(failures):
        permit = breaker.acquire(now)
        assert permit is not None
        breaker.record(permit, "failure", now)
        times.append(breaker.retry_after(now))
        now += times[-1] * (1 + 1e-9)
    return times


def closed_times(limiter: Limiter, refusals: int) -> list[float]:
    """Seconds for which its gate is closed after each of so many refusals in a row."""
    now, times = 0.0, []
    for _ in range(refusals):
        now += limiter.wait(now)
        slot = limiter.admit(now)
        assert slot is not None
        limiter.release(slot, "limited", now)
        times.append(limiter.closed_for(now))
    return times
