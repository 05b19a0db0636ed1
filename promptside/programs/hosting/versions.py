"""`Version`: a program's predictors and modules, as the calls see them that came in while it was the current one.

Published by a program's supervisor, pinned by each call when it comes in, and applied by hosted modules. Nothing is
mutated, so nothing has to be drained, and no call sees two versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import dspy

from promptside.clock import wall
from promptside.errors import ProgramError
from promptside.programs.hosting.making import Maker
from promptside.programs.hosting.parts import ROOT, ModuleTree, Parameter, Part
from promptside.texts import repr_of

__all__ = ["KEPT", "Version", "VersionHistory", "load_state", "pins_of", "without"]

KEPT: Final = 10
"""Versions that a program remembers, to be rolled back to, besides those that calls under way have pinned."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Version:
    """One version of a program; immutable.

    Attributes:
        number: 1 for the program as it was started, one more with each change.
        change: What made it: ``"start"``, ``"swap_state"``, ``"swap generate"`` or ``"rollback to 1"``.
        time: Seconds since the epoch when it became the current one.
    """

    number: int
    change: str
    time: float
    pins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    """By the path of a predictor: its ``signature`` and ``demos``."""
    modules: Mapping[str, Part] = field(default_factory=dict, repr=False)
    """By the path of a part: what stands there instead of the module that the program was started with."""

    def parts(self, root: Part) -> dict[str, Part]:
        """Every part of the program `root` in this version, by path."""
        found: dict[str, Part] = {}
        waiting = [root]
        while waiting:
            part = waiting.pop()
            part = self.modules.get(part.path, part)
            found[part.path] = part
            waiting.extend(reversed(part.parts))
        return found


class VersionHistory:
    """The versions of one program, across its restarts; any thread may read them.

    Attributes:
        kept: Oldest first; the last one is the current one.
    """

    def __init__(self) -> None:
        self.kept: tuple[Version, ...] = (Version(number=1, change="start", time=wall()),)

    @property
    def current(self) -> Version:
        """The version that the next call pins."""
        return self.kept[-1]

    @property
    def modules(self) -> tuple[Part, ...]:
        """All that was swapped in and that a version which is kept has, in the order in which that happened."""
        return tuple(dict.fromkeys(part for version in self.kept for part in version.modules.values()))

    def find(self, number: int) -> Version:
        """The version with this number; raises `ProgramError` if it is not kept."""
        for version in self.kept:
            if version.number == number:
                return version
        kept = ", ".join(str(version.number) for version in self.kept)
        raise ProgramError(f"version={repr_of(number)}: the versions that are kept are {kept}")

    def publish(self, change: str, pins: Mapping[str, Mapping[str, Any]], modules: Mapping[str, Part]) -> Version:
        """Make a new version the current one."""
        version = Version(number=self.current.number + 1, change=change, time=wall(), pins=pins, modules=modules)
        self.kept = (*self.kept, version)
        return version

    def forget(self, is_pinned: Callable[[Version], bool]) -> list[Part]:
        """Drop what is too old; returns the modules that were swapped in and that no version has any more."""
        before = self.modules
        old, new = self.kept[:-KEPT], self.kept[-KEPT:]
        self.kept = (*filter(is_pinned, old), *new)
        return [part for part in before if part not in self.modules]


def load_state(plain: dspy.Module, state: Mapping[str, Any], program: str) -> None:
    """Load the state of the parameters of a program into a copy of it, but for their LMs.

    Raises:
        ProgramError: It is not of this program.
    """
    if not isinstance(state, Mapping):
        raise ProgramError(f"the state is not of the program {program!r}, but {repr_of(state)}; give a mapping")
    alone = isinstance(plain, Parameter)  # such as a `dspy.Predict`, whose state has no names of parameters
    parameters = dict(plain.named_parameters())
    own_names = ["signature", "demos"] if isinstance(plain, dspy.Predict) else []
    names = own_names if alone else list(parameters)
    missing, surplus = set(names) - set(state), set() if alone else {*map(str, state)} - {*names, "metadata"}
    differ = [
        f"{word} {', '.join(sorted(which))}" for word, which in (("without", missing), ("with", surplus)) if which
    ]
    if differ:
        raise ProgramError(
            f"the state is not of the program {program!r}: {' and '.join(differ)}; it takes {', '.join(names)}"
        )
    try:
        own: dict[str, Any] = {**state} if alone else {name: {**state[name], "lm": None} for name in names}
        for name, parameter in parameters.items():
            if isinstance(parameter, dspy.Predict):
                _check_predictor(parameter, state if alone else state[name])
        plain.load_state({**own, "lm": None} if alone else own)
    except Exception as error:  # whatever DSPy meets in a state of another form
        raise ProgramError(f"the state is not of the program {program!r}: {repr_of(error)}") from error


def _check_predictor(predictor: Any, state: Mapping[str, Any]) -> None:
    """Raise for what DSPy would load, and what would fail, or be wrong, in each call."""
    signature, demos = state["signature"], state["demos"]
    saved, own = len(signature["fields"]), len(predictor.signature.fields)
    if saved != own:
        raise ValueError(f"a signature of {saved} fields, for one of {own}")
    if not isinstance(signature["instructions"], str):
        raise TypeError(f"instructions={repr_of(signature['instructions'])}")
    if not isinstance(demos, list) or not all(isinstance(demo, Mapping | dspy.Example) for demo in demos):
        raise TypeError(f"demos={repr_of(demos)}")


def pins_of(plain: dspy.Module, parts: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """The pins that make the program equal to `plain`, a copy of it whose state was changed.

    Args:
        plain: The copy.
        parts: The program's parts, by path.

    Raises:
        ProgramError: Something has changed that calls cannot be given.
    """
    pins: dict[str, dict[str, Any]] = {}
    for part in ModuleTree(plain, Maker(plain, "a copy")).root:
        module, there = part.module, parts[part.path].module
        if isinstance(module, dspy.Predict):
            pins[part.path] = {"signature": module.signature, "demos": list(module.demos)}
        same = not isinstance(module, Parameter) or _unpinned(module) == _unpinned(there)
        if not same:
            raise ProgramError(
                f"the part {part.path!r}, a {type(module).__name__}, would get other state than a signature and demos, "
                "which calls cannot be given: swap the module instead"
            )
    return pins


def without(path: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes of parts by their paths, without those of the part at `path` and of the parts below it."""
    return {
        each: value
        for each, value in attributes.items()
        if path not in (ROOT, each) and not each.startswith(f"{path}.")
    }


def _unpinned(module: Any) -> Any:
    """The state of a parameter that is not pinned; traces and training data are no part of what a call does."""
    return module.fields if isinstance(module, dspy.Predict) else module.dump_state()
