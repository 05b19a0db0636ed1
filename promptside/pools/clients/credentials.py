"""API keys and headers are kept out of pickles of configuration and of the texts of errors.

Used by `Endpoint`, `LMConfig`, and by LM workers on their clients' errors. Imports nothing of this project.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final, Self

__all__ = ["HIDDEN", "RedactedPickle", "hide_keys"]

HIDDEN: Final = "[api_key]"
"""Replaces a key in a text."""

SHORTEST: Final = 8
"""Least length of a hidden key; shorter ones are placeholders, such as "none"."""

DEPTH: Final = 6
"""Levels of containers searched within an error's arguments and attributes; containers may hold themselves."""


SECRET: Final = frozenset({"api_key", "headers"})
"""Fields that are in no pickle."""


class RedactedPickle:
    """A frozen dataclass whose pickles leave out its `SECRET` fields. Copies are the object itself."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        names = self.__dataclass_fields__.keys() - SECRET
        return _restored, (type(self), {name: getattr(self, name) for name in names})


def _restored(kind: type[Any], state: dict[str, Any]) -> Any:
    return kind(**state)


def hide_keys(error: BaseException, keys: Iterable[str | None]) -> None:
    """Replace keys in the texts of an error and of the errors that it came from, in place.

    Providers repeat a key that they refuse. Keys in environment variables named ``*_API_KEY`` are replaced too.

    Args:
        error: A client's error.
        keys: The keys that its texts may hold, and other texts that are secret.
    """
    ambient = (value for name, value in os.environ.items() if name.upper().endswith("_API_KEY"))
    # One with a line break, as of a file, is shown without it or with its escape.
    shown = {text for key in (*keys, *ambient) if key for text in (key, key.strip(), repr(key)[1:-1])}
    secrets = sorted((text for text in shown if len(text) >= SHORTEST), key=len, reverse=True)
    if secrets:
        for each in _exception_tree(error):
            each.args = tuple(_hidden(value, secrets, DEPTH) for value in each.args)
            for name, value in tuple(vars(each).items()):
                if (clean := _hidden(value, secrets, DEPTH)) is not value:
                    each.__dict__[name] = clean


def _exception_tree(error: BaseException | None) -> Iterator[BaseException]:
    """The error, its causes and contexts, and the members of groups; each once."""
    waiting, seen = [error], set[int]()
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]


def _hidden(value: Any, secrets: list[str], depth: int) -> Any:
    """A copy without keys; the same object if it holds none."""
    if type(value) is dict and depth:
        copy = {name: _hidden(item, secrets, depth - 1) for name, item in value.items()}
        return copy if any(copy[name] is not value[name] for name in copy) else value
    if type(value) in (list, tuple) and depth:
        items = [_hidden(item, secrets, depth - 1) for item in value]
        return type(value)(items) if any(new is not old for new, old in zip(items, value, strict=True)) else value
    for key in secrets:  # to replace nothing returns the same object
        if isinstance(value, str):
            value = value.replace(key, HIDDEN)
        elif isinstance(value, bytes):
            value = value.replace(key.encode(), HIDDEN.encode())
    return value
