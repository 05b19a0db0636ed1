"""`Pipeline`: stages one after the other, checked by the names of their fields, and started as one supervision tree.

Users build one by ``>>`` or by `Pipeline`, start it and call it. `stage` has the steps it is made of, `pipeline_groups`
those that run side by side; calls and maps run as tasks of a `TaskSupervisor` in the tree.

::

    rag                      PipelineSupervisor
    |- retrieve              the program of a stage
    |- answer
    `- calls                 a task for each call
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, Self, TypeAlias, overload

import anyio
import dspy
from dspy.streaming import StatusMessageProvider

from promptside.actors import ActorRef, ActorSystem, State
from promptside.errors import ActorStopped, PipelineError
from promptside.events import Content
from promptside.programs.chain import Chainable
from promptside.programs.hosting.streaming import Piece, stream_call
from promptside.programs.pipeline.call import answer, answers, call
from promptside.programs.pipeline.fields import follow
from promptside.programs.pipeline.stage import Live, Names, Stage, Step, as_step, names_of, tell_where
from promptside.programs.program import Program
from promptside.supervision import Backoff, ChildSpec, Restart, Supervisor
from promptside.supervision.handle import stands_elsewhere
from promptside.supervision.strategy import Strategy
from promptside.supervision.tasks.supervisor import TaskSupervisor

__all__ = ["Pipeline"]

Inputs: TypeAlias = Mapping[str, Any] | dspy.Example

CALLS = "calls"
"""Id of the task supervisor in a pipeline's tree."""

THREADS = 40
"""Synchronous functions of one pipeline that run at a time."""


DEFAULTS: Final = {"strategy": "one_for_one", "max_restarts": 3, "max_seconds": 5.0}
"""How stages are supervised if nothing is said of it."""


