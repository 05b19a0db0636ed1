"""Endpoints as gateways want them: headers of their own, and keys that a function has."""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import pickle
import threading
import traceback
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request

from promptside.events import Content
from promptside.pools import Endpoint, LMConfig, labels
from promptside.programs import Program
from promptside.testing import FakeServer, Fault
from tests.support.modules import Answer
from tests.support.pools import KEY, Scene, async_engine, endpoint, running

SECRET = "virtual-key-12345"
OLD, NEW = "sk-old-old-old-old", "sk-new-new-new-new"

Way = Callable[[Scene], Awaitable[Any]]


async def chat(scene: Scene) -> Any:
    return (await scene.lm.acall("hello"))[0]


async def thread(scene: Scene) -> Any:
    return (await asyncio.to_thread(scene.lm, "hello"))[0]


async def stream(scene: Scene) -> Any:
    request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
    return [event async for event in async_engine(scene.lm).stream(request)]


async def embed(scene: Scene) -> Any:
    return await scene.pool.embedder(caching=False).acall(["hello"])


# lm15 speaks openai/, litellm is asked for together_ai/; embeddings go by the openai package, or by litellm.
CLIENTS = [
    pytest.param("openai/fake", chat, id="lm15"),
    pytest.param("openai/fake", thread, id="lm15-thread"),
    pytest.param("openai/fake", stream, id="lm15-stream"),
    pytest.param("openai/fake", embed, id="openai-embed"),
    pytest.param("together_ai/fake", chat, id="litellm"),
    pytest.param("together_ai/fake", stream, id="litellm-stream"),
    pytest.param("hosted_vllm/fake", embed, id="litellm-embed"),
]


def sent(server: FakeServer, name: str = "authorization") -> list[str | None]:
    return [request.headers.get(name) for request in server.requests]


# -- headers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model", "way"), CLIENTS)
async def test_headers_are_sent_with_each_request_and_in_place_of_the_clients_own(model: str, way: Way) -> None:
    headers = {"X-Gateway-Key": SECRET, "User-Agent": "ours/1"}
    with FakeServer("hello") as server:
        async with running(endpoint(server, model, headers=headers)) as scene:
            for _ in range(2):
                await way(scene)
    assert sent(server, "x-gateway-key") == [SECRET] * 2
    assert sent(server, "user-agent") == ["ours/1"] * 2
    assert sent(server) == [f"Bearer {KEY}"] * 2


async def test_a_gateway_may_want_the_authorization_otherwise() -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, headers={"authorization": f"Token {SECRET}"})) as scene:
            await chat(scene)
    assert sent(server) == [f"Token {SECRET}"]


