"""Checks of configuration, whose errors name the field, the value and the remedy; and of waits that services ask for.

Called by configuration classes and public functions, before any work starts, and wherever a Retry-After is read.
"""

from __future__ import annotations

import math
import os
from typing import Final, TypeGuard

from promptside.texts import repr_of

__all__ = [
    "check",
    "check_count",
    "check_name",
    "check_path",
    "check_seconds",
    "check_text",
    "is_count",
    "is_name",
    "is_number",
    "wait_asked_for",
]

LONGEST_WAIT: Final = 31 * 86_400.0
"""Seconds after which a service may ask to come back: a month, for which some quotas last."""


def check(owner: str, field: str, value: object, valid: bool, remedy: str) -> None:
    """Raise `ValueError` unless `valid`."""
    if not valid:
        raise ValueError(f"{owner}: {field}={repr_of(value)}: {remedy}")


def check_count(owner: str, field: str, value: object, *, least: int = 1) -> None:
    """Raise `ValueError` unless `value` is a whole number of at least `least`."""
    check(owner, field, value, is_count(value, least=least), f"give a whole number >= {least}")


def check_seconds(owner: str, field: str, value: object, *, zero: bool = False, finite: bool = False) -> None:
    """Raise `ValueError` unless `value` is a number > 0, or with `zero` >= 0; not a number (NaN) is neither.

    Args:
        owner: Class or function that takes it.
        field: Name of the argument.
        value: Its value.
        zero: Whether 0 is valid.
        finite: Whether infinity is not.
    """
    valid = is_number(value) and (value >= 0 if zero else value > 0)
    valid = valid and not (finite and value == math.inf)
    check(owner, field, value, valid, f"give {'finite ' if finite else ''}seconds {'>=' if zero else '>'} 0")


def is_count(value: object, *, least: int = 1) -> TypeGuard[int]:
    """Whether `value` is a whole number of at least `least`; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: object) -> TypeGuard[float]:
    """Whether `value` is a number; a bool is none, nor is NaN, nor what is too large for a float."""
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    except OverflowError:
        return False


def wait_asked_for(value: object) -> float | None:
    """The seconds after which a service asks to come back; None where `value` is no such wait.

    Args:
        value: Whatever it gave: text is none. A negative, infinite or absurd wait is none either.
    """
    return value if is_number(value) and 0 <= value <= LONGEST_WAIT else None


def check_name(owner: str, field: str, value: object) -> None:
    """Raise `ValueError` unless `value` can be a part of an actor's path."""
    check(owner, field, value, is_name(value), "give a non-empty text without /")


def check_path(owner: str, field: str, value: object) -> None:
    """Raise `ValueError` unless `value` can be the path of a file or a directory."""
    check(owner, field, value, isinstance(value, str | os.PathLike), "give a path, as a text or a pathlib.Path")


def check_text(owner: str, field: str, value: object) -> None:
    """Raise `ValueError` unless `value` is a text that is not empty."""
    check(owner, field, value, isinstance(value, str) and value != "", "give a text that is not empty")


def is_name(value: object) -> bool:
    """Whether `value` can be a part of an actor's path."""
    return isinstance(value, str) and value != "" and "/" not in value
