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
    yield "`span_id`, which make them one tree. Events of an actor have its `incarnation`."
    yield ""
    yield "`X.stopped` means that X **ended well**: an operation returned, an actor or a sandbox ended in order. A"
    yield "failed or cancelled operation is `X.failed`."
    yield ""
    yield "| type | when | data |"
    yield "|---|---|---|"
    for name, type in CATALOGUE.items():
        if type.fields is not None:
            fields = ", ".join(f"`{field}`" for field in type.fields.split())
            yield f"| `{name}` | {type.description} | {fields} |"
    yield ""
    yield "| field | what it is |"
    yield "|---|---|"
    for field, meaning in FIELDS.items():
        yield f"| `{field}` | {meaning} |"
    yield ""
    yield "A field is missing where it is not known. If a redaction raised, `content_dropped` is its error's type."
    yield ""
    yield "Reserved, and not published yet:"
    yield ", ".join(f"`{name}`" for name, type in CATALOGUE.items() if type.fields is None) + "."


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.md").write_text("\n".join(events()) + "\n")
