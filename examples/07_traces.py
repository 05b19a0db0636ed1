"""A request, the program it calls, its tool, the LM call and its attempts: one trace, drawn here or sent elsewhere."""

import asyncio
import os
import sys
from collections.abc import Sequence

import dspy
from dspy.lm15 import Request, ServerError

from promptside import ActorSystem, Endpoint, LMPool, Program, RetryConfig
from promptside.testing import MockLM

try:
    from opentelemetry import trace
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    from promptside.events.sinks import OpenTelemetrySpans
except ModuleNotFoundError as error:
    sys.exit(f'{error}; run: pip install "promptside[otel]" opentelemetry-sdk')

drawn = InMemorySpanExporter()


def exporter() -> SpanExporter:
    if "OTEL_EXPORTER_OTLP_ENDPOINT" not in os.environ:
        return drawn
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


provider = TracerProvider(resource=Resource.create({"service.name": "atlas"}))
provider.add_span_processor(BatchSpanProcessor(exporter()))
trace.set_tracer_provider(provider)


class Atlas(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look_up = dspy.Tool(self._look_up, name="look_up")
        self.answer = dspy.Predict("question, note -> answer")

    async def _look_up(self, topic: str) -> str:
        return f"a note on {topic}"

    async def aforward(self, question: str) -> dspy.Prediction:
        note = await self.look_up.acall(topic=question)
        return await self.answer.acall(question=question, note=note)


answers = iter([ServerError("overloaded"), "Paris"])


def model(request: Request) -> str:
    answer = next(answers)
    if isinstance(answer, Exception):
        raise answer
    return answer


async def main() -> None:
    tracer = trace.get_tracer("atlas")
    async with ActorSystem() as system:
        await OpenTelemetrySpans().start(system.events)
        pool = await LMPool(Endpoint("mock/atlas", engine=MockLM(model)), retry=RetryConfig(initial=0.05)).start(system)
        atlas = await Program(Atlas, name="atlas", lm=pool.lm(cache=False)).start(system)

        with tracer.start_as_current_span("GET /answer"):
            prediction = await atlas.acall(question="What is the capital of France?")
        print(prediction.answer)
    provider.shutdown()  # when the system has ended: its last spans are made then


def draw(spans: Sequence[ReadableSpan], parent: int | None = None, depth: int = 0) -> None:
    for span in sorted(spans, key=lambda span: span.start_time):
        if (span.parent.span_id if span.parent else None) == parent:
            tokens = span.attributes.get("gen_ai.usage.output_tokens")
            facts = [span.attributes.get("error.type"), tokens and f"{tokens} output tokens"]
            print("  " * depth + " - ".join([span.name, *filter(None, facts)]))
            draw(spans, span.context.span_id, depth + 1)


asyncio.run(main())
draw(drawn.get_finished_spans())
