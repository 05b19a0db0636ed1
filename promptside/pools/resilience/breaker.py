"""The circuit breaker: a synchronous state machine that is given `now`.

An endpoint of a pool, or `protect`, owns one: it acquires a permit before each attempt and records the outcome.

The semantics are resilience4j's (time window, minimum of calls, slow-call rate, permitted half-open calls), with three
differences. A permit belongs to the state that gave it; an outcome that arrives after a change of state is dropped. A
probe has a deadline, after which the next one is permitted: one whose caller vanished does not leave the breaker
half-open, and one that is answered late closes it all the same. Only a failure or a slow
answer opens the breaker, never a good one that completes the minimum of calls. As in Polly, each failed probe lengthens
the time for which it stays open, and `isolate` holds it open until `reset`.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from promptside.backoff import Backoff
from promptside.checks import check, check_count, check_seconds, is_number

__all__ = ["BreakerConfig", "BreakerState", "CircuitBreaker", "Outcome", "Permit"]

BreakerState = Literal["closed", "open", "half_open"]
Outcome = Literal["success", "failure", "ignored"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerConfig:
    """When a breaker opens, and how it closes again.

    Args:
        window: Seconds over which outcomes are counted, > 0.
        min_calls: Outcomes in the window below which no rate opens the breaker, >= 1.
        failure_rate: Share of failures in the window, in (0, 1], at which it opens.
        slow_after: Seconds from which an answer counts as slow, > 0; inf for never.
        slow_rate: Share of slow answers in the window, in (0, 1], at which it opens.
        open_for: Seconds it stays open before probes, > 0. Each failed probe doubles them. A provider's Retry-After is
            their minimum.
        max_open_for: Longest such time, > 0; `open_for` if that is longer.
        jitter: Random share of that time, in [0, 1), by which it opens earlier, so that processes which saw the same
            outage do not probe together.
        probes: Attempts while half-open, >= 1; all must succeed to close it.
        probe_timeout: Seconds after which a probe without an outcome gives its place to the next one, > 0.

    Raises:
        ValueError: A field is out of its range.
    """

    window: float = 30.0
    min_calls: int = 5
    failure_rate: float = 0.5
    slow_after: float = math.inf
    slow_rate: float = 0.5
    open_for: float = 5.0
    max_open_for: float = 60.0
    jitter: float = 0.1
    probes: int = 1
    probe_timeout: float = 30.0

    def __post_init__(self) -> None:
        for field in ("failure_rate", "slow_rate"):
            rate = getattr(self, field)
            valid = is_number(rate) and 0 < rate <= 1
            check("BreakerConfig", field, rate, valid, "give a share in (0, 1]")
        valid = is_number(self.jitter) and 0 <= self.jitter < 1
        check("BreakerConfig", "jitter", self.jitter, valid, "give a share in [0, 1)")
        for field in ("min_calls", "probes"):
            check_count("BreakerConfig", field, getattr(self, field))
        for field in ("window", "slow_after", "probe_timeout"):
            check_seconds("BreakerConfig", field, getattr(self, field))
        for field in ("open_for", "max_open_for"):
            check_seconds("BreakerConfig", field, getattr(self, field), finite=True)


@dataclass(frozen=True, slots=True)
class Permit:
    """Permission for one attempt, whose outcome is recorded once."""

    generation: int
    number: int
    since: float


class CircuitBreaker:
    """Closed until failures are too frequent, then open, then half-open for a few probes.

    Args:
        config: The thresholds.
        on_change: Called with the old and the new state.
        jitter: Draws from [0, 1).
    """

    def __init__(
        self,
        config: BreakerConfig | None = None,
        *,
        on_change: Callable[[BreakerState, BreakerState], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        valid = isinstance(config, BreakerConfig | None)
        check("CircuitBreaker", "config", config, valid, "give a BreakerConfig(...), or None")
        self.config = config or BreakerConfig()
        self.state: BreakerState = "closed"
        self._jitter = jitter
        self._on_change = on_change
        self._generation = 0
        self._numbers = 0
        self._outcomes: deque[tuple[float, bool, bool]] = deque()  # (time, failed, slow)
        self._failures = 0
        self._slow = 0
        self._reopen_at = 0.0
        self._openings = 0  # in a row, without having been closed between them
        self._probes: dict[int, float] = {}  # without an outcome: number of the permit -> its deadline
        self._probes_passed = 0

    def acquire(self, now: float) -> Permit | None:
        """Permission for one attempt; None while the circuit is open or all its probes are under way."""
        if self.state == "open" and now >= self._reopen_at:
            self._change_state("half_open")
        if self.state == "open":
            return None
        self._numbers += 1
        permit = Permit(self._generation, self._numbers, now)
        if self.state == "half_open":
            if self._probes_end(now):
                return None
            self._probes[permit.number] = now + self.config.probe_timeout
        return permit

    def record(self, permit: Permit, outcome: Outcome, now: float, *, retry_after: float | None = None) -> None:
        """Record the outcome of an attempt.

        Args:
            permit: From `acquire`; one of an earlier state is dropped.
            outcome: ``"ignored"`` where it says nothing about the provider: a cancellation, a caller's own mistake.
            now: Seconds, never before an earlier call's.
            retry_after: Seconds that the provider asked to wait, if it did.
        """
        if permit.generation != self._generation:
            return
        failed = outcome == "failure"
        slow = outcome == "success" and now - permit.since >= self.config.slow_after
        if self.state == "half_open":
            self._record_probe(permit, outcome, now, retry_after, slow=slow)
        elif outcome != "ignored":
            self._count(now, failed=failed, slow=slow)
            if (failed and self._reaches(self._failures, self.config.failure_rate)) or (
                slow and self._reaches(self._slow, self.config.slow_rate)
            ):
                self._open(now, retry_after or 0.0)

    def retry_after(self, now: float) -> float:
        """Seconds until an attempt may be let through; 0 when it may be tried now."""
        if self.state == "open":
            return max(0.0, self._reopen_at - now)
        deadlines = self._probes_end(now) if self.state == "half_open" else ()
        return min(deadlines) - now if deadlines else 0.0

    def force_open(self, now: float) -> None:
        """Open it as a failure would, for `open_for`; probes follow."""
        self._openings = 0
        self._open(now, 0.0)

    def isolate(self) -> None:
        """Hold it open until `reset`, also for probes."""
        self._reopen_at = math.inf
        self._change_state("open")

    def reset(self) -> None:
        """Close it and clear its counts."""
        self._openings = 0
        self._change_state("closed")

    def _probes_end(self, now: float) -> Sequence[float]:
        """The deadlines of the probes under way, if there are as many as may be; else none."""
        deadlines = [deadline for deadline in self._probes.values() if deadline > now]
        return deadlines if len(deadlines) + self._probes_passed >= self.config.probes else ()

    def _record_probe(
        self, permit: Permit, outcome: Outcome, now: float, retry_after: float | None, *, slow: bool
    ) -> None:
        if self._probes.pop(permit.number, None) is None:
            return
        if outcome == "failure" or slow:
            self._open(now, retry_after or 0.0)
        elif outcome == "success":
            self._probes_passed += 1
            if self._probes_passed >= self.config.probes:
                self.reset()

    def _count(self, now: float, *, failed: bool, slow: bool) -> None:
        outcomes = self._outcomes
        outcomes.append((now, failed, slow))
        self._failures += failed
        self._slow += slow
        while outcomes[0][0] < now - self.config.window:
            _, failed, slow = outcomes.popleft()
            self._failures -= failed
            self._slow -= slow

    def _reaches(self, count: int, rate: float) -> bool:
        total = len(self._outcomes)
        return total >= self.config.min_calls and count >= rate * total

    def _open(self, now: float, floor: float) -> None:
        config = self.config
        longest = max(config.open_for, config.max_open_for)
        backoff = Backoff(initial=config.open_for, maximum=longest, jitter=config.jitter)
        self._openings += 1
        self._reopen_at = now + max(backoff.delay(self._openings, self._jitter()), floor)
        self._change_state("open")

    def _change_state(self, state: BreakerState) -> None:
        before, self.state = self.state, state
        self._generation += 1
        self._outcomes.clear()
        self._failures = 0
        self._slow = 0
        self._probes.clear()
        self._probes_passed = 0
        if self._on_change is not None and before != state:
            self._on_change(before, state)
