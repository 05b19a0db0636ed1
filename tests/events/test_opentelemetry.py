"""Events as OpenTelemetry spans, seen through the SDK's in-memory exporter."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dspy
import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased
from opentelemetry.trace import SpanKind, StatusCode

from promptside import ActorStopped, ActorSystem, clock
from promptside.events import EventBus, read
from promptside.events.sinks import OpenTelemetrySpans, SQLiteSink
from promptside.events.span import TRACE_PARENT, Span, TraceParent
from promptside.pools import Endpoint, LMPool, RetryConfig
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.call_tree import listen, outline


class Collector:
    """A tracer provider of the application's, and what it has exported."""

    def __init__(self, **options: Any) -> None:
        self.provider = TracerProvider(**options)
        self._exporter = InMemorySpanExporter()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("application")

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self._exporter.get_finished_spans())

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def tree(self) -> list[str]:
        """Each span's name, indented below its parent's; siblings in the order of their start."""
        children: dict[int | None, list[ReadableSpan]] = {}
        for span in sorted(self.spans, key=lambda span: span.start_time or 0):
            children.setdefault(span.parent.span_id if span.parent else None, []).append(span)

        def draw(span: ReadableSpan, depth: int) -> Iterator[str]:
            yield "  " * depth + span.name
            for child in children.get(id_of(span), ()):
                yield from draw(child, depth + 1)

        return [line for root in children.get(None, ()) for line in draw(root, 0)]


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def facts(span: ReadableSpan) -> dict[str, Any]:
    """Attributes apart from the join keys."""
    keys = {"call_id", "incarnation", "source", "span_id", "trace_id"}
    return {name: value for name, value in (span.attributes or {}).items() if name[len("promptside.") :] not in keys}


async def exported(publish: Callable[[EventBus], None], **options: Any) -> Collector:
    collector, bus = Collector(), EventBus()
    sink = await OpenTelemetrySpans(collector.provider, **options).start(bus)
    publish(bus)
    await sink.stop()
    assert sink.failures == 0
    return collector


CHAT = {"gen_ai.operation.name": "chat"}


