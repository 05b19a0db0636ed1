"""The limiter of an endpoint: a synchronous state machine that is given `now`.

A `WaitQueue` owns one: it asks for a slot before each request and releases it afterwards.

It sends at a pace and has no burst. The pace rises with each request for which one has waited, until the provider
refuses one for too many (HTTP 429). A refusal says that nothing is left, so what was taken between two of them, by the
time between, is the provider's rate, whatever its bucket and however long answers take (`limiter_rate`). From then on
the pace is a little less, and at times it tries for more.

Where requests are refused one after the other, nothing is taken at all, or it is the requests under way that are
limited. Then one at a time goes out, until one is taken: the gate is closed in between, for all callers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from promptside.checks import check, check_seconds, is_number
from promptside.pools.resilience.limiter_probes import EDGE
from promptside.pools.resilience.limiter_rate import LOWER, WINDOW, MeasuredRate
from promptside.pools.resilience.limiter_width import MeasuredWidth

__all__ = ["Limiter", "LimiterChange", "LimiterConfig", "Release", "Slot"]

Release = Literal["success", "limited", "unsent", "ignored"]

HEADROOM = 0.95
"""Share of a configured rate that is used, because the provider's clock differs."""

PAUSE = 0.5
PAUSE_REQUESTS = 4
"""Seconds, and requests at the known rate, for which the gate is closed at least; later a fourth of the time passed."""

JITTER = 0.1
"""Largest share by which that is exceeded, so that processes do not return together."""

