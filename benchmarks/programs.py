"""Programs compared: what an actor adds to a call, and an evaluation; `python -m benchmarks.programs`.

`benchmarks.report` runs `python -m benchmarks.programs SUBJECT` for each subject and round.

- What an actor adds: modules that do nothing, hosted and plain, in turns within one process; CPU time of the process.
  One alone is a root; five more below it, divided by five, are sub-modules. With work of DSPy's own in them, and its
  thread hops, the same code gave +5 and +167. And, with that, the ratio of a call of five `dspy.Predict`s on an LM that
  answers at once. `promptside` alone has these.
- What an adapter takes: a `dspy.Predict` without demos and with 16, called with `promptside.programs.ChatAdapter` and
  with `dspy.ChatAdapter`, in turns within one process. `promptside` alone has these four.
- 200 such programs called at the same time: hosted, and (the floor) by `module.acall`.
- An evaluation of 1,000 examples: the LM answers after 50 ms, within the process; the metric is a plain function.
  `promptside` evaluates a hosted program, `dspy.Evaluate` the same module in as many threads as `promptside` has
  demand. The floor is a task per example under a semaphore.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Metric, Subject, Unsupported, main, measure_each

WIDTHS = (256, 64, 16)
EXAMPLES, LATENCY = 1_000, 0.05

CALLS, ROUNDS, PROGRAMS = 40, 9, 200

DEMOS = (0, 16)

KINDS = {"": "an asynchronous", "sync_": "a synchronous", "heard_": "with a listener to *, an asynchronous"}
ADDED = tuple(
    Metric(
        name=f"actor_overhead_{kind}{place}_us",
        unit="us",
        title=f"CPU that hosting adds to {what} module that does nothing: {place}",
        higher_is_better=False,
    )
    for kind, what in KINDS.items()
    for place in ("root", "submodule")
)
OVERHEAD = (
    *ADDED,
    Metric(
        name="actor_overhead_ratio",
        unit="x",
        title="CPU of a hosted call of six modules, against module.acall",
        higher_is_better=False,
    ),
)
PREDICT = tuple(
    Metric(name=f"predict_{demos}_demos_{suffix}", unit=unit, title=title.format(demos), higher_is_better=False)
    for demos in DEMOS
    for suffix, unit, title in (
        ("us", "us", "CPU of a dspy.Predict with {} demos by our ChatAdapter"),
        ("ratio", "x", "CPU of a dspy.Predict with {} demos by our ChatAdapter, against dspy.ChatAdapter"),
    )
)
CONCURRENT = (
    Metric(
        name="programs_200_s",
        unit="s",
        title=f"{PROGRAMS} programs of six modules, called at once, zero latency",
        higher_is_better=False,
    ),
)
EVALUATE = tuple(
    Metric(
        name=f"evaluate_1000{suffix}_{unit}",
        unit="MiB" if unit == "mib" else "s",
        title=f"{EXAMPLES:,} examples at {LATENCY * 1000:.0f} ms an LM call, {width} at a time: {what}",
        higher_is_better=False,
    )
    for width in WIDTHS
    for suffix in ("" if width == max(WIDTHS) else f"_{width}",)
    for unit, what in (("s", "seconds"), ("cpu_s", "CPU seconds"), ("mib", "peak memory, above what it began with"))
)


SYNCHRONOUS = Metric(
    name="evaluate_1000_sync_cpu_s",
    unit="s",
    title=f"the same with a synchronous module, {max(WIDTHS)} at a time: CPU seconds",
    higher_is_better=False,
)

METRICS = (*OVERHEAD, *PREDICT, *CONCURRENT, *EVALUATE, SYNCHRONOUS)


# -- calls -------------------------------------------------------------------------------------------------------------


def five() -> Any:
    import dspy

    class Five(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [dspy.Predict("question -> answer") for _ in range(5)]

        async def aforward(self, question: str) -> Any:
            for step in self.steps:
                prediction = await step.acall(question=question)
            return prediction

    return Five()


def idle(below: int, *, synchronous: bool) -> Any:
    """A module that does nothing, or nothing but to call so many others."""
    import dspy

    class Idle(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = [idle(0, synchronous=synchronous) for _ in range(below)]

    class Synchronous(Idle):
        def forward(self, number: int) -> int:
            for step in self.steps:
                number = step(number=number)
            return number

    class Asynchronous(Idle):
        async def aforward(self, number: int) -> int:
            for step in self.steps:
                number = await step.acall(number=number)
            return number

    return Synchronous() if synchronous else Asynchronous()


@functools.cache
def added(kind: str) -> tuple[float, float]:
    """Microseconds that hosting adds to a root, and to a sub-module."""
    from promptside import ActorSystem
    from promptside.programs import Program

    async def plain(module: Any) -> None:
        module(number=1)

    async def run() -> tuple[float, float]:
        async with ActorSystem() as system:
            if kind == "heard_":
                system.events.on("*", lambda event: None)
            calls: dict[str, Callable[[], Any]] = {}
            for below in (0, 5):
                make = functools.partial(idle, below, synchronous=kind == "sync_")
                program, module = await Program(make, name=f"of-{below}").start(system), make()
                calls[f"hosted {below}"] = functools.partial(program.acall, number=1)
                alone = (
                    functools.partial(plain, module) if kind == "sync_" else functools.partial(module.acall, number=1)
                )
                calls[f"plain {below}"] = alone
            spent: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(ROUNDS):
                for name, call in calls.items():
                    began = time.process_time()
                    for _ in range(5 * CALLS):
                        await call()
                    spent[name].append((time.process_time() - began) / (5 * CALLS) * 1e6)
        median = {name: statistics.median(times) for name, times in spent.items()}
        root = median["hosted 0"] - median["plain 0"]
        return root, (median["hosted 5"] - median["plain 5"] - root) / 5

    return asyncio.run(run())


@functools.cache
def overhead() -> float:
    """The ratio of a call of six modules."""
    import dspy

    from promptside import ActorSystem
    from promptside.programs import Program
    from promptside.testing import MockLM

    async def run() -> float:
        async with ActorSystem() as system:
            with dspy.context(lm=MockLM("yes").lm(cache=False), trace=[]):
                program, module = await Program(five).start(system), five()
                spent: dict[str, list[float]] = {"hosted": [], "plain": []}
                for _ in range(ROUNDS):
                    for name, call in (("hosted", program.acall), ("plain", module.acall)):
                        began = time.thread_time()
                        for _ in range(CALLS):
                            await call(question="?")
                        spent[name].append((time.thread_time() - began) / CALLS)
        return statistics.median(spent["hosted"]) / statistics.median(spent["plain"])

    return asyncio.run(run())


@functools.cache
def predict(demos: int) -> tuple[float, float]:
    """Microseconds of a call by our adapter, and their ratio to DSPy's."""
    import dspy

    from promptside.programs import ChatAdapter
    from promptside.testing import MockLM

    predictor = dspy.Predict("question -> answer")
    predictor.demos = [dspy.Example(question=f"{n}?", answer="yes") for n in range(demos)]
    adapters = {"ours": ChatAdapter(), "plain": dspy.ChatAdapter()}
    spent: dict[str, list[float]] = {name: [] for name in adapters}
    with dspy.context(lm=MockLM("yes").lm(cache=False), trace=[]):
        for _ in range(ROUNDS):
            for name, adapter in adapters.items():
                with dspy.context(adapter=adapter):
                    predictor(question="?")
                    began = time.thread_time()
                    for _ in range(CALLS):
                        predictor(question="?")
                    spent[name].append((time.thread_time() - began) / CALLS)
    ours, plain = statistics.median(spent["ours"]), statistics.median(spent["plain"])
    return ours * 1e6, ours / plain


