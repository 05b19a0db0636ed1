"""`pools.clients.litellm_client`: what it relies on in litellm, the connections that it owns, and its verdicts.

Its faults with real servers are in `test_providers.py`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from dspy import lm15
from dspy.clients._litellm import get_litellm
from dspy.lm15 import Message, Request

from promptside.actors import ActorSystem
from promptside.pools import Endpoint, LMPool
from promptside.pools.clients import litellm_client
from promptside.pools.clients.bounded import BoundedClient
from promptside.pools.clients.client_errors import lm15_errors
from promptside.pools.clients.connections import Connections, Use
from promptside.pools.clients.embeddings import EmbeddingClient, EmbeddingRequest
from promptside.pools.clients.judged_litellm import RawAnswer
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.one_request import install
from promptside.testing import FakeServer, Fault
from tests.support.actors import until
from tests.support.pools import KEY, endpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic

MODELS = {"openai": "openai/fake", "anthropic": "anthropic/claude-fake", "gemini": "gemini/gemini-fake"}


def unbounded(server: FakeServer, provider: str = "openai", timeout: float = 30.0) -> LiteLLMClient:
    base = server.url_for(provider)
    if provider == "anthropic":  # litellm adds it by itself
        base = base.removesuffix("/v1")
    return LiteLLMClient(timeout=timeout, api_key=KEY, api_base=base)


def opened(server: FakeServer, provider: str = "openai", timeout: float = 30.0) -> BoundedClient:
    return BoundedClient(unbounded(server, provider, timeout), endpoint(server, timeout=timeout))


def embedding(server: FakeServer, model: str = "hosted_vllm/fake", **settings: Any) -> BoundedClient:
    at = endpoint(server, model, **settings)
    return BoundedClient(EmbeddingClient(at), at)


def asking(provider: str = "openai") -> Request:
    return Request(model=MODELS[provider], messages=(Message.user("hello world"),))


# -- what is relied on -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", MODELS)
async def test_an_error_of_litellms_is_raised_from_one_that_has_the_providers_response(provider: str) -> None:
    """Its status and headers decide the verdict. Without them litellm's own type does, which is less exact."""
    with FakeServer() as server:
        server.fail(Fault.status(429, headers={"x-mark": "of the server"}))
        client = opened(server, provider)
        with pytest.raises(lm15.RateLimitError) as caught:
            await client.complete(asking(provider))
        await client.aclose()
    responses, error = [], caught.value.__cause__
    while error is not None:
        responses.append(getattr(error, "response", None))
        error = error.__cause__ or error.__context__
    whole = [response for response in responses if getattr(response, "headers", {}).get("x-mark") == "of the server"]
    assert [response.status_code for response in whole[-1:]] == [429], "litellm hides the response of the provider"


@pytest.mark.parametrize("provider", MODELS)
async def test_litellm_shows_the_raw_body_of_a_whole_answer_to_a_logger_fn(provider: str) -> None:
    with FakeServer("one two three") as server:
        get_litellm(feature="tests")
        connections = Connections.of(asyncio.get_running_loop())
        with RawAnswer() as raw, Use(connections, raw) as use, use.running():
            await unbounded(server, provider)._engine().complete(asking(provider))
        connections.leave(raw)
    assert raw.body.keys() & {"choices", "content", "candidates"}


@pytest.mark.parametrize("fault", [Fault.status(500), Fault.status(429), Fault.status(401), Fault.reset()])
async def test_litellm_sends_a_request_once_whatever_comes_of_it(fault: Fault) -> None:
    with FakeServer() as server:
        server.fail(fault, times=None)
        client, embeddings = opened(server), embedding(server)
        with pytest.raises(lm15.LM15Error):
            await client.complete(asking())
        with pytest.raises(lm15.LM15Error):
            await embeddings.embed(EmbeddingRequest("hosted_vllm/fake", ("a",)))
        assert len(server.requests) == 2
        await client.aclose()
        await embeddings.aclose()


DROPS_RETRIES = {"deepinfra/m": Fault.status(503), "nvidia_nim/m": Fault.status(429, headers={"retry-after": "30"})}
"""Providers for which litellm takes the 0 of `max_retries` for nothing stated."""


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("model", DROPS_RETRIES)
async def test_the_client_of_a_provider_sends_a_request_once_whatever_litellm_tells_it(
    model: str, streamed: bool
) -> None:
    with FakeServer() as server:
        server.fail(DROPS_RETRIES[model], times=None)
        client, request = opened(server), Request(model=model, messages=(Message.user("hello"),))
        with pytest.raises(lm15.ProviderError):
            if streamed:
                await anext(client.stream(request))
            else:
                await client.complete(request)
        await client.aclose()
        assert len(server.requests) == 1


