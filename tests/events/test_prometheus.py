"""Events as Prometheus metrics, seen as a scrape sees them."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import dspy
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from promptside import Actor, ActorSystem, ChildSpec, Supervisor
from promptside.events import CATALOGUE, EventBus
from promptside.events.sinks import PrometheusMetrics
from promptside.pools import BreakerConfig, Endpoint, LMPool, RetryConfig
from promptside.programs import Program
from promptside.testing import FakeServer, Fault
from tests.support.actors import until


def scraped(registry: CollectorRegistry) -> dict[str, dict[tuple[str, ...], float]]:
    """What a scrape reads: by name and values of the labels, without buckets and times of creation."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            if not sample.name.endswith(("_bucket", "_created")):
                labels = tuple(sample.labels[name] for name in sorted(sample.labels))
                found.setdefault(sample.name.removeprefix("promptside_"), {})[labels] = sample.value
    return found


@asynccontextmanager
async def counting(**options: Any) -> AsyncIterator[tuple[EventBus, Callable[[], Any]]]:
    """A bus, and a function that returns what is scraped once everything that was published is counted."""
    bus, registry = EventBus(), CollectorRegistry()
    metrics = await PrometheusMetrics(registry, interval=0, **options).start(bus)
    received: list[str] = []
    bus.on("*", lambda event: received.append(event.type) if metrics.matches(event.type) else None)

    async def scrape() -> Any:
        await until(lambda: metrics.written == len(received))
        return scraped(registry)

    try:
        yield bus, scrape
    finally:
        await metrics.stop()


async def test_calls_attempts_and_what_they_used_are_counted() -> None:
    async with counting() as (bus, scrape):
        eu = {"endpoint": "eu", "model": "openai/mini"}
        us = {"endpoint": "us", "model": "openai/large"}
        call = {"model": "openai/mini"}
        bus.publish("lm.call.started", "lm", call, call_id="1")
        bus.publish("lm.attempt.failed", "lm", {**eu, "error": "LMServerError", "seconds": 0.5}, call_id="1.1")
        used = {"input_tokens": 10, "output_tokens": 5, "cost": 0.25}
        bus.publish("lm.attempt.stopped", "lm", {**us, "seconds": 2.0, **used}, call_id="1.2")
        bus.publish("lm.call.stopped", "lm", {**call, "seconds": 3.0, "attempts": 2, **used}, call_id="1")
        bus.publish("lm.call.stopped", "lm", {**call, "seconds": 0.1, "attempts": 0, "cache_hit": True}, call_id="2")
        bus.publish(
            "lm.call.failed", "lm", {**call, "seconds": 0.1, "attempts": 0, "error": "LMCircuitOpen"}, call_id="3"
        )
        values = await scrape()

    assert values["lm_calls_total"] == {("openai/mini", "answered"): 2, ("openai/mini", "LMCircuitOpen"): 1}
    assert values["lm_cache_hits_total"] == {("openai/mini",): 1}
    assert values["lm_call_seconds_sum"] == {("openai/mini",): 3.1}
    assert values["lm_call_seconds_count"] == {("openai/mini",): 2}
    assert values["lm_attempts_total"] == {("eu", "LMServerError"): 1, ("us", "answered"): 1}
    assert values["lm_attempt_seconds_sum"] == {("us",): 2.0}
    assert values["lm_retries_total"] == {("openai/mini",): 1}
    assert values["lm_tokens_total"] == {("input", "openai/large"): 10, ("output", "openai/large"): 5}
    assert values["lm_cost_dollars_total"] == {("openai/large",): 0.25}


async def test_the_call_of_an_lm_outside_a_pool_has_its_usage() -> None:
    async with counting() as (bus, scrape):
        used = {"input_tokens": 10, "output_tokens": 5, "cost": 0.5}
        bus.publish("lm.call.stopped", "atlas/forward", {"model": "openai/mini", "seconds": 1.0, **used})
        values = await scrape()
    assert values["lm_tokens_total"] == {("input", "openai/mini"): 10, ("output", "openai/mini"): 5}
    assert values["lm_cost_dollars_total"] == {("openai/mini",): 0.5}
    assert values.get("lm_retries_total", {}) == {}


