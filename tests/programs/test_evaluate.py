"""`evaluate` beside `dspy.Evaluate` on the same inputs: results, callbacks and files; and what is its own."""

from __future__ import annotations

import asyncio
import contextvars
import csv
import gc
import json
import logging
import math
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID
from tqdm import tqdm

from promptside import ActorSystem
from promptside.errors import EvaluationAborted
from promptside.programs import Program
from promptside.programs.evaluation.evaluate import evaluate
from promptside.testing import MockLM
from tests.support.actors import until
from tests.support.modules import Answer, SyncAnswer


def devset(size: int = 6) -> list[dspy.Example]:
    return [dspy.Example(question=f"number {n}?", answer=str(n)).with_inputs("question") for n in range(size)]


def echo(request: Any) -> str:
    """The model knows every number but 2."""
    text: str = request.messages[-1].parts[0].text
    answer = text.split("number ")[1].split("?", maxsplit=1)[0]
    return "none" if answer == "2" else answer


def exact(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def graded(example: dspy.Example, prediction: dspy.Prediction) -> float:
    return int(example.answer) / 7 if exact(example, prediction) else 0.1


def counted(example: dspy.Example, prediction: dspy.Prediction) -> int:
    return 2 * exact(example, prediction)


def with_feedback(example: dspy.Example, prediction: dspy.Prediction) -> dspy.Prediction:
    return dspy.Prediction(score=graded(example, prediction), feedback="so so")


def numpys(example: dspy.Example, prediction: dspy.Prediction) -> Any:
    return np.float64(graded(example, prediction))


def of_five(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
    return graded(gold, pred)


def raises_at_3(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    if example.answer == "3":
        raise LookupError("no such number")
    return exact(example, prediction)


class Judge(dspy.Module):  # type: ignore[misc]
    """A metric that is a module, as DSPy's SemanticF1 is."""

    def forward(self, example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> float:
        return graded(example, prediction)


class Picky(dspy.Module):  # type: ignore[misc]
    """Raises at 4; and what it predicts is no prediction."""

    def forward(self, question: str) -> str:
        if "4" in question:
            raise ValueError("not this one")
        return question.removeprefix("number ").removesuffix("?")


def said(example: dspy.Example, prediction: Any) -> bool:
    return bool(example.answer == prediction)


def plain(result: EvaluationResult) -> Any:
    """A result as data that can be compared."""
    return result.score, [
        (example, prediction.toDict() if isinstance(prediction, dspy.Prediction) else prediction, score)
        for example, prediction, score in result.results
    ]


def dspys(program: Any, metric: Any, examples: list[dspy.Example] | None = None, **options: Any) -> EvaluationResult:
    return dspy.Evaluate(devset=examples or devset(), metric=metric, num_threads=3, **options)(program)


@pytest.mark.parametrize(
    "metric",
    [exact, graded, counted, with_feedback, numpys, of_five, raises_at_3, Judge()],
)
@pytest.mark.parametrize("failure_score", [0.0, 0.25])
async def test_results_are_those_of_dspy(metric: Any, failure_score: float) -> None:
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=MockLM(echo).lm()):
        theirs = dspys(program, metric, failure_score=failure_score)
        ours = await evaluate(program, devset(), metric, failure_score=failure_score)
        async with ActorSystem() as system:
            hosted = await evaluate(
                await Program(dspy.Predict("question -> answer")).start(system),
                devset(),
                metric,
                failure_score=failure_score,
            )
    assert plain(ours) == plain(hosted) == plain(theirs)
    assert isinstance(ours, EvaluationResult)
    assert repr(ours) == repr(theirs)
    assert float(ours) == theirs.score
    assert ours.keys() == theirs.keys(), "what callbacks and tables read is DSPy's and nothing else"


@pytest.mark.parametrize("program", [Answer, SyncAnswer])
async def test_sync_and_async_modules_give_what_they_give_dspy(program: Callable[[], dspy.Module]) -> None:
    with dspy.context(lm=MockLM(echo).lm()):
        theirs, ours = dspys(program(), exact), await evaluate(program(), devset(), exact)
    assert (ours.score, [score for *_, score in ours.results]) == (83.33, [score for *_, score in theirs.results])


async def test_a_program_that_raises_and_predicts_plain_values_gives_what_it_gives_dspy() -> None:
    theirs, ours = dspys(Picky(), said), await evaluate(Picky(), devset(), said)
    assert plain(ours) == plain(theirs)
    assert ours.results[4] == (devset()[4], dspy.Prediction(), 0.0)
    assert {index: str(error) for index, error in ours.errors.items()} == {4: "not this one"}


async def test_examples_without_declared_inputs_fail_as_with_dspy() -> None:
    examples = [dspy.Example(question="number 1?", answer="1"), *devset(2)]
    theirs, ours = dspys(Picky(), said, examples), await evaluate(Picky(), examples, said)
    assert plain(ours) == plain(theirs)
    assert isinstance(ours.errors[0], ValueError)


async def test_any_callable_is_a_program_and_any_callable_a_metric() -> None:
    def sync(question: str) -> str:
        return question[7:-1]

    async def coroutine(question: str) -> str:
        return sync(question)

    async def judge(example: dspy.Example, prediction: str) -> bool:
        return said(example, prediction)

    class Asynchronous:
        async def __call__(self, question: str) -> str:
            return sync(question)

    programs = [sync, coroutine, lambda question: coroutine(question), Asynchronous()]
    for program in programs:
        for metric in (said, judge, lambda example, prediction: judge(example, prediction)):
            assert (await evaluate(program, devset(), metric)).score == 100.0


async def test_an_empty_devset_is_dspys_error() -> None:
    async def none() -> AsyncIterator[dspy.Example]:
        for example in ():
            yield example

    for empty in ([], (), iter(()), none()):
        with pytest.raises(ValueError, match=r"^devset must contain at least one example, got an empty devset\.$"):
            await evaluate(Picky(), empty, said)


@pytest.mark.parametrize("count", [1, 3])
async def test_with_max_errors_failures_it_is_aborted_with_all_of_their_errors(count: int) -> None:
    def fails(question: str) -> str:
        raise ValueError(question)

    with pytest.raises(Exception, match="Execution cancelled due to errors"):
        dspys(fails, said, max_errors=count)
    with pytest.raises(EvaluationAborted, match=f"'quality' was aborted.*{count} examples failed") as aborted:
        await evaluate(fails, devset(), said, max_errors=count, name="quality", max_concurrency=1)
    assert [str(each) for each in aborted.value.reason.exceptions] == [f"number {n}?" for n in range(count)]
    assert aborted.value.__cause__ is aborted.value.reason


async def test_with_no_errors_allowed_the_first_one_aborts_and_none_is_no_matter() -> None:
    def fails(question: str) -> str:
        raise ValueError(question)

    assert (await evaluate(Picky(), devset(2), lambda example, prediction: 1.0, max_errors=0)).score == 100.0
    with pytest.raises(EvaluationAborted, match="1 examples failed"):
        await evaluate(fails, devset(), said, max_errors=0, max_concurrency=1)


async def test_the_bound_on_errors_is_dspys_setting_unless_given() -> None:
    def fails(question: str) -> str:
        raise ValueError(question)

    with dspy.context(max_errors=2), pytest.raises(EvaluationAborted):
        await evaluate(fails, devset(), said)
    result = await evaluate(fails, devset(30), said, max_errors=math.inf)
    assert (result.score, len(result.errors)) == (0.0, 30)


async def test_failures_are_logged_once_each_without_their_inputs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await evaluate(Picky(), devset(), said)
    assert [record.getMessage() for record in caplog.records] == [
        "evaluation: example 4 failed: ValueError: not this one"
    ]


@pytest.mark.parametrize("nothing", [None, "1.0", dspy.Prediction(answer="5")])
async def test_a_metric_that_returns_no_score_is_the_callers_error_as_with_dspy(nothing: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        dspys(Picky(), lambda example, prediction: nothing)
    with pytest.raises(TypeError, match=r"(?s)the metric returned .* let it return a number"):
        await evaluate(Picky(), devset(), lambda example, prediction: nothing)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
async def test_a_file_that_cannot_be_written_costs_neither_the_results_nor_the_other_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved = tmp_path / "results.json"
    result = await evaluate(Picky(), devset(), said, save_as_csv="/dev/full", save_as_json=str(saved))
    assert len(result.results) == len(json.loads(saved.read_text()))
    assert "/dev/full could not be written" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"max_concurrency": 2.5}, "max_concurrency=2.5"),
        ({"name": "a/b"}, "name='a/b'"),
        ({"name": ""}, "name=''"),
        ({"outage_timeout": -1}, "outage_timeout=-1"),
        ({"metric": None}, "metric=None"),
        ({"program": "no program"}, "program='no program'"),
        ({"max_errors": "3"}, "max_errors='3'"),
        ({"max_errors": math.nan}, "max_errors=nan"),
        ({"failure_score": None}, "failure_score=None"),
        ({"save_as_json": "."}, "save_as_json='.'"),
        ({"save_as_csv": []}, r"save_as_csv=\[\]"),
        ({"devset": None}, "devset=None"),
        ({"devset": "a question"}, "devset='a question'"),
        ({"display_table": "5"}, "display_table='5'"),
        ({"save_as_csv": "/no/such/folder/results.csv"}, "save_as_csv='/no/such"),
        ({"keep_results": False, "display_table": 3}, "keep_results=False"),
        ({"keep_results": False, "save_as_json": "results.json"}, "keep_results=False"),
    ],
)
async def test_a_wrong_argument_is_named_before_any_example_is_begun(wrong: dict[str, Any], field: str) -> None:
    def never(**inputs: Any) -> Any:
        raise AssertionError("it was begun")

    with pytest.raises(ValueError, match=field):
        await evaluate(**{"program": never, "devset": devset(), "metric": said, **wrong})


