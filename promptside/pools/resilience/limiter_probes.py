"""`ProbeSchedule`: when a limit that was found is tried again, and how fast; for a rate and for a width.

Used by `limiter_rate` and `limiter_width`. Pure: `now` is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

__all__ = ["EDGE", "LN2", "SAME", "ProbeSchedule"]

EDGE: Final = 1e-9
"""Tolerance for floats that should be equal."""

LN2: Final = math.log(2)

SAME: Final = 0.1
"""Share by which two measurements of the same limit differ."""

ECHO: Final = 0.05
"""Seconds until a refusal is heard, at first."""

DOUBT: Final = 0.04
"""Share of a limit that a probe adds at first: at least what the measurement may be wrong by."""

PROBE: Final = 0.5
PROBE_REQUESTS: Final = 12.0, 16.0
"""Seconds, and requests by how sure the limit is, in which what a probe adds doubles: the longer counts."""

HOLD: Final = 1.0
HOLD_REQUESTS: Final = 30.0, 60.0
"""The same from a refusal to the next probe."""

OTHERS: Final = 4.0, 20.0
"""The same where others use the limit, too: alike for all, or those who send little would probe seldom."""

HURRY: Final = 60.0
HURRY_REQUESTS: Final = 20.0
"""Seconds after a limit has fallen in which it may rise again: the next probe comes sooner, and grows twice as fast."""


class ProbeSchedule:
    """When a limit that was found is tried again, and how fast.

    Args:
        jitter: Draws from [0, 1), so that those who share a limit do not probe together.

    Attributes:
        until: When the next probe begins.
        doubt: Share of the limit that a probe adds at first.
        span: Seconds for which nothing was taken, the last times that happened.
        echo: Seconds until a refusal is heard.
        caution: What the requests of a doubling are multiplied by: more where probes that came far were wrong.
    """

    def __init__(self, jitter: Callable[[], float]) -> None:
        self.until = -math.inf
        self.doubt = DOUBT
        self.span = 0.0
        self.echo = ECHO
        self.caution = 1.0
        self._jitter = jitter
        self._hold = 0.0
        self._hurry_until = -math.inf
        self._sure = 0  # probes in a row that have found the same
        self._others = 0.0  # refusals that no probe explains, of the last few

    @property
    def shared(self) -> bool:
        """Whether others use the limit, too."""
        return self._others > 1.4

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
            self._sure = 0 if sent > 30 or self.shared else self._sure
        if now < self._hurry_until:
            seconds = max(HOLD, HURRY_REQUESTS / rate)
        elif self.shared:
            seconds = max(OTHERS[0], OTHERS[1] / rate)
        else:
            seconds = max(HOLD, self._requests(HOLD_REQUESTS) / rate)
        self._hold = max(seconds, self.span / 2) * (1 + 0.5 * self._jitter())
        self.until = now + self._hold
        self.doubt = min(0.5, max(DOUBT, 1 / max(1, sent)))

    def fell(self, now: float) -> None:
        """The limit is much lower than it was."""
        self._hurry_until = now + HURRY

    def heard(self, took: float) -> None:
        """A refusal came back after so many seconds."""
        self.echo = max(took, self.echo + (took - self.echo) * 0.25)

    def echoed(self, now: float) -> None:
        """What was sent before the limit was met is refused too."""
        if self.until < now + 2 * self._hold:
            self.until += self._hold / 4

    def doubling(self, now: float, known: float) -> float:
        """Seconds of use in which what a probe adds to `known` requests a second doubles."""
        requests = 0.0 if self.shared else self._requests(PROBE_REQUESTS) * self.caution
        seconds = max(PROBE, requests / known, self.span / 3, 4 * self.echo)
        return seconds / 2 if now < self._hurry_until else seconds

    def _requests(self, bounds: tuple[float, float]) -> float:
        few, many = bounds
        return min(many, few * 2.0**self._sure)