async def test_modules_and_tools_are_counted_with_their_failures() -> None:
    async with counting() as (bus, scrape):
        bus.publish("module.stopped", "atlas-2/forward", {"module": "ReAct", "seconds": 2.0})
        bus.publish("module.failed", "atlas-2/forward", {"module": "ReAct", "seconds": 1.0, "error": "KeyError"})
        bus.publish("tool.stopped", "atlas-2/forward", {"tool": "search", "seconds": 0.5})
        bus.publish("tool.failed", "atlas-2/forward", {"tool": "search", "seconds": 0.5, "error": "Boom"})
        values = await scrape()
    assert values["module_calls_total"] == {("ReAct", "answered", "atlas-*"): 1, ("ReAct", "KeyError", "atlas-*"): 1}
    assert values["module_seconds_sum"] == {("ReAct", "atlas-*"): 2.0}
    assert values["tool_calls_total"] == {("answered", "search"): 1, ("Boom", "search"): 1}
    assert values["tool_seconds_count"] == {("search",): 1}


async def test_a_breaker_is_in_one_state() -> None:
    async with counting() as (bus, scrape):
        for type, state in (("opened", "open"), ("half_opened", "half_open"), ("closed", "closed"), ("opened", "open")):
            bus.publish(f"breaker.{type}", "lm", {"endpoint": "eu", "before": "?"})
            bus.publish("breaker.closed", "lm", {"endpoint": "us", "before": "?"})
            values = (await scrape())["breaker_state"]
            assert {labels[:2] for labels in values} == {("eu", "lm"), ("us", "lm")}
            for endpoint, now in (("eu", state), ("us", "closed")):
                states = {labels[2]: value for labels, value in values.items() if labels[0] == endpoint}
                assert states == {"closed": 0, "half_open": 0, "open": 0} | {now: 1}


async def test_losses_are_counted_by_paths_without_numbers() -> None:
    async with counting() as (bus, scrape):
        for number in range(3):
            bus.publish("actor.crashed", f"lm/worker-{number}", {"error": "killed", "message": f"{number}"})
            bus.publish("actor.restarted", f"lm/worker-{number}", {"reason": "killed"})
            bus.publish("message.dead", f"lm/worker-{number}", {"method": "add", "reason": f"{number}"})
        bus.publish("supervisor.gave_up", "lm", {"error": "too often", "child": "worker-1"})
        values = await scrape()
    assert values["actor_crashes_total"] == {("lm/worker-*", "killed"): 3}
    assert values["actor_restarts_total"] == {("lm/worker-*",): 3}
    assert values["dead_letters_total"] == {("lm/worker-*",): 3}
    assert values["supervisor_give_ups_total"] == {("lm",): 1}


async def test_beyond_its_bound_every_further_value_of_a_label_is_other() -> None:
    async with counting(max_values=3) as (bus, scrape):
        for _ in range(2):
            for letter in "abcdefgh":
                bus.publish("tool.stopped", "app", {"tool": letter, "seconds": 1.0})
        bus.publish("tool.failed", "app", {"tool": "a", "seconds": 1.0, "error": "Boom"})
        values = await scrape()
    assert values["tool_calls_total"] == {
        ("answered", "a"): 2,
        ("answered", "b"): 2,
        ("answered", "c"): 2,
        ("answered", "other"): 10,
        ("Boom", "a"): 1,
    }


async def test_events_of_the_application_under_our_names_break_nothing() -> None:
    async with counting() as (bus, scrape):
        for type in CATALOGUE:
            for odd in ({}, {"seconds": "long", "attempts": [], "input_tokens": None, "cost": -1, "tool": object()}):
                bus.publish(type, "", odd)
        bus.publish("tool.stopped", "app", {"tool": "t", "seconds": float("nan")})
        values = await scrape()
    assert values["tool_calls_total"][("answered", "t")] == 1
    assert values["lm_calls_total"] == {("unknown", "answered"): 2, ("unknown", "unknown"): 2}


