"""Whether a callable is async, and its name, without a call.

Called where a user's function is taken. Imports nothing of the package.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

__all__ = ["function_of", "is_async", "name_of"]


def is_async(candidate: object) -> bool:
    """Whether a call of it surely returns a coroutine.

    False for a plain function that returns one, such as a synchronous wrapper of an async function: only its call
    shows that.
    """
    return inspect.iscoroutinefunction(candidate) or inspect.iscoroutinefunction(function_of(candidate))


def function_of(candidate: Any) -> Any:
    """The function that a call of it runs: the function inside a partial, the `__call__` of an object."""
    inner = _without_partials(candidate)
    return inner if inspect.isroutine(inner) or not callable(inner) else type(inner).__call__


def name_of(candidate: object) -> str:
    """Its name; of a partial that of the function inside, of an object without a name that of its class."""
    inner = _without_partials(candidate)
    name: str = getattr(inner, "__name__", None) or type(inner).__name__
    return name


def _without_partials(candidate: Any) -> Any:
    while isinstance(candidate, functools.partial):
        candidate = candidate.func
    return candidate
