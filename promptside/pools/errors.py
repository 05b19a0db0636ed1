"""The errors of LM pools. They derive from DSPy's too, so DSPy's own handling of LM errors knows them."""

from __future__ import annotations

import dspy

from promptside.errors import LMPoolError

__all__ = ["CircuitOpen", "NoLMLoaded", "PoolUnavailable", "WorkerLost"]


class CircuitOpen(LMPoolError, dspy.LMError):
    """Every endpoint that could serve the call has an open circuit.

    Not among the errors that DSPy retries: the pool knows when it is worth trying again. When the circuit opened during
    the call, the last failure is `__cause__`.

    Attributes:
        retry_after: Seconds until the first of the circuits lets a probe through.
        endpoints: Names of the endpoints with open circuits.
    """

    default_code = "circuit_open"

    def __init__(self, model: str, endpoints: tuple[str, ...], retry_after: float) -> None:
        self.endpoints = endpoints
        message = f"the circuit of {', '.join(endpoints)} is open after too many failures"
        dspy.LMError.__init__(
            self, f"{message}; try again in {retry_after:.3g} s", model=model, retry_after=retry_after
        )


class PoolUnavailable(LMPoolError, dspy.LMError):
    """The LM's pool does not take the call: it does not run, is not here, or its loop could never answer."""

    default_code = "pool_unavailable"

    def __init__(self, message: str) -> None:
        dspy.LMError.__init__(self, message)


class WorkerLost(LMPoolError, dspy.LMTransportError):
    """The worker that made the attempt crashed, was killed or stopped; the provider may have done the work.

    Within a call it is retried as `RetryPolicy` says.
    """

    default_code = "worker_lost"

    def __init__(self, message: str, *, model: str | None = None) -> None:
        dspy.LMTransportError.__init__(self, message, model=model)


class NoLMLoaded(LMPoolError):
    """A program was called, and no language model is set for it at any level.

    Attributes:
        program: Path of the program's actor.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            f"No LM is loaded for {program!r}: pass lm= when the program is started or called, "
            "or enter `with dspy.context(lm=...)` around the call"
        )
