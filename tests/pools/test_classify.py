"""`promptside.pools.lm.classify`: what each error means. Every error type of DSPy's is named here."""

from __future__ import annotations

import errno
from typing import Any

import dspy.utils.exceptions
import pytest
from dspy.lm15 import ServerError
from dspy.utils.exceptions import LMError, LMTimeoutError, LMTransportError, is_retryable_lm_error

from promptside.pools import (
    BreakerConfig,
    BudgetExceeded,
    Endpoint,
    EnsembleFailed,
    LMCallTimeout,
    LMCircuitOpen,
    LMPoolSaturated,
    LMQueueTimeout,
    PoolUnavailable,
    WorkerLost,
    protect,
)
from promptside.pools.lm.classify import TABLE, classify
from tests.support.pools import running

MEANS = {
    # failure: the breaker counts it, and the call goes on elsewhere
    "LMTimeoutError": "late",
    # and again
    "LMServerError": "trip",
    "LMTransportError": "trip",
    "LMProviderError": "trip",
    "LMStreamAssemblyError": "trip",
    # again, but nothing is wrong with the provider
    "LMRateLimitError": "limit",
    "LMLockTimeoutError": "gate",
    "LMCallTimeout": "gate",
    "LMCircuitOpen": "gate",
    "LMPoolSaturated": "gate",
    "LMQueueTimeout": "gate",
    "WorkerLost": "lost",
    # not here again, perhaps elsewhere
    "LMAuthError": "credential",
    "LMBillingError": "credential",
    "LMConfigurationError": "credential",
    "LMNotConfiguredError": "credential",
    # the caller's own
    "LMError": "caller",
    "LMInvalidRequestError": "caller",
    "ContextWindowExceededError": "caller",
    "LMUnsupportedModelError": "caller",
    "LMUnsupportedFeatureError": "caller",
    "LMCollectionLimitError": "caller",
    "LMUnexpectedError": "caller",
    "PoolUnavailable": "caller",
    "BudgetExceeded": "caller",
    "EnsembleFailed": "caller",
}
CLASSES = {
    "trip": ("failure", True, True),
    "late": ("failure", False, True),
    "gate": ("ignored", True, True),
    "limit": ("ignored", True, True),
    "lost": ("ignored", True, False),
    "credential": ("ignored", False, True),
    "caller": ("ignored", False, False),
}


def families(base: type[LMError]) -> dict[str, type[LMError]]:
    """The class and all below it that DSPy or the pools define, by name."""
    found = {base.__name__: base}
    for kind in base.__subclasses__():
        if kind.__module__.startswith(("dspy.", "promptside.")):
            found |= families(kind)
    return found


KINDS = families(LMError)


def make(kind: type[LMError], **facts: Any) -> LMError:
    if kind is LMCallTimeout:
        return LMCallTimeout(1.0, model="model")
    if kind is LMCircuitOpen:
        return LMCircuitOpen(("endpoint",), 1.0, model="model")
    if kind is BudgetExceeded:
        return BudgetExceeded("pool", "lm", "calls", 1, 1)
    if kind is EnsembleFailed:
        return EnsembleFailed("model", (), 0, 1)
    if kind is LMPoolSaturated:
        return LMPoolSaturated("lm", 1, model="model")
    if kind is LMQueueTimeout:
        return LMQueueTimeout("lm", 1.0, model="model")
    return kind(message="it failed", **facts) if kind is not PoolUnavailable else PoolUnavailable("it failed")


def test_every_error_type_is_named_here() -> None:
    assert MEANS.keys() == KINDS.keys()


@pytest.mark.parametrize("name", MEANS)
def test_each_error_has_its_means(name: str) -> None:
    means = classify(make(KINDS[name]))
    assert (means.breaker, means.retry, means.failover) == CLASSES[MEANS[name]]
    assert means.rate_limited == (MEANS[name] == "limit"), "the limiter's affair"
    assert means.transient == (MEANS[name] != "caller"), "no answer for an evaluation"


def test_in_the_table_a_subclass_stands_before_its_parents() -> None:
    kinds = [kind for kind, _ in TABLE]
    for index, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[index + 1 :]), kind


def test_whatever_dspy_would_retry_is_retried_here_but_what_is_late_and_may_have_been_paid_for() -> None:
    for kind in KINDS.values():
        error = make(kind, status=504) if kind is LMTimeoutError else make(kind)
        assert classify(error).retry or not is_retryable_lm_error(error), kind


@pytest.mark.parametrize(("status", "meaning"), [(405, "caller"), (451, "caller"), (200, "trip"), (None, "trip")])
def test_a_refusal_without_a_type_of_its_own_is_the_callers(status: int | None, meaning: str) -> None:
    means = classify(make(dspy.utils.exceptions.LMProviderError, status=status))
    assert (means.breaker, means.retry, means.failover) == CLASSES[meaning]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNREFUSED])
def test_an_error_whose_causes_go_in_a_circle_is_classified(number: int) -> None:
    error, behind = LMTransportError("no connection"), OSError(number, "no connection")
    error.__cause__, behind.__cause__ = behind, error
    assert classify(error).breaker == ("ignored" if number == errno.EMFILE else "failure")


def test_an_error_that_no_lm_raised_is_the_callers() -> None:
    assert classify(ValueError("odd")).breaker == "ignored"
    assert not classify(ValueError("odd")).retry


def test_pool_errors_are_both_ours_and_dspys() -> None:
    from promptside.errors import LMPoolError

    for error in (LMCircuitOpen(("a", "b"), 2.5, model="model"), WorkerLost("gone"), PoolUnavailable("stopped")):
        assert isinstance(error, LMPoolError)
        assert isinstance(error, LMError)
    circuit = LMCircuitOpen(("a", "b"), 2.5, model="openai/x")
    assert circuit.retry_after == 2.5
    assert circuit.endpoints == ("a", "b")
    assert str(circuit) == "the circuit of a, b is open after too many failures; try again in 2.5 s"
    assert not is_retryable_lm_error(circuit), "DSPy must not repeat what the pool has given up"


async def test_an_open_circuit_in_an_endpoints_own_engine_says_nothing_of_the_request() -> None:
    async def down(request: object) -> None:
        raise ServerError("down")

    class Engine:
        complete = staticmethod(protect(down, name="inner", breaker=BreakerConfig(min_calls=1)))

    async with running(Endpoint("mock/mock", engine=Engine())) as scene:
        for _ in range(2):
            with pytest.raises(LMCircuitOpen):
                await scene.lm.acall("hello")
        assert scene.circuit("mock/mock") == "closed"
