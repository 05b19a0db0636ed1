"""What an error of an attempt means: for the breaker, for a retry, for the route. One table, by DSPy's types.

Called by the dispatcher after each attempt. The order matters: DSPy's subclasses stand before their parents.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from dspy.clients.errors import wrap_error
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

from promptside.pools.breaker import Outcome
from promptside.pools.errors import CircuitOpen, WorkerLost

__all__ = ["TABLE", "Verdict", "judge"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an error is taken.

    Attributes:
        outcome: For the breaker.
        retry: Whether the same request may be sent again, here or elsewhere.
        elsewhere: Whether another endpoint may answer what this one did not.
    """

    outcome: Outcome
    retry: bool
    elsewhere: bool


FAILURE = Verdict("failure", retry=True, elsewhere=True)
BUSY = Verdict("ignored", retry=True, elsewhere=True)
CREDENTIAL = Verdict("ignored", retry=False, elsewhere=True)
CALLER = Verdict("ignored", retry=False, elsewhere=False)

TABLE: tuple[tuple[type[LMError], Verdict], ...] = (
    (WorkerLost, BUSY),  # our own worker's end says nothing about the provider
    (CircuitOpen, CALLER),
    (LMRateLimitError, BUSY),
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


def judge(error: BaseException, model: str) -> tuple[BaseException, Verdict]:
    """The error as DSPy shows it to users, and its verdict.

    Args:
        error: What the attempt raised.
        model: For the message.
    """
    if isinstance(error, asyncio.CancelledError) or not isinstance(error, Exception):
        return error, CALLER
    public = wrap_error(error, model=model)
    verdict = next((verdict for kind, verdict in TABLE if isinstance(public, kind)), CALLER)
    if public is not error:
        public.__cause__ = error
    return public, verdict
