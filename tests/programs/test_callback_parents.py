"""A user's callback finds the same parents around and in a program that it finds around and in its module."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside import ActorSystem
from promptside.programs import Program, evaluate
from promptside.testing import MockLM
from tests.support.comparison import Heard
from tests.support.modules import Answer, SyncAnswer

EXAMPLES = [dspy.Example(question=f"{number}", answer="yes").with_inputs("question") for number in range(3)]


def score(example: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    return 1.0


def in_evaluate(called: Any) -> Any:
    dspy.Evaluate(devset=EXAMPLES, metric=score, display_progress=False, num_threads=2)(called)


def in_parallel(called: Any) -> Any:
    dspy.Parallel(num_threads=2, disable_progress_bar=True)([(called, example) for example in EXAMPLES])


def in_a_module(called: Any) -> Any:
    class Outer(dspy.Module):  # type: ignore[misc]
        def forward(self) -> Any:
            return dspy.Prediction(answers=[called(question="?").answer, called(question="!").answer])

    Outer()()


def in_a_tool(called: Any) -> Any:
    dspy.Tool(lambda question: called(question=question).answer, name="ask")(question="?")


def alone(called: Any) -> Any:
    called(question="?")


AROUND = [alone, in_a_module, in_a_tool, in_evaluate, in_parallel]


def told(use: Callable[[Any], Any], called: Any) -> list[Any]:
    heard = Heard()
    with dspy.context(lm=MockLM("yes").lm(), callbacks=[heard]):
        use(called)
    return sorted(((name, parent) for name, what, parent, _ in heard.told if what == "below"), key=repr)


@pytest.mark.parametrize("listened", [False, True], ids=["unheard", "with a listener"])
@pytest.mark.parametrize("source", [Answer, SyncAnswer])
@pytest.mark.parametrize("use", AROUND)
async def test_what_is_around_a_call_of_a_program_is_the_parent_of_its_outermost_module(
    use: Callable[[Any], Any], source: type[dspy.Module], listened: bool
) -> None:
    expected = await asyncio.to_thread(told, use, source())
    async with ActorSystem() as system:
        if listened:
            system.events.on("module.*", lambda event: None)
        program = await Program(source).start(system)
        assert await asyncio.to_thread(told, use, program) == expected


async def test_awaited_it_is_the_call_around_it_too() -> None:
    class Outer(dspy.Module):  # type: ignore[misc]
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = [inner]

        async def aforward(self) -> Any:
            return await self.inner[0].acall(question="?")

    async def found(inner: Any) -> list[Any]:
        heard = Heard()
        with dspy.context(lm=MockLM("yes").lm(), callbacks=[heard]):
            await Outer(inner).acall()
        return heard.told

    async with ActorSystem() as system:
        assert await found(await Program(Answer).start(system)) == await found(Answer())
        outer = await Program(lambda: Outer(Answer())).start(system)
        heard = Heard()
        with dspy.context(lm=MockLM("yes").lm(), callbacks=[heard]):
            await outer.acall()
        assert heard.told == await found(Answer())


class Ids(BaseCallback):  # type: ignore[misc]
    """The ids of calls, and of their parents."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.ended: list[str] = []
        self.parents: list[str | None] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.ids.append(call_id)
        self.parents.append(ACTIVE_CALL_ID.get())

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.ended.append(call_id)

    on_evaluate_start, on_evaluate_end = on_module_start, on_module_end


@pytest.mark.parametrize("run", ["promptside", "dspy"])
async def test_each_program_of_an_evaluation_is_below_it(run: str) -> None:
    ids = Ids()
    async with ActorSystem() as system:
        program = await Program(Answer).start(system)
        with dspy.context(lm=MockLM("yes").lm(), callbacks=[ids]):
            work: Awaitable[Any] = (
                evaluate(program, EXAMPLES, score, display_progress=False)
                if run == "promptside"
                else asyncio.to_thread(in_evaluate, program)
            )
            await work
    assert ids.parents.count(None) == 1
    assert ids.parents.count(ids.ids[0]) == len(EXAMPLES)
    assert {parent for parent in ids.parents if parent is not None} <= set(ids.ids)
    assert sorted(ids.ids) == sorted(ids.ended)


async def test_the_steps_of_a_pipeline_are_below_what_is_around_it() -> None:
    ids = Ids()
    pipeline = Program(lambda: dspy.Predict("question -> query"), name="one") >> Program(
        lambda: dspy.Predict("query -> answer"), name="two"
    )
    async with ActorSystem() as system:
        await pipeline.start(system)
        with dspy.context(lm=MockLM("yes").lm(), callbacks=[ids]):
            await pipeline(question="?")
    assert ids.parents == [None, None]


async def test_a_call_leaves_the_call_id_around_it_as_it_was() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=MockLM("yes").lm()).start(system)
        ACTIVE_CALL_ID.set("outer")  # type: ignore[arg-type]
        try:
            await program.acall(question="?")
            assert ACTIVE_CALL_ID.get() == "outer"
        finally:
            ACTIVE_CALL_ID.set(None)
