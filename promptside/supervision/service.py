"""`Service`: an application's actors, from their start to an end in good order.

Users make one from the function that starts their actors, and then enter it, give its `lifespan` to an ASGI
application, or let it `run` until a signal. It opens an `ActorSystem`, and drains it before it closes it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any, Final, Generic, Literal, Self, TypeAlias, TypeVar

from promptside import clock
from promptside.actors import ActorSystem
from promptside.actors.spi import on_escalation
from promptside.callables import is_async
from promptside.checks import check_seconds, check_text
from promptside.events.reports import Reports
from promptside.supervision.exit import ExitWatch
from promptside.texts import repr_of
from promptside.waiting import shielded_from_scopes

__all__ = ["START_FUNCTION", "Service", "ServiceState", "StartFunction"]

T = TypeVar("T")

StartFunction: TypeAlias = Callable[[ActorSystem], Awaitable[T]]

ServiceState = Literal["starting", "ready", "draining", "stopped", "failed"]

START_FUNCTION: Final = "give an async function that takes the ActorSystem and starts the actors"
"""The remedy where a start function is expected."""

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


log = logging.getLogger("promptside.supervision")


class Service(Generic[T]):
    """An application's actors, and how they end: work that was taken is finished before anything closes.

    The start function is all that an application says of itself::

        async def start(system: ActorSystem) -> Program:
            pool = await LMPool("openai/gpt-4o-mini").start(system)
            return await Program(Desk, lm=pool.lm()).start(system)

        service = Service(start, name="desk")

    It is used in one of three ways: ``async with service:``, ``Starlette(lifespan=service.lifespan)``, and
    ``service.run()`` as the last line of a program. Each starts a new `ActorSystem`; one after the other, as in tests,
    any number of times.

    Leaving always drains, after an exception or a cancellation too. A cancellation that comes while it drains cuts
    the drain short: what is queued is refused, and what runs gets its actor's `shutdown` seconds.

    Args:
        start: Starts the actors, what others need first; what it returns is `app`.
        name: Of the system, for the tree and the logs.
        drain: Seconds that work under way and queued may take when the service ends, and is then killed; `math.inf`
            waits for ever, 0 is an ordinary end.
        thread_timeout: Seconds that threads which hang hold the process of `run` when all else has ended, `math.inf`
            for ever. They are named in the log each second.
        freeze_gc: Whether the garbage collector, from the end of the start until the end of the service, leaves out all
            objects of the process that are there by then. A full collection looks at each object that is not left out,
            and all event loops stop meanwhile: for 0.4 s once litellm is imported.

    Attributes:
        name: As given.
        drain: As given.
        thread_timeout: As given.
        freeze_gc: As given.

    Raises:
        TypeError: `start` is not an async function, or `freeze_gc` is no bool.
        ValueError: `drain` or `thread_timeout` is not >= 0, or `name` is not a text or is empty.
    """

    def __init__(
        self,
        start: StartFunction[T],
        *,
        name: str = "promptside",
        drain: float = 20.0,
        thread_timeout: float = 5.0,
        freeze_gc: bool = False,
    ) -> None:
        if not is_async(start):
            raise TypeError(f"start={repr_of(start)}: {START_FUNCTION}")
        check_text("Service", "name", name)
        check_seconds("Service", "drain", drain, zero=True)
        check_seconds("Service", "thread_timeout", thread_timeout, zero=True)
        if not isinstance(freeze_gc, bool):
            raise TypeError(f"freeze_gc={repr_of(freeze_gc)}: give True or False")
        self.name = name
        self.drain = drain
        self.thread_timeout = thread_timeout
        self.freeze_gc = freeze_gc
        self._leaving_since: float | None = None
        self._start = start
        self._phase: Literal["starting", "ready", "draining", "stopped"] = "stopped"
        self._failed = False  # set by any thread
        self._failure: Exception | None = None  # of the first supervisor at the top that ended by itself, likewise
        self._drain_left = drain  # seconds for the drain of this time
        self._signals: _Signals | None = None
        self._system: ActorSystem | None = None
        self._app: T
        self._lifetime: AbstractAsyncContextManager[None]

    @property
    def state(self) -> ServiceState:
        """Where it is in its life.

        ``"stopped"`` before it starts and after it ended in order; ``"failed"`` once the start function has raised, or
        a supervisor at the top of the tree has ended by itself: it gave up, crashed, was killed or shut down.
        """
        return "failed" if self._failed and self._phase != "draining" else self._phase

    @property
    def ready(self) -> bool:
        """Whether it takes work: what a readiness probe asks. Any thread."""
        return self.state == "ready"

    @property
    def system(self) -> ActorSystem:
        """The system of the actors; the last one's once the service has ended.

        Raises:
            RuntimeError: It was never started.
        """
        if self._system is None:
            raise RuntimeError(f"service {self.name!r} was not started; use it inside `async with service:`")
        return self._system

    @property
    def app(self) -> T:
        """What the start function returned.

        Raises:
            RuntimeError: The service is starting, or has ended.
        """
        if self._phase not in ("ready", "draining"):
            raise RuntimeError(
                f"service {self.name!r} is {self.state}; its app is there from ready until it has drained"
            )
        return self._app

    def __repr__(self) -> str:
        return f"<Service {self.name} {self.state}>"

    async def __aenter__(self) -> Self:
        if self._phase != "stopped":
            raise RuntimeError(f"service {self.name!r} is {self.state} already; leave it before you enter it again")
        lifetime = self._live()
        await lifetime.__aenter__()
        self._lifetime = lifetime
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifetime.__aexit__(kind, error, trace)

    @asynccontextmanager
    async def lifespan(self, asgi: object) -> AsyncIterator[dict[str, Any]]:
        """The lifespan of an ASGI application: starts the service with the server, and ends it after the last answer.

        A service that runs already, because `run` or ``async with`` has started it, is only shared.

        Args:
            asgi: The application, which Starlette and FastAPI pass.

        Yields:
            The lifespan state ``{"service": service}``, which handlers see as ``request.state.service``.
        """
        if self._phase == "ready":
            yield {"service": self}
        else:
            async with self:
                yield {"service": self}

    def run(self, main: Callable[[], Awaitable[object]] | None = None) -> None:
        """Run the service, and `main` in it, until SIGTERM or SIGINT: the last line of a program.

        ::

            if __name__ == "__main__":
                service.run(uvicorn.Server(uvicorn.Config(app)).serve)

        The first signal ends `main` and drains; the process then ends with exit code 0. A second one cuts the drain
        short, and a third kills the process. A server such as uvicorn takes the first signal itself, answers
        what it has accepted and returns; the drain follows. Any other `main` is cancelled.

        A thread that does not return, or that blocks the event loop, holds the process for `thread_timeout` seconds
        beyond the drain. Then the process ends without it, by `os._exit`: with exit code 0, or 1 after an error.

        Args:
            main: An async function without arguments; when it returns, the service ends. None waits for the signal.

        Raises:
            MaxRestartsExceeded: A supervisor at the top of the tree gave up; the service has ended as by SIGTERM.
            SupervisorCrashed: The same, for one that crashed or was killed.
            RuntimeError: This is not the main thread, which alone gets signals, or an event loop runs in it.
            Exception: Whatever the start function or `main` raised.
        """
        self._system = self._leaving_since = None
        with ExitWatch(
            self.name,
            self.thread_timeout,
            late=self._late,
            closed=lambda: self._system is not None and self._system.closed,
        ) as watch:
            asyncio.run(watch.run(self.run_until_signal(main)))

    async def run_until_signal(self, main: Callable[[], Awaitable[object]] | None = None) -> None:
        """As `run`, on an event loop of your choice; the loop must run in the main thread.

        Args:
            main: As for `run`.
        """
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals reach the main thread alone; in another thread, use `async with service:`")
        with _Signals(self) as self._signals:
            try:
                async with self:
                    await (asyncio.Event().wait() if main is None else main())
            except asyncio.CancelledError:
                if not self._signals.were_the_only_ones_to_cancel():
                    raise
            finally:
                self._signals = None
        if self._failure is not None:
            raise self._failure

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[None]:
        self._phase, self._failed, self._failure, self._drain_left = "starting", False, None, self.drain
        try:
            async with ActorSystem(self.name) as self._system:
                on_escalation(self._system, self._lost_a_supervisor)
                try:
                    self._app = await self._start(self._system)
                except Exception:
                    self._failed = True
                    raise
                self._phase = "ready"
                try:
                    with _frozen() if self.freeze_gc else nullcontext():
                        yield
                finally:
                    self._phase = "draining"
                    with shielded_from_scopes():
                        await self._system.drain(self._drain_left)
        finally:
            self._phase = "stopped"

    def _lost_a_supervisor(self, failure: Exception | None) -> None:
        self._failed = True
        self._failure = self._failure or failure
        why = failure or "a supervisor at the top of the tree has shut down"
        Reports(log).write("supervisors", logging.ERROR, f"service {self.name}: {why}")
        if self._signals is not None:
            self._signals.send_one()

    def _late(self) -> asyncio.AbstractEventLoop | None:  # pragma: no cover - asked at the end of a process that hangs
        """The loop of `run`, once a drain that began with the first signal would be over."""
        signals = self._signals
        if signals is not None and (signals.caught > 0 or self._phase == "draining"):
            self._leaving_since = self._leaving_since or clock.monotonic()
            if clock.monotonic() - self._leaving_since > self._drain_left:
                return signals.loop
        return None


@contextmanager
def _frozen() -> Iterator[None]:
    """Within, the garbage collector leaves out what is there now."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _Signals:
    """SIGINT and SIGTERM while a service runs: the first ends it, the second ends its patience, a third kills.

    The handlers are set with `signal.signal`, not on the loop: so they are called when no server has set its own, and
    when that server, having ended, puts ours back and raises again what it had caught.
    """

    def __init__(self, service: Service[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._service = service
        self._task = task
        self.loop = task.get_loop()
        self.caught = 0
        self._cancelled = 0

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._catch) for number in SIGNALS}
        return self

    def __exit__(self, *exit: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for _ in range(self._cancelled):
            self._task.uncancel()

    def were_the_only_ones_to_cancel(self) -> bool:
        """Whether the task was cancelled by this object alone."""
        return self._cancelled == self._task.cancelling()

    def send_one(self) -> None:
        """End the service as SIGTERM does, even where a server handles that signal now. Any thread."""
        self.loop.call_soon_threadsafe(self._raise)

    def _raise(self) -> None:
        if self._service._phase in ("starting", "ready"):
            self.caught -= 1  # the operator's own are still the first and the second
            signal.raise_signal(signal.SIGTERM)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self.caught += 1
        if self.caught == 2:
            for each in SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        self.loop.call_soon_threadsafe(self._end, self.caught >= 2)

    def _end(self, now: bool) -> None:
        if now:
            self._service._drain_left = 0.0
        if now or self._service._phase in ("starting", "ready"):
            self._cancelled += 1
            self._task.cancel()
