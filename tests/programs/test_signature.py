"""`create_program` and `execute`: a program that is one signature, as a class, a text or data."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import dspy
import pytest

from promptside import ActorSystem
from promptside.errors import CallTimeout, NameTaken
from promptside.pools import NoLMLoaded
from promptside.programs import Program, create_program, execute, list_programs, set_default_lm
from promptside.programs.signature_data import to_signature
from promptside.testing import MockLM
from tests.support.modules import lm


class BasicQA(dspy.Signature):  # type: ignore[misc]
    """Answer questions with short factual answers."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField(desc="often between 1 and 5 words")


DATA = {
    "name": "BasicQA",
    "docstring": "Answer questions with short factual answers.",
    "inputs": [{"name": "question", "type": "string"}],
    "outputs": [{"name": "answer", "type": "string", "description": "often between 1 and 5 words"}],
}


def test_a_signature_as_data_is_the_one_that_a_class_would_be() -> None:
    assert to_signature(BasicQA) is BasicQA
    assert to_signature(DATA).equals(BasicQA)
    assert to_signature(DATA).__name__ == "BasicQA"


@pytest.mark.parametrize(
    ("kind", "annotation"),
    [
        ("string", str),
        ("integer", int),
        ("number", float),
        ("boolean", bool),
        ("array", list),
        ("object", dict),
        ("list[str]", list[str]),
        ("Literal['a', 'b']", Literal["a", "b"]),
        (float, float),
        (dict[str, int], dict[str, int]),
    ],
)
def test_types_are_pythons_their_names_or_json_schemas(kind: Any, annotation: Any) -> None:
    made = to_signature({"inputs": ["question"], "outputs": [{"name": "answer", "type": kind}]})
    assert made.output_fields["answer"].annotation == annotation
    assert made.input_fields["question"].annotation is str


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (3, "signature=3: give a dspy.Signature"),
        ({"inputs": ["a"]}, "outputs=None: give a list"),
        ({"inputs": [], "outputs": ["a"]}, r"inputs=\[\]: give a list"),
        ({"inputs": "a", "outputs": ["b"]}, "inputs='a': give a list"),
        ({"inputs": ["a"], "outputs": ["a"]}, r"outputs\[0\]: the field 'a' stands twice"),
        ({"inputs": ["a b"], "outputs": ["c"]}, r"inputs\[0\]: name='a b'"),
        ({"inputs": [{"type": "str"}], "outputs": ["c"]}, r"inputs\[0\]: name=None"),
        ({"inputs": [7], "outputs": ["c"]}, r"inputs\[0\]=7: give a name"),
        ({"inputs": ["a"], "outputs": [{"name": "b", "type": "no such"}]}, r"outputs\[0\]: type='no such'"),
        ({"inputs": ["a"], "outputs": [{"name": "b", "typ": "str"}]}, r"outputs\[0\]: typ: its keys are"),
        ({"inputs": ["a"], "outputs": ["b"], "doc": "x"}, "signature: doc: its keys are"),
        ({"inputs": ["a"], "outputs": ["b"], 7: "x"}, "signature: 7: its keys are"),
        ({"inputs": ["_a"], "outputs": ["b"]}, r"inputs\[0\]: name='_a'"),
        ({"inputs": ["a"], "outputs": ["b"], "name": "a b"}, "name='a b'"),
        ({"inputs": ["a"], "outputs": [{"name": "b", "type": "str, c: int"}]}, r"outputs\[0\]: type='str, c: int'"),
        ({"inputs": ["a"], "outputs": [{"name": "b", "description": 5}]}, r"outputs\[0\]: description=5"),
        ({"inputs": ["a"], "outputs": ["b"], "docstring": 5}, "docstring=5"),
    ],
)
def test_a_signature_that_is_not_valid_is_named_with_its_field(signature: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_signature(signature)


@pytest.mark.parametrize(
    ("signature", "name"), [(BasicQA, "BasicQA"), (DATA, "BasicQA"), ("question -> answer", "program")]
)
async def test_a_program_is_created_executed_listed_and_stopped(signature: Any, name: str) -> None:
    async with ActorSystem() as system:
        qa = await create_program(system, signature, lm=MockLM({"France": "Paris", "default": "?"}).lm())
        assert (await execute(qa, {"question": "What is the capital of France?"})).answer == "Paris"
        second = await create_program(system, signature)
        own = await create_program(system, signature, name="mine")
        assert [program.name for program in list_programs(system)] == [name, f"{name}-2", "mine"]
        assert list_programs(system) == (qa, second, own)
        with pytest.raises(NameTaken):
            await create_program(system, signature, name="mine")
        await second.stop()
        assert list_programs(system) == (qa, own)


async def test_the_executions_lm_goes_over_the_programs_over_the_systems() -> None:
    async with ActorSystem() as system:
        bare = await create_program(system, BasicQA)
        own = await create_program(system, BasicQA, lm("program"))
        with pytest.raises(NoLMLoaded, match="No LM is loaded"):
            await execute(bare, {"question": "?"})
        set_default_lm(system, lm("system"))
        asked = {"question": "?"}
        assert (await execute(bare, asked)).answer == "system"
        assert (await execute(own, asked)).answer == "program"
        assert (await execute(own, asked, lm=lm("call"))).answer == "call"

        async def answer(number: int) -> bool:
            return bool((await execute(own, asked, lm=lm(f"model {number}"))).answer == f"model {number}")

        assert all(await asyncio.gather(*(answer(number) for number in range(200))))


async def test_the_timeout_of_an_execution_bounds_it_and_is_no_input() -> None:
    class Echo(dspy.Module):  # type: ignore[misc]
        async def aforward(self, **inputs: str) -> dspy.Prediction:
            if "hang" in inputs:
                await asyncio.Event().wait()
            return dspy.Prediction(given=sorted(inputs))

    async with ActorSystem() as system:
        echo = await Program(Echo, lm=lm("")).start(system)
        assert (await execute(echo, question="?", timeout=600)).given == ["question"]
        assert (await execute(echo, {"timeout": "noon"}, timeout=600)).given == ["timeout"]
        with pytest.raises(CallTimeout, match=r"^Program 'Echo' did not answer within 1e-09 s"):
            await execute(echo, hang=True, timeout=1e-9)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "'question' missing; its inputs are question"),
        ({"question": "?", "query": "?"}, "'query' no input of it; its inputs are question"),
        (["question"], "give a mapping of inputs by name"),
    ],
)
async def test_inputs_that_do_not_fit_are_named_before_the_lm_is_asked(inputs: Any, message: str) -> None:
    async with ActorSystem() as system:
        model = MockLM("yes")
        qa = await create_program(system, DATA, model.lm())
        with pytest.raises(ValueError, match=message):
            await execute(qa, inputs)
        assert model.calls == 0


async def test_a_module_of_ones_own_whose_signature_is_a_text_is_executed() -> None:
    class Own(dspy.Module):  # type: ignore[misc]
        signature = "question -> answer"

        async def aforward(self, **inputs: str) -> dspy.Prediction:
            return dspy.Prediction(answer=inputs["question"])

    async with ActorSystem() as system:
        assert (await execute(await Program(Own, lm=lm("")).start(system), {"question": "?"})).answer == "?"
