"""`classify`: the meaning of an attempt's error for the breaker, for a retry and for the route, in one table.

Called by the dispatcher after each attempt. The order matters: subclasses stand before their parents.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

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
    LMUnsupportedFeatureError,
    LMUnsupportedModelError,
)

from promptside.pools.clients.client_errors import raised_from
from promptside.pools.clients.judge import EMPTY_ANSWER
from promptside.pools.errors import (
    BudgetExceeded,
    EnsembleFailed,
    LMCallTimeout,
    LMCircuitOpen,
    LMPoolSaturated,
    LMQueueTimeout,
    PoolUnavailable,
    WorkerLost,
)
from promptside.pools.resilience.breaker import Outcome

__all__ = ["ELSEWHERE", "STATUSES", "TABLE", "ErrorClass", "classify"]


Name = Literal["failure", "late", "busy", "limited", "lost", "elsewhere", "empty", "unknown", "caller"]


@dataclass(frozen=True, slots=True)
class ErrorClass:
    """The meaning of an error.

    Attributes:
        name: For events.
        breaker: The outcome that the breaker records.
        retry: Whether the same endpoint may be tried again.
        failover: Whether another endpoint may answer.
        rate_limited: Whether the provider refused one request too many; the limiter handles it.
        of_request: Whether it may follow from the request: for a batch it is then the answer, not an outage, and within
            a call no endpoint is asked more than twice.
    """

    name: Name
    breaker: Outcome
    retry: bool
    failover: bool
    rate_limited: bool = False
    of_request: bool = False

    @property
    def final(self) -> bool:
        """Whether no further attempt may help."""
        return not self.retry and not self.failover


FAILURE = ErrorClass("failure", "failure", retry=True, failover=True)
BUSY = ErrorClass("busy", "ignored", retry=True, failover=True)
LIMITED = ErrorClass("limited", "ignored", retry=True, failover=True, rate_limited=True)
LATE = ErrorClass("late", "failure", retry=False, failover=True)  # it may have been answered, and paid for
LOST = ErrorClass("lost", "ignored", retry=True, failover=False)  # our own worker's end says nothing of the endpoint
UNUSABLE = ErrorClass("elsewhere", "ignored", retry=False, failover=True)  # for every request: key, account, model
ELSEWHERE = ErrorClass("elsewhere", "ignored", retry=False, failover=True, of_request=True)
EMPTY = ErrorClass("empty", "ignored", retry=True, failover=True, of_request=True)
UNKNOWN = ErrorClass("unknown", "ignored", retry=True, failover=True, of_request=True)
CALLER = ErrorClass("caller", "ignored", retry=False, failover=False, of_request=True)

TABLE: tuple[tuple[type[LMError], ErrorClass], ...] = (
    (WorkerLost, LOST),
    (LMCallTimeout, ELSEWHERE),
    (LMCircuitOpen, BUSY),
    (LMPoolSaturated, BUSY),
    (LMQueueTimeout, BUSY),
    (PoolUnavailable, CALLER),
    (BudgetExceeded, CALLER),
    (LMRateLimitError, LIMITED),
    (LMAuthError, UNUSABLE),
    (LMBillingError, UNUSABLE),
    (LMUnsupportedModelError, UNUSABLE),
    (LMInvalidRequestError, CALLER),  # context window, content policy; by its status see `STATUSES`
    (LMTimeoutError, LATE),
    (LMServerError, FAILURE),
    (LMTransportError, FAILURE),
    (LMProviderError, FAILURE),  # an answer that is none
    (LMStreamAssemblyError, FAILURE),
    (LMLockTimeoutError, BUSY),
    (LMConfigurationError, UNUSABLE),
    (LMUnsupportedFeatureError, ELSEWHERE),
    (LMCollectionLimitError, CALLER),
)
"""DSPy's public error types, first match wins; any other is `UNKNOWN`."""

STATUSES: Mapping[int, ErrorClass] = {
    400: CALLER,
    404: UNUSABLE,
    410: UNUSABLE,
    413: CALLER,
    414: CALLER,
    415: CALLER,
    422: CALLER,
    431: CALLER,
}
"""Refusals that DSPy has no type for, by their status; any other of 400 to 499 is `ELSEWHERE`: 405, 409, 425, 499..."""

OUR_OWN = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
"""What this machine has run out of, where no connection can be made: descriptors, memory, ports."""


def classify(error: Exception) -> ErrorClass:
    """The class of an error of an attempt, as DSPy types it, or of a vote."""
    if isinstance(error, EnsembleFailed):  # a member may answer later, or another endpoint may
        each = [classify(failure) for _, failure in error.failures]
        retry, failover = any(one.retry for one in each), any(one.failover for one in each)
        name: Name = "busy" if retry or failover else "caller"
        of_request = all(one.of_request for one in each)
        return ErrorClass(name, "ignored", retry=retry, failover=failover, of_request=of_request)
    if isinstance(error, LMTimeoutError) and error.status:
        return FAILURE  # an answer all the same: 408, 504
    if any(isinstance(each, OSError) and each.errno in OUR_OWN for each in raised_from(error)):
        return BUSY
    found = next((means for kind, means in TABLE if isinstance(error, kind)), UNKNOWN)
    if type(error) in (LMInvalidRequestError, LMProviderError):
        if getattr(error, "provider_code", None) == EMPTY_ANSWER:
            return EMPTY
        status = getattr(error, "status", None) or 0
        return STATUSES.get(status, ELSEWHERE) if 400 <= status < 500 else found
    return found
