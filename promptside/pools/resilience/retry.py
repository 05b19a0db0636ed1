"""Retries: how often and how soon a failed attempt is made again, and how many of all calls may be.

`RetryConfig` is given to an `LMPool`; its dispatcher asks it and the `RetryBudget` after each failed round. Pure.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from promptside.checks import check, check_count, check_seconds

__all__ = ["RetryBudget", "RetryConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """How often and how soon a failed attempt is made again.

    Args:
        attempts: Rounds over the route, the first included, >= 1.
        base: Seconds; the wait before round n is drawn from [0, base * 2**(n-1)) (full jitter).
        cap: Seconds that no drawn wait exceeds; a provider's Retry-After may.
        limited: Refusals for too many requests (HTTP 429) after which a call gives up, >= 1. They are no rounds: the
            endpoint's gate says when the next attempt is made.
        budget: Share of the calls of the last 10 s that may be repeated, >= 0, so that an outage does not multiply the
            traffic; a call that may not is as one whose attempts are used up.
        reserve: Repetitions within 10 s that are allowed whatever the share, >= 0.

    Raises:
        ValueError: A field is out of its range.
    """

    attempts: int = 3
    base: float = 0.2
    cap: float = 8.0
    limited: int = 20
    budget: float = 0.2
    reserve: int = 50

    def __post_init__(self) -> None:
        check_count("RetryConfig", "attempts", self.attempts)
        check_seconds("RetryConfig", "base", self.base, zero=True)
        check_seconds("RetryConfig", "cap", self.cap, zero=True)
        check_count("RetryConfig", "limited", self.limited)
        valid = isinstance(self.budget, int | float) and self.budget >= 0
        check("RetryConfig", "budget", self.budget, valid, "give a share >= 0")
        check_count("RetryConfig", "reserve", self.reserve, least=0)

    def delay(self, round_: int, retry_after: float) -> float:
        """Seconds to wait after the failed round `round_`, counted from 1, of which a provider asked `retry_after`."""
        drawn = random.uniform(0, min(self.cap, self.base * 2.0 ** (round_ - 1)))  # noqa: S311 - jitter, not a secret
        return max(drawn, retry_after)


class RetryBudget:
    """Counts calls and repetitions of the last seconds.

    Args:
        share: Repetitions for each call.
        reserve: Repetitions beyond that.
        window: Seconds.
    """

    def __init__(self, share: float, reserve: int, window: float = 10.0) -> None:
        self._share = share
        self._reserve = reserve
        self._window = window
        self._calls: deque[float] = deque()
        self._repeated: deque[float] = deque()

    def call(self, now: float) -> None:
        """A call has begun."""
        self._forget(now)
        self._calls.append(now)

    def take(self, now: float) -> bool:
        """Whether a call may be repeated now, which is then counted."""
        self._forget(now)
        if len(self._repeated) >= self._reserve + self._share * len(self._calls):
            return False
        self._repeated.append(now)
        return True

    def _forget(self, now: float) -> None:
        for times in (self._calls, self._repeated):
            while times and times[0] <= now - self._window:
                times.popleft()