@pytest.mark.parametrize(
    ("front", "before", "after", "name", "kind", "attributes"),
    [
        (
            "module",
            {"module": "ReAct"},
            {},
            "invoke_agent ReAct",
            SpanKind.INTERNAL,
            {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "ReAct", "promptside.module": "ReAct"},
        ),
        (
            "module",
            {"module": "Triage", "name": "inner.triage"},
            {},
            "invoke_workflow Triage",
            SpanKind.INTERNAL,
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": "Triage",
                "promptside.module": "Triage",
                "promptside.name": "inner.triage",
            },
        ),
        (
            "pipeline",
            {"pipeline": "rag"},
            {},
            "invoke_workflow rag",
            SpanKind.INTERNAL,
            {
                "gen_ai.operation.name": "invoke_workflow",
                "gen_ai.workflow.name": "rag",
                "promptside.pipeline": "rag",
            },
        ),
        (
            "lm.call",
            {"model": "gemini/gemini-2.5-flash"},
            {"input_tokens": 7, "output_tokens": 3, "cache_read_tokens": 2, "reasoning_tokens": 1, "cost": 0.25},
            "chat gemini-2.5-flash",
            SpanKind.CLIENT,
            {
                **CHAT,
                "gen_ai.provider.name": "gcp.gemini",
                "gen_ai.request.model": "gemini-2.5-flash",
                "gen_ai.usage.input_tokens": 7,
                "gen_ai.usage.output_tokens": 3,
                "gen_ai.usage.cache_read.input_tokens": 2,
                "gen_ai.usage.reasoning.output_tokens": 1,
                "promptside.cost": 0.25,
                "promptside.model": "gemini/gemini-2.5-flash",
            },
        ),
        (
            "lm.call",
            {"model": "openrouter/anthropic/claude"},
            {"cache_hit": True, "response_model": "openai/backup"},
            "chat anthropic/claude",
            SpanKind.CLIENT,
            {
                **CHAT,
                "gen_ai.provider.name": "openrouter",
                "gen_ai.request.model": "anthropic/claude",
                "gen_ai.response.model": "backup",
                "promptside.cache_hit": True,
                "promptside.model": "openrouter/anthropic/claude",
            },
        ),
        (
            "lm.call",
            {"model": "home-made"},
            {},
            "chat home-made",
            SpanKind.CLIENT,
            {
                **CHAT,
                "gen_ai.provider.name": "_OTHER",
                "gen_ai.request.model": "home-made",
                "promptside.model": "home-made",
            },
        ),
        (
            "lm.attempt",
            {"endpoint": "eu", "worker": "lm/worker-1"},
            {"input_tokens": 7},
            "lm.attempt eu",
            SpanKind.CLIENT,
            {"promptside.endpoint": "eu", "promptside.worker": "lm/worker-1", "promptside.input_tokens": 7},
        ),
        (
            "tool",
            {"tool": "search", "inputs": {"topic": "France"}},
            {"outputs": "Paris"},
            "execute_tool search",
            SpanKind.INTERNAL,
            {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.type": "function",
                "gen_ai.tool.name": "search",
                "gen_ai.tool.call.arguments": '{"topic":"France"}',
                "gen_ai.tool.call.result": "Paris",
            },
        ),
        ("sandbox.run", {"sandbox": "Deno"}, {}, "sandbox.run", SpanKind.INTERNAL, {"promptside.sandbox": "Deno"}),
        (
            "evaluation",
            {"examples": 3},
            {"score": 66.7},
            "evaluation",
            SpanKind.INTERNAL,
            {
                "promptside.examples": 3,
                "promptside.score": 66.7,
            },
        ),
        ("optimizer", {}, {}, "optimizer", SpanKind.INTERNAL, {}),
    ],
)
async def test_a_pair_of_events_is_a_span_by_the_conventions(
    front: str, before: dict[str, Any], after: dict[str, Any], name: str, kind: SpanKind, attributes: Mapping[str, Any]
) -> None:
    def publish(bus: EventBus) -> None:
        bus.publish(f"{front}.started", "a/b", before, call_id="c1", span_id="00000000000000aa", incarnation=2)
        bus.publish(f"{front}.stopped", "a/b", {**before, **after, "seconds": 1.5}, call_id="c1")

    collector = await exported(publish)
    span = collector.one(name)

    assert (span.kind, span.status.status_code) == (kind, StatusCode.UNSET)
    assert facts(span) == attributes
    keys = {"call_id": "c1", "span_id": "00000000000000aa", "source": "a/b", "incarnation": 2}
    assert {f"promptside.{key}": value for key, value in keys.items()}.items() <= dict(span.attributes or {}).items()
    scope = span.instrumentation_scope
    assert scope is not None
    assert (scope.name, scope.schema_url) == ("promptside", "https://opentelemetry.io/schemas/1.41.0")


async def test_a_failure_has_its_type_and_the_status_of_an_error() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("lm.attempt.started", "lm", {"endpoint": "eu"}, call_id="c")
        late = {
            "endpoint": "eu",
            "error": "LMRateLimitError",
            "message": "slow down",
            "retry_after": 2.0,
            "seconds": 1.0,
        }
        bus.publish("lm.attempt.failed", "lm", late, call_id="c")

    span = (await exported(publish)).one("lm.attempt eu")

    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "slow down")
    assert facts(span) == {
        "error.type": "LMRateLimitError",
        "promptside.endpoint": "eu",
        "promptside.retry_after": 2.0,
    }


async def test_times_are_those_of_the_events(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1000.5, 1002.25])
    bus, collector = EventBus(), Collector()
    sink = await OpenTelemetrySpans(collector.provider).start(bus)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "wall", lambda: next(times, 1002.25))
        bus.publish("tool.started", "a", {"tool": "t"}, call_id="c")
        bus.publish("tool.stopped", "a", {"tool": "t"}, call_id="c")
        await sink.stop()
    span = collector.one("execute_tool t")
    assert (span.start_time, span.end_time) == (1_000_500_000_000, 1_002_250_000_000)