async def test_headers_of_a_config_reach_its_endpoint() -> None:
    config = LMConfig(provider="openai", model="m", api_key="none", headers={"x-team": "search"})
    assert config.endpoint().headers == {"x-team": "search"}


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        (["x-key"], "headers='list': give a mapping"),
        (None, "headers='NoneType': give a mapping"),
        ({"x key": SECRET}, "headers='x key': give names of letters"),
        ({"": SECRET}, "headers='': give names of letters"),
        ({1: SECRET}, "headers=1: give names of letters"),
        ({"x-key": f"{SECRET}\r\nx-more: 1"}, "headers='x-key': give it a value that is a text of ASCII"),
        ({"x-key": f"{SECRET} "}, "headers='x-key': give it a value that is a text of ASCII"),
        ({"x-key": ""}, "headers='x-key': give it a value that is a text of ASCII"),
        ({"x-key": 7}, "headers='x-key': give it a value that is a text of ASCII"),
        ({"x-key": "caf\xe9"}, "headers='x-key': give it a value that is a text of ASCII"),
        ({"Content-Length": "7"}, "headers='Content-Length': leave this one out: the client sets it"),
        ({"x-key": SECRET, "X-Key": SECRET}, r"headers=\['x-key'\]: give each name once"),
    ],
)
@pytest.mark.parametrize("kind", [Endpoint, functools.partial(LMConfig, model="openai/m")])
def test_a_header_that_no_request_could_have_is_refused_and_its_value_not_shown(
    kind: Any, headers: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        kind("openai/m", headers=headers) if kind is Endpoint else kind(headers=headers)
    assert SECRET not in str(caught.value)


def test_headers_and_keys_are_in_no_text_and_no_pickle_and_cannot_be_changed() -> None:
    given = {"authorization": f"Bearer {SECRET}"}
    for holder in (
        Endpoint("openai/m", api_key=lambda: KEY, headers=given),
        LMConfig(model="openai/m", api_key=lambda: KEY, headers=given),
    ):
        assert SECRET not in repr(holder)
        assert "lambda" not in repr(holder)
        data = pickle.dumps(holder)
        assert SECRET.encode() not in data
        loaded = pickle.loads(data)
        assert (loaded.api_key, dict(loaded.headers)) == (None, {})
        assert copy.deepcopy(holder).headers == given
    made = Endpoint("openai/m", headers=given)
    assert hash(made) == hash(Endpoint("openai/m"))
    given["x-more"] = "1"
    assert "x-more" not in made.headers
    with pytest.raises(TypeError):
        made.headers["x-more"] = "1"  # type: ignore[index]


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize(("model", "way"), CLIENTS)
async def test_a_header_or_a_functions_key_that_a_server_repeats_is_in_no_error_event_or_record(
    model: str, way: Way, status: int
) -> None:
    with FakeServer("hello") as server:
        door = endpoint(server, model, api_key=lambda: NEW, headers={"x-auth": f"Bearer {SECRET}"})
        async with running(door) as scene:
            server.fail(Fault.status(status, message=f"not valid: {SECRET}, {NEW}"), times=None)
            with pytest.raises(dspy.LMError, match="not valid") as caught:
                await way(scene)
            shown = [*traceback.format_exception(caught.value), repr(scene.told), repr(scene.pool.history())]
            assert not [text for text in shown if SECRET in text or NEW in text]


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize(("model", "way"), CLIENTS)
async def test_a_function_is_asked_for_the_key_of_each_request(model: str, way: Way, asynchronous: bool) -> None:
    numbers = itertools.count(1)

    def key() -> str:
        return f"key-{next(numbers)}"

    async def async_key() -> str:
        await asyncio.sleep(0)
        return key()

    with FakeServer("hello") as server:
        async with running(endpoint(server, model, api_key=async_key if asynchronous else key)) as scene:
            for _ in range(3):
                await way(scene)
    assert sent(server) == ["Bearer key-1", "Bearer key-2", "Bearer key-3"]


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize(("model", "way"), CLIENTS)
async def test_a_refused_key_is_asked_for_once_more_and_the_same_key_is_not_sent_again(
    model: str, way: Way, status: int
) -> None:
    keys = iter([OLD, NEW, OLD, NEW, OLD, OLD])
    with FakeServer("hello") as server:
        async with running(endpoint(server, model, api_key=lambda: next(keys))) as scene:
            server.fail(Fault.status(status))
            await way(scene)
            assert sent(server) == [f"Bearer {OLD}", f"Bearer {NEW}"]
            server.fail(Fault.status(status), times=None)
            for requests in (2, 1):
                server.requests.clear()
                with pytest.raises(dspy.LMAuthError):
                    await way(scene)
                assert len(server.requests) == requests
            assert scene.circuit(model) == "closed"


@pytest.mark.parametrize(("model", "way"), CLIENTS)
async def test_each_tenant_has_its_key_at_the_same_time_over_few_connections(model: str, way: Way) -> None:
    def key(found: Mapping[str, str]) -> str:
        return f"key-of-{found.get('session')}"

    async def ask(scene: Scene, tenant: int) -> None:
        with labels(session=f"tenant-{tenant}"):
            await way(scene)

    with FakeServer("hello") as server:
        async with running(endpoint(server, model, api_key=key, max_connections=4)) as scene:
            await asyncio.gather(*(ask(scene, tenant) for tenant in range(24)))
            await way(scene)
    wanted = [f"Bearer key-of-tenant-{tenant}" for tenant in range(24)]
    assert sorted(filter(None, sent(server))) == sorted([*wanted, "Bearer key-of-None"])


@pytest.mark.usefixtures("empty_cache")
async def test_tenants_with_keys_of_their_own_do_not_share_a_call_that_is_under_way() -> None:
    async def ask(scene: Scene, tenant: str) -> Any:
        with labels(session=tenant):
            return await scene.pool.lm(temperature=0.0).acall("hello")

    with FakeServer("hello") as server:
        async with running(endpoint(server, api_key=lambda found: f"key-{found['session']}")) as scene:
            server.fail(Fault.hang(), times=None)
            calls = [asyncio.create_task(ask(scene, tenant)) for tenant in ("a", "a", "b")]
            await server.until(lambda: server.active == 2)
            server.heal()
            assert await asyncio.gather(*calls) == [["hello"]] * 3
    assert sorted(filter(None, sent(server))) == ["Bearer key-a", "Bearer key-b"]


async def test_the_labels_are_those_of_the_call_also_in_a_program() -> None:
    seen: list[dict[str, str]] = []

    def key(found: Mapping[str, str]) -> str:
        seen.append(dict(found))
        return KEY

    with FakeServer("hello") as server:
        async with running(endpoint(server, api_key=key)) as scene:
            program = await Program(Answer, name="qa", lm=scene.lm).start(scene.system)
            with labels(session="alice", run="nightly"):
                await program.acall(question="?")
    assert seen == [{"program": "qa", "session": "alice", "run": "nightly"}]


async def returns_nothing() -> Any:
    return None


async def cancels_itself() -> str:
    raise asyncio.CancelledError


class Illegible(Exception):
    def __str__(self) -> str:
        raise ValueError


def illegible() -> str:
    raise Illegible


def exits() -> str:
    raise SystemExit(1)


BROKEN: list[Any] = [
    pytest.param(lambda: 1 / 0, "failed: ZeroDivisionError: division by zero", id="raises"),
    pytest.param(functools.partial(next, iter(())), "failed: RuntimeError: coroutine raised StopIteration", id="ends"),
    pytest.param(exits, "failed: SystemExit: 1", id="exits"),
    pytest.param(illegible, "failed: Illegible", id="illegible"),
    pytest.param(cancels_itself, "failed: CancelledError", id="cancels itself"),
    pytest.param(lambda: b"sk-bytes-bytes", "returned no text, but: bytes", id="bytes"),
    pytest.param(returns_nothing, "returned no text, but: NoneType", id="nothing"),
    pytest.param(lambda: "", "returned a text that is empty", id="empty"),
    pytest.param(lambda: f"{SECRET}\n", "returned a text that is empty, or has", id="line break"),
    pytest.param(lambda: f"{SECRET}\xe9", "returned a text that is empty, or has", id="not ASCII"),
]


@pytest.mark.parametrize(("key", "message"), BROKEN)
@pytest.mark.parametrize("way", [chat, stream, embed])
async def test_a_function_that_fails_is_a_refused_credential_and_another_endpoint_answers(
    way: Way, key: Any, message: str
) -> None:
    with FakeServer("hello") as server:
        broken = endpoint(server, api_key=key, name="broken")
        async with running(broken) as scene:
            for _ in range(2):
                with pytest.raises(
                    dspy.LMAuthError, match=f"the api_key function of the endpoint 'broken' {message}"
                ) as e:
                    await way(scene)
                assert SECRET not in str(e.value)
            assert scene.circuit("broken") == "closed"
            assert not server.requests
        async with running(broken, endpoint(server)) as scene:
            await way(scene)
    assert sent(server) == [f"Bearer {KEY}"]


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_function_that_hangs_fails_its_call_in_time_and_holds_up_no_other(asynchronous: bool) -> None:
    ended = threading.Event()

    def hang() -> str:
        ended.wait(30)
        return KEY

    async def async_hang() -> str:
        await asyncio.Event().wait()
        return KEY

    with FakeServer("hello") as server:
        door = endpoint(server, api_key=async_hang if asynchronous else hang, timeout=0.4)
        async with running(door, endpoint(server, "openai/other")) as scene:
            try:
                slow = asyncio.create_task(scene.pool.lm("openai/fake", cache=False).acall("hello"))
                assert await scene.pool.lm("openai/other", cache=False).acall("hello") == ["hello"]
                assert await slow == ["hello"], "the other endpoint has answered"
                failed = scene.events("lm.attempt.failed")
                assert [event.data["error"] for event in failed] == ["LMAuthError"]
            finally:
                ended.set()


@pytest.mark.parametrize("key", [7, ["sk"], lambda one, two: KEY, lambda *, key: KEY])
def test_what_has_no_key_is_refused(key: Any) -> None:
    remedy = "give a text, a function that takes no argument or the labels of the call, or None"
    for make in (Endpoint, lambda model, **more: LMConfig(model=model, **more)):
        with pytest.raises(ValueError, match=rf"api_key='{type(key).__name__}': {remedy}"):
            make("openai/m", api_key=key)


def test_a_default_is_not_taken_for_the_labels() -> None:
    def token(force: bool = False, *more: Any, **others: Any) -> str:
        return "forced" if force else KEY

    made = Endpoint("openai/m", api_key=token)
    assert not made.key_takes_labels
    assert Endpoint("openai/m", api_key=lambda found: KEY).key_takes_labels


async def test_an_event_with_content_has_no_key() -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, api_key=lambda: NEW, headers={"x-key": SECRET})) as scene:
            scene.system.events.content = Content()
            await chat(scene)
            assert not [event for event in scene.told if NEW in repr(event) or SECRET in repr(event)]


