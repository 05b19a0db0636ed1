"""What an outage becomes for an optimizer: the run that would have been, or an abort with its state on disk.

GEPA itself, over a real connection. The model knows more numbers the better its instruction is, and the reflection
knows the next better one, so that each true score is known, and a run without an outage is always the same.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMServerError
from gepa.core.state import GEPAState

from promptside.errors import OptimizationAborted
from promptside.pools import BreakerConfig, CircuitOpen, RetryConfig, batch_run
from promptside.testing import FakeServer, Fault
from tests.support.pools import running

QUICK: dict[str, Any] = {
    "breaker": BreakerConfig(min_calls=3, open_for=0.1, max_open_for=0.1),
    "retry": RetryConfig(initial=0.01, maximum=0.05),
}

TRAINSET, VALSET = range(6), range(6, 12)

STAGES = {
    "the scores of the seed": 2,
    "the traces": 6,
    "the reflection": 12,
    "the first scores of a candidate": 13,
    "all scores of a candidate": 17,
    "a later round": 30,
}
"""Calls of the metric after which the outage begins, by what it hits."""


def knows(instruction: str, number: int) -> bool:
    level = re.search(r"level (\d)", instruction)
    return number % 4 <= (int(level[1]) if level else 0)


def answer(body: Any) -> dict[str, str]:
    """Of the program, and of the reflection on it."""
    system, asked = (message["content"] for message in (body["messages"][0], body["messages"][-1]))
    if is_reflection(body):
        level = re.search(r"level (\d)", asked)
        return {"new_instruction": f"Use level {int(level[1]) + 1 if level else 1}."}
    number = int(re.search(r"number (\d+)", asked)[1])  # type: ignore[index]
    return {"answer": str(number) if knows(system, number) else "unknown"}


def is_reflection(body: Any) -> bool:
    return "current_instruction" in body["messages"][0]["content"]


def answered(server: FakeServer) -> list[str]:
    """What was asked, of those requests that were answered."""
    return sorted(str(request.body["messages"]) for request in server.requests if request.status == 200)


@dataclass
class Run:
    """A run of GEPA in the thread that makes it.

    Attributes:
        lm: For the program and for the reflection.
        log_dir: Where its state is saved.
        after: What happens after so many calls of the metric.
    """

    lm: dspy.LM
    log_dir: Path
    after: dict[int, Callable[[], None]] = field(default_factory=dict)

    def __call__(self, **door: Any) -> Any:
        calls = itertools.count(1)

        def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
            self.after.get(next(calls), lambda: None)()
            return dspy.Prediction(score=float(gold.answer == pred.answer), feedback="it must be the number")

        def examples(numbers: range) -> list[dspy.Example]:
            return [dspy.Example(question=f"number {n}", answer=str(n)).with_inputs("question") for n in numbers]

        with batch_run("tune", raises=OptimizationAborted, **door), dspy.context(lm=self.lm):
            gepa = dspy.GEPA(
                metric,
                max_metric_calls=48,
                reflection_lm=self.lm,
                num_threads=2,
                log_dir=str(self.log_dir),
                track_stats=True,
            )
            program = dspy.Predict("question -> answer")
            best = gepa.compile(program, trainset=examples(TRAINSET), valset=examples(VALSET))
        return best.detailed_results


def instructions(program: Any) -> str:
    return str(program.signature.instructions)


def check_scores(candidates: list[str], scores: list[dict[int, float]]) -> None:
    """Each score is what the candidate deserves."""
    for candidate, subscores in zip(candidates, scores, strict=True):
        assert subscores == {n: float(knows(candidate, number)) for n, number in enumerate(VALSET)}, candidate


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], list[str]]:
    """The scores, and the requests, of a run without an outage."""

    async def main() -> tuple[list[float], list[str]]:
        with FakeServer(answer) as server:
            async with running(server, **QUICK) as scene:
                result = await asyncio.to_thread(Run(scene.lm, tmp_path_factory.mktemp("undisturbed")))
                return result.val_aggregate_scores, answered(server)

    return asyncio.run(main())


@pytest.mark.parametrize("stage", STAGES)
async def test_gepa_waits_an_outage_out_and_ends_as_if_there_had_been_none(
    stage: str, undisturbed: tuple[list[float], list[str]], tmp_path: Path
) -> None:
    with FakeServer(answer) as server:
        async with running(server, **QUICK) as scene:
            outage = {STAGES[stage]: lambda: server.fail(Fault.status(500), times=None)}
            run = asyncio.create_task(asyncio.to_thread(Run(scene.lm, tmp_path, outage)))
            await scene.until("breaker.opened")
            assert not run.done()
            server.heal()
            result = await run
            failed = next(request for request in server.requests if request.status == 500)
            assert is_reflection(failed.body) == (stage == "the reflection")
            assert (result.val_aggregate_scores, answered(server)) == undisturbed
            assert result.val_aggregate_scores[-1] > result.val_aggregate_scores[0]
            check_scores([instructions(each) for each in result.candidates], result.val_subscores)


@pytest.mark.parametrize("stage", STAGES)
async def test_gepa_is_aborted_with_its_state_saved_and_goes_on_from_there(stage: str, tmp_path: Path) -> None:
    with FakeServer(answer) as server:
        async with running(server, **QUICK) as scene:
            outage = {STAGES[stage]: lambda: server.fail(Fault.status(500), times=None)}
            with pytest.raises(OptimizationAborted, match="the optimization 'tune' was aborted") as aborted:
                await asyncio.to_thread(Run(scene.lm, tmp_path, outage), outage_timeout=0.3)
            assert isinstance(aborted.value.reason, LMServerError | CircuitOpen)
            if stage == "the scores of the seed":  # there is nothing that could be saved before these
                assert not (tmp_path / "gepa_state.bin").exists()
            else:
                state: Any = GEPAState.load(str(tmp_path))
                check_scores([each["self"] for each in state.program_candidates], state.prog_candidate_val_subscores)
                assert len(state.program_candidates) == (2 if stage == "a later round" else 1)
            server.heal()
            result = await asyncio.to_thread(Run(scene.lm, tmp_path))
            check_scores([instructions(each) for each in result.candidates], result.val_subscores)
            assert result.val_aggregate_scores[-1] > result.val_aggregate_scores[0]
