"""Texts of foreign objects: of errors, reasons, arguments and results, whatever their own code does.

The `__str__` and `__repr__` of a user's class may raise, recurse, return a gigabyte or half of a surrogate pair. Every
text that promptside makes of an object that is not its own is made here. Nothing here raises; nothing here calls a
user's code but those two. Imports nothing of the package.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeGuard

__all__ = [
    "add_note",
    "cause_of",
    "describe",
    "facts",
    "hides_context",
    "is_error",
    "is_word",
    "kind_of",
    "repr_of",
    "tb_of",
    "text_of",
]

MAX_LENGTH: Final = 4_000
"""Characters of one text; the rest is cut."""

MAX_FRAMES: Final = 20
"""Frames of a traceback that `facts` keeps, the innermost."""

MAX_ERRORS: Final = 32
"""Errors that `facts` and `describe` tell of: parts of a group, and causes."""

# Through the classes' own descriptors: a subclass may have a property of that name, or a `__getattribute__`.
_class_name: Final[Callable[[type], str]] = vars(type)["__name__"].__get__
tb_of: Final[Callable[[BaseException], Any]] = vars(BaseException)["__traceback__"].__get__
cause_of: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__cause__"].__get__
_context: Final[Callable[[BaseException], BaseException | None]] = vars(BaseException)["__context__"].__get__
hides_context: Final[Callable[[BaseException], bool]] = vars(BaseException)["__suppress_context__"].__get__
_parts: Final[Callable[[Any], tuple[BaseException, ...]]] = vars(BaseExceptionGroup)["exceptions"].__get__


def kind_of(value: object) -> str:
    """Name of the class of a value."""
    return _class_name(type(value))


def is_error(value: object) -> TypeGuard[BaseException]:
    """Whether a value is an exception, by its type: `isinstance` calls the value's `__class__`, which may raise."""
    return issubclass(type(value), BaseException)


def is_word(reason: object, *words: str) -> bool:
    """Whether a reason is one of these words; no foreign object is asked whether it is equal."""
    return issubclass(type(reason), str) and reason in words


def text_of(value: object, limit: int = MAX_LENGTH) -> str:
    """`str` of a value: at most so many characters, all of which can be encoded, and how many more there were."""
    return _made_by(str, value, limit)


def repr_of(value: object) -> str:
    """`repr` of a value; as `text_of`."""
    return _made_by(repr, value, MAX_LENGTH)


def describe(reason: object) -> str:
    """An error with its type, a group of errors with its parts, anything else as `text_of` does.

    For instance ``ExceptionGroup: two failed (2 sub-exceptions) [ValueError: no; OSError: gone]``.
    """
    return _cut(_describe(reason, [MAX_ERRORS])) if is_error(reason) else text_of(reason)


def facts(error: BaseException) -> dict[str, Any]:
    """An error as JSON-safe data for an event.

    Returns:
        `error` is its type, `message` its text, `traceback` a list of ``[file, line, function]``, the innermost last.
        `parts` are the facts of a group's errors, and `causes` those of the errors before it, the latest first; each is
        missing where there are none.
    """
    return _facts(error, [MAX_ERRORS])


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error that can have one; once, if the same object is raised again."""
    with suppress(BaseException):  # of a `__notes__` that is a property, or no list
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


def _made_by(make: Callable[[object], str], value: object, limit: int) -> str:
    try:
        return _cut(make(value), limit)
    except BaseException as error:  # noqa: BLE001 - nothing that such a method raises is meant for who wants a text
        return f"<{kind_of(value)}, whose {make.__name__} raised {kind_of(error)}>"


def _cut(text: str, limit: int = MAX_LENGTH) -> str:
    """The text as a `str` proper, since `__str__` may return an object of a subclass."""
    kept = str.__getitem__(text, slice(limit))
    missing = str.__len__(text) - len(kept)
    if not kept.isascii():
        kept = kept.encode("utf-8", "replace").decode()
    return f"{kept}<{missing} more characters>" if missing else kept


def _describe(error: object, left: list[int]) -> str:
    left[0] -= 1
    message = _message(error, left)
    return f"{kind_of(error)}: {message}" if message else kind_of(error)


def _message(error: object, left: list[int]) -> str:
    """The text of an error. `left` counts the errors that may still be named."""
    text = text_of(error)
    if not issubclass(type(error), BaseExceptionGroup):
        return text
    parts, told = _parts(error), []
    for part in parts:
        if left[0] <= 0:
            break
        told.append(_describe(part, left))
    more = [f"{len(parts) - len(told)} more"] if len(told) < len(parts) else []
    return f"{text} [{'; '.join(told + more)}]"


def _facts(error: BaseException, left: list[int]) -> dict[str, Any]:
    left[0] -= 1
    found = _facts_of_one(error)
    if issubclass(type(error), BaseExceptionGroup):
        found["parts"] = [_facts(part, left) for part in _parts(error) if left[0] > 0]
    causes, seen, before = [], {id(error)}, _before(error)
    while before is not None and id(before) not in seen and left[0] > 0:
        left[0] -= 1
        seen.add(id(before))
        causes.append(_facts_of_one(before))
        before = _before(before)
    if causes:
        found["causes"] = causes
    return found


def _facts_of_one(error: BaseException) -> dict[str, Any]:
    message = _cut(_message(error, [MAX_ERRORS]))
    return {"error": kind_of(error), "message": message, "traceback": _frames(error)}


def _before(error: BaseException) -> BaseException | None:
    """The error before it, by Python's rule for a traceback."""
    cause = cause_of(error)
    return cause if cause is not None or hides_context(error) else _context(error)


def _frames(error: BaseException) -> list[list[Any]]:
    frames: deque[list[Any]] = deque(maxlen=MAX_FRAMES)
    step = tb_of(error)
    while step is not None:
        code = step.tb_frame.f_code
        frames.append([_cut(code.co_filename), step.tb_lineno, code.co_name])
        step = step.tb_next
    return list(frames)
