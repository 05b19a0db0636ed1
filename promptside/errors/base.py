"""`PromptsideError`, and how an error is pickled and copied: with its data, its notes and its cause.

An exception's own pickling calls its class with `args`, which fails for most classes with an `__init__`, and drops the
cause. Here an error is rebuilt without its `__init__`. What it holds may be foreign, such as the reason of a crash:
what cannot be pickled, or not be unpickled on the other side, becomes a text.
"""

from __future__ import annotations

import copy
import pickle
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from promptside.texts import cause_of, describe, hides_context, is_error, kind_of, repr_of, text_of

__all__ = ["OpaqueError", "PromptsideError"]

PLAIN = (type(None), bool, int, float, str, bytes)
"""Types whose values can always be pickled."""


class PromptsideError(Exception):
    """Base of every error that promptside raises on its own account. It can be pickled and copied."""

    def __reduce__(self) -> Any:
        return _rebuild, (_pack(self, ()),)

    def __copy__(self) -> Self:
        return self._twin(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        def copied(value: Any) -> Any:
            try:
                return copy.deepcopy(value, memo)
            except BaseException:  # noqa: BLE001 - of a lock, or a foreign method; the twin holds the very same
                return value

        return self._twin(copied, memo)

    def _twin(self, copied: Any, memo: dict[int, Any] | None = None) -> Self:
        twin = type(self).__new__(type(self), *self.args)
        if memo is not None:
            memo[id(self)] = twin  # what it holds may hold it
        twin.args = tuple(map(copied, self.args))
        for name, value in vars(self).items():
            vars(twin)[name] = list(value) if name == "__notes__" and type(value) is list else copied(value)
        twin.__cause__, twin.__context__ = self.__cause__, self.__context__
        twin.__suppress_context__ = self.__suppress_context__
        return twin


class OpaqueError(PromptsideError):
    """Stands for an exception that came from another process, and cannot be rebuilt in this one.

    `kind` is the name of its class, and `text` its text.
    """

    def __init__(self, kind: str, text: str) -> None:
        self.kind = kind
        self.text = text
        super().__init__(f"{kind}: {text}")


@dataclass(frozen=True, slots=True)
class _Error:
    """One of ours, or a group of errors, taken apart."""

    kind: type[BaseException]
    args: Any
    data: Any
    cause: Any
    hides_context: bool


@dataclass(frozen=True, slots=True)
class _Foreign:
    """A foreign object: its pickle, if it has one that can be read again, and the text that else stands for it.

    `kind` is the class of an exception; then it has `notes` and a `cause`, too.
    """

    pickled: bytes | None
    text: str
    kind: str | None = None
    notes: tuple[str, ...] = ()
    cause: Any = None
    hides_context: bool = False


def _pack(value: Any, inside: tuple[int, ...]) -> Any:
    """What stands for a value in a pickle; `inside` are ids of what it is a part of."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if id(value) in inside or len(inside) > 50:
        return _Foreign(None, describe(value), kind_of(value) if is_error(value) else None)
    within = (*inside, id(value))
    if kind is tuple or kind is list:
        return kind(_pack(item, within) for item in value)
    if kind is dict:
        return {_pack(key, within): _pack(item, within) for key, item in value.items()}
    if is_error(value):
        return _pack_error(value, within)
    return _Foreign(_pickled(value), repr_of(value))


def _pack_error(error: Any, within: tuple[int, ...]) -> Any:
    cause, hides = _pack(cause_of(error), within), hides_context(error)
    if issubclass(type(error), PromptsideError):
        return _Error(type(error), _pack(error.args, within), _pack(vars(error), within), cause, hides)
    notes = _notes_of(error)
    if type(error) in (ExceptionGroup, BaseExceptionGroup):  # one of whose parts may be hard to pickle
        args, data = (error.message, list(error.exceptions)), {"__notes__": list(notes)} if notes else {}
        return _Error(type(error), _pack(args, within), data, cause, hides)
    return _Foreign(_pickled(error), text_of(error), kind_of(error), notes, cause, hides)


def _notes_of(error: BaseException) -> tuple[str, ...]:
    notes = vars(error).get("__notes__")
    return tuple(map(text_of, notes)) if type(notes) is list else ()


def _pickled(value: object) -> bytes | None:
    try:
        pickled = pickle.dumps(value)
        same = type(pickle.loads(pickled)) is type(value)  # noqa: S301 - made in the line before
    except BaseException:  # noqa: BLE001 - whatever a foreign `__reduce__` raises, the error gets across
        return None
    return pickled if same else None


def _rebuild(packed: Any) -> Any:
    kind = type(packed)
    if kind is tuple or kind is list:
        return kind(map(_rebuild, packed))
    if kind is dict:
        return {_rebuild(key): _rebuild(item) for key, item in packed.items()}
    if kind is _Error:
        args = _rebuild(packed.args)
        error = packed.kind.__new__(packed.kind, *args)
        if isinstance(error, PromptsideError):
            error.args = args
        vars(error).update(_rebuild(packed.data))
        return _with_cause(error, packed)
    if kind is _Foreign:
        return _rebuild_foreign(packed)
    return packed


def _rebuild_foreign(packed: _Foreign) -> Any:
    if packed.pickled is not None:
        with suppress(Exception):  # such as a module that is not here
            value = pickle.loads(packed.pickled)  # noqa: S301 - a part of the pickle that is being read
            return value if packed.kind is None else _with_cause(value, packed)
    if packed.kind is None:
        return packed.text
    error = OpaqueError(packed.kind, packed.text)
    for note in packed.notes:
        error.add_note(note)
    return _with_cause(error, packed)


def _with_cause(error: BaseException, packed: _Error | _Foreign) -> BaseException:
    error.__cause__ = _rebuild(packed.cause)
    error.__suppress_context__ = packed.hides_context
    return error
