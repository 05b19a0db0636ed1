"""`promptside.programs.Program`: a DSPy program under supervision, and the handle that is called."""

from __future__ import annotations

import asyncio
import functools
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from promptside import ActorStartError, ActorStopped, ActorSystem
from promptside.actors import State
from promptside.errors import NameTaken, NotStarted
from promptside.pools import Endpoint, LMPool
from promptside.programs import Program, execute
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import doomed_system, until
from tests.support.modules import Answer, Failing, SyncAnswer, lm


async def test_a_program_is_called_as_its_module_was() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("42")).start(system)
        assert isinstance(program, Program)
        assert (await program.acall(question="what?")).answer == "42"
        assert (await program.acall(question="what?", lm=lm("other"))).answer == "other"
        with dspy.context(lm=lm("context")):
            assert (await program.acall(question="what?")).answer == "context"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Answer, "Answer"),
        (Answer(), "Answer"),
        (functools.partial(dspy.Predict, "question -> answer"), "program"),
    ],
)
async def test_a_program_is_found_under_its_name(source: Any, name: str) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=lm("yes")).start(system)
        assert system.whereis(name).path == name
        assert program.ref.path == f"{name}/forward"
        other = await Program(source, name="other", lm=lm("no")).start(system)
        assert (await program.acall(question="?")).answer == "yes"
        assert (await other.acall(question="?")).answer == "no"


async def test_a_program_on_a_pool_answers_many_callers_at_once() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            for source in (Answer, SyncAnswer):
                program = await Program(source, lm=pool.lm(cache=False)).start(system)
                answers = await asyncio.gather(*(program.acall(question=f"{number}") for number in range(50)))
                assert {prediction.answer for prediction in answers} == {"yes"}
            assert len(server.requests) == 100


async def test_programs_of_different_callers_keep_to_their_lms() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer).start(system)
        models = [lm(f"model {number}") for number in range(10)]

        async def call(number: int) -> bool:
            with dspy.context(lm=models[number % 10]):
                return bool((await program.acall(question=f"call {number}")).answer == f"model {number % 10}")

        assert all(await asyncio.gather(*(call(number) for number in range(100))))


async def test_a_call_inside_a_crash_fails_as_started_and_the_same_handle_goes_on_with_new_state() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(Answer, lm=pool.lm(cache=False)).start(system)
            assert (await program.acall(question="?")).calls == 1
            assert (await program.acall(question="?")).calls == 2
            server.fail(Fault.hang())
            call = asyncio.create_task(program.acall(question="inside"))
            await server.until(lambda: server.active == 1)
            program.ref.kill()
            with pytest.raises(ActorStopped) as caught:
                await call
            assert caught.value.started
            assert caught.value.incarnation == 1
            await server.until(lambda: server.requests[2].aborted)
            assert (await program.acall(question="?")).calls == 1, "a factory gives new state"
            assert program.ref.incarnation == 2


async def test_an_instance_keeps_its_attributes_across_a_restart() -> None:
    module = Answer()
    async with ActorSystem() as system:
        program = await Program(module, lm=lm("yes")).start(system)
        assert (await program.acall(question="?")).calls == 1
        program.ref.kill()
        assert (await program.acall(question="?")).calls == 2
        assert program.ref.incarnation == 2


async def test_a_call_that_finds_the_program_restarting_waits_for_it() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("yes")).start(system)
        program.ref.kill()
        answers = await asyncio.gather(*(program.acall(question=f"{number}") for number in range(20)))
        assert {prediction.answer for prediction in answers} == {"yes"}
        assert program.ref.incarnation == 2


async def test_an_exception_of_the_module_is_the_answer() -> None:
    async with ActorSystem() as system:
        program = await Program(Failing).start(system)
        odd = LookupError("odd")
        with pytest.raises(LookupError) as caught:
            await program.acall(error=odd)
        assert caught.value is odd
        assert (await program.acall(error=None)).answer == "well"
        assert program.ref.incarnation == 1


async def test_a_factory_that_fails_says_so_at_the_start() -> None:
    def broken() -> dspy.Module:
        raise RuntimeError("no weights")

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError) as caught:
            await Program(broken).start(system)
        assert "no weights" in str(caught.value)
        assert system.tree().children == ()


async def test_a_program_whose_restarts_fail_is_given_up_and_says_so() -> None:
    starts = 0

    def once() -> dspy.Module:
        nonlocal starts
        starts += 1
        if starts > 1:
            raise RuntimeError("no weights any more")
        return Failing()

    async with doomed_system() as system:
        async with system.events.subscribe("supervisor.gave_up") as stream:
            program = await Program(once).start(system)
            program.ref.kill()
            await anext(stream)
        with pytest.raises(ActorStopped) as caught:
            await program.acall(error=None)
        assert not caught.value.started
        assert starts == 4, "the start and three restarts; a fourth would be too many"


