"""`promptside.programs.ensemble.Ensemble`: several programs, one prediction."""

from __future__ import annotations

import asyncio
from typing import Any

import dspy
import pytest

from promptside import ActorSystem
from promptside.pools import EnsembleFailed
from promptside.programs import Ensemble, Program
from promptside.testing import MockLM
from tests.support.actors import until
from tests.support.modules import Answer, SyncAnswer


def saying(text: Any) -> dspy.Module:
    module = dspy.Predict("question -> answer")
    module.lm = MockLM(text).lm(cache=False)
    return module


def fail(_: Any) -> str:
    raise OSError("down")


async def test_the_most_frequent_answer_of_the_members_is_the_ensembles_and_each_member_is_an_actor() -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: Ensemble([saying("a"), saying("b"), saying("b")])).start(system)
        assert (await program.acall(question="?")).answer == "b"
        assert [program.submodule(f"members[{index}]").path for index in range(3)] == [
            f"program/members[{index}]" for index in range(3)
        ]


async def test_a_member_may_fail_as_long_as_a_quorum_answers() -> None:
    async with ActorSystem() as system:
        members = [saying(fail), saying("a"), saying("a")]
        program = await Program(Ensemble(members, quorum=2)).start(system)
        assert (await program.acall(question="?")).answer == "a"
        program.submodule("members[1]").kill()
        assert (await program.acall(question="?")).answer == "a"
        strict = await Program(Ensemble([*members, saying(fail)], quorum=3)).start(system)
        with pytest.raises(EnsembleFailed) as caught:
            await strict.acall(question="?")
        assert [name for name, _ in caught.value.failures] == ["members[0]", "members[3]"]


async def test_programs_are_members_and_a_combination_may_be_another_program() -> None:
    async with ActorSystem() as system:
        judge = await Program(lambda: dspy.Predict("answers: list[str] -> answer"), lm=MockLM("c").lm()).start(system)
        members = [await Program(source, lm=MockLM("a").lm()).start(system) for source in (Answer, SyncAnswer)]

        async def combine(predictions: list[dspy.Prediction]) -> dspy.Prediction:
            return await judge.acall(answers=[each.answer for each in predictions])

        program = await Program(Ensemble(members, combine=combine)).start(system)
        assert (await program.acall(question="?")).answer == "c"


async def test_cancelling_the_caller_cancels_every_member() -> None:
    begun, ended = 0, 0

    class Waiting(dspy.Module):  # type: ignore[misc]
        async def aforward(self, question: str) -> dspy.Prediction:
            nonlocal begun, ended
            begun += 1
            try:
                await asyncio.Event().wait()
            finally:
                ended += 1

    async with ActorSystem() as system:
        program = await Program(lambda: Ensemble([Waiting(), Waiting()])).start(system)
        call = asyncio.create_task(program.acall(question="?"))
        await until(lambda: begun == 2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: ended == 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quorum": 0}, "quorum=0"),
        ({"quorum": 3}, "there are 2 members"),
        ({"combine": 3}, "combine=3"),
        ({"members": ["gpt"]}, r"members\[0\]='gpt': give a dspy\.Module, or a Program"),
    ],
)
def test_arguments_that_are_not_valid_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(**{"members": [Answer(), Answer()], **arguments})


async def test_members_that_cancel_themselves_cancel_the_call() -> None:
    class Cancelling(dspy.Module):  # type: ignore[misc]
        async def aforward(self, question: str) -> dspy.Prediction:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await Ensemble([Cancelling(), Cancelling()]).acall(question="?")
