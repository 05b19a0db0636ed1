"""What becomes of a call by what the provider answers, with real servers and both clients.

Which answers mean what is in `test_judge.py`, and each fault of each provider in `test_providers.py`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dspy
import httpx
import pytest
from dspy import lm15
from dspy.lm15 import Message, Request
from dspy.utils.exceptions import (
    ContextWindowExceededError,
    LMConfigurationError,
    LMError,
    LMInvalidRequestError,
    LMProviderError,
    LMRateLimitError,
    LMServerError,
    LMTimeoutError,
    LMTransportError,
    LMUnexpectedError,
)

from promptside.pools import BreakerConfig, Endpoint, RetryConfig
from promptside.pools.clients.client_errors import wrap_error
from promptside.programs import Program, evaluate
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.pools import Scene, async_engine, endpoint, running
from tests.support.raw_http import read_request

pytestmark = [  # litellm's own use of pydantic
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning"),
]

MODEL = "openai/fake"


def with_each_client(test: Any) -> Any:
    return pytest.mark.usefixtures("only")(pytest.mark.parametrize("client", ["lm15", "litellm"])(test))


with_each_way = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])

ONCE = RetryConfig(attempts=1, initial=0, max_rate_limited=1)


async def ask(scene: Scene, *, streamed: bool) -> str:
    """The text of the answer."""
    request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
    if not streamed:
        return str((await async_engine(scene.lm).complete(request)).text)
    events = [event async for event in async_engine(scene.lm).stream(request)]
    return "".join(event.delta.text for event in events if event.type == "delta")


def spare(model: str = "openai/fake") -> Endpoint:
    return Endpoint(model, engine=MockLM("spare"), name="spare")


# -- another endpoint --------------------------------------------------------------------------------------------------


@with_each_client
@with_each_way
@pytest.mark.parametrize("status", [402, 404, 405, 409, 410, 425, 451, 499])
async def test_what_an_endpoint_cannot_another_may_and_the_event_says_so(
    client: str, streamed: bool, status: int
) -> None:
    with FakeServer() as server:
        server.fail(Fault.status(status), times=None)
        async with running(endpoint(server, MODEL, name="real"), spare()) as scene:
            assert await ask(scene, streamed=streamed) == "spare"
            (failed,) = scene.events("lm.attempt.failed")
            assert (failed.data["endpoint"], failed.data["meaning"]) == ("real", "elsewhere")
            assert scene.circuit("real") == "closed"
        async with running(endpoint(server, MODEL)) as scene:
            with pytest.raises(LMError) as caught:
                await ask(scene, streamed=streamed)
            assert caught.value.status == status
        assert len(server.requests) == 2, "alone it is raised, and sent once"


@with_each_way
@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirection_is_named_with_the_address(streamed: bool, status: int) -> None:
    with FakeServer() as server:
        server.fail(Fault.answer({}, status_code=status, headers={"location": "https://new/v1"}), times=None)
        async with running(server, spare()) as scene:
            assert await ask(scene, streamed=streamed) == "spare"
        async with running(server) as scene:
            with pytest.raises(LMConfigurationError, match=r"https://new/v1; .*api_base="):
                await ask(scene, streamed=streamed)
        assert len(server.requests) == 2


TOO_LONG = Fault.status(400, message="This model's maximum context length is 4096 tokens")


@with_each_client
@with_each_way
async def test_a_prompt_that_is_too_long_is_sent_to_a_larger_window_where_one_is_stated(
    client: str, streamed: bool
) -> None:
    with FakeServer() as small:
        small.fail(TOO_LONG, times=None)
        for own, other, asked in ((4096, 8192, True), (None, 8192, True), (8192, 4096, False), (4096, None, False)):
            first = endpoint(small, MODEL, name="first", context_window=own)
            second = Endpoint(MODEL, engine=MockLM("large"), name="second", context_window=other)
            async with running(first, second) as scene:
                if asked:
                    assert await ask(scene, streamed=streamed) == "large"
                    continue
                with pytest.raises(ContextWindowExceededError):
                    await ask(scene, streamed=streamed)
                assert scene.pool.stats()["second"]["attempts"] == 0


async def test_where_the_larger_window_is_not_there_the_prompt_is_too_long() -> None:
    with FakeServer() as small, FakeServer() as large:
        small.fail(TOO_LONG, times=None)
        large.fail(Fault.status(500), times=None)
        first, second = endpoint(small, name="first"), endpoint(large, name="second", context_window=8192)
        async with running(first, second, breaker=BreakerConfig(min_calls=1), retry=ONCE) as scene:
            for _ in range(2):
                with pytest.raises((LMServerError, ContextWindowExceededError)) as caught:
                    await ask(scene, streamed=False)
            assert type(caught.value) is ContextWindowExceededError
            assert len(large.requests) == 1


# -- waits -------------------------------------------------------------------------------------------------------------


NO_WAITS: list[Any] = ["1e999s", "inf", "nan", "-7s", "1e12s", "soon", True, -1, 10**400, {"seconds": 3}]


@with_each_client
@pytest.mark.parametrize("status", [200, 503])
@pytest.mark.parametrize("place", ["body", "header"])
async def test_what_is_no_wait_is_not_waited_for(client: str, status: int, place: str) -> None:
    with FakeServer() as server:
        async with running(endpoint(server, MODEL), retry=ONCE, breaker=BreakerConfig(min_calls=1000)) as scene:
            for asked in NO_WAITS:
                detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": asked}
                error = {"code": 503, "message": "slow", "details": [detail] if place == "body" else []}
                headers = {"retry-after": str(asked).removesuffix("s")} if place == "header" else {}
                server.fail(Fault.answer({"error": error}, status_code=status, headers=headers))
                with pytest.raises(LMServerError) as caught:
                    await ask(scene, streamed=False)
                assert caught.value.retry_after is None, asked


@pytest.mark.parametrize(
    "asked", [math.inf, math.nan, -1.0, 1e12, 10**400, True, "5"], ids=lambda asked: str(asked)[:6]
)
@pytest.mark.parametrize("kind", [lm15.RateLimitError, lm15.ServerError, LMRateLimitError, ConnectionError])
def test_what_is_no_wait_is_in_no_error_of_a_client(kind: Any, asked: Any) -> None:
    for wait, told in ((asked, None), (2.5, 2.5)):
        error = kind("busy")
        error.retry_after = wait
        assert wrap_error(error, model=MODEL).retry_after == told  # type: ignore[attr-defined]


# -- answers -----------------------------------------------------------------------------------------------------------

COUNTS: list[Any] = ["n/a", [1], {"prompt_tokens": "5"}, {"prompt_tokens": 5, "completion_tokens": -1}]
ABSURD: list[Any] = [
    {"prompt_tokens": 10**400, "completion_tokens": 1, "total_tokens": 2},
    {"prompt_tokens": 1, "completion_tokens": 10**12, "total_tokens": 2},
    {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 10**12},
]


@with_each_client
@with_each_way
@pytest.mark.parametrize("count", COUNTS, ids=str)
async def test_a_wrong_count_makes_the_bill_unknown_and_no_more(client: str, streamed: bool, count: Any) -> None:
    said = {"role": "assistant", "content": "Paris"}
    choice = {"index": 0, "finish_reason": "stop", "delta" if streamed else "message": said}
    with FakeServer() as server:
        server.fail(Fault.answer({"id": "x", "model": "fake", "choices": [choice], "usage": count}))
        async with running(endpoint(server, MODEL, name="real")) as scene:
            assert await ask(scene, streamed=streamed) == "Paris"
            assert len(server.requests) == 1
            assert scene.pool.stats()["real"]["input_tokens"] == 0 or client == "litellm", "litellm counts by itself"


@with_each_client
@with_each_way
@pytest.mark.parametrize("count", ABSURD, ids=lambda count: str(count)[:24])
async def test_a_count_that_no_request_can_have_holds_nothing_up(client: str, streamed: bool, count: Any) -> None:
    said = {"role": "assistant", "content": "Paris"}
    choice = {"index": 0, "finish_reason": "stop", "delta" if streamed else "message": said}
    with FakeServer() as server:
        server.fail(Fault.answer({"id": "x", "model": "fake", "choices": [choice], "usage": count}))
        async with running(endpoint(server, MODEL, name="real", tpm=100_000), retry=ONCE) as scene:
            assert await ask(scene, streamed=streamed) == "Paris"
            assert scene.pool.stats()["real"]["input_tokens"] < 1000
            assert scene.pool.stats()["real"]["output_tokens"] < 1000
            assert await ask(scene, streamed=False)


@asynccontextmanager
async def answered(
    model: str, body: bytes, content_type: str, *, status: int = 200, by_byte: bool = False
) -> AsyncIterator[Scene]:
    """A pool whose server gives this answer to each request."""
    head = f"HTTP/1.1 {status} X\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(head.encode())
        for piece in [bytes([byte]) for byte in body] if by_byte else [body]:
            writer.write(piece)
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        async with running(Endpoint(model, api_base=url, api_key="none"), retry=ONCE) as scene:
            yield scene


DEEP = {
    "no end": (200, b"[" * 50_000),
    "an answer": (200, b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "an error": (500, b'{"error":' * 50_000),
    "a list of errors": (400, b"[" * 50_000),
}


@with_each_client
@with_each_way
@pytest.mark.parametrize("case", DEEP)
async def test_json_that_is_nested_too_deeply_is_the_providers_failure(client: str, streamed: bool, case: str) -> None:
    status, body = DEEP[case]
    async with answered(MODEL, body, "application/json", status=status) as scene:
        with pytest.raises(LMError) as caught:
            await ask(scene, streamed=streamed)
        expected = {200: LMProviderError, 400: LMInvalidRequestError, 500: LMServerError}[status]
        assert isinstance(caught.value, expected)


@with_each_client
async def test_a_json_body_in_place_of_a_stream_is_judged(client: str) -> None:
    body = {"error": {"code": 429, "message": "slow down"}}
    with FakeServer() as server:
        server.fail(Fault.answer(body, status_code=201), times=None)  # with 200 it would be an event
        async with running(endpoint(server, MODEL), retry=ONCE) as scene:
            kinds = LMRateLimitError if client == "lm15" else (LMRateLimitError, LMProviderError)
            with pytest.raises(kinds):
                await ask(scene, streamed=True)


ERROR_429 = b'{"code": 429, "message": "slow down"}'
SLOW = b'{"error": ' + ERROR_429 + b"}"
NO_STREAMS: dict[str, tuple[bytes, str, type[LMError]]] = {
    "a page": (b"<html>Sign in</html>", "text/html", LMProviderError),
    "a text": (b"upstream connect error", "text/plain", LMProviderError),
    "a short text": (b"d", "text/event-stream", LMProviderError),
    "json": (SLOW, "application/json", LMRateLimitError),
    "json as a text": (SLOW, "text/plain", LMRateLimitError),
    "json as events": (b"\n\n" + SLOW, "text/event-stream", LMRateLimitError),
    "json with a mark": (b"\xef\xbb\xbf" + SLOW, "text/event-stream", LMRateLimitError),
    "a line with an error": (b"error: " + ERROR_429 + b"\n\ndata: [DONE]\n\n", "text/event-stream", LMRateLimitError),
    "another json": (b"[]", "text/event-stream", LMProviderError),
}


@pytest.mark.parametrize("model", ["openai/m", "deepinfra/m"])
@pytest.mark.parametrize("case", NO_STREAMS)
async def test_what_comes_in_place_of_a_stream_is_judged_whatever_its_type(case: str, model: str) -> None:
    body, content_type, kind = NO_STREAMS[case]

    async with answered(model, body, content_type) as scene:
        with pytest.raises(kind) as caught:
            await ask(scene, streamed=True)
    assert type(caught.value) is kind
    assert caught.value.provider_code != "empty_answer"


STRAY_LINES = {
    "with its name": b"error: " + ERROR_429 + b"\n\ndata: [DONE]\n\n",
    "of json": SLOW + b"\n\n",
    "without its end": b"error: " + ERROR_429,
    "of an event": b"event: error\ndata: " + SLOW + b"\n\ndata: [DONE]\n\n",
}


@pytest.mark.parametrize("model", ["openai/m", "deepinfra/m", "hosted_vllm/m"])
@pytest.mark.parametrize("case", STRAY_LINES)
@pytest.mark.parametrize("split", [False, True], ids=["at once", "by the byte"])
async def test_an_error_that_comes_between_the_events_of_a_stream_is_one(case: str, model: str, split: bool) -> None:
    choice = {"index": 0, "delta": {"role": "assistant", "content": "one"}, "finish_reason": None}
    event = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
    body = b"data: " + json.dumps(event).encode() + b"\n\n" + STRAY_LINES[case]

    async with answered(model, body, "text/event-stream", by_byte=split) as scene:
        with pytest.raises(LMError) as caught:
            await ask(scene, streamed=True)
    assert "slow down" in str(caught.value)


@with_each_client
async def test_an_event_of_any_length_is_read(client: str) -> None:
    text = "x" * 2_000_000
    choice = {"index": 0, "finish_reason": "stop", "delta": {"role": "assistant", "content": text}}
    with FakeServer() as server:
        server.fail(Fault.answer({"id": "x", "model": "fake", "choices": [choice]}))
        async with running(endpoint(server, MODEL)) as scene:
            assert await ask(scene, streamed=True) == text


def chosen(content: Any, reason: Any = "stop") -> Fault:
    return Fault.answer({"id": "x", "choices": [{"finish_reason": reason, "message": {"content": content}}]})


BROKEN = {
    "a failure for a reason": Fault.finish_reason("error"),
    "a number for a reason": chosen("Par", 1),
    "an object for a reason": chosen("Par", {"type": "error"}),
    "an object for a content": chosen({"answer": "Paris"}),
    "a number for a content": chosen(5),
    "texts for parts": chosen(["Paris"]),
}


@with_each_client
@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("case", BROKEN)
async def test_an_answer_that_broke_off_is_in_no_cache(client: str, case: str) -> None:
    with FakeServer("Paris") as server:
        server.fail(BROKEN[case])
        async with running(endpoint(server, MODEL), retry=ONCE) as scene:
            lm = scene.pool.lm()
            with pytest.raises(LMProviderError):
                await lm.acall("hello")
            assert await lm.acall("hello") == ["Paris"]


# -- one prompt --------------------------------------------------------------------------------------------------------

FILTER = {"choices": [], "prompt_filter_results": [{"content_filter_results": {"hate": {"filtered": True}}}]}
LEFT_OUT: dict[str, tuple[Fault, int]] = {
    "filtered": (Fault.answer(FILTER), 1),
    "no choice": (Fault.empty_choices(), 2),
    "no text": (Fault.answer({"id": "x", "choices": [{"finish_reason": "stop", "message": {"content": ""}}]}), 1),
}
"""An answer without one, and how often its prompt is sent."""


@with_each_client
@pytest.mark.parametrize("case", LEFT_OUT)
async def test_an_evaluation_ends_with_its_score_where_some_prompts_get_no_answer(client: str, case: str) -> None:
    fault, sent = LEFT_OUT[case]

    devset = [dspy.Example(question=f"number {number}", answer="Paris").with_inputs("question") for number in range(10)]
    with FakeServer({"default": {"answer": "Paris"}}) as server:
        # One at a time, so that the faults meet each fifth prompt.
        server.script([fault] * sent + [None] * 4 + [fault] * sent + [None] * 4)
        async with running(endpoint(server, MODEL, name="real")) as scene:
            program = await Program(lambda: dspy.Predict("question -> answer"), lm=scene.lm).start(scene.system)
            with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
                result = await evaluate(
                    program,
                    devset,
                    lambda example, got: example.answer == got.answer,
                    max_concurrency=1,
                    max_errors=100,
                    outage_timeout=60,
                )
            assert (result.score, len(result.errors)) == (80.0, 2)
            assert scene.circuit("real") == "closed"
            assert len(server.requests) == 8 + 2 * sent


# -- clients -----------------------------------------------------------------------------------------------------------


def http_error(status: int, body: Any) -> Exception:
    request = httpx.Request("POST", "http://127.0.0.1")
    response = httpx.Response(status, json=body, headers={"retry-after": "0.01"}, request=request)
    return httpx.HTTPStatusError("no", request=request, response=response)


RAISED: dict[str, tuple[Callable[[], Exception], type[LMError]]] = {
    "a bug": (lambda: KeyError("usage"), LMUnexpectedError),
    "a disconnection": (lambda: ConnectionResetError("gone"), LMTransportError),
    "a timeout": (lambda: TimeoutError("late"), LMTimeoutError),
    "a client's timeout": (lambda: httpx.ReadTimeout("late"), LMTimeoutError),
    "a 429": (lambda: http_error(429, {}), LMRateLimitError),
    "a 503": (lambda: http_error(503, {}), LMServerError),
    "a 400": (lambda: http_error(400, {"error": {"message": "no such field"}}), LMInvalidRequestError),
    "too long": (lambda: http_error(400, {"error": {"message": "prompt is too long"}}), ContextWindowExceededError),
}


@with_each_way
@pytest.mark.parametrize("case", RAISED)
async def test_whatever_a_client_raises_has_its_type_and_ends_its_own_call(case: str, streamed: bool) -> None:
    make, kind = RAISED[case]

    class Broken:
        async def complete(self, request: Request) -> Any:
            raise make()

        async def stream(self, request: Request) -> Any:
            raise make()
            yield

        async def aclose(self) -> None:
            pass

    broken = Endpoint("openai/fake", engine=Broken(), name="broken")
    async with running(broken, retry=RetryConfig(attempts=2, initial=0, max_rate_limited=2)) as scene:
        with pytest.raises(kind) as caught:
            await ask(scene, streamed=streamed)
        assert type(caught.value) is kind
        assert not scene.types("actor.crashed"), "the worker goes on"
    is_callers = kind in (LMInvalidRequestError, ContextWindowExceededError)
    async with running(broken, spare(), retry=ONCE) as scene:
        if is_callers:
            with pytest.raises(kind):
                await ask(scene, streamed=streamed)
        else:
            assert await ask(scene, streamed=streamed) == "spare"


# -- embeddings --------------------------------------------------------------------------------------------------------

EMBEDDERS = {"openai": "openai/embed", "litellm": "hosted_vllm/embed"}


def vectors(*rows: Any, indices: Any = (0, 1), **more: Any) -> dict[str, Any]:
    data = [
        {"object": "embedding", "index": index, "embedding": row} for index, row in zip(indices, rows, strict=False)
    ]
    return {"object": "list", "model": "embed", "data": data, "usage": {"prompt_tokens": 2, "total_tokens": 2}, **more}


NO_VECTORS: dict[str, tuple[Any, type[LMError]]] = {
    "429": ({"error": {"code": 429, "message": "slow"}}, LMRateLimitError),
    "a text": ({"error": "the model is overloaded"}, LMServerError),
    "too long": (
        {"error": {"code": 400, "message": "the input length exceeds the context length"}},
        ContextWindowExceededError,
    ),
    "vllm": ({"object": "error", "message": "slow", "code": 429}, LMRateLimitError),
    "other": ({"status": "ok"}, LMProviderError),
    "null": (None, LMProviderError),
    "too few": (vectors([0.1]), LMProviderError),
    "two lengths": (vectors([0.1], [0.1, 0.2]), LMProviderError),
    "of nothing": (vectors([], []), LMProviderError),
    "nulls": (vectors([None, None], [0.1, 0.2]), LMProviderError),
    "one null": (vectors(None, [0.1]), LMProviderError),
    "not a number": (vectors([float("nan")], [0.1]), LMProviderError),
    "infinite": (vectors([float("inf")], [0.1]), LMProviderError),
    "beyond float32": (vectors([1e300], [0.1]), LMProviderError),
    "texts": (vectors(["0.1"], [0.1]), LMProviderError),
    "of one text twice": (vectors([0.1], [0.2], indices=(0, 2)), LMProviderError),
}


@pytest.mark.parametrize("client", EMBEDDERS)
@pytest.mark.parametrize("case", NO_VECTORS)
async def test_only_finite_vectors_of_one_length_are_embeddings(client: str, case: str) -> None:
    body, kind = NO_VECTORS[case]
    with FakeServer() as server:
        server.fail(Fault.answer(body), times=None)
        async with running(endpoint(server, EMBEDDERS[client]), retry=ONCE) as scene:
            with pytest.raises((kind, LMServerError, LMProviderError)) as caught:
                await scene.pool.embedder(caching=False).acall(["a", "b"])
            # litellm shows no raw body of embeddings
            assert type(caught.value) is kind or client == "litellm"
            server.heal()
            assert (await scene.pool.embedder(caching=False).acall(["a", "b"])).shape == (2, 8)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirection_of_embeddings_is_named_and_not_followed(status: int) -> None:
    with FakeServer() as other, FakeServer() as server:
        address = f"{other.url}/embeddings"
        server.fail(Fault.answer({}, status_code=status, headers={"location": address}), times=None)
        door = Endpoint("openai/embed", api_base=server.url, api_key="sk", headers={"x-gateway-key": "secret"})
        async with running(door, retry=ONCE) as scene:
            with pytest.raises(LMConfigurationError, match=f"{address}; .*api_base="):
                await scene.pool.embedder(caching=False).acall(["a", "b"])
        assert (len(server.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("client", EMBEDDERS)
async def test_vectors_are_put_in_order_and_a_wrong_count_is_no_reason_to_lose_them(client: str) -> None:
    with FakeServer() as server:
        async with running(endpoint(server, EMBEDDERS[client])) as scene:
            embedder = scene.pool.embedder(caching=False)
            answers = [
                vectors([2.0], [1.0], indices=(1, 0)),
                vectors([1.0], [2.0], indices=(0, 0)),
                vectors([1.0], [2.0], indices=(None, None)),
            ]
            if client == "openai":
                answers += [vectors([1.0], [2.0], usage="n/a"), vectors([1], [2], usage={"prompt_tokens": "2"})]
            answers += [vectors([1.0], [2.0], usage={"prompt_tokens": count}) for count in (10**12, 10**400)]
            for answer in answers:
                server.fail(Fault.answer(answer))
                assert (await embedder.acall(["a", "b"])).tolist() == [[1.0], [2.0]]
