"""The concurrency limiter of an endpoint: a synchronous state machine that is given `now`.

A `WaitQueue` owns one: it asks for a slot before each request and releases it afterwards.

The window follows AIMD (Chiu and Jain, 1989). A refusal for too many requests (HTTP 429) cuts it, once for all requests
under way; answers widen it again, slowly near the width at which it was refused last. All callers share one gate: a 429
closes it for its Retry-After, or without one for exponentially growing pauses. When the gate opens, the window starts
at one request and doubles quickly, so that one request meets the next refusal and not all that wait. Where retries
alone waste 57 to 79% of the requests, this wastes a few percent.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from promptside.backoff import Backoff
from promptside.checks import check, check_count, check_seconds, is_number

__all__ = ["Limiter", "LimiterConfig", "Release", "Slot"]

Release = Literal["success", "limited", "ignored"]

HEADROOM = 0.95
"""Share of a configured rate that is used, because the provider's clock differs."""

NEAR, FAR = 0.1, 1.0
"""Largest growth of a window in a second: near the width that was refused last, and elsewhere.

With 300 callers of a provider that allows 100 requests a second, a fourth of that for 6 s, and answers in 0.2 to 3 s, 2
to 4% of the requests were refused, and 4 to 8% with answers in 0.05 s. With equal growth everywhere, up to 12% were.
"""

PACE = 1.25
"""How much faster than its answers come a window may be used, once the provider has refused a request.

200 requests that are sent together return together, and a provider that counts in short intervals refuses most of each
wave: with answers of 2 s, 7 a second were answered in waves, and 29 with this pace.
"""

