"""`ProgramSupervisor`: the actor at the top of a program, which starts its modules and publishes its versions.

Made and asked by `Program`.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from promptside.errors import ProgramError
from promptside.programs.hosting.actors import ModuleActor, SubmoduleActor
from promptside.programs.hosting.host import Host
from promptside.programs.hosting.hosted_class import copy_of, host_module
from promptside.programs.hosting.making import ModuleSource
from promptside.programs.hosting.parts import ENTRY, ModuleTree, Part
from promptside.programs.hosting.versions import Version, load_state, pins_of, without
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.handle import Handle

__all__ = ["ProgramSupervisor"]


class ProgramSupervisor(Supervisor):
    """The actor of a program: the supervisor of its outermost module, and of those below.

    Args:
        handle: The program.
        make_host: Makes its modules, and what their actors share.
        entry: Makes the actor of the outermost module, of its host.
    """

    def __init__(
        self, handle: Handle[Host], make_host: Callable[[], Awaitable[Host]], entry: Callable[[Host], ModuleActor]
    ) -> None:
        handle.claim(self)
        self._handle = handle
        self._make_host = make_host
        self._entry = entry
        self._host: Host
        super().__init__()

    async def on_start(self) -> None:
        """Make the modules and start them, the outermost one last, then take calls."""
        self._host = host = await self._make_host()
        for part in host.parts.values():
            host_module(part.module)
        for part in (*host.versions.modules, *host.root.parts):
            await self.start_child(_spec(host, part))
        await self.start_child(ChildSpec(ENTRY, functools.partial(self._entry, host)))
        self._handle.attach(self, host)

    async def on_stop(self, reason: object) -> None:
        """Let the calls in the threads that modules belong to end, and then these threads, if there are any."""
        parts = (self._host.root, *self._host.versions.modules)
        if homes := {part.home for part in parts if part.home is not None}:
            await self.terminate_child(ENTRY)
            for home in homes:
                home.shutdown()

    async def swap_state(self, state: Mapping[str, Any]) -> Version:
        """As `Program.swap_state`."""
        host, current = self._host, self._host.versions.current
        plain = copy_of(host.current())
        load_state(plain, state, self._handle.name)
        return await self._publish("swap_state", pins_of(plain, current.parts(host.root)), current.modules)

    async def swap(self, path: str, source: ModuleSource) -> Version:
        """As `Program.swap`."""
        host, current = self._host, self._host.versions.current
        path = host.find(path).path
        new = (await ModuleTree.make(host.maker_for(source, self._handle.name), at=path)).root
        for part in new:
            if id(part.module) in host.parts:
                raise ProgramError(
                    f"the module for {path!r} has a module that is a part of the program {self._handle.name!r} "
                    "already; give a copy of it, or roll back to the version that had it"
                )
        for part in new:
            host_module(part.module)
        new.id += f"@{current.number + 1}"
        host.add(new)
        try:
            await self.start_child(_spec(host, new))
        except BaseException:
            host.remove(new)
            raise
        return await self._publish(
            f"swap {path}", without(path, current.pins), {**without(path, current.modules), path: new}
        )

    async def rollback(self, number: int | None) -> Version:
        """As `Program.rollback`."""
        versions = self._host.versions
        version = versions.find(versions.current.number - 1 if number is None else number)
        return await self._publish(f"rollback to {version.number}", version.pins, version.modules)

    async def _publish(self, change: str, pins: Mapping[str, Any], modules: Mapping[str, Part]) -> Version:
        versions = self._host.versions
        version = versions.publish(change, pins, modules)
        attributes = {"version": version.number, "change": change}
        self.system.events.publish("program.swapped", self.ref.path, attributes, incarnation=self.ref.incarnation)
        for part in versions.forget(self._host.is_pinned):
            await self.terminate_child(part.id)
            await self.delete_child(part.id)
            self._host.remove(part)
        return version


def _spec(host: Host, part: Part) -> ChildSpec:
    """The actor of a part; with parts below it, a supervisor of these and it. They start first, and stop last."""
    if not part.parts:
        return SubmoduleActor.child_spec(part.id, host, part)
    below = (_spec(host, each) for each in part.parts)
    return Supervisor.child_spec(part.id, [*below, SubmoduleActor.child_spec(ENTRY, host, part)])
