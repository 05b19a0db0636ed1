"""Names and groups against a model: who holds what, through failed starts, slow ends and restarts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

from promptside import Actor, ActorRef, ChildSpec, Supervisor
from promptside.errors import ActorStartError, ActorStopped, NameNotFound, NameTaken
from promptside.supervision import Restart
from tests.support.state_machine import ActorMachine

NAMES = ("a", "b", "c")
GROUPS = ("g", "h")
names = st.sampled_from([*NAMES, None])


class Person(Actor):
    """Starts or not, and leaves when it is let go."""

    def __init__(self, starts: bool, leaving: asyncio.Future[None] | None) -> None:
        self.starts = starts
        self.leaving = leaving

    async def on_start(self) -> None:
        if not self.starts:
            raise ValueError("on request")

    async def on_stop(self, reason: object) -> None:
        if self.leaving is not None:
            await asyncio.shield(self.leaving)

    async def fail(self) -> None:
        raise ValueError("on request")


@dataclass(eq=False)
class Life:
    """An actor, in the model."""

    ref: ActorRef[Any]
    name: str | None
    restart: Restart = "temporary"
    leaving: asyncio.Future[None] | None = None
    ended: bool = False
    ends: bool = False  # it has been told to stop, and is not let go yet
    incarnation: int = 1
    children: list[Life] = field(default_factory=list)


class Registry(ActorMachine):
    @initialize()
    def open(self) -> None:
        self.lives: list[Life] = []
        self.names: dict[str, Life] = {}
        self.groups: dict[str, list[Life]] = {group: [] for group in GROUPS}

    # -- the model ----------------------------------------------------------------------------------------------

    def born(self, life: Life) -> None:
        self.lives.append(life)
        if life.name is not None:
            self.names[life.name] = life

    def die(self, life: Life) -> None:
        for child in life.children:
            self.die(child)
        life.ended, life.ends = True, False
        self.names = {name: other for name, other in self.names.items() if other is not life}
        for group in self.groups.values():
            if life in group:
                group.remove(life)

    def draw(self, data: st.DataObject) -> Life:
        return data.draw(st.sampled_from(self.lives))

    # -- the rules ----------------------------------------------------------------------------------------------

    @rule(name=names, starts=st.sampled_from([True, True, False]), slow=st.booleans())
    def spawn(self, name: str | None, starts: bool, slow: bool) -> None:
        leaving = self.loop.create_future() if slow else None
        work = self.system.with_options(name=name).spawn(Person, starts, leaving)
        if name in self.names:
            with pytest.raises(NameTaken):
                self.run(work)
        elif not starts:
            with pytest.raises(ActorStartError):
                self.run(work)
        else:
            self.born(Life(self.run(work), name, leaving=leaving))
            return
        if leaving is not None:
            leaving.set_result(None)

    @rule(name=names, restart=st.sampled_from(["permanent", "transient", "temporary"]))
    def supervise(self, name: str | None, restart: Restart) -> None:
        spec = ChildSpec("child", partial(Person, True, None), restart, name=name)
        work = self.system.spawn(Supervisor, [spec], max_restarts=1_000_000)
        if name in self.names:
            with pytest.raises(ActorStartError) as failed:
                self.run(work)
            assert isinstance(failed.value.__cause__, NameTaken)
            return
        supervisor = self.run(work)
        child = Life(self.run(supervisor.ask(Supervisor.child, "child")), name, restart)
        self.born(child)
        self.born(Life(supervisor, None, children=[child]))

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), how=st.sampled_from(["stop", "kill", "crash"]))
    def end(self, data: st.DataObject, how: str) -> None:
        life = self.draw(data)
        if not life.ended:
            if how != "kill" and life.leaving is not None and not life.leaving.done():
                life.ends = True
            elif life.restart == "permanent" or (life.restart == "transient" and how != "stop"):
                life.incarnation += 1
            else:
                self.die(life)
        if how == "kill":
            life.ref.kill()
        elif how == "crash" and not life.children:
            life.ref.tell(Person.fail)
        else:
            self.begin(len(self.tasks), life.ref.stop())
        self.settle()

    @precondition(lambda self: any(life.ends for life in self.lives))
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        life = data.draw(st.sampled_from([life for life in self.lives if life.ends]))
        assert life.leaving is not None
        self.die(life)
        life.leaving.set_result(None)
        self.settle()

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), group=st.sampled_from(GROUPS))
    def join(self, data: st.DataObject, group: str) -> None:
        life = self.draw(data)
        if life.ended:
            with pytest.raises(ActorStopped):
                self.system.join(group, life.ref)
            return
        self.system.join(group, life.ref)
        if life not in self.groups[group]:
            self.groups[group].append(life)

    @precondition(lambda self: self.lives)
    @rule(data=st.data(), group=st.sampled_from(GROUPS))
    def leave(self, data: st.DataObject, group: str) -> None:
        life = self.draw(data)
        self.system.leave(group, life.ref)
        if life in self.groups[group]:
            self.groups[group].remove(life)

    # -- what must be the same ----------------------------------------------------------------------------------

    @invariant()
    def a_name_is_held_from_the_spawn_to_the_end(self) -> None:
        for name in NAMES:
            if name in self.names:
                assert self.system.whereis(name) == self.names[name].ref
            else:
                with pytest.raises(NameNotFound):
                    self.system.whereis(name)

    @invariant()
    def a_group_has_its_living_members_in_the_order_in_which_they_joined(self) -> None:
        for group in GROUPS:
            assert self.system.members(group) == tuple(life.ref for life in self.groups[group])

    @invariant()
    def a_restart_keeps_both(self) -> None:
        assert [life.ref.incarnation for life in self.lives] == [life.incarnation for life in self.lives]
        assert [life.ref.info().state.value == "stopped" for life in self.lives] == [life.ended for life in self.lives]

    def before_teardown(self) -> None:
        for life in self.lives:
            if life.leaving is not None and not life.leaving.done():
                life.leaving.set_result(None)


pytestmark = pytest.mark.timeout(400)  # Hypothesis takes up to 300 s to shrink a failure
TestRegistry = Registry.TestCase
