"""One call of a pipeline: what runs in its task. Called by `Pipeline` for its calls, maps and streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import Any, TypeAlias, cast

import dspy

from promptside.errors import CallTimeout
from promptside.events.span import Span
from promptside.pools.context.batch import find_abort
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.cancel import CallCancelled
from promptside.pools.context.priority import BatchAborted
from promptside.pools.context.settings import current_call_id, read_setting
from promptside.programs.hosting.callbacks import has_listener, recording
from promptside.programs.hosting.time_limit import TimeLimit
from promptside.programs.pipeline.stage import PipelineRuntime

__all__ = ["call", "prediction_of", "predictions_of"]

Flow: TypeAlias = Callable[[dict[str, Any], PipelineRuntime], Awaitable[dict[str, Any]]]


async def call(
    runtime: PipelineRuntime, flow: Flow, inputs: dict[str, Any], lm: dspy.LM | None, timeout: float
) -> dspy.Prediction | BaseException:
    """One call of a pipeline, recorded as a span, in a context of its own.

    An abort of a batch is returned: raised in a task, it would be a crash.
    """
    events = runtime.ref.system.events
    content = runtime.content or events.content
    span = Span(
        events,
        "pipeline",
        runtime.ref.path,
        {"pipeline": runtime.name},
        parent=enclosing(),
        parent_id=current_call_id(),
        incarnation=runtime.ref.incarnation,
    )
    span.started(content.of_inputs(events.wants, "pipeline.started", inputs))
    settings: dict[str, Any] = {} if lm is None else {"lm": lm}
    if has_listener(events):
        settings |= recording(span, content=content, incarnation=runtime.ref.incarnation)
    counts = dspy.settings.track_usage and read_setting("usage_tracker") is None
    try:
        with (
            dspy.context(**settings) if settings else contextlib.nullcontext(),
            dspy.track_usage() if counts else contextlib.nullcontext() as usage,
        ):
            async with TimeLimit(timeout, lambda: CallTimeout("Pipeline", runtime.name, timeout)):
                outputs = await flow(inputs, runtime)
    except BaseException as error:
        span.failed(error, content.of_error(events.wants, "pipeline.failed", error))
        if (abort := find_abort(error)) is not None:
            return abort
        raise
    prediction = dspy.Prediction(dict(outputs))  # by name, `base` would be no field
    if usage is not None:  # as a module does
        prediction.set_lm_usage(usage.get_total_tokens())
    span.stopped(content.of_outputs(events.wants, "pipeline.stopped", prediction))
    return prediction


def prediction_of(outcome: dspy.Prediction | BaseException) -> dspy.Prediction:
    """The prediction that `call` returned; raises the abort of a batch that it returned."""
    if isinstance(outcome, BatchAborted | CallCancelled):
        raise outcome
    return cast("dspy.Prediction", outcome)


async def predictions_of(
    outcomes: AsyncGenerator[dspy.Prediction | BaseException, None], source: object
) -> AsyncGenerator[dspy.Prediction, None]:
    """The same for a map; closing it closes its source."""
    try:
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                yield prediction_of(outcome)
    finally:
        if isinstance(source, Generator):  # an async one is closed by the map
            source.close()
