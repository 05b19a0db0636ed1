"""`promptside.pools.LMConfig`: an endpoint and its settings from a provider's name; and no key in what is shown."""

from __future__ import annotations

import copy
import pickle
import traceback
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy.lm15 import AuthError, Request

from promptside import ActorSystem
from promptside.events import Content, Event
from promptside.pools import Endpoint, LMConfig, LMPool
from promptside.pools.clients.credentials import HIDDEN, hide_keys
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.pools import KEY, endpoint, running

VARIABLES = ("OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "ANTHROPIC_API_KEY", "COHERE_API_KEY", "CO_API_KEY")


@pytest.fixture(autouse=True)
def without_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


# -- an endpoint and settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "named"),
    [
        ("openai", "gpt-4o-mini", "openai/gpt-4o-mini"),
        ("google", "gemini-2.5-flash", "gemini/gemini-2.5-flash"),
        ("gemini", "gemini-2.5-flash", "gemini/gemini-2.5-flash"),
        ("google", "gemini/gemini-2.5-flash", "gemini/gemini-2.5-flash"),
        ("anthropic", "claude-sonnet-4-6", "anthropic/claude-sonnet-4-6"),
        ("cohere", "command-a-03-2025", "cohere/command-a-03-2025"),
        ("groq", "openai/gpt-oss-20b", "groq/openai/gpt-oss-20b"),
        (None, "bedrock/anthropic.claude-v2", "bedrock/anthropic.claude-v2"),
        (None, "openai/gpt-4o-mini", "openai/gpt-4o-mini"),
    ],
)
def test_a_model_is_named_as_dspy_and_litellm_name_it(provider: str | None, model: str, named: str) -> None:
    made = LMConfig(provider=provider, model=model, api_key=KEY, api_base="http://localhost:1").endpoint()
    assert (made.model, made.api_key, made.api_base, made.name) == (named, KEY, "http://localhost:1", named)


def test_the_rest_goes_to_the_endpoint_and_to_the_lm() -> None:
    config = LMConfig(
        provider="openai",
        model="gpt-4o-mini",
        api_key=KEY,
        temperature=0,
        max_tokens=50,
        settings={"top_p": 0.5, "cache": False},
        timeout=3.0,
        max_connections=7,
        name="cheap",
    )
    made = config.endpoint()
    assert (made.timeout, made.max_connections, made.name) == (3.0, 7, "cheap")
    assert config.lm_settings() == {"temperature": 0, "max_tokens": 50, "top_p": 0.5, "cache": False}
    assert LMConfig(model="openai/x").lm_settings() == {}


@pytest.mark.parametrize(
    ("provider", "variables"),
    [
        ("openai", ["OPENAI_API_KEY"]),
        ("google", ["GEMINI_API_KEY", "GOOGLE_API_KEY"]),
        ("anthropic", ["ANTHROPIC_API_KEY"]),
        ("cohere", ["COHERE_API_KEY", "CO_API_KEY"]),
    ],
)
def test_a_key_that_is_not_given_is_in_the_environment_or_missed_by_its_variables_name(
    provider: str, variables: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = LMConfig(provider=provider, model="m")
    with pytest.raises(ValueError, match=f"api_key: none is given .* set {' or '.join(variables)}, or give api_key="):
        config.endpoint()
    for name in reversed(variables):
        monkeypatch.setenv(name, f"key of {name}")
        assert config.endpoint().api_key == f"key of {name}"
    assert LMConfig(provider=provider, model="m", api_key="given").endpoint().api_key == "given"


def test_the_credentials_of_other_providers_are_left_to_the_client() -> None:
    assert LMConfig(provider="ollama_chat", model="llama3").endpoint().api_key is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": "gpt"}, "model='gpt'"),
        ({"model": "", "provider": "openai"}, "model=''"),
        ({"model": 3, "provider": "openai"}, "model=3"),
        ({"model": "m", "provider": "a/b"}, "provider='a/b'"),
        ({"model": "m", "provider": ""}, "provider=''"),
        ({"model": "a/b", "temperature": -1}, "temperature=-1"),
        ({"model": "a/b", "temperature": float("nan")}, "temperature=nan"),
        ({"model": "a/b", "max_tokens": 0}, "max_tokens=0"),
        (
            {"model": "a/b", "settings": {"num_retries": 3, "temperature": 1}},
            r"settings=\['temperature', 'num_retries'\]",
        ),
        ({"model": "a/b", "settings": ["x"]}, "settings='list'"),
        ({"model": "a/b", "timeout": 0}, "timeout=0"),
        ({"model": "a/b", "api_key": 123456789}, "api_key='int'"),
    ],
)
def test_a_field_that_is_not_valid_is_named_with_its_value_and_the_remedy(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}: ") as caught:
        LMConfig(**fields)
    assert "123456789" not in str(caught.value)


