"""What DSPy's histories keep of served calls: of each LM, each module, and all LMs."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Iterator

import dspy
import pytest
from dspy.clients.base_lm import GLOBAL_HISTORY

from promptside import ActorSystem
from promptside.pools import Endpoint
from promptside.programs import Program
from promptside.testing import MockLM
from tests.support.modules import Answer, SyncAnswer
from tests.support.pools import running


@pytest.fixture(autouse=True)
def _no_entries() -> Iterator[None]:
    before = list(GLOBAL_HISTORY)
    GLOBAL_HISTORY.clear()
    yield
    GLOBAL_HISTORY[:] = before


def mock() -> Endpoint:
    return Endpoint("mock/mock", engine=MockLM("hello"))


@pytest.mark.parametrize("kind", [Answer, SyncAnswer])
@pytest.mark.parametrize("pooled", [True, False])
async def test_a_programs_calls_leave_so_many_entries_in_each_history_and_the_last_can_be_inspected(
    kind: type[dspy.Module], pooled: bool
) -> None:
    async with running(mock()) as scene:
        lm = scene.lm if pooled else MockLM("hello").lm(cache=False)
        program = await Program(kind, lm=lm, max_history_size=3).start(scene.system)
        for number in range(8):
            await program.acall(question=f"question {number}")
        module = program.module
        histories = {
            "lm": lm.history,
            "module": module.history,
            "predictor": module.predict.history,
            "all": GLOBAL_HISTORY,
        }
        assert {name: len(history) for name, history in histories.items()} == dict.fromkeys(histories, 3)
        shown = io.StringIO()
        dspy.inspect_history(n=3, file=shown)
        assert [number for number in range(8) if f"question {number}" in shown.getvalue()] == [5, 6, 7]


async def test_the_default_is_the_last_hundred_also_for_a_module_that_is_called_plainly() -> None:
    async with running(mock()) as scene:
        plain = dspy.Predict("question -> answer")
        with dspy.context(lm=scene.lm):
            for _ in range(103):
                await plain.acall(question="?")
        assert len(plain.history) == len(scene.lm.history) == len(GLOBAL_HISTORY) == 100


async def test_the_history_of_all_lms_keeps_so_many_of_a_pool_whatever_lms_it_has() -> None:
    async with running(mock(), max_history_size=4) as scene:
        lms = [scene.pool.lm(cache=False), scene.pool.lm(cache=False), scene.lm.copy(temperature=1.0)]
        for lm in lms:
            await asyncio.gather(*(lm.acall("hello") for _ in range(5)))
        assert [len(lm.history) for lm in lms] == [4, 4, 4]
        assert len(GLOBAL_HISTORY) == 4


async def test_what_was_there_before_and_is_of_other_lms_stays() -> None:
    other = MockLM("hello").lm(cache=False)
    other("before")
    async with running(mock(), max_history_size=1) as scene:
        for _ in range(3):
            await scene.lm.acall("hello")
        other("between")
        await scene.lm.acall("hello")
    assert [entry["prompt"] for entry in GLOBAL_HISTORY] == ["before", "between", "hello"]
    assert len(other.history) == 2


@pytest.mark.parametrize("pooled", [True, False])
async def test_zero_keeps_nothing(pooled: bool) -> None:
    async with running(mock(), max_history_size=0) as scene:
        lm = scene.lm if pooled else MockLM("hello").lm(cache=False)
        program = await Program(Answer, lm=lm, max_history_size=0).start(scene.system)
        await program.acall(question="?")
        await scene.lm.acall("hello")
        assert (lm.history, program.module.history, GLOBAL_HISTORY) == ([], [], [])


async def test_less_than_that_in_dspys_own_setting_holds_and_more_does_not() -> None:
    async with ActorSystem() as system:
        lm = MockLM("hello").lm(cache=False)
        program = await Program(Answer, lm=lm, max_history_size=3).start(system)
        for size, kept in ((2, 2), (50, 3)):
            with dspy.context(max_history_size=size):
                for _ in range(5):
                    await program.acall(question="?")
            assert len(lm.history) == kept
            lm.history.clear()
        with dspy.context(disable_history=True):
            await program.acall(question="?")
        assert lm.history == []


@pytest.mark.parametrize("size", [-1, 1.5, None])
def test_another_bound_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match=r"Program: max_history_size=.*: give a whole number >= 0"):
        Program(Answer, max_history_size=size)  # type: ignore[arg-type]
