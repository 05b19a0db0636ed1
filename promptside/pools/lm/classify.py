"""`classify`: the meaning of an attempt's error for the breaker, for a retry and for the route, in one table.

Called by the dispatcher after each attempt. The order matters: subclasses stand before their parents.
"""

from __future__ import annotations

import errno
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

from promptside.pools.errors import (
    EnsembleFailed,
    LMCallTimeout,
    LMCircuitOpen,
    LMPoolSaturated,
    LMQueueTimeout,
    WorkerLost,
)
from promptside.pools.resilience.breaker import Outcome

__all__ = ["CALLER", "TABLE", "ErrorClass", "classify"]


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """The meaning of an error.

    Attributes:
        breaker: The outcome that the breaker records.
        retry: Whether the same endpoint may be tried again.
        failover: Whether another endpoint may answer.
        rate_limited: Whether the provider refused one request too many; the limiter handles it.
    """

    breaker: Outcome
    retry: bool
    failover: bool
    rate_limited: bool = False

    @property
    def transient(self) -> bool:
        """Whether something is not available, and nothing is wrong with the request itself."""
        return self.retry or self.failover


FAILURE = ErrorClass("failure", retry=True, failover=True)
BUSY = ErrorClass("ignored", retry=True, failover=True)
LIMITED = ErrorClass("ignored", retry=True, failover=True, rate_limited=True)
LATE = ErrorClass("failure", retry=False, failover=True)  # it may have been answered, and paid for, all the same
LOST = ErrorClass("ignored", retry=True, failover=False)  # the end of our own worker says nothing about the endpoint
CREDENTIAL = ErrorClass("ignored", retry=False, failover=True)
CALLER = ErrorClass("ignored", retry=False, failover=False)

TABLE: tuple[tuple[type[LMError], ErrorClass], ...] = (
    (WorkerLost, LOST),
    (LMCallTimeout, BUSY),
    (LMCircuitOpen, BUSY),
    (LMPoolSaturated, BUSY),
    (LMQueueTimeout, BUSY),
    (LMRateLimitError, LIMITED),
    (LMAuthError, CREDENTIAL),
    (LMBillingError, CREDENTIAL),
    (LMInvalidRequestError, CALLER),  # context window, unknown model, content policy, 400, 404, 422
    (LMTimeoutError, LATE),
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

OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""What this machine has run out of, where no connection can be made: descriptors, memory, ports."""


def classify(error: Exception) -> ErrorClass:
    """The class of an error of an attempt, as DSPy types it, or of a vote."""
    if isinstance(error, EnsembleFailed):  # a member may answer later, or another endpoint may
        each = [classify(failure) for _, failure in error.failures]
        return ErrorClass("ignored", retry=any(one.retry for one in each), failover=any(one.failover for one in each))
    if type(error) is LMProviderError and 400 <= (getattr(error, "status", None) or 0) < 500:
        return CALLER  # a refusal without a type of its own: 405, 451
    if isinstance(error, LMTimeoutError) and error.status:
        return FAILURE  # an answer all the same: 408, 504
    if _is_our_own(error):
        return BUSY
    return next((found for kind, found in TABLE if isinstance(error, kind)), CALLER)


def _is_our_own(error: BaseException | None) -> bool:
    """Whether it comes from a lack of this machine's own, which says nothing about the endpoint."""
    seen: list[BaseException] = []  # an error that was raised again may be behind itself
    while error is not None and not any(error is each for each in seen):
        if isinstance(error, OSError) and error.errno in OUR_OWN:
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False
