"""`Supervisor` against a model of what Erlang/OTP documents: who stops, who starts, in which order, and who gives up.

The model knows nothing of messages, cells or plans: it is a list of children, a clock, and OTP's chapters 'Restart
Strategy', 'Maximum Restart Intensity' and 'Automatic Shutdown' as code. Beyond OTP it has the backoff: a child that
failed is started later, and whoever was stopped with it waits for it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

from promptside import ActorRef, ActorStartError, Backoff, ChildSpec, MaxRestartsExceeded, Supervisor
from promptside.actors import Restart, State
from promptside.actors.lifecycle import request_stop
from promptside.supervision.strategy import AutoShutdown, Strategy
from tests.support.children import Child
from tests.support.state_machine import ActorMachine

RESET_AFTER = 3.0

How = Literal["crash", "kill", "stop normal", "stop shutdown", "stop for a reason of its own"]
ORDERLY = ("stop normal", "stop shutdown")


@dataclass(eq=False)
class Role:
    """A child, in the model.

    Attributes:
        starts: What becomes of its next starts, False for a failure; those after the last succeed.
        wait: Seconds of its first backoff, 0 for none; the second and later ones take twice that.
        state: As `which_children` tells it; ``"lost"``: it has ended, and its supervisor does not know yet.
        due: When it is started again, if it waits.
        failure: Which of its failures is the last, so that an older one is known as late.
    """

    id: str
    restart: Restart
    significant: bool
    wait: float
    starts: list[bool]
    state: Literal["running", "restarting", "stopped", "lost"] = "stopped"
    due: float | None = None
    failure: object = None
    failures: int = 0
    began: float = 0.0


@dataclass
class Model:
    """A supervisor, in the model."""

    strategy: Strategy
    auto_shutdown: AutoShutdown
    max_restarts: int
    max_seconds: float
    now: float = 0.0
    roles: list[Role] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)
    restarts: list[float] = field(default_factory=list)
    end: str = ""
    news: deque[Callable[[], None]] = field(default_factory=deque)

    def find(self, id: str) -> Role | None:
        return next((role for role in self.roles if role.id == id), None)

    def start(self, role: Role) -> bool:
        succeeds = role.starts.pop(0) if role.starts else True
        self.diary.append(f"{'start' if succeeds else 'refuse'} {role.id}")
        if succeeds:
            role.state, role.due, role.began = "running", None, self.now
        return succeeds

    def stop(self, role: Role) -> None:
        if role.state == "running":
            self.diary.append(f"stop {role.id}")
        role.state, role.due = "stopped", None

    def finish(self, why: str) -> None:
        """The supervisor ends: its children are stopped in the reverse order of their start."""
        for role in reversed(self.roles):
            self.stop(role)
        self.end = why
        self.news.clear()

    def remove_if_temporary(self, role: Role) -> None:
        if role.restart == "temporary":
            self.roles.remove(role)

    def settle(self) -> None:
        while self.news:
            self.news.popleft()()

    # -- what becomes of an end ---------------------------------------------------------------------------------

    def ended(self, role: Role, how: How) -> None:
        """A child has ended; the supervisor will learn of it."""
        if how != "kill":
            self.diary.append(f"stop {role.id}")
        role.state = "lost"
        self.news.append(partial(self.learn, role, how))

    def learn(self, role: Role, how: How) -> None:
        if role.state != "lost":
            return  # it was stopped with its group meanwhile
        if role.restart == "permanent" or (role.restart == "transient" and how not in ORDERLY):
            ran_long = self.now - role.began >= RESET_AFTER
            role.failures = 0 if ran_long else role.failures
            self.fail(role)
            return
        role.state = "stopped"
        self.remove_if_temporary(role)
        if role.significant and self.auto_shutdown != "never":
            left = [other for other in self.roles if other.significant and other.state != "stopped"]
            if self.auto_shutdown == "any_significant" or not left:
                self.finish("shutdown")

    def fail(self, role: Role) -> None:
        """It is to be restarted: the intensity is looked at first, then the strategy decides who is concerned."""
        self.restarts.append(self.now)
        if len([at for at in self.restarts if self.now - at <= self.max_seconds]) > self.max_restarts:
            role.state = "stopped"
            self.finish("gave up")
            return
        role.state, role.due = "restarting", None
        role.failures += 1
        for other in reversed(self.group(role)):
            if other is not role:
                self.stop(other)
                self.remove_if_temporary(other)
        if role.wait:
            role.due = self.now + role.wait * min(role.failures, 2)
        else:
            self.start_group(role)

    def group(self, role: Role) -> list[Role]:
        if self.strategy == "one_for_one":
            return [role]
        return self.roles if self.strategy == "one_for_all" else self.roles[self.roles.index(role) :]

    def start_group(self, role: Role) -> None:
        for each in list(self.group(role)):
            if each.state != "running" and not self.start(each):
                each.state, each.due, each.failure = "restarting", None, object()
                self.news.append(partial(self.try_again, each, each.failure))
                return

    def try_again(self, role: Role, failure: object) -> None:
        if role.failure is failure and role.state == "restarting":
            self.fail(role)

    def pass_time(self, until: float) -> None:
        while waiting := [role for role in self.roles if role.due is not None and role.due <= until]:
            role = min(waiting, key=lambda role: role.due or 0.0)
            assert role.due is not None
            self.now, role.due = role.due, None
            self.start_group(role)
            self.settle()
        self.now = until


ids = st.sampled_from("abcde")
roles = st.builds(
    Role,
    id=ids,
    restart=st.sampled_from(["permanent", "transient", "transient", "temporary"]),
    significant=st.sampled_from([True, True, False]),
    wait=st.sampled_from([0.0, 1.0]),
    starts=st.lists(st.booleans(), max_size=3).map(lambda later: [True, *later]),
)
newcomers = st.tuples(roles, st.booleans())  # and whether its first start succeeds


def real_end(ref: ActorRef[Child], how: How) -> None:
    """Begin it; it is complete one turn of the loop later, however it comes."""
    if how == "kill":
        ref.kill()
    elif how == "crash":
        ref.tell(Child.fail)
    else:
        request_stop(ref._cell, how.removeprefix("stop "))


lives = precondition(lambda self: not self.model.end)
has_running = precondition(lambda self: any(role.state == "running" for role in self.model.roles))


class Supervision(ActorMachine):
    """The model, the diary of the real children, and what is asked of the real supervisor."""

    @initialize()
    def begin_without(self) -> None:
        self.model = Model("one_for_one", "never", 0, 1.0, end="not yet there")
        self.diary: list[str] = []
        self.given_up = False
        self.odd = 1  # no two waits of different children end at the same time, or at the time of a step

    def settle(self) -> None:
        quiet = 0
        while quiet < 2:
            self.run(asyncio.sleep(0))
            quiet = 0 if self.loop._ready else quiet + 1  # type: ignore[attr-defined]

    # -- between the two ----------------------------------------------------------------------------------------

    def spec(self, role: Role) -> ChildSpec:
        """The real child of a drawn one, which is made possible first."""
        model = self.model
        role.significant &= role.restart != "permanent" and model.auto_shutdown != "never"
        if role.wait:
            role.wait += self.odd / 4096
            self.odd += 2
        backoff = (
            Backoff(initial=role.wait, maximum=2 * role.wait, factor=2.0, jitter=0.0, reset_after=RESET_AFTER)
            if role.wait
            else None
        )
        self.scripts[role.id] = [not succeeds for succeeds in role.starts]
        start = partial(Child, role.id, self.diary, self.scripts[role.id])
        return ChildSpec(role.id, start, role.restart, significant=role.significant, backoff=backoff)

    def ask(self, method: Any, *args: Any) -> str:
        """The result's kind of an ask to the supervisor."""

        async def ask() -> str:
            try:
                await self.supervisor.ask(method, *args)
            except Exception as error:
                return type(error).__name__
            return "done"

        outcome = self.run(ask())
        self.settle()
        self.model.settle()
        return outcome

    def refs(self) -> dict[str, ActorRef[Child]]:
        return {child.id: child.ref for child in self.run(self.supervisor.ask(Supervisor.which_children))}

    def refuse(self, role: Role, starts: int) -> None:
        """Let its next starts fail."""
        role.starts[:0] = [False] * starts
        self.scripts[role.id][:0] = [True] * starts

    # -- the rules ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.model.end)
    @rule(
        strategy=st.sampled_from(get_args(Strategy)),
        auto_shutdown=st.sampled_from(get_args(AutoShutdown)),
        max_restarts=st.integers(0, 8),
        max_seconds=st.sampled_from([1.0, 5.0]),
        children=st.lists(roles, min_size=1, max_size=4, unique_by=lambda role: role.id),
        fails=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def open(
        self,
        strategy: Strategy,
        auto_shutdown: AutoShutdown,
        max_restarts: int,
        max_seconds: float,
        children: list[Role],
        fails: int | None,
    ) -> None:
        self.model = model = Model(strategy, auto_shutdown, max_restarts, max_seconds, self.loop.time())
        self.diary.clear()
        self.scripts: dict[str, list[bool]] = {}
        for place, role in enumerate(children):
            role.starts[0] = place != fails
        specs = [self.spec(role) for role in children]
        options = {"strategy": strategy, "auto_shutdown": auto_shutdown}
        options |= {"max_restarts": max_restarts, "max_seconds": max_seconds}
        for role in children:
            model.roles.append(role)
            if not model.start(role):
                model.finish("did not start")
                break
        spawning: Coroutine[Any, Any, ActorRef[Supervisor]] = self.system.spawn(Supervisor, specs, **options)
        if model.end:
            with pytest.raises(ActorStartError):
                self.run(spawning)
        else:
            self.supervisor = self.run(spawning)

    @lives
    @has_running
    @rule(
        data=st.data(),
        how=st.sampled_from(get_args(How)),
        also=st.none() | st.sampled_from(get_args(How)),
        refused=st.sampled_from([0, 0, 1, 2]),
    )
    def end(self, data: st.DataObject, how: How, also: How | None, refused: int) -> None:
        """One child ends, or two before the supervisor has heard of either; and its next starts fail."""
        running = [role for role in self.model.roles if role.state == "running"]
        first, *others = data.draw(st.permutations(running))
        refs = self.refs()
        ends: list[tuple[Role, How]] = [(first, how), *([(others[0], also)] if others and also else [])]

        async def together() -> None:
            for role, its in ends:
                real_end(refs[role.id], its)

        self.refuse(first, refused)
        for each in ends:
            self.model.ended(*each)
        self.run(together())
        self.settle()
        self.model.settle()

    @lives
    @rule(newcomer=newcomers)
    def start_child(self, newcomer: tuple[Role, bool]) -> None:
        role, role.starts[0] = newcomer
        model = self.model
        if model.find(role.id) is not None:
            assert self.ask(Supervisor.start_child, ChildSpec(role.id, Child)) == "InvalidChildState"  # type: ignore[arg-type]
            return
        outcome = self.ask(Supervisor.start_child, self.spec(role))
        if model.start(role):
            model.roles.append(role)
        assert outcome == ("done" if role.state == "running" else "ActorStartError")

    @lives
    @rule(id=ids)
    def terminate_child(self, id: str) -> None:
        role = self.model.find(id)
        if role is not None:
            self.model.stop(role)
            self.model.remove_if_temporary(role)
        assert self.ask(Supervisor.terminate_child, id) == ("ChildNotFound" if role is None else "done")

    @lives
    @rule(id=ids)
    def restart_child(self, id: str) -> None:
        role = self.model.find(id)
        if role is None:
            expected = "ChildNotFound"
        elif role.state != "stopped":
            expected = "InvalidChildState"
        else:
            expected = "done" if self.model.start(role) else "ActorStartError"
        assert self.ask(Supervisor.restart_child, id) == expected

    @lives
    @rule(id=ids)
    def delete_child(self, id: str) -> None:
        role = self.model.find(id)
        if role is None:
            expected = "ChildNotFound"
        elif role.state != "stopped":
            expected = "InvalidChildState"
        else:
            expected = "done"
            self.model.roles.remove(role)
        assert self.ask(Supervisor.delete_child, id) == expected

    @lives
    @rule(id=ids, starts=st.integers(1, 3))
    def its_next_starts_will_fail(self, id: str, starts: int) -> None:
        role = self.model.find(id)
        if role is not None:
            self.refuse(role, starts)

    @lives
    @rule(eighths=st.integers(1, 48) | st.sampled_from([8, 40]))  # and exactly the windows of `open`
    def wait(self, eighths: int) -> None:
        self.advance(eighths / 8)
        self.settle()
        self.model.pass_time(self.loop.time())

    # -- what must be the same ----------------------------------------------------------------------------------

    @invariant()
    def children_started_and_stopped_in_the_order_of_the_model(self) -> None:
        assert self.diary == self.model.diary

    @invariant()
    def the_supervisor_ends_when_the_model_does(self) -> None:
        if self.model.end in ("not yet there", "did not start"):
            return
        cell = self.supervisor._cell
        assert cell.state is (State.STOPPED if self.model.end else State.RUNNING)
        if self.model.end == "gave up":
            assert isinstance(cell.reason, MaxRestartsExceeded)
            self.given_up = True
        elif self.model.end:
            assert cell.reason == "shutdown"

    @invariant()
    def the_children_are_those_of_the_model(self) -> None:
        if self.model.end:
            return
        roles = self.model.roles
        children = self.run(self.supervisor.ask(Supervisor.which_children))
        assert [(child.id, child.state) for child in children] == [(role.id, role.state) for role in roles]
        for child, role in zip(children, roles, strict=True):
            if role.due is not None:
                assert child.ref.retry_after == pytest.approx(role.due - self.loop.time())
        counts = self.run(self.supervisor.ask(Supervisor.count_children))
        assert (counts.specs, counts.active) == (len(roles), sum(role.state == "running" for role in roles))

    def before_teardown(self) -> None:
        assert (self.system.failure is not None) == self.given_up
        self.system.failure = None  # which leaving the system would raise


pytestmark = pytest.mark.timeout(400)  # Hypothesis takes up to 300 s to shrink a failure
TestSupervision = Supervision.TestCase
