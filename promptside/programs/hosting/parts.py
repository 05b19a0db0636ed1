"""The modules of a program as a tree of parts, each of which becomes an actor.

Made by the actors of programs; nothing here runs. A part keeps its module object for as long as the tree lives:
when its actor is restarted, the object gets new state, and the modules below it, which are parts of their own, are left
alone.
"""

from __future__ import annotations

import copy
import types
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Self

import dspy
from dspy.predict.parameter import Parameter

from promptside.actors import ActorRef
from promptside.callables import is_async
from promptside.checks import check
from promptside.errors import ProgramError
from promptside.programs.hosting.making import HomeThread, Maker, ModuleSource
from promptside.texts import repr_of

__all__ = ["ENTRY", "ROOT", "ModuleTree", "Parameter", "Part", "check_source", "name_of_source", "set_class"]

ROOT = "self"
"""DSPy's own name for the module at the root, as in `named_predictors()`."""

ENTRY = "forward"
"""Id of the actor of a module that has parts below it, beside theirs: no sub-module has the name of DSPy's method."""

NOT_SEARCHED = ("callbacks", "history")
"""Attributes that every module has and that hold no sub-modules; a history may hold 10,000 entries."""


def check_source(source: object) -> None:
    """Raise `ValueError` unless it is a `ModuleSource`."""
    signature = isinstance(source, type) and issubclass(source, dspy.Signature)
    if signature or isinstance(source, str | Mapping):
        shown = source.__name__ if isinstance(source, type) else repr_of(source)
        raise ValueError(f"Program: source={shown}: for a signature, `await create_program(system, signature)`")
    valid = issubclass(source, dspy.Module) if isinstance(source, type) else callable(source) and not is_async(source)
    check("Program", "source", source, valid, "give a module, its class or another factory")


def name_of_source(source: ModuleSource) -> str:
    """The name of the module's class or of the factory; ``"program"`` where it has none."""
    if isinstance(source, dspy.Module):
        return type(source).__name__
    name: str = getattr(source, "__name__", "")
    return name if name.isidentifier() else "program"  # a lambda, or a `functools.partial`


class Part:
    """One module of a program.

    Attributes:
        path: As in `named_predictors()`, such as ``"generate.predict"`` or ``"steps[0]"``; of the root ``"self"``.
        id: The last part of its path in the tree of actors.
        module: The module.
        parts: Those directly below it.
        ref: Its actor, from its first start on.
        doubles: Modules that its last restart made beside those of the program, with the parts whose state they share.
            What the factory closed over, such as a tool that calls `self.search`, may lead to them.
    """

    __slots__ = ("_initial_state", "_stale", "_started", "_tree", "doubles", "id", "module", "parts", "path", "ref")

    ref: ActorRef[Any]

    def __init__(self, tree: ModuleTree, path: str, name: str, module: dspy.Module) -> None:
        self.path = path
        self.id = name.replace("/", "|")
        self.module = module
        self.parts: list[Part] = []
        self.doubles: list[tuple[dspy.Module, Part]] = []
        self._tree = tree
        self._started = self._stale = False
        # What a restart gives back to a module that came as an instance.
        self._initial_state = _state(module) if isinstance(module, Parameter) else {}

    def __iter__(self) -> Iterator[Part]:
        """This part and all below it."""
        yield self
        for part in self.parts:
            yield from part

    @property
    def home(self) -> HomeThread | None:
        """The thread that its module belongs to, if it does."""
        return self._tree.maker.home

    @property
    def bound(self) -> bool:
        """Whether its module belongs to one thread, be it that of the event loop."""
        return self._tree.maker.bound

    def begin(self, ref: ActorRef[Any]) -> None:
        """Its actor starts; from the second time on, the module gets the state of its beginning.

        Where it belongs to a thread, that is left to `refresh`.

        Raises:
            ProgramError: The factory no longer makes a program with this part.
        """
        self.ref = ref
        self._stale = self._started
        self._started = True
        if self.home is None:
            self.refresh()

    def refresh(self) -> None:
        """Give the module the state of its beginning, if its actor was restarted and it has none yet."""
        if self._stale and (self.home is None or self.home.is_current):
            self._tree.reset(self)
            self._stale = False


