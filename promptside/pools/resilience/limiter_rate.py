"""`MeasuredRate`: how many requests a second a provider takes, measured between two of its refusals.

Used by `Limiter`, which says what was sent, what was refused, and when nothing is taken at all.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["EDGE", "LN2", "MeasuredRate", "ProbeSchedule"]

EDGE: Final = 1e-9
"""Tolerance for floats that should be equal."""

LN2: Final = math.log(2)

START: Final = 64.0
"""Requests a second at first, and after a long rest."""

ECHO: Final = 0.05
"""Seconds until a refusal is heard, at first."""

RESTART: Final = 10.0

RAMP: Final = 0.25
"""Seconds of full use in which the rate doubles while it is below what is known."""

SHARE: Final = 0.98
"""Share of the known rate that is used between two probes."""

SLACK: Final = 0.05
"""Seconds that the pace catches up after a late timer; there is no other burst."""

REST: Final = 60.0
"""Seconds without a request in which the rate halves, down to `START`."""

DOUBT: Final = 0.04
"""Share of the known rate that a probe adds at first: at least what the measurement may be wrong by."""

PROBE: Final = 0.5
PROBE_REQUESTS: Final = 12.0, 16.0
"""Seconds, and requests by how sure the known limit is, in which what a probe adds doubles: the longer counts."""

HOLD: Final = 1.0, 4.0
HOLD_REQUESTS: Final = 30.0, 60.0
"""The same from a refusal to the next probe: 4 s where others share the limit."""

FAR: Final = 1.25
MOST_PROBE: Final = 2.0
"""Shares of the known rate: a probe that was refused so late, or came so far, has found another limit."""

ENOUGH: Final = 60
"""Requests taken, of which a rate is measured; where there are as many."""

WRONG: Final = 0.85

FALL: Final = 0.5
"""Share of the known rate that one refusal leaves at least."""

SAME: Final = 0.1
"""Share by which two measurements of the same limit differ."""


class ProbeSchedule:
    """When a limit that was found is tried again, and how fast.

    Args:
        jitter: Draws from [0, 1), so that those who share a limit do not probe together.

    Attributes:
        until: When the next probe begins.
        doubt: Share of the limit that a probe adds at first.
        span: Seconds for which nothing was taken, the last times that happened.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.until = -math.inf
        self.doubt = DOUBT
        self.span = 0.0
        self.echo = ECHO
        self.caution = 1.0
        self.hurry_until = -math.inf
        self._jitter = jitter
        self._hold = 0.0
        self._sure = 0  # probes in a row that have found the same
        self._others = 0.0  # refusals that no probe explains, of the last few

    def found(self, now: float, rate: float, sent: int, *, probed: bool, same: bool) -> None:
        """A limit was met: leave it alone for a while.

        Args:
            now: Seconds.
            rate: Requests a second that are sent.
            sent: Requests of which the limit was learned.
            probed: Whether a probe met it.
            same: Whether it is where it was.
        """
        if probed:
            self._sure, self._others = min(3, self._sure + 1) if same else 0, self._others / 2
        elif sent >= 8:
            self._others = self._others / 2 + 1
            self._sure = 0 if sent > 30 or self._others > 1.4 else self._sure
        seconds = max(HOLD[0], self._requests(HOLD_REQUESTS) / rate)
        if self.shared:
            seconds = max(4.0, 20/rate)
        if now < self.hurry_until:
            seconds = max(1.0, 20 / rate)
        self._hold = max(seconds, self.span / 2) * (1 + 0.5 * self._jitter())
        self.until = now + self._hold
        self.doubt = min(0.5, max(DOUBT, 1 / max(1, sent)))

    @property
    def shared(self) -> bool:
        return self._others > 1.4

    def echoed(self, now: float) -> None:
        """What was sent before the limit was met is refused too."""
        if self.until < now + 2 * self._hold:
            self.until += self._hold / 4

    def doubling(self, known: float) -> float:
        """Seconds of use in which what a probe adds doubles."""
        if self.shared:
            return max(0.5, self.span / 3, 4 * self.echo)
        return max(PROBE, self._requests(PROBE_REQUESTS) * self.caution / known, self.span / 3, 4 * self.echo)

    def _requests(self, bounds: tuple[float, float]) -> float:
        few, many = bounds
        return min(many, few * 2.0**self._sure)


