"""What a limiter gets of what a provider allows, and what it wastes, in virtual time and with every kind of limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tests.support.rate_limits import Bucket, Provider, Scene, Sliding, Width, Windows, World, lognormal

LONG = pytest.mark.nightly
SEEDS = [1, *(pytest.param(seed, marks=LONG) for seed in range(2, 8))]


def factor(share: float, start: float, end: float) -> Callable[[float], float]:
    return lambda now: share if start <= now < end else 1.0


SLOW = {
    "answers in 30 s",
    "answers of any length",
    "used once, 5 s before",
    "no Retry-After",
    "the exact Retry-After",
    "8.3 a second",
    "6,000 a clock minute",
    "500 a clock minute, Retry-After wrong",
    "500 in 10 s",
    "500 in any 60 s",
}
"""Scenes for `make test-nightly`: each takes a second or more, and is like another."""

# Each scene: what is simulated; the least share of what is allowed, and the most percent refused.
STEADY: dict[str, tuple[Callable[[], Scene], float, float]] = {
    "answers in 0.05 s": (lambda: Scene(provider=Bucket(100), latency=0.05), 0.95, 1.0),
    "answers in 1 s": (lambda: Scene(provider=Bucket(100)), 0.95, 1.0),
    "answers in 30 s": (lambda: Scene(provider=Bucket(100), latency=30.0, callers=4000), 0.95, 1.0),
    "answers of any length": (lambda: Scene(provider=Bucket(100), latency=lognormal(2), callers=2000), 0.95, 1.0),
    "20 callers": (lambda: Scene(provider=Bucket(100), latency=0.05, callers=20), 0.95, 1.0),
    "used once, 5 s before": (lambda: Scene(provider=Bucket(100), idle=5.0), 0.95, 1.0),
    "used once, an hour before": (lambda: Scene(provider=Bucket(100), idle=3600.0), 0.95, 1.0),
    "Retry-After of a minute": (lambda: Scene(provider=Bucket(100), retry_after=60.0), 0.95, 1.0),
    "no Retry-After": (lambda: Scene(provider=Bucket(100), retry_after=None), 0.95, 1.0),
    "the exact Retry-After": (lambda: Scene(provider=Bucket(100), retry_after="exact"), 0.95, 1.0),
    "a small bucket": (lambda: Scene(provider=Bucket(100, burst=0.05)), 0.95, 1.0),
    "refusals in 0.3 s": (lambda: Scene(provider=Bucket(100), refusal=0.3), 0.95, 3.5),
    "8.3 a second": (lambda: Scene(provider=Bucket(500 / 60, burst=60), seconds=600), 0.95, 2.0),
    "50 a minute": (lambda: Scene(provider=Bucket(50 / 60, burst=60), seconds=1800), 0.95, 3.0),
    "50 a minute, one at a time": (lambda: Scene(provider=Bucket(50 / 60), seconds=1800), 0.85, 3.0),
    "cut to a fourth for 20 s": (
        lambda: Scene(provider=Bucket(100, factor=factor(0.25, 10, 30)), latency=0.2), 0.93, 2.0),
    "doubled at 20 s": (lambda: Scene(provider=Bucket(200, factor=factor(0.5, 0, 20)), latency=0.2), 0.93, 1.0),
    "nothing taken for 10 s": (lambda: Scene(provider=Bucket(100, factor=factor(0, 10, 20)), latency=0.2), 0.9, 2.0),
}  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG) if name in SLOW else name for name in STEADY])
def test_nearly_all_that_is_allowed_is_taken_and_little_is_refused(name: str, seed: int) -> None:
    make, share, refused = STEADY[name]
    scene = make()
    scene.seed = seed
    world = World(scene)
    assert world.share() >= share
    assert 100 * world.wasted() <= refused


LEARNED: dict[str, tuple[Callable[[], Provider], float | str, float, float]] = {
    "6,000 a clock minute": (lambda: Windows(100), "exact", 0.95, 1.0),
    "500 a clock minute": (lambda: Windows(500 / 60), "exact", 0.9, 1.5),
    "500 a clock minute, Retry-After wrong": (lambda: Windows(500 / 60), 1.0, 0.9, 2.0),
    "500 in 10 s": (lambda: Windows(50, window=10.0), "exact", 0.9, 1.5),
    "500 in any 60 s": (lambda: Sliding(500 / 60), "exact", 0.9, 1.5),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [pytest.param(name, marks=LONG) if name in SLOW else name for name in LEARNED])
def test_a_provider_that_counts_in_windows_is_learned_in_two_of_them(name: str, seed: int) -> None:
    make, retry_after, share, refused = LEARNED[name]
    world = World(Scene(provider=make(), retry_after=retry_after, seconds=520.0, seed=seed))
    assert world.share(since=160.0) >= share
    assert 100 * world.wasted(since=160.0) <= refused


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("width", "refused"), [(10, 3.0), pytest.param(100, 2.0, marks=LONG)])
def test_a_provider_that_counts_what_is_under_way_is_kept_busy(width: int, refused: float, seed: int) -> None:
    scene = Scene(provider=Width(width=width), latency=lognormal(1), seconds=240, seed=seed)
    world = World(scene)
    busy = math.exp(0.5)  # seconds of an answer, on average
    assert world.share(possible=240 * width / (busy + 0.05)) >= 0.9
    assert 100 * world.wasted() <= refused


@LONG
@pytest.mark.parametrize("seed", range(1, 4))
def test_tokens_are_paced_by_their_average(seed: int) -> None:
    size = lognormal(500, least=50, most=4000)
    world = World(Scene(provider=Bucket(1e6 / 60, burst=1), latency=2.0, tokens=size, seconds=240, seed=seed))
    tokens = sum(world.tokens)
    assert tokens >= 0.8 * 240 * 1e6 / 60
    assert 100 * world.wasted() <= 8.0


def test_what_is_sent_at_once_is_little_also_after_a_rest() -> None:
    for idle in (None, 5.0, 3600.0):
        world = World(Scene(provider=Provider(), idle=idle, seconds=0.5))
        assert sum(when <= 0.125 for when in world.sent) <= 30


def test_without_a_limit_the_pace_opens_to_all_callers_within_seconds() -> None:
    world = World(Scene(provider=Provider(), latency=2.0, seconds=2.0))
    assert len(world.sent) >= 300


def test_a_doubled_limit_is_found_within_four_seconds() -> None:
    world = World(Scene(provider=Bucket(200, factor=factor(0.5, 0, 20)), latency=0.2, seconds=28))
    assert sum(24 <= when < 26 for when in world.taken) >= 0.9 * 2 * 200


@pytest.mark.parametrize("pools", [2, pytest.param(4, marks=LONG)])
def test_pools_that_share_a_limit_take_all_of_it_and_waste_little(pools: int) -> None:
    world = World(Scene(provider=Bucket(100), pools=pools, seconds=60))
    assert world.share(since=20.0) >= 0.95
    assert world.wasted(since=20.0) <= 0.02
    assert world.jain() >= (0.9 if pools == 2 else 0.6)


def test_serving_waits_for_its_answer_and_hardly_for_a_batch_beside_it() -> None:
    world = World(Scene(provider=Bucket(100), callers=310, batch=300 / 310))
    serving = sorted(wait for batch, wait in world.waits if not batch)
    assert serving[int(0.99 * len(serving))] <= 1.05 + 0.2
