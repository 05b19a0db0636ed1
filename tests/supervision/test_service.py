"""A service ends well: by itself, by signals, inside servers, and when something is in the way."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

import anyio
import dspy
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from promptside import (
    Actor,
    ActorRef,
    ActorStopped,
    ActorSystem,
    ChildSpec,
    MaxRestartsExceeded,
    Supervisor,
    SupervisorCrashed,
    TaskSupervisor,
)
from promptside.actors.spi import cell_of
from promptside.pools import Endpoint, LMPool
from promptside.programs import Program
from promptside.supervision.service import Service
from promptside.testing import MockLM, run_virtual
from promptside.waiting import wait_through_cancellation
from tests.support.actors import Boom, Worker, busy, outcome, started, turns, until

ROOT = Path(__file__).parents[2]
FRAGILE = {"max_restarts": 0}


class Desk(Worker, timeout=math.inf):
    """Takes its time for an answer, and notes its end."""

    def __init__(self, ends: list[str] | None = None) -> None:
        super().__init__()
        self.ends = [] if ends is None else ends

    async def answer(self, seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    async def on_stop(self, reason: object) -> None:
        self.ends.append(self.ref.path)


async def start(system: ActorSystem) -> ActorRef[Desk]:
    return await system.with_options(name="desk").spawn(Desk)


async def start_fragile(system: ActorSystem) -> ActorRef[Any]:
    """A child whose first failure makes the supervisor at the top give up."""
    specs = [ChildSpec("worker", Worker)]
    supervisor = await system.with_options(name="top").spawn(Supervisor, specs, **FRAGILE)  # type: ignore[arg-type]
    return await supervisor.ask(Supervisor.child, "worker")


async def ask_all(ref: ActorRef[Desk], *seconds: float) -> list[asyncio.Task[float]]:
    return [await started(ref.ask(Desk.answer, each)) for each in seconds]


def until_signal(service: Service[Any], main: Callable[[], Awaitable[object]] | None = None) -> None:
    """`Service.run` in virtual time."""
    run_virtual(service.run_until_signal(main))


def told(caplog: pytest.LogCaptureFixture, start: str) -> bool:
    return any(each.levelno == logging.ERROR and each.getMessage().startswith(start) for each in caplog.records)


def kill(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


# -- its life ------------------------------------------------------------------------------------------------------


async def test_a_service_is_ready_from_its_start_to_its_end() -> None:
    seen: list[tuple[str, bool]] = []

    async def start(system: ActorSystem) -> str:
        seen.append((service.state, service.ready))
        assert service.system is system
        return "the application"

    class Last(Actor):
        async def on_stop(self, reason: object) -> None:
            seen.append((service.state, service.ready))

    service = Service(start, name="desk")
    seen.append((service.state, service.ready))
    assert repr(service) == "<Service desk stopped>"
    async with service as entered:
        assert entered is service
        assert repr(service) == "<Service desk ready>"
        assert service.app == "the application"
        assert service.system.name == "desk"
        await service.system.spawn(Last)
        seen.append((service.state, service.ready))
    seen.append((service.state, service.ready))

    assert seen == [("stopped", False), ("starting", False), ("ready", True), ("draining", False), ("stopped", False)]
    assert service.system.closed


async def test_what_is_there_only_while_it_runs_says_so() -> None:
    service = Service(start, name="desk")
    for look in (lambda: service.system, lambda: service.app):
        with pytest.raises(RuntimeError, match=r"'desk' (was not started|is stopped)"):
            look()
    async with service:
        pass
    with pytest.raises(RuntimeError, match="'desk' is stopped"):
        _ = service.app


async def test_a_service_is_entered_once_at_a_time_and_as_often_as_one_likes() -> None:
    service = Service(start)
    systems = set()
    for _ in range(2):
        async with service:
            systems.add(service.system)
            assert await service.app.ask(Worker.add, 1) == 1
            with pytest.raises(RuntimeError, match="is ready already"):
                await service.__aenter__()
        assert service.state == "stopped"
    assert len(systems) == 2


@pytest.mark.parametrize("wrong", [Desk, lambda system: None, "start", None, ActorSystem.tree])
def test_a_start_function_is_async(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"^start=.*async function"):
        Service(wrong)


async def test_an_object_that_is_called_as_an_async_function_is_a_start_function() -> None:
    class Start:
        async def __call__(self, system: ActorSystem) -> int:
            return 3

    for made in (Start(), partial(Start.__call__, Start())):
        async with Service(made) as service:
            assert service.app == 3


async def test_the_garbage_collector_leaves_out_what_a_service_began_with_for_as_long_as_it_runs() -> None:
    class Node:
        """Garbage once it is let go, for it refers to itself."""

        def __init__(self) -> None:
            self.me = self

    nodes, alive = [Node()], [WeakSet[Node]() for _ in range(2)]
    alive[0].update(nodes)

    async def start(system: ActorSystem) -> None:
        pass

    gc.unfreeze()
    try:
        async with Service(start):
            assert gc.get_freeze_count() == 0
        async with Service(start, freeze_gc=True):
            assert gc.get_freeze_count() > 1_000
            nodes.append(Node())
            alive[1].add(nodes[1])
            nodes.clear()
            gc.collect()
            assert [len(each) for each in alive] == [1, 0]
        assert gc.get_freeze_count() == 0
        gc.collect()
        assert [len(each) for each in alive] == [0, 0]
    finally:
        gc.freeze()  # as tests/conftest.py


@pytest.mark.parametrize("wrong", [1, "yes", None])
def test_whether_to_freeze_is_a_bool(wrong: Any) -> None:
    with pytest.raises(TypeError, match=rf"freeze_gc={wrong!r}: give True or False"):
        Service(start, freeze_gc=wrong)


@pytest.mark.parametrize("drain", [-1, float("nan"), None, "x", True])
async def test_seconds_to_drain_are_not_negative(drain: Any) -> None:
    with pytest.raises(ValueError, match=rf"^Service: drain={drain!r}: give seconds >= 0"):
        Service(start, drain=drain)
    async with ActorSystem() as system:
        with pytest.raises(ValueError, match=rf"^drain: within={drain!r}: give seconds >= 0"):
            await system.drain(drain)


@pytest.mark.parametrize("name", [5, None, ""])
def test_the_name_of_a_service_is_a_text(name: Any) -> None:
    with pytest.raises(ValueError, match=rf"^Service: name={name!r}: give a text that is not empty"):
        Service(start, name=name)


# -- the drain -----------------------------------------------------------------------------------------------------


def test_leaving_answers_what_runs_and_what_is_queued() -> None:
    async def main() -> None:
        async with Service(start) as service:
            asked = await ask_all(service.app, 1, 2, 3)
        assert [task.result() for task in asked] == [1, 2, 3]
        assert asyncio.get_running_loop().time() == 6
        assert service.system.tree().children == ()

    run_virtual(main())


async def test_a_drain_takes_no_new_work() -> None:
    async with ActorSystem() as system:
        ref = await start(system)
        gate, held = await busy(ref)
        draining = await started(system.drain(5))

        refused = await outcome(asyncio.ensure_future(ref.ask(Worker.add, 1)))
        assert isinstance(refused, ActorStopped)
        assert refused.started is False
        ref.tell(Worker.add, 1)
        assert system.dead_letters == 1

        gate.open.set()
        await draining
        assert await held == "passed"
        assert system.tree().children == ()


def test_what_others_use_answers_until_those_others_have_finished() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            lower = await start(system)
            front = await system.spawn(Worker)

            async def use(worker: Worker) -> float:
                return await lower.ask(Desk.answer, 1)

            asked = [await started(front.ask(Worker.call, use)) for _ in range(3)]
            await system.drain(10)
            assert [task.result() for task in asked] == [1, 1, 1]

    run_virtual(main())


async def test_calls_of_a_program_find_their_lm_pool_during_the_drain() -> None:
    async def start(system: ActorSystem) -> Program:
        model = MockLM("Paris", latency=0.1)
        pool = await LMPool([Endpoint("mock/paris", engine=model)]).start(system)
        lm = pool.lm(cache=False)
        return await Program(lambda: dspy.Predict("question -> answer"), name="desk", lm=lm).start(system)

    async with Service(start) as service:
        calls = [await started(service.app.acall(question=str(number))) for number in range(50)]
    assert [call.result().answer for call in calls] == ["Paris"] * 50


def test_a_drain_goes_down_the_tree() -> None:
    ends: list[str] = []

    async def main() -> None:
        async with ActorSystem() as system:
            specs = [ChildSpec(id, partial(Desk, ends)) for id in ("first", "second")]
            top = await system.with_options(name="top").spawn(Supervisor, specs)
            asked = [await ask_all(await top.ask(Supervisor.child, spec.id), 1, 1) for spec in specs]
            await system.drain(10)
            assert [task.result() for tasks in asked for task in tasks] == [1, 1, 1, 1]

    run_virtual(main())
    assert ends == ["top/second", "top/first"]


def test_what_outlasts_the_drain_is_killed_and_what_others_use_ends_in_order() -> None:
    ends: list[str] = []

    class Quick(Desk, shutdown=2): ...

    async def main() -> None:
        async with ActorSystem() as system:
            lower = await system.with_options(name="lower").spawn(Quick, ends)
            child = ChildSpec("endless", partial(Quick, ends))
            top = await system.with_options(name="top").spawn(Supervisor, [child])
            endless = await top.ask(Supervisor.child, "endless")
            asked = [*await ask_all(endless, 1, 100, 1), *await ask_all(lower, 11, 100)]
            await system.drain(10)
            assert asyncio.get_running_loop().time() == 11  # 10, and then `lower` finished what it was at
            done, running, queued, lowest, behind = [await outcome(task) for task in asked]
            assert (done, lowest) == (1, 11)
            for each, began in ((running, True), (queued, False), (behind, False)):
                assert isinstance(each, ActorStopped)
                assert each.started is began
            assert system.tree().children == ()

    run_virtual(main())
    assert ends == ["lower"]


def test_a_drain_of_no_seconds_is_an_ordinary_end() -> None:
    async def main() -> None:
        async with Service(start, drain=0) as service:
            running, queued = await ask_all(service.app, 1, 1)
        assert await running == 1
        assert isinstance(await outcome(queued), ActorStopped)

    run_virtual(main())


def test_a_handler_that_swallows_its_cancellation_does_not_hold_the_end() -> None:
    go = asyncio.Event()

    async def stubborn(worker: Worker) -> None:
        while not go.is_set():
            try:
                await go.wait()
            except asyncio.CancelledError:
                continue

    async def main() -> None:
        async with Service(start, drain=1) as service:
            asked = await started(service.app.ask(Worker.call, stubborn))
        assert isinstance(await outcome(asked), ActorStopped)
        assert service.state == "stopped"
        go.set()
        await turns()

    run_virtual(main())


def test_an_exception_in_the_block_goes_on_after_the_drain() -> None:
    async def main() -> None:
        asked: list[asyncio.Task[float]] = []
        with pytest.raises(Boom):
            async with Service(start) as service:
                asked = await ask_all(service.app, 1, 2)
                raise Boom
        assert [task.result() for task in asked] == [1, 2]
        assert service.state == "stopped"

    run_virtual(main())


def test_a_cancellation_drains_and_another_one_cuts_the_drain_short() -> None:
    async def main() -> None:
        service = Service(start)
        asked: list[asyncio.Task[float]] = []

        async def body() -> None:
            async with service:
                asked.extend(await ask_all(service.app, 1, 4, 1))
                await asyncio.Event().wait()

        running = asyncio.ensure_future(body())
        await asyncio.sleep(0.5)
        running.cancel()
        await asyncio.sleep(1.5)
        assert service.state == "draining"
        running.cancel()
        await asyncio.wait({running})

        assert running.cancelled()
        assert asyncio.get_running_loop().time() == 5, "what ran had its seconds to end; what was queued had not"
        first, second, third = [await outcome(task) for task in asked]
        assert (first, second) == (1, 4)
        assert isinstance(third, ActorStopped)
        assert third.started is False

    run_virtual(main())


def test_cutting_a_drain_short_reaches_down_the_tree() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            inner = Supervisor.child_spec("inner", [ChildSpec("a", Desk), ChildSpec("b", Desk)])
            top = await system.with_options(name="top").spawn(Supervisor, [inner])
            nested = await top.ask(Supervisor.child, "inner")
            first, second = [await nested.ask(Supervisor.child, id) for id in "ab"]
            asked = [*await ask_all(second, 1, 1), *await ask_all(first, 3, 1)]
            draining = await started(system.drain(100))
            await asyncio.sleep(0.5)
            draining.cancel()
            assert isinstance(await outcome(draining), asyncio.CancelledError)
        assert asyncio.get_running_loop().time() == 3
        running, queued, *open_until_then = [await outcome(task) for task in asked]
        assert (running, open_until_then[0]) == (1, 3)
        for each in (queued, open_until_then[1]):
            assert isinstance(each, ActorStopped)
            assert each.started is False

    run_virtual(main())


# -- what goes wrong at the start ----------------------------------------------------------------------------------


async def test_a_start_that_raises_ends_what_it_had_started() -> None:
    refs: list[ActorRef[Any]] = []

    async def half(system: ActorSystem) -> None:
        refs.append(await system.spawn(Worker))
        if len(refs) == 1:
            raise Boom

    service = Service(half)
    with pytest.raises(Boom):
        await service.__aenter__()
    assert (service.state, service.ready) == ("failed", False)
    assert refs[0].info().state.value == "stopped"
    async with service:
        assert service.state == "ready"
    assert service.state == "stopped"


async def test_a_start_that_is_cancelled_ends_what_it_had_started() -> None:
    refs: list[ActorRef[Any]] = []

    async def hang(system: ActorSystem) -> None:
        refs.append(await system.spawn(Worker))
        await asyncio.Event().wait()

    service = Service(hang)
    starting = asyncio.ensure_future(service.__aenter__())
    await until(lambda: refs)
    assert service.state == "starting"
    with pytest.raises(RuntimeError, match="is starting already"):
        await service.__aenter__()
    starting.cancel()
    assert isinstance(await outcome(starting), asyncio.CancelledError)
    assert service.state == "stopped"
    assert refs[0].info().state.value == "stopped"


# -- supervisors that give up --------------------------------------------------------------------------------------


async def test_a_service_is_not_ready_once_a_supervisor_at_the_top_gave_up(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(MaxRestartsExceeded) as caught:
        async with Service(start_fragile) as service:
            async with service.system.events.subscribe("supervisor.gave_up") as stream:
                service.app.tell(Worker.fail, Boom())
                await anext(stream)
            assert (service.state, service.ready) == ("failed", False)
    assert service.state == "failed"
    assert caught.value is service.system.failure
    assert told(caplog, "service promptside: supervisor 'top' gave up")


async def test_a_supervisor_that_gives_up_below_another_one_is_that_ones_business(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nested(system: ActorSystem) -> ActorRef[Supervisor]:
        inner = Supervisor.child_spec("inner", [ChildSpec("worker", Worker)], max_restarts=0)
        return await system.with_options(name="top").spawn(Supervisor, [inner])

    async with Service(nested) as service:
        inner = await service.app.ask(Supervisor.child, "inner")
        worker = await inner.ask(Supervisor.child, "worker")
        async with service.system.events.subscribe("supervisor.gave_up") as stream:
            worker.tell(Worker.fail, Boom())
            await anext(stream)
        assert service.ready
    assert service.state == "stopped"
    assert told(caplog, "actor.crashed from top/inner")
    assert not told(caplog, "service")


def killed(top: ActorRef[Any]) -> None:
    top.kill()


def panicking(top: ActorRef[Any]) -> None:
    cell_of(top).instance._window = None  # a fault of its own, at the next failure of a child
    top.system.whereis("worker").tell(Worker.fail, Boom())


def shut_down(top: ActorRef[Any]) -> None:
    top.system.whereis("worker").tell(Worker.call, end_it)


async def end_it(worker: Worker) -> None:
    worker.stop()


@pytest.mark.parametrize(
    ("how", "failure"),
    [
        (killed, "supervisor 'top', at the top of the tree, crashed: killed"),
        (panicking, "supervisor 'top', at the top of the tree, crashed: AttributeError: "),
        (shut_down, None),
    ],
)
def test_a_service_ends_when_a_supervisor_at_the_top_has_ended_by_itself(
    how: Callable[[ActorRef[Any]], None], failure: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    states = []

    async def start(system: ActorSystem) -> ActorRef[Any]:
        specs = [ChildSpec("worker", Worker, "transient", name="worker", significant=True)]
        return await system.with_options(name="top").spawn(Supervisor, specs, auto_shutdown="any_significant")

    async def main() -> None:
        how(service.app)
        try:
            await asyncio.Event().wait()
        finally:
            states.append((service.state, service.ready))

    service = Service(start)
    if failure is None:
        until_signal(service, main)
    else:
        with pytest.raises(SupervisorCrashed, match=re.escape(failure)):
            until_signal(service, main)
    assert states == [("failed", False)]
    assert told(caplog, f"service promptside: {failure or 'a supervisor at the top of the tree has shut down'}")


async def test_a_service_hears_of_a_task_supervisor_that_was_killed() -> None:
    async def start(system: ActorSystem) -> TaskSupervisor:
        return await TaskSupervisor().start(system)

    async with Service(start) as service:
        service.app.ref.kill()
        assert not service.ready
    assert service.system.failure is None


async def test_a_supervisor_at_the_top_that_is_stopped_by_the_application_is_no_failure() -> None:
    async with Service(start_fragile) as service:
        await service.system.whereis("top").stop()
        assert service.ready
    assert service.system.failure is None


# -- ASGI ----------------------------------------------------------------------------------------------------------


def make_app(service: Service[ActorRef[Desk]]) -> Starlette:
    async def answer(request: Request) -> PlainTextResponse:
        assert request.state.service is service
        return PlainTextResponse(str(await service.app.ask(Desk.answer, float(request.query_params["seconds"]))))

    return Starlette(routes=[Route("/", answer)], lifespan=service.lifespan)


async def test_the_lifespan_of_an_application_starts_and_ends_the_service() -> None:
    service = Service(start)
    app = make_app(service)
    for _ in range(2):  # as the tests of an application do
        async with app.router.lifespan_context(app) as state:
            assert state == {"service": service}
            assert service.ready
        assert service.state == "stopped"


async def test_a_lifespan_shares_a_service_that_runs() -> None:
    async with Service(start) as service:
        app = make_app(service)
        async with app.router.lifespan_context(app) as state:
            assert state == {"service": service}
        assert service.ready


def test_a_lifespan_works_in_any_thread() -> None:
    service = Service(start)
    answers: list[float] = []

    async def serve() -> None:
        app = make_app(service)
        async with app.router.lifespan_context(app):
            answers.append(await service.app.ask(Desk.answer, 0))

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    thread.join()
    assert answers == [0]


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        yield listener


@pytest.mark.parametrize("signals", [1, 2])
async def test_uvicorn_answers_what_it_accepted_before_the_service_drains(signals: int) -> None:
    service = Service(start)
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_config=None))
    answers: list[httpx.Response] = []

    async def ask(port: int) -> None:
        async with httpx.AsyncClient() as client:
            answers.append(await client.get(f"http://127.0.0.1:{port}/?seconds=0.3"))

    async def main(listener: socket.socket) -> None:
        async def visit() -> None:
            await until(lambda: server.started)
            asking = asyncio.ensure_future(ask(listener.getsockname()[1]))
            await until(lambda: service.app.info().current)
            for _ in range(signals):
                kill()
            await asking

        visiting = asyncio.ensure_future(visit())
        await server.serve(sockets=[listener])
        assert service.ready, "the server has ended; the drain follows"
        await visiting

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with listening() as listener:
        await service.run_until_signal(lambda: main(listener))
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "0.3")]
    assert service.state == "stopped"
    assert before == {number: signal.getsignal(number) for number in before}


async def test_uvicorn_ends_in_order_when_a_supervisor_gives_up() -> None:
    service = Service(start_fragile)
    ended: list[bool] = []
    server = uvicorn.Server(uvicorn.Config(Starlette(lifespan=service.lifespan), log_config=None))

    async def main(listener: socket.socket) -> None:
        async def fail() -> None:
            await until(lambda: server.started)
            service.app.tell(Worker.fail, Boom())

        failing = asyncio.ensure_future(fail())
        await server.serve(sockets=[listener])
        ended.append(server.should_exit)
        await failing

    with listening() as listener, pytest.raises(MaxRestartsExceeded):
        await service.run_until_signal(lambda: main(listener))
    assert ended == [True]
    assert service.state == "failed"


# -- signals, in this process --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_after_its_drain(number: int) -> None:
    service = Service(start)
    asked: list[asyncio.Task[float]] = []
    left: list[str] = []

    async def main() -> None:
        asked.extend(await ask_all(service.app, 1, 2))
        kill(number)
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            left.append(service.state)
            raise

    until_signal(service, main)
    assert left == ["ready"]
    assert [task.result() for task in asked] == [1, 2]
    assert service.state == "stopped"


def test_a_service_without_a_main_waits_for_the_signal() -> None:
    async def start_and_leave(system: ActorSystem) -> None:
        asyncio.get_running_loop().call_later(7, kill)

    service = Service(start_and_leave)
    service_ended_at: list[float] = []

    async def run() -> None:
        await service.run_until_signal()
        service_ended_at.append(asyncio.get_running_loop().time())

    run_virtual(run())
    assert service_ended_at == [7]


def test_a_service_whose_main_returns_or_raises_ends() -> None:
    service = Service(start)

    async def enough() -> None:
        assert service.ready

    async def boom() -> None:
        raise Boom

    service.run(enough)
    assert service.state == "stopped"
    with pytest.raises(Boom):
        service.run(boom)
    assert service.state == "stopped"


def test_a_main_that_takes_its_cancellation_for_a_wish_to_return_may() -> None:
    async def polite() -> None:
        kill()
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            return

    async def run() -> int:
        await Service(start).run_until_signal(polite)
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert run_virtual(run()) == 0


@pytest.mark.parametrize("after", [0, 1.5])
def test_a_second_signal_cuts_the_drain_short(after: float) -> None:
    service = Service(start)
    asked: list[asyncio.Task[float]] = []

    async def main() -> None:
        asked.extend(await ask_all(service.app, 1, 4, 1))
        kill()
        asyncio.get_running_loop().call_later(after, kill)
        try:
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.1)  # the work that a server does on its way out

    until_signal(service, main)
    results = [each.exception() or each.result() for each in asked if each.done()]
    stopped = [each for each in results if isinstance(each, ActorStopped)]
    assert len(stopped) == (1 if after else 2)
    assert all(each.started is False for each in stopped)
    assert service.state == "stopped"


def test_a_signal_while_the_service_drains_anyway_is_the_first() -> None:
    service = Service(start)
    asked: list[asyncio.Task[float]] = []

    async def main() -> None:
        asked.extend(await ask_all(service.app, 1, 1))
        asyncio.get_running_loop().call_later(0.5, kill)

    until_signal(service, main)
    assert [task.result() for task in asked] == [1, 1]


def test_a_signal_during_the_start_ends_it() -> None:
    async def hang(system: ActorSystem) -> None:
        await start(system)
        kill()
        await asyncio.Event().wait()

    service = Service(hang)
    until_signal(service)
    assert service.state == "stopped"


def test_a_start_that_raises_because_of_the_signal_says_so() -> None:
    async def fail(system: ActorSystem) -> None:
        kill()
        try:
            await asyncio.Event().wait()
        finally:
            raise Boom

    service = Service(fail)
    with pytest.raises(Boom):
        until_signal(service)
    assert service.state == "failed"


def test_a_supervisor_that_gives_up_ends_the_service_with_its_history() -> None:
    service = Service(start_fragile)

    async def main() -> None:
        desk = await start(service.system)
        asked.extend(await ask_all(desk, 1, 2))
        service.app.tell(Worker.fail, Boom("no key"))
        await asyncio.sleep(100)

    asked: list[asyncio.Task[float]] = []
    with pytest.raises(MaxRestartsExceeded) as caught:
        until_signal(service, main)
    assert [id for id, _ in caught.value.history] == ["worker"]
    assert isinstance(caught.value.__cause__, Boom)
    assert [task.result() for task in asked] == [1, 2], "it ends as by SIGTERM: after its drain"


@pytest.mark.parametrize("first", ["the signal", "the supervisor"])
def test_a_supervisor_that_gives_up_and_one_signal_are_not_two_signals(first: str) -> None:
    service = Service(start_fragile)
    asked: list[asyncio.Task[float]] = []

    async def main() -> None:
        asked.extend(await ask_all(await start(service.system), 1, 1))
        signs = [kill, partial(service.app.tell, Worker.fail, Boom())]
        for seconds, sign in zip((0.2, 0.5), signs if first == "the signal" else signs[::-1], strict=True):
            asyncio.get_running_loop().call_later(seconds, sign)
        await asyncio.sleep(100)

    with pytest.raises(MaxRestartsExceeded):
        until_signal(service, main)
    assert [task.result() for task in asked] == [1, 1]


def test_who_cancels_the_task_of_a_service_gets_a_cancellation() -> None:
    async def run() -> None:
        service = Service(start)
        running = asyncio.ensure_future(service.run_until_signal())
        await until(lambda: service.ready)
        asked = await ask_all(service.app, 1)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()
        assert asked[0].result() == 1

    run_virtual(run())


def test_signals_reach_the_main_thread_alone() -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            Service(start).run()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])
    assert "async with" in str(errors[0])


# -- signals, in processes of their own ----------------------------------------------------------------------------

PROGRAM = """
import asyncio, sys, time
from promptside import Actor, ActorSystem, ChildSpec, Supervisor
from promptside.supervision.service import Service

