"""`to_signature`: a signature from DSPy's class, its text, or plain data, as it comes from a file or over a wire.

Called by `create_program`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import dspy

from promptside.texts import repr_of

__all__ = ["SignatureSource", "to_signature"]

SignatureSource: TypeAlias = type[dspy.Signature] | str | Mapping[str, Any]

TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict"}
)
"""JSON Schema's names of types; every other name is read as in DSPy's texts."""


def to_signature(signature: SignatureSource) -> type[dspy.Signature]:
    """A signature as DSPy's class; see `create_program`."""
    if isinstance(signature, type) and issubclass(signature, dspy.Signature):
        return signature
    if isinstance(signature, str):
        return _make(signature)
    if not isinstance(signature, Mapping):
        raise ValueError(f"signature={repr_of(signature)}: give a dspy.Signature, a text with ->, or a mapping")
    unknown = sorted(map(str, set(signature) - {"name", "docstring", "inputs", "outputs"}))
    if unknown:
        raise ValueError(f"signature: {', '.join(unknown)}: its keys are name, docstring, inputs and outputs")
    fields: dict[str, tuple[Any, Any]] = {}
    for side, make in (("inputs", dspy.InputField), ("outputs", dspy.OutputField)):
        given = signature.get(side)
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise ValueError(f"signature: {side}={repr_of(given)}: give a list of fields, one at least")
        for index, field in enumerate(given):
            name, kind, description = _field(f"signature: {side}[{index}]", field)
            if name in fields:
                raise ValueError(f"signature: {side}[{index}]: the field {name!r} stands twice")
            fields[name] = (kind, make(desc=description) if description else make())
    name = signature.get("name", "StringSignature")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"signature: name={repr_of(name)}: give a name as of a class")
    docstring = signature.get("docstring")
    if not isinstance(docstring, str | None):
        raise ValueError(f"signature: docstring={repr_of(docstring)}: give a text")
    return _make(fields, docstring, name)


def _make(*args: Any) -> type[dspy.Signature]:
    signature: Any = dspy.Signature  # whose instances are classes
    made: type[dspy.Signature] = signature(*args)
    return made


def _field(where: str, field: Any) -> tuple[str, Any, str | None]:
    """Name, type and description of a field."""
    attributes = {"name": field} if isinstance(field, str) else field
    if not isinstance(attributes, Mapping):
        raise ValueError(f"{where}={repr_of(field)}: give a name, or a mapping of name, type and description")
    name, kind = attributes.get("name"), attributes.get("type", str)
    if unknown := sorted(map(str, set(attributes) - {"name", "type", "description", "desc"})):
        raise ValueError(f"{where}: {', '.join(unknown)}: its keys are name, type and description")
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"{where}: name={repr_of(name)}: give a name as of a variable, without _ before it")
    if isinstance(kind, str):
        try:
            [(_, only)] = _make(f"{name}: {TYPES.get(kind, kind)} -> other_").input_fields.items()
        except Exception as error:
            raise ValueError(
                f"{where}: type={repr_of(kind)}: give a Python type, its name, or JSON Schema's"
            ) from error
        kind = only.annotation
    description = attributes.get("description", attributes.get("desc"))
    if not isinstance(description, str | None):
        raise ValueError(f"{where}: description={repr_of(description)}: give a text")
    return name, kind, description
