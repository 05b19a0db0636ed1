"""LM clients compared: throughput, CPU, width, and goodput under a rate limit; `python -m benchmarks.lm_pool`.

`benchmarks.report` runs `python -m benchmarks.lm_pool SUBJECT` for each subject and round, against a local provider in
a process of its own (`lm_peers.server`). Every call asks another question, so no cache answers. A subject is opened
anew, in an event loop of its own, for every measurement; the first call, which imports and connects, is not timed.

- `cpu_ms` is the CPU time of the whole client process, all its threads, by call.
- `cpu_ms_added` is that minus the same of a `dspy.LM` with the native engine, called in turns with the subject in the
  same process; only for what is called as a `dspy.LM` itself. Of `dspy` it is the noise of the measurement.
- `goodput_share` is the percentage of what a limit of 100 requests/s allows that 300 callers get in 800 calls, and
  `goodput_refused` that of the requests that it refuses: of a client that was used once, where answers take 0.2, 1 and
  5 s, and cold, where they take 1 s. What is possible includes the time of the last answer. A subject needs 50 to 90 s.
- The limit of `goodput_failed` and `goodput_wasted` is 100 requests/s, and a quarter of that from the third to the
  eighth second; 300 callers make 800 calls of 0.2 s. Failed is what the callers saw, wasted the share of requests that
  the provider refused.

`--quick` makes a third of the wide calls, and scales, and measures goodput of promptside alone, with 250 calls and a
cut of 1.5 s; on a busy machine it does not come to the last subjects, whose litellm takes 4 to 8 s to import.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.lm_peers.server import Behaviour, Server, running
from benchmarks.lm_peers.subjects import DSPY, SUBJECTS, Call, Opened
from benchmarks.report import Metric, Subject, Unsupported, main, measure_each

T = TypeVar("T")

METRICS = (
    Metric(name="calls_1", unit="1/s", title="calls, 1 caller, no latency"),
    Metric(name="calls_100", unit="1/s", title="calls, 100 callers, no latency"),
    Metric(name="calls_300", unit="1/s", title="calls, 300 callers, no latency"),
    Metric(name="cpu_ms", unit="ms", title="CPU time per call, 100 callers", higher_is_better=False),
    Metric(
        name="cpu_ms_added",
        unit="ms",
        title="the same, over a native dspy.LM in the same process",
        higher_is_better=False,
    ),
    Metric(
        name="wide_300_s", unit="s", title="900 calls of 0.5 s, 300 callers; 1.5 s is ideal", higher_is_better=False
    ),
    Metric(
        name="wide_300_warm_s",
        unit="s",
        title="the same, when 300 calls were made before",
        higher_is_better=False,
    ),
    Metric(
        name="goodput_failed",
        unit="calls",
        title="calls that failed, the limit cut 4x for a while",
        higher_is_better=False,
    ),
    Metric(name="goodput_wasted", unit="%", title="requests that were refused, the same run", higher_is_better=False),
)


GOODPUT = {"cold": (1.0, False), "0.2_s": (0.2, True), "1_s": (1.0, True), "5_s": (5.0, True)}
"""Seconds of an answer, and whether the client was used before, by names of metrics."""

METRICS += tuple(
    Metric(name=f"{kind}_{name}", unit="%", title=f"{title}, {name.replace('_', ' ')}", higher_is_better=better)
    for kind, title, better in (
        ("goodput_share", "of what a limit allows, answered", True),
        ("goodput_refused", "of the requests, refused", False),
    )
    for name in GOODPUT
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is done; the defaults are those of a full run.

    Attributes:
        seconds: How long each throughput is measured.
        turns: How often subject and reference are called in turns for `cpu_ms_added`, 200 calls each.
        waves: Waves of 300 calls; the result is scaled to three.
        calls: Calls under the rate limit.
        cut_from: Seconds from the first request under the rate limit until that is cut.
        cut_to: The same, until it is restored.
    """

    seconds: float = 1.5
    turns: int = 8
    waves: int = 3
    calls: int = 800
    cut_from: float = 2.0
    cut_to: float = 8.0


QUICK = Effort(seconds=0.25, turns=3, waves=1, calls=250, cut_from=0.5, cut_to=2.0)

questions = (f"What is the capital of country {number}?" for number in itertools.count(os.getpid() * 10**9))


