"""The error of ``ref.add(5)``: it says how the message is sent.

Called by `Actor` for each message of a new class.
"""

from __future__ import annotations

from typing import Any, NoReturn

from promptside.actors.cell import Cell
from promptside.actors.ref import ActorRef

__all__ = ["add_hint"]


def add_hint(name: str) -> None:
    """Have a reference say how a message with this name is sent, when it is taken for a method of the reference."""
    if not hasattr(ActorRef, name):
        setattr(ActorRef, name, _MessageHint(name))


class _MessageHint:
    """An attribute of `ActorRef` that is missed, with a remedy where the actor has such a message.

    A `__getattr__` would make each access to an attribute of a reference 70 ns slower; a tell has three.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, ref: ActorRef[Any] | None, owner: type) -> NoReturn:
        remedy = "" if ref is None else _how_to_send(ref._cell, self._name)
        text = f"{owner.__name__!r} object has no attribute {self._name!r}{remedy}"
        raise AttributeError(text, name=self._name, obj=ref)


def _how_to_send(cell: Cell, name: str) -> str:
    """The remedy for ``ref.add(5)``; empty where the actor's class has no such message."""
    method = getattr(cell.actor_class, name, None)
    label = f"{cell.actor_class.__name__}.{name}"
    for stream in (False, True):
        try:
            cell.resolve(method, stream=stream)
        except TypeError:
            continue
        if stream:
            return f"; read it: `async for item in ref.stream({label}, ...)`"
        return f"; ask it: `await ref.ask({label}, ...)`, or tell it: `ref.tell({label}, ...)`"
    return ""
