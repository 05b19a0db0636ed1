"""The price of an answer is DSPy's own estimate, also where it is not asked for each answer."""

from __future__ import annotations

from typing import Any

import pytest
from dspy.clients.costs import estimate_cost
from dspy.lm15 import BuiltinTool, Config, Message, Request, Response, TextPart, ThinkingPart, Usage
from hypothesis import given
from hypothesis import strategies as st

from promptside.pools import Endpoint
from promptside.pools.clients.prices import Prices

MODELS = ("openai/gpt-4o-mini", "openai/gpt-5-mini", "gemini/gemini-2.5-pro", "gemini/gemini-2.5-flash-lite",
          "anthropic/claude-sonnet-4-5", "openai/unheard-of")  # fmt: skip
PRICES = {model: Prices(Endpoint(model, api_key="none")) for model in MODELS}
COUNT = st.one_of(st.none(), st.integers(0, 500_000))
FEW = st.one_of(st.none(), st.integers(0, 3))
NONE = st.none()
TIER = st.sampled_from([None, "default", "flex", "priority", "auto", "odd"])


@pytest.fixture(scope="module", autouse=True)
def table() -> None:
    for model in MODELS:
        Endpoint(model, api_key="none").capabilities()  # loads it


def check(model: str, usage: Usage, tiers: Any = (None, None, None), tools: Any = (), thinks: bool = False) -> None:
    asked, served, metadata = tiers
    provider, name = model.split("/")
    told = {"service_tier": served, "usageMetadata": {"serviceTier": metadata}}
    parts = (ThinkingPart(text="hm"), TextPart(text="yes")) if thinks else (TextPart(text="yes"),)
    config = Config(service_tier=asked) if asked else Config()
    request = Request(model=model, messages=(Message.user("?"),), tools=tools, config=config)
    said = Message(role="assistant", parts=parts)
    answer = Response(id=None, model=name, message=said, finish_reason="stop", usage=usage, provider_data=told)
    expected, _ = estimate_cost(answer, provider=provider, requested_model=name, request=request)
    priced = PRICES[model].price(answer, request).cost
    assert priced == (expected if expected is None else pytest.approx(expected))


@given(
    model=st.sampled_from(MODELS),
    usage=st.builds(Usage, input_tokens=COUNT, output_tokens=COUNT, reasoning_tokens=st.sampled_from([None, 0])),
)
def test_plain_tokens_cost_what_dspy_estimates(model: str, usage: Usage) -> None:
    check(model, usage)


@given(
    model=st.sampled_from(MODELS),
    usage=st.builds(
        Usage,
        input_tokens=st.integers(0, 500_000),
        output_tokens=st.integers(0, 9),
        cache_read_tokens=FEW,
        cache_write_tokens=FEW,
        reasoning_tokens=FEW,
        output_audio_tokens=FEW,
    ),
)
def test_tokens_of_other_kinds_cost_what_dspy_estimates(model: str, usage: Usage) -> None:
    check(model, usage)


@given(
    model=st.sampled_from(MODELS),
    tiers=st.one_of(st.tuples(TIER, NONE, NONE), st.tuples(NONE, TIER, NONE), st.tuples(NONE, NONE, TIER)),
    tools=st.sampled_from([(), (BuiltinTool(name="web_search"),)]),
    thinks=st.booleans(),
)
def test_tiers_tools_and_other_parts_cost_what_dspy_estimates(model: str, tiers: Any, tools: Any, thinks: bool) -> None:
    check(model, Usage(input_tokens=3, output_tokens=2), tiers, tools, thinks)
