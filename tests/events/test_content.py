"""`promptside.events.content`: what is copied of inputs and outputs is a bounded, redacted, JSON-safe copy."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from typing import Any

import dspy
import pydantic
import pytest

from promptside import EventBus
from promptside.events.content import MAX_VALUES, NOTHING, Content, project


@dataclass
class Point:
    x: int
    note: Any


class Model(pydantic.BaseModel):
    name: str
    sizes: list[int]


@pytest.mark.parametrize(
    ("value", "copied"),
    [
        (None, None),
        (True, True),
        ("text", "text"),
        (1.5, 1.5),
        (math.nan, "nan"),
        (2**80, str(2**80)),
        ("lone \ud800 surrogate", "lone ? surrogate"),
        ({1: (2, {3})}, {"1": [2, [3]]}),
        (Point(1, Model(name="a", sizes=[1])), {"x": 1, "note": {"name": "a", "sizes": [1]}}),
        (dspy.Prediction(answer="yes", score=1), {"answer": "yes", "score": 1}),
        (dspy.Example(question="?").with_inputs("question"), {"question": "?"}),
        (ValueError("odd"), "odd"),
        (Point, "<type>"),
        (b"bytes", "<bytes>"),
        ({"lock": threading.Lock(), "rest": 1}, {"lock": "<lock>", "rest": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_copied_as_data_and_what_is_none_leaves_a_marker(value: Any, copied: Any) -> None:
    assert project(value) == copied
    assert json.loads(json.dumps(project(value), allow_nan=False)) == copied


def test_the_copy_shares_nothing_with_the_value() -> None:
    value: dict[str, Any] = {"messages": [{"content": "before"}]}
    copied = project(value)
    value["messages"][0]["content"] = "after"
    assert copied == {"messages": [{"content": "before"}]}


def test_texts_values_and_depth_are_bounded() -> None:
    assert project(["a" * 10, "b" * 10], limit=12) == ["a" * 10, "bb<8 more characters>"]
    many = project(list(range(10 * MAX_VALUES)))
    assert len(many) == MAX_VALUES
    assert many[-1] == f"<{9 * MAX_VALUES + 1} more>"
    assert project({number: number for number in range(2 * MAX_VALUES)})["..."].endswith(" more>")
    ring: list[Any] = []
    ring.append(ring)
    assert "<list>" in json.dumps(project(ring))
    wide: Any = "leaf"
    for _ in range(8):
        wide = [wide] * 20
    assert len(json.dumps(project(wide))) < 100_000


def bus_with_listener() -> EventBus:
    bus = EventBus()
    bus.on("lm.*", lambda event: None)
    return bus


def test_each_direction_is_included_only_where_it_is_asked_for_and_has_a_listener() -> None:
    bus = bus_with_listener()
    for content, inputs, outputs in (
        (Content(), True, True),
        (Content(outputs=False), True, False),
        (Content(inputs=False), False, True),
        (NOTHING, False, False),
    ):
        assert content.of_inputs(bus.wants, "lm.call.started", 1) == ({"inputs": 1} if inputs else {})
        assert content.of_outputs(bus.wants, "lm.call.stopped", 1) == ({"outputs": 1} if outputs else {})
        error = content.of_error(bus.wants, "lm.call.failed", OSError("odd"))
        assert error == ({"message": "odd"} if outputs else {})
        assert content.of_inputs(bus.wants, "tool.started", 1) == {}


def test_a_redaction_sees_a_copy_and_what_it_returns_is_published() -> None:
    bus, seen = bus_with_listener(), list[tuple[str, Any]]()

    def redact(type: str, content: Any) -> Any:
        seen.append((type, content))
        return dict.fromkeys(content, "***")

    value = {"card": "4111"}
    assert Content(redact=redact).of_inputs(bus.wants, "lm.call.started", value) == {"inputs": {"card": "***"}}
    assert seen == [("lm.call.started", {"card": "4111"})]
    assert seen[0][1] is not value
    assert Content(redact=lambda type, content: None).of_inputs(bus.wants, "lm.call.started", value) == {}
    odd = Content(redact=lambda type, content: object()).of_inputs(bus.wants, "lm.call.started", value)
    assert odd == {"inputs": "<object>"}


def test_a_redaction_that_raises_drops_the_content_and_a_value_that_raises_itself_alone() -> None:
    def broken(type: str, content: Any) -> Any:
        raise KeyError("4111")

    class Odd:
        def toDict(self) -> Any:  # noqa: N802 - DSPy's name
            raise AssertionError

        def items(self) -> Any:
            raise OSError("4111")

    bus = bus_with_listener()
    assert Content(redact=broken).of_inputs(bus.wants, "lm.call.started", "4111") == {"content_dropped": "KeyError"}
    assert Content().of_outputs(bus.wants, "lm.call.stopped", Odd()) == {"outputs": "<Odd>"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs": 1}, "Content: inputs=1: give True or False"),
        ({"outputs": None}, "Content: outputs=None"),
        ({"redact": "no"}, "Content: redact='no': give a function"),
        ({"limit": 0}, "Content: limit=0: give a whole number >= 1"),
        ({"limit": True}, "Content: limit=True"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value_and_the_remedy(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Content(**settings)
    assert message in str(caught.value)