def concurrent(*, hosted: bool) -> float:
    import dspy

    from promptside import ActorSystem
    from promptside.programs import Program
    from promptside.testing import MockLM

    async def run() -> float:
        async with ActorSystem() as system:
            with dspy.context(lm=MockLM("yes").lm(cache=False), trace=[]):
                modules = [five() for _ in range(PROGRAMS)]
                calls = [(await Program(each).start(system)).acall if hosted else each.acall for each in modules]
                await calls[0](question="?")
                began = time.perf_counter()
                await asyncio.gather(*(call(question="?") for call in calls))
                return time.perf_counter() - began

    return asyncio.run(run())


# -- evaluations -------------------------------------------------------------------------------------------------------


def devset(size: int) -> list[Any]:
    import dspy

    return [dspy.Example(question=f"{n}?", answer="yes").with_inputs("question") for n in range(size)]


def exact(example: Any, prediction: Any) -> bool:
    return bool(example.answer == prediction.answer)


def floor(module: Any, examples: list[Any], width: int) -> float:
    async def run() -> float:
        room = asyncio.Semaphore(width)

        async def score(example: Any) -> bool:
            async with room:
                return exact(example, await module.acall(**example.inputs()))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(example)) for example in examples]
        return 100 * sum(task.result() for task in tasks) / len(tasks)

    return asyncio.run(run())


