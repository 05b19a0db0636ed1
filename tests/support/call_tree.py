"""Call trees as text, rebuilt from events alone, with everything checked on the way that holds for every tree."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable

from promptside import ActorSystem, Event
from promptside.events import CATALOGUE

KINDS = ("pipeline", "module", "tool", "sandbox.run", "evaluation", "lm.call", "lm.attempt")
LABELS = ("pipeline", "name", "module", "tool", "sandbox", "endpoint", "model", "examples")


def listen(system: ActorSystem, pattern: str = "*") -> list[Event]:
    told: list[Event] = []
    system.events.on(pattern, told.append)
    return told


def outlines(events: Iterable[Event]) -> list[str]:
    """One text per tree, in the order of their first events; a line per node, children indented in their order.

    ``lm.attempt openai/fake: LMServerError`` is one that failed; of those that stopped, the label alone is told.
    """
    nodes: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        fields = CATALOGUE[event.type].fields
        assert fields is not None, f"{event.type} is reserved"
        assert set(event.data) <= {*fields.split(), "content_dropped"}, f"{event.type} tells more than the catalogue"
        if event.type.rpartition(".")[0] in KINDS:
            assert event.call_id is not None
            nodes[event.call_id].append(event)
            json.dumps(dict(event.data), allow_nan=False)
    children: dict[str | None, list[str]] = defaultdict(list)
    for call_id, (first, *rest) in nodes.items():
        assert len(rest) == 1, f"{first} has not exactly one end: {rest}"
        (last,) = rest
        kind, word = first.type.rpartition(".")[::2]
        assert word == "started"
        assert last.type in {f"{kind}.stopped", f"{kind}.failed"}
        keys = ("source", "incarnation", "trace_id", "span_id", "parent_id", "call_id")
        assert [getattr(first, key) for key in keys] == [getattr(last, key) for key in keys]
        assert re.fullmatch("[0-9a-f]{32}", first.trace_id or "")
        assert re.fullmatch("[0-9a-f]{16}", first.span_id or "")
        shown = {key: value for key, value in first.data.items() if key not in {"inputs", "remote_parent"}}
        assert shown.items() <= last.data.items()
        assert last.data["seconds"] >= 0
        assert first.seq < last.seq
        if first.parent_id in nodes:
            parent = nodes[first.parent_id][0]
            assert parent.trace_id == first.trace_id
            assert parent.seq < first.seq
        children[first.parent_id].append(call_id)
    assert len({first.span_id for first, _ in nodes.values()}) == len(nodes)
    roots = [call_id for call_id, (first, _) in nodes.items() if first.parent_id not in nodes]
    return ["\n".join(_lines(root, nodes, children, 0)) for root in roots]


def outline(events: Iterable[Event]) -> str:
    """The one tree there is."""
    (tree,) = outlines(events)
    return tree


def _lines(call_id: str, nodes: dict[str, list[Event]], children: dict[str | None, list[str]], depth: int) -> list[str]:
    first, last = nodes[call_id]
    kind = first.type.rpartition(".")[0]
    label = next(str(first.data[key]) for key in LABELS if key in first.data)
    error = f": {last.data['error']}" if "error" in last.data else ""
    below = [line for child in children[call_id] for line in _lines(child, nodes, children, depth + 1)]
    return [f"{'  ' * depth}{kind} {label}{error}", *below]
