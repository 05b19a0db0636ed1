"""Three ways to hear what happens: a hook, a subscription, and a log in a file that is read back."""

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import dspy

from promptside import ActorSystem, Endpoint, Event, LMPool, Program
from promptside.events import Content, Subscription, read
from promptside.events.sinks import SQLiteSink
from promptside.testing import MockLM


def without_prompts(type: str, content: Any) -> Any:
    return content if type.startswith("module.") else None


async def count_tokens(stream: Subscription) -> int:
    tokens = 0
    async for event in stream:
        tokens += event.data.get("input_tokens", 0) + event.data.get("output_tokens", 0)
    return tokens


async def run(log: Path) -> None:
    async with ActorSystem(content=Content(redact=without_prompts)) as system:
        await SQLiteSink(log).start(system.events)

        @system.events.on("actor.crashed")
        def alert(event: Event) -> None:
            print(f"alert: {event.source} crashed: {event.data['error']}")

        model = MockLM({"France": "Paris", "Japan": "Tokyo"})
        pool = await LMPool(Endpoint("mock/atlas", engine=model)).start(system)
        atlas = await Program(lambda: dspy.Predict("question -> answer"), name="atlas", lm=pool.lm(cache=False)).start(
            system
        )

        async with system.events.subscribe("lm.call.stopped", max_queue=1000) as stream:
            counter = asyncio.create_task(count_tokens(stream))
            for country in ("France", "Japan"):
                await atlas.acall(question=f"What is the capital of {country}?")
        print(f"tokens: {await counter}, events lost: {stream.dropped}")

        atlas.ref.kill()


def look_back(log: Path) -> None:
    first, *_ = read(log, type="module.stopped")
    print(f"first answer: {first.data['outputs']['answer']}")
    for event in read(log, trace_id=first.trace_id):
        print(f"  {event.type:<19} {event.source}")


with tempfile.TemporaryDirectory() as folder:
    log = Path(sys.argv[1] if len(sys.argv) > 1 else f"{folder}/run.db")
    asyncio.run(run(log))
    look_back(log)
