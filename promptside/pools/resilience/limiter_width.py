"""`MeasuredWidth`: how many requests a provider has under way at a time, where it is that what it limits.

Used by `Limiter`. Pure: `now` is passed in.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from promptside.pools.resilience.limiter_probes import EDGE, LN2, SAME, ProbeSchedule

__all__ = ["MeasuredWidth"]

REFUSALS: Final = 6
"""Refusals that show a width: they came at one width and at different rates."""

WASTE: Final = 3, 0.04
"""Refusals, and a share of the requests since it was found, that a width explains; more, and it is no width."""


@dataclass(slots=True)
class _Refusal:
    """A refusal: its request, when that was sent, with how many under way, and what the rate was.

    `taken_with` is the most that were under way with one that was taken, of those sent between it and the next.
    """

    number: int
    since: float
    used: int
    rate: float
    taken_with: int = 0


class MeasuredWidth:
    """Requests under way that the provider takes.

    Args:
        probes: When and how it is exceeded.

    Attributes:
        limit: How many; inf where it is not that what is limited.
        latency: Seconds until an answer, smoothed; 0 before the first.
    """

    def __init__(self, probes: ProbeSchedule) -> None:
        self.limit = math.inf
        self.latency = 0.0
        self._probes = probes
        self._found = 0
        self._grown_at = -math.inf
        self._first = self._refused = self._row = 0  # since the width was found
        self._refusals: deque[_Refusal] = deque(maxlen=REFUSALS)
        self._most, self._most_at = [0, 0], -math.inf  # under way with one that was taken: this minute, the one before

    def answered(self, number: int, used: int, since: float, now: float, held: int) -> None:
        """A request that was sent with so many under way was answered, and so many are now."""
        self.latency += (now - since - self.latency) * (0.125 if self.latency else 1.0)
        if now > self._most_at + 60:
            self._most, self._most_at = [0, self._most[0]], now
        self._most[0] = max(self._most[0], used)
        last = next((each for each in reversed(self._refusals) if number > each.number), None)
        if last is not None:
            last.taken_with = max(last.taken_with, used)
        if self.limit < math.inf and held + 1 >= int(self.limit) and now >= self._probes.until:
            passed = min(0.1, now - self._grown_at)
            known = self.limit / max(self.latency, EDGE)
            self.limit += max(1.0, self.limit - self._found) * LN2 * passed / self._probes.doubling(now, known)
        self._grown_at = now

    def refused(self, number: int, used: int, now: float, *, in_row: bool) -> bool:
        """Whether the known width explains a refusal; else it is forgotten."""
        if self.limit == math.inf:
            return False
        self._row = self._row + 1 if in_row else 0
        self._refused += 1
        explained = self._refused <= WASTE[0] + WASTE[1] * (number - self._first)
        if explained and used > 0.9 * self._found and self._row < 3:
            self._find(max(1, used - 1), now)
            return True
        self.limit = math.inf
        self._refusals.clear()
        return False

    def full(self, number: int, used: int, now: float, held: int) -> bool:
        """Whether requests are refused in a row because of how many are under way: far more than were ever taken."""
        if used <= 2 * max(self._most) or held <= (0 if self.latency else 2):
            return False
        self._start(held, number, now)
        return True

    def shown(self, number: int, used: int, since: float, now: float, rate: float) -> float | None:
        """The highest rate of the last refusals, where they show that it is not the rate that is limited."""
        self._refusals.append(_Refusal(number, since, used, rate))
        least, most = (choose(each.used for each in self._refusals) for choose in (min, max))
        slow, fast = (choose(each.rate for each in self._refusals) for choose in (min, max))
        if len(self._refusals) < REFUSALS or since - self._refusals[0].since <= 2 * self.latency:
            return None
        if least < 4 or most > 1.1 * least + 1 or fast <= 1.4 * slow:
            return None
        if least < 0.96 * max(each.taken_with for each in self._refusals) - 1:
            return None
        self._start(least - 1, number, now)
        return fast

    def _start(self, width: int, number: int, now: float) -> None:
        self._first, self._refused, self._row = number, 0, 0
        self._find(width, now)

    def _find(self, width: int, now: float) -> None:
        same = abs(width - self._found) <= SAME * width + 1
        self.limit = self._found = width
        self._probes.found(now, width / max(self.latency, EDGE), 100, probed=True, same=same)
