"""Pipelines that run: what a call returns, the tree they stand in, their events, and what happens under fire."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from typing import Any

import dspy
import pytest

from promptside import ActorStopped, ActorSystem, AskTimeout, Backoff, Supervisor
from promptside.actors import Portal
from promptside.errors import AlreadyRunning, EvaluationAborted, NameTaken, NotStarted, PipelineError
from promptside.events import Content
from promptside.pools import Budget, Endpoint, LMPool, batch_run
from promptside.pools.context.priority import BatchAborted
from promptside.programs import Program
from promptside.programs.pipeline.groups import branch, parallel
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import stage
from promptside.testing import MockLM
from tests.programs.test_pipeline_build import Draft, judge, write
from tests.supervision.test_tasks import elsewhere
from tests.support.actors import Boom, Gate, Worker, hear, outcome, started, until
from tests.support.call_tree import listen, outline
from tests.support.modules import Answer, SyncAnswer, lm

QA = "question -> answer"
SEEN: contextvars.ContextVar[str] = contextvars.ContextVar("seen", default="nothing")


async def search(question: str) -> list[str]:
    return [f"about {question}"]


def shout(answer: str) -> str:
    return answer.upper()


def upper() -> Any:
    return stage(shout, outputs="answer")


def walk(gate: Gate) -> Any:
    """A stage that waits at a gate."""

    async def walk(question: str) -> str:
        return await gate.walk()

    return stage(walk, outputs="answer")


async def fail(question: str) -> str:
    raise Boom(question)


def names(system: ActorSystem) -> list[str]:
    """Paths of all actors."""

    def below(node: Any, path: str) -> list[str]:
        here = f"{path}/{node.name}" if path else node.name
        return [here, *(each for child in node.children for each in below(child, here))]

    return [each for child in system.tree().children for each in below(child, "")]


# -- calls ------------------------------------------------------------------------------------------------------------


async def test_a_call_returns_what_every_stage_gave() -> None:
    async with ActorSystem() as system:
        rag = Pipeline([stage(search, outputs="context"), "context, question -> answer", upper()], lm=lm("yes"))
        assert await rag.start(system) is rag
        prediction = await rag(question="owls")
        assert isinstance(prediction, dspy.Prediction)
        assert dict(prediction.items()) == {"context": ["about owls"], "answer": "YES"}
        example = dspy.Example(question="owls", answer="no").with_inputs("question")
        for same in (await rag({"question": "owls"}), await rag(example), await rag.acall(question="owls")):
            assert same == prediction


async def test_a_call_with_other_fields_than_the_inputs_is_refused() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(lambda question, k=3: question * k, outputs="answer")]).start(system)
        with pytest.raises(
            PipelineError, match=r"'pipeline' was called without 'question'; it takes question, k \(opt"
        ):
            await pipeline(k=2)
        with pytest.raises(PipelineError, match="'pipeline' was called with 'query'; it takes question"):
            await pipeline({"question": "a"}, query="b")
        assert (await pipeline(question="a")).answer == "aaa"
        assert (await pipeline(question="a", k=1)).answer == "a"


async def test_a_pipeline_that_does_not_run_says_how_to_start_it() -> None:
    pipeline = Pipeline([QA])
    for call in (pipeline(question="a"), pipeline.acall(question="a")):
        with pytest.raises(NotStarted, match=r"Pipeline 'pipeline' is not started; `await it\.start\(system\)`"):
            await call
    with pytest.raises(NotStarted, match="not started"):
        pipeline.map([])
    with pytest.raises(NotStarted, match="not started"):
        pipeline.stream(question="a")
    await pipeline.stop()
    async with ActorSystem() as system:
        await pipeline.start(system)
        await pipeline.stop()
        with pytest.raises(ActorStopped):
            await pipeline(question="a")


async def test_a_synchronous_function_runs_in_a_thread_with_the_callers_context() -> None:
    def where(question: str) -> dict[str, Any]:
        return {"thread": threading.get_ident(), "seen": SEEN.get()}

    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(where, outputs="thread, seen")]).start(system)
        SEEN.set("the caller's")
        prediction = await pipeline(question="a")
        assert prediction.thread != threading.get_ident()
        assert prediction.seen == "the caller's"


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"anser": 1}, "'work' returned no 'answer'; return every output, or declare other outputs=; it has anser"),
        (dspy.Prediction(), "'work' returned no 'answer'"),
    ],
)
async def test_a_stage_that_does_not_return_its_outputs_is_named(returned: Any, message: str) -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([stage(lambda: returned, name="work", outputs="answer")]).start(system)
        with pytest.raises(PipelineError, match=message):
            await pipeline()


async def test_one_output_may_be_returned_bare_and_several_may_not() -> None:
    async with ActorSystem() as system:
        one = await Pipeline([stage(lambda: 3, name="one", outputs="n")]).start(system, name="one")
        assert (await one()).n == 3
        two = await Pipeline([stage(lambda: (1, 2), name="two", outputs="a, b")]).start(system, name="two")
        with pytest.raises(PipelineError, match=r"'two' returned a tuple; return a mapping or a .* of its outputs, a"):
            await two()
        none = await Pipeline([stage(lambda: None, name="none", outputs=()), QA], inputs="question", lm=lm("x")).start(
            system, name="none"
        )
        assert (await none(question="a")).answer == "x"


async def test_an_annotated_dataclass_or_model_holds_the_outputs_and_any_other_is_one() -> None:
    async with ActorSystem() as system:
        renamed = stage(write, outputs={"draft": "text"}, inputs={"context": "answer"})
        bare = stage(lambda answer: Draft(answer), name="bare", outputs="object")
        pipeline = await Pipeline([renamed, stage(judge, inputs={"draft": "text"}), bare]).start(system)
        prediction = await pipeline(answer=["a"])
        assert (prediction.text, prediction.verdict) == ("plain: ['a']", True)
        assert prediction.object == Draft(["a"])  # type: ignore[arg-type]


async def test_what_a_stage_raises_reaches_the_caller_as_it_is_with_a_note_of_the_place() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([("strict", stage(fail, outputs="answer"))]).start(system)
        with pytest.raises(Boom) as caught:
            await pipeline(question="a")
        assert caught.value.__notes__ == ["in the stage 'strict'"]
        assert system.statistics().crashed == 0


async def test_the_lm_is_the_calls_then_the_stages_then_the_pipelines() -> None:
    async with ActorSystem() as system:
        stages = [stage(QA, lm=lm("stage")), "question -> second"]
        pipeline = await Pipeline(stages, lm=lm("pipeline")).start(system)
        prediction = await pipeline(question="a")
        assert (prediction.answer, prediction.second) == ("stage", "pipeline")
        prediction = await pipeline(question="a", lm=lm("call"))
        assert (prediction.answer, prediction.second) == ("call", "call")


async def test_a_program_that_runs_already_is_used_as_it_is() -> None:
    async with ActorSystem() as system:
        answer = await Program(Answer, name="qa", lm=lm("mine")).start(system)
        pipeline = await (stage(answer, outputs="answer, calls") >> upper()).start(system)
        assert (await pipeline(question="a")).answer == "MINE"
        await pipeline.stop()
        assert (await answer.acall(question="a")).calls == 2


async def test_a_pipeline_is_called_from_other_loops_and_threads() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA, upper()], lm=lm("x")).start(system)
        portal = Portal(system)
        assert (await elsewhere(lambda: pipeline(question="q"))).answer == "X"
        assert (await asyncio.to_thread(lambda: portal.call(pipeline(question="q")))).answer == "X"


async def test_usage_is_counted_as_for_a_module() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA, "answer -> end"], lm=lm("x")).start(system)
        with dspy.context(track_usage=True):
            prediction = await pipeline(question="q")
        assert prediction.get_lm_usage()["mock/mock"]["completion_tokens"] > 0
        with dspy.track_usage() as tracker:
            await pipeline(question="q")
        assert tracker.get_total_tokens() == prediction.get_lm_usage()
        assert (await pipeline(question="q")).get_lm_usage() is None


async def test_a_deadline_of_the_caller_holds_for_the_pipeline() -> None:
    async with ActorSystem() as system:
        gate = Gate()
        pipeline = await Pipeline([walk(gate)]).start(system)
        worker = await system.spawn(Worker)

        async def call(_: Worker) -> Any:
            return await pipeline(question="a")

        with pytest.raises(AskTimeout):
            await worker.with_options(timeout=0.05).ask(Worker.call, call)
        await until(lambda: gate.outcome == "cancelled")


# -- parallel and branch ----------------------------------------------------------------------------------------------


async def test_parallel_stages_run_at_the_same_time_and_are_merged() -> None:
    async with ActorSystem() as system:
        meet = asyncio.Barrier(2)

        async def arm(question: str) -> str:
            await meet.wait()
            return question

        both = parallel(stage(arm, outputs="a"), stage(arm, outputs="b"))
        pipeline = await (both >> stage(lambda a, b: a + b, outputs="c")).start(system)
        assert dict((await pipeline(question="x")).items()) == {"a": "x", "b": "x", "c": "xx"}


async def test_one_stage_may_stand_twice_beside_itself() -> None:
    async with ActorSystem() as system:
        seen: list[str] = []
        note = stage(lambda question: seen.append(question), name="note", outputs=())
        pipeline = await Pipeline([parallel(note, note, stage(search, outputs="context"))]).start(system)
        await pipeline(question="q")
        assert seen == ["q", "q"]


async def test_the_first_parallel_stage_that_fails_cancels_the_others_and_is_what_is_raised() -> None:
    async with ActorSystem() as system:
        gate = Gate()

        async def fail_later(question: str) -> None:
            await gate.entered.wait()
            raise Boom

        pipeline = await Pipeline([parallel(walk(gate), fail_later)]).start(system)
        with pytest.raises(Boom):
            await pipeline(question="a")
        assert gate.outcome == "cancelled"


async def test_a_parallel_stage_that_cancels_itself_cancels_the_call() -> None:
    async with ActorSystem() as system:

        async def give_up(question: str) -> None:
            raise asyncio.CancelledError

        pipeline = await Pipeline([parallel(give_up, stage(search, outputs="context"))]).start(system)
        with pytest.raises(ActorStopped):
            await pipeline(question="a")
        await until(lambda: names(system) == ["pipeline", "pipeline/calls"])


async def test_a_branch_runs_the_stage_of_the_case() -> None:
    async with ActorSystem() as system:
        by_kind = branch("kind", {"loud": upper(), "quiet": stage(lambda answer: answer.lower(), outputs="answer")})
        pipeline = await Pipeline([by_kind]).start(system)
        assert (await pipeline(kind="loud", answer="Yes")).answer == "YES"
        assert (await pipeline(kind="quiet", answer="Yes")).answer == "yes"
        for kind in ("odd", ["unhashable"]):
            with pytest.raises(
                PipelineError, match=r"'branch on kind' has no case .*; add it to 'loud', 'quiet', or give"
            ):
                await pipeline(kind=kind, answer="Yes")


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_branch_may_ask_a_function_and_have_a_stage_for_the_rest(asynchronous: bool) -> None:
    def is_loud(answer: str) -> bool:
        return answer.endswith("!")

    async def is_loud_later(answer: str) -> bool:
        return answer.endswith("!")

    async with ActorSystem() as system:
        on = is_loud_later if asynchronous else is_loud
        pipeline = await Pipeline([branch(on, {True: upper()}, otherwise=stage(lambda: "no", outputs="answer"))]).start(
            system
        )
        assert (await pipeline(answer="yes!")).answer == "YES!"
        assert (await pipeline(answer="yes")).answer == "no"


async def test_an_error_in_a_condition_is_the_callers_and_says_where() -> None:
    def is_odd(answer: str) -> bool:
        raise Boom(answer)

    async with ActorSystem() as system:
        pipeline = await Pipeline([branch(is_odd, {True: upper()})]).start(system)
        with pytest.raises(Boom) as caught:
            await pipeline(answer="a")
        assert caught.value.__notes__ == ["in the condition of the branch on is_odd"]
        with pytest.raises(Boom):
            await pipeline(answer="b")


# -- the tree ---------------------------------------------------------------------------------------------------------


async def test_stages_stand_in_the_tree_under_their_names() -> None:
    async with ActorSystem() as system:
        given = Program(Answer, name="given")
        inner = Pipeline([("first", QA), upper()], name="inner")
        pipeline = Pipeline(
            [
                stage(search, outputs="context"),
                ("answer", stage(SyncAnswer, outputs="answer")),
                parallel(("left", "answer -> left"), ("right", dspy.Predict("answer -> right"))),
                branch("left", {"x": stage(given, inputs={"question": "left"}, outputs={"answer": "last"})}),
                stage(inner, inputs={"question": "last"}, outputs={"answer": "end"}),
            ],
            lm=lm("x"),
            strategy="rest_for_one",
        )
        await pipeline.start(system, name="rag")
        assert [name for name in names(system) if name.count("/") < 2] == [
            "rag", "rag/answer", "rag/left", "rag/right", "rag/given", "rag/inner", "rag/calls"
        ]  # fmt: skip
        assert "rag/inner/first" in names(system)
        paths = {"rag": "rag", "rag.answer": "rag/answer", "given": "rag/given", "inner.first": "rag/inner/first"}
        assert {name: system.whereis(name).path for name in paths} == paths
        prediction = await pipeline(question="q", lm=lm("x"))
        assert prediction.end == "X"
        assert (await given.acall(question="q", lm=lm("x"))).answer == "x"
        assert (await inner(question="q", lm=lm("y"))).answer == "Y"


async def test_two_pipelines_may_share_a_stage_and_each_has_its_own() -> None:
    async with ActorSystem() as system:
        shared = stage(Answer, outputs="answer, calls")
        one = await (shared >> upper()).start(system, name="one")
        two = await (shared >> stage(shout, outputs="loud")).start(system, name="two")
        for pipeline in (one, two, two):
            prediction = await pipeline(question="q", lm=lm("x"))
        assert prediction.calls == 2
        assert {"one/Answer", "two/Answer"} <= set(names(system))


async def test_a_program_that_stands_in_several_stages_is_started_once() -> None:
    async with ActorSystem() as system:
        qa = Program(Answer, name="qa", lm=lm("x"))
        first = stage(qa, name="first", outputs={"answer": "draft", "calls": "before"})
        pipeline = await Pipeline(
            [first, stage(qa, name="second", inputs={"question": "draft"}, outputs="calls")]
        ).start(system)
        prediction = await pipeline(question="q")
        assert (prediction.before, prediction.calls) == (1, 2)
        assert [name for name in names(system) if name.count("/") == 1] == ["pipeline/first", "pipeline/calls"]


async def test_the_program_of_a_stage_can_be_had_by_its_name() -> None:
    async with ActorSystem() as system:
        pipeline = Pipeline([stage(search, outputs="context"), ("write", QA)], lm=lm("x"))
        with pytest.raises(NotStarted, match="not started"):
            pipeline.program("write")
        await pipeline.start(system)
        assert (await pipeline.program("write").acall(question="q")).answer == "x"
        with pytest.raises(KeyError, match="the pipeline 'pipeline' has no program 'search', but 'write'"):
            pipeline.program("search")


async def test_a_swapped_program_stays_swapped_when_the_pipeline_is_restarted() -> None:
    async with ActorSystem() as system:
        model = MockLM("x")
        pipeline = await Pipeline([("write", dspy.ChainOfThought(QA))], lm=model.lm()).start(system)
        program = pipeline.program("write")
        await program.swap_state(dspy.ChainOfThought(dspy.Signature(QA, "Answer in rhymes.")).dump_state())
        await pipeline.stop()
        await pipeline.start(system)
        assert pipeline.program("write") is program
        await pipeline(question="q")
        assert "Answer in rhymes." in str(model.requests[-1])


async def test_a_pipeline_stands_in_one_place_at_a_time() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA]).start(system, name="one")
        with pytest.raises(AlreadyRunning, match="Pipeline 'one' runs already, at 'one'"):
            await pipeline.start(system, name="two")
        assert pipeline.name == "one"
        with pytest.raises(NameTaken):
            await Pipeline([QA]).start(system, name="one")
        await pipeline.stop()
        await pipeline.start(system, name="three")
        assert (await pipeline(question="q", lm=lm("x"))).answer == "x"


async def test_the_handle_goes_on_when_the_whole_pipeline_is_restarted() -> None:
    async with ActorSystem() as system:
        elsewhere = await Program(Answer, name="elsewhere", lm=lm("x")).start(system)
        stages = [stage(elsewhere, outputs="answer"), ("again", "answer -> end"), Pipeline(["end -> b"], outputs="b")]
        pipeline = Pipeline(stages, name="rag", lm=lm("x"))
        supervisor = await system.spawn(Supervisor, [pipeline.child_spec(backoff=Backoff(initial=0.01))])
        assert (await pipeline(question="q", lm=lm("x"))).end == "x"
        restarted = hear(system.events, "actor.restarted")
        supervised = await supervisor.ask(Supervisor.child, "rag")
        elsewhere_before = elsewhere.ref.incarnation
        supervised.kill()
        await until(lambda: restarted and supervised.info().state.value == "running")
        assert (await pipeline(question="q", lm=lm("x"))).b == "x"
        assert elsewhere.ref.incarnation == elsewhere_before
        assert supervised.incarnation == 2


async def test_a_stage_is_restarted_as_its_stage_says() -> None:
    async with ActorSystem() as system:
        pipeline = Pipeline([stage(QA, name="qa", restart="temporary"), upper()], lm=lm("x"))
        await pipeline.start(system)
        program = system.whereis("pipeline.qa")
        program.kill()
        await until(lambda: "pipeline/qa" not in names(system))
        with pytest.raises(ActorStopped):
            await pipeline(question="q")


async def test_nothing_of_a_pipeline_outlives_it() -> None:
    async with ActorSystem() as system:
        before = threading.active_count()
        gate = Gate()
        pipeline = await Pipeline([walk(gate), Pipeline([upper()], outputs="answer")]).start(system)
        call = await started(pipeline(question="q"))
        await gate.entered.wait()
        await pipeline.stop()
        assert isinstance(await outcome(call), ActorStopped)
        assert gate.outcome == "cancelled"
        assert names(system) == []
        assert threading.active_count() == before


# -- under fire -------------------------------------------------------------------------------------------------------


async def test_a_stage_that_crashes_in_mid_run_fails_its_calls_and_the_pipeline_goes_on() -> None:
    async with ActorSystem() as system:
        gate = Gate()

        class Slow(dspy.Module):  # type: ignore[misc]
            async def aforward(self, question: str) -> dspy.Prediction:
                await gate.walk()
                return dspy.Prediction(answer="slow")

        pipeline = Pipeline([("slow", stage(Slow, outputs="answer")), ("other", "answer -> end")], lm=lm("x"))
        await pipeline.start(system)
        call = await started(pipeline(question="q"))
        await gate.entered.wait()
        other = system.whereis("pipeline.other")
        stopped = hear(system.events, "actor.crashed")
        system.whereis("pipeline.slow").kill()
        error = await outcome(call)
        assert isinstance(error, ActorStopped)
        assert error.started
        assert error.__notes__ == ["in the stage 'slow'"]
        gate.open.set()
        assert (await pipeline(question="q")).end == "x"
        assert other.incarnation == 1
        assert all(event.source.startswith("pipeline/slow") for event in stopped)


async def test_a_caller_that_is_cancelled_cancels_the_call_and_harms_nothing() -> None:
    async with ActorSystem() as system:
        gate, other = Gate(), Gate()
        pipeline = await Pipeline([branch("question", {"a": walk(gate), "b": walk(other)})]).start(system)
        call, bystander = await started(pipeline(question="a")), await started(pipeline(question="b"))
        await gate.entered.wait()
        call.cancel()
        assert isinstance(await outcome(call), asyncio.CancelledError)
        assert gate.outcome == "cancelled"
        other.open.set()
        assert (await bystander).answer == "passed"
        assert names(system) == ["pipeline", "pipeline/calls"]


async def test_a_killed_call_is_not_the_end_of_the_others() -> None:
    async with ActorSystem() as system:
        gate = Gate()
        pipeline = await Pipeline([walk(gate)]).start(system)
        one, two = await started(pipeline(question="a")), await started(pipeline(question="b"))
        await gate.entered.wait()
        calls = system.whereis("pipeline")._cell.children
        assert calls is not None
        first = next(iter((calls["calls"].children or {}).values()))
        first.ref.kill()
        assert isinstance(await outcome(one), ActorStopped)
        gate.open.set()
        assert (await two).answer == "passed"


async def test_hundreds_of_calls_at_a_time_each_get_their_own_answer() -> None:
    def echo(request: Any) -> str:
        return str(request.messages[-1].parts[0].text.split("<<")[1].split(">>")[0])

    async with ActorSystem() as system:
        rag = Pipeline([stage(search, outputs="context"), "context, question -> answer"], lm=MockLM(echo).lm())
        await rag.start(system)
        predictions = await asyncio.gather(*(rag(question=f"<<{number}>>") for number in range(200)))
        assert [prediction.answer for prediction in predictions] == [str(number) for number in range(200)]


@pytest.mark.parametrize("way", ["call", "map", "stream", "parallel", "function with a group", "module with a group"])
async def test_what_aborts_a_batch_run_passes_through_and_crashes_nothing(way: str) -> None:
    async with ActorSystem() as system:
        endpoint = Endpoint("mock/model", engine=MockLM("yes"))
        pool = await LMPool([endpoint], budget=Budget(calls=1)).start(system)
        program = await Program(Answer, lm=pool.lm(cache=False), name="grouped").start(system)

        async def grouped(question: str) -> dspy.Prediction:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(program.acall(question=question))
            return task.result()

        class Grouped(dspy.Module):  # type: ignore[misc]
            async def aforward(self, question: str) -> dspy.Prediction:
                return await grouped(question)

        groups = {"function with a group": grouped, "module with a group": Grouped, "parallel": parallel(QA)}
        work = stage(groups.get(way, QA), outputs="answer")
        pipeline = await Pipeline([work], lm=pool.lm(cache=False)).start(system)
        await pipeline(question="q")
        crashed = hear(system.events, "actor.crashed")
        with pytest.raises(EvaluationAborted), batch_run("nightly"), pytest.raises(BatchAborted):
            if way == "map":
                async for _ in pipeline.map([{"question": "q"}], return_exceptions=True):
                    pass
            elif way == "stream":
                async for _ in pipeline.stream(question="q"):
                    pass
            else:
                await pipeline(question="q")
        assert crashed == []


# -- events -----------------------------------------------------------------------------------------------------------


async def test_a_call_is_one_tree_of_spans() -> None:
    async with ActorSystem() as system:
        inner = Pipeline([("first", stage(Answer, outputs="answer"))], name="inner")
        pipeline = Pipeline(
            [stage(search, outputs="context"), ("write", "context, question -> draft"),
             stage(inner, inputs={"question": "draft"}), parallel(("left", "answer -> left"))],
            lm=lm("x"),
        )  # fmt: skip
        await pipeline.start(system, name="rag")
        told = listen(system)
        await pipeline(question="q", lm=lm("x"))
        assert outline(told).splitlines() == [
            "pipeline rag",
            "  module Predict",
            "    lm.call mock/mock",
            "  pipeline inner",
            "    module Answer",
            "      module predict",
            "        lm.call mock/mock",
            "  module Predict",
            "    lm.call mock/mock",
        ]


async def test_a_failed_call_is_told_as_failed() -> None:
    async with ActorSystem(content=Content()) as system:
        told = listen(system, "pipeline.*")
        pipeline = await Pipeline([stage(fail, outputs="answer")]).start(system)
        with pytest.raises(Boom):
            await pipeline(question="q")
        first, last = told
        assert (first.type, first.data["inputs"]) == ("pipeline.started", {"question": "q"})
        assert (last.type, last.data["error"], last.data["message"]) == ("pipeline.failed", "Boom", "q")


async def test_with_nobody_listening_a_programs_call_below_still_has_its_parent() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA], lm=lm("x")).start(system)
        told = listen(system, "module.started")
        spans = listen(system, "pipeline.started")
        await pipeline(question="q")
        assert [event.parent_id for event in told] == [event.call_id for event in spans]


async def test_a_pipeline_called_by_a_module_is_told_below_it() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline([QA], lm=lm("x")).start(system, name="rag")

        class Desk(dspy.Module):  # type: ignore[misc]
            async def aforward(self, question: str) -> dspy.Prediction:
                return await pipeline(question=question)

        desk = await Program(Desk, lm=lm("x")).start(system)
        told = listen(system)
        await desk.acall(question="q")
        assert outline(told).splitlines() == [
            "module Desk",
            "  pipeline rag",
            "    module Predict",
            "      lm.call mock/mock",
        ]


async def test_an_output_may_have_the_name_of_a_parameter_of_predictions() -> None:
    async with ActorSystem() as system:
        pipeline = await Pipeline(["question -> base"], lm=MockLM({"base": "x"}).lm()).start(system)
        assert dict((await pipeline.acall(question="?")).items()) == {"base": "x"}
