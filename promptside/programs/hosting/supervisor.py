"""`ProgramSupervisor`: the actor at the top of a program, which starts its modules and publishes its versions.

Made by `Program.child_spec` and `start_program`; asked by `Program`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from promptside.errors import ProgramError
from promptside.programs.hosting.actors import SubmoduleActor
from promptside.programs.hosting.host import Host
from promptside.programs.hosting.hosted_class import put_layer
from promptside.programs.hosting.parts import SELF, ModuleSource, ModuleTree, Part
from promptside.programs.hosting.versions import Version, load_state, pins_of, without
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.handle import stands_elsewhere

if TYPE_CHECKING:
    from promptside.programs.program import Program

__all__ = ["ProgramSupervisor"]


class ProgramSupervisor(Supervisor):
    """The actor of a program: the supervisor of its outermost module, and of those below.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        if stands_elsewhere(self, program._supervisor):
            raise ProgramError(f"the program {program.name!r} runs already; make another Program for another place")
        self._program = program
        self._host = host = Host(
            ModuleTree(program._source),
            whole=True,
            threads=program._threads,
            retries=program._retries,
            versions=program._versions,
        )
        for part in host.parts.values():
            put_layer(part.module)
        door = functools.partial(program._module, host, program=program.name)
        self._versions = program._versions
        below = (*self._versions.modules, *host.root.parts)
        super().__init__([*(_spec(host, part) for part in below), ChildSpec(SELF, door)])

    async def on_start(self) -> None:
        """Start the modules, the outermost one last, then take calls."""
        await super().on_start()
        self._program._host = self._host
        self._program._supervisor = self.ref

    async def swap_state(self, state: Mapping[str, Any]) -> Version:
        """As `Program.swap_state`."""
        plain = self._program.copy()
        load_state(plain, state, self._program.name)
        parts = self._versions.current.parts(self._host.root)
        return await self._publish("swap_state", pins_of(plain, parts), self._versions.current.modules)

    async def swap(self, path: str, source: ModuleSource) -> Version:
        """As `Program.swap`."""
        path = self._program._part(path).path
        new = ModuleTree(source, at=path).root
        for part in new:
            if id(part.module) in self._host.parts:
                raise ProgramError(
                    f"the module for {path!r} has a module that is a part of the program {self._program.name!r} "
                    "already; give a copy of it, or roll back to the version that had it"
                )
        for part in new:
            put_layer(part.module)
        current = self._versions.current
        new.id += f"@{current.number + 1}"
        self._host.add(new)
        try:
            await self.start_child(_spec(self._host, new))
        except BaseException:
            self._host.remove(new)
            raise
        return await self._publish(
            f"swap {path}", without(path, current.pins), {**without(path, current.modules), path: new}
        )

    async def rollback(self, number: int | None) -> Version:
        """As `Program.rollback`."""
        version = self._versions.find(self._versions.current.number - 1 if number is None else number)
        return await self._publish(f"rollback to {version.number}", version.pins, version.modules)

    async def _publish(self, change: str, pins: Mapping[str, Any], modules: Mapping[str, Part]) -> Version:
        version = self._versions.publish(change, pins, modules)
        attributes = {"version": version.number, "change": change}
        self.system.events.publish("program.swapped", self.ref.path, attributes, incarnation=self.ref.incarnation)
        for part in self._versions.forget(self._host.is_pinned):
            await self.terminate_child(part.id)
            await self.delete_child(part.id)
            self._host.remove(part)
        return version


def _spec(host: Host, part: Part) -> ChildSpec:
    """The actor of a part; with parts below it, a supervisor of these and it. They start first, and stop last."""
    start = functools.partial(SubmoduleActor, host, part)
    if not part.parts:
        return ChildSpec(part.id, start)
    return Supervisor.child_spec(part.id, [*(_spec(host, below) for below in part.parts), ChildSpec(SELF, start)])
