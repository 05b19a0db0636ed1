"""`promptside.testing.FakeServer`: its endpoints, its faults, what it notices, and how it ends."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.lm15 import Message, RateLimitError, Request, RouterConfig

from promptside.testing import FakeServer, Fault


def address(server: FakeServer) -> tuple[str, int]:
    parts = urlsplit(server.url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


def connect(server: FakeServer) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(*address(server), timeout=10)


def chat(text: str = "hello", **fields: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], **fields}).encode()


def post(server: FakeServer, body: bytes, path: str = "/v1/chat/completions") -> tuple[http.client.HTTPResponse, Any]:
    connection = connect(server)
    try:
        connection.request("POST", path, body)
        response = connection.getresponse()
        return response, json.loads(response.read())
    finally:
        connection.close()


def says(payload: Any) -> str:
    return str(payload["choices"][0]["message"]["content"])


def events(text: str) -> list[Any]:
    data = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    return [json.loads(item) if item != "[DONE]" else item for item in data]


def test_a_text_answers_every_prompt_and_words_are_counted_as_tokens() -> None:
    with FakeServer("two words") as server:
        response, payload = post(server, chat("three small words"))
    assert response.status == 200
    assert says(payload) == "two words"
    assert payload["model"] == "m"
    assert payload["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_map_answers_by_the_first_substring_of_the_last_user_message_and_else_by_default() -> None:
    with FakeServer({"France": "Paris", "capital": "which?", "default": "pardon?"}) as server:
        assert says(post(server, chat("the capital of France"))[1]) == "Paris"
        assert says(post(server, chat("the capital of Spain"))[1]) == "which?"
        assert says(post(server, chat("hello"))[1]) == "pardon?"


def test_a_prompt_that_no_key_matches_is_a_bad_request_that_names_the_keys() -> None:
    with FakeServer({"France": "Paris"}) as server:
        response, payload = post(server, chat("Spain"))
    assert response.status == 400
    assert "'France'" in payload["error"]["message"]
    assert "'Spain'" in payload["error"]["message"]


def test_a_function_answers_from_the_body_and_its_error_is_a_500_that_names_it() -> None:
    def shout(body: Any) -> str:
        return str(body["messages"][-1]["content"].upper() if body["model"] == "m" else 1 / 0)

    with FakeServer(shout) as server:
        assert says(post(server, chat("hello"))[1]) == "HELLO"
        response, payload = post(server, chat("hello", model="other"))
    assert response.status == 500
    assert "ZeroDivisionError" in payload["error"]["message"]


def test_message_parts_are_read_as_text() -> None:
    body = {"messages": [{"role": "user", "content": [{"type": "text", "text": "of France"}]}]}
    with FakeServer({"France": "Paris"}) as server:
        assert says(post(server, json.dumps(body).encode())[1]) == "Paris"


def test_a_stream_sends_word_by_word_and_the_usage_when_it_is_asked_for() -> None:
    with FakeServer("one two three") as server:
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True}))
        response = connection.getresponse()
        *chunks, usage, done = events(response.read().decode())
        connection.close()
    assert response.headers["content-type"] == "text/event-stream"
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == ["", "one ", "two ", "three", None]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 3
    assert done == "[DONE]"


def test_models_and_embeddings_are_served_and_other_paths_are_not() -> None:
    with FakeServer(model="tiny") as server:
        connection = connect(server)
        connection.request("GET", "/v1/models?limit=1")
        models = json.loads(connection.getresponse().read())
        connection.close()
        _, embedded = post(server, json.dumps({"input": ["a", "b b", "a"]}).encode(), "/v1/embeddings")
        missing, _ = post(server, b"{}", "/v1/responses")
    assert [model["id"] for model in models["data"]] == ["tiny"]
    first, second, third = (item["embedding"] for item in embedded["data"])
    assert first == third != second
    assert embedded["usage"]["prompt_tokens"] == 4
    assert missing.status == 404


def test_bodies_that_are_no_json_or_have_no_length_are_refused() -> None:
    with FakeServer() as server:
        assert post(server, b"{")[0].status == 400
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", iter([b"{}"]), encode_chunked=True)
        assert connection.getresponse().status == 411
        connection.close()
        assert post(server, b'{"messages": 5}')[0].status == 500


def test_requests_on_one_connection_are_answered_in_order_and_recorded() -> None:
    with FakeServer(lambda body: str(body["messages"][-1]["content"])) as server:
        connection = connect(server)
        for text in ("one", "two"):
            connection.request("POST", "/v1/chat/completions", chat(text), {"Authorization": "Bearer key"})
            assert says(json.loads(connection.getresponse().read())) == text
        first, second = server.requests
        assert server.connections == server.max_connections == server.total_connections == 1
        connection.close()
        server.wait_for(lambda: server.connections == 0)
    assert (first.method, first.path, first.status) == ("POST", "/v1/chat/completions", 200)
    assert first.headers["authorization"] == "Bearer key"
    assert first.body["messages"][0]["content"] == "one"
    assert first.time <= second.time
    assert first.finished
    assert not first.aborted


def test_pipelined_requests_are_answered_one_after_another() -> None:
    body = chat()
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    last = request.replace(b"\r\n", b"\r\nconnection: close\r\n", 1)
    with FakeServer(latency=0.01) as server:
        with socket.create_connection(address(server)) as client:
            client.sendall(request * 2 + last)
            received = b"".join(iter(lambda: client.recv(65536), b""))
        assert received.count(b"HTTP/1.1 200 OK") == 3
        assert server.max_active == 1


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 529])
def test_a_status_fault_answers_with_an_error_body(status: int) -> None:
    with FakeServer() as server:
        server.fail(Fault.status(status, message="no", code="because", headers={"x-reason": "test"}))
        response, payload = post(server, chat())
        assert response.status == status
        assert response.headers["x-reason"] == "test"
        assert "retry-after" not in response.headers
        assert payload["error"]["message"] == "no"
        assert payload["error"]["code"] == "because"
        assert post(server, chat())[0].status == 200


def test_retry_after_is_sent_when_it_is_given() -> None:
    with FakeServer() as server:
        server.fail(Fault.status(429, retry_after=0.25))
        assert post(server, chat())[0].headers["retry-after"] == "0.25"


def test_a_reset_is_a_connection_reset_and_not_the_clients_abort() -> None:
    with FakeServer() as server:
        server.fail(Fault.reset())
        with pytest.raises(ConnectionResetError):
            post(server, chat())
        server.wait_for(lambda: server.requests[0].finished)
        assert server.requests[0].status is None
        assert not server.requests[0].aborted


def test_half_a_body_promises_more_than_it_sends() -> None:
    with FakeServer() as server:
        server.fail(Fault.half_body())
        with pytest.raises(http.client.IncompleteRead) as caught:
            post(server, chat())
    assert caught.value.expected is not None
    assert abs(len(caught.value.partial) - caught.value.expected) <= 1


def test_malformed_and_empty_answers_are_sent_as_good_ones() -> None:
    with FakeServer() as server:
        server.script([Fault.malformed(), Fault.empty_choices()])
        with pytest.raises(json.JSONDecodeError):
            post(server, chat())
        assert post(server, chat())[1]["choices"] == []
    assert [record.status for record in server.requests] == [200, 200]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault.cut_stream(2), ["", "one ", "two "]),
        (Fault.cut_stream(0), [""]),
        (Fault.half_body(), ["", "one ", "two "]),
    ],
)
def test_a_stream_can_break_off(fault: Fault, words: list[str]) -> None:
    with FakeServer("one two three four") as server:
        server.fail(fault)
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", chat(stream=True))
        with pytest.raises(http.client.IncompleteRead) as caught:
            connection.getresponse().read()
        connection.close()
    sent = events(caught.value.partial.decode())
    assert [event["choices"][0]["delta"]["content"] for event in sent] == words


def test_a_stream_without_choices_ends_well() -> None:
    with FakeServer() as server:
        server.fail(Fault.empty_choices())
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", chat(stream=True))
        *chunks, done = events(connection.getresponse().read().decode())
        connection.close()
    assert [chunk["choices"] for chunk in chunks] == [[]]
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_slow_tokens_delay_an_answer_that_is_whole(stream: bool) -> None:
    with FakeServer("one two three") as server:
        server.fail(Fault.slow_tokens(0.02))
        connection = connect(server)
        began = time.perf_counter()
        connection.request("POST", "/v1/chat/completions", chat(stream=stream))
        assert b"three" in connection.getresponse().read()
        assert time.perf_counter() - began >= 0.06
        connection.close()


async def test_hanging_requests_are_answered_when_they_are_released() -> None:
    async with FakeServer("at last") as server:
        server.fail(Fault.hang(), times=2)
        posts = [asyncio.create_task(asyncio.to_thread(post, server, chat())) for _ in range(2)]
        await server.until(lambda: server.active == 2)
        assert [record.finished for record in server.requests] == [False, False]
        server.release()
        assert [says(payload) for _, payload in await asyncio.gather(*posts)] == ["at last", "at last"]


def test_a_client_that_goes_away_is_noticed() -> None:
    with FakeServer() as server:
        server.fail(Fault.hang())
        connection = connect(server)
        connection.request("POST", "/v1/chat/completions", chat())
        server.wait_for(lambda: server.active == 1)
        assert not server.requests[0].aborted
        connection.close()
        server.wait_for(lambda: server.requests[0].finished)
        assert server.requests[0].aborted
        assert server.active == server.connections == 0


async def test_cancelling_an_lm_call_is_noticed_and_its_retry_after_arrives() -> None:
    async with FakeServer() as server:
        engine = AsyncLM15Engine(
            RouterConfig(base_urls={"openai-chat": server.url}, api_keys={"openai-chat": "none"}, env={})
        )
        request = Request(model="openai/any", messages=(Message.user("hello"),))
        server.script([Fault.status(429, retry_after=1.5), Fault.hang()])
        with pytest.raises(RateLimitError) as caught:
            await engine.complete(request)
        assert caught.value.retry_after == 1.5
        call = asyncio.create_task(engine.complete(request))
        await server.until(lambda: len(server.requests) == 2)
        call.cancel()
        await server.until(lambda: server.requests[1].aborted)
        await engine.aclose()


def test_faults_come_in_order_and_a_lasting_one_until_healed() -> None:
    with FakeServer() as server:
        server.script([Fault.status(500), None])
        server.fail(Fault.status(429), times=2)
        server.fail(Fault.status(503), times=None)
        assert [post(server, chat())[0].status for _ in range(6)] == [500, 200, 429, 429, 503, 503]
        server.fail(Fault.status(500))
        server.heal()
        assert post(server, chat())[0].status == 200
        server.fail(Fault.status(500))
        assert post(server, b'{"input": "x"}', "/v1/embeddings")[0].status == 500


def test_latency_holds_for_answers_and_faults_and_can_be_changed() -> None:
    with FakeServer() as server:
        server.latency = 0.05
        assert server.latency == 0.05
        server.fail(Fault.status(500))
        for status in (500, 200):
            began = time.perf_counter()
            assert post(server, chat())[0].status == status
            assert time.perf_counter() - began >= 0.05


async def test_three_hundred_connections_are_served_at_once() -> None:
    body = chat()
    request = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        len(body),
        body,
    )

    async def call(server: FakeServer) -> bytes:
        reader, writer = await asyncio.open_connection(*address(server))
        writer.write(request)
        received = await reader.read()
        writer.close()
        await writer.wait_closed()
        return received

    async with FakeServer() as server:
        server.fail(Fault.hang(), times=300)
        calls = [asyncio.create_task(call(server)) for _ in range(300)]
        await server.until(lambda: server.active == 300)
        assert server.connections == 300
        server.release()
        assert all(received.startswith(b"HTTP/1.1 200 OK") for received in await asyncio.gather(*calls))
        assert server.max_connections == server.max_active == len(server.requests) == 300


async def test_a_caller_that_blocks_its_loop_is_served() -> None:
    async with FakeServer("still here") as server:
        assert says(post(server, chat())[1]) == "still here"


def test_closing_leaves_no_thread_and_drops_requests_in_progress() -> None:
    before = threading.active_count()
    server = FakeServer()
    server.start()
    server.fail(Fault.hang())
    connection = connect(server)
    connection.request("POST", "/v1/chat/completions", chat())
    server.wait_for(lambda: server.active == 1)
    server.close()
    server.close()
    assert threading.active_count() == before
    assert server.connections == server.active == 0
    assert not server.requests[0].aborted
    with pytest.raises(ConnectionError):
        connection.getresponse()
    connection.close()
    with pytest.raises(ConnectionRefusedError):
        post(server, chat())


def test_a_closed_server_starts_again_at_its_address() -> None:
    with FakeServer() as server:
        first = server.url
        post(server, chat())
    with server:
        assert server.url == first
        assert post(server, chat())[0].status == 200
    assert len(server.requests) == 2


def test_misuse_is_an_error_with_its_remedy() -> None:
    server = FakeServer()
    with pytest.raises(RuntimeError, match="start it"):
        _ = server.url
    with server, pytest.raises(RuntimeError, match="already"):
        server.start()
    with pytest.raises(ValueError, match="latency=-1"):
        FakeServer(latency=-1)
    with pytest.raises(ValueError, match="times=0"):
        server.fail(Fault.reset(), times=0)
    with pytest.raises(ValueError, match="status_code=200"):
        Fault.status(200)
    with pytest.raises(ValueError, match="tokens=-1"):
        Fault.cut_stream(-1)
    with pytest.raises(ValueError, match="seconds=-1"):
        Fault.slow_tokens(-1)


def test_an_address_in_use_is_an_error_and_leaves_no_thread() -> None:
    before = threading.active_count()
    with FakeServer() as server:
        post(server, chat())
    with socket.create_server(address(server)), pytest.raises(OSError, match="address"):
        server.start()
    assert threading.active_count() == before


def test_waiting_in_vain_is_a_timeout_that_shows_the_requests() -> None:
    with FakeServer() as server:
        post(server, chat())
        with pytest.raises(TimeoutError, match=r"/v1/chat/completions"):
            server.wait_for(lambda: False, timeout=0.01)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FakeServer(5), "FakeServer: answer=5: give a text, a mapping"),
        (lambda: FakeServer(model=5), "FakeServer: model=5: give a text"),
        (lambda: FakeServer().fail(None), "FakeServer.fail: fault=None: give a fault"),
        (lambda: FakeServer().script(5), "FakeServer.script: outcomes=5: give a list of faults"),
        (lambda: FakeServer().script(["x"]), r"FakeServer.script: outcomes=\['x'\]: give a list of faults"),
        (lambda: Fault.status(None), "Fault: status_code=None: give an error's status"),
    ],
)
def test_what_the_server_cannot_use_is_named_in_the_error(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
