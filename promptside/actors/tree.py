"""The tree of a system's actors, as data and as text that a person likes to read."""

from __future__ import annotations

from dataclasses import dataclass

from promptside.actors.cell import Cell
from promptside.actors.mailbox import queued

__all__ = ["TreeNode", "last_child", "view"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeNode:
    """One actor in the tree, as it was when the tree was taken.

    Attributes:
        name: Last part of the path; the system's name at the root.
        kind: Name of the actor's class; ``"system"`` at the root.
        state: ``"running"``, ``"crashed"``... as `State` names them.
        restarts: Incarnations after the first.
        mailbox: Messages queued.
        uptime: Seconds since the current incarnation started.
        node: Name of the node that hosts it.
        children: In order of their start.
    """

    name: str
    kind: str
    state: str
    restarts: int
    mailbox: int
    uptime: float
    node: str
    children: tuple[TreeNode, ...]

    def __str__(self) -> str:
        return "\n".join(self._lines("", ""))

    def _lines(self, first: str, rest: str) -> list[str]:
        attributes = [self.state]
        if self.restarts:
            attributes.append(f"{self.restarts} restart{'s' if self.restarts > 1 else ''}")
        if self.mailbox:
            attributes.append(f"{self.mailbox} queued")
        if self.node not in ("home", ""):
            attributes.append(f"on node {self.node}")
        attributes.append(f"up {_duration(self.uptime)}")
        lines = [f"{first}{self.name}  [{self.kind}]  {', '.join(attributes)}"]
        for index, child in enumerate(self.children):
            last = index == len(self.children) - 1
            lines += child._lines(rest + ("`- " if last else "|- "), rest + ("   " if last else "|  "))
        return lines


def _duration(seconds: float) -> str:
    """Two units at most: ``9.5 s``, ``4 min 10 s``, ``3 h 5 min``, ``12 d 7 h``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def view(cell: Cell) -> TreeNode:
    """The tree from `cell` down; reads other loops' cells without stopping them."""
    instance = cell.instance
    return TreeNode(
        name=cell.id,
        kind=cell.kind,
        state=cell.state.value,
        restarts=max(0, cell.incarnation - 1),
        mailbox=queued(cell),
        uptime=cell.node.loop.time() - cell.started_at if instance is not None else 0.0,
        node=cell.node.name,
        children=tuple(view(child) for child in tuple((cell.children or {}).values())),
    )


def last_child(children: dict[str, Cell] | None) -> Cell | None:
    """The child that started last, if there is one; other threads may add and take away meanwhile."""
    while children:
        try:
            return children[next(reversed(children))]
        except (RuntimeError, KeyError, StopIteration):
            pass  # changed just now
    return None