class ModuleTree:
    """A program's modules.

    Args:
        module: The outermost one, as `maker` made it.
        maker: Makes another one for each restart of a part, which gets that part's new state. Where it gives the same,
            a restart sets the parameters back, and keeps other attributes.
        at: The path of the part of a program that this is to stand for.

    Attributes:
        root: The program itself.
    """

    def __init__(self, module: dspy.Module, maker: Maker, at: str = ROOT) -> None:
        self.maker = maker
        self._at = at
        self.root = self._build(module)

    @classmethod
    async def make(cls, maker: Maker, at: str = ROOT) -> Self:
        """A new one."""
        return cls(await maker.make(), maker, at)

    def reset(self, part: Part) -> None:
        """Give the part's module the state of its beginning; the modules below it stay as they are."""
        if not self.maker.makes_new:
            vars(part.module).update(_copied(part._initial_state))
            return
        others = {each.path: each for each in self._build(self.maker.make_here())}
        fresh = others.get(part.path)
        if fresh is None:
            raise ProgramError(
                f"the part {part.path!r} cannot be restarted: the program that its factory made this time has no such "
                "sub-module; give a factory that always makes the same"
            )
        # The objects stay, this one too, for others hold them.
        kept: dict[int, Any] = {id(others[each.path].module): each.module for each in self.root if each.path in others}
        state = {name: _replace_refs(value, kept) for name, value in vars(fresh.module).items()}
        object.__setattr__(part.module, "__dict__", state)
        for kind in type(fresh.module).__mro__:
            for slot in vars(kind).values():
                if isinstance(slot, types.MemberDescriptorType) and hasattr(fresh.module, slot.__name__):
                    slot.__set__(part.module, _replace_refs(slot.__get__(fresh.module), kept))
        part.doubles = [
            (double.module, each)
            for each in self.root
            if (double := others.get(each.path)) is not None and double.module is not each.module
        ]
        for module, each in part.doubles:
            object.__setattr__(module, "__dict__", vars(each.module))
            set_class(module, type(each.module))

    def _build(self, module: dspy.Module) -> Part:
        root = Part(self, self._at, self._at, module)
        seen, waiting = {id(module)}, deque([root])
        while waiting:  # breadth first, as DSPy does: a shared module stands where it is nearest to the root
            part = waiting.popleft()
            for name, value in vars(part.module).items():
                for label, below in _modules(name, value, seen) if name not in NOT_SEARCHED else ():
                    path = label if part.path == ROOT else f"{part.path}.{label}"
                    part.parts.append(Part(self, path, label, below))
            waiting.extend(part.parts)
        return root


set_class: Any = vars(object)["__class__"].__set__  # not the module's own `__setattr__`


def _modules(label: str, value: Any, seen: set[int]) -> Iterator[tuple[str, dspy.Module]]:
    """The modules in the value of an attribute that were not seen before, with their names as DSPy writes them."""
    if not isinstance(value, (dspy.Module, list, tuple, dict)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dspy.Module):
        yield label, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _modules(f"{label}['{key}']", item, seen)
    else:
        for index, item in enumerate(value):
            yield from _modules(f"{label}[{index}]", item, seen)


def _replace_refs(value: Any, done: dict[int, Any]) -> Any:
    """The value of an attribute, with what stands in `done` by its id replaced: in containers, methods, tools too."""
    if id(value) in done:
        return done[id(value)]
    if type(value) is tuple:
        return tuple(_replace_refs(item, done) for item in value)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, _replace_refs(value.__self__, done))
    if isinstance(value, dspy.Tool):
        value.func = _replace_refs(value.func, done)
    if isinstance(value, (list, dict)):
        done[id(value)] = value
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            value[key] = _replace_refs(item, done)
    return value


def _state(module: dspy.Module) -> dict[str, Any]:
    state = {name: value for name, value in vars(module).items() if name not in NOT_SEARCHED}
    return _copied(state)


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """Lists and dicts are copied one level deep: they are what a call could have appended to."""
    return {name: copy.copy(value) if isinstance(value, (list, dict)) else value for name, value in state.items()}
