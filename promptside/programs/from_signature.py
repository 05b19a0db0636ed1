"""The simple case: a program that is one signature. `create_program` starts it, `execute` calls it."""

from __future__ import annotations

from typing import Any

import dspy

from promptside.actors import ActorSystem
from promptside.checks import check
from promptside.programs.hosting.request import Inputs, inputs_by_name
from promptside.programs.program import Program
from promptside.programs.signature_data import SignatureSource, to_signature

__all__ = ["create_program", "execute"]


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
        answer = (await execute(qa, question="What is the capital of France?")).answer

    Args:
        system: The running system.
        signature: A `dspy.Signature`, a text such as ``"question -> answer: float"``, or a mapping of ``name``,
            ``docstring``, ``inputs`` and ``outputs``: lists of fields, each a name or a mapping of ``name``, ``type``
            (``str`` by default; a Python type, its name, or JSON Schema's) and ``description``.
        lm: See `Program`.
        name: See `Program`; by default the signature's.

    Raises:
        ValueError: The signature is not valid; the message names the field.
        NameTaken: Another live actor holds the name that was given.
    """
    made = to_signature(signature)

    def make() -> dspy.Module:
        return dspy.Predict(made)

    make.__name__ = "program" if made.__name__ == "StringSignature" else made.__name__
    return await Program(make, name=name, lm=lm).start(system)


async def execute(
    program: Program,
    inputs: Inputs | None = None,
    /,
    *,
    lm: dspy.LM | None = None,
    timeout: float | None = None,
    **fields: Any,
) -> dspy.Prediction:
    """Call a program that has a signature, with its inputs checked against that first.

    Args:
        program: Any that runs.
        inputs: As for `Program.acall`. Of a program that has a signature, all of its inputs and nothing else.
        lm: The LM for this call alone.
        timeout: As for `Program.acall`.
        **fields: As for `Program.acall`.

    Raises:
        ValueError: `program` is no program, an input is missing, or the signature has no such input; the message says
            which.
        Exception: As for `Program.acall`.
    """
    check("execute", "program", program, isinstance(program, Program), "give a Program that was started")
    given = inputs_by_name(inputs, fields)
    signature: Any = getattr(program.module, "signature", None)
    if isinstance(signature, type(dspy.Signature)):
        known = signature.input_fields
        missing = [name for name, field in known.items() if name not in given and field.is_required()]
        surplus = [name for name in given if name not in known]
        for names, what in ((missing, "missing"), (surplus, "no input of it")):
            if names:
                listed = ", ".join(map(repr, names))
                raise ValueError(f"execute({program.name!r}): {listed} {what}; its inputs are {', '.join(known)}")
    return await program.call_with((), given, lm, timeout)
