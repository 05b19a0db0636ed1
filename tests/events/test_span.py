"""`promptside.events.span`: what has a beginning and an end, and the keys that make a tree of it."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest

from promptside import Event, EventBus
from promptside.events.span import TRACE_PARENT, Span, TraceParent


def bus_with_listener() -> tuple[EventBus, list[Event]]:
    bus, published = EventBus(), list[Event]()
    bus.on("*", published.append)
    return bus, published


def test_a_span_publishes_its_beginning_and_its_end_under_the_same_keys() -> None:
    bus, published = bus_with_listener()
    root = Span(bus, "module", "app", {"module": "A"}, call_id="root", incarnation=3)
    part = Span(bus, "tool", "app", {"tool": "search"}, call_id="part", parent=root)
    root.started({"inputs": "x"})
    part.started()
    part.stopped({"outputs": "y"})
    root.attributes = {**root.attributes, "more": 1}
    root.failed(OSError("text"), {"message": "text"})
    assert [event.type for event in published] == ["module.started", "tool.started", "tool.stopped", "module.failed"]
    first, second, third, fourth = published
    assert (first.call_id, first.parent_id, first.incarnation) == ("root", None, 3)
    assert (second.call_id, second.parent_id, second.incarnation) == ("part", "root", None)
    assert {event.trace_id for event in published} == {root.trace_id}
    assert (first.span_id, second.span_id) == (fourth.span_id, third.span_id)
    assert first.span_id != second.span_id
    assert first.data == {"module": "A", "inputs": "x"}
    assert set(third.data) == {"tool", "seconds", "outputs"}
    assert fourth.data == {
        "module": "A",
        "more": 1,
        "error": "OSError",
        "message": "text",
        "seconds": fourth.data["seconds"],
    }


def test_amounts_add_up_and_an_unknown_part_leaves_the_sum_unknown() -> None:
    bus, published = bus_with_listener()
    span = Span(bus, "lm.call", "lm", {})
    span.count(attempts=1, cost=0.5, tokens=3)
    span.count(attempts=1, cost=None, tokens=4)
    span.count(cost=1.0)
    assert (span.counted("attempts"), span.counted("cost"), span.counted("other")) == (2, None, None)
    span.stopped()
    assert set(published[0].data) == {"attempts", "tokens", "seconds"}
    assert (published[0].data["attempts"], published[0].data["tokens"]) == (2, 7)


@pytest.mark.parametrize(("given", "shown"), [(1.5, 1.5), (2, 2), (None, None), (math.inf, None), ("soon", None)])
def test_an_errors_retry_after_is_published_where_it_is_a_number(given: Any, shown: Any) -> None:
    bus, published = bus_with_listener()
    error = OSError()
    error.retry_after = given  # type: ignore[attr-defined]
    Span(bus, "lm.call", "lm", {}).failed(error)
    assert published[0].data.get("retry_after") == shown
    assert ("retry_after" in published[0].data) == (shown is not None)


def test_a_root_joins_the_trace_around_it_and_only_the_root_names_the_remote_parent() -> None:
    bus, published = bus_with_listener()
    token = TRACE_PARENT.set(TraceParent("ab" * 16, "cd" * 8))
    try:
        root = Span(bus, "module", "app", {})
    finally:
        TRACE_PARENT.reset(token)
    root.started()
    Span(bus, "tool", "app", {}, parent=root).started()
    root.stopped()
    assert {event.trace_id for event in published} == {"ab" * 16}
    assert [event.data.get("remote_parent") for event in published] == ["cd" * 8, None, None]


def test_parts_that_publish_first_in_many_threads_agree_on_their_trace() -> None:
    bus, published = EventBus(), list[Event]()
    bus.on("tool.*", published.append)
    for _ in range(20):
        published.clear()
        root = Span(bus, "module", "app", {})
        root.started()
        barrier = threading.Barrier(4)

        def part(root: Span = root, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            Span(bus, "tool", "app", {}, parent=root).started()

        threads = [threading.Thread(target=part) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({event.call_id for event in published}) == 4
        assert len({event.trace_id for event in published}) == 1


@pytest.mark.parametrize(
    ("trace_id", "span_id", "field"),
    [("ab" * 15, "cd" * 8, "trace_id"), ("0" * 32, "cd" * 8, "trace_id"), ("AB" * 16, "cd" * 8, "trace_id"),
     ("ab" * 16, "0" * 16, "span_id"), ("ab" * 16, None, "span_id")],
)  # fmt: skip
def test_an_invalid_trace_parent_is_named(trace_id: Any, span_id: Any, field: str) -> None:
    with pytest.raises(ValueError, match=f"TraceParent: {field}=.*lowercase hex digits, not all zero"):
        TraceParent(trace_id, span_id)