def say(*words):
    print(*words, flush=True)

class Desk(Actor, shutdown=1):
    async def answer(self, seconds):
        await asyncio.sleep(seconds)
        say("answered")

    async def block(self):
        say("blocked")
        while True:
            time.sleep(0.01)

    async def fail(self):
        raise OSError("no key")

    async def on_stop(self, reason):
        say("on_stop")

async def start(system):
    specs = [ChildSpec("desk", Desk)]
    top = await system.with_options(name="top", node=await system.start_node("far")).spawn(
        Supervisor, specs, max_restarts=0
    )
    return await top.ask(Supervisor.child, "desk")

"""


@contextmanager
def process(source: str, folder: Path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], str]]]:
    """A Python program in a session of its own, and what reads its next line; nothing of it may be left afterwards."""
    program = folder / "program.py"
    program.write_text(PROGRAM + textwrap.dedent(source))
    with spawn([sys.executable, "-W", "error", str(program)], folder) as running:
        yield running, lambda: reading(running.stdout)


def reading(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@contextmanager
def spawn(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        with running:
            yield running
        with pytest.raises(ProcessLookupError):
            os.killpg(running.pid, 0)
    finally:
        if running.returncode is None:
            os.killpg(running.pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_with_exit_code_0_after_its_answers(number: int, tmp_path: Path) -> None:
    source = """
        async def start_and_work(system):
            desk = await start(system)
            for _ in range(2):
                desk.tell(Desk.answer, 0.3)
            say("ready")

        Service(start_and_work).run()
        say("after")
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "ready"
        running.send_signal(number)
        said, complaints = running.communicate(timeout=30)
    assert said.split() == ["answered", "answered", "on_stop", "after"]
    assert (running.returncode, complaints) == (0, "")


