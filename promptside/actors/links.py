"""Monitors and links: who is told when an actor ends.

Set by `Actor.monitor` and `Actor.link`, kept on the cells, released once when an incarnation ends. Semantics:
Erlang/OTP. A monitor is one-way and sends `Down`. A link is mutual: an end for any reason but ``"normal"`` ends the
other side too, with the same reason, unless that traps exits and receives `Exit`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptside.actors.messages import Down, Exit
from promptside.actors.state import State

if TYPE_CHECKING:
    from promptside.actors.cell import Cell

__all__ = ["Links", "Monitor", "link", "monitor", "unlink"]


class Monitor:
    """A monitor that was set; `cancel` takes it back."""

    __slots__ = ("_target", "_watcher")

    def __init__(self, watcher: Cell, target: Cell) -> None:
        self._watcher = watcher
        self._target = target

    def cancel(self) -> None:
        """Send no `Down` any more; one that is on its way still arrives."""
        _bonds(self._watcher).watching.pop(self, None)
        self._target.node.call(_bonds(self._target).monitors.pop, self, None)


class Links:
    """What holds one incarnation of a cell to others."""

    __slots__ = ("links", "monitors", "watching")

    def __init__(self) -> None:
        self.monitors: dict[Monitor, Cell] = {}  # who watches the cell
        self.watching: dict[Monitor, None] = {}  # what the cell has set on others
        self.links: dict[Cell, None] = {}

    def release(self, cell: Cell, reason: object) -> None:
        """Tell everybody, once."""
        monitors, self.monitors = self.monitors, {}
        links, self.links = self.links, {}
        for own in tuple(self.watching):
            own.cancel()
        for watcher in monitors.values():
            watcher.post(Down(ref=cell.ref, reason=reason, incarnation=cell.incarnation))
        for other in links:
            other.node.call(_signal, other, cell, reason, cell.incarnation)


def monitor(watcher: Cell, target: Cell) -> Monitor:
    """Have `watcher` told when `target` ends; at once, with ``"noproc"``, if it does not run."""
    set_ = Monitor(watcher, target)
    _bonds(watcher).watching[set_] = None

    def attach() -> None:
        if target.state is State.STOPPED:
            watcher.post(Down(ref=target.ref, reason="noproc", incarnation=0))
        else:
            _bonds(target).monitors[set_] = watcher

    target.node.call(attach)
    return set_


def link(one: Cell, other: Cell) -> None:
    """Tie two actors together; a link to one that does not run ends the first with ``"noproc"``."""
    if one is other:
        return
    _bonds(one).links[other] = None

    def attach() -> None:
        if other.state is State.STOPPED:
            one.node.call(_signal, one, other, "noproc", 0)
        else:
            _bonds(other).links[one] = None

    other.node.call(attach)


def unlink(one: Cell, other: Cell) -> None:
    """Undo `link`."""
    _bonds(one).links.pop(other, None)
    other.node.call(_bonds(other).links.pop, one, None)


def _bonds(cell: Cell) -> Links:
    if cell.bonds is None:
        cell.bonds = Links()
    return cell.bonds


def _signal(cell: Cell, source: Cell, reason: object, incarnation: int) -> None:
    """`source`, linked to `cell`, has ended."""
    if _bonds(cell).links.pop(source, cell) is cell:
        return  # unlinked meanwhile
    if cell.protocol.trap_exit:
        cell.post(Exit(ref=source.ref, reason=reason, incarnation=incarnation))
    elif reason != "normal":
        cell.crash(reason)
