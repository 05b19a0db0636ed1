"""The registry of unique names, and groups; one per system, used from every event loop of the system."""

from __future__ import annotations

from threading import RLock

from promptside.actors.cell import Cell
from promptside.actors.state import State
from promptside.errors import NameNotFound, NameTaken

__all__ = ["Registry"]


class Registry:
    """Names of live actors. A name is held from the spawn until the end; across restarts it stays."""

    def __init__(self) -> None:
        self._lock = RLock()  # reentrant, because a finalizer may come here while its thread is
        self._cells: dict[str, Cell] = {}
        self._groups: dict[str, dict[Cell, None]] = {}
        self._joined: dict[Cell, dict[str, None]] = {}  # the groups of each member

    def claim(self, name: str, cell: Cell) -> None:
        """Give `name` to `cell`, which may hold it already; raises `NameTaken`."""
        with self._lock:
            if self._cells.get(name, cell) is not cell:
                raise NameTaken(name)
            self._cells[name] = cell

    def release(self, cell: Cell) -> None:
        """Free the name that `cell` holds, if any, and take it out of its groups."""
        if cell.name is None and cell not in self._joined:
            return
        with self._lock:
            if cell.name is not None and self._cells.get(cell.name) is cell:
                del self._cells[cell.name]
            for group in tuple(self._joined.get(cell, ())):
                self._leave(group, cell)

    def find(self, name: str) -> Cell:
        """The cell that holds `name`; raises `NameNotFound`."""
        try:
            return self._cells[name]
        except KeyError:
            raise NameNotFound(name) from None

    def join(self, group: str, cell: Cell) -> None:
        """Make `cell` a member of `group`; it leaves when it has ended for good. Raises `ActorStopped` after that."""
        with self._lock:
            if cell.state is State.STOPPED and cell.restart_at is None:
                raise cell.stopped(cell.reason, started=False)
            self._groups.setdefault(group, {})[cell] = None
            self._joined.setdefault(cell, {})[group] = None

    def leave(self, group: str, cell: Cell) -> None:
        """Undo `join`."""
        with self._lock:
            self._leave(group, cell)

    def members(self, group: str) -> tuple[Cell, ...]:
        """The members in the order in which they joined; none for an unknown group."""
        with self._lock:
            return tuple(self._groups.get(group, ()))

    def _leave(self, group: str, cell: Cell) -> None:
        members, groups = self._groups.get(group, {}), self._joined.get(cell, {})
        if cell in members:
            del members[cell], groups[group]
        if not members:
            self._groups.pop(group, None)
        if not groups:
            self._joined.pop(cell, None)
