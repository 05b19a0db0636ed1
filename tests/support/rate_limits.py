"""Providers that limit their requests, and callers behind limiters, in virtual time: one heap of events, no asyncio.

A request takes 2 ms of its pool's core, and 25 ms on the way; a refusal is back as soon.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from promptside.pools.resilience.limiter import Limiter, Slot

CORE = 0.002
"""Seconds of a core that a request needs to be sent."""

Draw = Callable[[random.Random], float]


def lognormal(median: float, sigma: float = 1.0, least: float = 0.0, most: float = 120.0) -> Draw:
    """As the seconds of answers, and their tokens, are distributed."""
    return lambda rng: min(most, max(least, rng.lognormvariate(math.log(median), sigma)))


# -- providers ---------------------------------------------------------------------------------------------------------


@dataclass
class Provider:
    """Takes everything.

    Attributes:
        rate: Requests, or tokens, a second.
        factor: What that is multiplied by, by time.
    """

    rate: float = math.inf
    factor: Callable[[float], float] = lambda now: 1.0
    under_way: int = 0

    def takes(self, now: float, tokens: float) -> bool:
        """Whether a request that arrives now is taken."""
        return True

    def wait(self, now: float) -> float:
        """Seconds until one more would be."""
        return 0.0

    def allowed(self, seconds: float) -> float:
        """How many may be taken in so many seconds."""
        return self.rate * sum(self.factor((step + 0.5) / 20) / 20 for step in range(int(seconds * 20)))


@dataclass
class Bucket(Provider):
    """A token bucket that holds what `burst` seconds bring, and at least one."""

    burst: float = 0.2
    level: float = math.nan
    at: float = 0.0

    def takes(self, now: float, tokens: float) -> bool:
        rate = self.rate * self.factor(now)
        capacity = max(1.0, rate * self.burst)
        level = self.rate * self.burst if math.isnan(self.level) else self.level
        self.level = min(capacity, level + (now - self.at) * rate)
        self.at = now
        if rate <= 0 or self.level < min(tokens, capacity) - 1e-9:
            return False
        self.level -= tokens
        return True

    def wait(self, now: float) -> float:
        return max(0.001, 1 - self.level) / max(1e-9, self.rate * self.factor(now))

    def allowed(self, seconds: float) -> float:
        return super().allowed(seconds) + max(1.0, self.rate * self.burst)


@dataclass
class Windows(Provider):
    """So many in each window of a clock, also all at once; the first one is a third over."""

    window: float = 60.0
    used: float = 0.0
    number: int = -1

    def takes(self, now: float, tokens: float) -> bool:
        number = int(now / self.window + 1 / 3)
        if number != self.number:
            self.number, self.used = number, 0.0
        if self.used + tokens > self.rate * self.window * self.factor(now) + 1e-9:
            return False
        self.used += tokens
        return True

    def wait(self, now: float) -> float:
        return self.window - (now + self.window / 3) % self.window

    def allowed(self, seconds: float) -> float:
        whole, rest = divmod(seconds + self.window / 3, self.window)
        return self.rate * (self.window * whole + rest)


@dataclass
class Sliding(Provider):
    """So many in any 60 s."""

    taken: deque[float] = field(default_factory=deque)

    def takes(self, now: float, tokens: float) -> bool:
        while self.taken and self.taken[0] <= now - 60:
            self.taken.popleft()
        if len(self.taken) >= self.rate * 60:
            return False
        self.taken.append(now)
        return True

    def wait(self, now: float) -> float:
        return self.taken[0] + 60 - now if self.taken else 0.0

    def allowed(self, seconds: float) -> float:
        return self.rate * (60 + seconds)


@dataclass
class Width(Provider):
    """So many under way at a time."""

    width: int = 10

    def takes(self, now: float, tokens: float) -> bool:
        return self.under_way < self.width


# -- the world ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Scene:
    """What is simulated.

    Attributes:
        provider: What limits the requests.
        latency: Draws the seconds of an answer.
        callers: How many call, each again as soon as it is answered.
        seconds: How long.
        pools: Limiters that share the provider, and the callers.
        retry_after: Seconds that a refusal asks for: ``"exact"`` for the truth, None for no word of it.
        refusal: Seconds until a refusal is back.
        tokens: Draws the tokens of a request.
        batch: Share of the callers whose priority is batch.
        idle: Seconds that have passed since a lone call; None for a new pool.
        seed: Of everything that is drawn.
    """

    provider: Provider
    latency: float | Draw = 1.0
    callers: int = 300
    seconds: float = 60.0
    pools: int = 1
    retry_after: float | str | None = 1.0
    refusal: float = 0.05
    tokens: float | Draw = 1.0
    batch: float = 0.0
    idle: float | None = None
    seed: int = 1


@dataclass
class Call:
    number: int
    since: float
    batch: bool
    tokens: float


class Pool:
    """Callers in a line, a limiter, and a core that sends."""

    def __init__(self, world: World, callers: int) -> None:
        self.world = world
        self.limiter = Limiter(max(callers, 300), jitter=world.rng.random)
        self.taken = 0
        self._lines: tuple[list[tuple[int, Call]], list[tuple[int, Call]]] = ([], [])  # serving, batch
        self._timer = 0
        self._free_at = 0.0
        batch = int(callers * world.scene.batch)
        self.classes = [number < batch for number in range(callers)]

    def ask(self, batch: bool) -> None:
        self.join(Call(next(self.world.numbers), self.world.now, batch, self.world.draw(self.world.scene.tokens)))

    def join(self, call: Call) -> None:
        heapq.heappush(self._lines[call.batch], (call.number, call))
        self.advance()

    def advance(self) -> None:
        """Send what may be sent, and look again when it may be more: not before the core is free."""
        world, limiter = self.world, self.limiter
        self._timer += 1
        while line := self._lines[0] or self._lines[1]:
            call = line[0][1]
            slot = limiter.admit(world.now, batch=call.batch)
            if slot is None:
                wait = limiter.wait(world.now, batch=call.batch)
                if wait < math.inf:
                    world.at(max(world.now + wait, self._free_at), partial(self._look, self._timer))
                return
            heapq.heappop(line)
            self._free_at = max(self._free_at, world.now) + CORE
            world.at(self._free_at + 0.025, partial(self._arrive, call, slot))

    def _look(self, timer: int) -> None:
        if timer == self._timer:
            self.advance()

    def _arrive(self, call: Call, slot: Slot) -> None:
        world, scene, provider = self.world, self.world.scene, self.world.scene.provider
        world.sent.append(world.now)
        if provider.takes(world.now, call.tokens):
            provider.under_way += 1
            self.taken += 1
            world.taken.append(world.now)
            world.tokens.append(call.tokens)
            world.at(world.now + world.draw(scene.latency) + 0.025, partial(self._answered, call, slot))
        else:
            world.refused.append(world.now)
            asked = provider.wait(world.now) if scene.retry_after == "exact" else scene.retry_after
            world.at(world.now + scene.refusal - 0.025, partial(self._refused, call, slot, asked))

    def _answered(self, call: Call, slot: Slot) -> None:
        world = self.world
        world.scene.provider.under_way -= 1
        self.limiter.release(slot, "success", world.now, tokens=int(call.tokens))
        world.waits.append((call.batch, world.now - call.since))
        self.ask(call.batch)
        self.advance()

    def _refused(self, call: Call, slot: Slot, asked: float | str | None) -> None:
        assert not isinstance(asked, str)
        self.limiter.release(slot, "limited", self.world.now, retry_after=asked)
        self.join(call)
        self.advance()


class World:
    """A scene, run to its end.

    Attributes:
        sent: When each request arrived at the provider.
        taken: Those that were taken.
        tokens: What each of these had.
        refused: Those that were not.
        waits: Whether its priority was batch, and its seconds from its beginning to its answer, of each call.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.now = 0.0
        self.rng = random.Random(scene.seed)
        self.numbers = itertools.count()
        self.sent: list[float] = []
        self.taken: list[float] = []
        self.tokens: list[float] = []
        self.refused: list[float] = []
        self.waits: list[tuple[bool, float]] = []
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._order = itertools.count()
        self.pools = [Pool(self, scene.callers // scene.pools) for _ in range(scene.pools)]
        for pool in self.pools:
            if scene.idle is not None:
                slot = pool.limiter.admit(-scene.idle - 1)
                assert slot is not None
                pool.limiter.release(slot, "success", -scene.idle)
            for batch in pool.classes:
                self.at(0.0, partial(pool.ask, batch))
        while self._heap[0][0] <= scene.seconds:
            self.now, _, step = heapq.heappop(self._heap)
            step()

    def draw(self, value: float | Draw) -> float:
        return value(self.rng) if callable(value) else value

    def at(self, when: float, step: Callable[[], object]) -> None:
        """Have a step made at that time."""
        heapq.heappush(self._heap, (when, next(self._order), step))

    def share(self, possible: float | None = None, since: float = 0.0) -> float:
        """What was taken from then on, of what the provider allows."""
        if possible is None:
            provider, seconds = self.scene.provider, self.scene.seconds
            possible = provider.allowed(seconds) - (provider.allowed(since) if since else 0.0)
        return sum(when >= since for when in self.taken) / possible

    def wasted(self, since: float = 0.0) -> float:
        """Share of the requests that were refused from then on."""
        refused = sum(when >= since for when in self.refused)
        return refused / (refused + sum(when >= since for when in self.taken))

    def jain(self) -> float:
        """How equally the pools share: 1 for equally, 1 / n where one has everything."""
        taken = [pool.taken for pool in self.pools]
        return sum(taken) ** 2 / (len(taken) * sum(each**2 for each in taken))
