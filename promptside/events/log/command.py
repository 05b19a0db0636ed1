"""``python -m promptside events FILE``: print the events of a log, and follow it.

`promptside.__main__` adds the parser and runs it; it calls `promptside.events.log.read`.
"""

from __future__ import annotations

import argparse
import os
import re
import sqlite3
import sys
from datetime import datetime
from typing import Final

from promptside import clock
from promptside.events.event import Event
from promptside.events.log.codec import local_time, readable, to_line
from promptside.events.log.read import read
from promptside.events.patterns import compile_pattern

__all__ = ["add_parser", "run"]

SPANS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
"""Seconds of the units in ``--since 10m``."""

INTERRUPTED: Final = 130
"""Exit code after Ctrl-C, as shells have it."""

SHOWN: Final = ("trace_id", "run_id", "session_id")
"""The join keys on a readable line, those that are options as well; ``--json`` has all."""


READ_OPTIONS: Final = ("type", "source", "trace_id", "run_id", "session_id", "since", "until", "follow")
"""The arguments of `read` that are options of the command."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `events`; the namespace's `run` is `run`."""
    parser = subparsers.add_parser(
        "events",
        help="print the events of a log, and follow it",
        description="Print the events of a file that SQLiteSink or JSONLSink wrote, or is writing, one a line.",
    )
    parser.add_argument("file", metavar="FILE", help="the log, written by SQLiteSink or JSONLSink")
    parser.add_argument("--type", type=_pattern, default="*", help="a pattern over types, as 'lm.*' or 'lm.*.failed'")
    parser.add_argument("--source", help="only from this path and from below it, as lm or lm/worker-1")
    parser.add_argument("--trace", dest="trace_id", help="only of this trace_id")
    parser.add_argument("--run", dest="run_id", help="only of this run_id")
    parser.add_argument("--session", dest="session_id", help="only of this session_id")
    parser.add_argument("--since", type=_moment, help="not before: 90s, 10m, 2h or 1d ago, or as 2026-11-21T09:30")
    parser.add_argument("--until", type=_moment, help="before, likewise")
    parser.add_argument("--follow", action="store_true", help="wait for more at the end; Ctrl-C ends it")
    parser.add_argument("--json", action="store_true", help="lines of JSON with every field, as JSONLSink writes them")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the events.

    Returns:
        The exit code: 0, also when the reader of the output closed it; 2 if the file is missing or no log; 130 after
        Ctrl-C.
    """
    write = to_line if args.json else _line
    try:
        for event in read(args.file, **{name: getattr(args, name) for name in READ_OPTIONS}):
            sys.stdout.write(write(event))
            if args.follow:
                sys.stdout.flush()
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more at its end, which would fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        sys.stderr.write(f"promptside events: {args.file}: {why}\n")
        return 2
    return 0


def _line(event: Event) -> str:
    data = [f"{readable(str(name))}={readable(value)}" for name, value in event.data.items()]
    keys = [f"{key}={readable(value)}" for key in SHOWN if (value := getattr(event, key)) is not None]
    words = [local_time(event.time), f"{readable(event.type):<24}", readable(event.source), *data, *keys]
    return "  ".join(words[:3]) + "".join(f"  {word}" for word in words[3:]) + "\n"


def _pattern(text: str) -> str:
    try:
        compile_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _moment(text: str) -> float:
    if span := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text):
        return clock.wall() - float(span[1]) * SPANS[span[2]]
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time; give 90s, 10m, 2h or 1d (ago), or a time such as 2026-11-21T09:30"
        ) from None