async def test_a_configured_model_answers_with_its_settings() -> None:
    with FakeServer("hello") as server:
        config = LMConfig(
            provider="openai",
            model="fake",
            api_key=KEY,
            api_base=server.url,
            temperature=0.5,
            settings={"cache": False},
        )
        async with ActorSystem() as system:
            pool = await LMPool([config.endpoint()]).start(system)
            assert await pool.lm(**config.lm_settings()).acall("hello") == ["hello"]
        assert server.requests[0].body["temperature"] == 0.5


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LMConfig, Endpoint])
def test_a_key_is_in_no_repr_and_no_pickle_and_a_copy_keeps_it(kind: Any) -> None:
    holder = (
        LMConfig(model="openai/x", api_key=KEY, timeout=3.0)
        if kind is LMConfig
        else Endpoint("openai/x", api_key=KEY, timeout=3.0)
    )
    assert KEY not in repr(holder)
    assert KEY not in str(holder)
    for pickler in (pickle, cloudpickle):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickler.dumps(holder, protocol=protocol)
            assert KEY.encode() not in data
            loaded = pickle.loads(data)
            assert (loaded.model, loaded.timeout, loaded.api_key) == ("openai/x", 3.0, None)
    assert copy.copy(holder).api_key == copy.deepcopy(holder).api_key == KEY


@pytest.mark.parametrize("how", ["given", "environment"])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_key_that_a_provider_repeats_is_in_no_error_event_record_or_saved_file(
    how: str, streamed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
    told: list[Event] = []
    with FakeServer("hello") as server:
        async with ActorSystem(content=Content()) as system:
            system.events.on("*", told.append)
            door = endpoint(server, api_key=KEY if how == "given" else None)
            pool = await LMPool([door]).start(system)
            lm = pool.lm(cache=False)
            program = dspy.Predict("question -> answer")
            program.set_lm(lm)
            for status, what in ((401, "API key"), (400, "header")):
                server.fail(Fault.status(status, message=f"Incorrect {what} provided: {KEY}"))
                with pytest.raises(dspy.LMError, match=f"Incorrect {what} provided") as caught:
                    if streamed:
                        async for _ in dspy.streamify(program)(question="?"):
                            pass
                    else:
                        await program.acall(question="?")
                shown = "".join(traceback.format_exception(caught.value))
                assert KEY not in shown
                assert HIDDEN in shown
            assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
            records = pool.history()
            program.save(tmp_path / "program.json")
            shown = [repr(told), repr(pool.stats()), repr(pool.costs()), repr(records), repr(lm), repr(pool.endpoints)]
            shown.append((tmp_path / "program.json").read_text())
            shown.append(pickle.dumps(told).decode("latin-1"))
            assert not [text for text in shown if KEY in text]
            assert [record["error"]["type"] for record in records] == ["LMAuthError", "LMInvalidRequestError"]


async def test_a_key_in_the_cause_of_an_error_is_hidden_too() -> None:
    def refuse(request: Request) -> str:
        try:
            raise KeyError(f"header {KEY}", [KEY], {"Authorization": f"Bearer {KEY}"})
        except KeyError as error:
            raise AuthError(f"no {KEY}") from error

    async with running(Endpoint("mock/mock", engine=MockLM(refuse), api_key=KEY)) as scene:
        with pytest.raises(dspy.LMAuthError) as caught:
            await scene.lm.acall("hello")
        shown = "".join(traceback.format_exception(caught.value))
        assert KEY not in shown
        assert "Bearer [api_key]" in shown


def test_errors_of_every_shape_are_cleaned_in_place_and_others_left_alone() -> None:
    class Odd(Exception):
        pass

    inner = ValueError(f"a {KEY}", 3)
    odd = Odd(KEY.encode(), (KEY,), {"list": [KEY, None]})
    odd.note = f"note {KEY}"  # type: ignore[attr-defined]
    odd.__cause__ = inner
    inner.__context__ = odd  # a circle
    untouched: dict[str, Any] = {"some": "thing"}
    untouched["itself"] = untouched
    odd.data = untouched  # type: ignore[attr-defined]
    group = ExceptionGroup("several", [odd])
    hide_keys(group, (None, KEY))
    assert odd.args == (HIDDEN.encode(), (HIDDEN,), {"list": [HIDDEN, None]})
    assert vars(odd)["note"] == f"note {HIDDEN}"
    assert vars(odd)["data"] is untouched
    assert inner.args == (f"a {HIDDEN}", 3)
    short = ValueError("none is short")
    hide_keys(short, ("none",))
    assert short.args == ("none is short",)
