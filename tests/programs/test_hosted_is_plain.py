"""Hosting changes nothing: a module gives, traces, counts and remembers the same plainly and as a program."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from promptside import ActorSystem
from promptside.programs import Program
from promptside.testing import MockLM
from tests.support.comparison import Case, by_turns, check_alike
from tests.support.module_cases import (
    BOTH,
    CASES,
    Both,
    calls,
    in_batch,
    in_evaluate,
    in_parallel,
    with_bootstrap,
    with_copies,
    with_direct_forward,
    with_files,
    with_labeled,
    with_settings,
    with_usage,
)


@pytest.mark.parametrize(("case", "way"), by_turns(CASES))
async def test_a_program_gives_what_its_module_gives(case: Case, way: str) -> None:
    await check_alike(case, way)


OUTSIDE = {
    "copies": with_copies,
    "files": with_files,
    "LabeledFewShot": with_labeled,
    "BootstrapFewShot": with_bootstrap,
    "usage": with_usage,
    "settings": with_settings,
    "forward": with_direct_forward,
    "Parallel": in_parallel,
    "Evaluate": in_evaluate,
    "batch": in_batch,
}


@pytest.mark.parametrize("use", OUTSIDE.values(), ids=OUTSIDE)
async def test_the_module_of_a_running_program_is_what_it_was_for_its_owner(use: Callable[..., Any]) -> None:
    def seen(module: dspy.Module) -> Any:
        with dspy.context(lm=MockLM("yes").lm(), trace=[]):
            result = use(module, question="why?")
            kept = [(type(it).__name__, inputs, dict(outputs)) for it, inputs, outputs in dspy.settings.trace]
        return dict(result), sorted(kept, key=repr), module.dump_state(), len(module.both.history)

    make = calls(use, **BOTH)
    expected = await asyncio.to_thread(seen, make())
    module = make()
    async with ActorSystem() as system:
        program = await Program(module).start(system)
        assert repr(await asyncio.to_thread(seen, module)) == repr(expected)
        assert program.submodule("predict").info().handled == 0
        await program.stop()
    assert repr(await asyncio.to_thread(seen, make())) == repr(expected)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["a thread's", "awaited"])
async def test_a_hosted_module_streams_as_a_plain_one(asynchronous: bool) -> None:
    async def streamed(module: dspy.Module) -> list[Any]:
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        stream = dspy.streamify(module, stream_listeners=[listener], is_async_program=asynchronous)
        with dspy.context(lm=MockLM({"default": {"query": "q", "reasoning": "so", "answer": "one two three"}}).lm()):
            return [
                dict(chunk) if isinstance(chunk, dspy.Prediction) else (chunk.predict_name, chunk.chunk)
                async for chunk in stream(question="why?")
            ]

    expected = await streamed(Both())
    module = Both()
    async with ActorSystem() as system:
        await Program(module).start(system)
        assert await streamed(module) == expected
        assert len(expected) > 2