class Measures:
    """The measurements of one subject.

    Args:
        name: The subject.
        server: The provider.
        quick: Whether in little time.
    """

    def __init__(self, name: str, server: Server, *, quick: bool) -> None:
        self.name = name
        self.open = SUBJECTS[name]
        self.server = server
        self.quick = quick
        self.effort = QUICK if quick else Effort()
        self.shares: dict[str, tuple[float, float]] = {}

    def all(self) -> dict[str, Callable[[], float]]:
        return {
            "calls_1": lambda: self.rates[1][0],
            "calls_100": lambda: self.rates[100][0],
            "calls_300": lambda: self.rates[300][0],
            "cpu_ms": lambda: self.rates[100][1],
            "cpu_ms_added": self.cpu_added,
            "wide_300_s": self.wide,
            "wide_300_warm_s": functools.partial(self.wide, warm=True),
            "goodput_failed": lambda: self.goodput[0],
            "goodput_wasted": lambda: self.goodput[1],
            **{f"goodput_share_{name}": functools.partial(self.share, name, 0) for name in GOODPUT},
            **{f"goodput_refused_{name}": functools.partial(self.share, name, 1) for name in GOODPUT},
        }

    @functools.cached_property
    def rates(self) -> dict[int, tuple[float, float]]:
        """By width: calls a second, and CPU milliseconds per call."""

        async def measure(call: Call) -> dict[int, tuple[float, float]]:
            rates = {}
            await together(call, 50, calls=50)
            for width in (1, 100, 300):
                start, spent = time.perf_counter(), time.process_time()
                made = await together(call, width, until=start + self.effort.seconds)
                seconds, spent = time.perf_counter() - start, time.process_time() - spent
                rates[width] = made / seconds, spent / made * 1e3
            return rates

        return self.run(measure)

    def cpu_added(self) -> float:
        """CPU milliseconds per call over those of a native `dspy.LM`."""
        if self.name not in DSPY:
            raise Unsupported("it is not called as a dspy.LM")

        async def measure(*calls: Call) -> float:
            spent: list[list[float]] = [[] for _ in calls]
            for _ in range(self.effort.turns):
                for call, figures in zip(calls, spent, strict=True):
                    start = time.process_time()
                    await together(call, 100, calls=200)
                    figures.append((time.process_time() - start) / 200 * 1e3)
            own, reference = (statistics.median(figures[1:]) for figures in spent)  # the first one connects
            return own - reference

        return self.run(measure, SUBJECTS["dspy"])

    def wide(self, *, warm: bool = False) -> float:
        async def measure(call: Call) -> float:
            await together(call, 300, calls=300 * warm)
            start = time.perf_counter()
            await together(call, 300, calls=300 * self.effort.waves)
            return (time.perf_counter() - start) * 3 / self.effort.waves

        return self.run(measure, behaviour=Behaviour(latency=0.5))

    @functools.cached_property
    def goodput(self) -> tuple[float, float]:
        """Calls that failed, and percent of the requests that were refused."""
        self.check_goodput()

        async def measure(call: Call) -> tuple[float, float]:
            failed = await failures(call, 300, self.effort.calls)
            return failed, await self.refused()

        effort = self.effort
        limit = Behaviour(latency=0.2, rate=100, cut=4, cut_from=effort.cut_from, cut_to=effort.cut_to)
        return self.run(measure, behaviour=limit)

    async def refused(self) -> float:
        """Percent of the requests that the provider has refused."""
        counts = await asyncio.to_thread(self.server.counts)
        return 100 * counts["refused"] / counts["requests"]

    def check_goodput(self) -> None:
        if self.name == "aiohttp":
            raise Unsupported("it does not retry")
        if self.quick and self.name != "promptside":
            raise Unsupported("left out by --quick")

    def share(self, name: str, which: int) -> float:
        """Percent of what is possible that was answered, or of the requests that were refused."""
        self.check_goodput()
        if name not in self.shares:
            latency, warm = GOODPUT[name]
            calls = self.effort.calls

            async def measure(call: Call) -> tuple[float, float]:
                start = time.perf_counter()
                failed = await failures(call, 300, calls)
                seconds = time.perf_counter() - start
                rate = min(100, 300 / latency)
                possible = latency + (calls - 20) / rate
                return 100 * (calls - failed) / calls * possible / seconds, await self.refused()

            self.shares[name] = self.run(measure, behaviour=Behaviour(latency=latency, rate=100), warm=warm)
        return self.shares[name][which]

    def run(
        self,
        measure: Callable[..., Awaitable[T]],
        *more: Opened,
        behaviour: Behaviour | None = None,
        warm: bool = True,
    ) -> T:
        """Open the subject, and others beside it; call once if `warm`; measure while the provider behaves so."""

        async def opened() -> T:
            async with AsyncExitStack() as stack:
                calls = [await stack.enter_async_context(open_(self.server.url)) for open_ in (self.open, *more)]
                for call in calls if warm else ():
                    await call(next(questions))
                if behaviour is not None:
                    await asyncio.to_thread(self.server.behave, behaviour)
                try:
                    return await measure(*calls)
                finally:
                    await asyncio.to_thread(self.server.behave, Behaviour())

        return asyncio.run(opened())


async def together(call: Call, width: int, *, calls: float = math.inf, until: float = math.inf) -> int:
    """Call, `width` at a time, until so many calls are begun or that time has come; return how many were made."""
    made = 0

    async def caller() -> None:
        nonlocal made
        while made < calls and time.perf_counter() < until:
            made += 1
            await call(next(questions))

    await asyncio.gather(*(caller() for _ in range(width)))
    return made


async def failures(call: Call, width: int, calls: int) -> int:
    """Call so often, `width` at a time; return how many callers got no answer."""
    failed = 0

    async def try_(question: str) -> None:
        nonlocal failed
        try:
            await call(question)
        except Exception:  # noqa: BLE001 - whatever a client raises, its caller has no answer
            failed += 1

    await together(try_, width, calls=calls)
    return failed


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SUBJECTS:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network
        logging.disable()  # of failures that are expected; formatted lines that nobody reads would be part of the cost
        with running() as server:
            measure_each(Measures(sys.argv[1], server, quick="--quick" in sys.argv).all())
    else:
        packages = {
            "openai": ("openai",),
            "aiohttp": ("aiohttp",),
            "dspy": ("dspy",),
            **dict.fromkeys(("litellm", "litellm-router"), ("litellm",)),
            "dspy-litellm": ("dspy", "litellm"),
        }
        subjects = [
            Subject(name=name, command=("benchmarks.lm_pool", name), packages=packages.get(name, ()))
            for name in SUBJECTS
        ]
        main("lm_pool", METRICS, subjects)