def test_a_process_that_is_signalled_while_it_starts_ends_with_exit_code_0(tmp_path: Path) -> None:
    source = """
        async def hang(system):
            await start(system)
            say("starting")
            await asyncio.Event().wait()

        Service(hang).run()
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "starting"
        running.terminate()
        said, complaints = running.communicate(timeout=30)
    assert (said.split(), running.returncode, complaints) == (["on_stop"], 0, "")


def test_two_signals_end_a_process_whose_work_would_never_end(tmp_path: Path) -> None:
    source = """
        async def start_and_work(system):
            desk = await start(system)
            desk.tell(Desk.answer, 1000)
            system.events.on("actor.crashed", lambda event: say("killed"))

        service = Service(start_and_work, drain=1000)

        async def main():
            say("ready")
            try:
                await asyncio.Event().wait()
            finally:
                say("leaving")

        service.run(main)
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "ready"
        running.terminate()
        assert line() == "leaving"
        running.terminate()
        said, complaints = running.communicate(timeout=30)
    assert (said.split(), running.returncode, complaints) == (["killed"], 0, "")


def test_a_third_signal_ends_a_process_whose_event_loop_is_blocked(tmp_path: Path) -> None:
    source = """
        async def start_and_block(system):
            desk = await system.spawn(Desk)
            desk.tell(Desk.block)

        Service(start_and_block).run()
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "blocked"
        while running.poll() is None:
            running.terminate()
            try:
                running.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
    assert running.returncode == -signal.SIGTERM


def test_a_supervisor_that_gives_up_ends_the_process_with_exit_code_1_and_its_history(tmp_path: Path) -> None:
    source = """
        async def start_and_fail(system):
            desk = await start(system)
            other = await system.spawn(Desk)
            other.tell(Desk.answer, 0.3)
            desk.tell(Desk.fail)

        Service(start_and_fail).run()
    """
    with process(source, tmp_path) as (running, _):
        said, complaints = running.communicate(timeout=30)
    assert running.returncode == 1
    assert said.split().count("answered") == 1
    last = complaints.splitlines()[-1]
    assert "MaxRestartsExceeded" in last
    assert "(OSError: no key)" in last


def test_under_uvicorn_alone_the_lifespan_drains_and_the_signal_then_ends_the_process(tmp_path: Path) -> None:
    source = """
        import uvicorn
        from starlette.applications import Starlette

        async def start_and_work(system):
            desk = await start(system)
            desk.tell(Desk.answer, 0.5)

        class Server(uvicorn.Server):
            async def main_loop(self):
                say("ready")  # one that is told to end while it starts ends without the lifespan's end
                await super().main_loop()

        service = Service(start_and_work)
        Server(uvicorn.Config(Starlette(lifespan=service.lifespan), port=0)).run()
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "ready"
        running.terminate()
        said, complaints = running.communicate(timeout=30)
    assert said.split() == ["answered", "on_stop"]
    assert running.returncode == -signal.SIGTERM, complaints


