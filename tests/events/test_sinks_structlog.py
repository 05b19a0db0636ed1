"""Lines for people and for log collectors."""

from __future__ import annotations

import io
import json
import os
import threading

import pytest
import structlog

from promptside.events import EventBus
from promptside.events.sinks import StructlogSink
from promptside.events.sinks import sink as base
from tests.support.actors import until
from tests.support.sinks import writers


async def printed(output: str) -> list[str]:
    stream = io.StringIO()
    sink = await StructlogSink(stream, output=output).start(bus := EventBus())  # type: ignore[arg-type]
    bus.publish("lm.call.failed", "lm/a", {"error": "Boom", "event": "own", "text": "two\nlines\x1b[31m"}, run_id="r")
    bus.publish("message.dead", "lm/a", {"odd": {1, 2}})
    bus.publish("actor.started", "lm/a", incarnation=0)
    await sink.stop()
    return stream.getvalue().splitlines()


async def test_people_get_a_line_with_time_level_type_source_and_fields() -> None:
    failed, dead, started = await printed("human")

    assert failed.split()[2:5] == ["[error", "]", "lm.call.failed"]
    assert failed.split()[5:] == [
        "source=lm/a",
        "run_id=r",
        "error=Boom",
        "data.event=own",
        "text=two\\u000alines\\u001b[31m",
    ]
    assert dead.split()[2:] == ["[warning", "]", "message.dead", "source=lm/a", "odd={'unserializable':", "'set'}"]
    assert started.split()[2:] == ["[info", "]", "actor.started", "source=lm/a", "incarnation=0"]


async def test_collectors_get_lines_of_json() -> None:
    failed, dead, started = map(json.loads, await printed("json"))

    assert failed["timestamp"].endswith("+00:00")
    assert {key: failed[key] for key in ("level", "event", "source", "run_id")} == {
        "level": "error",
        "event": "lm.call.failed",
        "source": "lm/a",
        "run_id": "r",
    }
    assert failed["data"] == {"error": "Boom", "event": "own", "text": "two\nlines\x1b[31m"}
    assert (dead["level"], dead["data"]) == ("warning", {"odd": {"unserializable": "set"}})
    assert (started["level"], started["incarnation"]) == ("info", 0)


async def test_structlogs_own_configuration_is_left_alone() -> None:
    before = structlog.get_config()
    await printed("human")

    assert structlog.get_config() == before


async def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    sink = await StructlogSink(pattern="a").start(bus := EventBus())
    bus.publish("a", "here")
    await sink.stop()

    assert " a " in capsys.readouterr().err


def test_an_unknown_output_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="output='xml'"):
        StructlogSink(output="xml")  # type: ignore[arg-type]


async def test_a_stream_that_fails_gets_its_lines_when_it_works_again() -> None:
    class Broken(io.StringIO):
        broken = True

        def write(self, text: str) -> int:
            if self.broken:
                raise BrokenPipeError("gone")
            return super().write(text)

    stream = Broken()
    sink = await StructlogSink(stream, output="json", interval=0.01).start(bus := EventBus())
    bus.publish("a", "here")
    await until(lambda: sink.error)
    bus.publish("b", "here")
    stream.broken = False
    await sink.stop()

    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["a", "b"]


async def test_a_writer_stuck_in_a_pipe_without_a_reader_is_abandoned_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(base, "STUCK_GRACE", 0.1)
    reading, writing = os.pipe()
    with io.TextIOWrapper(io.FileIO(writing, "w")) as stream:
        sink = await StructlogSink(stream, interval=0, flush_timeout=0.1).start(bus := EventBus())
        bus.publish("a", "here", {"text": "x" * 1_000_000})
        await until(lambda: not sink._buffer)
        bus.publish("a", "here")
        await bus.aclose()
        assert "is stuck in a write and abandoned with 1 events" in caplog.records[-1].getMessage()
        assert writers() == ["promptside-sink/structlog"]

        drain = threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reading, 65536), b"")])
        drain.start()
        await until(lambda: not writers())
    drain.join()
    os.close(reading)
    assert (sink.written, sink.lost) == (2, 0)
