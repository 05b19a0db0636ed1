"""The limiter against a model that knows every slot, and what must hold of it whatever happens."""

from __future__ import annotations

import math

import hypothesis.strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from promptside.pools.resilience.limiter import EDGE, HEADROOM, Limiter, LimiterChange, LimiterConfig, Slot
from promptside.pools.resilience.limiter_rate import SLACK

SECONDS = st.one_of(st.just(0.0), st.sampled_from([0.01, 0.05, 0.5, 1.0, 10.0]), st.floats(0, 5))
SHARES = st.sampled_from([0.1, 0.5, 1.0])


class LimiterMachine(RuleBasedStateMachine):
    """Admits, answers and refuses at will, while time passes."""

    @initialize(
        most=st.integers(1, 40),
        share=SHARES,
        rpm=st.sampled_from([None, 6.0, 60.0, 600.0]),
        tpm=st.sampled_from([None, 600.0]),
        draw=st.floats(0, 1, exclude_max=True),
    )
    def make(self, most: int, share: float, rpm: float | None, tpm: float | None, draw: float) -> None:
        self.config = LimiterConfig(batch_share=share, max_pause=4.0)
        self.told: list[LimiterChange] = []
        self.limiter = Limiter(
            most,
            self.config,
            rpm=rpm,
            tpm=tpm,
            jitter=lambda: draw,
            on_change=self.told.append,
        )
        self.rpm = rpm
        self.now = 0.0
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
        assert self.limiter.closed_for(self.now) == 0
        assert slot.number not in self.held
        self.held[slot.number] = slot
        self.admitted.append(self.now)
        assert len(self.held) <= self.limiter.limit
        batches = sum(slot.batch for slot in self.held.values())
        assert not batch or batches == 1 or batches <= self.config.batch_share * self.limiter.limit + EDGE

    @rule(data=st.data(), tokens=st.integers(0, 40))
    def answer(self, data: st.DataObject, tokens: int) -> None:
        self.release(data, "success", None, tokens)

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.release(data, "ignored", None, 0)

    @rule(data=st.data(), retry_after=st.sampled_from([None, 0.0, 0.2, 2.0]))
    def refuse(self, data: st.DataObject, retry_after: float | None) -> None:
        told = len(self.told)
        if self.release(data, "limited", retry_after, 0) is None or len(self.told) == told:
            return
        change = self.told[-1]
        assert (change.limit, change.rate, change.known) == (self.limiter.limit, self.limiter.rate, self.limiter.known)
        assert change.closed_for == self.limiter.closed_for(self.now)

    @rule(data=st.data())
    def release_twice(self, data: st.DataObject) -> None:
        if self.gone:
            before = self.limiter.in_flight, self.limiter.limit, self.limiter.closed_for(self.now)
            self.limiter.release(data.draw(st.sampled_from(self.gone)), "limited", self.now, retry_after=9.0)
            assert before == (self.limiter.in_flight, self.limiter.limit, self.limiter.closed_for(self.now))

    @rule(batch=st.booleans())
    def follow_the_wait(self, batch: bool) -> None:
        """Whoever waits as told is let in, and in no more than a few steps: nobody waits for ever or spins."""
        for _ in range(8):
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

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.release(data, "unsent", None, 0)

    @invariant()
    def all_is_within_its_bounds(self) -> None:
        if not hasattr(self, "limiter"):
            return
        assert self.limiter.in_flight == len(self.held)
        assert 1 <= self.limiter.limit <= self.limiter.most
        assert 0 < self.limiter.rate < math.inf
        assert self.limiter.known is None or 0 < self.limiter.known < math.inf

    @invariant()
    def the_rate_is_kept(self) -> None:
        if not hasattr(self, "limiter") or self.rpm is None or not self.admitted:
            return
        rate = self.rpm * HEADROOM / 60
        first = self.admitted[max(0, len(self.admitted) - 20)]
        last = self.admitted[-20:]
        assert len(last) <= 1.0 + rate * (self.now - first + SLACK) + 1e-6


TestLimiter = LimiterMachine.TestCase
