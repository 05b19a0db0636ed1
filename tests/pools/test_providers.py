"""Every provider through the pool, in its own wire format: by lm15, which speaks all but Cohere's, and by litellm.

A table states how each takes each fault.
"""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.lm15 import Config, Message, Request, UnsupportedFeatureError
from dspy.utils.exceptions import LMError

from promptside.pools import BreakerConfig, Endpoint, RetryConfig
from promptside.pools.clients.endpoint import open_client
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.pools import KEY, Scene, async_engine, endpoint, running

MODELS = {
    "openai": "openai/fake",
    "anthropic": "anthropic/claude-fake",
    "gemini": "gemini/gemini-fake",
    "cohere": "cohere/command-fake",
}
PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/v1beta/models/gemini-fake:generateContent",
    "cohere": "/v2/chat",
}
CREDENTIALS = {
    "openai": ("authorization", f"Bearer {KEY}"),
    "anthropic": ("x-api-key", KEY),
    "gemini": ("x-goog-api-key", KEY),
    "cohere": ("authorization", f"Bearer {KEY}"),
}


def door(server: FakeServer, provider: str, **settings: Any) -> Endpoint:
    return endpoint(server, MODELS[provider], **{"api_base": server.url_for(provider), **settings})


def request(provider: str, **config: Any) -> Request:
    return Request(model=MODELS[provider], messages=(Message.user("hello world"),), config=Config(**config))


async def complete(scene: Scene, provider: str, **config: Any) -> Any:
    return await async_engine(scene.lm).complete(request(provider, **config))


async def stream(scene: Scene, provider: str, **config: Any) -> list[Any]:
    return [event async for event in async_engine(scene.lm).stream(request(provider, **config))]


def texts(events: list[Any]) -> list[str]:
    return [event.delta.text for event in events if event.type == "delta"]


CLIENTS = [("lm15", provider) for provider in MODELS if provider != "cohere"] + [("litellm", name) for name in MODELS]
"""Who sends, and to whom: lm15 does not speak Cohere's format."""
with_each_client = pytest.mark.parametrize(("client", "provider"), CLIENTS)


@pytest.fixture
def only(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that lm15 cannot represent, where litellm is to send them."""

    def refuse(engine: AsyncLM15Engine, model: str) -> None:
        raise UnsupportedFeatureError("there is no such field", feature="field")

    if client == "litellm":
        monkeypatch.setattr(AsyncLM15Engine, "resolve", refuse)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("only")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic
@with_each_client
async def test_it_answers_whole_and_in_pieces_with_what_was_counted(client: str, provider: str) -> None:
    with FakeServer("one two three") as server:
        async with running(door(server, provider)) as scene:
            assert await scene.lm.acall("hello world") == ["one two three"]
            answer = await complete(scene, provider)
            assert (answer.text, answer.usage.input_tokens, answer.usage.output_tokens) == ("one two three", 2, 3)
            events = await stream(scene, provider)
            assert texts(events) == ["one ", "two ", "three"]
            end = events[-1]
            assert (end.type, end.finish_reason, end.usage.output_tokens) == ("end", "stop", 3)
            # litellm does not read the count of Cohere's streams and makes its own
            assert end.usage.input_tokens == (9 if provider == "cohere" else 2)
            assert server.requests[0].path == PATHS[provider]
            name, value = CREDENTIALS[provider]
            assert {record.headers[name] for record in server.requests} == {value}
            assert {"lm15" in record.headers["user-agent"] for record in server.requests} == {client == "lm15"}


@pytest.mark.parametrize("provider", MODELS)
async def test_a_limit_of_tokens_and_a_stop_text_reach_the_provider(provider: str) -> None:
    # Some versions of litellm say "stop" for every reason of Cohere's.
    reasons = {"length", "stop"} if provider == "cohere" else {"length"}
    with FakeServer("one two three") as server:
        async with running(door(server, provider)) as scene:
            cut = await complete(scene, provider, max_tokens=2)
            assert cut.text == "one two "
            assert cut.finish_reason in reasons
            assert cut.usage.output_tokens == 2
            assert (await complete(scene, provider, stop=("three",))).text == "one two "
            events = await stream(scene, provider, max_tokens=2)
            assert texts(events) == ["one ", "two "]
            assert events[-1].finish_reason in reasons


# -- faults ------------------------------------------------------------------------------------------------------------

FAULTS = {
    "429": Fault.status(429),
    "429 after 0.25": Fault.status(429, retry_after=0.25),
    "overloaded after 2": Fault.overloaded(retry_after=2),
    "500": Fault.status(500),
    "529": Fault.status(529),
    "503": Fault.status(503),
    "504": Fault.status(504),
    "hang": Fault.hang(),
    "reset": Fault.reset(),
    "half body": Fault.half_body(),
    "malformed": Fault.malformed(),
    "empty": Fault.empty_choices(),
    "cut": Fault.cut_stream(1),
    "400": Fault.status(400),
    "401": Fault.status(401),
    "402": Fault.status(402),
    "403": Fault.status(403),
    "404": Fault.status(404),
    "422": Fault.status(422),
    "too long": Fault.status(
        400, message="too many tokens: the prompt exceeds the context length", code="context_length_exceeded"
    ),
}
"""The faults of the table, by the names of its rows."""

# What the attempt ended with ("LM...Error", or "-" for an answer), what that made of the circuit, and who ended the
# call: "spare" is another endpoint, "raised" the caller.
TABLE = """
fault              | every provider, whole        | streamed
429                | RateLimit closed spare       | RateLimit closed spare
429 after 0.25     | RateLimit closed spare       | RateLimit closed spare
overloaded after 2 | Server open spare            | Server open spare
500                | Server open spare            | Server open spare
529                | Server open spare            | Server open spare
503                | Server open spare            | Server open spare
504                | Timeout open spare           | Timeout open spare
hang               | Timeout open spare           | Timeout open spare
reset              | Transport open spare         | Transport open spare
half body          | Transport open spare         | Transport open raised
malformed          | Provider open spare          | Provider open spare
empty              | Provider open spare          | Provider open spare
cut                | Transport open spare         | Transport open raised
400                | InvalidRequest closed raised | InvalidRequest closed raised
401                | Auth closed spare            | Auth closed spare
402                | Billing closed spare         | Billing closed spare
403                | Auth closed spare            | Auth closed spare
404                | InvalidRequest closed raised | InvalidRequest closed raised
422                | InvalidRequest closed raised | InvalidRequest closed raised
too long           | ContextWindow closed raised  | ContextWindow closed raised
"""
NOT_AS_LONG = {"anthropic", "gemini"}
"""Where litellm takes a prompt that is too long for any other bad request."""


def column(client: str, provider: str, *, streamed: bool) -> dict[str, str]:
    """One provider's cells, by fault."""
    rows = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()[1:]]
    cells = {fault: in_pieces if streamed else whole for fault, whole, in_pieces in rows}
    if client == "litellm" and provider in NOT_AS_LONG:
        cells["too long"] = cells["400"]
    return cells


