"""Events as OpenTelemetry spans, after the semantic conventions for generative AI, version 1.41.0.

`OpenTelemetrySpans` is a sink that makes spans by `opentelemetry-api`, in a thread of its own. The application chooses
the SDK, the tracer provider and the exporter. Needs the `otel` extra.

The conventions are in development, and this module is the one place that knows them. Data without a name there becomes
an attribute ``promptside.NAME``, and so do the join keys.

| events | span | kind |
|---|---|---|
| ``module.*`` | ``invoke_workflow CLASS``, or ``invoke_agent CLASS`` for DSPy's agents | internal |
| ``pipeline.*`` | ``invoke_workflow NAME`` | internal |
| ``lm.call.*`` | ``chat MODEL``: one call with all its attempts, and their usage | client |
| ``lm.attempt.*`` | ``lm.attempt ENDPOINT``: one request; not a `chat` itself, else usage would count twice | client |
| ``tool.*`` | ``execute_tool NAME`` | internal |
| ``sandbox.*``, ``evaluation.*``, ``optimizer.*`` | the type without its last word | internal |

Crashes, restarts, give-ups and changes of circuit breakers become events of every open span that they affect: calls in
the actor or below it, attempts at the worker or the endpoint. One that affects no span becomes a span of no length and
a trace of its own, so that it can be found. The steps and examples of a run become events of its span.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Unpack

try:
    from opentelemetry import trace
    from opentelemetry.context import Context
    from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
except ModuleNotFoundError as error:
    message = 'the package opentelemetry-api is not installed; run: pip install "promptside[otel]"'
    raise ModuleNotFoundError(message, name=error.name) from error

from promptside import clock
from promptside.checks import check, check_count, check_seconds
from promptside.events.catalogue import BREAKER_EVENTS
from promptside.events.event import Event
from promptside.events.log.codec import to_json
from promptside.events.sinks.sink import BufferOptions, Sink
from promptside.texts import text_of

__all__ = ["OpenTelemetrySpans"]

SCHEMA: Final = "https://opentelemetry.io/schemas/1.41.0"
"""The version of the semantic conventions; later ones are kept apart, as semantic-conventions-genai."""

PROVIDERS: Final[Mapping[str, str]] = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""The conventions' names of providers whose prefix in a model's name is another."""

AGENTS: Final = frozenset({"CodeAct", "RLM", "ReAct", "ReActV2"})
"""DSPy's modules that choose their own steps; every other one is a workflow."""

CALL: Final[Mapping[str, str]] = {
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "response_model": "gen_ai.response.model",
}
TOOL: Final[Mapping[str, str]] = {
    "inputs": "gen_ai.tool.call.arguments",
    "outputs": "gen_ai.tool.call.result",
    "tool": "gen_ai.tool.name",
}
NAMED: Final[Mapping[str, Mapping[str, str]]] = {"lm.call": CALL, "tool": TOOL}
"""The conventions' names of an event's data, by the prefix of its type."""

HANDLED: Final = frozenset({"error", "message", "remote_parent", "seconds"})
"""Data that is no attribute of a span: its status, its parent and its length express it."""

SPAN_PREFIXES: Final = frozenset({"evaluation", "lm.attempt", "lm.call", "module", "optimizer", "pipeline", "tool"})
"""Prefixes of types that become spans, beside all that begin with ``sandbox``."""

ANNOTATIONS: Final = frozenset(
    {"actor.crashed", "actor.restarted", "sink.gap", "supervisor.gave_up", *BREAKER_EVENTS.values()}
)
"""Types that become events of the spans they affect."""


@dataclass(slots=True, eq=False)
class _Open:
    """A span that has begun, and the event that began it."""

    span: Span
    event: Event