EDGE = 1e-9
"""Tolerance for floats that should be whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterConfig:
    """How the concurrency towards an endpoint follows what the provider allows.

    Args:
        initial_limit: Requests under way until the first one has ended, >= 1. After it the window opens to the number
            of connections.
        doubling_time: Seconds in which an opening window doubles, > 0: at first, and after the gate was closed.
        backoff_ratio: Share of the window that remains after a 429, in (0, 1).
        pause: Seconds for which a 429 without Retry-After closes the gate, > 0. Each further one doubles them.
        max_pause: Longest such pause in seconds, > 0.
        jitter: Largest share by which a Retry-After is exceeded, >= 0, so that processes do not return together.
        batch_share: Largest share of the window that batch calls hold, in (0, 1]; at least one slot.

    Raises:
        ValueError: A field is out of its range.
    """

    initial_limit: int = 32
    doubling_time: float = 0.05
    backoff_ratio: float = 0.5
    pause: float = 0.5
    max_pause: float = 30.0
    jitter: float = 0.1
    batch_share: float = 0.5

    def __post_init__(self) -> None:
        check_count("LimiterConfig", "initial_limit", self.initial_limit)
        for field in ("doubling_time", "pause", "max_pause"):
            check_seconds("LimiterConfig", field, getattr(self, field), finite=True)
        for field, most in (("backoff_ratio", 1 - EDGE), ("batch_share", 1)):
            value = getattr(self, field)
            valid = is_number(value) and 0 < value <= most
            check("LimiterConfig", field, value, valid, f"give a share in (0, 1{']' if most == 1 else ')'}")
        valid = is_number(self.jitter) and self.jitter >= 0
        check("LimiterConfig", "jitter", self.jitter, valid, "give a share >= 0")


@dataclass(frozen=True, slots=True)
class Slot:
    """Permission to have one request under way; released once."""

    number: int
    batch: bool
    since: float


class Limiter:
    """Slots for the requests to one endpoint.

    Args:
        most: Requests that may ever be under way, >= 1.
        config: How the window moves below that.
        rpm: Requests per minute that the provider allows; None for unknown.
        tpm: Tokens per minute, likewise. What a request uses is known only from its answer, so tokens are taken
            afterwards and the next request waits until they are there again.
        jitter: Draws from [0, 1).
        on_change: Called with the window and the seconds for which the gate is closed, when a 429 cuts the window and
            when the window has grown by a quarter or to its maximum.
    """

    def __init__(
        self,
        most: int,
        config: LimiterConfig | None = None,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        jitter: Callable[[], float] = random.random,
        on_change: Callable[[int, float], None] | None = None,
    ) -> None:
        self.most = most
        self.config = config or LimiterConfig()
        self.limit = float(most)
        self._jitter = jitter
        self._on_change = on_change
        self._published = self.limit
        self._held: dict[int, Slot] = {}
        self._batch = 0
        self._numbers = 0
        self._cut = 0  # the last slot given before the window was cut last
        self._refused_at = math.inf  # requests under way when it was
        self._opened_from = float(self.config.initial_limit)
        self._opened_at: float | None = None  # None until the first request has ended
        self._reopen_at = -math.inf
        self._pauses = 0
        self._latency = 0.0  # of answers, smoothed
        self._next_at = -math.inf
        self._grown_at = -math.inf
        self._growth = 0.0  # part of a second's growth that is left
        self._requests = None if rpm is None else _Bucket(rpm)
        self._tokens = None if tpm is None else _Bucket(tpm)

    @property
    def in_flight(self) -> int:
        """Slots that are held."""
        return len(self._held)

    def window(self, now: float) -> int:
        """Slots that may be held now, >= 1."""
        return max(1, int(min(self.limit, self._opening(now)) + EDGE))

    def closed_for(self, now: float) -> float:
        """Seconds until the gate opens; 0 when it is open."""
        return max(0.0, self._reopen_at - now)

    def admit(self, now: float, *, batch: bool = False) -> Slot | None:
        """A slot; None when none is free for this priority, the gate is closed, or the rate is used up.

        Args:
            now: Seconds, never before an earlier call's.
            batch: Whether the call's priority is ``"batch"``.
        """
        if self.wait(now, batch=batch) > 0:
            return None
        if self._requests is not None:
            self._requests.take(now, 1)
        self._numbers += 1
        slot = self._held[self._numbers] = Slot(self._numbers, batch, now)
        self._batch += batch
        if self._refused_at < math.inf:
            self._next_at = max(now, self._next_at) + self._latency / (PACE * self.limit)
        return slot

    def wait(self, now: float, *, batch: bool = False) -> float:
        """Seconds until `admit` may succeed without a release; inf when only a release helps."""
        if now < self._reopen_at:
            return self._reopen_at - now
        needed = len(self._held) + 1
        if batch and self._batch > 0:
            needed = max(needed, math.ceil((self._batch + 1) / self.config.batch_share - EDGE))
        if needed > int(self.limit + EDGE) and needed > 1:
            return math.inf
        room = 0.0
        if needed > self.window(now):
            if self._opened_at is None:
                return math.inf
            doublings = math.log2(needed / self._opened_from)
            room = max(EDGE, self._opened_at + doublings * self.config.doubling_time - now)
        buckets = (bucket.wait(now) for bucket in (self._requests, self._tokens) if bucket is not None)
        return max(room, self._next_at - now, *buckets, 0.0)

    def release(
        self, slot: Slot, outcome: Release, now: float, *, retry_after: float | None = None, tokens: int = 0
    ) -> None:
        """Give a slot back; a second time does nothing.

        Args:
            slot: What `admit` gave.
            outcome: ``"success"`` for an answer, ``"limited"`` for a refusal (HTTP 429), ``"ignored"`` for the rest.
            now: Seconds, never before an earlier call's.
            retry_after: Seconds that a refusal asked to wait, if it did.
            tokens: Tokens that the request used.
        """
        used = len(self._held)
        if self._held.pop(slot.number, None) is None:
            return
        self._batch -= slot.batch
        if self._opened_at is None:
            self._opened_at = now
        if self._tokens is not None:
            self._tokens.take(now, tokens)
        if outcome == "limited":
            self._refuse(slot, used, now, retry_after or 0.0)
        elif outcome == "success" and slot.number > self._cut:
            self._pauses = 0
            self._latency += (now - slot.since - self._latency) * (0.125 if self._latency else 1.0)
            if 2 * used >= self.window(now):  # an unused window says nothing about a wider one
                self._grow(now)

    def _opening(self, now: float) -> float:
        if self._opened_at is None:
            return self._opened_from
        doublings = max(0.0, (now - self._opened_at) / self.config.doubling_time)
        return math.inf if doublings > 64 else self._opened_from * 2.0**doublings

    def _grow(self, now: float) -> None:
        near = 0.8 * self._refused_at <= self.limit <= 1.5 * self._refused_at
        second = (NEAR if near else FAR) * self.limit
        self._growth = min(second, self._growth + second * min(1.0, now - self._grown_at))
        self._grown_at = now
        step = min(max(1.0 / self.limit, 0.1), self._growth)
        self._growth -= step
        self.limit = min(self.most, self.limit + step)
        if self.limit >= 1.25 * self._published or self.limit == self.most > self._published:
            self._publish(0.0)

    def _refuse(self, slot: Slot, used: int, now: float, retry_after: float) -> None:
        fresh = slot.number > self._cut
        before = self._reopen_at
        if retry_after > 0:
            self._reopen_at = max(before, now + retry_after * (1 + self.config.jitter * self._jitter()))
        elif fresh:
            longest = self.config.max_pause
            backoff = Backoff(initial=min(self.config.pause, longest), maximum=longest, jitter=0.5)
            self._pauses += 1
            self._reopen_at = max(before, now + backoff.delay(self._pauses, self._jitter()))
        if fresh:
            self._cut = self._numbers
            self._refused_at = min(self.limit, used)
            self.limit = max(1.0, self._refused_at * self.config.backoff_ratio)
        if self._reopen_at > before:
            self._opened_from, self._opened_at = 1.0, self._reopen_at
        if fresh:
            self._publish(self.closed_for(now))

    def _publish(self, closed_for: float) -> None:
        self._published = self.limit
        if self._on_change is not None:
            self._on_change(int(self.limit + EDGE), closed_for)


class _Bucket:
    """A token bucket that may be overdrawn. Its capacity is one second's refill, and at least one.

    Args:
        per_minute: Tokens that the provider allows in a minute.
    """

    def __init__(self, per_minute: float) -> None:
        self._rate = per_minute * HEADROOM / 60
        self._capacity = max(1.0, self._rate)
        self._level = self._capacity
        self._at = -math.inf

    def wait(self, now: float) -> float:
        """Seconds until it holds one token."""
        missing = 1.0 - self._refilled(now)
        return missing / self._rate if missing > EDGE else 0.0

    def take(self, now: float, amount: float) -> None:
        """Take tokens, also more than there are."""
        self._level = self._refilled(now) - amount
        self._at = now

    def _refilled(self, now: float) -> float:
        return min(self._capacity, self._level + (now - self._at) * self._rate)
