"""Plays a scenario on promptside, in virtual time, and writes its trace in OTP's words.

Called by `test_conformance`. The twin of `supervisor_traces.escript`, and to be read beside it.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from promptside import (
    Actor,
    ActorRef,
    ActorStartError,
    ActorSystem,
    ChildNotFound,
    ChildSpec,
    Down,
    DynamicSupervisor,
    InvalidChildSpec,
    InvalidChildState,
    MaxRestartsExceeded,
    Supervisor,
)
from promptside.actors import State
from promptside.supervision import ChildInfo
from promptside.testing import run_virtual
from tests.conformance.scenario import Act, Child, Dynamic, Scenario, Step, Tree, Worker, slowness

__all__ = ["play"]

REST = 0.001
"""Virtual seconds within which everything has happened that is not slow on purpose."""


OUTAGE_TIMEOUT = 10.0
"""Virtual seconds after which a tree that does not come to rest never will; what is slow takes less than one."""


def play(scenario: Scenario) -> list[str]:
    """The trace of a scenario."""
    return run_virtual(Stage(scenario).play())


class Crash(Exception):
    """The reason ``crash``."""


class InitFailed(Exception):
    """A start that fails."""


class Stage:
    """A scenario that is being played.

    Attributes:
        trace: Its lines so far.
        refs: Every actor of the tree by its id, ended ones included.
    """

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.trace: list[str] = []
        self.refs: dict[str, ActorRef[Any]] = {}
        self._inits: Counter[str] = Counter()
        self._busy = 0
        self._end: str | None = None
        self._stopping: asyncio.Task[None] | None = None  # kept, as the loop keeps no task

    # -- for the actors ------------------------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        self.trace.append(line)

    def enter(self, id: str, ref: ActorRef[Any]) -> None:
        self.refs[id] = ref

    def enter_supervisor(self, id: str, ref: ActorRef[Any]) -> None:
        self.enter(id, ref)
        if id != "top":
            self.note(f"init {id}")

    def next_init(self, worker: Worker) -> str:
        nth = self._inits[worker.id]
        self._inits[worker.id] += 1
        return worker.inits[nth] if nth < len(worker.inits) else "ok"

    async def take(self, milliseconds: float) -> None:
        with self._business():
            await asyncio.sleep(milliseconds / 1000)

    async def hang(self) -> None:
        with self._business():
            await asyncio.Event().wait()

    @contextmanager
    def _business(self) -> Iterator[None]:
        self._busy += 1
        try:
            yield
        finally:
            self._busy -= 1

    def ended(self, reason: object) -> None:
        self._end = word(reason)

    # -- the tree ------------------------------------------------------------------------------------------------------

    def spec(self, child: Child) -> ChildSpec:
        start: Callable[[], Actor] = partial(Player, child, self) if isinstance(child, Worker) else self._top(child)
        return ChildSpec(child.id, start, child.restart, child.shutdown, significant=child.significant)

    def _top(self, tree: Child) -> Callable[[], Actor]:
        if isinstance(tree, Dynamic):
            intensity = {"max_restarts": tree.max_restarts, "max_seconds": tree.max_seconds}
            return partial(TracedDynamicSupervisor, self, tree.id, **intensity)
        assert isinstance(tree, Tree)
        return partial(
            TracedSupervisor,
            self,
            tree.id,
            tuple(map(self.spec, tree.children)),
            strategy=tree.strategy,
            auto_shutdown=tree.auto_shutdown,
            max_restarts=tree.max_restarts,
            max_seconds=tree.max_seconds,
        )

    # -- the play ------------------------------------------------------------------------------------------------------

    async def play(self) -> list[str]:
        with suppress(MaxRestartsExceeded):  # the trace tells of it
            async with ActorSystem() as system:
                system.events.on("*", lambda event: None)  # else crashes are logged
                await self._play(system)
                told = list(self.trace)  # what comes of closing the system is no part of it
        return told

    async def _play(self, system: ActorSystem) -> None:
        self.note("> start")
        try:
            top = await system.with_options(name="top").spawn(self._top(self.scenario.tree))
        except (InvalidChildSpec, ActorStartError) as error:
            invalid = isinstance(error, InvalidChildSpec) or isinstance(error.__cause__, InvalidChildSpec)
            self.note("= rejected" if invalid else "= failed")
            return
        await system.spawn(Watcher, top, self)
        self.note("= ok")
        loop = asyncio.get_running_loop()
        await _sleep_until(math.ceil(loop.time()))
        since = loop.time()
        for step in self.scenario.parsed():
            since = await self._step(step, since)
        if self._end is None:
            await self._survivors("top")
        elif alive := sorted(id for id, ref in self.refs.items() if ref.info().state is not State.STOPPED):
            self.note(f"left alive {alive}")

    async def _step(self, step: Step, since: float) -> float:
        """Perform a step; returns when it began. A pause is counted from the time at which the step before began."""
        self.note(f"> {step.text}")
        loop = asyncio.get_running_loop()
        if step.mode == "pause":
            await _sleep_until(since + step.pause / 1000)
            return loop.time()
        since = loop.time()
        running = self._end is None
        calls = await self._perform(step)
        await self._settle(calls)
        if running and self._end is not None:
            self.note(f"ended {self._end}")
        for call in calls:
            self.note(f"= {call.result()}")
        return since

    async def _perform(self, step: Step) -> list[asyncio.Task[str]]:
        """Returns the calls that were made."""
        calls: list[asyncio.Task[str]] = []
        suspended = {act.supervisor for act in step.acts} if step.mode == "together" else set()
        for id in suspended:
            self.refs[id].suspend()
        for act in step.acts:
            calls += self._act(act)
            if step.mode != "one":
                await asyncio.sleep(REST)
            assert step.mode != "meanwhile" or self._busy or act is not step.acts[0], f"{step.text}: nobody is slow"
        for id in suspended:
            self.refs[id].resume()
        return calls

    async def _settle(self, calls: Sequence[asyncio.Task[str]]) -> None:
        bound = asyncio.get_running_loop().time() + OUTAGE_TIMEOUT
        await asyncio.sleep(REST)
        while self._busy or not all(call.done() for call in calls):
            assert asyncio.get_running_loop().time() < bound, ["it does not come to rest", *self.trace]
            await asyncio.sleep(REST)

    def _act(self, act: Act) -> list[asyncio.Task[str]]:
        if act.verb not in {"crash", "exit", "kill", "stop"}:
            return [asyncio.ensure_future(self._call(act))]
        actor = self.refs[act.id]
        assert actor.info().state is not State.STOPPED, f"{act} addresses the dead"
        match act.verb:
            case "crash":
                actor.tell(Player.crash)
            case "exit":
                actor.tell(Player.end, reason(act.reason))
            case "kill":
                actor.kill()
            case "stop":
                self._stopping = asyncio.ensure_future(actor.stop("shutdown"))
        return []

    async def _call(self, act: Act) -> str:
        supervisor = self.refs[act.supervisor]
        dynamic = isinstance(self.scenario.supervisor(act.supervisor), Dynamic)
        cls: Any = DynamicSupervisor if dynamic else Supervisor
        try:
            match act.verb:
                case "which_children":
                    return _listed(await supervisor.ask(cls.which_children))
                case "count_children":
                    counts = await supervisor.ask(cls.count_children)
                    specs = 1 if dynamic else counts.specs
                    kinds = f"supervisors {counts.supervisors}, workers {counts.workers}"
                    return f"specs {specs}, active {counts.active}, {kinds}"
                case "start_child":
                    await supervisor.ask(cls.start_child, self._new(act.id, act.supervisor))
                case "terminate_child" if dynamic:
                    await supervisor.ask(cls.terminate_child, self.refs[act.id])
                case _:
                    await supervisor.ask(getattr(cls, act.verb), act.id)
        except ChildNotFound:
            return "refused not_found"
        except InvalidChildState as error:
            if act.verb == "start_child":
                return f"refused {'already_started' if error.state == 'running' else 'already_present'}"
            return f"refused {error.state}"
        except (ActorStartError, InvalidChildSpec):
            return "failed"
        return "ok"

    def _new(self, id: str, supervisor: str) -> ChildSpec:
        spec = self.spec(self.scenario.child(id))
        tree = self.scenario.supervisor(supervisor)
        if isinstance(tree, Dynamic):
            return ChildSpec(id, spec.start, tree.child_restart, tree.child_shutdown)
        return spec

    async def _survivors(self, id: str) -> None:
        dynamic = isinstance(self.scenario.supervisor(id), Dynamic)
        cls: Any = DynamicSupervisor if dynamic else Supervisor
        infos: list[ChildInfo] = await self.refs[id].ask(cls.which_children)
        self.note(f"survivors {id}: {_listed(infos)}")
        for info in infos:
            if info.state == "running" and not isinstance(self.scenario.child(info.id), Worker):
                await self._survivors(info.id)


class Player(Actor):
    """A worker that does what the scenario says."""

    def __init__(self, worker: Worker, stage: Stage) -> None:
        self._worker = worker
        self._stage = stage

    async def on_start(self) -> None:
        worker, stage = self._worker, self._stage
        stage.enter(worker.id, self.ref)
        stage.note(f"init {worker.id}")
        init = stage.next_init(worker)
        if slowness(init):
            await stage.take(slowness(init))
        if "fail" in init:
            stage.note(f"start failed {worker.id}")
            raise InitFailed

    async def on_stop(self, reason: object) -> None:
        worker, stage = self._worker, self._stage
        stage.note(f"terminate {worker.id} {word(reason)}")
        if worker.terminate == "hang":
            await stage.hang()
        elif worker.terminate == "crash":
            raise Crash
        elif slowness(worker.terminate):
            await stage.take(slowness(worker.terminate))

    async def crash(self) -> None:
        raise Crash

    async def end(self, reason: object) -> None:
        self.stop(reason)


class TracedSupervisor(Supervisor):
    def __init__(self, stage: Stage, id: str, children: Sequence[ChildSpec], **settings: Any) -> None:
        super().__init__(children, **settings)
        self._stage = stage
        self._id = id

    async def on_start(self) -> None:
        self._stage.enter_supervisor(self._id, self.ref)
        await super().on_start()


class TracedDynamicSupervisor(DynamicSupervisor):
    def __init__(self, stage: Stage, id: str, **settings: Any) -> None:
        super().__init__(**settings)
        self._stage = stage
        self._id = id

    async def on_start(self) -> None:
        self._stage.enter_supervisor(self._id, self.ref)
        await super().on_start()


class Watcher(Actor):
    """Tells the stage how the tree ended."""

    def __init__(self, top: ActorRef[Any], stage: Stage) -> None:
        self._top = top
        self._stage = stage

    async def on_start(self) -> None:
        self.monitor(self._top)

    async def receive(self, message: Any) -> None:
        assert isinstance(message, Down)
        self._stage.ended(message.reason)


def reason(text: str) -> object:
    """OTP's word as promptside's reason: ``{shutdown,x}`` is a tuple."""
    if text.startswith("{"):
        return tuple(text.strip("{}").split(","))
    return text


def word(reason: object) -> str:
    """Promptside's reason as OTP's word: giving up is ``shutdown`` there, which says nothing of the cause."""
    if isinstance(reason, MaxRestartsExceeded):
        return "shutdown"
    if isinstance(reason, Crash):
        return "crash"
    if isinstance(reason, tuple):
        return "{" + ",".join(reason) + "}"
    return reason if isinstance(reason, str) else repr(reason)


def _listed(children: Sequence[ChildInfo]) -> str:
    return ", ".join(f"{child.id} {child.state}" for child in children) or "none"


async def _sleep_until(when: float) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    loop.call_at(when, waiter.set_result, None)
    await waiter
