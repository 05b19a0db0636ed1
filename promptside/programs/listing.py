"""`list_programs`: the programs of a system, found in its tree. Called by users."""

from __future__ import annotations

from promptside.actors import ActorSystem
from promptside.actors.spi import top_cells
from promptside.checks import check
from promptside.programs.program import Program

__all__ = ["list_programs"]


def list_programs(system: ActorSystem) -> tuple[Program, ...]:
    """The programs of a system that run, or are being restarted, in the order of the tree. Cost: O(actors).

    Raises:
        ValueError: `system` is no system.
    """
    check("list_programs", "system", system, isinstance(system, ActorSystem), "give an ActorSystem")
    found: list[Program] = []
    waiting = list(reversed(top_cells(system)))
    while waiting:
        cell = waiting.pop()
        handle = getattr(cell.factory, "__self__", None)  # of `Program._make_actor`
        if isinstance(handle, Program) and handle.started:
            found.append(handle)
        waiting += reversed((cell.children or {}).values())
    return tuple(found)
