"""`Pipeline`: stages one after the other, checked by the names of their fields, and started as one supervision tree.

Users build one by ``>>`` or by `Pipeline`, start it and call it. `stage` has the steps it is made of, `groups` those
that run side by side; calls and maps run as tasks of a `TaskSupervisor` in the tree.

::

    rag                      PipelineSupervisor
    |- retrieve              the program of a stage
    |- answer
    `- calls                 a task for each call
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final, Literal, Self, Unpack, overload

import anyio
import dspy
from dspy.streaming import StatusMessageProvider

from promptside.actors import ActorRef, ActorSystem, Node
from promptside.checks import check, check_count, check_seconds
from promptside.errors import PipelineError
from promptside.events import Content
from promptside.programs.chain import Chainable
from promptside.programs.hosting.request import Inputs, inputs_by_name
from promptside.programs.hosting.streaming import Piece, check_streaming, stream_call
from promptside.programs.hosting.threads import MAX_THREADS
from promptside.programs.lm_choice import check_lm
from promptside.programs.pipeline.call import call, prediction_of, predictions_of
from promptside.programs.pipeline.fields import check_fields
from promptside.programs.pipeline.stage import Names, PipelineRuntime, Stage, Step, as_step, names_of
from promptside.programs.pipeline.supervisor import Children, PipelineSupervisor
from promptside.programs.program import Program
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.handle import Again, Handle
from promptside.supervision.strategy import Strategy
from promptside.supervision.tasks.supervisor import TaskSupervisor
from promptside.texts import add_note, repr_of

__all__ = ["Pipeline"]

CALLS = "calls"
"""Id of the task supervisor in a pipeline's tree."""

DEFAULTS: Final = {"strategy": "one_for_one", "max_restarts": 3, "max_seconds": 5.0}
"""How stages are supervised by default."""


