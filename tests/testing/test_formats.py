"""The wire formats of `FakeServer`, as bytes: what each provider's client sends, and what it gets to see.

That real clients read them is shown in `tests/pools/test_providers.py`.
"""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from promptside.testing import FakeServer, Fault

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
GEMINI = "/v1beta/models/gemini-1:{}"
Exchange = tuple[http.client.HTTPResponse, str]


def post(server: FakeServer, path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> Exchange:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(body), headers or {})
        response = connection.getresponse()
        return response, response.read().decode()
    finally:
        connection.close()


def send(server: FakeServer, provider: str, *, stream: bool = False, **more: Any) -> Exchange:
    """A request for "hello there", with a system message of two words."""
    messages = [{"role": "user", "content": "hello there"}]
    match provider:
        case "openai":
            body = {"model": "m", "messages": [{"role": "system", "content": "be brief"}, *messages]}
            return post(server, "/v1/chat/completions", {**body, "stream": stream, **more})
        case "anthropic":
            body = {"model": "m", "system": "be brief", "messages": messages, "max_tokens": 100}
            return post(server, "/v1/messages", {**body, "stream": stream, **more})
        case "gemini":
            body = {
                "systemInstruction": {"parts": [{"text": "be brief"}]},
                "contents": [{"role": "user", "parts": [{"text": "hello there"}]}],
            }
            path = GEMINI.format("streamGenerateContent" if stream else "generateContent")
            return post(server, path, {**body, **more})
        case _:
            body = {"model": "m", "messages": [{"role": "system", "content": "be brief"}, *messages]}
            return post(server, "/v2/chat", {**body, "stream": stream, **more})


def said(provider: str, text: str) -> tuple[str, str, tuple[int, int]]:
    """Text, reason and counts of a whole answer."""
    payload = json.loads(text)
    match provider:
        case "openai":
            choice, usage = payload["choices"][0], payload["usage"]
            counts = usage["prompt_tokens"], usage["completion_tokens"]
            return choice["message"]["content"], choice["finish_reason"], counts
        case "anthropic":
            usage = payload["usage"]
            counts = usage["input_tokens"], usage["output_tokens"]
            return payload["content"][0]["text"], payload["stop_reason"], counts
        case "gemini":
            candidate, usage = payload["candidates"][0], payload["usageMetadata"]
            counts = usage["promptTokenCount"], usage["candidatesTokenCount"]
            return candidate["content"]["parts"][0]["text"], candidate["finishReason"], counts
        case _:
            usage = payload["usage"]["tokens"]
            counts = usage["input_tokens"], usage["output_tokens"]
            return payload["message"]["content"][0]["text"], payload["finish_reason"], counts


LIMITS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "openai": ({"max_completion_tokens": 2}, {"stop": "three"}),
    "anthropic": ({"max_tokens": 2}, {"stop_sequences": ["three"]}),
    "gemini": ({"generationConfig": {"maxOutputTokens": 2}}, {"generationConfig": {"stopSequences": ["three"]}}),
    "cohere": ({"max_tokens": 2}, {"stop_sequences": ["three"]}),
}
REASONS = {
    "openai": ("stop", "length", "stop"),
    "anthropic": ("end_turn", "max_tokens", "stop_sequence"),
    "gemini": ("STOP", "MAX_TOKENS", "STOP"),
    "cohere": ("COMPLETE", "MAX_TOKENS", "STOP_SEQUENCE"),
}


@pytest.mark.parametrize("provider", LIMITS)
def test_an_answer_ends_as_the_request_says_and_gives_the_reason(provider: str) -> None:
    complete, length, stop = REASONS[provider]
    limit, text = LIMITS[provider]
    with FakeServer({"hello": "one two three"}) as server:
        assert said(provider, send(server, provider)[1]) == ("one two three", complete, (4, 3))
        assert said(provider, send(server, provider, **limit)[1]) == ("one two ", length, (4, 2))
        assert said(provider, send(server, provider, **text)[1]) == ("one two ", stop, (4, 2))


