"""pykka: one thread per actor, blocking asks. Callers are threads too, and `Peer`'s coroutines never suspend.

The process is kept on one core, where the system can do that: handing the interpreter's lock from core to core made
asks two to three times slower.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka

from benchmarks.actor_peers import Job, Peer

__all__ = ["Subject"]


class Echo(pykka.ThreadingActor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: Any) -> Any:
        match message:
            case ("echo", value):
                return value
            case ("note", _):
                self.count += 1
            case ("total",):
                return self.count
        return None


def _finish(job: Job) -> None:
    with contextlib.suppress(StopIteration):
        job().send(None)


class Subject(Peer["pykka.ActorRef[Echo]"]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        # Kept between chunks: starting 100 threads would be most of a short one.
        with ThreadPoolExecutor(max_workers=100) as self._callers:
            yield
            pykka.ActorRegistry.stop_all()

    async def together(self, jobs: Sequence[Job]) -> None:
        list(self._callers.map(_finish, jobs))

    async def spawn(self) -> pykka.ActorRef[Echo]:
        return Echo.start()

    async def stop(self, ref: pykka.ActorRef[Echo]) -> None:
        ref.stop()

    async def ask(self, ref: pykka.ActorRef[Echo], times: int) -> object:
        answer = None
        for value in range(times):
            answer = ref.ask(("echo", value))
        return answer

    async def tell(self, ref: pykka.ActorRef[Echo], times: int) -> None:
        for value in range(times):
            ref.tell(("note", value))

    async def total(self, ref: pykka.ActorRef[Echo]) -> int:
        count: int = ref.ask(("total",))
        return count
