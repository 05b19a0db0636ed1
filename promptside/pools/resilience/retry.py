"""How often and how soon a failed attempt is repeated. Pure: no clock, no waiting.

A pool's dispatcher asks `RetryConfig` and `RetryBudget` after each failed round.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass

from promptside.backoff import Backoff
from promptside.checks import check, check_count, check_seconds, is_number

__all__ = ["RetryBudget", "RetryConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    """How often and how soon a failed attempt is repeated.

    Args:
        attempts: Rounds over the endpoints, the first included, >= 1.
        initial: Longest wait in seconds after the first round, >= 0; each further round doubles it. The wait is drawn
            from 0 to that (full jitter).
        maximum: Longest wait in seconds, >= 0. A provider's Retry-After may exceed it.
        max_rate_limited: Refusals for too many requests (HTTP 429) after which a call gives up, >= 1. They do not count
            as attempts: the endpoint's limiter says when the next one is made.
        retry_ratio: Retries for each call of the last 10 s, >= 0, so that an outage does not multiply the traffic. A
            call over this ratio fails as if its attempts were used up.
        min_retries: Retries within 10 s that are allowed whatever the ratio, >= 0.

    Raises:
        ValueError: A field is out of its range.
    """

    attempts: int = 3
    initial: float = 0.2
    maximum: float = 8.0
    max_rate_limited: int = 20
    retry_ratio: float = 0.2
    min_retries: int = 50

    def __post_init__(self) -> None:
        for field in ("initial", "maximum"):
            check_seconds("RetryConfig", field, getattr(self, field), zero=True, finite=True)
        for field, least in (("attempts", 1), ("max_rate_limited", 1), ("min_retries", 0)):
            check_count("RetryConfig", field, getattr(self, field), least=least)
        valid = is_number(self.retry_ratio) and self.retry_ratio >= 0
        check("RetryConfig", "retry_ratio", self.retry_ratio, valid, "give a number >= 0")

    def delay(self, round_: int, retry_after: float) -> float:
        """Seconds to wait after the failed round `round_`, counted from 1; at least a provider's `retry_after`."""
        initial = min(self.initial, self.maximum)
        if initial == 0:
            return retry_after
        backoff = Backoff(initial=initial, maximum=self.maximum, jitter=1.0)
        return max(backoff.delay(round_, random.random()), retry_after)  # noqa: S311 - jitter, not a secret


class RetryBudget:
    """Counts the calls and the retries of the last seconds.

    Args:
        ratio: Retries allowed for each call.
        least: Retries allowed beyond that.
        window: Seconds.
    """

    def __init__(self, ratio: float, least: int, window: float = 10.0) -> None:
        self._ratio = ratio
        self._least = least
        self._window = window
        self._calls: deque[float] = deque()
        self._retries: deque[float] = deque()

    def call(self, now: float) -> None:
        """Count a call that begins now."""
        self._drop_old(now)
        self._calls.append(now)

    def acquire(self, now: float) -> bool:
        """Whether a call may be retried now; if so, the retry is counted."""
        self._drop_old(now)
        if len(self._retries) >= self._least + self._ratio * len(self._calls):
            return False
        self._retries.append(now)
        return True

    def _drop_old(self, now: float) -> None:
        for times in (self._calls, self._retries):
            while times and times[0] <= now - self._window:
                times.popleft()