async def test_a_demand_that_a_program_would_refuse_is_refused_before() -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: dspy.Predict("question -> answer")).start(system)
        with pytest.raises(ValueError, match=r"max_concurrency=1025: a program takes 1024 calls at a time"):
            await evaluate(program, devset(), said, max_concurrency=1025)


# -- callbacks ---------------------------------------------------------------------------------------------------------


class Recorder(BaseCallback):  # type: ignore[misc]
    """What callbacks are told, with parents by name in place of ids."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.names: dict[str | None, str] = {None: "nothing"}

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.names[call_id] = "the evaluation"
        kept = (instance.metric, len(instance.devset), instance.num_threads, instance.failure_score)
        self.told.append(("start", isinstance(instance, dspy.Evaluate), kept, dict(inputs), self._parent()))

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        told = outputs and plain(outputs), exception and str(exception)
        self.told.append(("end", self.names[call_id], told, self._parent()))

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.told.append(("module", type(instance).__name__, inputs["kwargs"], self._parent()))

    def _parent(self) -> str:
        return self.names[ACTIVE_CALL_ID.get()]


async def test_callbacks_are_told_what_dspy_tells_them() -> None:
    program, metadata = Picky(), {"metric_key": "eval_full_0"}
    theirs, ours = Recorder(), Recorder()
    with dspy.context(callbacks=[theirs]):
        dspy.Evaluate(devset=devset(), metric=said, num_threads=1)(program, callback_metadata=metadata)
    with dspy.context(callbacks=[ours]):
        await evaluate(program, devset(), said, max_concurrency=1, callback_metadata=metadata)
    assert ours.told == theirs.told
    assert len(ours.told) == 8


async def test_callbacks_are_told_of_an_evaluation_without_a_score() -> None:
    theirs, ours, program = Recorder(), Recorder(), Picky()
    with dspy.context(callbacks=[theirs]), pytest.raises(ValueError, match="empty"):
        dspy.Evaluate(devset=[], metric=said, num_threads=64)(program)
    with dspy.context(callbacks=[ours]), pytest.raises(ValueError, match="empty"):
        await evaluate(program, [], said)
    assert ours.told == theirs.told
    with dspy.context(callbacks=[ours]), pytest.raises(EvaluationAborted):
        await evaluate(program, devset(), said, max_errors=1)
    assert "was aborted" in ours.told[-1][2][1]


# -- files, table, progress --------------------------------------------------------------------------------------------


def read(path: str) -> str:
    return Path(path).read_bytes().decode()


async def test_the_files_are_those_of_dspy(tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    for metric in (exact, Judge()):
        paths = {who: {kind: str(tmp_path / f"{who}.{kind}") for kind in ("csv", "json")} for who in ("dspy", "ours")}
        with dspy.context(lm=MockLM(echo).lm()):
            for who, run in (("dspy", dspys), ("ours", None)):
                files = {"save_as_csv": paths[who]["csv"], "save_as_json": paths[who]["json"]}
                await evaluate(program, devset(), metric, **files) if run is None else run(program, metric, **files)
        for kind in ("csv", "json"):
            ours, theirs = (read(paths[who][kind]) for who in ("ours", "dspy"))
            assert ours == theirs
            assert "example_answer" in ours


async def test_files_hold_what_would_have_made_dspy_lose_the_results(tmp_path: Path) -> None:
    """Its first example has failed, so that its columns are fewer; and a score is no JSON."""

    def fails_at_0(question: str) -> dspy.Prediction:
        if "0" in question:
            raise ValueError("not this one")
        return dspy.Prediction(answer=question[7:-1])

    files = {"save_as_csv": str(tmp_path / "results.csv"), "save_as_json": str(tmp_path / "results.json")}
    with pytest.raises(ValueError, match="not in fieldnames"):
        dspys(fails_at_0, with_feedback, **files)
    await evaluate(fails_at_0, devset(3), with_feedback, **files)
    rows = csv.DictReader(read(files["save_as_csv"]).splitlines())
    assert [row["pred_answer"] for row in rows] == ["", "1", "2"]
    first, second, _ = json.loads(read(files["save_as_json"]))
    assert first == {"question": "number 0?", "answer": "0", "with_feedback": 0.0}
    assert second["with_feedback"] == {"score": 1 / 7, "feedback": "so so"}


@pytest.mark.parametrize("rows", [True, 2])
async def test_the_table_is_that_of_dspy(rows: bool | int, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pandas")
    dspys(Picky(), said, display_table=rows)
    theirs = capsys.readouterr().out
    await evaluate(Picky(), devset(), said, display_table=rows)
    assert capsys.readouterr().out == theirs
    assert "number 0?" in theirs


async def test_without_pandas_there_is_a_warning_and_no_table(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (await evaluate(Picky(), devset(3), said, display_table=True)).score == 100.0
    assert "pandas is not installed" in caplog.text


async def test_the_progress_bar_counts_to_the_end_and_leaves_no_thread(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tqdm, "monitor", None)  # the thread that DSPy's own bars have started
    before = set(threading.enumerate())
    await evaluate(Picky(), devset(), said, display_progress=True)
    bar = capsys.readouterr().out
    assert "Average Metric: 5.00 / 5 (100.0%)" in bar, "as DSPy's, of those that did not fail"
    assert "6/6" in bar
    await until(lambda: all("AnyIO" in thread.name for thread in set(threading.enumerate()) - before))
    await evaluate(Picky(), iter(devset()), said)
    assert capsys.readouterr().out == ""


# -- context -----------------------------------------------------------------------------------------------------------


async def test_each_example_has_the_callers_context_and_none_sees_anothers() -> None:
    seen: set[str] = set()
    mark = contextvars.ContextVar("mark", default="unset")

    async def program(question: str) -> str:
        seen.add(mark.get())
        mark.set(question)
        await asyncio.sleep(0)
        assert mark.get() == question
        return str(dspy.settings.lm.model)

    mark.set("the caller's")
    with dspy.context(lm=MockLM("yes", model="mock/of-the-caller").lm()):
        result = await evaluate(program, devset(), lambda example, prediction: prediction == "mock/of-the-caller")
    assert (result.score, seen, mark.get()) == (100.0, {"the caller's"}, "the caller's")


@pytest.mark.parametrize("program", [Answer, SyncAnswer])
@pytest.mark.parametrize("hosted", [False, True])
async def test_usage_is_tracked_for_each_prediction_and_around_the_whole(
    program: Callable[[], dspy.Module], hosted: bool
) -> None:
    async with ActorSystem() as system:
        subject = await Program(program).start(system) if hosted else program()
        with dspy.context(lm=MockLM(echo).lm(), track_usage=True):
            result = await evaluate(subject, devset(), exact)
            each = [sum(usage["total_tokens"] for usage in p.get_lm_usage().values()) for _, p, _ in result.results]
            with dspy.track_usage() as tracker:
                await evaluate(subject, devset(), exact)
    total = tracker.get_total_tokens()["mock/mock"]["total_tokens"]
    assert min(each) > 0
    assert total == sum(each)


async def test_a_metric_that_asks_an_lm_and_blocks_does_not_hold_up_the_others() -> None:
    together = threading.Barrier(4, timeout=20)  # broken unless four metrics are inside at a time

    def judge(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        together.wait()
        verdict = dspy.Predict("question, answer -> verdict")(question=example.question, answer=prediction.answer)
        return bool(verdict.verdict == example.answer)

    with dspy.context(lm=MockLM(lambda request: echo(request)).lm()):
        result = await evaluate(dspy.Predict("question -> answer"), devset(8), judge, max_concurrency=4)
    assert result.score == 87.5


# -- demand ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_concurrency", [1, 3, 100])
async def test_never_more_than_demand_examples_are_under_way_and_results_are_in_order(max_concurrency: int) -> None:
    under_way = most = 0

    async def program(question: str) -> str:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        for _ in range(20 - int(question[7:-1])):  # the later, the sooner
            await asyncio.sleep(0)
        under_way -= 1
        return question[7:-1]

    result = await evaluate(program, devset(12), said, max_concurrency=max_concurrency)
    assert most == min(max_concurrency, 12)
    assert [example for example, _, _ in result.results] == devset(12)
    assert result.score == 100.0


@pytest.mark.parametrize("size", [10_000, pytest.param(100_000, marks=pytest.mark.nightly)])
async def test_a_long_generator_of_examples_is_read_with_demand_and_not_held(size: int) -> None:
    demand = 8
    taken = freed = most = 0

    def free() -> None:
        nonlocal freed
        freed += 1

    def examples() -> Iterator[dspy.Example]:
        nonlocal taken, most
        for number in range(size):
            example = dspy.Example(number=number).with_inputs("number")
            weakref.finalize(example, free).atexit = False
            taken += 1
            most = max(most, taken - freed)
            yield example
            del example

    async def program(number: int) -> int:
        return number % 4

    async def metric(example: dspy.Example, prediction: int) -> bool:
        return prediction == 0

    gc.disable()  # they are freed without its help
    try:
        result = await evaluate(program, examples(), metric, max_concurrency=demand, keep_results=False)
    finally:
        gc.enable()
    assert (result.score, len(result.scores), result.results, taken) == (25.0, size, [], size)
    assert most <= demand + 1, "and the one that is taken from the generator, or whose score is counted"
