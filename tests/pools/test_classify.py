"""`promptside.pools.lm.classify`: what each error means. Every error type of DSPy's is named here."""

from __future__ import annotations

import errno
from typing import Any

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
    "LMCallTimeout": "elsewhere",
    "LMCircuitOpen": "gate",
    "LMPoolSaturated": "gate",
    "LMQueueTimeout": "gate",
    "WorkerLost": "lost",
    # this endpoint cannot, for any request; another may
    "LMAuthError": "unusable",
    "LMBillingError": "unusable",
    "LMConfigurationError": "unusable",
    "LMNotConfiguredError": "unusable",
    "LMUnsupportedModelError": "unusable",
    # this endpoint cannot, for this request; another may
    "LMUnsupportedFeatureError": "elsewhere",
    # nobody knows whose fault it is
    "LMError": "unknown",
    "LMUnexpectedError": "unknown",
    # the caller's own
    "LMInvalidRequestError": "caller",
    "ContextWindowExceededError": "caller",
    "LMCollectionLimitError": "caller",
    "PoolUnavailable": "caller",
    "BudgetExceeded": "caller",
    "EnsembleFailed": "caller",
}
CLASSES: dict[str, tuple[str, str, bool, bool, bool]] = {
    "trip": ("failure", "failure", True, True, False),
    "late": ("late", "failure", False, True, False),
    "gate": ("busy", "ignored", True, True, False),
    "limit": ("limited", "ignored", True, True, False),
    "lost": ("lost", "ignored", True, False, False),
    "unusable": ("elsewhere", "ignored", False, True, False),
    "elsewhere": ("elsewhere", "ignored", False, True, True),
    "empty": ("empty", "ignored", True, True, True),
    "unknown": ("unknown", "ignored", True, True, True),
    "caller": ("caller", "ignored", False, False, True),
}
"""Name in events, outcome for the breaker, whether to try again here, and elsewhere, whether it may follow from the
request."""


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


def facts(error: Exception) -> tuple[str, str, bool, bool, bool]:
    means = classify(error)
    return means.name, means.breaker, means.retry, means.failover, means.of_request


@pytest.mark.parametrize("name", MEANS)
def test_each_error_has_its_means(name: str) -> None:
    error = make(KINDS[name])
    assert facts(error) == CLASSES[MEANS[name]]
    assert classify(error).rate_limited == (MEANS[name] == "limit"), "the limiter's affair"


def test_in_the_table_a_subclass_stands_before_its_parents() -> None:
    kinds = [kind for kind, _ in TABLE]
    for index, kind in enumerate(kinds):
        assert not any(issubclass(later, kind) for later in kinds[index + 1 :]), kind


def test_whatever_dspy_would_retry_is_retried_here_but_what_is_late_and_may_have_been_paid_for() -> None:
    for kind in set(KINDS.values()) - {LMCallTimeout}:
        error = make(kind, status=504) if kind is LMTimeoutError else make(kind)
        assert classify(error).retry or not is_retryable_lm_error(error), kind


@pytest.mark.parametrize("kind", ["LMInvalidRequestError", "LMProviderError"])
@pytest.mark.parametrize(
    ("status", "meaning"),
    [
        *((status, "caller") for status in (400, 413, 414, 415, 422, 431)),
        *((status, "unusable") for status in (404, 410)),
        *((status, "elsewhere") for status in (405, 406, 409, 418, 421, 425, 428, 451, 498, 499)),
    ],
)
def test_a_refusal_without_a_type_of_its_own_is_judged_by_its_status(kind: str, status: int, meaning: str) -> None:
    assert facts(make(KINDS[kind], status=status)) == CLASSES[meaning]


def test_what_a_prompt_is_refused_for_is_the_callers_whatever_the_status() -> None:
    assert facts(make(KINDS["ContextWindowExceededError"], status=404)) == CLASSES["caller"]


def test_an_answer_in_which_there_is_none_says_nothing_of_the_endpoint() -> None:
    assert facts(make(KINDS["LMProviderError"], provider_code="empty_answer")) == CLASSES["empty"]


def test_an_error_that_no_lm_raised_is_nobodys() -> None:
    assert facts(ValueError("odd")) == CLASSES["unknown"]


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ECONNREFUSED])
def test_an_error_whose_causes_go_in_a_circle_is_classified(number: int) -> None:
    error, behind = LMTransportError("no connection"), OSError(number, "no connection")
    error.__cause__, behind.__cause__ = behind, error
    assert classify(error).breaker == ("ignored" if number == errno.EMFILE else "failure")


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