async def test_a_clock_that_was_set_back_makes_no_negative_length(monkeypatch: pytest.MonkeyPatch) -> None:
    bus, collector = EventBus(), Collector()
    sink = await OpenTelemetrySpans(collector.provider).start(bus)
    now = clock.wall()
    with monkeypatch.context() as patch:
        for word, time in (("started", now), ("stopped", now - 60)):
            patch.setattr(clock, "wall", lambda time=time: time)
            bus.publish(f"tool.{word}", "a", {"tool": "t"}, call_id="c")
    await sink.stop()
    span = collector.one("execute_tool t")
    assert span.start_time == span.end_time


async def test_a_childs_end_and_even_its_beginning_may_come_after_its_parents_end() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("module.started", "m", {"module": "M"}, call_id="parent")
        bus.publish("tool.started", "m", {"tool": "early"}, call_id="early", parent_id="parent")
        bus.publish("module.failed", "m", {"module": "M", "error": "CancelledError"}, call_id="parent")
        bus.publish("tool.started", "m", {"tool": "late"}, call_id="late", parent_id="parent")
        bus.publish("tool.stopped", "m", {"tool": "late"}, call_id="late", parent_id="parent")
        bus.publish("tool.stopped", "m", {"tool": "early"}, call_id="early", parent_id="parent")

    collector = await exported(publish)
    assert collector.tree() == ["invoke_workflow M", "  execute_tool early", "  execute_tool late"]


def call(bus: EventBus, name: str, parent: Span | None = None) -> Span:
    """A tool's call that has begun."""
    span = Span(bus, "tool", "app", {"tool": name}, call_id=name, parent=parent)
    span.started()
    return span


async def test_an_entry_call_is_a_child_of_the_span_around_it_and_its_own_calls_are_not() -> None:
    collector, bus = Collector(), EventBus()
    sink = await OpenTelemetrySpans(collector.provider).start(bus)
    with collector.tracer.start_as_current_span("outer"):
        entry = call(bus, "entry")
        with collector.tracer.start_as_current_span("inner"):
            call(bus, "child", entry).stopped()
        entry.stopped()
    call(bus, "alone").stopped()
    await sink.stop()

    assert collector.tree() == [
        "outer",
        "  execute_tool entry",
        "    execute_tool child",
        "  inner",
        "execute_tool alone",
    ]
    assert len({span.context.trace_id for span in collector.spans if span.context}) == 2


async def test_an_entry_call_may_be_a_child_of_another_services_span() -> None:
    remote = TraceParent("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")

    def publish(bus: EventBus) -> None:
        token = TRACE_PARENT.set(remote)
        current = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False))
        with trace.use_span(current):  # what is set for the call is meant for the call
            call(bus, "entry").stopped()
        TRACE_PARENT.reset(token)

    span = (await exported(publish)).one("execute_tool entry")
    assert span.parent is not None
    assert span.parent.is_remote
    assert trace.format_trace_id(span.parent.trace_id) == remote.trace_id
    assert trace.format_span_id(span.parent.span_id) == remote.span_id
    assert "promptside.remote_parent" not in (span.attributes or {})


async def test_what_the_application_does_not_sample_is_not_exported() -> None:
    collector, bus = Collector(sampler=ParentBased(ALWAYS_OFF)), EventBus()
    sink = await OpenTelemetrySpans(collector.provider).start(bus)
    with collector.tracer.start_as_current_span("outer"):
        call(bus, "entry").stopped()
    await sink.stop()
    assert collector.spans == []


async def test_the_span_that_is_current_where_the_sink_runs_is_no_parent() -> None:
    collector, bus = Collector(), EventBus()
    with collector.tracer.start_as_current_span("outer"):
        sink = await OpenTelemetrySpans(collector.provider).start(bus)
    call(bus, "entry").stopped()
    await sink.stop()
    assert collector.one("execute_tool entry").parent is None


