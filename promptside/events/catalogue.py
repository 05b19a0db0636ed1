"""`CATALOGUE`: the event types that promptside publishes, each with its data.

An operation publishes ``X.started``, and then ``X.stopped`` if it **ended well** or ``X.failed`` if it failed or was
cancelled. An application may publish types of its own: any dotted words. `make reference` writes the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["BREAKER_EVENTS", "CATALOGUE", "FIELDS", "VERSION", "EventType"]

VERSION = 1
"""Version of the catalogue; raised when a type or a field is removed or changes its meaning, not for new ones."""


@dataclass(frozen=True, slots=True)
class EventType:
    """A type of event.

    Attributes:
        description: When it is published.
        fields: Names of the fields that its `data` may have, in one text; None for a reserved type, not published yet.
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
        "module.stopped": EventType(
            "A DSPy module ended well: it returned a prediction.", "module name seconds outputs"
        ),
        "module.failed": EventType("A DSPy module raised.", "module name seconds error retry_after message"),
        "program.swapped": EventType(
            "A program has a new version; calls that come in from now on get it.", "version change"
        ),
        "pipeline.started": EventType("A pipeline began a call.", "pipeline remote_parent inputs"),
        "pipeline.stopped": EventType("A pipeline ended well: it returned a prediction.", "pipeline seconds outputs"),
        "pipeline.failed": EventType(
            "A call of a pipeline failed, by a stage or by a field that is missing.",
            "pipeline seconds error retry_after message",
        ),
        "tool.started": EventType("A tool began a call.", "tool inputs"),
        "tool.stopped": EventType("A tool ended well: it returned.", "tool seconds outputs"),
        "tool.failed": EventType("A tool raised.", "tool seconds error retry_after message"),
        "sandbox.started": EventType("A code sandbox is ready to execute."),
        "sandbox.stopped": EventType("A code sandbox ended in an orderly way."),
        "sandbox.failed": EventType("A code sandbox died, or was killed for exceeding its time or memory."),
        "sandbox.run.started": EventType("A code sandbox began to run a piece of code.", "sandbox inputs"),
        "sandbox.run.stopped": EventType(
            "A code sandbox ended well: it ran a piece of code to its end.", "sandbox seconds outputs"
        ),
        "sandbox.run.failed": EventType(
            "A piece of code in a sandbox raised, or the sandbox could not run it.",
            "sandbox seconds error retry_after message",
        ),
        "lm.call.started": EventType(
            "A call of a language model was accepted; it covers every attempt.",
            "model remote_parent inputs",
        ),
        "lm.call.stopped": EventType(
            "A call of a language model ended well: an endpoint or a cache answered.",
            f"model endpoint response_model seconds attempts cache_hit shared {_USAGE} answers member outputs",
        ),
        "lm.call.failed": EventType(
            "A call of a language model ended without an answer.",
            f"model endpoint response_model seconds attempts {_USAGE} error retry_after message",
        ),
        "lm.attempt.started": EventType("One request was sent to one endpoint.", "endpoint model worker"),
        "lm.attempt.stopped": EventType(
            "One request to one endpoint ended well: it was answered.",
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
        "breaker.opened": EventType("A circuit breaker opened; calls to its endpoint fail fast.", "endpoint before"),
        "breaker.half_opened": EventType("A circuit breaker lets probes through.", "endpoint before"),
        "breaker.closed": EventType("A circuit breaker closed; calls flow again.", "endpoint before"),
        "limiter.changed": EventType(
            "The limiter of an endpoint has learned what the provider takes: by a refusal, or that it is more.",
            "endpoint limit closed_for rate known reason",
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
            "One example was scored, or failed; with the totals so far.",
            "index score seconds error done failed average",
        ),
        "evaluation.stopped": EventType("An evaluation ended well, with a score.", "examples seconds score"),
        "evaluation.failed": EventType("An evaluation was aborted.", "examples seconds error retry_after message"),
        "optimizer.started": EventType("An optimization run began, or was resumed."),
        "optimizer.step": EventType("An optimizer finished one of its iterations."),
        "optimizer.candidate_proposed": EventType("An optimizer proposed a candidate program."),
        "optimizer.candidate_evaluated": EventType("A candidate program has its score."),
        "optimizer.best": EventType("A candidate is the best so far."),
        "optimizer.stopped": EventType("An optimization run ended well."),
        "sink.gap": EventType(
            "A sink lost events; the record is in that sink's own log alone, in their place.",
            "first_seq last_seq count reason",
        ),
    }
)
"""Each type of event with its description."""

BREAKER_EVENTS: Mapping[str, str] = MappingProxyType(
    {"closed": "breaker.closed", "half_open": "breaker.half_opened", "open": "breaker.opened"}
)
"""The type that a circuit breaker publishes for each state that it enters."""

FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "answers": "Members of a vote that answered.",
        "attempts": "Requests sent to endpoints for this call.",
        "average": "Mean score in percent of the examples so far that did not fail.",
        "before": "The state the breaker was in.",
        "cache_hit": "Whether a cache answered.",
        "cache_read_tokens": "Input tokens that the provider had cached.",
        "cache_write_tokens": "Input tokens that the provider has cached now.",
        "characters": "Length of the piece.",
        "child": "Id of the child that failed last.",
        "change": "How the version was made: `swap_state`, `swap generate`, `rollback to 1`.",
        "class": "Name of the actor's class.",
        "closed_for": "Seconds for which it lets nothing through.",
        "cost": "In US dollars, where a price is known.",
        "count": "Events that were lost.",
        "done": "Examples so far.",
        "endpoint": "Name of the endpoint.",
        "error": "Type of the exception, or `killed`; for a supervisor that gave up, its message.",
        "examples": "Number of examples.",
        "failed": "Examples so far that failed.",
        "first_seq": "`seq` of the first lost event.",
        "index": "Number of the piece, or of the example in its devset, from 0.",
        "input_tokens": "As the provider counted them.",
        "inputs": "Content: the arguments; see `Content`.",
        "last_seq": "`seq` of the last lost event.",
        "member": "Endpoint of a vote whose answer was taken; missing when the answer is made of several.",
        "known": "Requests a second that the provider was found to take; None until it has refused one.",
        "limit": "Requests that may be under way.",
        "max_queue": "Calls that may wait.",
        "message": "Text of the error; for calls and attempts it is content.",
        "method": "Name of the method the message was for.",
        "model": "As the endpoint names it.",
        "module": "Name of the module's class.",
        "name": "Path of the module within its program: `react`, `extract.predict`.",
        "output_tokens": "As the provider counted them.",
        "outputs": "Content: the result; see `Content`.",
        "pipeline": "Name of the pipeline.",
        "rate": "Requests a second that are sent while calls wait.",
        "reason": "Why: `normal`, `shutdown`, `killed`, another word, or an exception as text.",
        "reasoning_tokens": "Output tokens of the model's reasoning.",
        "remote_parent": "The caller's span, for the root of a tree that joined the caller's trace.",
        "response_model": "The endpoint's model that answered; `model` is the one that was asked for.",
        "retry_after": "Seconds after which it may be tried again, where the error says so.",
        "sandbox": "Name of the interpreter's class.",
        "score": "In percent for an evaluation; for an example as its metric returned it.",
        "seconds": "Seconds from the start to the end.",
        "shared": "Whether the answer is that of an identical call that was under way.",
        "state": "State the actor was in.",
        "tool": "Name of the tool.",
        "version": "Number of the version.",
        "waiting": "Calls that were waiting.",
        "worker": "Path of the worker that made the attempt.",
    }
)
"""The meaning of each name in `EventType.fields`."""