class OpenTelemetrySpans(Sink):
    """Makes spans of the events of a bus; their times and parents are those of the events.

    ::

        spans = await OpenTelemetrySpans().start(system.events)  # ends with the system, after its last event

    **Parents.** A span's parent is that of its event. If that is not known, it is the `promptside.events.TraceParent`
    that was set around the entry call, or else the span that was current where the event was published: a program that
    is called inside a span of the application's continues that trace and its sampling, whatever task, thread or actor
    it runs in. Without any of these, a new trace begins.

    **Memory.** At most `max_open` spans are open, and the contexts of as many ended ones are kept, for children that
    begin late. A span without an end event is ended with an attribute ``promptside.unfinished`` that says why:
    ``max_open``, ``max_age``, ``closed``, ``started again``. An end event without a beginning makes a span, too.

    **At the end**, leave the system first, and then shut the tracer provider down.

    **Cost**, on two slow shared cores: 1 to 2 us a ``started`` event for its publisher, 0.2 us any other; 60 us a span
    in the sink's thread, nearly all of it in OpenTelemetry's SDK.

    Args:
        tracer_provider: Receives the spans; OpenTelemetry's global one by default.
        max_open: Spans, at least 1.
        max_age: Seconds that a span may be open, > 0: longer than the longest run. Checked when events arrive.
        **options: `buffer`, `interval` and `flush_timeout`, as for `Sink`. A span takes two events of the buffer.

    Attributes:
        failures: Events at which a span processor or sampler of the application's raised; the first is logged.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        *,
        max_open: int = 10_000,
        max_age: float = 86_400.0,
        **options: Unpack[BufferOptions],
    ) -> None:
        check_count("OpenTelemetrySpans", "max_open", max_open)
        check_seconds("OpenTelemetrySpans", "max_age", max_age)
        valid = isinstance(tracer_provider, trace.TracerProvider | None)
        check("OpenTelemetrySpans", "tracer_provider", tracer_provider, valid, "give a TracerProvider, or None")
        super().__init__("opentelemetry", **options)
        self.failures = 0
        self._tracer = trace.get_tracer("promptside", tracer_provider=tracer_provider, schema_url=SCHEMA)
        self._max_open = max_open
        self._max_age = max_age
        self._open_spans: dict[str, _Open] = {}  # by id, oldest first
        self._ended: OrderedDict[str, SpanContext] = OrderedDict()
        # The spans that were current where `started` events were published, by `seq`; read by the sink's thread.
        self._current: deque[tuple[int, SpanContext]] = deque()
        self.put = self._put_with_current

    def matches(self, type: str, /) -> bool:
        """Whether a span is made of events of this type, or changed by them."""
        return type in ANNOTATIONS or _prefix(type) is not None

    # -- in the publisher's thread, under the bus's lock --------------------------------------------------------------

    def _put_with_current(self, event: Event) -> None:
        if event.type.endswith(".started"):
            current = trace.get_current_span().get_span_context()
            if current.is_valid and len(self._current) < self._buffer.max_queue:
                self._current.append((event.seq, current))
        self._buffer.put(event)

    # -- in the sink's thread ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Nothing: the tracer is the application's."""

    def _write(self, events: Sequence[Event]) -> None:
        for event in events:
            current = self._current_at(event.seq)
            with self._log_and_continue(event):
                self._take(event, current)
        self._end_old(clock.wall())

    def _close(self) -> None:
        self._end_old(math.inf, "closed")

    @contextmanager
    def _log_and_continue(self, event: Event) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - of a sampler or span processor: the next events are not affected
            self.failures += 1
            if self.failures == 1:
                text = f"{self!r}: {event.type} from {text_of(event.source)} is missing in a span"
                self._reports.write("events missing in spans", logging.ERROR, text, error=error)

    def _current_at(self, seq: int) -> SpanContext | None:
        """The span that was current where this event was published; drops all before it."""
        while self._current and self._current[0][0] <= seq:
            at, current = self._current.popleft()
            if at == seq:
                return current
        return None

    def _take(self, event: Event, current: SpanContext | None) -> None:
        if event.type in ANNOTATIONS:
            self._annotate_spans(event)
            return
        prefix = _prefix(event.type)
        assert prefix is not None
        id, suffix = _id(prefix, event), event.type[len(prefix) + 1 :]
        if suffix == "started":
            self._finish(id, event.time, "started again")
            self._begin(id, prefix, event, event.time, current)
        elif suffix in ("stopped", "failed"):
            if id not in self._open_spans and id not in self._ended:
                self._begin(id, prefix, event, event.time - event.data.get("seconds", 0.0), None)
            self._finish(id, event.time, None, event)
        else:
            open_ = self._open_spans.get(id) or self._open_spans.get(event.parent_id or "")
            if open_ is not None:
                open_.span.add_event(event.type, _attributes(event.data, handled=()), _nanoseconds(event.time))

    def _begin(self, id: str, prefix: str, event: Event, began: float, current: SpanContext | None) -> None:
        name, kind, attributes = _describe(prefix, event.data)
        keys = {
            "gen_ai.conversation.id": event.session_id,
            "promptside.call_id": event.call_id,
            "promptside.incarnation": event.incarnation,
            "promptside.run_id": event.run_id,
            "promptside.source": event.source,
            "promptside.span_id": event.span_id,
            "promptside.trace_id": event.trace_id,
        }
        named = _attributes(event.data, NAMED.get(prefix))
        attributes = {**named, **attributes, **{key: value for key, value in keys.items() if value is not None}}
        parent = self._context_of(event.parent_id) or _remote_parent(event) or current
        context = Context() if parent is None else trace.set_span_in_context(NonRecordingSpan(parent), Context())
        span = self._tracer.start_span(name, context, kind, attributes, start_time=_nanoseconds(began))
        self._open_spans[id] = _Open(span, event)
        while len(self._open_spans) > self._max_open:
            self._finish(next(iter(self._open_spans)), event.time, "max_open")

    def _finish(self, id: str, at: float, unfinished: str | None, event: Event | None = None) -> None:
        open_ = self._open_spans.pop(id, None)
        if open_ is None:
            return
        span, began = open_.span, open_.event
        if unfinished is not None:
            span.set_attribute("promptside.unfinished", unfinished)
        if event is not None:
            changed = {key: value for key, value in event.data.items() if began.data.get(key) != value}
            if "response_model" in changed:
                changed["response_model"] = _split(changed["response_model"])[1]
            span.set_attributes(_attributes(changed, NAMED.get(_prefix(event.type) or "")))
            if "error" in event.data:
                _set_error(span, event)
        self._ended[id] = span.get_span_context()
        while len(self._ended) > self._max_open:
            self._ended.popitem(last=False)
        span.end(max(_nanoseconds(at), _nanoseconds(began.time)))  # the wall clock may have been set back

    def _context_of(self, id: str | None) -> SpanContext | None:
        """The context of an operation that is open or has ended."""
        if id is None:
            return None
        open_ = self._open_spans.get(id)
        return self._ended.get(id) if open_ is None else open_.span.get_span_context()

    def _annotate_spans(self, event: Event) -> None:
        affected = [open_.span for open_ in self._open_spans.values() if _affects(event, open_.event)]
        attributes = {"promptside.source": event.source, **_attributes(event.data, handled=())}
        at = _nanoseconds(event.time)
        for span in affected:
            span.add_event(event.type, attributes, at)
        if not affected:
            span = self._tracer.start_span(event.type, Context(), SpanKind.INTERNAL, attributes, start_time=at)
            if event.type in ("actor.crashed", "supervisor.gave_up"):
                _set_error(span, event)
            span.end(at)

    def _end_old(self, now: float, why: str = "max_age") -> None:
        while self._open_spans:
            id, open_ = next(iter(self._open_spans.items()))
            if open_.event.time > now - self._max_age:
                return
            with self._log_and_continue(open_.event):
                self._finish(id, clock.wall(), why)