async def test_a_stopped_program_finishes_its_calls_and_takes_no_more() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(Answer, lm=pool.lm(cache=False)).start(system)
            server.fail(Fault.hang())
            call = asyncio.create_task(program.acall(question="?"))
            await server.until(lambda: server.active == 1)
            stopping = asyncio.create_task(program.stop())
            server.release()
            assert (await call).answer == "yes"
            await stopping
            with pytest.raises(ActorStopped) as caught:
                await program.acall(question="late")
            assert not caught.value.started
            assert caught.value.retry_after is None


async def test_stock_modules_run_as_programs() -> None:
    mock = MockLM({"default": {"reasoning": "because", "answer": "yes"}})
    async with ActorSystem() as system:
        for name, source in {
            "predict": functools.partial(dspy.Predict, "question -> answer"),
            "thought": functools.partial(dspy.ChainOfThought, "question -> answer"),
            "best": lambda: dspy.BestOfN(
                dspy.Predict("question -> answer"), N=2, reward_fn=lambda *_: 1.0, threshold=0.5
            ),
        }.items():
            program = await Program(source, name=name, lm=mock.lm()).start(system)
            assert (await program.acall(question="?")).answer == "yes"


async def test_programs_without_a_name_are_numbered_and_one_with_a_taken_name_is_refused() -> None:
    async with ActorSystem() as system:
        programs = [await Program(lambda: dspy.Predict("question -> answer")).start(system) for _ in range(3)]
        assert [program.ref.path for program in programs] == [
            f"{n}/forward" for n in ("program", "program-2", "program-3")
        ]
        with pytest.raises(NameTaken):
            await Program(lambda: dspy.Predict("question -> answer"), name="program").start(system)


@pytest.mark.parametrize(
    "wrong", [{"lm": 5}, {"content": 5}, {"max_threads": 0}, {"attempts": 0}, {"attempts": 1.5}, {"timeout": 0}]
)
def test_a_setting_that_is_not_valid_is_named(wrong: dict[str, Any]) -> None:
    [(field, value)] = wrong.items()
    with pytest.raises(ValueError, match=f"Program: {field}={value}: give"):
        Program(Answer, **wrong)


class Asked(dspy.Signature):  # type: ignore[misc]
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


async def make_later() -> dspy.Module:
    raise AssertionError


@pytest.mark.parametrize("source", ["question -> answer", {"inputs": ["question"], "outputs": ["answer"]}, Asked])
def test_a_signature_is_no_program_and_the_error_says_how_to_make_it_one(source: Any) -> None:
    with pytest.raises(ValueError, match=r"^Program: source=.*: for a signature, `await create_program\(system, sig"):
        Program(source)


@pytest.mark.parametrize("source", [5, None, int, make_later])
def test_what_makes_no_module_is_refused_before_the_start(source: Any) -> None:
    with pytest.raises(ValueError, match=r"^Program: source=.*: give a module, its class or another factory$"):
        Program(source)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lm": 5}, r"^Program: lm=5: give a dspy\.LM, such as `pool\.lm\(\)`, or None$"),
        ({"timeout": True}, "^Program: timeout=True: give seconds > 0$"),
        ({"streamed": "answer"}, r"^Program\.stream: streamed='answer': give a list of fields, such as \[\"answer"),
        ({"streamed": 5}, r"^Program\.stream: streamed=5: give a list of fields"),
        ({"streamed": [5]}, r"^Program\.stream: streamed=\[5\]: give a list of fields"),
        ({"status": 5}, r"^Program\.stream: status=5: give a StatusMessageProvider"),
    ],
)
async def test_an_argument_of_a_call_that_is_not_valid_is_named_before_it_begins(
    wrong: dict[str, Any], message: str
) -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("yes")).start(system)
        with pytest.raises(ValueError, match=message):
            program.stream(question="?", **wrong)
        if wrong.keys() <= {"lm", "timeout"}:
            with pytest.raises(ValueError, match=message):
                await program.acall(question="?", **wrong)


# -- from synchronous code ---------------------------------------------------------------------------------------------


async def test_a_program_is_called_from_threads_in_their_own_context() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("program")).start(system)

        def call(number: int) -> str:
            with dspy.context(lm=lm(f"model {number}")):
                return str(program(question="?").answer)

        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(20) as threads:  # not asyncio's own, which DSPy's cache needs
            answers = await asyncio.gather(*(loop.run_in_executor(threads, call, number) for number in range(20)))
        assert answers == [f"model {number}" for number in range(20)]
        with pytest.raises(RuntimeError, match="await `acall` instead"):
            program(question="?")


