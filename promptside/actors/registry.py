"""The registry of unique names, one per system; used from every event loop of the system."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from promptside.errors import NameNotFound, NameTaken

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["Registry"]


class Registry:
    """Names of live actors. A name is held from the spawn until the end; across restarts it stays."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._cells: dict[str, Cell] = {}

    def claim(self, name: str, cell: Cell) -> None:
        """Give `name` to `cell`; raises `NameTaken`."""
        with self._lock:
            if name in self._cells:
                raise NameTaken(name)
            self._cells[name] = cell

    def release(self, cell: Cell) -> None:
        """Free the name that `cell` holds, if any."""
        if cell.name is not None:
            with self._lock:
                if self._cells.get(cell.name) is cell:
                    del self._cells[cell.name]

    def find(self, name: str) -> Cell:
        """Who holds `name`; raises `NameNotFound`."""
        try:
            return self._cells[name]
        except KeyError:
            raise NameNotFound(name) from None
