"""The file of lines: what a line is, and what a killed or failing writer leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from promptside.events import EventBus
from promptside.events.sinks import JSONLSink, jsonl
from tests.support.sinks import log, publish


async def test_a_line_holds_what_is_set(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    sink = await JSONLSink(path).start(bus := EventBus())
    bus.publish("lm.call.stopped", "lm", {"text": "ü"}, run_id="r")
    await sink.stop()

    text = path.read_text(encoding="utf-8")
    assert text.endswith('"data":{"text":"ü"},"run_id":"r"}\n')
    assert set(json.loads(text)) == {"id", "seq", "type", "source", "time", "data", "run_id"}


@pytest.mark.parametrize("whole", [0, 1, 3])
async def test_the_part_of_a_line_that_a_killed_writer_left_is_cut_off(
    tmp_path: Path, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jsonl, "BLOCK", 16)
    path = tmp_path / "run.jsonl"
    sink = await JSONLSink(path).start(bus := EventBus())
    publish(bus, 4)
    await sink.stop()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:whole]) + lines[whole][:40])
    assert [event.seq for event in log(path)] == list(range(1, whole + 1))

    sink = await JSONLSink(path).start(bus := EventBus())
    publish(bus, 1)
    await sink.stop()

    assert [event.seq for event in log(path)] == [*range(1, whole + 1), 1]
    assert path.read_bytes().count(b"\n") == whole + 1
