"""The event types that promptside publishes, each with what it tells.

Publishers take their types from here; documents are generated from it. An application may publish types of its own:
the bus asks nothing of a type but that it is dotted words.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["CATALOGUE"]

CATALOGUE: Mapping[str, str] = MappingProxyType(
    {
        "actor.started": "An actor's `on_start` has returned; it takes messages.",
        "actor.stopped": "An actor ended in an orderly way; `on_stop` has run.",
        "actor.crashed": "An actor ended by an exception, a kill, the death of its process or a missed heartbeat.",
        "actor.restarted": "A supervisor started an actor again, under the same reference and a higher incarnation.",
        "supervisor.gave_up": "A supervisor needed more restarts than its intensity allows, and ended itself.",
        "message.dead": "A message was dropped, expired or could not be delivered.",
        "module.started": "A program, or a DSPy module within it, began a call.",
        "module.stopped": "A DSPy module returned a prediction.",
        "module.failed": "A DSPy module raised.",
        "tool.started": "A tool began a call.",
        "tool.stopped": "A tool returned.",
        "tool.failed": "A tool raised.",
        "sandbox.started": "A code sandbox is ready to execute.",
        "sandbox.stopped": "A code sandbox ended in an orderly way.",
        "sandbox.failed": "A code sandbox died, or was killed for exceeding its time or memory.",
        "sandbox.run.started": "A code sandbox began to run a piece of code.",
        "sandbox.run.stopped": "A code sandbox ran a piece of code to its end.",
        "sandbox.run.failed": "A piece of code in a sandbox raised, or the sandbox could not run it.",
        "lm.call.started": "A call of a language model was accepted; it covers every attempt.",
        "lm.call.stopped": "A call of a language model was answered, by an endpoint or by a cache.",
        "lm.call.failed": "A call of a language model ended without an answer.",
        "lm.attempt.started": "One request was sent to one endpoint.",
        "lm.attempt.stopped": "One request to one endpoint was answered.",
        "lm.attempt.failed": "One request to one endpoint failed; the call may go on with another.",
        "lm.stream.chunk": "A piece of a streamed answer arrived.",
        "breaker.opened": "A circuit breaker opened; calls of its endpoint fail fast.",
        "breaker.half_opened": "A circuit breaker lets probes through.",
        "breaker.closed": "A circuit breaker closed; calls flow again.",
        "limiter.changed": "A concurrency limiter moved its limit or its Retry-After gate.",
        "pool.saturated": "A pool had no worker free and no room left in its queue.",
        "session.opened": "A session got its worker.",
        "session.closed": "A session ended, by request or by its time to live.",
        "session.lost": "A session's worker died, restarted or was recycled.",
        "worker.recycled": "A pool replaced a worker for its age, calls or memory.",
        "evaluation.started": "An evaluation began.",
        "evaluation.example": "One example was scored.",
        "evaluation.stopped": "An evaluation ended with a score.",
        "evaluation.failed": "An evaluation was aborted.",
        "optimizer.started": "An optimization run began, or was resumed.",
        "optimizer.step": "An optimizer finished one of its iterations.",
        "optimizer.candidate_proposed": "An optimizer proposed a candidate program.",
        "optimizer.candidate_evaluated": "A candidate program has its score.",
        "optimizer.best": "A candidate is the best so far.",
        "optimizer.stopped": "An optimization run ended.",
        "sink.gap": "A sink lost events; the record stands in their place in that sink's own log, and nowhere else.",
    }
)
"""Each type of event with its description."""