@pytest.mark.parametrize("model", ["mistral/m", "nvidia_nim/m", "together_ai/m", "fireworks_ai/m", "cohere/m"])
async def test_the_client_of_a_provider_of_embeddings_sends_a_request_once(model: str) -> None:
    with FakeServer() as server:
        server.fail(Fault.reset() if model == "mistral/m" else Fault.status(503), times=None)
        client = embedding(server, model)
        with pytest.raises(lm15.LM15Error):
            await client.embed(EmbeddingRequest(model, ("a",)))
        await client.aclose()
        assert len(server.requests) == 1


@pytest.mark.parametrize("status", [302, 307, 308])
@pytest.mark.parametrize(
    "model", ["openai/m", "cerebras/m", "together_ai/m", "anthropic/m", "gemini/m", "hosted_vllm/m", "of embeddings"]
)
async def test_no_redirection_is_followed_with_the_credentials(model: str, status: int) -> None:
    with FakeServer() as server, FakeServer("of another") as other:
        server.fail(
            Fault.answer({}, status_code=status, headers={"location": other.url + "/chat/completions"}), times=None
        )
        with pytest.raises(lm15.ConfigurationError, match=f"a redirection .HTTP {status}. to {other.url}"):
            if model == "of embeddings":
                await embedding(server).embed(EmbeddingRequest("hosted_vllm/fake", ("a",)))
            else:
                provider = model.partition("/")[0]
                client = opened(server, provider if provider in MODELS else "openai")
                await client.complete(Request(model=model, messages=(Message.user("hello"),)))
        assert not other.requests


async def test_the_clients_of_others_follow_redirections_and_repeat_requests_as_they_were_told() -> None:
    install()
    hello = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
    with FakeServer() as server, FakeServer("of another") as other:
        moved = {"location": other.url + "/chat/completions"}
        server.fail(Fault.answer({}, status_code=307, headers=moved), times=2)
        async with httpx.AsyncClient(follow_redirects=True) as theirs:
            assert (await theirs.post(server.url + "/chat/completions", json=hello)).history
        async with openai.AsyncOpenAI(api_key="none", base_url=server.url, max_retries=1) as client:
            await client.chat.completions.create(**hello)  # type: ignore[call-overload]
            server.fail(Fault.status(503, headers={"retry-after-ms": "1"}))
            await client.chat.completions.create(**hello)  # type: ignore[call-overload]
        assert (len(server.requests), len(other.requests)) == (4, 2)


async def test_litellm_opens_its_connections_by_create_connection_of_the_running_loop_as_the_one_who_asks() -> None:
    """So the loop records them. A litellm that connects in another way leaves connections open."""
    with FakeServer("one two three") as server:
        for provider in MODELS:
            client = opened(server, provider)
            before = server.total_connections
            await client.complete(asking(provider))
            opened_ = [each for each in Connections.of(asyncio.get_running_loop())._open if each.shared]
            assert len(opened_) == server.total_connections - before == 1
            await client.aclose()


# -- connections -------------------------------------------------------------------------------------------------------


