"""The fields of a pipeline: which ones a function or a module takes and gives, and how they flow from stage to stage.

Called when a pipeline is built. Nothing is called but factories of modules. The fields of a stage are read so:

- A module that hands on what it gets (Predict, ChainOfThought, ReAct, RLM, BestOfN, Refine): those of its `signature`,
  or of the module inside.
- Another module: the parameters of its `aforward` or `forward`, whichever stands nearest to its class, and the names in
  the annotation of its return value.
- A function: its parameters, and the names in the annotation of its return value.

An annotation has names if it is a `TypedDict`, a dataclass or a pydantic model; None says that there are none.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import dspy

from promptside.errors import PipelineError
from promptside.programs.hosting.entry import FORWARD, nearest, original_class, own_method

__all__ = ["Fields", "HasFields", "check_fields", "fields_of_function", "fields_of_module"]

Names: TypeAlias = tuple[str, ...]


class HasFields(Protocol):
    """A step of a pipeline, as far as its fields go."""

    name: str
    required: Names
    optional: Names
    outputs: Names


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The fields of something that is called by name.

    Attributes:
        required: What it takes, in order; None where that cannot be read.
        optional: What it takes if it is there.
        outputs: What it gives; None where that cannot be read.
        exact: Whether it gives nothing but `outputs`.
    """

    required: tuple[str, ...] | None = None
    optional: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    exact: bool = False


def fields_of_module(module: dspy.Module | type[dspy.Module]) -> Fields:
    """Read the fields of a module; of a class, what can be known without an instance.

    Args:
        module: The module, or its class.
    """
    method = _entered(module)
    if not callable(method):
        return Fields()
    required, optional, more = _parameters(method, skip=isinstance(module, type))
    if not more:
        return _fields(required, optional, _outputs(method))
    if required:  # beside what it hands on
        return Fields(outputs=_outputs(method))
    signature: Any = getattr(module, "signature", None)
    if isinstance(signature, type(dspy.Signature)):
        inputs = {name: _allows_none(field.annotation) for name, field in signature.input_fields.items()}
        return Fields(
            required=tuple(name for name, may_lack in inputs.items() if not may_lack),
            optional=tuple(name for name, may_lack in inputs.items() if may_lack),
            outputs=tuple(signature.output_fields),
            exact=isinstance(module, dspy.Predict),
        )
    for inner in (getattr(module, "predict", None), getattr(module, "module", None)):
        if isinstance(inner, dspy.Module):
            return fields_of_module(inner)
    return Fields(outputs=_outputs(method))


def _entered(module: dspy.Module | type[dspy.Module]) -> Any:
    """The method that takes the fields: the one that stands nearest to the class."""
    instance, kind = (None, module) if isinstance(module, type) else (module, original_class(module))
    found, _ = nearest(instance, kind, FORWARD, stop=dspy.Module)
    name = "aforward" if "aforward" in found or not found else "forward"
    return getattr(module, name, None) if instance is None or not found else own_method(instance, name)


def fields_of_function(function: Callable[..., Any]) -> Fields:
    """Read the fields of a function.

    Args:
        function: The function, or another callable.
    """
    required, optional, more = _parameters(function)
    outputs = _outputs(function)
    return Fields(outputs=outputs, exact=outputs is not None) if more else _fields(required, optional, outputs)


def _fields(required: list[str], optional: list[str], outputs: tuple[str, ...] | None) -> Fields:
    return Fields(required=tuple(required), optional=tuple(optional), outputs=outputs, exact=outputs is not None)


def _parameters(function: Callable[..., Any], *, skip: bool = False) -> tuple[list[str], list[str], bool]:
    """Names that it requires, names that have a default, and whether it takes more than these.

    Args:
        function: The function.
        skip: Whether its first parameter is `self`.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]
    except (TypeError, ValueError):  # built in
        return [], [], True
    named = [each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    required = [each.name for each in named if each.default is each.empty]
    optional = [each.name for each in named if each.default is not each.empty]
    return required, optional, any(each.kind is each.VAR_KEYWORD for each in parameters)


def _outputs(function: Callable[..., Any]) -> tuple[str, ...] | None:
    """The names in the annotation of what it returns; None where it has none."""
    called = inspect.unwrap(getattr(function, "func", function))
    if not (inspect.isfunction(called) or inspect.ismethod(called)):
        called = type(called).__call__
    try:
        returned = typing.get_type_hints(called).get("return")
        if returned is type(None):
            return ()
        if typing.is_typeddict(returned) or dataclasses.is_dataclass(returned) or hasattr(returned, "model_fields"):
            return tuple(getattr(returned, "model_fields", None) or typing.get_type_hints(returned))
    except Exception:  # noqa: BLE001 - it evaluates a user's text, which may name what only type checkers see
        return None
    return None


def _allows_none(annotation: Any) -> bool:
    unions = (typing.Union, types.UnionType)
    return typing.get_origin(annotation) in unions and type(None) in typing.get_args(annotation)


def check_fields(
    name: str, steps: Sequence[HasFields], inputs: Names | None, outputs: Names | None
) -> tuple[Names, Names, Names]:
    """Check how fields flow; returns those that a pipeline requires, its optional ones, and those that it gives.

    Args:
        name: Of the pipeline, for errors.
        steps: Its stages, at least one.
        inputs: As declared, or None for those of the first stage.
        outputs: As declared, or None for all that stages give.

    Raises:
        PipelineError: A field is missing, or would be lost.
    """
    first = steps[0]
    required, optional = (first.required, first.optional) if inputs is None else (inputs, ())
    known = dict.fromkeys(required)  # those that are there in every call
    unused: dict[str, str | None] = dict.fromkeys(inputs or ())  # by field, the stage that gave it; None for an input
    given: dict[str, None] = {}
    for step in steps:
        for field in step.required:
            if field not in known:
                raise PipelineError(
                    step.name,
                    f"needs {field!r}, which nothing before it gives (there is {', '.join(known) or 'nothing'})",
                    f"wire it, by stage(..., inputs={{{field!r}: ...}}), or make it an input, by "
                    f"Pipeline(..., inputs={', '.join((*required, field))!r})",
                    field=field,
                )
        for field in (*step.required, *step.optional):
            unused.pop(field, None)
        for field in step.outputs:
            if field in unused:
                giver = "an input of the pipeline" if unused[field] is None else f"given by {unused[field]!r}"
                raise PipelineError(
                    step.name,
                    f"gives {field!r}, which is {giver} and would be lost before a stage has read it",
                    f"rename one of them: stage(..., outputs={{{field!r}: ...}}), or leave one out: "
                    "stage(..., outputs=...)",
                    field=field,
                )
            unused[field] = step.name
        known |= dict.fromkeys(step.outputs)
        given |= dict.fromkeys(step.outputs)
    gives = tuple(given) if outputs is None else outputs
    for field in gives:
        if field not in known:
            there = f"correct outputs=; there is {', '.join(known)}"
            raise PipelineError(name, f"has no field {field!r} for its outputs", there, field=field)
    for field, by in unused.items():
        if by is None and field not in gives:
            raise PipelineError(
                name, f"has an input {field!r} that no stage takes", "leave it out of inputs=", field=field
            )
    return required, optional, gives
