"""MLflow's autolog beside the event bus: each sees every call of a hosted program, and neither disturbs the other.

Skipped without MLflow, which is too large for the development environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from promptside import ActorSystem
from promptside.events.sinks import OpenTelemetrySpans
from promptside.pools import Endpoint, LMPool
from promptside.programs import Program
from promptside.testing import MockLM
from tests.support.modules import SyncAnswer

mlflow: Any = pytest.importorskip("mlflow")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, and those of what it imports
    pytest.mark.timeout(120),  # making the database takes 4 s of two idle cores
]


@pytest.fixture
def autolog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autolog into a database of the test's own; files without one are refused by MLflow 3."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_experiment("promptside")
    mlflow.dspy.autolog()
    yield
    mlflow.dspy.autolog(disable=True)


class Clerk(dspy.Module):  # type: ignore[misc]
    """Looks something up, and answers with it."""

    def __init__(self) -> None:
        super().__init__()
        self.look_up = dspy.Tool(self._look_up, name="look_up")
        self.answer = dspy.ChainOfThought("question, note -> answer")

    async def _look_up(self, topic: str) -> str:
        if topic == "nothing":
            raise LookupError(topic)
        return f"a note on {topic}"

    async def aforward(self, question: str) -> dspy.Prediction:
        note = await self.look_up.acall(topic=question)
        return await self.answer.acall(question=question, note=note)


def trees() -> list[list[str]]:
    """What MLflow has recorded: per trace its state, then the names of its spans, indented below their parents'."""
    return sorted(tree(trace) for trace in mlflow.search_traces(return_type="list"))


def tree(trace: Any) -> list[str]:
    children: dict[str | None, list[Any]] = {}
    for span in sorted(trace.data.spans, key=lambda span: span.start_time_ns):
        children.setdefault(span.parent_id, []).append(span)

    def draw(span: Any, depth: int) -> Iterator[str]:
        yield "  " * depth + span.name
        for child in children.get(span.span_id, ()):
            yield from draw(child, depth + 1)

    lines = [line for root in children[None] for line in draw(root, 0)]
    return [str(trace.info.state.value), *(line for line in lines if "Adapter" not in line)]


async def test_calls_at_once_are_nested_traces_of_their_own_and_the_bus_tells_them_all(autolog: None) -> None:
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with ActorSystem() as system:
        await OpenTelemetrySpans(provider).start(system.events)
        model = MockLM({"default": {"reasoning": "so", "answer": "yes"}})
        pool = await LMPool([Endpoint("mock/clerk", engine=model)]).start(system)
        clerk = await Program(Clerk, name="clerk", lm=pool.lm(cache=False)).start(system)

        async def request(number: int) -> str:
            with mlflow.start_span(f"request {number}"):
                return str((await clerk.acall(question=f"question {number}")).answer)

        assert await asyncio.gather(*map(request, range(4))) == ["yes"] * 4

    assert trees() == [
        [
            "OK",
            f"request {number}",
            "  Clerk.forward",
            "    Tool.look_up",
            "    ChainOfThought.forward",
            "      Predict.forward",
            "        LM.__call__",
        ]
        for number in range(4)
    ]
    spans = exporter.get_finished_spans()
    # MLflow's spans are in a context of its own: they are nobody's parents here.
    assert [span.name for span in spans if span.parent is None] == ["invoke_workflow Clerk"] * 4
    assert len(spans) == 4 * len(("Clerk", "look_up", "ChainOfThought", "Predict", "chat", "lm.attempt"))


async def test_a_module_in_a_thread_is_nested_too(autolog: None) -> None:
    async with ActorSystem() as system:
        pool = await LMPool([Endpoint("mock/sync", engine=MockLM("yes"))]).start(system)
        program = await Program(SyncAnswer, lm=pool.lm(cache=False)).start(system)
        assert (await program.acall(question="?")).answer == "yes"
    assert trees() == [["OK", "SyncAnswer.forward", "  Predict.forward", "    LM.__call__"]]


async def test_what_a_tool_raises_is_an_error_in_the_trace_and_for_the_caller(autolog: None) -> None:
    async with ActorSystem() as system:
        pool = await LMPool([Endpoint("mock/clerk", engine=MockLM("yes"))]).start(system)
        clerk = await Program(Clerk, lm=pool.lm(cache=False)).start(system)
        with pytest.raises(LookupError, match="nothing"):
            await clerk.acall(question="nothing")
    assert trees() == [["ERROR", "Clerk.forward", "  Tool.look_up"]]
