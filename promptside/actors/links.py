"""Monitors and links: how an actor learns that another one has ended.

Set by `Actor.monitor` and `Actor.link`, kept on the cells; `lifecycle` releases them when an incarnation ends.
Semantics: Erlang/OTP. A monitor is one-way and sends `Down`. A link is mutual: an end for any reason but ``"normal"``
ends the other side too, with the same reason, unless that traps exits and receives `Exit`.
"""

from __future__ import annotations

from promptside.actors.cell import Cell, Links
from promptside.actors.lifecycle import on_linked_exit
from promptside.actors.messages import Down
from promptside.actors.state import State

__all__ = ["Monitor", "link", "monitor", "unlink"]


class Monitor:
    """A monitor that was set; `cancel` takes it back. With its `Down` it is over, and holds nothing of the target."""

    __slots__ = ("_target", "_watcher")

    def __init__(self, watcher: Cell, target: Cell) -> None:
        self._watcher = watcher
        self._target: Cell | None = target

    def cancel(self) -> None:
        """Send no `Down` any more; one that is on its way still arrives."""
        target = self._target
        self._forget()
        if target is not None:
            target.node.call(_links_of(target).monitors.pop, self, None)

    def report(self, down: Down) -> None:
        """The target has ended: send its `Down`, the only one, unless the monitor was cancelled. Any thread."""
        if self._target is not None:
            self._watcher.post(down)
            self._watcher.node.call(self._forget)

    def _forget(self) -> None:
        self._target = None
        if self._watcher.links is not None:
            self._watcher.links.watching.pop(self, None)


def monitor(watcher: Cell, target: Cell) -> Monitor:
    """Send `Down` to `watcher` when `target` ends; at once, with ``"noproc"``, if it does not run."""
    made = Monitor(watcher, target)
    _links_of(watcher).watching[made] = None

    def attach() -> None:
        if target.state is State.STOPPED:
            made.report(Down(ref=target.ref, reason="noproc", incarnation=0))
        else:
            _links_of(target).monitors[made] = None

    target.node.call(attach)
    return made


def link(one: Cell, other: Cell) -> None:
    """Tie two actors together; a link to one that does not run ends the first with ``"noproc"``."""
    if one is other:
        return
    _links_of(one).linked[other] = None

    def attach() -> None:
        if other.state is State.STOPPED:
            one.node.call(on_linked_exit, one, other, "noproc", 0)
        else:
            _links_of(other).linked[one] = None

    other.node.call(attach)


def unlink(one: Cell, other: Cell) -> None:
    """Undo `link`."""
    _links_of(one).linked.pop(other, None)
    other.node.call(_links_of(other).linked.pop, one, None)


def _links_of(cell: Cell) -> Links:
    if cell.links is None:
        cell.links = Links()
    return cell.links
