"""Events as Prometheus metrics.

`PrometheusMetrics` is a sink and a collector: it counts the events of a bus, in a thread of its own, for the registry
that is scraped. The application serves the registry. Needs the `prometheus` extra.

Durations are in seconds, as their names say. Labels are models, endpoints, classes and paths in which numbers are ``*``
(``lm/worker-*``), never ids; beyond a number of values of one label, further ones are ``other``.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol, Unpack

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Enum, Histogram
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    message = 'the package prometheus-client is not installed; run: pip install "promptside[prometheus]"'
    raise ModuleNotFoundError(message, name=error.name) from error

from promptside.checks import check, check_count
from promptside.events.catalogue import BREAKER_EVENTS
from promptside.events.event import Event
from promptside.events.sinks.sink import BufferOptions, Sink
from promptside.texts import text_of

__all__ = ["PrometheusMetrics"]

BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
"""Seconds; from a cached answer to a long run of an agent."""

ENDED: Final = frozenset(
    f"{prefix}.{suffix}" for prefix in ("lm.call", "lm.attempt", "module", "tool") for suffix in ("stopped", "failed")
)
BREAKER_STATES: Final = {type: state for state, type in BREAKER_EVENTS.items()}
LOSSES: Final = frozenset({"actor.crashed", "actor.restarted", "message.dead", "supervisor.gave_up"})

PATHS: Final = frozenset({"actor", "pool", "program"})
"""Labels whose numbers count instances."""

NUMBER: Final = re.compile(r"\d+")


class Statistics(Protocol):
    """The fields of `promptside.actors.info.SystemStatistics` that are read."""

    @property
    def actors(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def started(self) -> int: ...
    @property
    def stopped(self) -> int: ...


class PrometheusMetrics(Sink, Collector):
    """Counts the events of a bus for Prometheus.

    ::

        metrics = PrometheusMetrics(statistics=system.statistics)
        await metrics.start(system.events)  # ends with the system, and leaves the registry then

    | metric | labels |
    |---|---|
    | ``promptside_lm_calls_total``: `outcome` is ``answered``, or the class of the error | ``model``, ``outcome`` |
    | ``promptside_lm_cache_hits_total``: calls that a cache answered | ``model`` |
    | ``promptside_lm_call_seconds``: histogram of answered calls, with all their attempts | ``model`` |
    | ``promptside_lm_attempts_total`` | ``endpoint``, ``outcome`` |
    | ``promptside_lm_attempt_seconds``: histogram of answered attempts | ``endpoint`` |
    | ``promptside_lm_retries_total``: attempts beyond the first of their call | ``model`` |
    | ``promptside_lm_tokens_total``: `kind` is ``input`` or ``output`` | ``model``, ``kind`` |
    | ``promptside_lm_cost_dollars_total``: estimated, where prices are known | ``model`` |
    | ``promptside_breaker_state``: 1 for the state that a breaker is in, once it has changed | ``pool``, ``endpoint`` |
    | ``promptside_module_calls_total`` | ``program``, ``module``, ``outcome`` |
    | ``promptside_module_seconds``: histogram of answered calls | ``program``, ``module`` |
    | ``promptside_tool_calls_total`` | ``tool``, ``outcome`` |
    | ``promptside_tool_seconds``: histogram of answered calls | ``tool`` |
    | ``promptside_actor_crashes_total`` | ``actor``, ``error`` |
    | ``promptside_actor_restarts_total`` | ``actor`` |
    | ``promptside_supervisor_give_ups_total`` | ``supervisor`` |
    | ``promptside_dead_letters_total`` | ``actor`` |
    | ``promptside_actors``, ``promptside_mailbox_messages``: at the scrape, from `statistics` | |
    | ``promptside_actors_started_total``, ``promptside_actors_stopped_total``, from `statistics` | |
    | ``promptside_events_uncounted_total``: events lost because the buffer was full; no other metric counts them | |

    Args:
        registry: The registry; prometheus-client's global one by default. Two systems in one process need one each.
        statistics: Called at each scrape, mostly `system.statistics`; it costs O(actors).
        max_values: Values of each label that are counted apart, at least 1.
        **options: `buffer`, `interval` and `flush_timeout`, as for `Sink`. A scrape is at most `interval` behind.

    Attributes:
        failures: Events that could not be counted; the first is logged.

    Raises:
        ValueError: An argument is not valid.
    """

    def __init__(
        self,
        registry: CollectorRegistry | None = None,
        *,
        statistics: Callable[[], Statistics] | None = None,
        max_values: int = 100,
        **options: Unpack[BufferOptions],
    ) -> None:
        valid = isinstance(registry, CollectorRegistry | None)
        check("PrometheusMetrics", "registry", registry, valid, "give a CollectorRegistry, or None")
        valid = statistics is None or callable(statistics)
        check("PrometheusMetrics", "statistics", statistics, valid, "give a function, such as system.statistics")
        check_count("PrometheusMetrics", "max_values", max_values)
        self.failures = 0
        super().__init__("prometheus", **options)
        self._registry = REGISTRY if registry is None else registry
        self._statistics = statistics
        self._max_values = max_values
        self._values: dict[str, set[str]] = {}  # label -> the values that are counted apart
        self._metrics = own = CollectorRegistry(auto_describe=True)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"promptside_{name}", text, labels, registry=own)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"promptside_{name}", text, labels, registry=own, buckets=BUCKETS)

        self._calls = counter("lm_calls", "Calls of language models", "model", "outcome")
        self._hits = counter("lm_cache_hits", "Calls of language models that a cache answered", "model")
        self._call_seconds = histogram("lm_call_seconds", "Answered calls, with all their attempts", "model")
        self._attempts = counter("lm_attempts", "Requests to endpoints", "endpoint", "outcome")
        self._attempt_seconds = histogram("lm_attempt_seconds", "Answered requests to endpoints", "endpoint")
        self._retries = counter("lm_retries", "Requests beyond the first of their call", "model")
        self._tokens = counter("lm_tokens", "Tokens, as the provider counted them", "model", "kind")
        self._cost = counter("lm_cost_dollars", "Estimated cost, where prices are known", "model")
        states = list(BREAKER_STATES.values())
        self._breakers = Enum(
            "promptside_breaker_state", "Circuit breakers", ["pool", "endpoint"], registry=own, states=states
        )
        self._modules = counter("module_calls", "Calls of DSPy modules", "program", "module", "outcome")
        self._module_seconds = histogram("module_seconds", "Answered calls of DSPy modules", "program", "module")
        self._tools = counter("tool_calls", "Calls of tools", "tool", "outcome")
        self._tool_seconds = histogram("tool_seconds", "Answered calls of tools", "tool")
        self._crashes = counter("actor_crashes", "Crashes and kills of actors", "actor", "error")
        self._restarts = counter("actor_restarts", "Restarts of actors by their supervisors", "actor")
        self._give_ups = counter("supervisor_give_ups", "Supervisors that gave up", "supervisor")
        self._dead_letters = counter("dead_letters", "Messages that were not delivered or dropped", "actor")

    def matches(self, type: str, /) -> bool:
        """Whether events of this type are counted."""
        return type in ENDED or type in BREAKER_STATES or type in LOSSES

    # -- in the scraper's thread -------------------------------------------------------------------------------------

    def collect(self) -> Iterable[Metric]:
        """Give the metrics as they are now; called by the registry."""
        yield from self._metrics.collect()
        text = "Events lost because the buffer was full, which no other metric counts"
        yield CounterMetricFamily("promptside_events_uncounted", text, self.lost)
        if self._statistics is not None:
            now = self._statistics()
            yield GaugeMetricFamily("promptside_actors", "Actors in the tree, whatever their state", now.actors)
            yield GaugeMetricFamily("promptside_mailbox_messages", "Messages in the mailboxes", now.queued)
            yield CounterMetricFamily("promptside_actors_started", "Starts of actors, restarts included", now.started)
            yield CounterMetricFamily("promptside_actors_stopped", "Actors that ended in an orderly way", now.stopped)

    # -- in the sink's thread ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        self._registry.register(self)

    def _close(self) -> None:
        self._registry.unregister(self)

    def _write(self, events: Sequence[Event]) -> None:
        for event in events:
            try:
                self._count(event)
            except Exception as error:  # noqa: BLE001 - of an application's event that has one of our types
                self.failures += 1
                if self.failures == 1:
                    text = f"{self!r}: {event.type} from {text_of(event.source)} is not counted"
                    self._reports.write("events that are not counted", logging.ERROR, text, error=error)

    def _count(self, event: Event) -> None:
        data, label = event.data, self._label
        match event.type:
            case "lm.call.stopped" | "lm.call.failed":
                self._count_call(event)
            case "lm.attempt.stopped" | "lm.attempt.failed":
                endpoint = label("endpoint", data.get("endpoint"))
                self._ended(event, self._attempts, self._attempt_seconds, endpoint)
                self._count_usage(event)
            case "module.stopped" | "module.failed":
                program = label("program", event.source.partition("/")[0])
                self._ended(event, self._modules, self._module_seconds, program, label("module", data.get("module")))
            case "tool.stopped" | "tool.failed":
                self._ended(event, self._tools, self._tool_seconds, label("tool", data.get("tool")))
            case "actor.crashed":
                self._crashes.labels(label("actor", event.source), label("error", data.get("error"))).inc()
            case "actor.restarted":
                self._restarts.labels(label("actor", event.source)).inc()
            case "message.dead":
                self._dead_letters.labels(label("actor", event.source)).inc()
            case "supervisor.gave_up":
                self._give_ups.labels(label("actor", event.source)).inc()
            case type if type in BREAKER_STATES:
                breaker = self._breakers.labels(label("pool", event.source), label("endpoint", data.get("endpoint")))
                breaker.state(BREAKER_STATES[type])

    def _count_call(self, event: Event) -> None:
        data, model = event.data, self._label("model", event.data.get("model"))
        self._ended(event, self._calls, self._call_seconds, model)
        if data.get("cache_hit") is True:
            self._hits.labels(model).inc()
        attempts = data.get("attempts")
        if attempts is None:  # of an LM outside a pool, which publishes no attempts
            self._count_usage(event)
        else:
            self._retries.labels(model).inc(max(0.0, _number(attempts) - 1))

    def _count_usage(self, event: Event) -> None:
        data, model = event.data, self._label("model", event.data.get("model"))
        for kind in ("input", "output"):
            if tokens := _number(data.get(f"{kind}_tokens")):
                self._tokens.labels(model, kind).inc(tokens)
        if cost := _number(data.get("cost")):
            self._cost.labels(model).inc(cost)

    def _ended(self, event: Event, total: Counter, seconds: Histogram, *labels: str) -> None:
        """Count an operation that ended; the last label of `total` is its outcome."""
        if event.type.endswith(".failed"):
            total.labels(*labels, self._label("error", event.data.get("error"))).inc()
        else:
            total.labels(*labels, "answered").inc()
            seconds.labels(*labels).observe(_number(event.data.get("seconds")))

    def _label(self, name: str, value: object) -> str:
        """The value of a label: text with ``*`` for numbers in paths, and ``other`` beyond the bound."""
        text = "unknown" if value is None else text_of(value)
        if name in PATHS:
            text = NUMBER.sub("*", text)
        known = self._values.setdefault(name, set())
        if text not in known:
            if len(known) >= self._max_values:
                return "other"
            known.add(text)
        return text


def _number(value: object) -> float:
    """A number of an event; 0 for other values, which an application's own events may have."""
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else 0.0
