"""`Request`: one call of a program, as its modules see it; and the inputs of a call, in the forms that users give.

Made by `Host`; read by the methods of hosted modules.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import anyio
import dspy

from promptside.programs.hosting.entry import original_class, own_method
from promptside.programs.hosting.parts import Part
from promptside.programs.hosting.versions import Version
from promptside.texts import repr_of

__all__ = ["REQUEST", "Inputs", "Request", "arguments_of", "inputs_by_name"]

REQUEST: Final = "promptside_request"
"""The key of DSPy's settings under which the call of a program travels: they reach every thread that DSPy starts."""

Inputs: TypeAlias = Mapping[str, Any] | dspy.Example
"""The inputs of a call, by name; of an example with labels, those of `with_inputs`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a program.

    Attributes:
        root: The outermost module.
        hosted: All parts of the program by the `id` of their modules; changed by swaps.
        version: The version that was the current one when the call came in.
        whole: Whether the sub-modules are actors too.
        attempts: How often a call of a sub-module is made, at most, whose actor crashes under it.
        lm: The LM of the call: it comes before those that predictors have of their own.
        threads: The limit of the program's calls in threads.
        own_pins: By the path of a predictor, its attributes for this call, which may change them.
    """

    root: Part
    hosted: Mapping[int, Part]
    version: Version
    whole: bool
    attempts: int
    lm: dspy.BaseLM | None
    threads: anyio.CapacityLimiter
    own_pins: dict[str, dict[str, Any]] = field(default_factory=dict)

    def part(self, module: dspy.Module) -> Part | None:
        """The part in the place of `module` for this call; None for a module that is no part of the program."""
        part = self.hosted.get(id(module)) or self._of_double(module)
        return None if part is None else self.part_of(part)

    def _of_double(self, module: dspy.Module) -> Part | None:
        if not hasattr(type(module), "__hosted__"):
            return None
        doubles = (each for part in tuple(self.hosted.values()) for each in part.doubles)
        return next((part for double, part in doubles if double is module), None)

    def part_of(self, part: Part) -> Part:
        """The part in the place of `part` for this call: itself, or one that was swapped in."""
        return self.version.modules.get(part.path, part)

    def pins(self, part: Part) -> dict[str, Any]:
        """The attributes of a predictor for this call: what the version pins, and what the call has made of it."""
        pinned = self.version.pins.get(part.path)
        if pinned is None:
            return {}
        # The list of demos is copied: a call may append to it.
        return self.own_pins.get(part.path) or self.own_pins.setdefault(
            part.path, {**pinned, "demos": [*pinned["demos"]]}
        )


def arguments_of(
    module: dspy.Module, args: tuple[Any, ...], fields: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call of a module: one mapping alone is its inputs by name, where the module takes these.

    Args:
        module: The module.
        args: The positional ones, as the caller gave them.
        fields: The others.
    """
    if len(args) != 1 or not isinstance(args[0], Mapping | dspy.Example):
        return args, fields
    inputs = inputs_by_name(args[0], fields)
    by_position = not _takes(module, (), inputs) and _takes(module, args, fields)
    return (args, fields) if by_position else ((), inputs)


def _takes(module: dspy.Module, args: tuple[Any, ...], fields: Mapping[str, Any]) -> bool:
    """Whether the module can be called with these arguments."""
    name = next((name for name in ("forward", "aforward") if hasattr(original_class(module), name)), None)
    if name is None:
        return not args
    try:
        inspect.signature(own_method(module, name)).bind(*args, **fields)
    except TypeError:
        return False
    return True


def inputs_by_name(inputs: Inputs | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call, given as one mapping, as keywords, or both.

    Raises:
        ValueError: `inputs` is no mapping.
    """
    if isinstance(inputs, dspy.Example):
        inputs = dict((inputs.inputs() if getattr(inputs, "_input_keys", None) else inputs).items())
    if not isinstance(inputs, Mapping | None):
        raise ValueError(f"inputs={repr_of(inputs)}: give a mapping of inputs by name, a dspy.Example, or keywords")
    return {**(inputs or {}), **fields}
