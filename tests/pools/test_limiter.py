"""`promptside.pools.resilience.limiter`: what a window and its gate do, with time passed in."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from promptside.pools import LimiterConfig
from promptside.pools.resilience.limiter import Limiter, Slot


def limiter(most: int = 100, *, draw: float = 0.0, **config: Any) -> Limiter:
    return Limiter(most, LimiterConfig(**config), jitter=lambda: draw)


def fill(limits: Limiter, now: float, *, batch: bool = False) -> list[Slot]:
    slots = []
    while (slot := limits.admit(now, batch=batch)) is not None:
        slots.append(slot)
    return slots


def answer(limits: Limiter, now: float, seconds: float) -> float:
    """Use the window for so long, each request answered after as long; returns the time after."""
    slots = []
    for tick in range(100):
        slots += fill(limits, now + tick * seconds / 100)
    for slot in slots:
        limits.release(slot, "success", max(now + seconds, slot.since + seconds))
    return now + 2 * seconds


def test_it_opens_from_its_start_to_all_connections_in_doublings() -> None:
    limits = limiter(100, initial_limit=8, doubling_time=1.0)
    first, *_ = fill(limits, 0.0)
    assert (limits.in_flight, limits.wait(4.0)) == (8, math.inf), "nothing was heard of the provider"
    limits.release(first, "ignored", 5.0)
    assert len(fill(limits, 5.0)) == 1
    assert limits.wait(5.0) == pytest.approx(math.log2(9 / 8)), "when there is room for a ninth"
    assert len(fill(limits, 6.0)) == 8
    assert len(fill(limits, 7.5)) == 29, "8 * 2**2.5 = 45"
    assert len(fill(limits, 1e6)) == 55
    assert limits.wait(1e6) == math.inf, "only a release helps"


def test_a_429_cuts_the_window_once_for_all_that_were_under_way() -> None:
    limits = limiter(100, initial_limit=100)
    slots = fill(limits, 0.0)
    for slot in slots[:50]:
        limits.release(slot, "limited", 1.0, retry_after=2.0)
    assert limits.limit == 50
    assert limits.closed_for(1.0) == 2.0
    for slot in slots[50:]:
        limits.release(slot, "success", 1.5)
    assert limits.limit == 50, "an answer to a request from before the cut widens nothing"


def test_the_gate_is_shared_and_opens_for_one_first() -> None:
    limits = limiter(100, initial_limit=100, doubling_time=0.1)
    slots = fill(limits, 0.0)
    limits.release(slots.pop(), "limited", 0.0, retry_after=2.0)
    for slot in slots:
        limits.release(slot, "ignored", 0.0)
    assert fill(limits, 1.9) == []
    assert limits.wait(0.5) == 1.5
    assert len(fill(limits, 2.0)) == 1
    assert len(fill(limits, 2.1)) == 1, "two together"
    assert len(fill(limits, 2.2)) == 2
    assert len(fill(limits, 9.0)) == 46, "up to the limit of 50"


def test_a_retry_after_is_exceeded_by_a_drawn_share_so_that_processes_come_apart() -> None:
    for draw, closed_for in ((0.0, 10.0), (0.5, 10.5), (1.0, 11.0)):
        limits = limiter(draw=draw, jitter=0.1)
        slot = limits.admit(0.0)
        assert slot is not None
        limits.release(slot, "limited", 0.0, retry_after=10.0)
        assert limits.closed_for(0.0) == pytest.approx(closed_for)


def test_without_a_retry_after_pauses_double_until_something_is_answered() -> None:
    limits = limiter(pause=1.0, max_pause=5.0)
    now, pauses = 0.0, []
    for outcome in ("limited", "limited", "limited", "limited", "success", "limited"):
        slot = limits.admit(now)
        assert slot is not None
        limits.release(slot, outcome, now)  # type: ignore[arg-type]
        if outcome == "limited":
            pauses.append(limits.closed_for(now))
            now += pauses[-1]
    assert pauses == [1.0, 2.0, 4.0, 5.0, 1.0]


def test_a_longer_retry_after_of_a_later_refusal_extends_the_gate_and_a_shorter_one_does_not() -> None:
    limits = limiter(initial_limit=100)
    first, second, third, fourth = fill(limits, 0.0)[:4]
    limits.release(first, "limited", 0.0, retry_after=1.0)
    limits.release(second, "limited", 0.0, retry_after=3.0)
    limits.release(third, "limited", 0.0, retry_after=2.0)
    limits.release(fourth, "limited", 0.0)
    assert limits.closed_for(0.0) == 3.0


def test_answers_widen_a_used_window_and_an_unused_one_stays() -> None:
    limits = limiter(100, initial_limit=100)
    slots = fill(limits, 0.0)
    limits.release(slots[0], "limited", 0.0, retry_after=0.1)
    for slot in slots[1:]:
        limits.release(slot, "ignored", 0.0)
    now = 10.0
    one = limits.admit(now)
    assert one is not None
    limits.release(one, "success", now)
    assert limits.limit == 50, "one of fifty says nothing about fifty-one"
    widths = []
    for _ in range(60):
        now = answer(limits, now, 1.0)
        widths.append(limits.limit)
    assert widths == sorted(widths)
    assert widths[-1] == 100
    steps = [after - before for before, after in itertools.pairwise(widths)]
    assert max(step for width, step in zip(widths, steps, strict=False) if 80 <= width < 90) <= 10, "near the refusal"


def test_after_a_refusal_the_window_is_used_at_the_pace_of_the_answers_and_not_in_waves() -> None:
    limits = limiter(100, initial_limit=100)
    slots = fill(limits, 0.0)
    assert len(slots) == 100, "before, nothing is held back"
    limits.release(slots[0], "limited", 8.0, retry_after=1.0)
    for slot in slots[1:]:
        limits.release(slot, "ignored", 8.0)
    one = limits.admit(20.0)
    assert one is not None
    limits.release(one, "success", 28.0)
    now = 100.0
    for _ in range(int(limits.limit)):
        now += limits.wait(now)
        assert limits.admit(now) is not None
        assert limits.admit(now) is None
    assert now - 100.0 == pytest.approx(8.0 / 1.25, rel=0.2), "a window in four fifths of the time that an answer takes"


def test_batch_holds_its_share_of_the_window_and_at_least_one() -> None:
    limits = limiter(100, initial_limit=10, doubling_time=1e9, batch_share=0.3)
    assert len(fill(limits, 0.0, batch=True)) == 3
    assert len(fill(limits, 0.0)) == 7
    assert len(fill(limiter(1), 0.0, batch=True)) == 1


def test_a_configured_rate_is_used_to_95_percent() -> None:
    limits = Limiter(1000, LimiterConfig(initial_limit=1000), rpm=6000)
    admitted = 0
    for tick in range(1, 1001):  # ten seconds
        for slot in fill(limits, tick / 100):
            admitted += 1
            limits.release(slot, "success", tick / 100)
    assert admitted == pytest.approx(950 + 95, abs=2), "ten seconds, and what a second brings at once"


def test_tokens_beyond_the_rate_are_paid_back_before_the_next_request() -> None:
    limits = Limiter(10, tpm=6000)  # 95 a second
    slot = limits.admit(0.0)
    assert slot is not None
    limits.release(slot, "success", 0.0, tokens=1045)
    assert limits.admit(9.9) is None
    assert limits.wait(0.0) == pytest.approx(951 / 95)
    assert limits.admit(10.1) is not None


def test_changes_are_told_at_cuts_and_after_a_quarter_of_growth() -> None:
    told: list[tuple[int, float]] = []
    limits = Limiter(40, LimiterConfig(initial_limit=40, jitter=0), on_change=lambda *change: told.append(change))
    slots = fill(limits, 0.0)
    for slot in slots:
        limits.release(slot, "limited", 0.0, retry_after=1.0)
    assert told == [(20, 1.0)]
    now = 10.0
    for _ in range(40):
        now = answer(limits, now, 1.0)
    assert [limit for limit, _ in told] == [20, 25, 31, 39, 40]
    assert {closed_for for _, closed_for in told[1:]} == {0.0}


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("initial_limit", 0, "give a whole number >= 1"),
        ("doubling_time", 0, "give finite seconds > 0"),
        ("backoff_ratio", 1, "give a share in (0, 1)"),
        ("pause", -1, "give finite seconds > 0"),
        ("max_pause", "1", "give finite seconds > 0"),
        ("jitter", -0.1, "give a share >= 0"),
        ("batch_share", 1.5, "give a share in (0, 1]"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value_and_the_remedy(field: str, value: object, remedy: str) -> None:
    with pytest.raises(ValueError) as caught:
        LimiterConfig(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value) == f"LimiterConfig: {field}={value!r}: {remedy}"
