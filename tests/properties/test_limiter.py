"""The limiter against a model that knows every slot, and what must hold of it whatever happens."""

from __future__ import annotations

import math

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from promptside.pools.resilience.limiter import EDGE, HEADROOM, Limiter, LimiterConfig, Slot

SECONDS = st.one_of(st.just(0.0), st.sampled_from([0.01, 0.05, 0.5, 1.0, 10.0]), st.floats(0, 5))
SHARES = st.sampled_from([0.1, 0.5, 1.0])


class LimiterMachine(RuleBasedStateMachine):
    """Admits, answers and refuses at will, while time passes."""

    @initialize(
        most=st.integers(1, 40),
        start=st.integers(1, 50),
        shrink=st.sampled_from([0.1, 0.5, 0.9]),
        share=SHARES,
        rpm=st.sampled_from([None, 6.0, 60.0, 600.0]),
        tpm=st.sampled_from([None, 600.0]),
        draw=st.floats(0, 1, exclude_max=True),
    )
    def make(
        self, most: int, start: int, shrink: float, share: float, rpm: float | None, tpm: float | None, draw: float
    ) -> None:
        self.config = LimiterConfig(
            initial_limit=start, backoff_ratio=shrink, batch_share=share, pause=0.5, max_pause=4.0
        )
        self.told: list[tuple[int, float]] = []
        self.limiter = Limiter(
            most,
            self.config,
            rpm=rpm,
            tpm=tpm,
            jitter=lambda: draw,
            on_change=lambda limit, closed_for: self.told.append((limit, closed_for)),
        )
        self.rpm = rpm
        self.now = 0.0
        self.closed_until = -math.inf
        self.held: dict[int, Slot] = {}
        self.gone: list[Slot] = []
        self.admitted: list[float] = []

    @rule(seconds=SECONDS)
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(batch=st.booleans())
    def admit(self, batch: bool) -> None:
        wait = self.limiter.wait(self.now, batch=batch)
        slot = self.limiter.admit(self.now, batch=batch)
        assert (slot is None) == (wait > 0)
        if slot is None:
            return
        assert self.now >= self.closed_until, "the gate is closed"
        assert slot.number not in self.held
        self.held[slot.number] = slot
        self.admitted.append(self.now)
        assert len(self.held) <= self.limiter.window(self.now)
        batches = sum(slot.batch for slot in self.held.values())
        assert not batch or batches == 1 or batches <= self.config.batch_share * self.limiter.window(self.now) + EDGE

    @rule(data=st.data(), tokens=st.integers(0, 40))
    def answer(self, data: st.DataObject, tokens: int) -> None:
        self.release(data, "success", None, tokens)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.release(data, "ignored", None, 0)

    @rule(data=st.data(), retry_after=st.sampled_from([None, 0.0, 0.2, 2.0]))
    def refuse(self, data: st.DataObject, retry_after: float | None) -> None:
        limit, told = self.limiter.limit, len(self.told)
        slot = self.release(data, "limited", retry_after, 0)
        if slot is None:
            return
        assert self.limiter.limit <= limit
        if retry_after:
            self.closed_until = max(self.closed_until, self.now + retry_after)
        if len(self.told) > told:  # it was cut
            assert self.told[-1][1] == self.limiter.closed_for(self.now) > 0
            self.closed_until = self.now + self.limiter.closed_for(self.now)

    @rule(data=st.data())
    def release_twice(self, data: st.DataObject) -> None:
        if self.gone:
            before = self.limiter.in_flight, self.limiter.limit, self.limiter.closed_for(self.now)
            self.limiter.release(data.draw(st.sampled_from(self.gone)), "limited", self.now, retry_after=9.0)
            assert before == (self.limiter.in_flight, self.limiter.limit, self.limiter.closed_for(self.now))

    @rule(batch=st.booleans())
    def follow_the_wait(self, batch: bool) -> None:
        """Whoever waits as told is let in, and in no more than a few steps: nobody waits for ever or spins."""
        for _ in range(5):
            wait = self.limiter.wait(self.now, batch=batch)
            if wait == math.inf:
                assert self.held, "without a slot in use, there is always a time"
                return
            if wait == 0:
                return
            self.now += wait + EDGE
        raise AssertionError("it was told to wait again and again")

    def release(self, data: st.DataObject, outcome: str, retry_after: float | None, tokens: int) -> Slot | None:
        if not self.held:
            return None
        slot = self.held.pop(data.draw(st.sampled_from(sorted(self.held))))
        self.gone.append(slot)
        self.limiter.release(slot, outcome, self.now, retry_after=retry_after, tokens=tokens)  # type: ignore[arg-type]
        return slot

    @invariant()
    def the_window_is_within_its_bounds(self) -> None:
        if not hasattr(self, "limiter"):
            return
        assert self.limiter.in_flight == len(self.held)
        assert 1 <= self.limiter.limit <= self.limiter.most
        assert 1 <= self.limiter.window(self.now) <= self.limiter.most
        assert self.limiter.closed_for(self.now) >= self.closed_until - self.now

    @invariant()
    def the_rate_is_kept(self) -> None:
        if not hasattr(self, "limiter") or self.rpm is None or not self.admitted:
            return
        rate = self.rpm * HEADROOM / 60
        first = self.admitted[max(0, len(self.admitted) - 20)]
        last = self.admitted[-20:]
        assert len(last) <= max(1.0, rate) + rate * (self.now - first) + 1e-6


TestLimiter = LimiterMachine.TestCase
