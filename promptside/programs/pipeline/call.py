"""One call of a pipeline: what runs in its task. Called by `Pipeline` for its calls, maps and streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING, Any, cast

import dspy

from promptside.events.span import Span
from promptside.pools.context.batch import find_abort
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.cancel import CallCancelled
from promptside.pools.context.priority import BatchAborted
from promptside.pools.context.settings import current_call_id, read_setting, set_call_id
from promptside.programs.hosting.callbacks import has_listener, recording

if TYPE_CHECKING:
    from promptside.programs.pipeline.pipeline import Pipeline

__all__ = ["answer", "answers", "call"]


async def call(
    pipeline: Pipeline, inputs: dict[str, Any], lm: dspy.LM | None = None
) -> dspy.Prediction | BaseException:
    """One call of a pipeline, told as a span, in a context of its own.

    It returns what a batch run is aborted by: raised in a task, that would be a crash.
    """
    supervisor = pipeline._supervisor
    assert supervisor is not None
    events = supervisor.system.events
    content = pipeline._content or events.content
    span = Span(
        events,
        "pipeline",
        supervisor.path,
        {"pipeline": pipeline.name},
        parent=enclosing(),
        parent_id=current_call_id(),
        incarnation=supervisor.incarnation,
    )
    span.started(content.of_inputs(events.wants, "pipeline.started", inputs))
    set_call_id(span.call_id)
    settings: dict[str, Any] = {} if lm is None else {"lm": lm}
    if has_listener(events):
        settings |= recording(span, content=content, incarnation=supervisor.incarnation)
    counts = dspy.settings.track_usage and read_setting("usage_tracker") is None
    try:
        with (
            dspy.context(**settings) if settings else contextlib.nullcontext(),
            dspy.track_usage() if counts else contextlib.nullcontext() as usage,
        ):
            outputs = await pipeline._flow(inputs)
    except BaseException as error:
        span.failed(error, content.of_error(events.wants, "pipeline.failed", error))
        if (ending := find_abort(error)) is not None:
            return ending
        raise
    prediction = dspy.Prediction(**outputs)
    if usage is not None:  # as a module does
        prediction.set_lm_usage(usage.get_total_tokens())
    span.stopped(content.of_outputs(events.wants, "pipeline.stopped", prediction))
    return prediction


def answer(outcome: dspy.Prediction | BaseException) -> dspy.Prediction:
    """What `call` returned, or raise it if it ends a batch run."""
    if isinstance(outcome, BatchAborted | CallCancelled):
        raise outcome
    return cast("dspy.Prediction", outcome)


async def answers(
    outcomes: AsyncGenerator[dspy.Prediction | BaseException, None], source: object
) -> AsyncGenerator[dspy.Prediction, None]:
    """The same for a map; its end is that of its source."""
    try:
        async with contextlib.aclosing(outcomes):
            async for outcome in outcomes:
                yield answer(outcome)
    finally:
        if isinstance(source, Generator):  # an async one is closed by the map
            source.close()
