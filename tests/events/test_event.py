"""The record: frozen, joinable, and the same whichever way it is built."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest

from promptside.events import Event, EventBus
from promptside.events.event import build_event
from tests.support.sinks import KEYS


def build() -> Event:
    return build_event("ab-7", 7, "lm.call.stopped", "/lm", 1.5, {"tokens": 3}, "t", "s", "p", "r", "c", "n", 2)


def test_the_fast_way_builds_what_the_constructor_builds() -> None:
    constructed = Event(
        id="ab-7",
        seq=7,
        type="lm.call.stopped",
        source="/lm",
        time=1.5,
        data={"tokens": 3},
        trace_id="t",
        span_id="s",
        parent_id="p",
        run_id="r",
        call_id="c",
        session_id="n",
        incarnation=2,
    )

    assert type(build()) is Event
    assert build() == constructed
    assert repr(build()) == repr(constructed)
    assert hash(build()) == hash(constructed)


def test_an_event_is_frozen_and_has_no_dict() -> None:
    event = build()

    with pytest.raises(dataclasses.FrozenInstanceError):
        event.seq = 8  # type: ignore[misc]
    assert not hasattr(event, "__dict__")


def test_an_event_is_copied_pickled_and_written_as_json() -> None:
    event = build()

    assert copy.copy(event) == event
    assert pickle.loads(pickle.dumps(event)) == event
    assert json.loads(json.dumps(dataclasses.asdict(event)))["data"] == {"tokens": 3}
    assert dataclasses.replace(event, seq=8).seq == 8


async def test_a_published_event_carries_every_key_it_was_given() -> None:
    bus = EventBus()
    data = {"tokens": 3}
    received: list[Event] = []
    bus.on("*", received.append)

    bus.publish(
        "lm.call.stopped",
        "/lm/worker",
        data,
        incarnation=4,
        **KEYS,
    )

    (event,) = received
    assert (event.type, event.source, event.incarnation) == ("lm.call.stopped", "/lm/worker", 4)
    assert (event.trace_id, event.span_id, event.parent_id) == ("trace", "span", "parent")
    assert (event.run_id, event.call_id, event.session_id) == ("run", "call", "session")
    assert event.data is data, "data is handed on, not copied"


def test_an_event_without_data_has_an_empty_dict_of_its_own() -> None:
    bus = EventBus()
    received: list[Event] = []
    bus.on("*", received.append)

    bus.publish("a", "/")
    bus.publish("a", "/")

    assert json.dumps(received[0].data) == "{}"
    assert received[0].data is not received[1].data


def test_ids_differ_between_events_and_between_buses() -> None:
    received: list[Event] = []
    for bus in (EventBus(), EventBus()):
        bus.on("*", received.append)
        bus.publish("a", "/")
        bus.publish("a", "/")

    assert [event.seq for event in received] == [1, 2, 1, 2]
    assert len({event.id for event in received}) == 4


def test_time_is_what_the_clock_module_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("promptside.clock.wall", lambda: 12.5)
    bus = EventBus()
    received: list[Event] = []
    bus.on("*", received.append)

    bus.publish("a", "/")

    assert received[0].time == 12.5
