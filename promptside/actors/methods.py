"""Which attribute of an actor's class the method of an ask is, and how that is called.

An ``async def`` is called as it stands on the class. What a decorator has made of it (a static or a class method, a
property, a partial method, an object that is new at each access) is called through the actor, by its name.

Called by `ActorOptions.resolve`, once for each method of a class.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType
from typing import Any, Final, Literal

from promptside.callables import attribute_of, is_async, text_in

__all__ = ["called_by_name", "find_name", "kind_of", "stands_as_it_is", "why_not_found"]

Kind = Literal["coroutine", "stream", "context manager"]

MAX_LAYERS: Final = 100
"""Decorators that are looked into; an object that has any attribute it is asked for, as a mock has, has no last one."""


def find_name(actor_class: type[Any], method: Any) -> str | None:
    """The attribute that `method` was read from; None where it is of another class.

    Cost: O(attributes of the class), unless the attribute has the name that the method says it has.
    """
    said = text_in(method, "__name__")
    root = _root(method)
    for exact in (True, False):
        for base in actor_class.__mro__:
            attributes = vars(base)
            first = [said] if said is not None and said in attributes else []
            for name in [*first, *(each for each in attributes if not each.startswith("__"))]:
                attribute = attributes[name]
                read = _read(attribute, actor_class)
                is_new = read is not _read(attribute, actor_class)  # at each access; the others are found as they are
                found = method is read or method is attribute if exact else is_new and _root(read) is root
                if found:
                    return name
    return None


def kind_of(actor_class: type[Any], name: str) -> Kind | None:
    """What a call of the attribute gives; None for what is not async. A property counts as a call."""
    if _is_property(actor_class, name):
        return "coroutine"
    for layer in _layers(getattr(actor_class, name)):
        code = attribute_of(layer, "__code__")
        if issubclass(type(code), CodeType) and code.co_qualname.startswith("asynccontextmanager."):
            return "context manager"
        if inspect.isasyncgenfunction(layer):
            return "stream"
        if is_async(layer):
            return "coroutine"
    return None


def stands_as_it_is(actor_class: type[Any], name: str) -> bool:
    """Whether the attribute is a function that the actor's instance can be given to."""
    own = inspect.getattr_static(actor_class, name)
    return inspect.iscoroutinefunction(own) or inspect.isasyncgenfunction(own)


def called_by_name(actor_class: type[Any], name: str, kind: Kind) -> Callable[..., Any]:
    """A function that calls the attribute of the instance, whatever it is."""

    async def ask(actor: Any, /, *args: Any, **kwargs: Any) -> Any:
        answer = getattr(actor, name)(*args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer

    async def read(actor: Any, /) -> Any:
        answer = getattr(actor, name)
        return await answer if inspect.isawaitable(answer) else answer

    def stream(actor: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(actor, name)(*args, **kwargs)

    function: Any = stream if kind == "stream" else read if _is_property(actor_class, name) else ask
    function.__name__ = name
    return function  # type: ignore[no-any-return]


def why_not_found(actor_class: type[Any], method: Any, label: str) -> str:
    """The error for a method that is not of the class."""
    own = actor_class.__name__
    module, (of, _, _) = text_in(method, "__module__"), (text_in(method, "__qualname__") or "").rpartition(".")
    if any(base.__qualname__ == of and module in (base.__module__, None) for base in actor_class.__mro__):
        return (
            f"{label} is of another class with the name {of!r}: the code that defines it was run again, as a cell "
            "of a notebook is, and this actor is still of the class from before; start a new actor of the new class, "
            "or name the method on `type(actor)` of the old one"
        )
    return f"{label} is not a method of {own}; name one as {own}.<method>"


def _is_property(actor_class: type[Any], name: str) -> bool:
    return isinstance(inspect.getattr_static(actor_class, name), property | functools.cached_property)


def _read(attribute: Any, actor_class: type[Any]) -> Any:
    """What reading the attribute on the class gives."""
    get = attribute_of(type(attribute), "__get__")
    if get is not None:
        with suppress(BaseException):  # a foreign descriptor may want an instance
            return get(attribute, None, actor_class)
    return attribute


def _root(method: Any) -> Any:
    """What stays the same of a method when each access on the class makes a new object."""
    *_, last = _layers(method)
    return last


def _layers(method: Any) -> Iterator[Any]:
    """The method, and what is inside it, from the outermost decorator to the function that was decorated."""
    names = ("__func__", "__partialmethod__", "_partialmethod", "__wrapped__")  # the third is up to Python 3.12
    seen: set[int] = set()
    while id(method) not in seen and len(seen) < MAX_LAYERS:
        seen.add(id(method))
        yield method
        if issubclass(type(method), functools.partialmethod):
            method = method.func
        else:
            inside = (attribute_of(method, name) for name in names)
            method = next((each for each in inside if each is not None), method)
