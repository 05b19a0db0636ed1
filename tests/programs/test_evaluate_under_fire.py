"""`evaluate` when something goes wrong in mid-run: kills, outages, cancellation, hangs; and what its events tell."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from promptside import ActorStopped, ActorSystem
from promptside.errors import EvaluationAborted, NotStarted, OptimizationAborted
from promptside.events import CATALOGUE
from promptside.pools import BreakerConfig, Budget, BudgetExceeded, RetryConfig, batch_run
from promptside.programs import Program
from promptside.programs.evaluation.evaluate import evaluate
from promptside.programs.evaluation.evaluator import ATTEMPTS
from promptside.supervision import TaskSupervisor
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import doomed_system, hear, outcome, until
from tests.support.modules import Answer, SyncAnswer
from tests.support.pools import Scene, running

BREAKER = BreakerConfig(min_calls=3, open_for=0.1, max_open_for=0.1)
RETRY = RetryConfig(initial=0.01, maximum=0.05)
SIZE = 24


def devset(size: int = SIZE) -> list[dspy.Example]:
    return [dspy.Example(question=f"number {n}?", answer=str(n)).with_inputs("question") for n in range(size)]


def exact(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return bool(example.answer == prediction.answer)


def number(body: Any) -> dict[str, str]:
    """The model knows every number, so that a true score is 100."""
    return {"answer": body["messages"][-1]["content"].split("number ")[1].split("?")[0]}


class Held(dspy.Module):  # type: ignore[misc]
    """Knows every number; holds those above `free` until it is opened."""

    def __init__(self, free: int = 3) -> None:
        super().__init__()
        self.free = free
        self.open = asyncio.Event()
        self.calls: Counter[str] = Counter()
        self.inside: set[str] = set()

    async def aforward(self, question: str) -> dspy.Prediction:
        answer = question[7:-1]
        self.calls[answer] += 1
        self.inside.add(answer)
        try:
            if int(answer) >= self.free:
                await self.open.wait()
        finally:
            self.inside.discard(answer)
        return dspy.Prediction(answer=answer)


def left_over(system: ActorSystem) -> list[str]:
    return [node.name for node in system.tree().children if node.name.startswith("evaluation")]


# -- crashes -----------------------------------------------------------------------------------------------------------


async def test_examples_inside_a_crash_of_the_programs_actor_are_begun_again() -> None:
    held = Held()
    async with ActorSystem() as system:
        program = await Program(held).start(system)
        run = asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=8))
        await until(lambda: len(held.inside) == 8)
        program.ref.kill()
        await until(lambda: len(held.inside) == 8 and max(held.calls.values()) == 2)
        held.open.set()
        result = await run
        assert (result.score, dict(result.errors), left_over(system)) == (100.0, {}, [])
        assert sum(held.calls.values()) == SIZE + 8


class Death(BaseException):
    """No answer, so that the actor in which it is raised crashes."""


class Poison(dspy.Module):  # type: ignore[misc]
    """Its actor does not survive some numbers."""

    def __init__(self, *poison: str) -> None:
        super().__init__()
        self.poison = poison
        self.calls: Counter[str] = Counter()

    async def aforward(self, question: str) -> dspy.Prediction:
        answer = question[7:-1]
        self.calls[answer] += 1
        if answer in self.poison:
            raise Death
        return dspy.Prediction(answer=answer)


async def test_an_example_that_crashes_the_program_fails_alone_after_three_tries() -> None:
    poison = Poison("5")
    async with ActorSystem() as system:
        program = await Program(poison).start(system)
        result = await evaluate(program, devset(), exact, max_concurrency=1)
        assert [score for *_, score in result.results] == [n != 5 or 0.0 for n in range(SIZE)]
        assert isinstance(result.errors[5], ActorStopped)
        assert poison.calls["5"] == ATTEMPTS


async def test_a_program_whose_supervisor_gives_up_aborts_the_evaluation() -> None:
    poison = Poison("5", "6")
    async with doomed_system() as system:
        program = await Program(poison).start(system)
        with pytest.raises(EvaluationAborted) as aborted:
            await evaluate(program, devset(), exact, max_concurrency=1)
        assert isinstance(aborted.value.reason, ActorStopped)
        assert poison.calls["7"] == 0
        assert left_over(system) == []


async def test_a_program_that_is_gone_aborts_the_evaluation_and_scores_nothing() -> None:
    held = Held()
    async with ActorSystem() as system:
        program = await Program(held).start(system)
        run = asyncio.create_task(evaluate(program, devset(1000), exact, max_concurrency=8, max_errors=2000))
        await until(lambda: len(held.inside) == 8)
        system.whereis("Held").kill()  # its supervisor, which nobody restarts
        with pytest.raises(EvaluationAborted) as aborted:
            await run
        assert isinstance(aborted.value.reason, ActorStopped)
        assert len(held.calls) < 20


async def test_a_tool_that_does_not_run_is_an_outage_for_a_plain_program_too() -> None:
    async with ActorSystem() as system:
        retriever = await Program(Held(SIZE)).start(system)
        await retriever.stop()

        async def plain(question: str) -> dspy.Prediction:
            return await retriever.acall(question=question)

        with pytest.raises(EvaluationAborted):
            await evaluate(plain, devset(), exact)


async def test_a_program_that_was_never_started_is_refused() -> None:
    with pytest.raises(NotStarted, match="Program 'Answer' is not started"):
        await evaluate(Program(Answer), devset(), exact)


async def test_a_killed_example_ends_the_evaluation_with_an_error_and_the_others_with_it() -> None:
    held = Held(0)
    async with ActorSystem() as system:
        program = await Program(held).start(system)
        run = asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=8))
        await until(lambda: len(held.inside) == 8)
        children = system.whereis("evaluation")._cell.children
        assert children is not None
        next(cell for id, cell in children.items() if "example" in id).ref.kill()
        assert isinstance(await outcome(run), ActorStopped)
        await until(lambda: not held.inside)
        assert left_over(system) == []


async def test_a_system_that_closes_ends_the_evaluation_with_an_error() -> None:
    held = Held(0)
    async with ActorSystem() as system:
        program = await Program(held).start(system)
        run = asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=8))
        await until(lambda: len(held.inside) == 8)
    assert isinstance(await outcome(run), ActorStopped | EvaluationAborted)
    assert not held.inside


# -- cancellation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", [True, False])
async def test_cancelling_the_caller_ends_every_example_and_leaves_nothing(hosted: bool) -> None:
    held = Held()
    async with ActorSystem() as system:
        program = await Program(held).start(system) if hosted else held
        before = asyncio.all_tasks()
        run = asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=8))
        await until(lambda: len(held.inside) == 8)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert (held.inside, left_over(system)) == (set(), [])
        assert asyncio.all_tasks() == before
        held.open.set()
        if hosted:
            assert (await evaluate(program, devset(), exact)).score == 100.0, "the program itself goes on"


async def test_a_metric_that_hangs_holds_up_no_other_example_and_ends_with_the_caller() -> None:
    hanging = asyncio.Event()
    scored: list[str] = []

    async def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        if example.answer == "2":
            try:
                await hanging.wait()
            finally:
                hanging.set()
        scored.append(example.answer)
        return True

    run = asyncio.create_task(evaluate(Held(SIZE), devset(), metric, max_concurrency=2))
    await until(lambda: len(scored) == SIZE - 1)
    assert not run.done()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert hanging.is_set(), "it was cancelled"


async def test_a_metric_that_hangs_in_a_thread_is_left_behind_by_a_timeout() -> None:
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def metric(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        entered.set()
        release.wait(20)
        left.set()
        return True

    run = asyncio.create_task(evaluate(Held(SIZE), devset(1), metric))
    await until(entered.is_set)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert not left.is_set()
    release.set()
    await until(left.is_set)


async def test_a_devset_that_ends_is_the_way_to_stop_early_with_the_scores_so_far() -> None:
    held, stop = Held(), asyncio.Event()

    async def examples() -> AsyncIterator[dspy.Example]:
        for example in devset():
            if stop.is_set():
                return
            yield example

    run = asyncio.create_task(evaluate(held, examples(), exact, max_concurrency=4))
    await until(lambda: len(held.inside) == 4)
    stop.set()
    held.open.set()
    result = await run
    assert (result.score, len(result.results)) == (100.0, 7)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_devset_that_raises_ends_the_evaluation_with_its_error(kind: str) -> None:
    closed = []

    def examples() -> Iterator[dspy.Example]:
        try:
            yield from devset(5)
            raise LookupError("the file ends in the middle")
        finally:
            closed.append("sync")

    async def asynchronous() -> AsyncIterator[dspy.Example]:
        for example in examples():
            yield example

    held = Held(SIZE)
    with pytest.raises(LookupError, match="in the middle"):
        await evaluate(held, examples() if kind == "sync" else asynchronous(), exact, max_concurrency=2)
    assert closed == ["sync"]
    assert (len(held.calls), held.inside) == (5, set())


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_devset_is_closed_when_the_evaluation_is_left_early(kind: str) -> None:
    closed = []

    def examples() -> Iterator[dspy.Example]:
        try:
            yield from devset()
        finally:
            closed.append("sync")

    async def asynchronous() -> AsyncIterator[dspy.Example]:
        with contextlib.closing(held):
            for example in held:
                yield example

    held: Any = examples()

    def fails(question: str) -> str:
        raise ValueError(question)

    with pytest.raises(EvaluationAborted):
        await evaluate(fails, held if kind == "sync" else asynchronous(), exact, max_errors=2, max_concurrency=2)
    assert closed == ["sync"]


# -- outages -----------------------------------------------------------------------------------------------------------


class Outage:
    """A server that fails from its eighth request on, until it is healed."""

    def __init__(self, fault: Fault) -> None:
        self.server = FakeServer(number)
        self.server.script([None] * 8)
        self.server.fail(fault, times=None)


KINDS = [(Answer, True), (SyncAnswer, True), (Answer, False), (SyncAnswer, False)]


async def subject(scene: Scene, kind: Callable[[], dspy.Module], hosted: bool) -> Any:
    return await Program(kind).start(scene.system) if hosted else kind()


@pytest.mark.parametrize(("kind", "hosted"), KINDS)
async def test_an_outage_in_mid_run_is_waited_out_and_every_score_is_true(
    kind: Callable[[], dspy.Module], hosted: bool
) -> None:
    with Outage(Fault.status(500)).server as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            program = await subject(scene, kind, hosted)
            with dspy.context(lm=scene.lm):
                run = asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=8))
                await scene.until("breaker.opened")
                assert not run.done()
                server.heal()
                result = await run
            assert (result.score, dict(result.errors)) == (100.0, {})


@pytest.mark.parametrize(("kind", "hosted"), KINDS)
async def test_an_outage_that_lasts_aborts_and_no_later_call_reaches_the_network(
    kind: Callable[[], dspy.Module], hosted: bool
) -> None:
    with Outage(Fault.status(500)).server as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            program = await subject(scene, kind, hosted)
            with dspy.context(lm=scene.lm):
                with pytest.raises(EvaluationAborted, match="the evaluation 'nightly' was aborted") as aborted:
                    await evaluate(
                        program,
                        devset(),
                        exact,
                        max_concurrency=8,
                        name="nightly",
                        outage_timeout=0.3,
                        system=scene.system,
                    )
                sent = len(server.requests)
                assert aborted.value.reason is aborted.value.__cause__
                assert [event.data["error"] for event in scene.events("evaluation.failed")] == ["EvaluationAborted"]
                assert not scene.events("actor.crashed"), "an abort is nobody's crash"
                server.heal()
                result = await evaluate(program, devset(), exact)
            assert result.score == 100.0, "another run, and the program, go on"
            questions = Counter(str(request.body["messages"][-1]["content"]) for request in server.requests[sent:])
            assert len(server.requests) - sent <= SIZE + 1, "one probe may have been on its way"
            assert len(questions) == SIZE


async def test_an_abort_ends_examples_too_that_do_not_ask_the_lm() -> None:
    held = Held(0)

    async def program(question: str) -> dspy.Prediction:
        if question == "number 2?":
            await until(lambda: len(held.inside) == 2)
            return await Answer().acall(question=question)
        return await held.acall(question=question)

    with FakeServer(number) as server:
        server.fail(Fault.status(401), times=None)
        async with running(server) as scene:
            with dspy.context(lm=scene.lm), pytest.raises(EvaluationAborted):
                await evaluate(program, devset(3), exact)
    assert not held.inside


@pytest.mark.parametrize("fault", [Fault.status(401), Fault.status(403)], ids=["401", "403"])
async def test_a_revoked_key_aborts_at_once(fault: Fault) -> None:
    with Outage(fault).server as server:
        async with running(server) as scene:
            program = await Program(Answer, lm=scene.lm).start(scene.system)
            with pytest.raises(EvaluationAborted) as aborted:
                await evaluate(program, devset(), exact, max_concurrency=4)
            assert isinstance(aborted.value.reason, dspy.LMAuthError)
            assert len(server.requests) <= 8 + 4


async def test_a_budget_that_is_spent_aborts_and_is_that_of_the_runs_name() -> None:
    with FakeServer(number) as server:
        async with running(server, budgets={"run": Budget(calls=10)}) as scene:
            program = await Program(Answer, lm=scene.lm).start(scene.system)
            with pytest.raises(EvaluationAborted) as aborted:
                await evaluate(program, devset(), exact, max_concurrency=4, name="quality")
            assert isinstance(aborted.value.reason, BudgetExceeded)
            assert 8 <= scene.pool.costs()["by_run"]["quality"]["calls"] <= 10
            assert len(server.requests) <= 10


async def test_what_fails_by_its_own_fault_is_a_failure_and_no_outage() -> None:
    with FakeServer(number) as server:
        server.script([None, None, Fault.status(400)])
        async with running(server) as scene:
            program = await Program(Answer, lm=scene.lm).start(scene.system)
            result = await evaluate(program, devset(), exact)
            assert (len(result.errors), result.scores.values.sum()) == (1, SIZE - 1)


async def test_within_another_run_the_abort_is_left_to_its_door() -> None:
    with Outage(Fault.status(500)).server as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            program = await Program(Answer, lm=scene.lm).start(scene.system)
            with pytest.raises(OptimizationAborted, match="'search'"):  # noqa: SIM117 - the door that it is about
                with batch_run("search", raises=OptimizationAborted, outage_timeout=0.3):
                    await evaluate(program, devset(), exact)
            assert left_over(scene.system) == []


async def test_an_evaluation_that_was_aborted_within_a_program_is_no_failure_of_that_program() -> None:
    async def inner(question: str) -> str:
        def fails(question: str) -> str:
            raise ValueError(question)

        await evaluate(fails, devset(3), exact, max_errors=1, name="inner")
        return "never"

    with pytest.raises(EvaluationAborted, match="'inner'"):
        await evaluate(inner, devset(3), exact)


# -- places ------------------------------------------------------------------------------------------------------------


async def test_two_evaluations_of_one_program_run_side_by_side_under_names_of_their_own() -> None:
    held = Held(0)
    async with ActorSystem() as system:
        program = await Program(held).start(system)
        runs = [asyncio.create_task(evaluate(program, devset(), exact, max_concurrency=4)) for _ in range(3)]
        await until(lambda: sum(held.calls.values()) == 12)
        assert left_over(system) == ["evaluation", "evaluation-2", "evaluation-3"]
        held.open.set()
        assert [result.score for result in await asyncio.gather(*runs)] == [100.0] * 3
        assert left_over(system) == []


async def test_a_running_program_is_evaluated_from_another_threads_event_loop() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=MockLM(lambda request: _echo(request)).lm()).start(system)
        result = await asyncio.to_thread(lambda: asyncio.run(evaluate(program, devset(), exact)))
        assert (result.score, left_over(system)) == (100.0, [])


def _echo(request: Any) -> str:
    text: str = request.messages[-1].parts[0].text
    return text.split("number ")[1].split("?", maxsplit=1)[0]


async def test_a_plain_program_is_evaluated_in_a_system_of_ones_own_choice_or_in_none() -> None:
    async with ActorSystem() as system:
        told = hear(system.events, "evaluation.*")
        await evaluate(Held(SIZE), devset(2), exact)
        assert not told
        await evaluate(Held(SIZE), devset(2), exact, system=system)
        assert len(told) == 4


# -- events ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hosted", [True, False])
async def test_the_events_of_an_evaluation_are_one_tree_with_figures_as_they_come(hosted: bool) -> None:
    def fails_at_4(example: dspy.Example, prediction: dspy.Prediction) -> bool:
        if example.answer == "4":
            raise LookupError
        return example.answer in "01"

    async with ActorSystem() as system:
        told = hear(system.events)
        program = await Program(Answer).start(system) if hosted else Answer()
        with dspy.context(lm=MockLM(_echo).lm()):
            await evaluate(program, devset(5), fails_at_4, max_concurrency=1, system=system)
    told = [event for event in told if event.type.split(".")[0] in {"evaluation", "module", "lm"}]
    first, *between, last = told
    assert (first.type, first.data, first.source) == ("evaluation.started", {"examples": 5}, "evaluation")
    assert (last.type, last.data["examples"], last.data["score"]) == ("evaluation.stopped", 5, 40.0)
    scored = [event for event in between if event.type == "evaluation.example"]
    assert [(e.data["index"], e.data["score"], e.data.get("error"), e.data["failed"]) for e in scored] == [
        (0, 1.0, None, 0),
        (1, 1.0, None, 0),
        (2, 0.0, None, 0),
        (3, 0.0, None, 0),
        (4, 0.0, "LookupError", 1),
    ]
    assert [(e.data["done"], round(e.data["average"], 1)) for e in scored] == [
        (1, 100.0),
        (2, 100.0),
        (3, 66.7),
        (4, 50.0),
        (5, 50.0),
    ]
    assert all({*event.data} <= {*(CATALOGUE[event.type].fields or "").split()} for event in told)
    outer = [event for event in between if event.type == "module.started" and event.data["module"] == "Answer"]
    assert len(outer) == 5
    assert {event.parent_id for event in (*scored, *outer)} == {first.call_id}
    assert {event.trace_id for event in told} == {first.trace_id}


async def test_an_evaluation_within_a_running_program_is_told_once_below_that_programs_call() -> None:
    class Outer(dspy.Module):  # type: ignore[misc]
        async def aforward(self) -> dspy.Prediction:
            return await evaluate(Answer(), devset(2), exact, system=system)

    async with ActorSystem() as system:
        told = hear(system.events)
        outer = await Program(Outer, lm=MockLM(_echo).lm()).start(system)
        assert (await outer.acall()).score == 100.0
    (started,) = [event for event in told if event.type == "evaluation.started"]
    (parent,) = [e for e in told if e.type == "module.started" and e.data["module"] == "Outer"]
    assert (started.parent_id, started.trace_id) == (parent.call_id, parent.trace_id)
    answers = [e for e in told if e.type == "module.started" and e.data["module"] == "Answer"]
    assert {event.parent_id for event in answers} == {started.call_id}


async def test_the_events_and_dspys_callbacks_join_on_the_same_id() -> None:
    class Ids(BaseCallback):  # type: ignore[misc]
        def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.evaluation = call_id

    async with ActorSystem() as system:
        told = hear(system.events, "evaluation.*")
        with dspy.context(callbacks=[ids := Ids()]):
            await evaluate(Held(SIZE), devset(2), exact, system=system)
    assert {event.call_id or event.parent_id for event in told} == {ids.evaluation}


async def test_a_cancelled_evaluation_is_told_as_failed() -> None:
    held = Held(0)
    async with ActorSystem() as system:
        told = hear(system.events, "evaluation.failed")
        run = asyncio.create_task(evaluate(held, devset(), exact, system=system))
        await until(lambda: held.inside)
        run.cancel()
        await asyncio.wait({run})
        assert [event.data["error"] for event in told] == ["CancelledError"]


async def test_the_name_of_its_tasks_may_be_taken_by_anything() -> None:
    async with ActorSystem() as system:
        await TaskSupervisor("evaluation").start(system)
        assert (await evaluate(Held(SIZE), devset(), exact, system=system)).score == 100.0