async def test_many_threads_and_loops_publish_and_every_span_has_its_own_parent() -> None:
    collector, bus = Collector(), EventBus()
    sink = await OpenTelemetrySpans(collector.provider).start(bus)

    async def trees(thread: int) -> None:
        async def tree(number: int) -> None:
            with collector.tracer.start_as_current_span(f"outer {thread} {number}"):
                entry = call(bus, f"entry {thread} {number}")
                await asyncio.sleep(0)
                child = call(bus, f"child {thread} {number}", entry)
                await asyncio.sleep(0)
                entry.stopped()
                child.stopped()

        await asyncio.gather(*map(tree, range(100)))

    threads = [threading.Thread(target=lambda n=n: asyncio.run(trees(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    await sink.stop()

    names = {id_of(span): span.name for span in collector.spans}
    assert len(collector.spans) == 4 * 100 * 3
    assert not any("promptside.unfinished" in (span.attributes or {}) for span in collector.spans)
    for span in collector.spans:
        kind, _, number = span.name.removeprefix("execute_tool ").partition(" ")
        if kind != "outer":
            assert span.parent is not None
            around = {"entry": f"outer {number}", "child": f"execute_tool entry {number}"}[kind]
            assert names[span.parent.span_id] == around


# -- what does not go its usual way ----------------------------------------------------------------------------------


def unfinished(collector: Collector) -> dict[str, Any]:
    return {span.name: (span.attributes or {}).get("promptside.unfinished") for span in collector.spans}


async def test_spans_that_are_open_at_the_end_are_ended_and_say_so() -> None:
    collector = await exported(lambda bus: call(bus, "open"))
    assert unfinished(collector) == {"execute_tool open": "closed"}


async def test_beyond_the_bound_the_oldest_open_span_is_ended_and_its_children_still_find_it() -> None:
    def publish(bus: EventBus) -> None:
        first = call(bus, "first")
        second = call(bus, "second")
        third = call(bus, "third", first)
        fourth = call(bus, "fourth", first)
        for each in (fourth, first, third, second):
            each.stopped()

    collector = await exported(publish, max_open=3)
    assert collector.tree() == [
        "execute_tool first",
        "  execute_tool third",
        "  execute_tool fourth",
        "execute_tool second",
    ]
    assert unfinished(collector) == {
        "execute_tool first": "max_open",
        "execute_tool second": None,
        "execute_tool third": None,
        "execute_tool fourth": None,
    }


async def test_beyond_its_age_an_open_span_is_ended_without_waiting_for_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector, bus = Collector(), EventBus()
    sink = await OpenTelemetrySpans(collector.provider, max_age=60, interval=0.01).start(bus)
    old, now = call(bus, "old"), clock.wall()
    await until(lambda: sink.written == 1)
    with monkeypatch.context() as patch:
        patch.setattr(clock, "wall", lambda: now + 61)
        young = call(bus, "young")
        await until(lambda: bool(collector.spans))
    assert unfinished(collector) == {"execute_tool old": "max_age"}
    old.stopped()
    young.stopped()
    await sink.stop()
    assert unfinished(collector) == {"execute_tool old": "max_age", "execute_tool young": None}


async def test_memory_is_bounded_also_for_what_has_ended() -> None:
    collector, bus = Collector(), EventBus()
    sink = await OpenTelemetrySpans(collector.provider, max_open=10).start(bus)
    for number in range(100):
        with collector.tracer.start_as_current_span("outer"):
            call(bus, f"ends {number}").stopped()
            call(bus, f"does not {number}")
    await until(lambda: sink.written == 300)
    assert (len(sink._open_spans), len(sink._ended), len(sink._current)) == (10, 10, 0)
    await sink.stop()
    assert len(sink._open_spans) == 0


async def test_a_call_that_begins_twice_is_two_spans() -> None:
    def publish(bus: EventBus) -> None:
        call(bus, "again")
        call(bus, "again").stopped()

    first, second = (await exported(publish)).spans
    assert [(span.attributes or {}).get("promptside.unfinished") for span in (first, second)] == ["started again", None]


async def test_an_end_without_a_beginning_is_a_span_of_its_length() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("tool.failed", "a", {"tool": "t", "error": "Boom", "seconds": 1.5}, call_id="c")

    span = (await exported(publish)).one("execute_tool t")
    assert span.end_time is not None
    assert span.start_time is not None
    assert span.end_time - span.start_time == pytest.approx(1.5e9, abs=1e6)
    assert facts(span)["error.type"] == "Boom"


class Clumsy(SpanProcessor):
    """Of an application; raises at some spans."""

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        if span.name.endswith("start"):
            raise RuntimeError("no start")

    def on_end(self, span: ReadableSpan) -> None:
        if span.name.endswith("end"):
            raise RuntimeError("no end")


async def test_a_span_processor_that_raises_costs_its_own_spans_only(caplog: pytest.LogCaptureFixture) -> None:
    collector, bus = Collector(), EventBus()
    collector.provider.add_span_processor(Clumsy())
    sink = await OpenTelemetrySpans(collector.provider, max_open=3).start(bus)
    for name in ("at start", "well", "at end", "open at end", "well too"):
        span = call(bus, name)
        if not name.startswith("open"):
            span.stopped()
    await sink.stop()

    assert sink.ended.done()
    assert {"execute_tool well", "execute_tool well too"} <= {span.name for span in collector.spans}
    assert sink.failures == 4  # the start, and again at its end, which comes without one; two ends
    assert [record.message for record in caplog.records if "is missing in a span" in record.message] == [
        "<OpenTelemetrySpans sink/opentelemetry on '*'>: tool.started from app is missing in a span"
    ]


class Gate(SpanProcessor):
    """Holds the sink's thread in the first span."""

    def __init__(self) -> None:
        self.entered, self.opened = threading.Event(), threading.Event()

    def on_start(self, span: Any, parent_context: Context | None = None) -> None:
        self.entered.set()
        self.opened.wait(10)


async def test_events_beyond_the_buffer_leave_a_span_that_counts_them_and_no_trace_to_others() -> None:
    collector, bus, gate = Collector(), EventBus(), Gate()
    collector.provider.add_span_processor(gate)
    sink = await OpenTelemetrySpans(collector.provider, max_queue=1, interval=0).start(bus)
    call(bus, "held")
    await asyncio.to_thread(gate.entered.wait, 10)
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    outer = trace.NonRecordingSpan(trace.SpanContext(1, 1, is_remote=False, trace_flags=sampled))
    with trace.use_span(outer):
        for number in range(5):
            call(bus, f"{number}")
    assert len(sink._current) == 1
    gate.opened.set()
    await until(lambda: sink.written == 3)  # the one held, the one that had room, the gap
    call(bus, "free")
    await sink.stop()

    assert sink.lost == 4
    gap = collector.one("sink.gap").attributes or {}
    assert (gap["promptside.count"], gap["promptside.source"]) == (4, "sink/opentelemetry")
    parents = {span.name: span.parent and span.parent.span_id for span in collector.spans}
    assert parents == {"execute_tool held": None, "execute_tool 0": 1, "sink.gap": None, "execute_tool free": None}


# -- supervision and runs --------------------------------------------------------------------------------------------


async def test_a_crash_is_an_event_of_the_calls_inside_and_of_the_attempts_at_the_worker() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("module.started", "atlas/forward", {"module": "M"}, call_id="m")
        bus.publish("module.started", "other/forward", {"module": "Other"}, call_id="o")
        bus.publish("lm.attempt.started", "lm", {"endpoint": "eu", "worker": "lm/worker-1"}, call_id="a1")
        bus.publish("lm.attempt.started", "lm", {"endpoint": "us", "worker": "lm/worker-10"}, call_id="a2")
        bus.publish("actor.crashed", "atlas/forward", {"error": "killed", "message": "killed"})
        bus.publish("actor.crashed", "lm/worker-1", {"error": "Boom", "message": "of all things"})
        bus.publish("supervisor.gave_up", "atlas", {"error": "too often", "child": "module"})

    collector = await exported(publish)
    recorded = {span.name: [(event.name, event.attributes) for event in span.events] for span in collector.spans}
    crash = {"promptside.source": "lm/worker-1", "promptside.error": "Boom", "promptside.message": "of all things"}
    assert [name for name, _ in recorded.pop("invoke_workflow M")] == ["actor.crashed", "supervisor.gave_up"]
    assert recorded == {
        "invoke_workflow Other": [],
        "lm.attempt eu": [("actor.crashed", crash)],
        "lm.attempt us": [],
    }


async def test_a_breaker_that_opens_is_an_event_of_the_attempts_at_its_endpoint() -> None:
    def publish(bus: EventBus) -> None:
        for number, (pool, endpoint) in enumerate((("lm", "eu"), ("lm", "us"), ("other", "eu"))):
            bus.publish("lm.attempt.started", pool, {"endpoint": endpoint}, call_id=str(number))
        bus.publish("breaker.opened", "lm", {"endpoint": "eu", "before": "closed"})

    collector = await exported(publish)
    touched = [span for span in collector.spans if span.events]
    assert [(span.name, (span.attributes or {})["promptside.source"]) for span in touched] == [("lm.attempt eu", "lm")]
    assert len(collector.spans) == 3


async def test_what_touches_no_span_is_a_trace_of_its_own() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("actor.crashed", "lm/worker-1", {"error": "Boom", "message": "of all things"})
        bus.publish("actor.restarted", "lm/worker-1", {"reason": "Boom()"})

    collector = await exported(publish)
    crashed, restarted = collector.one("actor.crashed"), collector.one("actor.restarted")
    assert crashed.start_time == crashed.end_time
    assert (crashed.status.status_code, crashed.status.description) == (StatusCode.ERROR, "of all things")
    assert facts(crashed)["error.type"] == "Boom"
    assert restarted.status.status_code == StatusCode.UNSET
    assert (restarted.attributes or {})["promptside.source"] == "lm/worker-1"
    assert [crashed.parent, restarted.parent] == [None, None]


async def test_the_steps_of_a_run_are_events_of_its_span() -> None:
    def publish(bus: EventBus) -> None:
        bus.publish("optimizer.started", "job", {}, run_id="r")
        bus.publish("evaluation.started", "job", {}, call_id="e", run_id="r")
        bus.publish("evaluation.example", "job", {"score": 1.0}, call_id="x", parent_id="e", run_id="r")
        bus.publish("evaluation.stopped", "job", {}, call_id="e", run_id="r")
        bus.publish("optimizer.step", "job", {"step": 1}, run_id="r")
        bus.publish("optimizer.step", "job", {"step": 1}, run_id="another, which nobody has started")
        bus.publish("optimizer.stopped", "job", {}, run_id="r")

    collector = await exported(publish)
    recorded = {span.name: [(event.name, event.attributes) for event in span.events] for span in collector.spans}
    assert recorded == {
        "evaluation": [("evaluation.example", {"promptside.score": 1.0})],
        "optimizer": [("optimizer.step", {"promptside.step": 1})],
    }


# -- everything together ---------------------------------------------------------------------------------------------


async def test_a_hosted_agent_with_a_tool_is_one_tree_of_events_in_the_log_and_below_the_applications_span(
    tmp_path: Path,
) -> None:
    says = iter(
        [
            {"next_thought": "look", "next_tool_name": "capital", "next_tool_args": {"country": "France"}},
            {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": {}},
            {"reasoning": "as looked up", "answer": "Paris"},
        ]
    )

    def capital(country: str) -> str:
        return {"France": "Paris"}[country]

    collector = Collector()
    async with ActorSystem() as system:
        recorded = listen(system)
        await SQLiteSink(tmp_path / "run.db").start(system.events)
        await OpenTelemetrySpans(collector.provider).start(system.events)
        model = MockLM(lambda request: next(says))
        pool = await LMPool([Endpoint("mock/atlas", engine=model)]).start(system)
        agent = await Program(
            lambda: dspy.ReAct("question -> answer", tools=[capital]), name="agent", lm=pool.lm(cache=False)
        ).start(system)
        with collector.tracer.start_as_current_span("GET /answer"):
            assert (await agent.acall(question="What is the capital of France?")).answer == "Paris"

    assert outline(recorded).splitlines() == [
        "module ReAct",
        "  module react",
        "    lm.call mock/atlas",
        "      lm.attempt mock/atlas",
        "  tool capital",
        "  module react",
        "    lm.call mock/atlas",
        "      lm.attempt mock/atlas",
        "  tool finish",
        "  module extract",
        "    module extract.predict",
        "      lm.call mock/atlas",
        "        lm.attempt mock/atlas",
    ]
    assert list(read(tmp_path / "run.db")) == recorded
    assert collector.tree() == [
        "GET /answer",
        "  invoke_agent ReAct",
        "    invoke_workflow Predict",
        "      chat atlas",
        "        lm.attempt mock/atlas",
        "    execute_tool capital",
        "    invoke_workflow Predict",
        "      chat atlas",
        "        lm.attempt mock/atlas",
        "    execute_tool finish",
        "    invoke_workflow ChainOfThought",
        "      invoke_workflow Predict",
        "        chat atlas",
        "          lm.attempt mock/atlas",
    ]
    assert len({span.context.trace_id for span in collector.spans if span.context}) == 1
    assert set(unfinished(collector).values()) == {None}
    chats = [span.attributes or {} for span in collector.spans if span.name.startswith("chat")]
    assert all(chat["gen_ai.usage.input_tokens"] and chat["gen_ai.usage.output_tokens"] for chat in chats)
    usage = [span.name for span in collector.spans if any("gen_ai.usage" in key for key in span.attributes or {})]
    assert usage == ["chat atlas"] * 3  # nowhere else, or a sum over the trace would count it twice
    for span in collector.spans:
        assert not any("France" in str(value) for value in (span.attributes or {}).values()), (
            "content was not asked for"
        )


async def test_one_chat_covers_all_attempts_of_a_call() -> None:
    collector = Collector()
    with FakeServer("Paris") as server:
        server.fail(Fault.status(503))
        async with ActorSystem() as system:
            await OpenTelemetrySpans(collector.provider).start(system.events)
            endpoint = Endpoint("openai/fake", api_base=server.url, api_key="none", name="eu")
            pool = await LMPool([endpoint], retry=RetryConfig(initial=0.01)).start(system)
            program = await Program(
                lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False)
            ).start(system)
            assert (await program.acall(question="?")).answer == "Paris"

    assert collector.tree() == [
        "invoke_workflow Predict",
        "  chat fake",
        "    lm.attempt eu",
        "    lm.attempt eu",
    ]
    chat = collector.one("chat fake")
    assert (facts(chat)["gen_ai.provider.name"], facts(chat)["promptside.attempts"]) == ("openai", 2)
    assert chat.status.status_code == StatusCode.UNSET
    attempts = [span for span in collector.spans if span.name == "lm.attempt eu"]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.UNSET]
    assert facts(attempts[0])["error.type"] == "LMServerError"


async def test_a_program_that_is_killed_inside_a_call_leaves_a_whole_trace_that_says_so() -> None:
    collector = Collector()
    with FakeServer("Paris") as server:
        server.fail(Fault.hang())
        async with ActorSystem() as system:
            await OpenTelemetrySpans(collector.provider).start(system.events)
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(
                lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False)
            ).start(system)
            with collector.tracer.start_as_current_span("GET /answer"):
                asking = asyncio.ensure_future(program.acall(question="?"))
                await until(lambda: server.active == 1)
                program.ref.kill()
                with pytest.raises(ActorStopped):
                    await asking

    tree = collector.tree()
    assert tree[tree.index("GET /answer") :][:4] == [
        "GET /answer",
        "  invoke_workflow Predict",
        "    chat fake",
        "      lm.attempt openai/fake",
    ]
    assert set(unfinished(collector).values()) == {None}
    for name in ("invoke_workflow Predict", "chat fake", "lm.attempt openai/fake"):
        assert (facts(collector.one(name))["error.type"], name) == ("CancelledError", name)
    recorded = {span.name: [event.name for event in span.events] for span in collector.spans if span.events}
    assert recorded == {"invoke_workflow Predict": ["actor.crashed"]}


# -- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_open": 0}, "OpenTelemetrySpans: max_open=0: give a whole number >= 1"),
        ({"max_age": 0}, "OpenTelemetrySpans: max_age=0: give seconds > 0"),
        ({"max_queue": 0}, "OpenTelemetrySpans: max_queue=0: give a whole number >= 1"),
    ],
)
def test_arguments_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        OpenTelemetrySpans(**options)
    assert str(caught.value) == message


def test_without_the_extra_the_import_says_what_to_install() -> None:
    probe = "import sys; sys.modules['opentelemetry'] = None; from promptside.events.sinks import OpenTelemetrySpans"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=50, check=False)
    remedy = 'the package opentelemetry-api is not installed; run: pip install "promptside[otel]"'
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {remedy}"
