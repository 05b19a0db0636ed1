"""What an error of an attempt means: for the breaker, for a retry, for the route. One table, by DSPy's types.

Called by the dispatcher after each attempt. The order matters: DSPy's subclasses stand before their parents.
"""

from __future__ import annotations

from dataclasses import dataclass

from dspy.utils.exceptions import (
    LMAuthError,
    LMBillingError,
    LMCollectionLimitError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMLockTimeoutError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMStreamAssemblyError,
    LMTimeoutError,
    LMTransportError,
    LMUnexpectedError,
    LMUnsupportedFeatureError,
)

from promptside.pools.errors import EnsembleFailed, LMCircuitOpen, LMPoolSaturated, LMQueueTimeout, WorkerLost
from promptside.pools.resilience.breaker import Outcome

__all__ = ["TABLE", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an error is taken.

    Attributes:
        outcome: For the breaker.
        retry: Whether the same endpoint may be tried again.
        elsewhere: Whether another endpoint may answer what this one did not.
        limited: Whether it was refused as one request too many: the limiter's affair.
    """

    outcome: Outcome
    retry: bool
    elsewhere: bool
    limited: bool = False

    @property
    def outage(self) -> bool:
        """Whether it says that something is not available, and nothing of the request itself."""
        return self.retry or self.elsewhere


FAILURE = Verdict("failure", retry=True, elsewhere=True)
BUSY = Verdict("ignored", retry=True, elsewhere=True)
LIMITED = Verdict("ignored", retry=True, elsewhere=True, limited=True)
LOST = Verdict("ignored", retry=True, elsewhere=False)  # our own worker's end says nothing about the endpoint
CREDENTIAL = Verdict("ignored", retry=False, elsewhere=True)
CALLER = Verdict("ignored", retry=False, elsewhere=False)

TABLE: tuple[tuple[type[LMError], Verdict], ...] = (
    (WorkerLost, LOST),
    (LMCircuitOpen, BUSY),
    (LMPoolSaturated, BUSY),
    (LMQueueTimeout, BUSY),
    (LMRateLimitError, LIMITED),
    (LMAuthError, CREDENTIAL),
    (LMBillingError, CREDENTIAL),
    (LMInvalidRequestError, CALLER),  # context window, unknown model, content policy, 400, 404, 422
    (LMTimeoutError, FAILURE),
    (LMServerError, FAILURE),
    (LMTransportError, FAILURE),
    (LMProviderError, FAILURE),  # malformed or empty answers
    (LMStreamAssemblyError, FAILURE),
    (LMLockTimeoutError, BUSY),
    (LMConfigurationError, CREDENTIAL),
    (LMUnsupportedFeatureError, CALLER),
    (LMCollectionLimitError, CALLER),
    (LMUnexpectedError, CALLER),
)
"""DSPy's public error types, first match wins; any other is the caller's."""


def judge(error: Exception) -> Verdict:
    """The verdict on an error of an attempt, as DSPy types it, or of an ensemble."""
    if isinstance(error, EnsembleFailed):  # where one of its members may answer later, or another one may
        each = [judge(failure) for _, failure in error.failures]
        return Verdict("ignored", retry=any(one.retry for one in each), elsewhere=any(one.elsewhere for one in each))
    verdict = next((verdict for kind, verdict in TABLE if isinstance(error, kind)), CALLER)
    if type(error) is LMProviderError and 400 <= (getattr(error, "status", None) or 0) < 500:
        return CALLER  # a refusal without a type of its own: 405, 451
    return verdict