@pytest.mark.parametrize("way", [chat, stream, embed])
async def test_a_backup_of_the_same_provider_is_asked_with_its_own_key_headers_and_model(way: Way) -> None:
    """With embeddings it is another address of the same model."""
    model = "openai/fake" if way is embed else "openai/backup"
    with FakeServer("hello") as server, FakeServer("hello") as other:
        first = endpoint(server, api_key=lambda: OLD, headers={"x-who": "first"}, name="first")
        backup = endpoint(other, model, api_key=NEW, name="backup")
        async with running(first, backup) as scene:
            server.fail(Fault.status(401), times=None)
            await way(scene)
            assert [request.body["model"] for request in other.requests] == [model.removeprefix("openai/")]
            assert (sent(other), sent(other, "x-who")) == ([f"Bearer {NEW}"], [None])


@pytest.mark.parametrize("way", [chat, embed])
async def test_keys_that_change_leave_no_more_connections_than_are_kept(
    way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Litellm has a client for each key, where it asks as OpenAI's package does: `together_ai/` is such a name."""
    monkeypatch.setattr("promptside.pools.clients.connections.MAX_IDLE", 4)
    numbers = itertools.count()
    with FakeServer("hello") as server:
        async with running(endpoint(server, "together_ai/fake", api_key=lambda: f"key-{next(numbers)}")) as scene:
            for _ in range(12):
                await way(scene)
            await server.until(lambda: server.connections <= 5)
            assert len(set(sent(server))) == 12
            await asyncio.gather(*(way(scene) for _ in range(12)))
        await server.until(lambda: server.connections == 0)


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", f"{KEY}\r\nx-more: 1", f"{KEY}\xe9", f"{KEY}\ud83d"])
def test_a_key_that_no_header_may_hold_is_refused_and_not_shown(key: str) -> None:
    for make in (Endpoint, lambda model, **more: LMConfig(model=model, **more)):
        with pytest.raises(ValueError, match="api_key='str': give it without spaces or line breaks") as caught:
            make("openai/m", api_key=key)
        assert KEY not in str(caught.value)


async def test_such_a_key_of_the_environment_is_in_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    with FakeServer("hello") as server:
        async with running(endpoint(server, api_key=None)) as scene:
            for way in (chat, embed):
                with pytest.raises(dspy.LMError) as caught:
                    await way(scene)
                assert KEY not in "".join(traceback.format_exception(caught.value))
