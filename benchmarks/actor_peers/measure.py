"""Times what a `Peer` offers, the same way for every peer; `actor_peers.__main__` calls it once a round.

A rate is measured in chunks of a size found by trial, each within its share of the budget; the median chunk counts, so
that one pause of a shared machine does not. `benchmarks.report` takes the median over processes.
"""

from __future__ import annotations

import functools
import gc
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.actor_peers import Peer
from benchmarks.report import Unsupported

__all__ = ["MEASURES", "Effort", "Measure"]

CHUNKS = 3
WARM_UP = 0.1  # share of the budget that a trial must take before its rate is trusted
UNDER_WAY = 1_000
RESTED = 10  # turns of the loop between two crashes: otpylib never restarts one that dies before it is monitored


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much work one process does.

    Attributes:
        budget: Seconds for each rate of asks, about.
        bulk: Seconds for the tells and for the spawns; a subject that cannot do so many in a chunk does fewer.
        tells: The most tells in one chunk.
        spawns: The most actors in one chunk.
        idle: How many idle actors are weighed.
        restarts: The most crashes.
    """

    budget: float = 0.5
    bulk: float = 1.2
    tells: int = 100_000
    spawns: int = 10_000
    idle: int = 10_000
    restarts: int = 200


Measure = Callable[[Peer[Any], Effort], Coroutine[Any, Any, float]]


async def _seconds(operation: Callable[[int], Awaitable[None]], count: int) -> float:
    started = time.perf_counter()
    await operation(count)
    return time.perf_counter() - started


async def _rate(operation: Callable[[int], Awaitable[None]], budget: float, *, most: int = 10_000_000) -> float:
    """Return how often a second `operation` does its work; it is given the number of times."""
    count = 1
    while (elapsed := await _seconds(operation, count)) < WARM_UP * budget and count < most:
        count = min(most, 4 * count)
    count = max(1, min(most, int(count / elapsed * budget / CHUNKS)))
    return statistics.median([count / await _seconds(operation, count) for _ in range(CHUNKS)])


async def _asks(peer: Peer[Any], effort: Effort, *, callers: int, actors: int) -> float:
    refs = [await peer.spawn() for _ in range(actors)]

    async def one_caller(ref: Any, times: int) -> None:
        answer = await peer.ask(ref, times)
        if answer != times - 1:
            raise RuntimeError(f"the last answer is {answer!r}, not {times - 1}")

    async def operation(times: int) -> None:
        if callers == 1:
            await one_caller(refs[0], times)
        else:
            jobs = [functools.partial(one_caller, refs[caller % actors], times) for caller in range(callers)]
            await peer.together(jobs)

    return callers * await _rate(operation, effort.budget)


async def _tells(peer: Peer[Any], effort: Effort) -> float:
    ref = await peer.spawn_sink()
    sent = 0

    async def operation(count: int) -> None:
        nonlocal sent
        sent += count
        await peer.tell(ref, count)
        while await peer.total(ref) < sent:
            pass

    return await _rate(operation, effort.bulk, most=effort.tells)


async def _spawns(peer: Peer[Any], effort: Effort) -> float:
    async def operation(count: int) -> None:
        refs = [await peer.spawn() for _ in range(count)]
        for ref in refs:
            await peer.stop(ref)
        await peer.settle()

    return await _rate(operation, effort.bulk, most=effort.spawns)


async def _idle(peer: Peer[Any], effort: Effort) -> float:
    first = await peer.spawn()
    await peer.ask(first, 1)
    before = _resident_kib()
    refs = [await peer.spawn() for _ in range(effort.idle)]
    # Actors that start in the background have all started once the last one answers.
    await peer.ask(refs[-1], 1)
    return (_resident_kib() - before) / effort.idle


def _resident_kib() -> float:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        raise Unsupported("this system has no /proc/self/statm")
    gc.collect()
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


async def _restart(peer: Peer[Any], effort: Effort) -> float:
    ref = await peer.spawn_supervised()
    samples: list[float] = []
    ends = time.perf_counter() + effort.budget
    while len(samples) < effort.restarts and (len(samples) < CHUNKS or time.perf_counter() < ends):
        for _ in range(RESTED):
            await peer.checkpoint()
        started = time.perf_counter()
        await peer.crash(ref)
        samples.append((time.perf_counter() - started) * 1e6)
    return statistics.median(samples)


async def _busy(peer: Peer[Any], effort: Effort) -> float:
    ref = await peer.spawn_busy(UNDER_WAY)
    return 1e6 / await _rate(functools.partial(peer.ask_busy, ref), effort.budget)


MEASURES: dict[str, Measure] = {
    "idle_kib": _idle,  # the first one: it needs a heap that nothing else has grown
    "ask_1": functools.partial(_asks, callers=1, actors=1),
    "ask_100": functools.partial(_asks, callers=100, actors=1),
    "ask_100x100": functools.partial(_asks, callers=100, actors=100),
    "tell": _tells,
    "spawn": _spawns,
    "restart_us": _restart,
    "ask_busy_us": _busy,
}
