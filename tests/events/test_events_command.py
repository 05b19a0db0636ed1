"""``python -m promptside events``: what it prints, and how it ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

from promptside import clock
from promptside.events import EventBus
from promptside.events.log.command import add_parser
from promptside.events.sinks import SQLiteSink
from tests.support.actors import until
from tests.support.sinks import BOTH, QUICK, Durable, publish

PROGRAM = """
import argparse, sys
from promptside.events.log.command import add_parser

parser = argparse.ArgumentParser()
add_parser(parser.add_subparsers())
args = parser.parse_args()
sys.exit(args.run(args))
"""


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", PROGRAM, "events", *map(str, arguments)]


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["events", *arguments])
    code = args.run(args)
    assert isinstance(code, int)
    return code


@pytest.mark.parametrize("sink_class", BOTH)
async def test_a_line_per_event_and_lines_of_json(
    sink_class: Durable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    sink = await sink_class(path).start(bus := EventBus())
    bus.publish("lm.call.failed", "lm/a", {"error": "Boom", "text": "two\nlines\x1b[2J", "n": 3}, run_id="r")
    bus.publish("lm.call.started", "lm/a", {"list": [1, "a b"]})
    bus.publish("tool.started", "tools")
    await sink.stop()

    assert run(str(path), "--type", "lm.*") == 0
    failed, started = capsys.readouterr().out.splitlines()
    assert failed.split()[2:] == [
        "lm.call.failed",
        "lm/a",
        "error=Boom",
        'text="two\\nlines\\u001b[2J"',
        "n=3",
        "run_id=r",
    ]
    assert started.endswith('lm.call.started           lm/a  list=[1,"a b"]')
    assert run(str(path), "--json", "--source", "tools", "--since", "10m") == 0
    assert json.loads(capsys.readouterr().out)["type"] == "tool.started"
    assert run(str(path), "--until", "2020-01-01T00:00") == 0
    assert run(str(path), "--run", "x", "--trace", "x", "--session", "x") == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("option", ["--type=l*", "--since=yesterday"])
def test_a_wrong_option_is_one_message_and_exit_code_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run("log", option)

    assert ending.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_a_missing_or_foreign_file_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign"
    foreign.write_text("hello\n")
    database = tmp_path / "broken"
    database.write_bytes(b"SQLite format 3\0" + b"\xff" * 200)
    for path, why in (
        (tmp_path / "missing", "No such file"),
        (foreign, "not a log"),
        (tmp_path, "directory"),
        (database, "not"),
    ):
        assert run(str(path)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert str(path) in line
        assert why in line


async def test_following_shows_events_as_they_are_written_and_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    path = tmp_path / "log"
    sink = await SQLiteSink(path, **QUICK).start(bus := EventBus())
    follower = await asyncio.create_subprocess_exec(*command(path, "--follow", "--json"), stdout=PIPE, stderr=PIPE)
    assert follower.stdout is not None
    for seq in (1, 2, 3):
        publish(bus, 1)
        assert json.loads(await follower.stdout.readline())["seq"] == seq
    follower.send_signal(signal.SIGINT)
    out, err = await follower.communicate()
    await sink.stop()

    assert (out, err, follower.returncode) == (b"", b"", 130)


@pytest.mark.parametrize("options", [[], ["--follow"]])
async def test_a_closed_pipe_ends_it_quietly(tmp_path: Path, options: list[str]) -> None:
    path = tmp_path / "log"
    sink = await SQLiteSink(path).start(bus := EventBus())
    publish(bus, 5000)
    await sink.stop()
    reading, writing = os.pipe()
    follower = await asyncio.create_subprocess_exec(*command(path, *options), stdout=writing, stderr=PIPE)
    os.close(writing)
    head = await asyncio.to_thread(os.read, reading, 100)
    os.close(reading)
    _, err = await follower.communicate()

    assert b"lm.call.stopped" in head
    assert (err, follower.returncode) == (b"", 0)


async def test_following_ends_at_its_until(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    sink = await SQLiteSink(path, **QUICK).start(bus := EventBus())
    publish(bus, 1)
    await until(lambda: sink.written)
    await sink.stop()
    began = clock.monotonic()

    assert run(str(path), "--follow", "--until", "0s") == 0
    assert clock.monotonic() - began < 5
    assert len(capsys.readouterr().out.splitlines()) == 1
