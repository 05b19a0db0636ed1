"""`Version`: what a program's predictors and modules are for the requests that entered while it was the current one.

Published by `Program`, pinned by each request when it enters, and applied by `hosting` per call. Nothing is mutated, so
nothing has to be drained, and no request sees two versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from promptside.errors import ProgramError
from promptside.programs.tree import SELF, ModuleTree, Part

__all__ = ["Version", "pins_of"]


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
    """By the path of a predictor: keyword arguments that its calls take, ``signature`` and ``demos``."""
    modules: Mapping[str, Part] = field(default_factory=dict, repr=False)
    """By the path of a part: what stands there instead of the module that the program was started with."""

    def below(self, root: Part) -> dict[str, Part]:
        """Every part of the program `root` in this version, by path."""
        found: dict[str, Part] = {}
        waiting = [root]
        while waiting:
            part = waiting.pop()
            part = self.modules.get(part.path, part)
            found[part.path] = part
            waiting.extend(part.parts)
        return found


def pins_of(plain: dspy.Module, paths: Mapping[str, Part]) -> dict[str, dict[str, Any]]:
    """What to pin for the program to be as `plain`, a copy of it whose state was changed.

    Raises:
        ProgramError: Something has changed that calls cannot be given.
    """
    pins: dict[str, dict[str, Any]] = {}
    for part in ModuleTree(plain).root:
        there = paths[part.path].module
        if isinstance(part.module, dspy.Predict):
            if part.module.fields != there.fields:
                raise ProgramError(f"{part.path!r} would get other criteria of decisions: swap the module instead")
            pins[part.path] = {"signature": part.module.signature, "demos": list(part.module.demos)}
    return pins


def name_of(path: str) -> str:
    """How a change of the part at `path` is told."""
    return "the program" if path == SELF else path
