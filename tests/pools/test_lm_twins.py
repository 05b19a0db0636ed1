"""`dspy.LM` against `pool.lm()`: the same settings and inputs give the same requests, answers, records and errors."""

from __future__ import annotations

import asyncio
import base64
import contextvars
import json
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
import dspy
import openai
import pydantic
import pytest
from dspy.clients._litellm import get_litellm
from dspy.lm15 import CacheConfig, Config, Message, Request, TextPart

from promptside.pools import Best, BreakerConfig, Endpoint, LMConfig, LMPool, RetryConfig
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.openai_apis import OpenAIServer, openai_server

KEY = "k" * 12
MODEL = "openai/gpt-4o-mini"
TYPES = ("chat", "text", "responses")

SHOWN = ("authorization", "content-type", "openai-organization", "openai-project", "user-agent", "x-team")
"""Headers of a request that are compared; others name the version of a client's parts."""


class Capital(pydantic.BaseModel):
    answer: str


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
TEXT = {"type": "text", "text": "hi"}
PNG = "data:image/png;base64," + base64.b64encode(b"0123456789").decode()
PDF = "data:application/pdf;base64,AAAA"
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
PREDICTION = {"type": "content", "content": "Paris"}


def said(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


INPUTS: dict[str, Any] = {
    "a prompt": "hi",
    "an empty prompt": said({"type": "text", "text": ""}),
    "roles": [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")],
    "a developer": [{"role": "developer", "content": "s"}, {"role": "user", "content": "u"}],
    "a name": [{"role": "user", "content": "u", "name": "bob"}],
    "an image": said(TEXT, {"type": "image_url", "image_url": {"url": PNG}}),
    "an image in detail": said(TEXT, {"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}),
    "an image elsewhere": said(TEXT, {"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}),
    "a sound": said(TEXT, {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}),
    "a file": said(TEXT, {"type": "file", "file": {"file_data": PDF, "filename": "a.pdf"}}),
    "a file without a name": said(TEXT, {"type": "file", "file": {"file_data": PDF}}),
    "a file by its id": said(TEXT, {"type": "file", "file": {"file_id": "f1"}}),
    "a document with citations": said(
        TEXT,
        {
            "type": "document",
            "source": {"type": "text", "media_type": "text/plain", "data": "x"},
            "citations": {"enabled": True},
        },
    ),
    "a cache marker": said({**TEXT, "cache_control": {"type": "ephemeral"}}),
    "a tool's result": [
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "r"},
    ],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sampling": {"temperature": 0.3, "max_tokens": 9, "top_p": 0.5, "seed": 1, "stop": ["x"], "user": "me"},
    "penalties": {"frequency_penalty": 0.1, "presence_penalty": 0.2},
    "top_k": {"top_k": 3},
    "n": {"n": 2, "temperature": 1.0},
    "n, by litellm": {"n": 2, "prediction": PREDICTION},
    "n of none": {"n": 0},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "any JSON": {"response_format": {"type": "json_object"}},
    "a schema": {"response_format": Capital},
    "tools": {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False},
    "one tool": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
    "a hosted tool": {"tools": [{"type": "web_search"}]},
    "web search": {"web_search_options": {"search_context_size": "low"}},
    "reasoning": {"reasoning_effort": "low"},
    "prediction": {"prediction": PREDICTION},
    "speech": {"modalities": ["text", "audio"], "audio": {"voice": "a", "format": "wav"}},
    "metadata": {"metadata": {"a": "b"}, "store": True},
    "a tier": {"service_tier": "flex"},
    "more of the body": {"extra_body": {"x": 1}},
    "a setting of tomorrow": {"some_new_setting": 1},
    "biases": {"logit_bias": {"1": 2}},
    "a rollout": {"rollout_id": 3, "temperature": 1.0},
    "prompt_cache": {"prompt_cache": CacheConfig()},
    "headers": {"headers": {"X-Team": "search"}},
    "extra_headers": {"extra_headers": {"X-Team": "search"}},
    "extra_query": {"extra_query": {"q": "1"}},
    "timeout": {"timeout": 9},
    "a wrong type": {"temperature": "hot"},
}
CALLS = {
    **{name: (given, {}) for name, given in INPUTS.items()},
    **{name: ("hi", options) for name, options in SETTINGS.items()},
}
OTHER_ERRORS = {"logprobs", "any JSON", "a schema", "tools", "one tool", "a hosted tool"}
"""Of text completions: OpenAI's client has no keyword for these, which litellm takes for an error of the server."""


@contextmanager
def pool_of(*doors: Any, **settings: Any) -> Iterator[LMPool]:
    breaker = BreakerConfig(min_calls=1_000)
    with LMPool(*doors, **{"retry": RetryConfig(attempts=1), "breaker": breaker, "name": "twins", **settings}) as pool:
        yield pool


def ask(lm: dspy.LM, given: Any, options: dict[str, Any], *, way: str = "sync") -> dict[str, Any]:
    """What a caller sees of one call; its pieces, where it is streamed."""
    lm.history.clear()
    prompt, named = ((given,), {}) if isinstance(given, str | Request) else ((), {"messages": given})
    pieces: list[str] = []

    async def streamed() -> Any:
        send, receive = anyio.create_memory_object_stream[Any](1_000)
        async with send, receive:
            with dspy.context(send_stream=send):
                outputs = await lm.acall(*prompt, **named, **options)
            send.close()
            pieces.extend([chunk.choices[0].delta.content or "" async for chunk in receive if chunk.choices])
        return outputs

    def answer() -> Any:
        if way == "sync":
            return lm(*prompt, **named, **options)
        return asyncio.run(streamed() if way == "stream" else lm.acall(*prompt, **named, **options))

    try:
        with dspy.track_usage() as usage, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # In a thread of its own: what litellm and `asyncio.run` leave behind is not found in that of the tests.
            with ThreadPoolExecutor(1) as thread:
                outputs = thread.submit(contextvars.copy_context().run, answer).result()
    except Exception as error:
        return {"error": type(error).__name__, "message": str(error)}
    entry = {name: value for name, value in lm.history[-1].items() if name not in ("timestamp", "uuid", "response")}
    record = {**entry, "response": type(lm.history[-1]["response"]).__name__}
    seen = {"outputs": outputs, "record": record, "usage": usage.get_total_tokens(), "text": "".join(pieces)}
    return {name: plain(value) for name, value in seen.items()}


@pytest.fixture(autouse=True)
def no_connection_of_a_plain_lm_is_left() -> Iterator[None]:
    """Closes litellm's clients, which it keeps for the process; one that it drops would leave connections open."""
    yield
    from litellm.llms.custom_httpx.http_handler import HTTPHandler

    kept = get_litellm(feature="tests").in_memory_llm_clients_cache
    for name, client in list(kept.cache_dict.items()):
        if isinstance(client, openai.OpenAI | HTTPHandler):
            client.close()
            kept.delete_cache(name)


def plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=repr))


def wire(server: OpenAIServer) -> list[Any]:
    requests = [
        (path, {name: value for name, value in headers.items() if name in SHOWN}, body)
        for path, headers, body in server.requests
    ]
    server.requests.clear()
    return requests


@pytest.mark.parametrize("way", ["sync", "async"])
@pytest.mark.parametrize("model_type", TYPES)
def test_every_input_and_setting_is_sent_answered_and_recorded_as_by_a_plain_lm(model_type: Any, way: str) -> None:
    differ = {}
    with openai_server() as server, pool_of(Endpoint(MODEL, api_key=KEY, api_base=server.url)) as pool:
        twins = (
            dspy.LM(MODEL, model_type, api_key=KEY, api_base=server.url, cache=False, num_retries=0),
            pool.lm(model_type=model_type, cache=False),
        )
        assert twins[0].supported_params == twins[1].supported_params
        for name, (given, options) in CALLS.items():
            # Plainly always in sync: litellm's connections outlive the caller's event loop.
            ways = zip(twins, ("sync", way), strict=True)
            found = [(ask(lm, given, options, way=how), wire(server)) for lm, how in ways]
            if model_type == "text" and name in OTHER_ERRORS and "error" in found[0][0]:
                assert found[1][0]["error"] == "LMUnsupportedFeatureError", name
            elif found[0] != found[1]:
                differ[name] = found
    assert not differ


def test_settings_of_the_lm_are_those_of_its_calls() -> None:
    options = {"temperature": 0.2, "prediction": PREDICTION, "extra_headers": {"X-Team": "search"}}
    with openai_server() as server, pool_of(Endpoint(MODEL, api_key=KEY, api_base=server.url)) as pool:
        plain_lm = dspy.LM(MODEL, api_key=KEY, api_base=server.url, cache=False, num_retries=0, **options)
        pooled = pool.lm(cache=False, **options)
        for change in ({}, {"temperature": 0.9}, {"extra_headers": None}, {"headers": {"X-Team": "other"}}):
            found = [(ask(lm.copy(**change), "hi", {}), wire(server)) for lm in (plain_lm, pooled)]
            assert found[0] == found[1], change


@pytest.mark.parametrize("model_type", ["chat", "responses"])
def test_an_explicit_request_is_answered_as_by_a_plain_lm(model_type: Any) -> None:
    request = Request(MODEL, (Message.user([TextPart("hi")]),), config=Config(temperature=0.5))
    with openai_server() as server, pool_of(Endpoint(MODEL, api_key=KEY, api_base=server.url)) as pool:
        twins = (
            dspy.LM(MODEL, model_type, api_key=KEY, api_base=server.url, cache=False, num_retries=0),
            pool.lm(model_type=model_type, cache=False),
        )
        found = [(lm(request), lm(request=request), wire(server)) for lm in twins]
        assert found[0] == found[1]
        assert [ask(lm, request, {"temperature": 1.0})["error"] for lm in twins] == ["TypeError"] * 2
        assert [lm.forward("hi").choices[0].message.content for lm in twins] == ["Paris"] * 2


PROVIDERS = {
    "openai": MODEL,
    "anthropic": "anthropic/claude-sonnet-4-20250514",
    "gemini": "gemini/gemini-2.5-flash",
    "cohere": "cohere_chat/command-r",
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_call_of_each_provider_is_that_of_a_plain_lm_whole_and_streamed(provider: str) -> None:
    names = ("a prompt", "roles", "a file", "an image", "sampling", "n", "tools", "a schema", "headers")
    differ = {}
    with FakeServer({"default": "Paris is the capital"}) as server:
        url = server.url_for(provider)
        # To the address that DSPy gives litellm for Anthropic, litellm adds /v1 once more.
        bare = url.removesuffix("/v1") if provider == "anthropic" else url
        model = PROVIDERS[provider]
        with pool_of(Endpoint(model, api_key=KEY, api_base=url)) as pool:
            pooled = pool.lm(cache=False)
            for name in names:
                given, options = CALLS[name]
                by_litellm = name in ("a file", "headers")
                base = bare if by_litellm else url
                plain_lm = dspy.LM(model, api_key=KEY, api_base=base, cache=False, num_retries=0)
                streamed = name in ("a prompt", "tools") and provider != "cohere"
                for way in ("async", "stream") if streamed else ("async",):
                    found = []
                    for lm, how in ((plain_lm, "stream" if way == "stream" else "sync"), (pooled, way)):
                        seen = ask(lm, given, options, way=how)
                        found.append((seen, [(request.path, request.body) for request in server.requests]))
                        server.requests.clear()
                    if found[0] != found[1]:
                        differ[name, way] = found
            assert "Paris is the capital" in ask(pooled, "hi", {}, way="stream")["text"]
    assert not differ


@pytest.mark.parametrize("provider", ["openai", "anthropic", "gemini"])
@pytest.mark.parametrize(
    "fault",
    [Fault.status(status) for status in (400, 401, 403, 404, 422, 500, 503)]
    + [Fault.status(400, code="context_length_exceeded"), Fault.reset(), Fault.malformed()],
    ids=str,
)
def test_a_failed_call_raises_what_it_raises_of_a_plain_lm(provider: str, fault: Fault) -> None:
    with FakeServer("Paris") as server:
        settings = {"api_key": KEY, "api_base": server.url_for(provider)}
        model = PROVIDERS[provider]
        with pool_of(Endpoint(model, **settings)) as pool:
            found = []
            for lm in (dspy.LM(model, cache=False, num_retries=0, **settings), pool.lm(cache=False)):
                server.fail(fault, times=None)
                found.append(ask(lm, "hi", {}))
            if fault.code == "context_length_exceeded" and provider != "openai":
                # The pool knows the code whoever the server is; DSPy only that of OpenAI's own.
                assert (found[0]["error"], found[1]["error"]) == ("LMInvalidRequestError", "ContextWindowExceededError")
            else:
                assert found[0]["error"] == found[1]["error"]
                assert found[0]["message"] == found[1]["message"]


# -- settings of the connection ----------------------------------------------------------------------------------------

REFUSED = {
    "api_key": ("x", "Endpoint(api_key=...)"),
    "api_base": ("http://a", "Endpoint(api_base=...)"),
    "base_url": ("http://a", "Endpoint(api_base=...)"),
    "api_version": ("1", "Endpoint(api_version=...)"),
    "organization": ("o", "Endpoint(organization=...)"),
    "project": ("p", "Endpoint(project=...)"),
    "azure_ad_token_provider": (str, "Endpoint(azure_ad_token_provider=...)"),
    "custom_llm_provider": ("openai", "Endpoint(custom_llm_provider=...)"),
    "num_retries": (1, "LMPool(retry=RetryConfig(attempts=...))"),
    "max_retries": (1, "LMPool(retry=RetryConfig(attempts=...))"),
    "engine": ("litellm", "Endpoint(engine=...)"),
    "async_engine": (MockLM(), "Endpoint(engine=...)"),
    "client": (object(), "Endpoint(engine=...)"),
    "http_client": (object(), "Endpoint(engine=...)"),
    "shared_session": (object(), "Endpoint(engine=...)"),
    "proxy": ("http://a", "set HTTPS_PROXY"),
    "proxies": ({}, "set HTTPS_PROXY"),
    "timeout": (0, "give finite seconds > 0"),
    "headers": ({"X-Team": "a\nb"}, "no line breaks"),
    "extra_headers": ("X-Team: a", "give a dict of texts"),
    "extra_query": ("q=1", "give a dict of texts"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_setting_that_has_its_place_elsewhere_is_refused_with_it(name: str) -> None:
    value, remedy = REFUSED[name]
    async with LMPool(Endpoint("mock/mock", engine=MockLM("Paris"))) as pool:
        lm = pool.lm(cache=False)
        for use in (
            lambda: pool.lm(**{name: value}),
            lambda: lm.copy(**{name: value}),
            lambda: lm("hi", **{name: value}),
        ):
            with pytest.raises(ValueError) as caught:
                use()
            assert f"{name}: " in str(caught.value) or f"{name}=" in str(caught.value)
            assert remedy in str(caught.value)
        with pytest.raises(ValueError):
            await lm.acall("hi", **{name: value})
        assert await lm.acall("hi", **{name: None}) == ["Paris"]
        assert pool.stats()["mock/mock"]["attempts"] == 1


def test_a_model_type_of_no_api_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="model_type='speech': give 'chat', 'text' or 'responses'"):
        LMPool(MODEL).lm(model_type="speech")


@pytest.mark.parametrize("make", [Endpoint, LMConfig])
def test_settings_of_the_connection_are_sent_with_each_request_of_the_endpoint(make: Any) -> None:
    given = {"organization": "acme", "project": "search", "extra_query": {"q": "1"}}
    with openai_server() as server:
        connection = {"api_key": KEY, "api_base": server.url}
        if make is Endpoint:
            door = Endpoint(MODEL, **connection, **given)
        else:
            door = LMConfig(model=MODEL, **connection, settings={**given, "top_p": 0.5})
        options = {} if make is Endpoint else {"top_p": 0.5}
        plain_lm = dspy.LM(MODEL, **connection, **given, **options, cache=False, num_retries=0)
        with pool_of(door) as pool:
            found = [(ask(lm, "hi", {"cache": False}), wire(server)) for lm in (plain_lm, pool.lm())]
    assert found[0] == found[1]
    ((_, headers, _),) = found[0][1]
    assert headers["openai-organization"] == "acme"


def test_azures_api_version_is_in_the_address_as_of_a_plain_lm() -> None:
    with openai_server() as server:
        settings = {"api_key": KEY, "api_base": server.url.removesuffix("/v1"), "api_version": "2024-06-01"}
        plain_lm = dspy.LM("azure/gpt-4o-mini", **settings, cache=False, num_retries=0)
        with pool_of(Endpoint("azure/gpt-4o-mini", **settings)) as pool:
            found = [(ask(lm, "hi", {}), wire(server)) for lm in (plain_lm, pool.lm(cache=False))]
    assert found[0] == found[1]
    assert "api-version=2024-06-01" in found[0][1][0][0]


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("organization", 1, "give a text, or None"),
        ("azure_ad_token_provider", "t", "give a function that returns a token"),
        ("extra_query", "q=1", "give a dict"),
    ],
)
def test_a_setting_of_the_connection_of_another_type_is_refused(field: str, value: Any, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        Endpoint(MODEL, **{field: value})


@pytest.mark.parametrize("way", ["async", "stream"])
def test_a_call_that_takes_longer_than_its_own_timeout_says_nothing_of_the_endpoint(way: str) -> None:
    with FakeServer("Paris") as server, pool_of(Endpoint("openai/fake", api_key=KEY, api_base=server.url)) as pool:
        lm = pool.lm(cache=False)
        server.latency = 30.0
        assert ask(lm, "hi", {"timeout": 0.05}, way=way)["error"] == "LMCallTimeout"
        assert pool.breaker("openai/fake").state == "closed"
        server.latency = 0.0
        assert ask(lm, "hi", {"timeout": 30}, way=way)["outputs"] == ["Paris"]


async def test_an_engine_of_the_users_takes_no_headers_of_a_call_and_says_so() -> None:
    async with LMPool(Endpoint("mock/mock", engine=MockLM("Paris"))) as pool:
        lm = pool.lm(cache=False)
        with pytest.raises(dspy.LMUnsupportedFeatureError, match="extra_headers: the endpoint's own engine takes no"):
            await lm.acall("hi", extra_headers={"X-Team": "search"})
        with pytest.raises(dspy.LMUnsupportedFeatureError, match="filename"), pytest.warns(match="messages="):
            await lm.acall(messages=INPUTS["a file"])
        assert pool.breaker("mock/mock").state == "closed"


# -- cost --------------------------------------------------------------------------------------------------------------


def test_the_cost_of_a_call_is_in_dspys_history_and_once_in_the_pools(empty_cache: None) -> None:
    with FakeServer("Paris is the capital") as server:
        settings = {"api_key": KEY, "api_base": server.url}
        with pool_of(Endpoint(MODEL, **settings), LMConfig(model="openai/gpt-4o", name="large", **settings)) as pool:
            lm = pool.lm()
            ask(lm, "hi", {"temperature": 0.0})
            cost = lm.history[-1]["cost"]
            assert cost == pool.costs()["total"]["cost"] > 0
            assert lm.history[-1]["cost_details"]["kind"] == "estimate"
            ask(lm, "hi", {"temperature": 0.0})
            assert lm.history[-1]["cost"] == cost, "a hit in the cache keeps it, as DSPy's do"
            ask(lm, "hi", {"cache": False}, way="stream")
            assert lm.history[-1]["cost"] == cost
            assert pool.costs()["total"]["cost"] == pytest.approx(2 * cost)
            vote = pool.vote(combine=Best(score=lambda request, answer: 0.0), name="best", cache=False)
            for way in ("sync", "stream"):
                ask(vote, "hi", {}, way=way)
                costs = pool.costs()
                large = costs["by_endpoint"]["large"]["cost"] / (1 if way == "sync" else 2)
                assert vote.history[-1]["cost"] == pytest.approx(cost + large), "of all members"


async def test_calls_that_share_a_request_pay_for_it_once(empty_cache: None) -> None:
    with FakeServer("Paris", latency=0.05) as server:
        async with LMPool(Endpoint(MODEL, api_key=KEY, api_base=server.url)) as pool:
            lms = [pool.lm(temperature=0) for _ in range(4)]
            await asyncio.gather(*(lm.acall("hi") for lm in lms))
            assert len(server.requests) == 1
            costs = [lm.history[-1]["cost"] for lm in lms]
            assert sum(costs) == pool.costs()["total"]["cost"] > 0
            assert costs.count(0.0) == 3
