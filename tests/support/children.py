"""What the tests of supervisors share: a child that keeps a diary, and ways to see what its supervisor made of it."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from promptside import Actor, ActorRef, ActorSystem, ChildSpec, Supervisor


class Child(Actor):
    """Notes its starts and stops in a list that outlives it; fails to start as often as its list of failures says."""

    def __init__(self, name: str, diary: list[str], failures: list[bool]) -> None:
        self.name = name
        self.diary = diary
        self.failures = failures

    async def on_start(self) -> None:
        if self.failures and self.failures.pop(0):
            self.diary.append(f"refuse {self.name}")
            raise OSError("not yet")
        self.diary.append(f"start {self.name}")

    async def on_stop(self, reason: object) -> None:
        self.diary.append(f"stop {self.name}")

    async def fail(self) -> None:
        raise ValueError("on request")

    async def ping(self) -> str:
        return self.name

    async def hang(self) -> None:
        await asyncio.get_running_loop().create_future()


class Stage:
    """A supervisor of such children, its diary, and what a test does to it."""

    def __init__(self) -> None:
        self.diary: list[str] = []
        self.supervisor: ActorRef[Supervisor]

    def spec(
        self, id: str, restart: Any = "permanent", *, failures: list[bool] | None = None, **more: Any
    ) -> ChildSpec:
        return ChildSpec(id, partial(Child, id, self.diary, failures or []), restart, **more)

    async def open(self, system: ActorSystem, *children: ChildSpec | str, **options: Any) -> ActorRef[Supervisor]:
        specs = [self.spec(child) if isinstance(child, str) else child for child in children]
        self.supervisor = await system.with_options(name="supervisor").spawn(Supervisor, specs, **options)
        self.diary.clear()
        return self.supervisor

    async def child(self, id: str) -> ActorRef[Child]:
        return await self.supervisor.ask(Supervisor.child, id)

    async def crash(self, id: str) -> None:
        (await self.child(id)).tell(Child.fail)
        await asyncio.sleep(0.001)  # virtual: everything that follows from it has happened

    async def states(self) -> dict[str, str]:
        return {child.id: child.state for child in await self.supervisor.ask(Supervisor.which_children)}

    def read(self) -> str:
        """The diary since the last look."""
        text = ", ".join(self.diary)
        self.diary.clear()
        return text