async def test_a_thread_that_calls_a_program_for_a_caller_who_has_gone_is_let_go() -> None:
    class Calling(dspy.Module):  # type: ignore[misc]
        def __init__(self, inner: Program) -> None:
            super().__init__()
            self.inner = [inner]

        def forward(self) -> dspy.Prediction:
            try:
                return self.inner[0](question="?")
            except BaseException as error:
                ends.append(type(error).__name__)
                raise

    ends: list[str] = []
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            inner = await Program(Answer, lm=pool.lm(cache=False)).start(system)
            outer = await Program(lambda: Calling(inner), lm=pool.lm()).start(system)
            server.fail(Fault.hang())
            call = asyncio.create_task(outer.acall())
            await server.until(lambda: server.active == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.until(lambda: server.requests[0].aborted)
            await until(lambda: ends == ["CallCancelled"])


# -- its life ----------------------------------------------------------------------------------------------------------


async def test_a_stop_with_a_drain_lets_calls_under_way_end_and_takes_no_more() -> None:
    gate = asyncio.Event()

    class Held(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.answer = Answer()

        async def aforward(self, question: str) -> dspy.Prediction:
            await gate.wait()
            return await self.answer.acall(question=question)

    async with ActorSystem() as system:
        program = await Program(Held, lm=lm("yes")).start(system)
        call = asyncio.create_task(program.acall(question="?"))
        await until(lambda: program.ref.info().current)
        stop = asyncio.create_task(program.stop(drain=600))
        await until(lambda: program.ref.state is not State.RUNNING)
        with pytest.raises(ActorStopped):
            await program.acall(question="too late")
        gate.set()
        await stop
        assert (await call).answer == "yes"
        await program.start(system)
        assert (await program.acall(question="again")).answer == "yes"


def test_a_script_needs_no_event_loop_of_its_own() -> None:
    with Program(Answer, lm=lm("yes")) as program:
        assert program(question="?").answer == "yes"
        assert program({"question": "?"}).answer == "yes"
        assert repr(program) == "<Program Answer running, version 1>"
    assert not program.running


async def test_inputs_are_keywords_or_a_mapping_or_an_example_in_every_way_to_call_a_program() -> None:
    example = dspy.Example(question="?", answer="no input").with_inputs("question")
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("yes")).start(system)
        for inputs in ({"question": "?"}, example):
            assert (await program.acall(inputs)).answer == "yes"
            with ThreadPoolExecutor(1) as threads:
                assert (await asyncio.get_running_loop().run_in_executor(threads, program, inputs)).answer == "yes"
            assert [piece.prediction async for piece in program.stream(inputs)][-1].answer == "yes"
            assert (await execute(program, inputs)).answer == "yes"
        assert (await execute(program, question="?")).answer == "yes"
        with pytest.raises(ValueError, match=r"inputs='\?': give a mapping of inputs by name"):
            await execute(program, "?")  # type: ignore[arg-type]


async def test_an_input_named_as_an_option_of_the_call_goes_into_the_mapping() -> None:
    class Named(dspy.Module):  # type: ignore[misc]
        async def aforward(self, timeout: str, lm: str) -> dspy.Prediction:
            return dspy.Prediction(answer=timeout + lm)

    async with ActorSystem() as system:
        program = await Program(Named).start(system)
        assert (await program.acall({"timeout": "a", "lm": "b"})).answer == "ab"


# -- streaming ---------------------------------------------------------------------------------------------------------


async def test_the_fields_of_a_program_are_read_while_they_are_written_and_its_prediction_comes_last() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("one two three four five six seven")).start(system)
        *pieces, last = [piece async for piece in program.stream(question="?", streamed=["answer"])]
        assert len(pieces) > 1
        assert {(piece.predictor, piece.field) for piece in pieces} == {("predict", "answer")}
        assert {piece.prediction for piece in pieces} == {None}
        assert [piece.is_last for piece in pieces].index(True) == len(pieces) - 1
        assert isinstance(last.prediction, dspy.Prediction)
        assert "".join(piece.text for piece in pieces) == last.prediction.answer == "one two three four five six seven"
        with pytest.raises(NotStarted, match="Program 'Answer' is not started"):
            Program(Answer).stream(question="?")


async def test_leaving_a_stream_early_cancels_the_call_and_nothing_else() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(Answer, lm=pool.lm(cache=False)).start(system)
            server.fail(Fault.hang())
            stream = program.stream({"question": "?"})
            reader = asyncio.create_task(anext(stream))
            await server.until(lambda: server.active == 1)
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            await stream.aclose()
            await server.until(lambda: server.requests[0].aborted)
            assert (await program.acall(question="?")).answer == "yes"
            assert program.ref.incarnation == 1


def test_a_thread_that_calls_a_program_whose_loop_does_not_run_is_told_so() -> None:
    program = Program(Answer)
    with pytest.raises(NotStarted, match="start"):
        program(question="?")

    async def start() -> None:
        async with ActorSystem() as system:
            await program.start(system)

    asyncio.run(start())
    with pytest.raises(ActorStopped, match="closed"):
        program(question="?")
    gc.collect()  # a coroutine that was never awaited is a warning then
