"""Writes docs/reference/ from the code; `make reference` calls it, and a test compares."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from promptside.events.catalogue import CATALOGUE, FIELDS, VERSION


def events() -> Iterator[str]:
    yield "# Events"
    yield ""
    yield f"Version {VERSION} of the catalogue, generated from `promptside/events/catalogue.py` by `make reference`."
    yield ""
    yield "Every event also has `id`, `seq`, `source` and `time`. Calls have `call_id`, `parent_id`, `trace_id` and"
    yield "`span_id`, which make them one tree. What an actor tells has its `incarnation`."
    yield ""
    yield "| type | when | data |"
    yield "|---|---|---|"
    for name, type in CATALOGUE.items():
        if type.fields is not None:
            fields = ", ".join(f"`{word}`" for word in type.fields.split())
            yield f"| `{name}` | {type.description} | {fields} |"
    yield ""
    yield "| field | what it is |"
    yield "|---|---|"
    for word, meaning in FIELDS.items():
        yield f"| `{word}` | {meaning} |"
    yield ""
    yield "A field is missing where it is not known. In place of content, `content_dropped` is the type of the error"
    yield "that a redaction raised."
    yield ""
    yield "Reserved, and published by nobody yet:"
    yield ", ".join(f"`{name}`" for name, type in CATALOGUE.items() if type.fields is None) + "."


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.md").write_text("\n".join(events()) + "\n")