SCHEMAS: dict[str, dict[str, Any]] = {
    "openai": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    "anthropic": {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    "gemini": {"generationConfig": {"responseSchema": SCHEMA}},
    "cohere": {"response_format": {"type": "json_object", "json_schema": SCHEMA}},
}


@pytest.mark.parametrize("provider", SCHEMAS)
def test_an_answer_follows_the_schema_of_the_request(provider: str) -> None:
    with FakeServer("Paris") as server:
        assert json.loads(said(provider, send(server, provider, **SCHEMAS[provider])[1])[0]) == {"city": "Paris"}


STREAMS = {
    "anthropic": [
        "message_start",
        "content_block_start",
        "ping",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ],
    "cohere": ["message-start", "content-start", "content-delta", "content-delta", "content-end", "message-end"],
}


@pytest.mark.parametrize("provider", STREAMS)
def test_the_events_of_a_stream_are_named_as_their_types(provider: str) -> None:
    with FakeServer("one two") as server:
        response, text = send(server, provider, stream=True)
    assert response.headers["content-type"] == "text/event-stream"
    blocks = [block.split("\n") for block in text.split("\n\n") if block.startswith("event:")]
    names = [name.removeprefix("event: ") for name, _ in blocks]
    assert names == STREAMS[provider]
    assert names == [json.loads(data.removeprefix("data: "))["type"] for _, data in blocks]
    assert text.endswith("data: [DONE]\n\n") == (provider == "cohere")


def test_cohere_streams_lines_of_json_to_a_client_that_asks_for_json() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with FakeServer("one two") as server:
        response, text = post(server, "/v2/chat", body, {"accept": "application/json"})
    assert response.headers["content-type"] == "application/stream+json"
    assert [json.loads(line)["type"] for line in text.splitlines()] == STREAMS["cohere"]


def test_the_last_piece_of_gemini_has_the_reason_and_the_counts() -> None:
    with FakeServer("one two") as server:
        _, text = send(server, "gemini", stream=True)
    first, second, last = [json.loads(data.removeprefix("data: ")) for data in text.split("\n\n") if data]
    pieces = [chunk["candidates"][0]["content"]["parts"] for chunk in (first, second, last)]
    assert pieces == [[{"text": "one "}], [{"text": "two"}], []]
    assert first["usageMetadata"] == {"promptTokenCount": 4, "totalTokenCount": 4}, "a count of 0 is left out"
    assert last["candidates"][0]["finishReason"] == "STOP"
    assert last["usageMetadata"] == {"promptTokenCount": 4, "candidatesTokenCount": 2, "totalTokenCount": 6}


def test_each_provider_says_in_its_own_way_that_there_were_too_many_requests() -> None:
    retry_info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "7s"}
    google = {"code": 429, "message": "slow down", "status": "RESOURCE_EXHAUSTED", "details": [retry_info]}
    bodies = {
        "openai": {
            "error": {"message": "slow down", "type": "rate_limit_error", "param": None, "code": None},
        },
        "anthropic": {
            "type": "error",
            "error": {"type": "rate_limit_error", "message": "slow down"},
            "request_id": "req_fake",
        },
        "gemini": {"error": google},
        "cohere": {"id": "fake", "message": "slow down"},
    }
    with FakeServer() as server:
        for provider, body in bodies.items():
            server.fail(Fault.status(429, retry_after=7, message="slow down"))
            response, text = send(server, provider)
            assert (response.status, json.loads(text)) == (429, body)
            assert response.headers["retry-after"] == (None if provider == "gemini" else "7")


@pytest.mark.parametrize(
    ("provider", "status", "word"),
    [
        ("openai", 503, '"server_error"'),
        ("anthropic", 529, '"overloaded_error"'),
        ("gemini", 503, '"UNAVAILABLE"'),
        ("cohere", 503, "overloaded"),
    ],
)
def test_each_provider_has_a_status_of_its_own_for_too_much_to_do(provider: str, status: int, word: str) -> None:
    with FakeServer() as server:
        server.fail(Fault.overloaded())
        response, text = send(server, provider)
        assert response.status == status
        assert word in text


def test_an_unknown_prompt_is_refused_in_the_format_of_the_request() -> None:
    with FakeServer({"France": "Paris"}) as server:
        for provider, where in {"anthropic": ("error", "type"), "gemini": ("error", "status")}.items():
            response, text = send(server, provider)
            assert response.status == 400
            assert json.loads(text)[where[0]][where[1]] in ("invalid_request_error", "INVALID_ARGUMENT")


def test_a_request_without_what_the_provider_requires_is_an_error() -> None:
    with FakeServer() as server:
        response, text = post(server, "/v1/messages", {"model": "m", "messages": []})
    assert response.status == 500
    assert "max_tokens" in text


@pytest.mark.parametrize("provider", LIMITS)
def test_one_broken_event_stands_in_a_stream_that_ends_well(provider: str) -> None:
    with FakeServer("one two") as server:
        server.fail(Fault.malformed())
        _, text = send(server, provider, stream=True)
    assert '"choices": [{"message": \n' in text
    assert "one" not in text
    assert "two" in text


def test_embeddings_fail_as_answers_do() -> None:
    with FakeServer() as server:
        server.script([Fault.malformed(), Fault.empty_choices(), Fault.half_body()])
        assert post(server, "/v1/embeddings", {"model": "m", "input": "a"})[1] == '{"choices": [{"message": '
        assert json.loads(post(server, "/v1/embeddings", {"model": "m", "input": "a"})[1])["data"] == []
        with pytest.raises(http.client.IncompleteRead):
            post(server, "/v1/embeddings", {"model": "m", "input": "a"})


def test_there_is_an_address_for_each_provider_and_an_unknown_name_is_an_error() -> None:
    server = FakeServer()
    with pytest.raises(RuntimeError, match="start it"):
        server.url_for("gemini")
    with server:
        assert server.url_for("openai") == server.url_for("anthropic") == server.url
        assert urlsplit(server.url_for("gemini")).path == "/v1beta"
        assert urlsplit(server.url_for("cohere")).path == "/v2/chat"
        with pytest.raises(ValueError, match="provider='acme': give one of openai"):
            server.url_for("acme")
