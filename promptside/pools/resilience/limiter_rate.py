"""`MeasuredRate`: how many requests a second a provider takes, measured between its refusals.

Used by `Limiter`, which says what was sent, what was refused, and when nothing is taken at all. Pure: `now` is passed
in.

A refusal says that nothing is left. What was taken between two of them, by the time between, is the provider's rate,
whatever its bucket holds, and however long answers take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from promptside.pools.resilience.limiter_probes import EDGE, LN2, SAME, ProbeSchedule

__all__ = ["MeasuredRate"]

START: Final = 64.0
"""Requests a second at first, and after a long rest."""

RESTART: Final = 10.0
"""The same when the gate has opened."""

RAMP: Final = 0.25
"""Seconds of full use in which the rate doubles while it is below what is known; four times the echo at least."""

SHARE: Final = 0.98
"""Share of the known rate that is used between two probes."""

SLACK: Final = 0.05
"""Seconds that the pace catches up after a late timer; there is no other burst."""

REST: Final = 60.0
"""Seconds without a request in which the rate halves, down to `START`."""

ENOUGH: Final = 60
"""Requests taken of which a rate is measured, where there are as many."""

FAR: Final = 1.25
MOST_PROBE: Final = 2.0
"""Shares of the known rate: a probe that was refused so late, or came so far, has found another limit."""

FALL: Final = 0.5
"""Share of the known rate that is left at least by one refusal after a few requests."""

LOWER: Final = 0.7
"""Share of the known rate below which the limit is another one."""

WRONG: Final = 0.85
"""Share of the known rate below which a long measurement shows that it was wrong."""

YIELD: Final = 0.92
"""Share of the known rate that is left by a refusal where others use the limit, too."""

WINDOW: Final = 60.0
"""Seconds for which providers that count in windows count, most often."""

OFTEN: Final = 600.0
"""Seconds within which nothing is taken for a second time, where a provider counts in windows."""


class Moment(NamedTuple):
    """A request that was refused: nothing was left then. Or one from which on the provider is measured.

    Attributes:
        number: The request.
        at: When it was sent.
        untaken: Requests up to it that were refused, or never sent.
        paused: Seconds before it in which the pace was not kept.
    """

    number: int
    at: float
    untaken: int
    paused: float

    def taken(self, later: Moment) -> float:
        """Requests that were taken from here to a later one."""
        return max(0, later.number - self.number - (later.untaken - self.untaken)) + 0.5


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
        self._turn = -math.inf  # when the next request is due by that
        self._moments: deque[Moment] = deque(maxlen=32)  # refusals, or the one moment where measuring began
        self._is_start = False  # whether it is that one, when the bucket may have been full
        self._seconds: deque[Moment] = deque(maxlen=int(WINDOW) + 2)  # one in each second of use
        self._reopened: Moment | None = None
        self._untaken = 0  # requests that were refused, or never sent
        self._paused = 0.0
        self._before = 0.0  # the known rate before a probe raised it; 0 once a refusal has judged that
        self._far = False  # whether that was by much
        self._modest = 0  # probes that shall not raise it by a little, since that was wrong
        self._settled = False  # whether a probe has been refused

    def send(self, number: int, now: float, *, waited: bool) -> None:
        """The request `number` goes out; whether somebody was told to wait for it."""
        late = now - self.due
        if late > max(1.0, 10 / self.rate):  # nobody has waited
            self._begin(number - 1, now)
            self.rate = min(self.rate, SHARE * self.known)
            self.rate = max(min(self.rate, START), self.rate * 0.5 ** min(64.0, late / REST))
        elif waited or late <= SLACK + 0.25 / self.rate:
            self._grow(number, now)
        self._turn = max(self._turn, now - SLACK) + 1 / self._most
        self.due = max(self.due, now - SLACK) + 1 / self.rate
        if not self._seconds or now >= self._seconds[-1].at + 1:
            self._seconds.append(self._moment(number - 1, now))

    def untaken(self) -> None:
        """A request was refused, or has never reached the provider."""
        self._untaken += 1

    def pause(self, seconds: float) -> None:
        """The pace is not kept for so long."""
        self._paused += seconds

    def refused(self, number: int, since: float, now: float, allowed: float) -> int:
        """The request `number`, sent at `since`, was one too many; others were taken since the last refusal.

        Args:
            number: The request.
            since: When it was sent.
            now: Seconds.
            allowed: Requests a second that are most, by the refusal's headers.

        Returns:
            Requests of which the rate was learned.
        """
        moment, before = self._moment(number, since), self.known
        low, high, sent, kept = self._measured(moment, max(allowed, self._last_minute(moment)))
        probed = self.rate > SHARE * before + EDGE
        explained = True
        if before == math.inf:
            self.known = min(high, self.rate)
        elif probed:
            self._refuse_probe(low, high, sent)
        else:
            explained = low < 0.985 * self.rate
            self._refuse_pace(low, high, sent, now, kept=kept)
        if before == math.inf or self._far or self.known < LOWER * before:
            self._moments.clear()  # the earlier ones are of another limit
        self._add(moment)
        self.rate = min(SHARE * self.known, self._most) / (2 if before == math.inf else 1)
        self.due = max(self.due, now) + 2 / self.rate
        same = abs(self.known - before) < SAME * self.known
        self.probes.found(now, self.known, sent, probed=probed or explained, same=same)
        return sent

    def refused_again(self, number: int, since: float) -> float:
        """The request `number` was refused, and nothing was taken since the last refusal: when that was sent."""
        last = self._moments.pop() if self._moments else self._moment(number, since)
        self._add(self._moment(number, since))
        return last.at

    def halve(self) -> None:
        """Nothing was taken since the last refusal."""
        self.rate /= 2

    def close(self, now: float, until: float) -> None:
        """Nothing is taken, and nothing is sent before `until`."""
        self.pause(until - now)
        self.due = max(until, self._turn)
        self.rate = min(self.rate, RESTART, SHARE * self.known)

    def reopen(self, number: int, now: float) -> None:
        """One is taken again. Not for the first time lately: the provider counts in windows."""
        moment = self._moment(number, now)
        last, self._reopened = self._reopened, moment
        if last is not None and now < last.at + OFTEN:
            since = last.taken(moment) / max(1.0, now - last.at)
            self.known = min(self.known, max(self._last_minute(moment), since))
            self.rate = min(self.rate, SHARE * self.known)
            self.probes.span = max(self.probes.span, WINDOW)

    def free(self, known: float) -> None:
        """It is not the rate that is limited, or not below this."""
        self.known = max(self.known, known)

    def _moment(self, number: int, at: float) -> Moment:
        return Moment(number, at, self._untaken, self._paused)

    def _begin(self, number: int, now: float) -> None:
        self._moments.clear()
        self._moments.append(self._moment(number, now))
        self._is_start = True

    def _add(self, moment: Moment) -> None:
        if self._is_start:
            self._moments.clear()
        self._is_start = False
        self._moments.append(moment)

    def _last_minute(self, moment: Moment) -> float:
        """Requests a second that were taken in the last minute, at least: also where it was not as long."""
        first = next((each for each in reversed(self._seconds) if each.at <= moment.at - WINDOW), self._seconds[0])
        return first.taken(moment) / WINDOW

    def _measured(self, moment: Moment, allowed: float) -> tuple[float, float, int, bool]:
        """What was taken a second since an earlier refusal: at least, at most, of how many requests that is known.

        And whether the pace was kept; while it was not, the bucket may have been full. The latest refusal counts from
        which on enough were taken, or much less than was known.
        """
        low = high = self.rate
        sent, paused = 1, 0.0
        for earlier in reversed(self._moments):
            seconds = max(EDGE, moment.at - earlier.at)
            sent, taken = moment.number - earlier.number, earlier.taken(moment)
            paused = moment.paused - earlier.paused
            low, high = taken / seconds, taken / max(EDGE, seconds - paused)
            if taken >= ENOUGH or 2 * (taken + 1) < self.known * (seconds - paused):
                break
        return min(low, allowed), min(high, allowed), sent, paused == 0

    def _refuse_probe(self, low: float, high: float, sent: int) -> None:
        """What was known was taken until the probe."""
        before, far, self._settled = self.known, self.rate > FAR * self.known, True
        if far or (self._modest == 0 and not self.probes.shared):
            self.known = max(low, math.sqrt(before * self.rate))
            self._before, self._far = before, far
            if far:
                self.probes.caution = max(1.0, self.probes.caution / 2)
            return
        self._modest = max(0, self._modest - 1)
        self._far = False
        self.known = high if high < WRONG * before and sent > ENOUGH else max(low, before)

    def _refuse_pace(self, low: float, high: float, sent: int, now: float, *, kept: bool) -> None:
        """What was known is not taken: it was wrong, or is less now, or others take a part."""
        before = self.known
        self.known = low if low >= before else math.sqrt(low * max(low, min(high, before)))
        if low > LOWER * before:
            self.known += (before - self.known) * (1 - self.probes.caution**-0.5)
            if self.probes.shared:
                self.known = YIELD * before
        if kept and sent < ENOUGH:
            self.known = max(self.known, FALL * before)
        if self.known > LOWER * self._before > 0:  # it was a probe that was wrong
            self._modest = 8
            self.probes.caution = min(8.0, 2 * self.probes.caution) if self._far else self.probes.caution
        self._before, self._far = 0.0, False
        if self.known < LOWER * before and self._settled and self.probes.caution == 1:
            self.probes.fell(now)

    def _grow(self, number: int, now: float) -> None:
        """A request goes out that has waited."""
        steady = SHARE * self.known
        if self.rate < steady:
            self.rate = min(steady, self.rate + LN2 / max(RAMP, 4 * self.probes.echo))
        elif now >= self.probes.until:
            added = self.rate - (1 - self.probes.doubt) * self.known
            self.rate += added * LN2 / (self.probes.doubling(now, self.known) * self.rate)
            if self.rate > MOST_PROBE * self.known:
                self._before, self._far = self.known, True
                self.known = self.rate
                self.probes.doubt = 0.15
                self._begin(number - 1, now)
        self.rate = min(self.rate, self._most)
