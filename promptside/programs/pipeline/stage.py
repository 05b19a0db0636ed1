"""`stage`: one step of a pipeline, with its name, its fields and how it is restarted.

Users call `stage` to set a name, fields or a restart type; pipelines make the other stages themselves. `fields` reads
which fields there are.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import anyio
import dspy

from promptside.actors import ActorRef
from promptside.callables import is_async, name_of
from promptside.errors import PipelineError
from promptside.events import Content
from promptside.programs.chain import Chainable
from promptside.programs.hosting.making import ModuleSource
from promptside.programs.hosting.threads import in_thread
from promptside.programs.pipeline.fields import Fields, fields_of_function, fields_of_module
from promptside.programs.program import Program
from promptside.supervision import Backoff, ChildSpec, Restart, Supervisor
from promptside.texts import add_note, repr_of

__all__ = ["Declared", "Names", "PipelineRuntime", "Stage", "Step", "as_step", "names_of", "stage"]

Names: TypeAlias = str | Sequence[str]
"""Fields as a user names them: ``"question, k"``, or a list."""

Declared: TypeAlias = Names | Mapping[str, str]
"""Fields of a stage: named, or own names with those in the pipeline."""


@dataclasses.dataclass(frozen=True, slots=True)
class PipelineRuntime:
    """The running side of a started pipeline.

    Attributes:
        name: Of the pipeline.
        ref: Its actor.
        content: Which content its events carry; the system's by default.
        programs: Of its stages that are programs.
        threads: Bounds the synchronous functions that run at a time.
    """

    name: str
    ref: ActorRef[Any]
    content: Content | None
    programs: Mapping[Stage, Program]
    threads: anyio.CapacityLimiter


class Step(Chainable, ABC):
    """A stage, a group of stages, or a pipeline within a pipeline.

    Attributes:
        name: For the tree, the events and the errors.
        has_own_name: Whether a user chose the name.
        required: Fields that it takes, in order.
        optional: Fields that it takes if they are there.
        outputs: Fields that it gives, in order.
        streamed_fields: Names under which predictors in it write its last outputs.
        has_actors: Whether it has actors of its own, and a `child_spec` to start them by.
    """

    has_actors = False
    name: str
    has_own_name: bool
    required: tuple[str, ...]
    optional: tuple[str, ...]
    outputs: tuple[str, ...]
    streamed_fields: frozenset[str]

    @abstractmethod
    def parts(self) -> Iterator[Stage]:
        """The stages in it for which something must run."""

    @abstractmethod
    async def run(self, known: Mapping[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        """Its outputs, from all fields that are known so far."""


class Stage(Step):
    """One function, module, program or pipeline as a stage, with what cannot be read off it.

    ::

        stage(search, outputs="passages") >> stage("context, question -> answer", inputs={"context": "passages"})

    A function gets its parameters, and a synchronous one runs in a worker thread. It returns a mapping or a
    `dspy.Prediction` of its outputs; if it has one output alone, anything else that it returns is that output.

    Args:
        work: A function, a module, a module's class or ``functools.partial`` of one, a signature, a `Program`, or
            several stages together.
        name: For the tree, the events and the errors; by default that of the function, class or program.
        inputs: Fields that it takes: names, all of them required; or a mapping from its own names to those in the
            pipeline, where these differ.
        outputs: Fields that it gives, in the same way. Names choose among its outputs: others do not flow on.
        restart: Of a module that the pipeline starts, as in `ChildSpec`.
        backoff: Likewise.
        lm: Default LM of a module that the pipeline starts; the pipeline's by default.

    Raises:
        PipelineError: It cannot be a stage, or its fields are not known or not these.
    """

    def __init__(
        self,
        work: object,
        *,
        name: str | None = None,
        inputs: Declared | None = None,
        outputs: Declared | None = None,
        restart: Restart = "permanent",
        backoff: Backoff | None = None,
        lm: dspy.LM | None = None,
    ) -> None:
        self.has_own_name = name is not None
        self.name = _default_name(work) if name is None else name
        if isinstance(work, str) or (isinstance(work, type) and issubclass(work, dspy.Signature)):
            work = functools.partial(dspy.Predict, work)
        self.restart: Restart = restart
        self.backoff = backoff
        self._lm = lm
        self._work = work
        self._check()
        fields = _read(work, inputs, outputs)
        if fields is None:
            raise PipelineError(
                self.name,
                f"is {repr_of(work)}",
                "give a function, a dspy.Module or its class, a signature, a Program or a Pipeline",
            )
        self._takes = self._wire("inputs", "takes", inputs, fields.required, fields.optional, exact=True)
        self._gives = self._wire("outputs", "gives", outputs, fields.outputs, (), exact=fields.exact)
        # A list of names says that these are wanted; a mapping only says what they are called.
        optional = () if inputs is not None and not isinstance(inputs, Mapping) else fields.optional
        self.required = tuple(field for own, field in self._takes.items() if own not in optional)
        self.optional = tuple(field for own, field in self._takes.items() if own in optional)
        self.outputs = tuple(self._gives.values())
        self.streamed_fields = work.streamed_fields if isinstance(work, Step) else frozenset(self._gives)
        self._spreads = fields.outputs is not None  # else a dataclass that it returns is an output

    def _wire(
        self,
        which: str,
        verb: str,
        declared: Declared | None,
        read: tuple[str, ...] | None,
        optional: tuple[str, ...],
        *,
        exact: bool,
    ) -> dict[str, str]:
        """From its own names to those in the pipeline."""
        if declared is None and read is None:
            raise PipelineError(
                self.name, f"does not tell which fields it {verb}", f"declare them: stage(..., {which}='a, b')"
            )
        has = None if read is None else (*read, *optional)
        wired = names_of(self.name, which, declared) if declared is not None else {}
        if has is not None and exact:
            for own in wired:
                if own not in has:
                    there = f"it {verb} {', '.join(has) or 'none'}"
                    raise PipelineError(
                        self.name, f"has no field {own!r} in its {which}", f"{there}; correct {which}=", field=own
                    )
        if isinstance(declared, Mapping) or declared is None:
            wired = {own: wired.get(own, own) for own in (*(has or ()), *wired)}
        elif which == "inputs":
            for own in read or ():
                if own not in wired:
                    raise PipelineError(self.name, f"needs {own!r}", "add it to inputs=", field=own)
        for field in wired.values():
            if list(wired.values()).count(field) > 1 and which == "outputs":
                raise PipelineError(self.name, f"gives {field!r} twice", "give one another name", field=field)
        return wired

    def _check(self) -> None:
        ChildSpec(self.name, Supervisor, self.restart, backoff=self.backoff)  # raises for what is not valid
        if _is_source(self._work):
            return
        options = {"lm": self._lm}
        if self.handle is None:
            options |= {"restart": None if self.restart == "permanent" else self.restart, "backoff": self.backoff}
        for option, value in options.items():
            if value is not None:
                raise PipelineError(self.name, f"is nothing that takes {option}=", "leave it out, or give it a module")

    def renamed(self, name: str) -> Stage:
        """The same under another name."""
        renamed = copy.copy(self)
        renamed.name, renamed.has_own_name = name, True
        renamed._check()
        return renamed

    @property
    def handle(self) -> Any:  # Program | Pipeline | None; the module of the latter is made of this one
        """The program or the pipeline that was given, if it is one."""
        work = self._work
        return work if isinstance(work, Program) or (isinstance(work, Step) and work.has_actors) else None

    def make_program(self, name: str, lm: dspy.LM | None) -> Program:
        """A program of the module that was given.

        Args:
            name: Its name.
            lm: The pipeline's LM, where the stage has none.
        """
        source: Any = self._work
        return Program(source, name=name, lm=self._lm or lm)

    def parts(self) -> Iterator[Stage]:
        """Itself, if something must run for it; those of a group that it wraps."""
        if self.handle is not None or _is_source(self._work):
            yield self
        elif isinstance(self._work, Step):
            yield from self._work.parts()

    async def run(self, known: Mapping[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        """Call it, in a worker thread if it is a synchronous function.

        Raises:
            PipelineError: It returned something else than its outputs.
            Exception: Whatever it raised.
        """
        given = {own: known[field] for own, field in self._takes.items() if field in known}
        work: Any = self._work
        try:
            if isinstance(work, Step):
                result: Any = await work.run(given, runtime)
            elif (program := runtime.programs.get(self)) is not None:
                result = await program.call_with((), given)
            elif is_async(work):
                result = await work(**given)
            else:
                result = await in_thread(functools.partial(work, **given), runtime.threads)
                if inspect.isawaitable(result):
                    result = await result
        except Exception as error:
            add_note(error, f"in the stage {self.name!r}")
            raise
        return self._named(result)

    def _named(self, result: Any) -> dict[str, Any]:
        values = _values(result, spread=self._spreads)
        if values is None and len(self._gives) == 1:
            values = dict.fromkeys(self._gives, result)
        if values is None:
            if not self._gives and result is None:
                return {}
            names = ", ".join(self._gives) or "none"
            raise PipelineError(
                self.name,
                f"returned a {type(result).__name__}",
                f"return a mapping or a dspy.Prediction of its outputs, {names}",
            )
        for own in self._gives:
            if own not in values:
                raise PipelineError(
                    self.name,
                    f"returned no {own!r}",
                    f"return every output, or declare other outputs=; it has {', '.join(values)}",
                    field=own,
                )
        return {field: values[own] for own, field in self._gives.items()}


stage = Stage


def as_step(work: object) -> Step:
    """The step that `work` stands for in a pipeline; a pair gives it a name."""
    if isinstance(work, tuple) and len(work) == 2 and isinstance(work[0], str):
        inner = work[1]
        return inner.renamed(work[0]) if isinstance(inner, Stage) else Stage(inner, name=work[0])
    return work if isinstance(work, Step) and not work.has_actors else Stage(work)


def names_of(owner: str, which: str, declared: Declared) -> dict[str, str]:
    """Declared fields, from own names to those in the pipeline.

    Raises:
        PipelineError: One is no name.
    """
    if isinstance(declared, str):
        declared = [name.strip() for name in declared.split(",") if name.strip()]
    named: Any = declared if isinstance(declared, Iterable) else (declared,)
    wired: dict[str, str] = dict(named if isinstance(named, Mapping) else zip(named, named, strict=True))
    for name in (*wired, *wired.values()):
        if not (isinstance(name, str) and name.isidentifier()):
            raise PipelineError(
                owner, f"has {which}={repr_of(declared)}", "give names of fields, as in 'question, context'"
            )
    return wired


def _is_source(work: object) -> bool:
    made = work.func if isinstance(work, functools.partial) else work
    return isinstance(work, dspy.Module) or (isinstance(made, type) and issubclass(made, dspy.Module))


def _read(work: Any, inputs: object, outputs: object) -> Fields | None:
    """Its fields; None for what cannot be a stage. A factory is called only where its result is needed."""
    if isinstance(work, Step):
        return Fields(required=work.required, optional=work.optional, outputs=work.outputs, exact=True)
    source: ModuleSource = work._source if isinstance(work, Program) else work
    if isinstance(source, dspy.Module):
        return fields_of_module(source)
    if isinstance(work, Program) or _is_source(work):
        fields = fields_of_module(source) if isinstance(source, type) else Fields()
        known = all(a is not None or b is not None for a, b in ((inputs, fields.required), (outputs, fields.outputs)))
        return fields if known else fields_of_module(source())
    return fields_of_function(work) if callable(work) else None


def _values(result: Any, *, spread: bool) -> Mapping[str, Any] | None:
    if isinstance(result, dspy.Example):
        return dict(result.items())
    if isinstance(result, Mapping):
        return result
    if spread and dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    if spread and (names := getattr(type(result), "model_fields", None)):
        return {name: getattr(result, name) for name in names}
    return None


def _default_name(work: object) -> str:
    if isinstance(work, str):  # a signature: named for what it is there for
        signature: Any = dspy.Signature
        return str(next(iter(signature(work).output_fields)))
    if isinstance(work, Program | Step):
        return work.name
    return name_of(work).strip("<>")