def promptside(module: Any, examples: list[Any], width: int) -> float:
    from promptside import ActorSystem
    from promptside.programs import Program
    from promptside.programs.evaluation.evaluate import evaluate

    async def run() -> float:
        async with ActorSystem() as system:
            program = await Program(module).start(system)
            return float((await evaluate(program, examples, exact, max_concurrency=width)).score)

    return asyncio.run(run())


def dspy_evaluate(module: Any, examples: list[Any], width: int) -> float:
    import dspy

    return float(dspy.Evaluate(devset=examples, metric=exact, num_threads=width)(module).score)


SUBJECTS = {"floor": floor, "promptside": promptside, "dspy.Evaluate": dspy_evaluate}


def synchronous() -> Any:
    import dspy

    class Synchronous(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            return self.ask(question=question)

    return Synchronous()


@functools.cache
def measured(subject: str, width: int, *, called: bool = False) -> tuple[float, float, float | None]:
    """Seconds, CPU seconds and MiB of one evaluation, of a synchronous module if it is `called`."""
    import dspy

    from promptside.testing import MockLM

    logging.getLogger("dspy").setLevel(logging.WARNING)
    module = synchronous() if called else dspy.Predict("question -> answer")
    with dspy.context(lm=MockLM("yes", latency=LATENCY).lm()):
        SUBJECTS[subject](module, devset(8), 8)  # what is imported and made once
        examples = devset(EXAMPLES)
        before = _memory("VmRSS") if _forget_peak() else None
        began, cpu = time.perf_counter(), time.process_time()
        score = SUBJECTS[subject](module, examples, width)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert score == 100.0
    return seconds, cpu, None if before is None else max(0.0, _memory("VmHWM") - before)


def _forget_peak() -> bool:
    """Let the kernel count the process's peak memory from here on; Linux alone can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _memory(field: str) -> float:
    """A figure of the process's memory in MiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise Unsupported(f"no {field} in /proc/self/status")


def figure(subject: str, width: int, place: int) -> float:
    found = measured(subject, width)[place]
    if found is None:
        raise Unsupported("this system does not tell the peak of a process's memory")
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SUBJECTS:
        measures: dict[str, Callable[[], float]] = {}
        if sys.argv[1] == "promptside":
            for place, metric in enumerate(ADDED):
                kind = list(KINDS)[place // 2]
                measures[metric.name] = lambda kind=kind, place=place: added(kind)[place % 2]
            measures["actor_overhead_ratio"] = overhead
            for demos in DEMOS:
                measures[f"predict_{demos}_demos_us"] = lambda demos=demos: predict(demos)[0]
                measures[f"predict_{demos}_demos_ratio"] = lambda demos=demos: predict(demos)[1]
        if sys.argv[1] != "dspy.Evaluate":
            measures["programs_200_s"] = functools.partial(concurrent, hosted=sys.argv[1] == "promptside")
        each = [(width, place) for width in WIDTHS for place in range(3)]
        for metric, (width, place) in zip(EVALUATE, each, strict=True):
            measures[metric.name] = functools.partial(figure, sys.argv[1], width, place)
        if sys.argv[1] != "floor":  # which awaits
            measures[SYNCHRONOUS.name] = lambda: measured(sys.argv[1], max(WIDTHS), called=True)[1]
        measure_each(measures)
    else:
        main("programs", METRICS, [Subject(name=name, command=("benchmarks.programs", name)) for name in SUBJECTS])
