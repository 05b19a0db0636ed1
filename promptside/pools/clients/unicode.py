r"""Texts with halves of surrogate pairs, which no provider, cache or file can take, are repaired.

Python makes them of bytes that are not UTF-8 (``errors="surrogateescape"``), and of JSON with a cut pair, such as
``"\ud83d"``. Two halves that stand together are one character again; any other becomes U+FFFD.

Called where prompts and texts to embed come in, and where answers do.
"""

from __future__ import annotations

import functools
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final

from pydantic import BaseModel

__all__ = ["PairJoiner", "repaired"]

_HIGH: Final = ("\ud800", "\udbff")


def repaired(value: Any) -> Any:
    """A value without such texts: the same object, unless there are some.

    Args:
        value: A text; or a dict, list, tuple, set, frozen dataclass or pydantic model of these, such as lm15's and
            litellm's answers. Other objects are left alone.
    """
    if isinstance(value, str):
        return value if value.isascii() or _is_unicode(value) else _repair(value)
    if isinstance(value, dict):
        copied = {repaired(name): repaired(item) for name, item in value.items()}
        return value if all(copied.get(name, copied) is item for name, item in value.items()) else copied
    kind: Any = type(value)
    if kind in (list, tuple, set, frozenset):
        items = [repaired(item) for item in value]
        return kind(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, BaseModel):
        held = {**vars(value), **(value.model_extra or {})}
        changed = {name: new for name, old in held.items() if (new := repaired(old)) is not old}
        return value.model_copy(update=changed) if changed else value
    changed = {name: new for name in _fields(kind) if (new := repaired(old := getattr(value, name))) is not old}
    return replace(value, **changed) if changed else value


@functools.lru_cache(maxsize=256)
def _fields(kind: Any) -> tuple[str, ...]:
    """The arguments of a frozen dataclass; nothing of another type."""
    if not is_dataclass(kind) or not getattr(kind, "__dataclass_params__").frozen:  # noqa: B009 - mypy does not know it
        return ()
    return tuple(each.name for each in fields(kind) if each.init)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repair(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class PairJoiner:
    """Repairs the events of a streamed answer; a pair that is cut between two pieces comes whole with the second."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], Any] = {}  # pieces that are half a character

    def feed(self, event: Any) -> list[Any]:
        """The events to pass on in the place of this one."""
        delta = getattr(event, "delta", None)
        text = getattr(delta, "text", None)
        if event.type == "end" and self._held:
            return [*map(repaired, self._held.values()), event]
        if not isinstance(text, str) or (text.isascii() and not self._held):
            return [repaired(event)]
        key = type(delta).__name__, getattr(delta, "part_index", 0)
        if key in self._held:
            text = self._held.pop(key).delta.text + text
        if _HIGH[0] <= text[-1:] <= _HIGH[1]:
            self._held[key] = _with_text(event, text[-1])
            text = text[:-1]
        return [_with_text(event, repaired(text))] if text else []


def _with_text(event: Any, text: str) -> Any:
    return replace(event, delta=replace(event.delta, text=text))
