"""The event types that promptside publishes, each with what it tells and when.

Publishers take their types from here, and `make reference` its document. An application may publish types of its own:
the bus asks nothing of a type but that it is dotted words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["CATALOGUE", "FIELDS", "VERSION", "EventType"]

VERSION = 1
"""Of the catalogue. It is raised when a type or a field goes or changes its meaning; new ones do not raise it."""


@dataclass(frozen=True, slots=True)
class EventType:
    """A type of event.

    Attributes:
        description: When it is published.
        fields: Names of what its `data` may hold, in one text; None for a reserved type, which nobody publishes yet.
    """

    description: str
    fields: str | None = field(default=None)


_USAGE = "input_tokens output_tokens cache_read_tokens cache_write_tokens reasoning_tokens cost"

CATALOGUE: Mapping[str, EventType] = MappingProxyType(
    {
        "actor.started": EventType("An actor's `on_start` has returned; it takes messages.", "class"),
        "actor.stopped": EventType("An actor ended in an orderly way; `on_stop` has run.", "reason"),
        "actor.crashed": EventType(
            "An actor ended by an exception, a kill, the death of its process or a missed heartbeat.",
            "error message state",
        ),
        "actor.restarted": EventType(
            "A supervisor started an actor again, under the same reference and a higher incarnation.",
            "reason",
        ),
        "supervisor.gave_up": EventType(
            "A supervisor needed more restarts than its intensity allows, and ended itself.",
            "error child",
        ),
        "message.dead": EventType("A message was dropped, expired or could not be delivered.", "method reason"),
        "module.started": EventType(
            "A program, or a DSPy module within it, began a call.",
            "module name remote_parent inputs",
        ),
        "module.stopped": EventType("A DSPy module returned a prediction.", "module name seconds outputs"),
        "module.failed": EventType("A DSPy module raised.", "module name seconds error retry_after message"),
        "program.swapped": EventType(
            "A program has a new version; calls that come in from now on get it.", "version change"
        ),
        "pipeline.started": EventType("A pipeline began a call.", "pipeline remote_parent inputs"),
        "pipeline.stopped": EventType("A pipeline returned a prediction.", "pipeline seconds outputs"),
        "pipeline.failed": EventType(
            "A call of a pipeline failed, by a stage or by a field that is missing.",
            "pipeline seconds error retry_after message",
        ),
        "tool.started": EventType("A tool began a call.", "tool inputs"),
        "tool.stopped": EventType("A tool returned.", "tool seconds outputs"),
        "tool.failed": EventType("A tool raised.", "tool seconds error retry_after message"),
        "sandbox.started": EventType("A code sandbox is ready to execute."),
        "sandbox.stopped": EventType("A code sandbox ended in an orderly way."),
        "sandbox.failed": EventType("A code sandbox died, or was killed for exceeding its time or memory."),
        "sandbox.run.started": EventType("A code sandbox began to run a piece of code.", "sandbox inputs"),
        "sandbox.run.stopped": EventType("A code sandbox ran a piece of code to its end.", "sandbox seconds outputs"),
        "sandbox.run.failed": EventType(
            "A piece of code in a sandbox raised, or the sandbox could not run it.",
            "sandbox seconds error retry_after message",
        ),
        "lm.call.started": EventType(
            "A call of a language model was accepted; it covers every attempt.",
            "model remote_parent inputs",
        ),
        "lm.call.stopped": EventType(
            "A call of a language model was answered, by an endpoint or by a cache.",
            f"model seconds attempts cache_hit shared {_USAGE} answers member outputs",
        ),
        "lm.call.failed": EventType(
            "A call of a language model ended without an answer.",
            f"model seconds attempts {_USAGE} error retry_after message",
        ),
        "lm.attempt.started": EventType("One request was sent to one endpoint.", "endpoint model worker"),
        "lm.attempt.stopped": EventType(
            "One request to one endpoint was answered.",
            f"endpoint model worker seconds {_USAGE}",
        ),
        "lm.attempt.failed": EventType(
            "One request to one endpoint failed; the call may go on with another.",
            "endpoint model worker seconds error retry_after message",
        ),
        "lm.stream.chunk": EventType(
            "A piece of a streamed answer arrived.",
            "endpoint model worker index characters outputs",
        ),
        "breaker.opened": EventType("A circuit breaker opened; calls of its endpoint fail fast.", "endpoint before"),
        "breaker.half_opened": EventType("A circuit breaker lets probes through.", "endpoint before"),
        "breaker.closed": EventType("A circuit breaker closed; calls flow again.", "endpoint before"),
        "limiter.changed": EventType(
            "A concurrency limiter was cut by a refusal, which also closed its gate; or it has grown by a quarter.",
            "endpoint limit closed_for",
        ),
        "pool.saturated": EventType(
            "A pool refused a call, the first since its queue last had room.",
            "waiting max_queue",
        ),
        "session.opened": EventType("A session got its worker."),
        "session.closed": EventType("A session ended, by request or by its time to live."),
        "session.lost": EventType("A session's worker died, restarted or was recycled."),
        "worker.recycled": EventType("A pool replaced a worker for its age, calls or memory."),
        "evaluation.started": EventType("An evaluation began.", "examples"),
        "evaluation.example": EventType(
            "One example was scored, or failed; with the figures so far.",
            "index score seconds error done failed average",
        ),
        "evaluation.stopped": EventType("An evaluation ended with a score.", "examples seconds score"),
        "evaluation.failed": EventType("An evaluation was aborted.", "examples seconds error retry_after message"),
        "optimizer.started": EventType("An optimization run began, or was resumed."),
        "optimizer.step": EventType("An optimizer finished one of its iterations."),
        "optimizer.candidate_proposed": EventType("An optimizer proposed a candidate program."),
        "optimizer.candidate_evaluated": EventType("A candidate program has its score."),
        "optimizer.best": EventType("A candidate is the best so far."),
        "optimizer.stopped": EventType("An optimization run ended."),
        "sink.gap": EventType(
            "A sink lost events; the record stands in their place in that sink's own log, and nowhere else.",
            "first_seq last_seq count reason",
        ),
    }
)
"""Each type of event with its description."""

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "answers": "Of an ensemble: members that answered.",
        "attempts": "Requests that were sent to endpoints for this call.",
        "average": "Mean score in percent of the examples so far that did not fail.",
        "before": "The state the breaker was in.",
        "cache_hit": "Whether a cache answered.",
        "cache_read_tokens": "Of the input tokens, those that the provider had cached.",
        "cache_write_tokens": "Of the input tokens, those that the provider has cached now.",
        "characters": "Length of the piece.",
        "child": "Id of the child that failed last.",
        "change": "What made the version: `swap_state`, `swap generate`, `rollback to 1`.",
        "class": "Name of the actor's class.",
        "closed_for": "Seconds for which its gate lets nothing through.",
        "cost": "In US dollars, where a price is known.",
        "count": "Events that were lost.",
        "done": "Examples so far.",
        "endpoint": "Name of the endpoint.",
        "error": "Type of the exception, or `killed`; of a supervisor that gave up, its message.",
        "examples": "Number of examples.",
        "failed": "Examples so far that failed.",
        "first_seq": "The first event that was lost, by its `seq`.",
        "index": "Number of the piece, or of the example in its devset, from 0.",
        "input_tokens": "As the provider counted them.",
        "inputs": "Content: what was passed; see `Content`.",
        "last_seq": "The last event that was lost, by its `seq`.",
        "member": "Of an ensemble: the endpoint whose answer was taken; none when the answer is made of several.",
        "limit": "Requests that may be under way.",
        "max_queue": "Calls that may wait.",
        "message": "Text of the error; of calls and attempts, content.",
        "method": "Name of the method the message was for.",
        "model": "As the endpoint names it.",
        "module": "Name of the module's class.",
        "name": "Where the module is within its program: `react`, `extract.predict`.",
        "output_tokens": "As the provider counted them.",
        "outputs": "Content: what was returned; see `Content`.",
        "pipeline": "Name of the pipeline.",
        "reason": "Why: `normal`, `shutdown`, `killed`, another word, or an exception as text.",
        "reasoning_tokens": "Of the output tokens, those of the model's reasoning.",
        "remote_parent": "Of a root: the span of the caller that its trace was taken from.",
        "retry_after": "Seconds after which it may be tried again, where the error says so.",
        "sandbox": "Name of the interpreter's class.",
        "score": "Of an evaluation in percent; of an example as its metric said.",
        "seconds": "From the start to this end.",
        "shared": "Whether it was given the answer of an identical call that was under way.",
        "state": "State the actor was in.",
        "tool": "Name of the tool.",
        "version": "Its number.",
        "waiting": "Calls that wait.",
        "worker": "Path of the worker that made the attempt.",
    }
)
"""What the words in `EventType.fields` mean."""
