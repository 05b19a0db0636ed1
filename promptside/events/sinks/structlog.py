"""A sink that writes a line per event with structlog's renderers: for a terminal, or as JSON for log collectors."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO, Unpack, get_args

from promptside.checks import check
from promptside.events.event import Event
from promptside.events.log.codec import KEYS, attributes, escaped, local_time, to_json, to_record
from promptside.events.sinks.sink import Sink, SinkOptions

__all__ = ["StructlogSink"]

Output = Literal["human", "json"]

LEVELS: Final = {"crashed": "error", "failed": "error", "gave_up": "error"} | dict.fromkeys(
    ("dead", "gap", "lost", "opened", "saturated"), "warning"
)
"""Level of an event by the last word of its type; all others are info."""

RESERVED: Final = {"event", "exc_info", "exception", "level", "source", "stack", "timestamp", *KEYS}
"""Names that a line uses itself; a field of `data` with such a name is ``data.NAME`` there."""

Renderer = Callable[[Any, str, dict[str, Any]], str | bytes]


class StructlogSink(Sink):
    """Writes events to a stream, rendered by structlog; structlog's global configuration is neither used nor changed.

    For people, a line has time, level, type, source and each field; as JSON, it has `timestamp`, `level`, `event` (the
    type), `source`, `data` and the optional fields that are set. Control characters are escaped. A stream that fails in
    the middle of a batch gets that batch again.

    Args:
        stream: The stream; standard error by default. It is flushed and not closed.
        output: ``"human"`` or ``"json"``.
        **options: As for `Sink`; but `max_queue` is 10,000 and `batch_size` 1,000 unless given.
    """

    def __init__(
        self, stream: TextIO | None = None, *, output: Output = "human", **options: Unpack[SinkOptions]
    ) -> None:
        known = get_args(Output)
        valid = stream is None or hasattr(stream, "write")
        check("StructlogSink", "stream", stream, valid, "give an open stream of text, such as sys.stdout, or None")
        check("StructlogSink", "output", output, output in known, f"give one of {', '.join(known)}")
        options.setdefault("max_queue", 10_000)
        options.setdefault("batch_size", 1_000)
        super().__init__("structlog", **options)
        self._stream = sys.stderr if stream is None else stream
        self._output = output
        self._renderer: Renderer | None = None

    def _open(self) -> None:
        import structlog  # 0.1 s, in the writer's thread

        if self._output == "json":
            self._renderer = structlog.processors.JSONRenderer(serializer=lambda value, **_: to_json(value))
        else:
            self._renderer = structlog.dev.ConsoleRenderer(colors=self._stream.isatty(), sort_keys=False)

    def _write(self, events: Sequence[Event]) -> None:
        renderer = self._renderer
        assert renderer is not None
        prepare = _for_machines if self._output == "json" else _for_people
        lines = []
        for event in events:
            level = LEVELS.get(event.type.rpartition(".")[2], "info")
            lines.append(f"{renderer(None, level, prepare(event, level))!s}\n")
        self._stream.write("".join(lines))
        self._stream.flush()

    def _close(self) -> None:
        self._renderer = None


def _for_machines(event: Event, level: str) -> dict[str, Any]:
    record = to_record(event)
    time = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds")
    return {"timestamp": time, "level": level, "event": record.pop("type"), **record}


def _for_people(event: Event, level: str) -> dict[str, Any]:
    record = json.loads(to_json(to_record(event)))  # plain values: a `__repr__` of others may do anything
    line = {"timestamp": local_time(event.time), "level": level, "event": escaped(str(event.type))}
    fields = {"source": record["source"]} | {key: record[key] for key in KEYS if key in record}
    own = {f"data.{name}" if name in RESERVED else name: value for name, value in attributes(record["data"]).items()}
    for name, value in (fields | own).items():
        # The renderer writes all but text as Python does, which escapes by itself.
        line[escaped(name)] = escaped(value) if isinstance(value, str) else value
    return line
