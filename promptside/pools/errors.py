"""The errors of LM pools. They derive from DSPy's too, so DSPy's own handling of LM errors knows them."""

from __future__ import annotations

from collections.abc import Sequence

import dspy

from promptside.errors import CircuitOpen, LMPoolError, PoolSaturated, QueueTimeout

__all__ = [
    "BudgetExceeded",
    "EnsembleFailed",
    "LMCallTimeout",
    "LMCircuitOpen",
    "LMPoolSaturated",
    "LMQueueTimeout",
    "NoLMLoaded",
    "PoolUnavailable",
    "TooFewDescriptors",
    "WorkerLost",
]


class BudgetExceeded(LMPoolError, dspy.LMError):
    """A budget of an LM pool is spent; nothing was sent, and nothing is retried or tried elsewhere.

    Attributes:
        kind: What the budget is of: ``"pool"``, ``"program"``, ``"session"`` or ``"run"``.
        label: Which one.
        exceeded: ``"cost"`` (US dollars), ``"tokens"`` or ``"calls"``.
        spent: So far, in that unit; of calls, those admitted now included.
        limit: The budget's.
    """

    default_code = "budget_exceeded"

    def __init__(self, kind: str, label: str, exceeded: str, spent: float, limit: float) -> None:
        self.kind = kind
        self.label = label
        self.exceeded = exceeded
        self.spent = spent
        self.limit = limit
        dspy.LMError.__init__(
            self,
            f"the budget of the {kind} {label!r} is spent: {exceeded} {spent:g} of {limit:g}; "
            f"for more, `pool.set_budget(Budget({exceeded}=...){'' if kind == 'pool' else f', {kind}={label!r}'})`",
        )


class LMCircuitOpen(CircuitOpen, LMPoolError, dspy.LMError):
    """Every endpoint that could answer the call has an open circuit.

    DSPy does not retry it. If the circuit opened during the call, the last failure is `__cause__`.
    """

    default_code = "circuit_open"

    def __init__(self, endpoints: tuple[str, ...], retry_after: float, *, model: str) -> None:
        super().__init__(endpoints, retry_after)
        self.model = model


class LMCallTimeout(LMPoolError, dspy.LMTimeoutError):
    """A try took longer than the `timeout` of its call. It says nothing of the endpoint, which may take its own."""

    default_code = "call_timeout"

    def __init__(self, seconds: float, *, model: str) -> None:
        dspy.LMTimeoutError.__init__(self, f"no answer within the call's timeout of {seconds:g} s", model=model)


class EnsembleFailed(LMPoolError, dspy.LMError):
    """Too few members of a vote, or of an ensemble of modules, answered. The last of their errors is `__cause__`.

    Attributes:
        failures: Name and error of each member that failed before the others were cancelled, as they are listed.
        answers: Members that had answered.
        quorum: Answers that were needed.
        retry_after: The longest wait that one of the errors asks for, in seconds; None if none does.
    """

    default_code = "ensemble_failed"

    def __init__(self, model: str, failures: tuple[tuple[str, Exception], ...], answers: int, quorum: int) -> None:
        self.failures = failures
        self.answers = answers
        self.quorum = quorum
        waits = [wait for _, error in failures if (wait := getattr(error, "retry_after", None)) is not None]
        names = ", ".join(f"{name}: {type(error).__name__}" for name, error in failures)  # their texts may hold keys
        message = f"{quorum} answers are needed, and too many members failed ({names})"
        dspy.LMError.__init__(self, message, model=model, retry_after=max(waits, default=None))


class LMPoolSaturated(PoolSaturated, LMPoolError, dspy.LMError):
    """An LM pool took no more calls: as many waited as may, its `max_queue`. Nothing was sent."""

    default_code = "pool_saturated"

    def __init__(self, pool: str, max_queue: int, *, model: str) -> None:
        super().__init__(pool, max_queue)
        self.model = model


class LMQueueTimeout(QueueTimeout, LMPoolError, dspy.LMError):
    """A call waited for an endpoint for as long as the pool's `queue_timeout`. Nothing was sent."""

    default_code = "queue_timeout"

    def __init__(self, pool: str, waited: float, *, model: str) -> None:
        super().__init__(pool, waited)
        self.model = model


class PoolUnavailable(LMPoolError, dspy.LMError):
    """The LM's pool does not take the call: it does not run, is not here, or its loop could never answer.

    `retry_after` is the seconds until the pool, which is being restarted, is expected to run; None where it is not.
    """

    default_code = "pool_unavailable"

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        dspy.LMError.__init__(self, message, retry_after=retry_after)


class WorkerLost(LMPoolError, dspy.LMTransportError):
    """The worker that made the attempt crashed, was killed or stopped; the provider may have done the work.

    Within a call it is retried as `RetryConfig` says.
    """

    default_code = "worker_lost"

    def __init__(self, message: str, *, model: str | None = None) -> None:
        dspy.LMTransportError.__init__(self, message, model=model)


class NoLMLoaded(LMPoolError):
    """A program was called, and no language model is set for it at any level.

    Attributes:
        program: Name of the program, or path of its actor.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        super().__init__(
            f"No LM is loaded for {program!r}. Load one, from the narrowest to the widest: for one call with "
            "`program.acall(lm=...)`, for a block with `with dspy.context(lm=...)`, for the program with "
            "`Program(..., lm=...)`, for the system with `promptside.programs.set_default_lm(system, lm)`; "
            "an LM is `pool.lm()` of an LMPool, or `dspy.LM('provider/model')`"
        )


class TooFewDescriptors(LMPoolError):
    """A pool was not started: this process may not open as many files and sockets as it could come to need.

    Attributes:
        limit: What the process may have open, `RLIMIT_NOFILE`.
        wanted: What it would have open at most.
    """

    def __init__(self, pool: str, workers: int, widths: Sequence[int], *, used: int, reserve: int, limit: int) -> None:
        self.limit = limit
        self.wanted = workers * sum(widths) + used + reserve
        connections, each = workers * sum(widths), " + ".join(map(str, widths))
        super().__init__(
            f"the LM pool {pool!r} may open {connections} connections (workers={workers} x max_connections={each}); "
            f"with {used} descriptors open now and {reserve} to spare it wants {self.wanted}, and this process may "
            f"open {limit} (RLIMIT_NOFILE): give fewer workers or a smaller Endpoint(max_connections=...), or raise "
            f"the limit with `ulimit -n {self.wanted}`"
        )
