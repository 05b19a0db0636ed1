"""`promptside.pools.clients.rate_headers`: what the headers of a refusal say, by provider; and that they arrive."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import pytest
from dspy.lm15 import Message, RateLimitError, Request

from promptside.pools.clients import rate_headers
from promptside.pools.clients.bounded import BoundedClient
from promptside.pools.clients.endpoint import open_client
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.rate_headers import Quota, read_quota
from promptside.testing import FakeServer, Fault
from tests.support.pools import endpoint

NOW = 1.8e9
X, A = "x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}"


def headers(kind: str, limit: object, remaining: object, reset: object) -> dict[str, tuple[str, ...]]:
    values = {"limit": limit, "remaining": remaining, "reset": reset}
    return {kind.format(field): (str(value),) for field, value in values.items()}


def in_seconds(seconds: float) -> str:
    """A date, by the clock that stands still in these tests."""
    return datetime.fromtimestamp(NOW + seconds, UTC).isoformat()


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_headers, "wall", lambda: NOW)


@pytest.mark.parametrize(
    ("given", "allowed", "reset"),
    [
        (headers(X, 500, 0, "60s"), 500 / 60, 60),
        (headers(X, 500, 0, "1m0s"), 500 / 60, 60),
        (headers(X, 500, 0, "6m0s"), 500 / 360, 360),
        (headers(X, 14_400, 0, "23h59m60.0s"), 1 / 6, 86_400),
        (headers(X, 1, 0, "120ms"), 1 / 0.12, 0.12),
        (headers(X, 10, "-1", "1"), 10, 1),
        (headers(X, "10.0", "0.0", "2.5"), 4, 2.5),
        (headers(X, 600, 0, int(NOW + 62)), 10, 60),
        (headers(A, 50, 0, in_seconds(62)), 50 / 60, 60),
        (headers(A, 50, 0, in_seconds(62).replace("+00:00", "Z")), 50 / 60, 60),
        (headers(A, 50, 0, in_seconds(62).replace("+00:00", "")), 50 / 60, 60),
        (headers("x-ratelimit-{}-tokens", 50_000, 0, "30s"), math.inf, 30),
        (headers("anthropic-ratelimit-input-tokens-{}", 50_000, 0, in_seconds(32)), math.inf, 30),
        ({**headers(X, 500, 0, "60s"), **headers("x-ratelimit-{}-tokens", 9, 0, "3s")}, 500 / 60, 3),
    ],
)
def test_a_limit_that_is_used_up_tells_the_rate_and_when_all_is_there_again(
    given: dict[str, tuple[str, ...]], allowed: float, reset: float
) -> None:
    quota = read_quota(given)
    assert quota.allowed == pytest.approx(allowed, rel=0.02)
    assert quota.reset == pytest.approx(reset, rel=0.02)


@pytest.mark.parametrize(
    "given",
    [
        {},
        headers(X, 500, 7, "60s"),  # it is not this limit that was met
        headers(X, 500, 0, "0s"),
        headers(X, 500, 0, "-1"),
        headers(X, 500, 0, "soon"),
        headers(X, 500, 0, "60s later"),
        headers(X, 500, 0, "nan"),
        headers(X, 500, "", "60s"),
        headers(X, 500, 0, ""),
        headers(A, 50, 0, in_seconds(1)),  # by clocks that differ
        {X.format("remaining"): ("0",)},
    ],
)
def test_what_makes_no_sense_says_nothing(given: dict[str, tuple[str, ...]]) -> None:
    assert read_quota(given) == Quota()


@pytest.mark.parametrize("limit", ["-1", "0", "many", ""])
def test_without_a_limit_there_is_still_the_reset(limit: str) -> None:
    assert read_quota(headers(X, limit, 0, "60s")) == Quota(reset=60.0)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ({"retry-after-ms": "120"}, 0.12),
        ({"x-ms-retry-after-ms": "120"}, 0.12),
        ({"retry-after": "3", "retry-after-ms": "2500"}, 3.0),
        ({"retry-after": "soon", "retry-after-ms": "120"}, 0.12),
        ({"retry-after-ms": "soon"}, None),
    ],
)
@pytest.mark.parametrize("litellm", [False, True])
async def test_the_headers_of_a_refusal_arrive_by_both_clients(
    litellm: bool, said: dict[str, str], seconds: float | None
) -> None:
    quota = {"X-RateLimit-Limit-Requests": "500", "x-ratelimit-remaining-requests": "0", "set-cookie": "secret"}
    with FakeServer() as server:
        client: Any = open_client(endpoint(server))
        if litellm:
            client = LiteLLMClient(timeout=30.0, api_key="none", api_base=server.url)
            client = BoundedClient(client, endpoint(server))
        server.fail(Fault.status(429, headers={**said, **quota, "x-ratelimit-reset-requests": "1m0s"}), times=None)
        with pytest.raises(RateLimitError) as caught:
            await client.complete(Request(model="openai/fake", messages=(Message.user("hello"),)))
        await client.aclose()
    assert caught.value.retry_after == seconds
    assert read_quota(caught.value.rate_limit_headers) == Quota(500 / 60, 60.0)
    assert "set-cookie" not in caught.value.rate_limit_headers