class Wall(NamedTuple):
    """A moment at which the provider had nothing left: a request that it refused.

    Attributes:
        number: The request.
        at: When it was sent.
        untaken: Requests before and with it that were refused, or never sent.
        paused: Seconds before it for which the pace was not kept.
    """

    number: int
    at: float
    untaken: int
    paused: float


class MeasuredRate:
    """The pace of requests, and what is known of the provider's.

    Args:
        most: Requests a second that are never exceeded.
        jitter: Draws from [0, 1).

    Attributes:
        rate: Requests a second that are sent while some wait.
        known: The same that the provider takes; inf until the first refusal.
        due: When the next request is.
        probes: When and how the known rate is exceeded.
    """

    def __init__(self, most: float, jitter: Callable[[], float]) -> None:
        self.rate = min(START, most)
        self.known = math.inf
        self.due = -math.inf
        self.probes = ProbeSchedule(jitter)
        self._most = most
        self._start: Wall | None = None  # where measuring began, with a bucket that may be full; None after a refusal
        self._walls: deque[Wall] = deque(maxlen=32)
        self._minute: deque[Wall] = deque(maxlen=62)
        self._reopened: Wall | None = None
        self._untaken = 0  # requests that were refused, or never sent
        self._paused = 0.0
        self._modest, self._bold, self._far, self._settled = 0, 0.0, False, False

    def send(self, number: int, now: float) -> None:
        """The request `number` goes out."""
        late = now - self.due
        if late > max(1.0, 10 / self.rate):  # nobody has waited
            self._begin(number - 1, now)
            self.rate = min(self.rate, SHARE * self.known)
            self.rate = max(min(self.rate, START), self.rate * 0.5 ** min(64.0, late / REST))
        elif late <= SLACK + 0.25 / self.rate:
            self._grow(number, now)
        self.due = max(self.due, now - SLACK) + 1 / self.rate
        if not self._minute or now >= self._minute[-1].at + 1:
            self._minute.append(Wall(number - 1, now, self._untaken, 0.0))

    def untaken(self) -> None:
        """A request was refused, or has never reached the provider."""
        self._untaken += 1

    def pause(self, seconds: float) -> None:
        """For so long the pace is not kept."""
        self._paused += seconds

    def refused(self, number: int, since: float, now: float, allowed: float) -> tuple[int, bool]:
        """The request `number`, sent at `since`, was one too many; others were taken since the last refusal."""
        wall = Wall(number, since, self._untaken, self._paused)
        before, (low, high, sent) = self.known, self._measured(wall)
        low, high = min(allowed, low), min(allowed, high)
        probed = self.rate > SHARE * before + EDGE
        own = False
        far = probed and self.rate > FAR * before
        if before == math.inf:
            probed, self.known = True, min(high, self.rate)
        elif far or (probed and self._modest == 0 and not self.probes.shared):
            self.known = max(low, math.sqrt(before * self.rate))
            self._settled = True
            self._bold, self._far = before, far or self._far
            if far:
                self.probes.caution = max(1.0, self.probes.caution / 2)
                self._walls.clear()
        elif probed:  # what was known was taken until now
            self.known = high if high < WRONG * before and sent > ENOUGH else max(low, before)
            self._modest = max(0, self._modest - 1)
            self._settled = True
        if not probed:
            self.known = low if low >= before else math.sqrt(low * max(low, min(high, before)))
            if self.probes.shared and low > 0.7 * before:
                self.known = 0.92 * before
            elif low > 0.7 * before:
                self.known += (before - self.known) * (1 - self.probes.caution ** -0.5)
            own = low < 0.985 * self.rate
            if self._bold and self.known > 0.7 * self._bold:
                self._modest = 8
                if self._far:
                    self.probes.caution = min(8.0, 2 * self.probes.caution)
            self._bold, self._far = 0.0, False
            if sent < ENOUGH and wall.paused == self._last_paused:
                self.known = max(self.known, FALL * before)
            if self.known < 0.7 * before:
                self._walls.clear()
                if self.probes.caution == 1.0 and self._settled:
                    self.probes.hurry_until = now + 60
        self._last_paused = wall.paused
        self._add(wall)
        self.rate = min(SHARE * self.known, self._most)
        if before == math.inf:
            self.rate /= 2
        self.due = max(self.due, now) + 2 / self.rate
        same = abs(self.known - before) < SAME * self.known
        self.probes.found(now, self.known, sent, probed=probed or own, same=same)
        return sent, before == math.inf or self.known < 0.7 * before

    _last_paused = 0.0

    def refused_again(self, number: int, since: float) -> Wall:
        """The request `number` was refused, and nothing was taken since the last refusal: that one."""
        last = self._walls.pop() if self._walls else Wall(number - 1, since, self._untaken - 1, self._paused)
        self._add(Wall(number, since, self._untaken, self._paused))
        return last

    def halve(self) -> None:
        """Nothing was taken since the last refusal."""
        self.rate /= 2

    def closed(self, until: float, now: float) -> None:
        """Nothing is taken, and nothing is sent before `until`."""
        self.pause(until - now)
        self.due = until
        self.rate = min(self.rate, RESTART, SHARE * self.known)

    def reopened(self, number: int, now: float) -> None:
        """One is taken again after a while in which nothing was; not the first time lately."""
        while len(self._minute) > 1 and self._minute[1].at <= now - 60:
            self._minute.popleft()
        wall = Wall(number, now, self._untaken, self._paused)
        if self._reopened is not None and now < self._reopened.at + 600:
            a, b = (number - w.number - (self._untaken - w.untaken) + 0.5 for w in (self._minute[0], self._reopened))
            self.known = min(self.known, max(a / 60, b / (now - self._reopened.at)))
            self.rate = min(self.rate, SHARE * self.known)
            self.probes.span = max(self.probes.span, 60.0)
        self._reopened = wall

    def cap(self, known: float) -> None:
        """The provider takes no more than this."""
        self.known = min(self.known, known)
        self.rate = min(self.rate, self.known)

    def _begin(self, number: int, now: float) -> None:
        self._walls.clear()
        self._start = Wall(number, now, self._untaken, self._paused)

    def _add(self, wall: Wall) -> None:
        self._start = None
        self._walls.append(wall)

    def _measured(self, wall: Wall) -> tuple[float, float, int]:
        """What was taken a second since an earlier wall, at least and at most, and of how many requests that is known.

        While the pace was not kept, the provider's bucket may have been full.
        """
        walls = [self._start] if self._start is not None else self._walls
        low = high = self.rate
        sent = 1
        for earlier in reversed(walls):
            sent = wall.number - earlier.number
            taken = max(0, sent - (wall.untaken - earlier.untaken)) + 0.5
            seconds = wall.at - earlier.at
            if seconds <= 0:
                continue
            low = taken / seconds
            high = taken / max(EDGE, seconds - (wall.paused - earlier.paused))
            if taken >= ENOUGH or 2 * (taken + 1) < self.known * (seconds- (wall.paused - earlier.paused)):
                break
        return low, high, sent

    def _grow(self, number: int, now: float) -> None:
        """A request goes out that has waited."""
        steady = SHARE * self.known
        if self.rate < steady:
            self.rate = min(steady, self.rate + LN2 / max(RAMP, 4 * self.probes.echo))
        elif now >= self.probes.until:
            added = self.rate - (1 - self.probes.doubt) * self.known
            hurry = 1 if now > self.probes.hurry_until else 2
            self.rate += added * LN2 / (self.probes.doubling(self.known)/hurry * self.rate)
            if self.rate > MOST_PROBE * self.known:
                self._bold, self._far = self.known, True
                self.known = self.rate
                self.probes.doubt = 0.15
                self._begin(number - 1, now)
        self.rate = min(self.rate, self._most)
