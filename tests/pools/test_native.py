"""lm15 first, litellm for the rest: who is asked, when, and what of the environment they follow."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dspy.lm15 import (
    AudioPart,
    BuiltinTool,
    CacheConfig,
    Config,
    ImagePart,
    InvalidRequestError,
    Message,
    Request,
    Response,
    TextPart,
    ToolChoice,
    ToolResultPart,
    UnsupportedFeatureError,
)

from promptside.pools import Endpoint
from promptside.pools.clients.endpoint import open_client
from promptside.pools.clients.native import EndpointClient, NativeEngine, NativeFirst
from promptside.testing import FakeServer
from tests.support.pools import endpoint

MODELS = {"openai": "openai/fake", "anthropic": "anthropic/claude-fake", "gemini": "gemini/gemini-fake"}


def asking(provider: str, *messages: Message, **more: Any) -> Request:
    return Request(model=MODELS[provider], messages=messages or (Message.user("hello world"),), **more)


def door(server: FakeServer, provider: str = "openai") -> Endpoint:
    return endpoint(server, MODELS[provider], api_base=server.url_for(provider))


def opened(door: Endpoint) -> tuple[NativeFirst, NativeEngine]:
    opening = open_client(door)
    assert isinstance(opening, EndpointClient)
    client = opening._client(asking("openai"))
    assert isinstance(client, NativeFirst)
    assert isinstance(client._native, NativeEngine)
    return client, client._native


SEARCH = BuiltinTool("web_search")
SOUND = AudioPart(data="UklGRjAwMDBXQVZF", media_type="audio/wav")
REFUSED: dict[str, Request] = {
    "openai, a sound": asking("openai", Message.user([TextPart("hello"), SOUND])),
    "openai, a file by its id": asking("openai", Message.user([TextPart("hello"), ImagePart(file_id="file-1")])),
    "openai, a hosted tool": asking("openai", tools=(SEARCH,)),
    "openai, a stored cache": asking("openai", config=Config(cache=CacheConfig(resource="cache-1"))),
    "anthropic, any JSON": asking("anthropic", config=Config(response_format={"type": "json_object"})),
    "anthropic, a stored cache": asking("anthropic", config=Config(cache=CacheConfig(resource="cache-1"))),
    "gemini, a forced hosted tool": asking(
        "gemini", tools=(SEARCH,), config=Config(tool_choice=ToolChoice(mode="required", allowed=("web_search",)))
    ),
    "gemini, a tool's result without its name": asking(
        "gemini", Message.user("hello"), Message(role="tool", parts=(ToolResultPart(id="1", content=(TextPart("2"),)),))
    ),
}
"""What lm15 cannot represent; of each a different place that refuses it."""


@pytest.mark.parametrize("case", REFUSED)
async def test_whatever_lm15_cannot_plan_it_refuses_to_make_before_anything_is_sent(case: str) -> None:
    request = REFUSED[case]
    with FakeServer("one two three") as server:
        client, native = opened(door(server, case.partition(",")[0]))
        for _ in range(2):  # a client's first call goes another way than the later ones
            with pytest.raises(UnsupportedFeatureError):
                native.plan(request)
            with pytest.raises(UnsupportedFeatureError):
                await native.complete(request)
        assert server.requests == []
        await client.aclose()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic
async def test_what_lm15_refuses_is_made_by_litellm_once() -> None:
    with FakeServer("one two three") as server:
        client, _ = opened(door(server, "anthropic"))
        assert (await client.complete(REFUSED["anthropic, any JSON"])).text == "one two three"
        (sent,) = server.requests
        assert "lm15" not in sent.headers["user-agent"]
        await client.aclose()


async def test_what_was_sent_is_not_sent_again_whatever_the_error_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async def complete(engine: NativeEngine, request: Request) -> Response:
        await original(engine, request)
        raise UnsupportedFeatureError("the provider does not know this field")

    original = NativeEngine.complete
    monkeypatch.setattr(NativeEngine, "complete", complete)
    with FakeServer("one two three") as server:
        client, _ = opened(door(server))
        with pytest.raises(UnsupportedFeatureError, match="the provider does not know"):
            await client.complete(asking("openai"))
        assert len(server.requests) == 1
        await client.aclose()


async def test_a_call_builds_its_request_once_and_only_the_first_one_asks_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_threads: list[Any] = []

    async def to_thread(function: Any, *args: Any) -> Any:
        in_threads.append(function)
        return function(*args)

    def plan(engine: NativeEngine, request: Request) -> None:
        raise AssertionError("it was built beforehand")

    with FakeServer("one two three") as server:
        client, native = opened(door(server))
        with monkeypatch.context() as watched:
            watched.setattr(asyncio, "to_thread", to_thread)
            watched.setattr(NativeEngine, "plan", plan)
            for _ in range(3):
                assert (await client.complete(asking("openai"))).text == "one two three"
        assert in_threads == [native._target]
        assert server.connections == 1
        await client.aclose()
        await server.until(lambda: server.connections == 0)


async def test_a_proxy_that_the_environment_names_is_asked_but_for_the_hosts_that_it_excepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeServer("one two three") as server, FakeServer("of the proxy") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "")
        client, _ = opened(door(server))
        with pytest.raises(InvalidRequestError, match=f"there is no POST {server.url}/chat/completions here"):
            await client.complete(asking("openai"))
        assert server.requests == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert (await client.complete(asking("openai"))).text == "one two three"
        await client.aclose()
