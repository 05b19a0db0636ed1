"""The simple case: a program that is one signature. `create_program` starts it, `execute` calls it.

A signature is DSPy's class, its text, or plain data, as it comes from a file or over a wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import dspy

from promptside.actors import ActorSystem
from promptside.programs.program import Program, start_program

__all__ = ["SignatureSource", "create_program", "execute", "to_signature"]

SignatureSource: TypeAlias = type[dspy.Signature] | str | Mapping[str, Any]

TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "array": "list", "object": "dict"}
)
"""JSON Schema's names of types; every other name is read as in DSPy's texts."""


async def create_program(
    system: ActorSystem, signature: SignatureSource, lm: dspy.LM | None = None, name: str | None = None
) -> Program:
    """Start a program that asks the LM once for the outputs of a signature.

    ::

        qa = await create_program(
            system,
            {
                "name": "BasicQA",
                "docstring": "Answer questions with short factual answers.",
                "inputs": [{"name": "question", "type": "string"}],
                "outputs": [{"name": "answer", "type": "string", "description": "often between 1 and 5 words"}],
            },
        )
        answer = (await execute(qa, {"question": "What is the capital of France?"})).answer

    Args:
        system: The running system.
        signature: A `dspy.Signature`, a text such as ``"question -> answer: float"``, or a mapping of ``name``,
            ``docstring``, ``inputs`` and ``outputs``: lists of fields, each a name or a mapping of ``name``, ``type``
            (``str`` by default; a Python type, its name, or JSON Schema's) and ``description``.
        lm: The LM for calls that bring none.
        name: The program's id in the system; by default the signature's name, with a number where that is taken.

    Raises:
        ValueError: The signature is not valid; the message names the field.
        NameTaken: Another live actor holds the name that was given.
    """
    made = to_signature(signature)

    def make() -> dspy.Module:
        return dspy.Predict(made)

    if name is not None:
        return await start_program(system, make, name=name, lm=lm)
    make.__name__ = "program" if made.__name__ == "StringSignature" else made.__name__
    return await start_program(system, make, lm=lm)


async def execute(program: Program, inputs: Mapping[str, Any], lm: dspy.LM | None = None) -> dspy.Prediction:
    """Call a program with its inputs as one mapping.

    Args:
        program: Any that runs.
        inputs: By name. Of a program that has a signature, all of its inputs and nothing else.
        lm: The LM for this call alone.

    Raises:
        ValueError: An input is missing, or is none; the message names it.
        Exception: As for `Program.acall`.
    """
    if not isinstance(inputs, Mapping):
        raise ValueError(f"execute({program.name!r}): inputs={inputs!r}: give a mapping of inputs by name")
    signature: Any = getattr(program.module, "signature", None)
    if isinstance(signature, type(dspy.Signature)):
        fields = signature.input_fields
        missing = [name for name, field in fields.items() if name not in inputs and field.is_required()]
        surplus = [name for name in inputs if name not in fields]
        for names, what in ((missing, "missing"), (surplus, "no input of it")):
            if names:
                given = ", ".join(map(repr, names))
                raise ValueError(f"execute({program.name!r}): {given} {what}; its inputs are {', '.join(fields)}")
    return await program.acall(lm=lm, **inputs)


def to_signature(signature: SignatureSource) -> type[dspy.Signature]:
    """A signature as DSPy's class; see `create_program`."""
    if isinstance(signature, type) and issubclass(signature, dspy.Signature):
        return signature
    if isinstance(signature, str):
        return _make(signature)
    if not isinstance(signature, Mapping):
        raise ValueError(f"signature={signature!r}: give a dspy.Signature, a text with ->, or a mapping")
    unknown = sorted(map(str, set(signature) - {"name", "docstring", "inputs", "outputs"}))
    if unknown:
        raise ValueError(f"signature: {', '.join(unknown)}: its keys are name, docstring, inputs and outputs")
    fields: dict[str, tuple[Any, Any]] = {}
    for side, make in (("inputs", dspy.InputField), ("outputs", dspy.OutputField)):
        given = signature.get(side)
        if not isinstance(given, Sequence) or isinstance(given, str) or not given:
            raise ValueError(f"signature: {side}={given!r}: give a list of fields, one at least")
        for index, field in enumerate(given):
            name, kind, description = _field(f"signature: {side}[{index}]", field)
            if name in fields:
                raise ValueError(f"signature: {side}[{index}]: the field {name!r} stands twice")
            fields[name] = (kind, make(desc=description) if description else make())
    name = signature.get("name", "StringSignature")
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"signature: name={name!r}: give a name as of a class")
    docstring = signature.get("docstring")
    if not isinstance(docstring, str | None):
        raise ValueError(f"signature: docstring={docstring!r}: give a text")
    return _make(fields, docstring, name)


def _make(*args: Any) -> type[dspy.Signature]:
    signature: Any = dspy.Signature  # whose instances are classes
    made: type[dspy.Signature] = signature(*args)
    return made


def _field(where: str, field: Any) -> tuple[str, Any, str | None]:
    """Name, type and description of a field."""
    attributes = {"name": field} if isinstance(field, str) else field
    if not isinstance(attributes, Mapping):
        raise ValueError(f"{where}={field!r}: give a name, or a mapping of name, type and description")
    name, kind = attributes.get("name"), attributes.get("type", str)
    if unknown := sorted(map(str, set(attributes) - {"name", "type", "description", "desc"})):
        raise ValueError(f"{where}: {', '.join(unknown)}: its keys are name, type and description")
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"{where}: name={name!r}: give a name as of a variable, without _ before it")
    if isinstance(kind, str):
        try:
            [(_, only)] = _make(f"{name}: {TYPES.get(kind, kind)} -> other_").input_fields.items()
        except Exception as error:
            raise ValueError(f"{where}: type={kind!r}: give a Python type, its name, or JSON Schema's") from error
        kind = only.annotation
    description = attributes.get("description", attributes.get("desc"))
    if not isinstance(description, str | None):
        raise ValueError(f"{where}: description={description!r}: give a text")
    return name, kind, description