class Pipeline(Step, Handle[PipelineRuntime]):
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

    Fields accumulate by name, as the local variables of a module's `forward` do: the inputs, and then the outputs of
    each stage. A stage takes those it has parameters for. This is checked here, before anything runs:

    - Each field that a stage needs is an input of the pipeline, or given by a stage before it.
    - Nothing is lost: a field is given anew only after a stage has read it, and a stage reads each declared input.

    `start` starts the modules, programs and pipelines in it that do not run yet, below it. `stop` cancels calls under
    way, and a restart loses them (`ActorStopped`).

    Args:
        steps: Its stages, in order; or the result of ``>>``, to set the options below.
        name: In the tree and the registry.
        inputs: Its inputs; by default those of its first stage.
        outputs: Fields of the predictions it returns; by default all outputs of stages. Inputs may be among them.
        lm: Default LM of the modules that it starts; see `Program`.
        timeout: Seconds that a call may take, > 0; see `Program.acall`. Each item of a map is a call.
        content: See `Program`.
        strategy: Which stages are restarted when one fails, as in `Supervisor`. Its calls count as the last child.
        max_restarts: As in `Supervisor`.
        max_seconds: As in `Supervisor`.

    Raises:
        PipelineError: The stages do not fit together; the message names the stage, the field and what to do.
        ValueError: A setting is not valid; the message names it.
    """

    has_actors = True

    def __init__(
        self,
        steps: Chainable | Iterable[object],
        *,
        name: str | None = None,
        inputs: Names | None = None,
        outputs: Names | None = None,
        lm: dspy.LM | None = None,
        timeout: float = math.inf,
        content: Content | None = None,
        strategy: Strategy = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        super().__init__("pipeline" if name is None else name)
        check_lm("Pipeline", lm)
        check("Pipeline", "content", content, isinstance(content, Content | None), "give a Content(...), or None")
        check_seconds("Pipeline", "timeout", timeout)
        self.has_own_name = name is not None
        self._lm = lm
        self._timeout = timeout
        self._content = content
        self._settings: dict[str, Any] = {
            "strategy": strategy,
            "max_restarts": max_restarts,
            "max_seconds": max_seconds,
        }
        Supervisor(**self._settings)  # raises for what is not valid
        options = (name, inputs, outputs, lm, content)
        self._plain = all(each is None for each in options) and timeout == math.inf and self._settings == DEFAULTS
        if not isinstance(steps, Chainable | Iterable):
            raise PipelineError(self.name, f"has steps={repr_of(steps)}", "give stages, in a list or another iterable")
        self._steps = tuple(_flat((steps,) if isinstance(steps, Chainable) else steps))
        if not self._steps:
            raise PipelineError(self.name, "has no stages", "give at least one")
        fields = check_fields(self.name, self._steps, self._names("inputs", inputs), self._names("outputs", outputs))
        self.required, self.optional, self.outputs = fields
        self.streamed_fields = self._steps[-1].streamed_fields
        self._parts = self._name_parts()
        self._own: frozenset[Stage] | None = None  # of the parts, those that it starts
        self._programs: dict[Stage, Program] = {}  # those that it made
        self._tasks = TaskSupervisor(CALLS)

    # -- building ----------------------------------------------------------------------------------------------

    def _names(self, which: str, declared: Names | None) -> tuple[str, ...] | None:
        if isinstance(declared, Mapping):
            remedy = f"name them; others than the stages' are given by stage(pipeline, {which}=...)"
            raise PipelineError(self.name, f"has {which}={repr_of(declared)}", remedy)
        return None if declared is None else tuple(names_of(self.name, which, declared))

    def _name_parts(self) -> dict[str, Stage]:
        """The stages that have a place in the tree, by unique ids."""
        parts: dict[str, Stage] = {}
        for part in dict.fromkeys(part for step in self._steps for part in step.parts()):
            id = part.name
            if id in parts or id == CALLS:
                if part.has_own_name:
                    raise PipelineError(id, "is the name of something else in this pipeline", "give it another name")
                id = next(each for n in itertools.count(2) if (each := f"{part.name}-{n}") not in parts)
            parts[id] = part
        return parts

    def parts(self) -> Iterator[Stage]:
        """None: it starts its own."""
        return iter(())

    # -- its life ----------------------------------------------------------------------------------------------

    async def start(
        self, system: ActorSystem, *, name: str | None = None, node: Node | str | None = None, **again: Unpack[Again]
    ) -> Self:
        """As `Handle.start`; a name that is given here stays when it becomes a stage of another pipeline."""
        before = self.name, self.has_own_name
        self.has_own_name |= name is not None
        try:
            return await super().start(system, name=name, node=node, **again)
        except BaseException:
            self.name, self.has_own_name = before
            raise

    def program(self, name: str) -> Program:
        """The program of a stage.

        Args:
            name: The stage's, as in the tree.

        Raises:
            KeyError: No stage of this name has a program; the message lists those there are.
            NotStarted: The pipeline was never started.
        """
        running = self._running().programs
        programs = {id: running[part] for id, part in self._parts.items() if part in running}
        if name not in programs:
            raise KeyError(f"the pipeline {self.name!r} has no program {name!r}, but {', '.join(map(repr, programs))}")
        return programs[name]

    def _make_actor(self) -> PipelineSupervisor:
        return PipelineSupervisor(self, self._make_children, self._settings)

    def _make_children(self, ref: ActorRef[Any]) -> Children:
        """Called at each start."""
        if self._own is None:
            self._own = frozenset(part for part in self._parts.values() if not _runs(part))
        programs: dict[Stage, Program] = {}
        specs: dict[Program | Pipeline, ChildSpec] = {}  # a handle may stand in several stages
        for id, part in self._parts.items():
            handle: Program | Pipeline | None = part.handle
            if handle is None:
                handle = self._programs.get(part) or part.make_program(id, self._lm)
                self._programs[part] = handle
            if part in self._programs or (isinstance(handle, Pipeline) and not handle.has_own_name):
                handle.name = f"{self.name}.{id}"
            if isinstance(handle, Program):
                programs[part] = handle
            if part in self._own and handle not in specs:
                specs[handle] = replace(handle.child_spec(restart=part.restart, backoff=part.backoff), id=id)
        runtime = PipelineRuntime(self.name, ref, self._content, programs, anyio.CapacityLimiter(MAX_THREADS))
        return [*specs.values(), replace(self._tasks.child_spec(), name=None)], runtime

    # -- calls -------------------------------------------------------------------------------------------------

    async def __call__(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        lm: dspy.LM | None = None,
        timeout: float | None = None,
        **fields: Any,
    ) -> dspy.Prediction:
        """Run all stages: ``await pipeline(question="...")``, or with a mapping or a `dspy.Example` of the inputs.

        Cancelling the caller cancels what runs; a synchronous function is left to end in its thread.

        Args:
            inputs: As for `Program.acall`, as for the following.
            lm: The LM for this call alone.
            timeout: Seconds that this call may take, > 0; the pipeline's by default.
            **fields: Further inputs.

        Returns:
            The pipeline's outputs.

        Raises:
            CallTimeout: It took longer than `timeout`.
            PipelineError: Inputs lack or are too many, a stage did not return its outputs, or a branch has no case.
            NotStarted: The pipeline was never started.
            ActorStopped: The pipeline or a stage does not run, was stopped or has crashed.
            Exception: Whatever a stage raised, the same object; a note says which stage.
        """
        runtime, given, seconds = self._accept(inputs, fields, lm, timeout)
        return prediction_of(await self._tasks.run(call, runtime, self._flow, given, lm, seconds))

    acall = __call__

    @overload
    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        max_concurrency: int = ...,
        ordered: bool = ...,
        return_exceptions: Literal[False] = ...,
    ) -> AsyncGenerator[dspy.Prediction, None]: ...

    @overload
    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        max_concurrency: int = ...,
        ordered: bool = ...,
        return_exceptions: bool,
    ) -> AsyncGenerator[dspy.Prediction | Exception, None]: ...

    def map(
        self,
        source: Iterable[Inputs] | AsyncIterable[Inputs],
        *,
        max_concurrency: int = 32,
        ordered: bool = True,
        return_exceptions: bool = False,
    ) -> AsyncGenerator[dspy.Prediction | Exception, None]:
        """Run it on each item of a source: ``async for prediction in pipeline.map(questions, max_concurrency=32)``.

        At most `max_concurrency` items are taken from the source whose results have not been read: a slow reader slows
        the source, which may be endless. Leaving the loop early cancels what runs, waits for it to unwind, and closes
        the source: at once with ``contextlib.aclosing``, otherwise when the iterator is collected.

        Args:
            source: Inputs, each as for a call. It is read on the caller's event loop.
            max_concurrency: Items at one time, >= 1.
            ordered: Whether results come in the order of the items, or else as they are ready. To tell those apart, let
                inputs be among the pipeline's `outputs`.
            return_exceptions: Whether an item's exception is yielded in its place, or else raised. A note on it has the
                number of the item, from 0.

        Yields:
            Predictions.

        Raises:
            Exception: Whatever an item or the source raised; the rest is cancelled.
            NotStarted: The pipeline was never started.
            ActorStopped: The pipeline does not run, or was stopped; what had finished is yielded first.
            ValueError: `max_concurrency` is not a whole number >= 1.
        """
        check_count("Pipeline.map", "max_concurrency", max_concurrency)
        self._running()
        numbers = itertools.count()

        async def item(inputs: Inputs) -> dspy.Prediction | BaseException:
            number = next(numbers)  # tasks begin in the order of the source
            try:
                runtime, given, seconds = self._accept(inputs, {}, None, None)
                return await call(runtime, self._flow, given, None, seconds)
            except Exception as error:
                add_note(error, f"in item {number} of the map over the pipeline {self.name!r}")
                raise

        results = self._tasks.map(
            item, source, max_concurrency=max_concurrency, ordered=ordered, return_exceptions=return_exceptions
        )
        return predictions_of(results, source)

    def stream(
        self,
        inputs: Inputs | None = None,
        /,
        *,
        lm: dspy.LM | None = None,
        timeout: float | None = None,
        status: StatusMessageProvider | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Call it, and read the last stage's fields while they are written, as with `Program.stream`.

        Args:
            inputs: As for a call.
            lm: As for a call.
            timeout: As for a call.
            status: Writes status messages of the modules, LMs and tools at work; none by default.
            **fields: As for a call.

        Yields:
            `Piece`s, under the names that the stage's predictors have for the fields; at the end, the prediction.
        """
        check_streaming("Pipeline.stream", None, status)
        runtime, given, seconds = self._accept(inputs, fields, lm, timeout)

        async def work() -> dspy.Prediction:
            return prediction_of(await call(runtime, self._flow, given, lm, seconds))

        return stream_call(runtime.ref, work, fields=self.streamed_fields, status=status)

    async def run(self, known: Mapping[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        """As a stage of another pipeline."""
        prediction = await self({field: known[field] for field in (*self.required, *self.optional) if field in known})
        return dict(prediction.items())

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}: {' >> '.join(step.name for step in self._steps)}>"

    def _accept(
        self, inputs: Inputs | None, fields: dict[str, Any], lm: dspy.LM | None, timeout: float | None
    ) -> tuple[PipelineRuntime, dict[str, Any], float]:
        """The arguments of a call, checked."""
        runtime = self._running()
        check_lm("Pipeline", lm)
        if timeout is not None:
            check_seconds("Pipeline", "timeout", timeout)
        given = inputs_by_name(inputs, fields)
        takes = f"it takes {', '.join((*self.required, *(f'{field} (optional)' for field in self.optional)))}"
        for field in self.required:
            if field not in given:
                raise PipelineError(self.name, f"was called without {field!r}", takes, field=field)
        for field in given:
            if field not in self.required and field not in self.optional:
                raise PipelineError(self.name, f"was called with {field!r}", takes, field=field)
        return runtime, given, self._timeout if timeout is None else timeout

    async def _flow(self, known: dict[str, Any], runtime: PipelineRuntime) -> dict[str, Any]:
        quiet = {"send_stream": None} if dspy.settings.send_stream is not None else {}
        for step in self._steps:
            silence = quiet if step is not self._steps[-1] else {}
            with dspy.context(**silence) if silence else contextlib.nullcontext():
                known |= await step.run(known, runtime)
        return {field: known[field] for field in self.outputs}


def _flat(steps: Iterable[object]) -> Iterator[Step]:
    """The steps, with those of a pipeline without options of its own, which does not run, in its place."""
    for step in steps:
        if isinstance(step, Pipeline) and step._plain and not step.started:
            yield from step._steps
        else:
            yield as_step(step)


def _runs(part: Stage) -> bool:
    return part.handle is not None and part.handle.started