FEW = 4
"""Requests after which a first refusal says nothing of a rate: its Retry-After is believed at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LimiterConfig:
    """What can be set of a limiter; the rest is measured.

    Args:
        batch_share: Largest share of the requests under way that batch calls hold, in (0, 1]; at least one.
        max_pause: Seconds after which a provider that refuses everything is asked again, > 0. A Retry-After may exceed
            it.

    Raises:
        ValueError: A field is out of its range.
    """

    batch_share: float = 0.5
    max_pause: float = 10.0

    def __post_init__(self) -> None:
        valid = is_number(self.batch_share) and 0 < self.batch_share <= 1
        check("LimiterConfig", "batch_share", self.batch_share, valid, "give a share in (0, 1]")
        check_seconds("LimiterConfig", "max_pause", self.max_pause, finite=True)


@dataclass(frozen=True, slots=True)
class LimiterChange:
    """What a limiter has learned.

    Attributes:
        limit: Requests that may be under way.
        closed_for: Seconds for which none is sent.
        rate: Requests a second that are sent while some wait.
        known: The same that the provider takes; None until it has refused one.
        reason: ``"refused"``: the rate was met. ``"closed"``: nothing is taken. ``"width"``: too many were under way.
            ``"found"``: the rate has grown by a quarter.
    """

    limit: int
    closed_for: float
    rate: float
    known: float | None
    reason: Literal["refused", "closed", "width", "found"]


@dataclass(frozen=True, slots=True)
class Slot:
    """Permission to have one request under way; released once.

    Attributes:
        number: Counts the slots.
        batch: Whether it counts for the share of batch calls.
        since: When it was given.
        used: Slots that were held then, itself included.
    """

    number: int
    batch: bool
    since: float
    used: int


class Limiter:
    """Slots for the requests to one endpoint.

    Args:
        most: Requests that may ever be under way, >= 1.
        config: What is set.
        rpm: Requests per minute that the provider allows; None for unknown.
        tpm: Tokens per minute, likewise. What a request uses is known only from its answer, so tokens are taken
            afterwards and the next request waits until they are there again.
        jitter: Draws from [0, 1).
        on_change: Called with what was learned.
    """

    def __init__(
        self,
        most: int,
        config: LimiterConfig | None = None,
        *,
        rpm: float | None = None,
        tpm: float | None = None,
        jitter: Callable[[], float] = random.random,
        on_change: Callable[[LimiterChange], None] | None = None,
    ) -> None:
        self.most = most
        self.config = config or LimiterConfig()
        self._jitter = jitter
        self._on_change = on_change
        self._published = math.inf  # the known rate
        self._rate = MeasuredRate(math.inf if rpm is None else HEADROOM * rpm / 60, jitter)
        self._tokens = math.inf if tpm is None else HEADROOM * tpm / 60  # a second
        self._tokens_at = -math.inf  # when those that were used are there again
        self._held: dict[int, Slot] = {}
        self._batch = self._numbers = 0
        self._heard = 0  # the last slot given before the last refusal that counted
        self._waited = False  # whether somebody was told to wait since the last slot, and timers may be late
        self._reopen_at = -math.inf
        self._row, self._row_since = 0, -math.inf  # refusals with nothing taken in between
        self._has_closed = False  # whether the gate was closed in this row
        self._one_by_one = False  # whether the next request waits until this one was taken
        self._trial: Slot | None = None  # this one
        self._width = MeasuredWidth(self._rate.probes)

    @property
    def in_flight(self) -> int:
        """Slots that are held."""
        return len(self._held)

    @property
    def limit(self) -> int:
        """Slots that may be held, >= 1."""
        return max(1, int(min(self._width.limit, self.most) + EDGE))

    @property
    def rate(self) -> float:
        """Requests a second that are sent while some wait."""
        return self._rate.rate

    @property
    def known(self) -> float | None:
        """Requests a second that the provider takes; None until it has refused one."""
        return None if self._rate.known == math.inf else self._rate.known

    def closed_for(self, now: float) -> float:
        """Seconds until the gate opens; 0 when it is open."""
        return max(0.0, self._reopen_at - now)

    def admit(self, now: float, *, batch: bool = False) -> Slot | None:
        """A slot; None when none is free for this priority, the gate is closed, or it is nobody's turn yet.

        Args:
            now: Seconds, never before an earlier call's.
            batch: Whether the call's priority is ``"batch"``.
        """
        if self.wait(now, batch=batch) > 0:
            return None
        if self._trial is not None:  # for longer than a refusal takes nothing was heard of it: it was taken
            self._end_row(self._trial, now)
        self._numbers += 1
        slot = self._held[self._numbers] = Slot(self._numbers, batch, now, len(self._held) + 1)
        self._batch += batch
        self._rate.send(slot.number, now, waited=self._waited)
        self._waited = False
        if self._one_by_one:
            self._trial = slot
        if self._rate.known > 1.25 * self._published:
            self._publish("found", now)
        return slot

    def wait(self, now: float, *, batch: bool = False) -> float:
        """Seconds until `admit` may succeed without a release; inf when only a release helps."""
        needed = len(self._held) + 1
        if batch and self._batch > 0:
            needed = max(needed, math.ceil((self._batch + 1) / self.config.batch_share - EDGE))
        if needed > self.limit and needed > 1:
            return math.inf
        trial = -math.inf if self._trial is None else self._trial.since + min(1.0, 2 * self._rate.probes.echo + 0.02)
        wait = max(self._reopen_at, self._rate.due, self._tokens_at, trial) - now
        if wait <= EDGE:
            return 0.0
        self._waited = True
        return wait

    def release(
        self,
        slot: Slot,
        outcome: Release,
        now: float,
        *,
        retry_after: float | None = None,
        tokens: int = 0,
        allowed: float = math.inf,
        reset: float = math.inf,
    ) -> None:
        """Give a slot back; a second time does nothing.

        Args:
            slot: What `admit` gave.
            outcome: ``"success"`` for an answer, ``"limited"`` for a refusal (HTTP 429), ``"unsent"`` where nothing has
                reached the provider, ``"ignored"`` for the rest.
            now: Seconds, never before an earlier call's.
            retry_after: Seconds that a refusal asked to wait, if it did.
            tokens: Tokens that the request used; it is held back for a minute of them at most.
            allowed: Requests a second that are most, by a refusal's headers.
            reset: Seconds after which the provider may be asked again at the latest, likewise.
        """
        if self._held.pop(slot.number, None) is None:
            return
        self._batch -= slot.batch
        self._tokens_at = max(self._tokens_at, now - 1) + min(WINDOW, tokens / self._tokens)
        if outcome == "limited":
            self._rate.untaken()
            self._refuse(slot, now, retry_after or 0.0, allowed, reset)
        elif outcome == "unsent":
            self._rate.untaken()
            self._trial = None if slot is self._trial else self._trial
        else:
            if slot is self._trial:
                self._end_row(slot, now)
            if outcome == "success":
                self._width.answered(slot.number, slot.used, slot.since, now, len(self._held))

    def _refuse(self, slot: Slot, now: float, retry_after: float, allowed: float, reset: float) -> None:
        self._rate.probes.heard(now - slot.since)
        if slot.number <= self._heard:  # it was sent before the last one was heard
            self._rate.probes.echoed(now)
            return
        in_row, self._heard = 0 < self._heard == slot.number - 1, self._numbers
        if self._width.refused(slot.number, slot.used, now, in_row=in_row):
            self._trial = None
            self._publish("width", now)
        elif in_row:
            self._go_on_with_row(slot, now, retry_after, reset)
        else:
            self._begin_row(slot, now, retry_after, allowed, reset)

    def _begin_row(self, slot: Slot, now: float, retry_after: float, allowed: float, reset: float) -> None:
        """Refused, when others were taken: the rate was met."""
        before = self._rate.known
        self._row, self._row_since, self._trial, self._has_closed = 0, slot.since, None, False
        sent = self._rate.refused(slot.number, slot.since, now, allowed)
        self._one_by_one = before == math.inf or self._rate.known < LOWER * before
        if before == math.inf and sent < FEW and retry_after:
            self._row = 1
            self._close(now, slot.since, retry_after, reset)
        elif (fast := self._width.shown(slot.number, slot.used, slot.since, now, self._rate.known)) is not None:
            self._one_by_one = False
            self._rate.free(fast)
            self._publish("width", now)
        else:
            self._publish("refused", now)

    def _go_on_with_row(self, slot: Slot, now: float, retry_after: float, reset: float) -> None:
        """Refused again: first it may be chance; then it is the width, or nothing is taken for a while."""
        last = self._rate.refused_again(slot.number, slot.since)
        if self._row == 0:
            self._row_since = last
        self._row, self._trial, self._one_by_one = self._row + 1, None, True
        if self._row == 1:
            self._reopen_at = now + 2 / self._rate.rate
            self._rate.halve()
            self._publish("refused", now)
        elif self._row == 2 and self._width.full(slot.number, slot.used, now, len(self._held)):
            self._publish("width", now)
        else:
            self._has_closed = True
            self._close(now, slot.since, retry_after, reset)

    def _close(self, now: float, since: float, retry_after: float, reset: float) -> None:
        """Close the gate: for Retry-After, and longer once that has not been enough."""
        longest = min(self.config.max_pause, reset)
        pause = min(longest, max(PAUSE, PAUSE_REQUESTS / self._rate.known, (since - self._row_since) / 4))
        if retry_after:
            pause = retry_after if self._row < 4 else max(pause, retry_after)
        self._reopen_at = now + pause * (1 + JITTER * self._jitter())
        self._rate.close(now, self._reopen_at)
        self._publish("closed", now)

    def _end_row(self, slot: Slot, now: float) -> None:
        """This one was taken."""
        self._rate.pause(max(0.0, now - max(slot.since, self._reopen_at)))
        if self._row:
            self._rate.probes.span = max(0.8 * self._rate.probes.span, slot.since - self._row_since)
        if self._has_closed:
            self._rate.reopen(slot.number, slot.since)
        self._row, self._trial, self._one_by_one, self._has_closed = 0, None, False, False

    def _publish(self, reason: Literal["refused", "closed", "width", "found"], now: float) -> None:
        self._published = self._rate.known
        if self._on_change is not None:
            self._on_change(LimiterChange(self.limit, self.closed_for(now), self.rate, self.known, reason))
