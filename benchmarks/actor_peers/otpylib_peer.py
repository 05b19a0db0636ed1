"""otpylib: gen_servers and supervisors as asyncio tasks with process ids. Callers must be processes too.

A gen_server is called by name: its `call` does not find a process id.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from otpylib import gen_server, process, supervisor
from otpylib.module import GEN_SERVER, SUPERVISOR, OTPModule
from otpylib.runtime.backends.asyncio_backend.backend import AsyncIOBackend

from benchmarks.actor_peers import Job, Peer

__all__ = ["Subject"]

T = TypeVar("T")


class Echo(metaclass=OTPModule, behavior=GEN_SERVER, version="1.0.0"):
    async def init(self, args: object) -> int:
        return 0

    async def handle_call(self, message: Any, caller: object, count: int) -> tuple[Any, int]:
        match message:
            case ("echo", value):
                return gen_server.Reply(payload=value), count
            case _:
                return gen_server.Reply(payload=count), count

    async def handle_cast(self, message: Any, count: int) -> tuple[Any, int]:
        match message:
            case ("note", _):
                return gen_server.NoReply(), count + 1
            case _:
                raise RuntimeError("crash")

    async def handle_info(self, message: Any, count: int) -> tuple[Any, int]:
        return gen_server.NoReply(), count

    async def terminate(self, reason: object, count: int) -> None:
        return None


class Restarting(metaclass=OTPModule, behavior=SUPERVISOR, version="1.0.0"):
    async def init(self, name: str) -> tuple[list[Any], Any]:
        spec = supervisor.child_spec(id=name, module=Echo, name=name)
        return [spec], supervisor.options(max_restarts=1_000_000, max_seconds=1)

    async def terminate(self, reason: object, state: object) -> None:
        return None


class Subject(Peer[str]):
    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[None]:
        backend = AsyncIOBackend()
        await backend.initialize()
        process.use_runtime(backend)
        self._names = (f"echo-{number}" for number in itertools.count())
        self._stopping: list[object] = []
        yield
        await backend.shutdown()

    def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def as_process() -> T:
            [result] = await self._as_processes([main])
            return result

        return super().run(as_process)

    async def together(self, jobs: Sequence[Job]) -> None:
        await self._as_processes(jobs)

    async def _as_processes(self, jobs: Sequence[Callable[[], Coroutine[Any, Any, T]]]) -> list[T]:
        loop = asyncio.get_running_loop()

        async def report(job: Callable[[], Coroutine[Any, Any, T]], outcome: asyncio.Future[T]) -> None:
            try:
                outcome.set_result(await job())
            except Exception as error:  # noqa: BLE001 - told to whoever awaits the outcome
                outcome.set_exception(error)

        outcomes: list[asyncio.Future[T]] = [loop.create_future() for _ in jobs]
        for job, outcome in zip(jobs, outcomes, strict=True):
            await process.spawn(report, args=[job, outcome])
        return [await outcome for outcome in outcomes]

    async def spawn(self) -> str:
        name = next(self._names)
        await gen_server.start(Echo, name=name)
        return name

    async def stop(self, ref: str) -> None:
        pid = process.whereis(ref)
        self._stopping.append(pid)
        await process.exit(pid, supervisor.SHUTDOWN)

    async def settle(self) -> None:
        for pid in self._stopping:
            while process.is_alive(pid):
                await self.checkpoint()
        self._stopping.clear()

    async def ask(self, ref: str, times: int) -> object:
        answer = None
        for value in range(times):
            answer = await gen_server.call(ref, ("echo", value))
        return answer

    async def tell(self, ref: str, times: int) -> None:
        for value in range(times):
            await gen_server.cast(ref, ("note", value))

    async def total(self, ref: str) -> int:
        count: int = await gen_server.call(ref, ("total",))
        return count

    async def spawn_supervised(self) -> str:
        name = next(self._names)
        await supervisor.start_link(Restarting, init_arg=name)
        return name

    async def crash(self, ref: str) -> None:
        crashed = process.whereis(ref)
        await gen_server.cast(ref, ("crash",))
        # A call that meets the crash would wait for ever, so the name is watched first.
        while process.whereis(ref) in (None, crashed):
            await self.checkpoint()
        await gen_server.call(ref, ("echo", 0))
