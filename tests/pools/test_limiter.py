"""`promptside.pools.resilience.limiter`: its pace, its gate and its widths, step by step, with time passed in.

What all that comes to is in `tests/properties/test_limiter_goodput.py`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from promptside.pools import LimiterConfig
from promptside.pools.resilience.limiter import Limiter, LimiterChange, Slot
from promptside.pools.resilience.limiter_probes import ProbeSchedule
from promptside.pools.resilience.limiter_rate import YIELD, MeasuredRate
from promptside.pools.resilience.limiter_width import REFUSALS, MeasuredWidth


class Scene:
    """A limiter, and what it has told."""

    def __init__(self, most: int = 1000, *, draw: float = 0.0, rpm: float | None = None, **config: Any) -> None:
        self.now = 0.0
        self.told: list[LimiterChange] = []
        self.limiter = Limiter(most, LimiterConfig(**config), rpm=rpm, jitter=lambda: draw, on_change=self.told.append)

    def send(self) -> Slot:
        """The next request, as soon as it may go."""
        self.now += self.limiter.wait(self.now)
        slot = self.limiter.admit(self.now)
        assert slot is not None
        return slot

    def refuse(self, slot: Slot, after: float = 0.05, **said: Any) -> LimiterChange:
        """It is refused so many seconds after it was sent."""
        self.now = max(self.now, slot.since + after)
        self.limiter.release(slot, "limited", self.now, **said)
        return self.told[-1]

    def use(self, seconds: float, latency: float = 0.2) -> None:
        """Send for so long, and have all answered."""
        end, under_way = self.now + seconds, list[Slot]()
        while True:
            wait = self.limiter.wait(self.now)
            answered = under_way[0].since + latency if under_way else math.inf
            self.now = min(self.now + wait, max(answered, self.now), end)
            if self.now >= end and (wait > 0 or answered > end):
                break
            if answered <= self.now:
                self.limiter.release(under_way.pop(0), "success", self.now)
            elif (slot := self.limiter.admit(self.now)) is not None:
                under_way.append(slot)
        for slot in under_way:
            self.limiter.release(slot, "success", self.now)

    def row(self, refusals: int, **said: Any) -> LimiterChange:
        """So many are refused one after the other."""
        for _ in range(refusals):
            change = self.refuse(self.send(), **said)
        return change


def fill(limiter: Limiter, now: float, *, batch: bool = False) -> list[Slot]:
    slots = []
    while (slot := limiter.admit(now, batch=batch)) is not None:
        slots.append(slot)
    return slots


def test_requests_are_sent_at_a_pace_that_rises_while_some_wait() -> None:
    scene = Scene()
    slots = [scene.send() for _ in range(300)]
    assert slots[2].since == 0, "0.05 s of the pace may be caught up"
    assert sum(slot.since < 0.1 for slot in slots) <= 30
    assert 0.8 < scene.now < 1.2
    assert scene.limiter.rate > 500
    assert scene.limiter.known is None


def test_time_alone_opens_nothing_and_after_a_rest_the_pace_is_as_at_first() -> None:
    scene = Scene()
    scene.send()
    scene.now = 3600.0
    assert scene.limiter.rate == 64.0
    for _ in range(300):
        scene.send()
    raised = scene.limiter.rate
    scene.now += 120
    scene.send()
    assert scene.limiter.rate == pytest.approx(raised / 4, rel=0.05)
    scene.now += 3600
    scene.send()
    assert scene.limiter.rate == 64.0


def test_what_was_taken_between_two_refusals_is_the_rate() -> None:
    scene = Scene()
    scene.use(1.0)
    scene.refuse(scene.send())
    scene.use(3.0)
    before = scene.now
    assert scene.limiter.known is not None
    first = scene.refuse(scene.send())
    assert (first.reason, first.closed_for) == ("refused", 0.0)
    assert first.known is not None
    assert first.rate == pytest.approx(0.98 * first.known)
    assert scene.now - before < 0.5


def test_what_was_sent_before_a_refusal_was_heard_cuts_nothing() -> None:
    scene = Scene()
    scene.use(0.5)
    slots = [scene.send() for _ in range(5)]
    scene.refuse(slots[0])
    told, rate = len(scene.told), scene.limiter.rate
    for slot in slots[1:]:
        scene.refuse(slot)
    assert (len(scene.told), scene.limiter.rate) == (told, rate)


def test_after_a_first_refusal_one_goes_out_until_it_was_taken() -> None:
    scene = Scene()
    scene.use(0.5)
    scene.refuse(scene.send())
    trial = scene.send()
    assert scene.limiter.wait(scene.now) > 0.05, "longer than a refusal takes"
    scene.limiter.release(trial, "unsent", scene.now)
    trial = scene.send()
    scene.limiter.release(trial, "ignored", scene.now)
    assert scene.limiter.wait(scene.now) < 0.03, "whatever the answer, it was taken"


@pytest.mark.parametrize(("draw", "closed_for"), [(0.0, 10.0), (0.5, 10.5), (1.0, 11.0)])
def test_a_lone_calls_retry_after_is_believed_at_once_and_exceeded_by_a_drawn_share(
    draw: float, closed_for: float
) -> None:
    scene = Scene(draw=draw)
    change = scene.refuse(scene.send(), retry_after=10.0)
    assert (change.reason, change.closed_for) == ("closed", pytest.approx(closed_for))
    assert scene.limiter.admit(scene.now + 9.9) is None
    assert scene.limiter.closed_for(scene.now + 20) == 0
    assert scene.limiter.admit(scene.now + 11.1) is not None


def test_a_retry_after_beside_others_that_are_taken_counts_when_a_row_confirms_it() -> None:
    scene = Scene()
    scene.use(1.0)
    assert scene.refuse(scene.send(), retry_after=60.0).closed_for == 0
    assert scene.row(1, retry_after=60.0).closed_for < 0.1
    change = scene.row(1, retry_after=60.0)
    assert (change.reason, change.closed_for) == ("closed", pytest.approx(60.0))


def test_pauses_grow_with_the_time_that_nothing_is_taken_up_to_the_longest() -> None:
    scene = Scene(max_pause=5.0)
    scene.use(1.0)
    scene.row(3)
    pauses = [scene.row(1).closed_for for _ in range(20)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 5.0)
    scene.use(10.0)
    assert scene.limiter.closed_for(scene.now) == 0
    assert scene.limiter.rate > 50, "what was known is known still"


def test_a_retry_after_that_has_not_been_enough_is_not_the_longest_pause() -> None:
    scene = Scene()
    scene.use(1.0)
    pauses = [scene.row(1, retry_after=0.01).closed_for for _ in range(10)]
    assert pauses[3:5] == pytest.approx([0.01, 0.5])
    assert pauses[-1] > 0.5


def test_the_reset_that_headers_tell_ends_a_pause() -> None:
    scene = Scene()
    scene.use(1.0)
    assert scene.row(12, reset=0.2).closed_for == pytest.approx(0.2)


def test_the_rate_that_headers_tell_bounds_what_is_measured_but_never_below_the_last_minute() -> None:
    for allowed, known in ((10.0, 10.0), (0.001, 1.0)):
        scene = Scene()
        scene.use(0.5)
        change = scene.refuse(scene.send(), allowed=allowed)
        assert change.known == pytest.approx(known, rel=0.5)


def test_a_wider_reach_is_found_and_told() -> None:
    scene = Scene()
    scene.use(1.0)
    known = scene.refuse(scene.send()).known
    assert known is not None
    scene.use(5.0)
    assert scene.told[-1].reason == "found"
    assert scene.told[-1].known is not None
    assert scene.told[-1].known > 1.9 * known


def test_requests_under_way_are_limited_where_more_were_refused_than_ever_taken() -> None:
    scene = Scene()
    slots = [scene.send() for _ in range(10)]
    scene.refuse(scene.send())
    scene.refuse(scene.send())
    change = scene.refuse(scene.send())
    assert (change.reason, change.limit) == ("width", 10)
    assert scene.limiter.wait(scene.now) == math.inf
    scene.now = 1.0
    scene.limiter.release(slots[0], "success", scene.now)
    assert scene.limiter.wait(scene.now) < math.inf
    while scene.limiter.in_flight < 10:
        scene.send()
    scene.limiter.release(slots[1], "success", scene.now)
    change = scene.refuse(scene.send())
    assert (change.reason, change.limit) == ("width", 9)
    for slot in slots[2:]:
        scene.limiter.release(slot, "success", scene.now)
    assert scene.refuse(scene.send()).limit == 1000, "fewer were under way: it is not that"


def test_a_width_of_one_is_the_least() -> None:
    scene = Scene(1)
    slot = scene.send()
    assert scene.limiter.wait(scene.now) == math.inf
    scene.refuse(slot)
    assert scene.limiter.limit == 1


def test_batch_holds_its_share_and_at_least_one() -> None:
    limiter = Limiter(10, LimiterConfig(batch_share=0.3))
    batch = [slot for step in range(100) for slot in fill(limiter, step / 10, batch=True)]
    assert len(batch) == 3
    assert len([slot for step in range(100, 200) for slot in fill(limiter, step / 10)]) == 7
    assert len(fill(Limiter(1, LimiterConfig(batch_share=0.3)), 0.0, batch=True)) == 1


def test_a_configured_rate_is_used_to_95_percent() -> None:
    scene = Scene(rpm=6000)
    while scene.now < 10:
        scene.limiter.release(scene.send(), "success", scene.now)
    assert scene.limiter.rate == 95.0


def test_tokens_beyond_the_rate_are_paid_back_before_the_next_request() -> None:
    limits = Limiter(10, tpm=6000)  # 95 a second
    slot = limits.admit(0.0)
    assert slot is not None
    limits.release(slot, "success", 0.0, tokens=1045)
    assert limits.admit(9.9) is None
    assert limits.wait(0.0) == pytest.approx(950 / 95)
    assert limits.admit(10.1) is not None


@pytest.mark.parametrize("tokens", [10_000, 10**9])
def test_one_answer_holds_the_next_request_back_for_a_minute_at_most(tokens: int) -> None:
    limits = Limiter(10, tpm=60)
    slot = limits.admit(0.0)
    assert slot is not None
    limits.release(slot, "success", 0.0, tokens=tokens)
    assert 58 <= limits.wait(0.0) <= 60


def test_a_slot_is_given_back_once() -> None:
    limiter = Limiter(2)
    slot = limiter.admit(0.0)
    assert slot is not None
    limiter.release(slot, "success", 0.0)
    limiter.release(slot, "limited", 0.0)
    assert (limiter.in_flight, limiter.known) == (0, None)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("max_pause", "1", "give finite seconds > 0"),
        ("max_pause", math.inf, "give finite seconds > 0"),
        ("batch_share", 1.5, "give a share in (0, 1]"),
        ("batch_share", 0, "give a share in (0, 1]"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value_and_the_remedy(field: str, value: object, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:
        LimiterConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"LimiterConfig: {field}={value!r}: {remedy}"


def test_refusals_that_no_probe_explains_are_others_doing_unless_they_came_after_a_few_requests() -> None:
    schedule = ProbeSchedule(lambda: 0.0)
    for sent, shared in ((3, False), (20, True)):
        for _ in range(5):
            schedule.found(0.0, 10.0, sent, probed=False, same=True)
        assert schedule.shared == shared


def test_a_rate_that_others_share_is_given_up_in_part_where_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProbeSchedule, "shared", True)
    rate = MeasuredRate(math.inf, lambda: 0.0)
    rate.known = 100.0
    rate._refuse_pace(99.0, 100.0, 200, 1.0, kept=False)
    assert rate.known == YIELD * 100.0


@pytest.mark.parametrize(("taken_with", "shows"), [(10, True), (30, False)])
def test_a_width_is_not_shown_by_refusals_where_as_many_were_taken(taken_with: int, shows: bool) -> None:
    width = MeasuredWidth(ProbeSchedule(lambda: 0.0))
    found = None
    for turn in range(REFUSALS):
        number = 10 * turn + 1
        found = width.shown(number, 10, float(turn), turn + 0.1, 10.0 + 10.0 * (turn % 2))
        width.answered(number + 1, taken_with, float(turn), turn + 0.1, 5)
    assert (found is not None) == shows


@pytest.mark.parametrize("retry_after", [None, 0.2])
def test_a_rate_that_was_set_is_kept_after_a_refusal_too(retry_after: float | None) -> None:
    scene = Scene(rpm=6.0)
    scene.refuse(scene.send(), retry_after=retry_after)
    scene.send()
    assert scene.now > 10.0
