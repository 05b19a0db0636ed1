"""The life of an ask against a model: whatever happens at whatever point, it has one outcome, the right one."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

from promptside import Actor, ActorRef, ChildSpec, Supervisor
from promptside.actors.lifecycle import KILL_GRACE
from promptside.errors import ActorStopped, AskTimeout
from tests.support.state_machine import ActorMachine


class Answer(Exception):
    """An expected exception."""


class Crash(Exception):
    """An unexpected one."""


class Stage:
    """What outlives the incarnations: the gates at which handlers and hooks wait for the machine."""

    def __init__(self) -> None:
        self.entered: list[int] = []
        self.gates: dict[int, asyncio.Future[Exception | None]] = {}
        self.hold_start = False
        self.hold_stop = False
        self.starting: asyncio.Future[None] | None = None
        self.stopping: asyncio.Future[None] | None = None


class Server(Actor, expected=(Answer,), shutdown=math.inf):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def on_start(self) -> None:
        if self.stage.hold_start:
            self.stage.starting = asyncio.get_running_loop().create_future()
            try:
                await self.stage.starting
            finally:
                self.stage.starting = None

    async def on_stop(self, reason: object) -> None:
        if self.stage.hold_stop:
            self.stage.stopping = asyncio.get_running_loop().create_future()
            try:
                await self.stage.stopping
            finally:
                self.stage.stopping = None

    async def work(self, number: int, stubborn: bool) -> int:
        """Wait for the machine, which says what to end with; the stubborn kind waits on when it is cancelled."""
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling(), "the cancellation of an earlier message"
        self.stage.entered.append(number)
        gate = self.stage.gates[number] = asyncio.get_running_loop().create_future()
        try:
            while not gate.done():
                try:
                    await asyncio.shield(gate)
                except asyncio.CancelledError:
                    if not stubborn:
                        raise
        finally:
            del self.stage.gates[number]
            gate.cancel()
        error = gate.result()
        if error is not None:
            raise error
        return number


class Parallel(Server, max_concurrency=2):
    pass


class Between(Actor, max_concurrency=100, expected=(Exception,)):
    """Asks on behalf of those who ask it."""

    async def forward(self, to: ActorRef[Server], number: int, stubborn: bool) -> int:
        return await to.ask(Server.work, number, stubborn)


@dataclass
class Work:
    """An ask, in the model."""

    number: int
    deadline: float
    stubborn: bool
    direct: bool
    started: bool = False
    cancelled: bool = False
    outcome: str = "waits"


class AskLifecycle(ActorMachine):
    """The model: who is queued, who is inside, and where the server is in its life.

    States: "open"; "starting" while `on_start` is held; "ending" while handlers are inside that must leave before an
    orderly end, or after a crash; "farewell" while `on_stop` is held; "killed" while stubborn handlers are inside.
    """

    server: type[Server] = Server

    @initialize()
    def open(self) -> None:
        self.stage = Stage()
        self.slots = self.server.__options__.max_concurrency
        spec = ChildSpec("server", partial(self.server, self.stage))
        supervisor = self.run(self.system.spawn(Supervisor, [spec], max_restarts=1_000_000))
        self.ref: ActorRef[Server] = self.run(supervisor.ask(Supervisor.child, "server"))
        self.between = self.run(self.system.spawn(Between))
        self.asks: dict[int, Work] = {}
        self.queue: list[Work] = []
        self.inside: list[Work] = []
        self.entered: list[int] = []
        self.state = "open"
        self.incarnation = 1
        self.left_at = math.inf  # when a killed server ends without its stubborn handlers
        self.stops: list[int] = []
        self.numbers = 0

    # -- the model ----------------------------------------------------------------------------------------------

    def end(self, work: Work, outcome: str) -> None:
        if work.outcome == "waits":
            work.outcome = outcome

    def leave(self, work: Work) -> None:
        """The handler is cancelled, and leaves unless it is stubborn."""
        work.cancelled = True
        if not work.stubborn and work in self.inside:
            self.inside.remove(work)

    def refuse(self) -> None:
        while self.queue:
            self.end(self.queue.pop(0), "ActorStopped before")

    def break_off(self) -> None:
        """A crash or a kill: what is inside ends, too."""
        self.refuse()
        for work in tuple(self.inside):
            self.end(work, "ActorStopped while")
            self.leave(work)

    def go_on(self) -> None:
        """Everything that follows by itself."""
        if self.state in ("ending", "killed") and not self.inside:
            if self.state == "ending" and self.stage.hold_stop:
                self.state = "farewell"
            else:
                self.restart()
        while self.state == "open" and self.queue and len(self.inside) < self.slots:
            work = self.queue.pop(0)
            work.started = True
            self.inside.append(work)
            self.entered.append(work.number)

    def restart(self) -> None:
        self.refuse()  # what came while it started
        self.incarnation += 1
        self.left_at = math.inf
        self.inside.clear()
        self.state = "starting" if self.stage.hold_start else "open"

    def give_up(self, work: Work, outcome: str) -> None:
        self.end(work, f"{outcome} while" if work.started and outcome == "AskTimeout" else outcome)
        if work in self.queue:
            self.queue.remove(work)
            if outcome == "AskTimeout":
                work.outcome = "AskTimeout before"
        self.leave(work)
        self.go_on()

    def pass_time(self, until: float) -> None:
        """Deadlines and the end of a kill's outage_timeout, in their order."""
        while True:
            waiting = [work for work in self.asks.values() if work.outcome == "waits"]
            due = min(waiting, key=lambda work: work.deadline, default=None)
            if self.left_at <= until and (due is None or self.left_at < due.deadline):
                self.inside.clear()
                self.go_on()
            elif due is not None and due.deadline <= until:
                self.give_up(due, "AskTimeout")
            else:
                return

    # -- the rules ----------------------------------------------------------------------------------------------

    @rule(
        timeout=st.sampled_from([0.5, 1.5, math.inf]),
        stubborn=st.sampled_from([False, False, True]),
        times=st.integers(1, 3),
    )
    def ask(self, timeout: float, stubborn: bool, times: int) -> None:
        for _ in range(times):
            number = self.begin_work(timeout, stubborn, direct=True)
            self.begin(number, self.ref.with_options(timeout=timeout).ask(Server.work, number, stubborn))

    @rule(outer=st.sampled_from([0.5, math.inf]), inner=st.sampled_from([1.5, math.inf]), stubborn=st.booleans())
    def ask_through_another_actor(self, outer: float, inner: float, stubborn: bool) -> None:
        number = self.begin_work(min(outer, inner), stubborn, direct=False)
        to = self.ref.with_options(timeout=inner)
        self.begin(number, self.between.with_options(timeout=outer).ask(Between.forward, to, number, stubborn))

    def begin_work(self, timeout: float, stubborn: bool, *, direct: bool) -> int:
        self.numbers += 1
        work = self.asks[self.numbers] = Work(self.numbers, self.loop.time() + timeout, stubborn, direct)
        if self.state in ("open", "starting"):
            self.queue.append(work)
        else:
            self.end(work, "ActorStopped before")
        self.go_on()
        return work.number

    @precondition(lambda self: self.stage.gates)
    @rule(data=st.data(), error=st.sampled_from([None, None, Answer, Crash]))
    def finish(self, data: st.DataObject, error: type[Exception] | None) -> None:
        number = data.draw(st.sampled_from(sorted(self.stage.gates)))
        work = self.asks[number]
        self.end(work, error.__name__ if error else "result")
        if work in self.inside:
            self.inside.remove(work)
            if error is Crash and not work.cancelled:
                self.break_off()
                self.state = "ending"
        self.go_on()
        self.stage.gates[number].set_result(error() if error else None)
        self.settle()

    @precondition(lambda self: any(work.outcome == "waits" for work in self.asks.values()))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = [number for number, work in self.asks.items() if work.outcome == "waits"]
        number = data.draw(st.sampled_from(waiting))
        self.give_up(self.asks[number], "CancelledError")
        self.tasks[number].cancel()
        self.settle()

    @precondition(lambda self: any(work.direct and work.outcome == "waits" for work in self.inside))
    @rule(data=st.data(), first=st.booleans(), error=st.sampled_from([None, Crash]))
    def cancel_in_the_turn_in_which_the_handler_could_finish(
        self, data: st.DataObject, first: bool, error: type[Exception] | None
    ) -> None:
        work = data.draw(st.sampled_from([work for work in self.inside if work.direct and work.outcome == "waits"]))
        self.end(work, "CancelledError")
        self.inside.remove(work)
        self.go_on()
        gate = self.stage.gates[work.number]
        if first:
            self.tasks[work.number].cancel()
        gate.set_result(error() if error else None)
        self.tasks[work.number].cancel()
        self.settle()

    @rule(seconds=st.sampled_from([0.25, 1.0]))
    def wait(self, seconds: float) -> None:
        self.advance(seconds)
        self.pass_time(self.loop.time())

    @rule()
    def stop(self) -> None:
        if self.state == "starting":
            self.restart()
        elif self.state == "open":
            self.refuse()
            self.state = "ending"
        self.go_on()
        self.numbers += 1
        self.begin(-self.numbers, self.ref.stop())

    @precondition(lambda self: self.inside)
    @rule(data=st.data(), first=st.booleans(), error=st.sampled_from([None, Crash]))
    def kill_in_the_turn_in_which_a_handler_could_finish(
        self, data: st.DataObject, first: bool, error: type[Exception] | None
    ) -> None:
        work = data.draw(st.sampled_from(self.inside))
        gate = self.stage.gates[work.number]
        if first:
            self.ref.kill()
        gate.set_result(error() if error else None)
        if self.state != "killed":
            self.break_off()
            self.state = "killed"
            self.left_at = self.loop.time() + KILL_GRACE
        if work in self.inside:
            self.inside.remove(work)
        self.go_on()
        self.ref.kill()
        self.settle()

    @rule()
    def kill(self) -> None:
        if self.state in ("starting", "farewell"):
            self.restart()
        elif self.state in ("open", "ending"):
            self.break_off()
            self.state = "killed"
            self.left_at = self.loop.time() + KILL_GRACE
        self.go_on()
        self.ref.kill()
        self.settle()

    @rule(on=st.booleans())
    def hold_starts(self, on: bool) -> None:
        self.stage.hold_start = on

    @rule(on=st.booleans())
    def hold_stops(self, on: bool) -> None:
        self.stage.hold_stop = on

    @precondition(lambda self: self.stage.starting is not None)
    @rule(fails=st.booleans())
    def start(self, fails: bool) -> None:
        if fails:
            self.restart()
        else:
            self.state = "open"
            self.go_on()
        self.let_go(self.stage.starting, fails)

    @precondition(lambda self: self.stage.stopping is not None)
    @rule(fails=st.booleans())
    def say_farewell(self, fails: bool) -> None:
        self.restart()
        self.let_go(self.stage.stopping, fails)

    def let_go(self, gate: asyncio.Future[None] | None, fails: bool) -> None:
        assert gate is not None
        if fails:
            gate.set_exception(Crash())
        else:
            gate.set_result(None)
        self.settle()

    # -- what must be the same ----------------------------------------------------------------------------------

    @invariant()
    def every_ask_has_the_one_outcome_that_the_model_says(self) -> None:
        assert {number: self.told(number) for number in self.asks} == {
            number: work.outcome for number, work in self.asks.items()
        }

    def told(self, number: int) -> str:
        """The outcome, with `started` where it has that; `Between` knows only of its own start."""
        how = self.outcome(number)
        error: Any = self.tasks[number].exception() if how in ("ActorStopped", "AskTimeout") else None
        if isinstance(error, ActorStopped | AskTimeout):
            forwarded = error.path == self.between.path
            started = self.asks[number].started if forwarded else error.started
            return f"{how} while" if started else f"{how} before"
        return how

    @invariant()
    def handlers_begin_in_the_order_of_the_asks(self) -> None:
        assert self.stage.entered == self.entered

    @invariant()
    def the_server_is_where_the_model_is(self) -> None:
        assert (self.ref.info().state.value == "running") == (self.state == "open")
        assert (self.stage.starting is not None) == (self.state == "starting")
        assert (self.stage.stopping is not None) == (self.state == "farewell")
        assert self.ref.incarnation == self.incarnation

    def before_teardown(self) -> None:
        if hasattr(self, "ref"):
            self.stage.hold_start = self.stage.hold_stop = False
            for hook in (self.stage.starting, self.stage.stopping):
                if hook is not None:
                    hook.set_result(None)
            self.settle()
            self.ref.kill()
            while self.stage.gates:
                for gate in tuple(self.stage.gates.values()):
                    gate.set_result(None)
                self.settle()


class ParallelAskLifecycle(AskLifecycle):
    server = Parallel


pytestmark = pytest.mark.timeout(400)  # Hypothesis takes up to 300 s to shrink a failure
TestAskLifecycle = AskLifecycle.TestCase
TestParallelAskLifecycle = ParallelAskLifecycle.TestCase
