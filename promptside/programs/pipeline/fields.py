"""How fields flow through the stages of a pipeline; called when one is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from promptside.errors import PipelineError
from promptside.programs.pipeline.stage import Step

__all__ = ["follow"]

Fields: TypeAlias = tuple[str, ...]


def follow(
    name: str, steps: Sequence[Step], inputs: Fields | None, outputs: Fields | None
) -> tuple[Fields, Fields, Fields]:
    """What a pipeline requires, what it takes beside that, and what it gives.

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
    unread: dict[str, str | None] = dict.fromkeys(inputs or ())  # fields by who gave them
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
            unread.pop(field, None)
        for field in step.outputs:
            if field in unread:
                giver = "an input of the pipeline" if unread[field] is None else f"given by {unread[field]!r}"
                raise PipelineError(
                    step.name,
                    f"gives {field!r}, which is {giver} and would be lost before anyone has read it",
                    f"rename one of them: stage(..., outputs={{{field!r}: ...}}), or leave one out: "
                    "stage(..., outputs=...)",
                    field=field,
                )
            unread[field] = step.name
        known |= dict.fromkeys(step.outputs)
        given |= dict.fromkeys(step.outputs)
    gives = tuple(given) if outputs is None else outputs
    for field in gives:
        if field not in known:
            there = f"correct outputs=; there is {', '.join(known)}"
            raise PipelineError(name, f"has no field {field!r} for its outputs", there, field=field)
    for field, by in unread.items():
        if by is None and field not in gives:
            raise PipelineError(
                name, f"has an input {field!r} that no stage takes", "leave it out of inputs=", field=field
            )
    return required, optional, gives