class Pipeline(Step):
    """Stages that run one after the other, each with the fields it takes.

    ::

        rag = Pipeline([
            ("retrieve", stage(Retrieve, outputs="context")),
            ("answer", "context, question -> answer"),
        ])
        await rag.start(system, name="rag")
        prediction = await rag(question="What is a perihelion?")

    ``a >> b >> c`` is the same as ``Pipeline([a, b, c])``, where one side of each ``>>`` is a stage, a program or a
    pipeline. A stage is a function, a module or its class, a signature, a `Program`, another pipeline, `parallel(...)`
    or `branch(...)`, or one of these with a name, in a pair; `stage` says what cannot be read off them.

    Fields accumulate by name, as the local variables of a module's `forward` do: the inputs, and then what each stage
    gives. A stage takes those it has parameters for. All of this is checked here, before anything runs:

    - What a stage needs must be there: an input of the pipeline, or given by a stage before it.
    - Nothing is lost: a field may be given anew only if somebody has read it since, and an input that is declared must
      be read by somebody.

    Args:
        steps: What it is made of, in order; or what ``>>`` has made, to say more of it.
        name: In the tree and the registry.
        inputs: Its inputs; by default those of its first stage.
        outputs: Fields of the predictions it returns; by default all that stages give. Inputs may be among them.
        lm: The LM for calls that bring none, of the modules that it starts.
        content: What its events tell of its inputs and outputs; the system's by default.
        strategy: Who else is restarted when a stage fails, as in `Supervisor`. Its calls count as the last child.
        max_restarts: As in `Supervisor`.
        max_seconds: As in `Supervisor`.

    Raises:
        PipelineError: The stages do not fit together; the message names the stage, the field and what to do.
    """

    lives = True

    def __init__(
        self,
        steps: Chainable | Iterable[object],
        *,
        name: str | None = None,
        inputs: Names | None = None,
        outputs: Names | None = None,
        lm: dspy.LM | None = None,
        content: Content | None = None,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        self.name = name or "pipeline"
        self.named = name is not None
        self._lm = lm
        self._content = content
        self._settings: dict[str, Any] = {
            "strategy": strategy,
            "max_restarts": max_restarts,
            "max_seconds": max_seconds,
        }
        self._plain = all(each is None for each in (name, inputs, outputs, lm, content)) and self._settings == DEFAULTS
        self._steps = tuple(_flat((steps,) if isinstance(steps, Chainable) else steps))
        if not self._steps:
            raise PipelineError(self.name, "has no stages", "give at least one")
        self.child_spec()  # raises for what is no name
        fields = follow(self.name, self._steps, self._names("inputs", inputs), self._names("outputs", outputs))
        self.required, self.optional, self.outputs = fields
        self.spoken = self._steps[-1].spoken
        self._parts = self._name_parts()
        self._own: frozenset[Stage] | None = None  # of the parts, those that it starts
        self._programs: dict[Stage, Program] = {}  # those that it made
        self._tasks = TaskSupervisor(CALLS)
        self._supervisor: ActorRef[Any] | None = None
        self._live: Live

    # -- building ----------------------------------------------------------------------------------------------

    def _names(self, which: str, declared: Names | None) -> tuple[str, ...] | None:
        if isinstance(declared, Mapping):
            remedy = f"name them; others than the stages' are given by stage(pipeline, {which}=...)"
            raise PipelineError(self.name, f"has {which}={declared!r}", remedy)
        return None if declared is None else tuple(names_of(self.name, which, declared))

    def _name_parts(self) -> dict[str, Stage]:
        """What has a place in the tree, by unique ids."""
        parts: dict[str, Stage] = {}
        for part in dict.fromkeys(part for step in self._steps for part in step.parts()):
            id = part.name
            if id in parts or id == CALLS:
                if part.named:
                    raise PipelineError(id, "is the name of something else in this pipeline", "give it another name")
                id = next(each for n in itertools.count(2) if (each := f"{part.name}-{n}") not in parts)
            parts[id] = part
        return parts

    def parts(self) -> Iterator[Stage]:
        """None: it starts its own."""
        return iter(())

    # -- its life ----------------------------------------------------------------------------------------------

    async def start(self, system: ActorSystem, *, name: str | None = None) -> Self:
        """Start it at the top of a system; it ends with the system, or with `stop`.

        Modules, programs and pipelines in it that do not run yet are started with it, below it.

        Args:
            system: The running system.
            name: In the tree and the registry.

        Returns:
            The pipeline itself.

        Raises:
            ActorStartError: A stage did not start, or the pipeline runs already, elsewhere.
            NameTaken: Another live actor holds its name.
        """
        before = self.name, self.named
        if name is not None:
            self.name, self.named = name, True
        try:
            await system.with_options(name=self.name).spawn(PipelineSupervisor, self)
        except BaseException:
            self.name, self.named = before
            raise
        return self

    def child_spec(self, *, restart: Restart = "permanent", backoff: Backoff | None = None) -> ChildSpec:
        """To have it started, and restarted, by a `Supervisor`. This handle works with each incarnation.

        Args:
            restart: As in `ChildSpec`. A restart loses the calls under way.
            backoff: As in `ChildSpec`.
        """
        start = functools.partial(PipelineSupervisor, self)
        return ChildSpec(self.name, start, restart, name=self.name, backoff=backoff)

    async def stop(self) -> None:
        """Stop it: calls under way are cancelled (`ActorStopped`). Under a supervisor, that decides what follows."""
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")

    def program(self, name: str) -> Program:
        """The program of a stage.

        Args:
            name: The stage's, as in the tree.

        Raises:
            KeyError: No stage of this name has a program; the message lists those there are.
            ActorStopped: The pipeline was never started.
        """
        self._running()
        programs = {id: self._live.programs[part] for id, part in self._parts.items() if part in self._live.programs}
        if name not in programs:
            raise KeyError(f"the pipeline {self.name!r} has no program {name!r}, but {', '.join(map(repr, programs))}")
        return programs[name]

    def _children(self) -> list[ChildSpec]:
        """Called at each start; makes what is `_live` from then on."""
        if self._own is None:
            self._own = frozenset(part for part in self._parts.values() if not _runs(part))
        programs: dict[Stage, Program] = {}
        specs: dict[Program | Pipeline, ChildSpec] = {}  # a handle may stand in several stages
        for id, part in self._parts.items():
            handle: Program | Pipeline | None = part.handle
            if handle is None:
                handle = self._programs.get(part) or part.make_program(id, self._lm)
                self._programs[part] = handle
            if part in self._programs or (isinstance(handle, Pipeline) and not handle.named):
                handle.name = f"{self.name}.{id}"
            if isinstance(handle, Program):
                programs[part] = handle
            if part in self._own and handle not in specs:
                specs[handle] = replace(handle.child_spec(restart=part.restart, backoff=part.backoff), id=id)
        self._live = Live(programs, anyio.CapacityLimiter(THREADS))
        return [*specs.values(), replace(self._tasks.child_spec(), name=None)]

    # -- calls -------------------------------------------------------------------------------------------------

    async def __call__(
        self, inputs: Inputs | None = None, /, *, lm: dspy.LM | None = None, **fields: Any
    ) -> dspy.Prediction:
        """Run all stages: ``await pipeline(question="...")``, or with a mapping or a `dspy.Example` of the inputs.

        Cancelling the caller cancels what runs; a synchronous function is left to end in its thread.

        Args:
            inputs: The inputs; of an example with labels, those of `with_inputs`.
            lm: The LM for this call alone, as `Program.acall` has it.
            **fields: Further inputs.

        Returns:
            The pipeline's outputs.

        Raises:
            PipelineError: Inputs lack or are too many, a stage did not return its outputs, or a branch has no case.
            ActorStopped: The pipeline or a stage does not run, was stopped or has crashed.
            Exception: Whatever a stage raised, the same object; a note says which stage.
        """
        return answer(await self._running().run(call, self, self._accept(inputs, fields), lm))

    async def acall(self, *, lm: dspy.LM | None = None, **inputs: Any) -> dspy.Prediction:
        """As a call, under the name that modules and programs have for it."""
        return await self(inputs, lm=lm)

    @overload
    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        demand: int = ...,
        ordered: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> AsyncGenerator[dspy.Prediction, None]: ...

    @overload
    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        demand: int = ...,
        ordered: bool = ...,
        return_exceptions: bool,
    ) -> AsyncGenerator[dspy.Prediction | Exception, None]: ...

    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        demand: int = 32,
        ordered: bool = False,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[dspy.Prediction | Exception, None]:
        """Run it on each item of a source: ``async for prediction in pipeline.map(questions, demand=32)``.

        At most `demand` items are taken from the source whose results have not been read: a slow reader slows the
        source, which may be endless. Leaving the loop early cancels what runs, waits for it to unwind, and closes the
        source: at once with ``contextlib.aclosing``, otherwise when the iterator is collected.

        To tell results apart, let inputs be among the pipeline's `outputs`, or take them in order.

        Args:
            source: Inputs, each as for a call. It is read on the caller's event loop.
            demand: Items at one time, >= 1.
            ordered: Whether results come in the order of the items, or else as they are ready.
            return_exceptions: Whether an item's exception is yielded in its place, or else raised. A note on it has the
                number of the item, from 0.

        Yields:
            Predictions.

        Raises:
            Exception: Whatever an item or the source raised; the rest is cancelled.
            ActorStopped: The pipeline does not run, or was stopped; what had finished is yielded first.
            ValueError: `demand` is not a whole number >= 1.
        """
        if not (isinstance(demand, int) and demand >= 1):
            raise ValueError(f"demand={demand!r}: give a whole number >= 1")
        numbers = itertools.count()

        async def item(inputs: Inputs) -> dspy.Prediction | BaseException:
            number = next(numbers)  # tasks begin in the order of the source
            try:
                return await call(self, self._accept(inputs, {}))
            except Exception as error:
                tell_where(error, f"in item {number} of the map over the pipeline {self.name!r}")
                raise

        results = self._running().map(
            item, source, max_concurrency=demand, ordered=ordered, return_exceptions=return_exceptions
        )
        return answers(results, source)

    def stream(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        lm: dspy.LM | None = None,
        status: StatusMessageProvider | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Call it, and read the last stage's fields while they are written.

        As `Program.stream`: pieces are `dspy.streaming.StreamResponse`, under the names that
        the stage's predictors have for them; the last item is the prediction.

        Args:
            inputs: As for a call.
            lm: As for a call.
            status: Writes status messages of the modules, LMs and tools at work; none by default.
            **fields: As for a call.
        """
        self._running()
        assert self._supervisor is not None
        given = self._accept(inputs, fields)

        async def work() -> dspy.Prediction:
            return answer(await call(self, given, lm))

        return stream_call(self._supervisor, work, fields=self.spoken, status=status)

    async def run(self, known: Mapping[str, Any], live: Live) -> dict[str, Any]:
        """As a stage of another pipeline."""
        prediction = await self({field: known[field] for field in (*self.required, *self.optional) if field in known})
        return dict(prediction.items())

    def __repr__(self) -> str:
        return f"<Pipeline {self.name}: {' >> '.join(step.name for step in self._steps)}>"

    def _running(self) -> TaskSupervisor:
        if self._supervisor is None:
            start = "not started yet; `await pipeline.start(system)`"
            raise ActorStopped(self.name, start, started=False, incarnation=0)
        return self._tasks

    def _accept(self, inputs: Inputs | None, fields: dict[str, Any]) -> dict[str, Any]:
        if isinstance(inputs, dspy.Example):
            inputs = dict((inputs.inputs() if getattr(inputs, "_input_keys", None) else inputs).items())
        given = {**(inputs or {}), **fields}
        takes = f"it takes {', '.join((*self.required, *(f'{field} (optional)' for field in self.optional)))}"
        for field in self.required:
            if field not in given:
                raise PipelineError(self.name, f"was called without {field!r}", takes, field=field)
        for field in given:
            if field not in self.required and field not in self.optional:
                raise PipelineError(self.name, f"was called with {field!r}", takes, field=field)
        return given

    async def _flow(self, known: dict[str, Any]) -> dict[str, Any]:
        quiet = {"send_stream": None} if dspy.settings.send_stream is not None else {}
        for step in self._steps:
            silence = quiet if step is not self._steps[-1] else {}
            with dspy.context(**silence) if silence else contextlib.nullcontext():
                known |= await step.run(known, self._live)
        return {field: known[field] for field in self.outputs}


class PipelineSupervisor(Supervisor):
    """The actor of a pipeline: the supervisor of its stages and calls.

    Args:
        pipeline: The pipeline.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        if stands_elsewhere(self, pipeline._supervisor):
            raise PipelineError(pipeline.name, "runs already", "make another Pipeline for another place")
        self._pipeline = pipeline
        super().__init__(pipeline._children(), **pipeline._settings)

    async def on_start(self) -> None:
        """Start the stages, then take calls."""
        await super().on_start()
        self._pipeline._supervisor = self.ref


def _flat(steps: Iterable[object]) -> Iterator[Step]:
    """The steps; a pipeline that nothing was said of, and that does not run, is as its own."""
    for step in steps:
        if isinstance(step, Pipeline) and step._plain and step._supervisor is None:
            yield from step._steps
        else:
            yield as_step(step)


def _runs(part: Stage) -> bool:
    supervisor: ActorRef[Any] | None = getattr(part.handle, "_supervisor", None)
    return supervisor is not None and supervisor.info().state is not State.STOPPED
