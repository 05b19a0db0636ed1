"""Whether a callable is async, and its name, without a call.

Called where a user's function is taken.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from promptside.texts import kind_of, repr_of

__all__ = ["attribute_of", "function_of", "is_async", "label_of", "name_of", "text_in"]


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
    return text_in(inner, "__name__") or kind_of(inner)


def label_of(candidate: object) -> str:
    """Its qualified name, such as ``Counter.add``; of an object without one its `repr`."""
    return text_in(candidate, "__qualname__") or repr_of(candidate)


def attribute_of(candidate: object, attribute: str) -> Any:
    """Its attribute; None where it has none, or where reading it raises."""
    try:
        return getattr(candidate, attribute, None)
    except BaseException:  # noqa: BLE001 - of a foreign `__getattr__`
        return None


def text_in(candidate: object, attribute: str) -> str | None:
    """Its attribute, where that is a text."""
    text = attribute_of(candidate, attribute)
    return text if type(text) is str else None


def _without_partials(candidate: Any) -> Any:
    while issubclass(type(candidate), functools.partial):
        candidate = candidate.func
    return candidate
