"""`entry_of`: by which method a module is entered, and whether that runs on the event loop or in a thread.

A handle has one way in, a module up to four: `forward`, `aforward`, `__call__` and `acall`. The one that stands nearest
to the module's own class is meant: a subclass of `dspy.ChainOfThought` that overrides `forward` is entered by it,
although it inherits an `aforward`. Where a class has both a synchronous and an asynchronous one, its tools, the LM and
the adapter decide by the same rule, and then the caller.

Asked by module actors, and by whatever else calls a user's module.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

import anyio
import dspy

from promptside.callables import is_async
from promptside.programs.hosting.threads import RunInThread, in_thread

__all__ = [
    "CALL",
    "FORWARD",
    "REACTS",
    "Entry",
    "enter",
    "entry_of",
    "make_call",
    "nearest",
    "original_class",
    "own_method",
    "prefers_loop",
    "unhosted",
]

Methods: TypeAlias = tuple[tuple[str, ...], tuple[str, ...]]

CALL: Final[Methods] = (("__call__", "forward"), ("acall", "aforward"))
"""The synchronous and the asynchronous methods of a module, and of an LM."""

ADAPTER: Final[Methods] = (("__call__",), ("acall",))
"""Those of an adapter."""

FORWARD: Final[Methods] = (("forward",), ("aforward",))
"""The same for a call that has passed `__call__` or `acall` already."""

REACTS: Final[Any] = (dspy.ReAct, dspy.ReActV2)
"""Agents that call a synchronous tool in the thread they run in. With such tools alone they run in a worker thread."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How a module is entered.

    Attributes:
        awaited: By `acall`; by a call of the module otherwise.
        threaded: In a worker thread; on the event loop otherwise. What a call there returns may be an awaitable.
    """

    awaited: bool
    threaded: bool


def entry_of(
    module: dspy.Module, arguments: Mapping[str, Any] | None = None, *, called: bool = False, methods: Methods = CALL
) -> Entry:
    """The way into a module, for a call that is made now.

    Args:
        module: The module.
        arguments: Of the call, by name.
        called: Whether the caller is synchronous; it decides where both ways are as near.
        methods: Which of its methods are ahead of the call.
    """
    kind = original_class(module)
    synchronous, asynchronous = methods
    found, owner = nearest(module, kind, methods, stop=dspy.Module)
    if not found:  # perhaps by `__getattr__`
        found = {name for names in methods for name in names[-1:] if hasattr(module, name)}
    to_await = not found.isdisjoint(asynchronous)
    to_call = not found.isdisjoint(synchronous)
    if to_await and to_call:
        to_await = _prefers_async(module, owner, arguments or {}, called)
    if to_await:
        # Its sandbox is synchronous, and would block the event loop.
        return Entry(True, True) if isinstance(module, dspy.RLM) else Entry(True, False)  # pyright: ignore[reportArgumentType]
    return Entry(False, not any(is_async(_method(module, kind, name)) for name in synchronous if name in found))


async def enter(
    module: dspy.Module, args: tuple[Any, ...], fields: Mapping[str, Any], threads: anyio.CapacityLimiter
) -> Any:
    """Call a module, in its way.

    Args:
        module: The module.
        args: Of the call, by position.
        fields: Of the call, by name.
        threads: The limit of synchronous ones.
    """
    entry = entry_of(module, fields)
    method = module.acall if entry.awaited else module
    return await make_call(entry, lambda: method(*args, **fields), threads)


async def make_call(
    entry: Entry, call: Callable[[], Any], threads: anyio.CapacityLimiter, run: RunInThread | None = None
) -> Any:
    """Make the call that `entry` says, where it says.

    Args:
        entry: The way in.
        call: Makes the call.
        threads: As for `in_thread`.
        run: As for `in_thread`.
    """
    if not entry.threaded:
        result = call()
    else:
        result = await in_thread((lambda: asyncio.run(_awaited(call()))) if entry.awaited else call, threads, run)
    return await result if inspect.isawaitable(result) else result


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def prefers_loop(kind: type[dspy.Module]) -> bool:
    """Whether modules of a class are awaited on the event loop, as far as the class alone can say."""
    found, owner = nearest(None, kind, CALL, stop=dspy.Module)
    return not found.isdisjoint(CALL[1]) and owner not in (dspy.RLM, *REACTS)


def original_class(module: dspy.Module) -> type:
    """The class of a module, without what hosting adds."""
    kind = type(module)
    original: type = vars(kind).get("__hosted__", kind)
    return original


def unhosted(module: dspy.Module) -> Any:
    """The module as its original class has it, for a look-up of its own methods."""
    kind = type(module)
    return super(kind, module) if "__hosted__" in vars(kind) else module


def own_method(module: dspy.Module, name: str) -> Callable[..., Any]:
    """The module's own method, be it the instance's or its class's."""
    if (method := vars(module).get(name)) is None:
        own = unhosted(module)
        # Not by the module's own look-up, at which DSPy warns of a `forward` that is called directly.
        method = object.__getattribute__(module, name) if own is module else getattr(own, name)
    return cast("Callable[..., Any]", method)


def _method(module: dspy.Module, kind: type, name: str) -> Any:
    return vars(module).get(name) or getattr(kind, name, None)


def nearest(instance: object, kind: type, methods: Methods, stop: type | None = None) -> tuple[set[str], type | None]:
    """The names that the instance itself has, or else the nearest of its classes that has any; and that class.

    Args:
        instance: A module, an LM or an adapter.
        kind: Its class.
        methods: The names.
        stop: The class to stop at; by default DSPy's first.
    """
    names = methods[0] + methods[1]
    own = getattr(instance, "__dict__", {})
    if found := {name for name in names if name in own}:
        return found, None
    for base in kind.__mro__:
        if base is stop or (stop is None and base.__module__.startswith("dspy.")):
            break
        own = base.__dict__
        if present := [name for name in names if name in own]:
            # None undoes what a class inherits.
            if found := {name for name in present if own[name] is not None}:
                return found, base
            names = tuple(name for name in names if name not in present)
    return set(), None


def _prefers_async(module: Any, owner: type | None, arguments: Mapping[str, Any], called: bool) -> bool:
    """Whether a module that can be entered in both ways is awaited."""
    settings = dspy.settings
    lm = arguments.get("lm") or (module.lm if isinstance(module, dspy.Predict) else None) or settings.lm
    if isinstance(lm, dspy.LM) and not isinstance(lm.engine, str) and lm._async_engine_spec is None:
        return False  # the user's engine is synchronous alone
    for part, methods in ((lm, CALL), (settings.adapter, ADAPTER)):
        found, _ = nearest(part, type(part), methods)
        if found and (asynchronous := not found.isdisjoint(methods[1])) == found.isdisjoint(methods[0]):
            return asynchronous
    if owner is dspy.RLM:
        return False
    if owner in REACTS:
        own = [tool.func for name, tool in vars(module)["tools"].items() if name not in ("finish", "submit")]
        if own:
            return any(map(is_async, own))
    return not called