def _prefix(type: str) -> str | None:
    """The type without its last word, such as ``lm.call``, if it becomes a span; else None."""
    prefix = type.rpartition(".")[0]
    return prefix if prefix in SPAN_PREFIXES or prefix.partition(".")[0] == "sandbox" else None


def _id(prefix: str, event: Event) -> str:
    """The id that all events of one operation share; that of a sandbox is made of its actor."""
    return event.call_id or event.run_id or f"{prefix} {event.source} {event.incarnation}"


def _describe(prefix: str, data: Mapping[str, Any]) -> tuple[str, SpanKind, dict[str, Any]]:
    """Name and kind of a span, and the attributes that the conventions require."""
    if prefix in ("module", "pipeline"):
        name = str(data.get(prefix))
        operation, key = ("invoke_agent", "agent") if name in AGENTS else ("invoke_workflow", "workflow")
        named = {"gen_ai.operation.name": operation, f"gen_ai.{key}.name": name}
        return f"{operation} {name}", SpanKind.INTERNAL, named
    if prefix == "lm.call":
        provider, model = _split(data.get("model"))
        named = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider, "gen_ai.request.model": model}
        return f"chat {model}", SpanKind.CLIENT, named
    if prefix == "tool":
        named = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.type": "function"}
        return f"execute_tool {data.get('tool')}", SpanKind.INTERNAL, named
    if prefix == "lm.attempt":
        return f"{prefix} {data.get('endpoint')}", SpanKind.CLIENT, {}
    return prefix, SpanKind.INTERNAL, {}


def _split(name: object) -> tuple[str, str]:
    """The conventions' name of a model's provider, and its own name there."""
    first, _, rest = str(name).partition("/")
    return (PROVIDERS.get(first, first), rest) if rest else ("_OTHER", first)


def _attributes(
    data: Mapping[str, Any], named: Mapping[str, str] | None = None, handled: Collection[str] = HANDLED
) -> dict[str, Any]:
    """The data of an event as attributes, without those `handled`: plain values as they are, all others as JSON."""
    named = named or {}
    return {
        named.get(key, f"promptside.{key}"): value if isinstance(value, str | bool | int | float) else to_json(value)
        for key, value in data.items()
        if value is not None and key not in handled
    }


def _set_error(span: Span, event: Event) -> None:
    error, message = event.data.get("error", event.type), event.data.get("message")
    span.set_attribute("error.type", text_of(error))
    span.set_status(Status(StatusCode.ERROR, text_of(error if message is None else message)))


def _remote_parent(event: Event) -> SpanContext | None:
    """The span of another service that the event names as its parent."""
    span_id, trace_id = event.data.get("remote_parent"), event.trace_id
    if span_id is None or trace_id is None:
        return None
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def _affects(event: Event, began: Event) -> bool:
    """Whether an event affects the operation that `began`."""
    if event.type.startswith("breaker."):
        return event.source == began.source and event.data.get("endpoint") == began.data.get("endpoint")
    places = (began.source, str(began.data.get("worker")))
    return any(place == event.source or place.startswith(f"{event.source}/") for place in places)


def _nanoseconds(time: float) -> int:
    return int(time * 1e9)