def sockets() -> int:
    """Open sockets of this process."""

    def target(descriptor: Path) -> str:
        try:
            return str(descriptor.readlink())
        except FileNotFoundError:  # that of the listing itself
            return ""

    return sum(target(descriptor).startswith("socket:") for descriptor in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc/self/fd")
async def test_no_descriptor_is_left_open_whatever_was_asked_and_whatever_came_of_it() -> None:
    with FakeServer("one two three") as server:
        await asyncio.to_thread(sockets)  # the loop's own thread pool has begun
        before = sockets()
        for fault in (None, Fault.status(500), Fault.reset(), Fault.half_body(), Fault.cut_stream(1), Fault.hang()):
            clients = {provider: opened(server, provider, 0.3 if fault == Fault.hang() else 30) for provider in MODELS}
            embeddings = embedding(server, timeout=0.3)
            server.script([fault] * (2 * len(MODELS) + 1))
            for provider, client in clients.items():
                await ended(client.complete(asking(provider)))
                await ended(drained(client, provider))
            await ended(embeddings.embed(EmbeddingRequest("hosted_vllm/fake", ("a",))))
            for opened_ in (*clients.values(), embeddings):
                await opened_.aclose()
            await server.until(lambda: server.connections == 0)
            await until(lambda: sockets() == before)


async def drained(client: BoundedClient, provider: str) -> None:
    async for _ in client.stream(asking(provider)):
        pass


async def ended(call: Any) -> None:
    try:
        await call
    except lm15.LM15Error:
        pass


async def test_connections_that_others_open_on_the_loop_are_not_closed() -> None:
    with FakeServer("one two three") as server, FakeServer("one two three") as other:
        client = opened(server)
        await client.complete(asking())
        async with httpx.AsyncClient() as theirs:
            await theirs.get(other.url + "/models")
            await client.aclose()
            await server.until(lambda: server.connections == 0)
            assert other.connections == 1


async def test_after_the_last_one_has_ended_another_one_may_begin_on_the_same_loop() -> None:
    with FakeServer("one two three") as server:
        for _ in range(2):
            client = opened(server)
            assert (await client.complete(asking())).text == "one two three"
            await client.aclose()
            await server.until(lambda: server.connections == 0)


# -- verdicts ----------------------------------------------------------------------------------------------------------


def refused(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://127.0.0.1")
    response = httpx.Response(status, headers={"server": "any"}, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


VERDICTS: dict[str, tuple[Exception, Exception, type[Exception]]] = {
    "a refusal taken for a broken connection": (lm15.TransportError(), refused(429), lm15.RateLimitError),
    "a refusal that nobody has typed": (Exception(), refused(503), lm15.ServerError),
    "a refusal with a status of no type": (lm15.ServerError(), refused(418), lm15.InvalidRequestError),
    "a model taken for no model": (lm15.UnsupportedModelError(), refused(404), lm15.UnsupportedModelError),
    "no credit": (lm15.BillingError(), refused(429), lm15.BillingError),
    "a timeout taken for the server's": (lm15.ServerError(), httpx.ReadTimeout("late"), lm15.TimeoutError),
    "a disconnection taken for the server's": (lm15.ServerError(), httpx.ReadError("gone"), lm15.TransportError),
    "a disconnection that nobody has typed": (Exception(), ConnectionResetError(), lm15.TransportError),
    "no JSON": (lm15.InvalidRequestError(), json.JSONDecodeError("no", "x", 0), lm15.ProviderError),
    "a stream of nothing": (lm15.ServerError(), StopAsyncIteration(), lm15.ProviderError),
    "what only litellm knows": (lm15.RateLimitError(), ValueError("no"), lm15.RateLimitError),
    "a request that cannot be sent": (lm15.UnsupportedFeatureError("no"), OSError(), lm15.UnsupportedFeatureError),
}
"""What was raised, from what, and what is made of it."""


@pytest.mark.parametrize("case", VERDICTS)
def test_what_an_error_was_raised_from_decides_its_type(case: str) -> None:
    error, cause, verdict = VERDICTS[case]
    with pytest.raises(verdict) as caught, lm15_errors():
        raise error from cause
    assert type(caught.value) is verdict


def test_what_is_no_error_of_the_provider_passes_as_it_is() -> None:
    error = ValueError("a mistake in the code")
    with pytest.raises(ValueError) as caught, lm15_errors():
        raise error
    assert caught.value is error


def test_of_a_response_that_nobody_has_read_the_headers_are_told() -> None:
    for headers, told in (({"retry-after": "3"}, 3.0), ({"server": "any"}, None)):
        refused = lm15.RateLimitError("no")
        refused.__cause__ = httpx.HTTPStatusError(
            "no",
            request=httpx.Request("POST", "http://127.0.0.1"),
            response=httpx.Response(429, headers=headers, stream=httpx.AsyncByteStream()),
        )
        with pytest.raises(lm15.RateLimitError) as caught, lm15_errors():
            raise refused
        assert caught.value is refused
        assert refused.retry_after == told


@pytest.mark.parametrize("error", [lm15.InvalidRequestError("no"), lm15.RateLimitError("no", retry_after=1.0)])
def test_an_error_with_no_response_behind_it_passes_as_it_is(error: lm15.LM15Error) -> None:
    with pytest.raises(type(error)) as caught, lm15_errors():
        raise error
    assert caught.value is error


@pytest.mark.parametrize("model", ["cohere/fake", "openai/fake"])
async def test_the_start_of_a_pool_that_needs_litellm_imports_it_where_no_event_loop_runs(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked: list[bool] = []

    def get(**_: Any) -> Any:
        blocked.append(asyncio._get_running_loop() is not None)
        return get_litellm(feature="tests")

    monkeypatch.setattr(litellm_client, "_LOADED", [])
    monkeypatch.setattr(litellm_client, "get_litellm", get)
    async with ActorSystem() as system:
        for name in ("one", "another"):
            await LMPool(Endpoint(model, api_key="none"), name=name).start(system)
            assert blocked == ([False] if model == "cohere/fake" else [])