async def test_threads_may_publish_and_scrape_at_once_and_nothing_is_miscounted() -> None:
    bus, registry = EventBus(), CollectorRegistry()
    metrics = await PrometheusMetrics(registry, interval=0.001).start(bus)
    scrapes: list[float] = []

    def publish() -> None:
        for _ in range(1000):
            bus.publish("tool.stopped", "app", {"tool": "t", "seconds": 1.0})

    threads = [threading.Thread(target=publish) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        scrapes.append(sum(scraped(registry).get("tool_calls_total", {}).values()))
    await until(lambda: metrics.written == 4000)
    scrapes.append(scraped(registry)["tool_calls_total"][("answered", "t")])
    await metrics.stop()
    assert scrapes == sorted(scrapes)
    assert scrapes[-1] == 4000


async def test_events_beyond_the_buffer_count_as_uncounted() -> None:
    bus, registry = EventBus(), CollectorRegistry()
    metrics = await PrometheusMetrics(registry, max_queue=2, interval=5).start(bus)
    for _ in range(5):
        bus.publish("tool.stopped", "app", {"tool": "t", "seconds": 1.0})
    assert scraped(registry)["events_uncounted_total"] == {(): metrics.lost}
    assert 0 < metrics.lost <= 3
    await metrics.stop()


# -- its life --------------------------------------------------------------------------------------------------------


async def test_the_registry_is_left_when_the_bus_ends_and_is_free_for_the_next() -> None:
    registry = CollectorRegistry(auto_describe=True)
    for _ in range(2):
        async with ActorSystem() as system:
            await PrometheusMetrics(registry, statistics=system.statistics).start(system.events)
            assert scraped(registry)["actors"] == {(): 0}
        assert scraped(registry) == {}


async def test_two_in_one_registry_are_refused_and_the_first_goes_on() -> None:
    registry = CollectorRegistry(auto_describe=True)
    bus = EventBus()
    first = await PrometheusMetrics(registry).start(bus)
    second = PrometheusMetrics(registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        await second.start(bus)
    assert second.ended.done()
    assert "events_uncounted_total" in scraped(registry)
    await first.stop()


# -- everything together ---------------------------------------------------------------------------------------------


class Worker(Actor):
    async def fail(self) -> None:
        raise ValueError("of all things")


async def test_a_system_under_fire_is_counted() -> None:
    registry = CollectorRegistry()
    with FakeServer("Paris") as server:
        async with ActorSystem() as system:
            metrics = await PrometheusMetrics(registry, statistics=system.statistics, interval=0).start(system.events)
            endpoint = Endpoint("openai/fake", api_base=server.url, api_key="none", name="eu")
            breaker = BreakerConfig(min_calls=3, open_for=60)
            pool = await LMPool([endpoint], retry=RetryConfig(initial=0.01), breaker=breaker).start(system)
            program = await Program(
                lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False)
            ).start(system)
            server.fail(Fault.status(503))
            assert (await program.acall(question="one")).answer == "Paris"
            server.fail(Fault.status(503), times=None)
            with pytest.raises(dspy.LMError):
                await program.acall(question="two")

            workers = await system.spawn(Supervisor, [ChildSpec("worker-1", Worker)])
            worker = await workers.ask(Supervisor.child, "worker-1")
            async with system.events.subscribe("actor.restarted") as restarts:
                worker.tell(Worker.fail)
                await anext(restarts)

            def settled() -> bool:
                return sum(scraped(registry).get("actor_restarts_total", {}).values()) == 1

            await until(settled)
            values = scraped(registry)
            assert metrics.lost == 0

    assert values["module_calls_total"][("Predict", "answered", "atlas")] == 1
    assert values["lm_calls_total"][("openai/fake", "answered")] == 1
    assert sum(values["lm_calls_total"].values()) == 2
    assert values["lm_attempts_total"][("eu", "LMServerError")] >= 2
    assert values["lm_attempts_total"][("eu", "answered")] == 1
    assert values["lm_retries_total"][("openai/fake",)] >= 1
    assert values["lm_tokens_total"][("input", "openai/fake")] > 0
    assert values["breaker_state"][("eu", "lm", "open")] == 1
    assert sum(values["actor_crashes_total"].values()) == 1
    assert values["actors"][()] == 7  # lm and its two workers, atlas and its module, the supervisor and its worker
    assert values["mailbox_messages"][()] == 0
    assert values["actors_started_total"][()] == values["actors"][()] + 1  # the restart


# -- what it refuses -------------------------------------------------------------------------------------------------


def test_arguments_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="PrometheusMetrics: max_values=0: give a whole number >= 1"):
        PrometheusMetrics(max_values=0)


def test_without_the_extra_the_import_says_what_to_install() -> None:
    probe = "import sys; sys.modules['prometheus_client'] = None; from promptside.events.sinks import PrometheusMetrics"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=50, check=False)
    remedy = 'the package prometheus-client is not installed; run: pip install "promptside[prometheus]"'
    assert done.stderr.splitlines()[-1] == f"ModuleNotFoundError: {remedy}"