async def observe(server: FakeServer, provider: str, fault: str, *, streamed: bool) -> tuple[str, float | None]:
    """What one fault makes of one call: a cell of the table, and the Retry-After that the pool came to know."""
    # Only what is to hang gets little time: on a busy machine another would seem to hang as well.
    real = door(server, provider, name="real", timeout=0.3 if fault == "hang" else 30.0)
    spare = Endpoint(MODELS[provider], engine=MockLM("spare"), name="spare")
    strict = BreakerConfig(min_calls=1, failure_rate=1.0, open_for=60.0)
    async with running(real, spare, breaker=strict, retry=RetryConfig(attempts=1, initial=0)) as scene:
        before = len(server.requests)
        server.script([FAULTS[fault]])
        try:
            said = "".join(texts(await stream(scene, provider))) if streamed else (await complete(scene, provider)).text
            end = said if said == "spare" else "answered"
        except LMError:
            end = "raised"
        assert len(server.requests) - before == 1, "litellm sent it again"
        server.heal()
        await until(lambda: scene.events("lm.attempt.failed") or scene.events("lm.attempt.stopped"))
        failed = next((event.data for event in scene.events("lm.attempt.failed")), {})
        error = str(failed.get("error", "-")).removeprefix("LM").removesuffix("Error").removesuffix("Exceeded")
        # Newer releases of litellm and openai say more exactly of a 404 what kind of an invalid request it is.
        error = error.replace("UnsupportedModel", "InvalidRequest")
        return f"{error} {scene.circuit('real')} {end}", failed.get("retry_after")


@pytest.mark.usefixtures("only")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # litellm's own use of pydantic
# litellm leaves the connection of a stream that ended badly to the garbage collection.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:Unclosed client session:ResourceWarning")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@with_each_client
async def test_each_fault_of_each_provider_is_judged_as_the_table_says(
    client: str, provider: str, streamed: bool
) -> None:
    with FakeServer("one two three") as server:
        seen = {fault: await observe(server, provider, fault, streamed=streamed) for fault in FAULTS}
    gc.collect()
    assert {"lm15" in request.headers["user-agent"] for request in server.requests} == {client == "lm15"}
    table = column(client, provider, streamed=streamed)
    assert {fault: cell for fault, (cell, _) in seen.items() if cell != table[fault]} == {}
    waits = {fault: wait for fault, (_, wait) in seen.items() if wait is not None}
    assert waits == {"429 after 0.25": 0.25, "overloaded after 2": 2.0}


async def test_the_last_client_of_a_loop_closes_what_litellm_keeps_open_and_no_one_before() -> None:
    with FakeServer("one two three") as server:
        first, last = (open_client(door(server, "cohere")) for _ in range(2))
        server.fail(Fault.hang(), times=2)
        calls = [asyncio.create_task(client.complete(request("cohere"))) for client in (first, last)]
        await server.until(lambda: server.active == 2)
        await first.aclose()
        server.heal()
        assert [(await call).text for call in calls] == ["one two three"] * 2
        assert server.connections == 2
        await last.aclose()
        await server.until(lambda: server.connections == 0)


async def test_a_pool_that_has_ended_leaves_no_connection_open() -> None:
    with FakeServer("one two three") as server:
        async with running(*(door(server, provider) for provider in MODELS)) as scene:
            for model in MODELS.values():
                assert await scene.pool.lm(model, cache=False).acall("hello") == ["one two three"]
            assert server.connections == len(MODELS)
        await server.until(lambda: server.connections == 0)