HANGING = {
    "asyncio.to_thread": "await asyncio.to_thread(hang)",
    "anyio": "await anyio.to_thread.run_sync(hang, abandon_on_cancel=True)",
    "an executor of its own": "await asyncio.get_running_loop().run_in_executor(ThreadPoolExecutor(), hang)",
    "a thread of its own": "threading.Thread(target=hang).start(); await asyncio.Event().wait()",
    "the event loop": "hang()",
    "the loop of a node": "hang()",
}


@pytest.mark.parametrize(
    ("how", "ends"),
    [
        *((how, "by a signal") for how in HANGING),
        *((how, "by an error") for how in HANGING if how != "the event loop"),  # where nothing can be raised
    ],
)
def test_a_thread_that_hangs_is_named_and_holds_the_process_for_a_while_only(
    how: str, ends: str, tmp_path: Path
) -> None:
    source = f"""
        import anyio, threading
        from concurrent.futures import ThreadPoolExecutor
        from promptside.actors import loop_thread

        loop_thread.STUCK_AFTER = 2
        entered = threading.Event()

        def hang():
            entered.set()
            say("hangs")
            for _ in range(10_000):
                time.sleep(0.01)

        class Hanging(Actor, shutdown=0.1):
            async def work(self):
                {HANGING[how]}

        async def start_and_hang(system):
            node = await system.start_node("far") if {how == "the loop of a node"} else system.home
            (await system.with_options(node=node).spawn(Hanging)).tell(Hanging.work)

        async def main():
            await asyncio.to_thread(entered.wait)
            if {ends == "by an error"}:
                raise OSError("no key")
            await asyncio.Event().wait()

        Service(start_and_hang, name="atlas", drain=0.1, thread_timeout=2).run(main)
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "hangs"
        if ends == "by a signal":
            running.terminate()
        _, complaints = running.communicate(timeout=100)
    assert running.returncode == (0 if ends == "by a signal" else 1), complaints
    assert "waits for" in complaints
    assert "in hang (" in complaints
    assert "without threads that hang" in complaints or "is blocked" in complaints
    if ends == "by an error":
        assert "OSError: no key" in complaints


def test_a_thread_that_ends_in_time_is_waited_for_and_the_exit_code_is_the_programs(tmp_path: Path) -> None:
    source = """
        import threading

        def finish():
            time.sleep(0.5)
            say("finished")

        async def start_a_thread(system):
            threading.Thread(target=finish).start()

        async def main():
            pass

        Service(start_a_thread).run(main)
        sys.exit(7)
    """
    with process(source, tmp_path) as (running, line):
        assert line() == "finished"
        _, complaints = running.communicate(timeout=100)
    assert (running.returncode, complaints) == (7, "")


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5"])
def test_seconds_for_threads_are_not_negative(seconds: Any) -> None:
    with pytest.raises(ValueError, match="thread_timeout="):
        Service(start, thread_timeout=seconds)


# -- cancel scopes of anyio ------------------------------------------------------------------------------------------


class SlowToEnd(Worker):
    async def on_stop(self, reason: object) -> None:
        await asyncio.sleep(1)


async def in_a_service(during: Callable[[], Awaitable[None]], done: list[Any]) -> None:
    async def start_slow(system: ActorSystem) -> None:
        done.append(await ask_all(await start(system), 1))
        await system.spawn(SlowToEnd)

    async with Service(start_slow) as service:
        await during()
    done.append(service.system.closed)


async def in_a_system(during: Callable[[], Awaitable[None]], done: list[Any]) -> None:
    async with ActorSystem() as system:
        done.append(await ask_all(await start(system), 1))
        await system.spawn(SlowToEnd)
        await during()
    done.append(system.closed)


@pytest.mark.parametrize("scope", ["move_on_after", "fail_after", "a cancelled group", "asyncio.timeout"])
@pytest.mark.parametrize("when", ["in the block", "at its end"])
@pytest.mark.parametrize("block", [in_a_service, in_a_system])
def test_a_cancel_scope_ends_a_block_after_its_cleanup_and_takes_its_cancellation_back(
    block: Any, when: str, scope: str
) -> None:
    done: list[Any] = []

    async def during() -> None:
        if when == "in the block":
            await asyncio.Event().wait()

    async def main() -> None:
        error: object = None
        try:
            if scope == "move_on_after":
                with anyio.move_on_after(0.5):
                    await block(during, done)
            elif scope == "fail_after":
                with anyio.fail_after(0.5):
                    await block(during, done)
            elif scope == "asyncio.timeout":
                async with asyncio.timeout(0.5):
                    await block(during, done)
            else:
                async with anyio.create_task_group() as group:
                    asyncio.get_running_loop().call_later(0.5, group.cancel_scope.cancel)
                    await block(during, done)
        except BaseException as caught:
            error = caught
        assert isinstance(error, TimeoutError) == (scope in ("fail_after", "asyncio.timeout")), repr(error)
        assert error is None or isinstance(error, TimeoutError)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)  # nothing of the cancellation is left
        (asked,) = done[0]
        assert await asked == 1, "what had begun was finished"

    run_virtual(main())


async def test_a_wait_through_a_cancelled_scope_does_not_spin() -> None:
    ended, waits = asyncio.Event(), 0

    async def wait() -> None:
        nonlocal waits
        waits += 1
        await ended.wait()

    with anyio.CancelScope() as scope:
        scope.cancel()
        asyncio.get_running_loop().call_later(0.05, ended.set)
        await wait_through_cancellation(wait, ended.is_set)
        assert waits == 1
        await anyio.sleep(0)
    assert scope.cancelled_caught


# -- the example ---------------------------------------------------------------------------------------------------

REQUESTS = 40


async def test_the_example_answers_everything_it_accepted_and_leaves_nothing(tmp_path: Path) -> None:
    example = ROOT / "examples" / "04_asgi_service.py"
    with spawn([sys.executable, "-W", "error::RuntimeWarning", str(example), "0"], tmp_path) as running:
        log: list[str] = []
        while not (found := re.search(r"running on (http://[\d.]+:(\d+))", log[-1] if log else "")):
            log.append(reading(running.stderr))
            assert log[-1], f"it ended: {log}"
        url, port = found[1], int(found[2])

        async with httpx.AsyncClient(base_url=url, timeout=30, limits=httpx.Limits(max_connections=None)) as client:
            sent = asyncio.Semaphore(0)

            async def note(event: str, info: dict[str, Any]) -> None:
                if event == "http11.send_request_body.complete":
                    sent.release()

            async def ask(number: int) -> httpx.Response:
                question = {"question": f"What is the capital of France? ({number})"}
                return await client.post("/answer", json=question, extensions={"trace": note})

            state = await client.get("/ready")
            assert (state.status_code, state.json()) == (200, {"state": "ready"})
            asked = [asyncio.ensure_future(ask(number)) for number in range(REQUESTS)]
            for _ in asked:
                await sent.acquire()
            tree = await client.get("/tree")  # over a connection that came after theirs: theirs are accepted
            assert "LMWorker" in tree.text
            running.terminate()
            assert not any(task.done() for task in asked), "not under load"
            answers = await asyncio.gather(*asked)

        said, complaints = await asyncio.to_thread(running.communicate, timeout=30)
    assert [(each.status_code, each.json()) for each in answers] == [(200, {"answer": "Paris"})] * REQUESTS
    assert running.returncode == 0, complaints
    lines = [*log, *said.splitlines(), *complaints.splitlines()]
    assert [line for line in lines if not line.startswith("INFO:")] == []
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
