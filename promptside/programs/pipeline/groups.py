"""`parallel` and `branch`: several stages in the place of one."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import anyio

from promptside.callables import name_of
from promptside.errors import PipelineError
from promptside.programs.pipeline.fields import fields_of_function
from promptside.programs.pipeline.stage import PipelineRuntime, Stage, Step, as_step
from promptside.texts import add_note, repr_of

__all__ = ["Branch", "Parallel", "branch", "parallel"]


class Group(Step):
    """Several stages that see the same fields.

    Args:
        name: For errors.
        arms: The stages.
    """

    def __init__(self, name: str, arms: tuple[Step, ...], reads: tuple[str, ...] = ()) -> None:
        self.name = name
        self.has_own_name = False
        self._arms = arms
        required = dict.fromkeys((*reads, *(field for arm in arms for field in arm.required)))
        self.required = tuple(required)
        self.optional = tuple(dict.fromkeys(field for arm in arms for field in arm.optional if field not in required))
        self.streamed_fields = frozenset(name for arm in arms for name in arm.streamed_fields)

    def parts(self) -> Iterator[Stage]:
        """Those of its arms."""
        for arm in self._arms:
            yield from arm.parts()


class Parallel(Group):
    """Stages that run at the same time, on the same fields; their outputs are merged.

    ::

        parallel(search_web, ("papers", search_papers)) >> stage("pages, papers, question -> answer")

    Args:
        *arms: Each as a stage of a `Pipeline`.

    Raises:
        PipelineError: Two of them give a field of the same name.
    """

    def __init__(self, *arms: object) -> None:
        super().__init__("parallel", tuple(map(as_step, arms)))
        givers: dict[str, str] = {}
        for arm in self._arms:
            for field in arm.outputs:
                if field in givers:
                    raise PipelineError(
                        arm.name,
                        f"gives {field!r}, as {givers[field]!r} does beside it",
                        f"rename one: stage(..., outputs={{{field!r}: ...}}), or leave it out: stage(..., outputs=...)",
                        field=field,
                    )
                givers[field] = arm.name
        self.outputs = tuple(givers)

    async def run(self, known: Mapping[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        """Run all of them. The first that fails cancels the others, and is what is raised."""
        results: list[dict[str, Any]] = [{} for _ in self._arms]
        ended = 0
        failures: list[BaseException] = []

        async def run(number: int, arm: Step) -> None:
            nonlocal ended
            try:
                results[number] = await arm.run(known, runtime)
                ended += 1
            except asyncio.CancelledError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised below, as it is and not in a group
                failures.append(error)
                group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for number, arm in enumerate(self._arms):
                group.start_soon(run, number, arm)
        if failures:
            raise failures[0]
        if ended < len(self._arms):
            raise asyncio.CancelledError  # by which an arm has ended of itself
        return {field: value for result in results for field, value in result.items()}


class Branch(Group):
    """One of several stages, as a field or a function of fields decides; all of them give the same fields.

    ::

        branch("category", {"billing": billing, "bug": bug}, otherwise=general)
        branch(lambda question: len(question) < 40, {True: brief, False: thorough})

    Args:
        on: A field, or a function whose parameters are fields. A synchronous one runs on the event loop: it must not
            wait.
        cases: The stage for each value.
        otherwise: The stage for every other value; without one, that is a `PipelineError` of the call.

    Raises:
        PipelineError: The cases do not give the same fields.
    """

    def __init__(
        self, on: str | Callable[..., Any], cases: Mapping[Any, object], otherwise: object | None = None
    ) -> None:
        if not isinstance(cases, Mapping):
            raise PipelineError("branch", f"has cases={repr_of(cases)}", "give a mapping from values to stages")
        if not (isinstance(on, str) or callable(on)):
            raise PipelineError("branch", f"has on={repr_of(on)}", "give a field, or a function of fields")
        self._cases = {case: as_step(work) for case, work in cases.items()}
        self._otherwise = None if otherwise is None else as_step(otherwise)
        arms = (*self._cases.values(), *(() if self._otherwise is None else (self._otherwise,)))
        self._on = on
        if isinstance(on, str):
            self._reads: tuple[str, ...] = (on,)
            self._may_read: tuple[str, ...] = ()
            name = f"branch on {on}"
        else:
            fields = fields_of_function(on)
            name = f"branch on {name_of(on).strip('<>')}"
            if fields.required is None:
                raise PipelineError(name, "has a condition whose fields cannot be read", "give it parameters")
            self._reads, self._may_read = fields.required, fields.optional
        super().__init__(name, arms, self._reads)
        self.optional = tuple(dict.fromkeys((*self.optional, *(f for f in self._may_read if f not in self.required))))
        if not arms:
            raise PipelineError(name, "has no cases", "give a mapping from values to stages")
        self.outputs = arms[0].outputs
        for arm in arms[1:]:
            for field in set(arm.outputs) ^ set(self.outputs):
                giver, other = (arm, arms[0]) if field in arm.outputs else (arms[0], arm)
                raise PipelineError(
                    giver.name,
                    f"gives {field!r}, and {other.name!r} in another case of the {name} does not",
                    "have all cases give the same fields, or leave it out: stage(..., outputs=...)",
                    field=field,
                )

    async def run(self, known: Mapping[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        """Run the stage that is chosen.

        Raises:
            PipelineError: No case is chosen, and there is no `otherwise`.
            Exception: Whatever the condition raised, or the stage.
        """
        value = known[self._on] if isinstance(self._on, str) else await self._decide(self._on, known)
        try:
            arm = self._cases.get(value, self._otherwise)
        except TypeError:  # a list, say, cannot be a case
            arm = self._otherwise
        if arm is None:
            cases = ", ".join(map(repr, self._cases))
            raise PipelineError(self.name, f"has no case {repr_of(value)}", f"add it to {cases}, or give an otherwise=")
        return await arm.run(known, runtime)

    async def _decide(self, condition: Callable[..., Any], known: Mapping[str, Any]) -> Any:
        given = {field: known[field] for field in (*self._reads, *self._may_read) if field in known}
        try:
            value = condition(**given)
            return await value if inspect.isawaitable(value) else value
        except Exception as error:
            add_note(error, f"in the condition of the {self.name}")
            raise


parallel = Parallel
branch = Branch
