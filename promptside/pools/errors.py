"""The errors of LM pools. They derive from DSPy's too, so DSPy's own handling of LM errors knows them."""

from __future__ import annotations

from dspy.utils.exceptions import LMError, LMTransportError

from promptside.errors import LMPoolError

__all__ = ["CircuitOpen", "NoLMLoaded", "WorkerLost"]


class CircuitOpen(LMPoolError, LMError):
    """Every endpoint that could serve the call has an open circuit; nothing was sent.

    Not among the errors that DSPy retries: the pool knows when it is worth trying again.

    Attributes:
        retry_after: Seconds until the first of the circuits lets a probe through.
        endpoints: Names of the endpoints with open circuits.
    """

    default_code = "circuit_open"

    def __init__(self, model: str, endpoints: tuple[str, ...], retry_after: float) -> None:
        self.endpoints = endpoints
        LMError.__init__(
            self,
            f"the circuit is open for {', '.join(endpoints)} after too many failures; nothing was sent; "
            f"try again in {retry_after:.3g} s",
            model=model,
            retry_after=retry_after,
        )


class WorkerLost(LMPoolError, LMTransportError):
    """The worker that ran the call crashed or was killed; the provider may have done the work. Retried in budget."""

    default_code = "worker_lost"

    def __init__(self, message: str, *, model: str | None = None) -> None:
        LMTransportError.__init__(self, message, model=model)


class NoLMLoaded(LMPoolError):
    """A program was called, and no language model is set for it at any level."""

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            f"No LM is loaded for {program!r}: pass lm= when the program is started or called, "
            "or enter `with dspy.context(lm=...)` around the call"
        )
