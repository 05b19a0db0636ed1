"""Supervisors compared: a group of 1,000 that restarts, children that come and go, `python -m benchmarks.supervision`.

`benchmarks.report` runs `python -m benchmarks.supervision SUBJECT` for each subject and round. The floor is the
cheapest asyncio code that does the same: a task with a deque and a waiter per child, cancelled and made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Coroutine

from benchmarks.report import Metric, Subject, main, measure_each

METRICS = (
    Metric(
        name="one_for_all_1000_ms",
        unit="ms",
        title="one of 1,000 children crashes, until each of them answers again",
        higher_is_better=False,
    ),
    Metric(name="dynamic_1000", unit="1/s", title="children started under a supervisor, then stopped"),
)

CHILDREN = 1_000


# -- the floor ---------------------------------------------------------------------------------------------------


class Echo:
    """A task that answers from a deque, with one waiter."""

    def __init__(self) -> None:
        self.queue: deque[asyncio.Future[int]] = deque()
        self.waiter: asyncio.Future[None] | None = None
        self.task = asyncio.create_task(self.serve())

    async def serve(self) -> None:
        while True:
            while self.queue:
                self.queue.popleft().set_result(1)
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    async def ask(self) -> int:
        reply: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.append(reply)
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
        return await reply

    async def stop(self) -> None:
        self.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.task


async def floor_one_for_all() -> float:
    children = [Echo() for _ in range(CHILDREN)]
    await asyncio.gather(*(child.ask() for child in children))
    begin = time.perf_counter()
    for child in reversed(children):
        await child.stop()
    children = [Echo() for _ in range(CHILDREN)]
    await asyncio.gather(*(child.ask() for child in children))
    seconds = time.perf_counter() - begin
    for child in children:
        await child.stop()
    return seconds * 1e3


async def floor_dynamic() -> float:
    begin = time.perf_counter()
    children = [Echo() for _ in range(CHILDREN)]
    await asyncio.gather(*(child.ask() for child in children))
    for child in children:
        await child.stop()
    return CHILDREN / (time.perf_counter() - begin)


# -- promptside --------------------------------------------------------------------------------------------------


async def promptside_one_for_all() -> float:
    from promptside import Actor, ActorSystem, ChildSpec, Supervisor

    class Child(Actor):
        async def ping(self) -> int:
            return 1

        async def fail(self) -> None:
            raise ValueError

    async with ActorSystem() as system:
        system.events.on("actor.crashed", lambda event: None)
        specs = [ChildSpec(f"child-{number}", Child) for number in range(CHILDREN)]
        supervisor = await system.spawn(Supervisor, specs, strategy="one_for_all")
        refs = [child.ref for child in await supervisor.ask(Supervisor.which_children)]
        await asyncio.gather(*(ref.ask(Child.ping) for ref in refs))
        begin = time.perf_counter()
        refs[CHILDREN // 2].tell(Child.fail)
        while refs[-1].incarnation == 1:  # noqa: ASYNC110 - the last to start; a hook on its event would be measured too
            await asyncio.sleep(0)
        await asyncio.gather(*(ref.ask(Child.ping) for ref in refs))
        return (time.perf_counter() - begin) * 1e3


async def promptside_dynamic() -> float:
    from promptside import Actor, ActorSystem, ChildSpec, DynamicSupervisor

    class Child(Actor):
        async def ping(self) -> int:
            return 1

    async with ActorSystem() as system:
        supervisor = await system.spawn(DynamicSupervisor)
        spec = ChildSpec("child", Child)
        begin = time.perf_counter()
        refs = [await supervisor.ask(DynamicSupervisor.start_child, spec) for _ in range(CHILDREN)]
        await asyncio.gather(*(ref.ask(Child.ping) for ref in refs))
        await supervisor.stop()
        return CHILDREN / (time.perf_counter() - begin)


def on_asyncio(measure: Callable[[], Coroutine[None, None, float]]) -> Callable[[], float]:
    return lambda: asyncio.run(measure())


SUBJECTS = {
    "floor": (on_asyncio(floor_one_for_all), on_asyncio(floor_dynamic)),
    "promptside": (on_asyncio(promptside_one_for_all), on_asyncio(promptside_dynamic)),
}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in SUBJECTS:
        logging.getLogger().addHandler(logging.NullHandler())
        names = [metric.name for metric in METRICS]
        measure_each(dict(zip(names, SUBJECTS[sys.argv[1]], strict=True)))
    else:
        main(
            "supervision", METRICS, [Subject(name=name, command=("benchmarks.supervision", name)) for name in SUBJECTS]
        )
