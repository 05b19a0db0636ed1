"""Hosted modules under fire: parts that are killed, callers that go, threads that are few, loops that end."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest

from promptside import ActorStopped, ActorSystem
from promptside.actors import State
from promptside.errors import ProgramError
from promptside.pools import Endpoint, LMPool
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from promptside.threads import Heartbeat
from tests.support.actors import no_collector, outcome, until

QA = "question -> answer"


class Gate:
    """Holds calls inside a part until it is opened; counts them."""

    def __init__(self) -> None:
        self.inside = 0
        self.open = threading.Event()

    def pass_by(self) -> None:
        self.inside += 1
        assert self.open.wait(10)

    async def pass_by_later(self) -> None:
        self.inside += 1
        await until(self.open.is_set)


class Step(dspy.Module):  # type: ignore[misc]
    """One part: counts its calls, and may be held."""

    def __init__(self, gate: Gate | None = None) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.gate = gate
        self.calls = 0

    def forward(self, question: str) -> str:
        self.calls += 1
        answer = self.predict(question=question).answer
        if self.gate is not None:
            self.gate.pass_by()
        return str(answer)


class AsyncStep(Step):
    async def aforward(self, question: str) -> str:
        self.calls += 1
        answer = (await self.predict.acall(question=question)).answer
        if self.gate is not None:
            await self.gate.pass_by_later()
        return str(answer)


class Rag(dspy.Module):  # type: ignore[misc]
    """Retriever, reranker, generator; one of them may be held."""

    def __init__(self, held: str = "", gate: Gate | None = None, kind: type[Step] = Step) -> None:
        super().__init__()
        self.retrieve, self.rerank, self.generate = (
            kind(gate if name == held else None) for name in ("retrieve", "rerank", "generate")
        )

    def forward(self, question: str) -> dspy.Prediction:
        for step in (self.retrieve, self.rerank, self.generate):
            question = step(question=question)
        return dspy.Prediction(answer=question)


class AsyncRag(Rag):
    def __init__(self, held: str = "", gate: Gate | None = None) -> None:
        super().__init__(held, gate, AsyncStep)

    async def aforward(self, question: str) -> dspy.Prediction:
        for step in (self.retrieve, self.rerank, self.generate):
            question = await step.acall(question=question)
        return dspy.Prediction(answer=question)


class Use(dspy.Module):  # type: ignore[misc]
    """Does what a test gives, with a step."""

    def __init__(self, function: Callable[..., Any], step: Callable[[], dspy.Module] = Step) -> None:
        super().__init__()
        self.function = function
        self.step = step()

    def forward(self, question: str) -> Any:
        return self.function(self, question)


class AsyncUse(Use):
    async def aforward(self, question: str) -> Any:
        return await self.function(self, question)


PARTS = ("retrieve", "rerank", "generate")
KINDS = {"threads": Rag, "awaited": AsyncRag}


def mock() -> dspy.LM:
    return MockLM("yes").lm()


def counts(module: Rag) -> dict[str, int]:
    return {name: getattr(module, name).calls for name in PARTS}


def hosted(program: Program) -> Any:
    """The module that a program runs: state is looked at, not called."""
    return program.module


async def kill(program: Program, path: str) -> None:
    """Kill a part, and return when it runs again."""
    ref = program.submodule(path)
    before = ref.incarnation
    ref.kill()
    await until(lambda: ref.info().incarnation > before and ref.info().uptime > 0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("part", PARTS)
async def test_a_call_inside_a_killed_part_fails_as_started_and_the_others_keep_their_state(
    part: str, kind: type[Rag]
) -> None:
    gate = Gate()
    async with ActorSystem() as system:
        program = await Program(lambda: kind(part, gate), lm=mock()).start(system)
        module = hosted(program)
        objects = [module.retrieve, module.rerank, module.generate, *module.predictors()]
        call = asyncio.create_task(program.acall(question="?"))
        await until(lambda: gate.inside == 1)
        before = counts(module)
        await kill(program, part)
        gate.open.set()
        error = await outcome(call)
        assert isinstance(error, ActorStopped)
        assert error.started
        assert error.path == program.submodule(part).path
        assert counts(module) == {**before, part: 0}, "new state arrives for that part alone"
        assert [module.retrieve, module.rerank, module.generate, *module.predictors()] == objects
        incarnations = {name: program.submodule(name).incarnation for name in (*PARTS, "self", f"{part}.predict")}
        assert incarnations == {name: 2 if name == part else 1 for name in incarnations}
        assert (await program.acall(question="?")).answer == "yes"
        assert program.submodule(f"{part}.predict").info().handled >= 2, "it still runs in its actor"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_killed_program_fails_its_calls_and_leaves_its_parts_alone(kind: type[Rag]) -> None:
    gate = Gate()
    async with ActorSystem() as system:
        program = await Program(lambda: kind("rerank", gate), lm=mock()).start(system)
        calls = [asyncio.create_task(program.acall(question=f"{number}")) for number in range(3)]
        await until(lambda: gate.inside == 3)
        await kill(program, "self")
        gate.open.set()
        for call in calls:
            error = await outcome(call)
            assert isinstance(error, ActorStopped)
            assert error.started
            assert error.path == program.ref.path
        assert counts(hosted(program))["retrieve"] == 3
        assert (await program.acall(question="?")).answer == "yes"
        assert counts(hosted(program)) == {"retrieve": 4, "rerank": 4, "generate": 1}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_with_a_retry_a_killed_part_is_called_again_and_what_came_before_is_not(kind: type[Rag]) -> None:
    gate = Gate()
    async with ActorSystem() as system:
        program = await Program(lambda: kind("rerank", gate), lm=mock(), attempts=2).start(system)
        call = asyncio.create_task(program.acall(question="?"))
        await until(lambda: gate.inside == 1)
        await kill(program, "rerank")
        gate.open.set()
        assert (await call).answer == "yes"
        assert counts(hosted(program)) == {"retrieve": 1, "rerank": 1, "generate": 1}


@pytest.mark.parametrize(
    "part", [part if part == "rerank" else pytest.param(part, marks=pytest.mark.nightly) for part in PARTS]
)
@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_under_load_only_the_calls_inside_a_killed_part_fail_and_none_with_a_retry(
    kind: type[Rag], retries: int, part: str
) -> None:
    gate = Gate()
    async with ActorSystem() as system:
        program = await Program(lambda: kind(part, gate), lm=mock(), attempts=1 + retries, max_threads=10).start(system)
        calls = [asyncio.create_task(program.acall(question=f"{number}")) for number in range(100)]
        inside = 10 if kind is Rag else 100  # as many as have a thread
        await until(lambda: gate.inside == inside)
        before = counts(hosted(program))
        await kill(program, part)
        gate.open.set()
        answers = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        assert len(failed) == (0 if retries else inside), failed[:1]
        assert {getattr(error, "path", error) for error in failed} <= {program.submodule(part).path}
        others = [name for name in PARTS if name != part]
        assert all(counts(hosted(program))[name] >= before[name] for name in others), "state elsewhere is intact"
        assert [program.submodule(name).incarnation for name in (part, *others, "self")] == [2, 1, 1, 1]
        assert (await program.acall(question="?")).answer == "yes"


async def test_a_module_that_came_as_an_instance_gets_its_parameters_back_and_keeps_the_rest() -> None:
    module = Rag()
    demos = module.retrieve.predict.demos = [dspy.Example(question="a", answer="b")]
    async with ActorSystem() as system:
        program = await Program(module, lm=mock()).start(system)
        await program.acall(question="?")
        signature = module.retrieve.predict.signature
        module.retrieve.predict.demos.append(dspy.Example(question="c", answer="d"))
        module.retrieve.predict.signature = dspy.Signature("question -> other")
        await kill(program, "retrieve.predict")
        assert module.retrieve.predict.demos == demos[:1]
        assert module.retrieve.predict.signature is signature
        await kill(program, "retrieve")
        assert module.retrieve.calls == 1


class Sharing(dspy.Module):  # type: ignore[misc]
    """A part that holds another part, its parent, a method of it, and a tool made of that."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = Step()
        self.user = Use(lambda self, question: self.step(question=question), lambda: self.shared)
        self.user.parent = self
        self.user.note = self.note
        self.user.tools = {"note": dspy.Tool(self.note)}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Keep a note."""
        self.notes.append(text)

    def forward(self, question: str) -> dspy.Prediction:
        answer = self.user(question=question)
        self.user.note("method")
        self.user.tools["note"](text="tool")
        return dspy.Prediction(answer=answer, notes=list(self.notes), calls=self.shared.calls)


async def test_a_restarted_part_holds_the_same_parts_and_parent_as_before() -> None:
    async with ActorSystem() as system:
        program = await Program(Sharing, lm=mock()).start(system)
        module = hosted(program)
        await program.acall(question="?")
        await kill(program, "user")
        assert module.user.step is module.shared
        assert module.user.parent is module
        prediction = await program.acall(question="?")
        assert prediction.notes == ["method", "tool"] * 2
        assert prediction.calls == 2


@pytest.mark.parametrize("leave", ["cancelled", "part killed", "program killed", "program stopped"])
async def test_no_later_lm_call_of_a_thread_reaches_the_server_when_its_caller_has_gone(leave: str) -> None:
    ended = threading.Event()

    def five(self: Use, question: str) -> Any:
        try:
            for number in range(5):
                self.step(question=f"{number}")
        finally:
            ended.set()

    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(lambda: Use(five), lm=pool.lm(cache=False)).start(system)
            server.script([None, Fault.hang()])
            call = asyncio.create_task(program.acall(question="?"))
            await server.until(lambda: server.active == 1 and len(server.requests) == 2)
            if leave == "cancelled":
                call.cancel()
            elif leave == "part killed":
                program.submodule("step").kill()
            elif leave == "program killed":
                program.ref.kill()
            else:
                program.submodule("self").kill()
                await program.stop()
            error = await outcome(call)
            assert isinstance(error, asyncio.CancelledError if leave == "cancelled" else ActorStopped)
            await server.until(lambda: server.requests[1].aborted)
            await until(ended.is_set)
            assert len(server.requests) == 2


async def test_no_later_lm_call_of_the_threads_of_a_thread_reaches_the_server_when_the_caller_has_gone() -> None:
    ended = threading.Event()

    def many(self: Use, question: str) -> Any:
        pairs = [(self.step, {"question": f"{number}"}) for number in range(8)]
        try:
            dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
        finally:
            ended.set()

    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            program = await Program(lambda: Use(many), lm=pool.lm(cache=False)).start(system)
            server.fail(Fault.hang(), times=None)
            call = asyncio.create_task(program.acall(question="?"))
            await server.until(lambda: server.active == 2)
            call.cancel()
            assert isinstance(await outcome(call), asyncio.CancelledError)
            await server.until(lambda: all(request.aborted for request in server.requests))
            await until(ended.is_set)
            assert len(server.requests) == 2
            await until(lambda: not program.submodule("step").info().current)


class Slotted(dspy.Module):  # type: ignore[misc]
    __slots__ = ("count",)

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self) -> dspy.Prediction:
        self.count += 1
        return dspy.Prediction(count=self.count)


async def test_a_restart_gives_slots_new_state_too() -> None:
    async with ActorSystem() as system:
        program = await Program(Slotted).start(system)
        assert [(await program.acall()).count for _ in range(2)] == [1, 2]
        await kill(program, "self")
        assert (await program.acall()).count == 1


async def test_more_calls_than_threads_of_modules_nested_in_threads_do_not_wait_for_each_other() -> None:
    def outer() -> Use:
        return Use(
            lambda self, question: dspy.Prediction(answer=self.step(question=question)),
            lambda: Use(lambda self, question: self.step(question=question)),
        )

    async with ActorSystem() as system:
        program = await Program(outer, lm=mock(), max_threads=8).start(system)
        calls = (program.acall(question=f"{number}") for number in range(64))
        answers = await asyncio.wait_for(asyncio.gather(*calls), 30)
        assert {prediction.answer for prediction in answers} == {"yes"}
        assert program.submodule("step.step").info().handled == 64


async def test_a_thread_that_waits_for_another_of_its_program_gets_it_beyond_the_limit() -> None:
    programs: list[Program] = []

    def again(self: Use, question: str) -> dspy.Prediction:
        below = programs[0](question=question[1:]).answer if question else ""
        return dspy.Prediction(answer=f"{below}{self.step(question='?')} ")

    async with ActorSystem() as system:
        programs.append(await Program(lambda: Use(again), lm=mock(), max_threads=1).start(system))
        assert (await asyncio.wait_for(programs[0].acall(question="12"), 10)).answer == "yes yes yes "


async def test_a_thread_of_one_program_counts_against_the_limit_of_another_that_it_calls() -> None:
    inner: list[Program] = []
    inside: list[int] = []

    def outer(self: Use, question: str) -> dspy.Prediction:
        return inner[0](question=question)

    def one(self: Use, question: str) -> dspy.Prediction:
        inside.append(1)
        assert sum(inside) == 1, "two are inside"
        answer = self.step(question=question)
        inside.append(-1)
        return dspy.Prediction(answer=answer)

    async with ActorSystem() as system:
        inner.append(await Program(lambda: Use(one), name="inner", lm=mock(), max_threads=1).start(system))
        program = await Program(lambda: Use(outer), name="outer", lm=mock(), max_threads=8).start(system)
        answers = await asyncio.gather(*(program.acall(question=f"{number}") for number in range(16)))
        assert {prediction.answer for prediction in answers} == {"yes"}
        assert len(inside) == 32


async def test_two_hundred_programs_at_once() -> None:
    async with ActorSystem() as system:
        programs = await asyncio.gather(*(Program(Rag, name=f"rag {n}", lm=mock()).start(system) for n in range(200)))
        answers = await asyncio.wait_for(asyncio.gather(*(program.acall(question="?") for program in programs)), 50)
        assert {prediction.answer for prediction in answers} == {"yes"}
        assert all(counts(hosted(program)) == dict.fromkeys(PARTS, 1) for program in programs)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_a_stop_lets_the_calls_inside_end(kind: type[Rag]) -> None:
    gate = Gate()
    async with ActorSystem() as system:
        program = await Program(lambda: kind("rerank", gate), lm=mock()).start(system)
        call = asyncio.create_task(program.acall(question="?"))
        await until(lambda: gate.inside == 1)
        stopping = asyncio.create_task(program.stop())
        await until(lambda: program.ref.info().state is State.STOPPING)
        gate.open.set()
        assert (await call).answer == "yes"
        await stopping
        with pytest.raises(ActorStopped):
            await program.acall(question="?")


def test_a_thread_whose_event_loop_has_ended_comes_to_its_end() -> None:
    gate, ended, errors = Gate(), threading.Event(), []

    def late(self: Use, question: str) -> Any:
        gate.pass_by()
        try:
            return self.step(question=question)
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            ended.set()

    async def main() -> None:
        async with ActorSystem() as system:
            program = await Program(lambda: Use(late), lm=mock()).start(system)
            call = asyncio.create_task(program.acall(question="?"))
            await until(lambda: gate.inside == 1)
            call.cancel()
            await asyncio.wait({call})

    asyncio.run(main())
    gate.open.set()
    assert ended.wait(5), "it hangs"
    assert len(errors) == 1


async def test_a_call_on_the_event_loop_of_its_program_that_would_block_it_fails_at_once() -> None:
    async def blocking(self: Use, question: str) -> Any:
        return self.step(question=question)

    async with ActorSystem() as system:
        program = await Program(lambda: AsyncUse(blocking), lm=mock()).start(system)
        with pytest.raises(ProgramError, match=r"await self\.step\.acall\(\.\.\.\)"):
            await program.acall(question="?")
        assert program.submodule("step").info().handled == 0


async def in_a_thread_that_the_loop_waits_for(self: Use, question: str) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(contextvars.copy_context().run, self.step, question=question).result()


async def test_a_thread_that_the_event_loop_waits_for_runs_a_module() -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: AsyncUse(in_a_thread_that_the_loop_waits_for), lm=mock()).start(system)
        assert await program.acall(question="?") == "yes"
        assert program.submodule("step").info().handled == 1


async def test_an_event_loop_that_waits_for_threads_which_wait_for_it_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Heartbeat, "SECONDS", 0.02)
    async with ActorSystem() as system:
        program = await Program(lambda: AsyncUse(in_a_thread_that_the_loop_waits_for), lm=mock()).start(system)
        program.submodule("step").suspend()  # else the thread needs no loop
        with pytest.raises(
            ProgramError,
            match=r"the event loop of the program is blocked: 'MainThread' in in_a_thread.*test_hosting\.py, line \d+",
        ):
            await program.acall(question="?")
        program.submodule("step").resume()
        await until(lambda: not program.submodule("step").info().current)
        assert await program.acall(question="?") == "yes"


async def test_a_raw_thread_without_the_caller_s_context_runs_a_module_plainly() -> None:
    def raw(self: Use, question: str) -> Any:
        def work() -> Any:
            with dspy.context(lm=MockLM("plain").lm()):
                return self.step(question=question)

        with ThreadPoolExecutor(1) as pool:
            return dspy.Prediction(answer=pool.submit(work).result(), also=self.step(question=question))

    async with ActorSystem() as system:
        program = await Program(lambda: Use(raw), lm=mock()).start(system)
        prediction = await program.acall(question="?")
        assert (prediction.answer, prediction.also) == ("plain", "yes")
        assert program.submodule("step").info().handled == 1


@pytest.mark.parametrize("many", ["batch", "Evaluate"])
async def test_a_hosted_module_called_by_its_owner_outside_of_its_program_runs_plainly(many: str) -> None:
    devset = [dspy.Example(question=f"{number}", answer="yes").with_inputs("question") for number in range(8)]
    module = Rag()
    async with ActorSystem() as system:
        program = await Program(module).start(system)

        def use(what: Any) -> Any:
            with dspy.context(lm=mock()):
                if many == "batch":
                    return [it.answer for it in what.batch(devset, num_threads=4, disable_progress_bar=True)]
                evaluate = dspy.Evaluate(devset=devset, metric=dspy.evaluate.answer_exact_match, num_threads=4)
                return evaluate(what).score

        assert await asyncio.to_thread(use, module) == (["yes"] * 8 if many == "batch" else 100.0)
        assert all(program.submodule(name).info().handled == 0 for name in PARTS)
        if many == "Evaluate":
            assert await asyncio.to_thread(use, program) == 100.0
            assert all(program.submodule(name).info().handled == 8 for name in PARTS)


# -- agents and LMs ----------------------------------------------------------------------------------------------------


class Expert(dspy.Module):  # type: ignore[misc]
    """An agent whose synchronous tool asks another part of the program."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = dspy.Predict("question -> answer")
        self.react = dspy.ReAct("question -> answer", tools=[self.look_up])

    def look_up(self, query: str) -> str:
        return f"heard {self.expert(question=query).answer}"

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.react.acall(question=question)


async def test_a_synchronous_tool_of_an_agent_may_call_another_part() -> None:
    step = {"next_thought": "hm", "next_tool_name": "look_up", "next_tool_args": {"query": "owls"}}
    end = {"next_thought": "hm", "next_tool_name": "finish", "next_tool_args": {}}
    replies = iter([step, {"answer": "owls fly"}, end, {"reasoning": "so", "answer": "42"}])
    async with ActorSystem() as system:
        program = await Program(Expert, lm=MockLM(lambda _: next(replies)).lm(cache=False)).start(system)
        prediction = await program.acall(question="?")
        assert prediction.trajectory["observation_0"] == "heard owls fly"
        assert prediction.answer == "42"


async def test_a_module_that_brings_its_lm_itself_needs_no_other() -> None:
    class Own(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("question -> answer")
            self.own = [MockLM("own").lm()]

        async def aforward(self, question: str) -> dspy.Prediction:
            with dspy.context(lm=self.own[0]):
                return await self.predict.acall(question=question)

    async with ActorSystem() as system:
        program = await Program(Own).start(system)
        assert (await program.acall(question="?")).answer == "own"


async def test_a_shared_module_is_found_by_each_name_that_dspy_has_for_it() -> None:
    class Inner(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict("question -> answer")

    class Sharing(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first = Inner()
            self.more = [self.first.predict]

    async with ActorSystem() as system:
        program = await Program(Sharing).start(system)
        assert [name for name, _ in program.module.named_predictors()] == ["first.predict"]
        assert program.submodule("first.predict") == program.submodule("more[0]")


@pytest.mark.parametrize("nested", [True, False])
async def test_a_module_that_cancels_itself_fails_its_call_and_nothing_else(nested: bool) -> None:
    class Cancelling(dspy.Module):  # type: ignore[misc]
        async def aforward(self, question: str) -> dspy.Prediction:
            raise asyncio.CancelledError

    class Outer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Cancelling()

        async def aforward(self, question: str) -> dspy.Prediction:
            return await self.inner.acall(question=question)

    async with ActorSystem() as system:
        program = await Program(Outer if nested else Cancelling).start(system)
        for _ in range(5):
            with pytest.raises(ProgramError, match="has cancelled itself"):
                await program.acall(question="?")
        assert program.ref.incarnation == 1


@pytest.mark.parametrize("way", ["fails", "is cancelled", "sub-module is killed", "program is killed"])
async def test_a_failed_call_is_no_cycle_of_references(way: str) -> None:
    class Prompt:
        """Can be counted."""

    class Inner(dspy.Module):
        async def aforward(self, prompt: Prompt) -> dspy.Prediction:
            if way == "fails":
                raise ValueError
            begun.set()
            await asyncio.sleep(60)  # a timer, whose context leads to the call
            raise AssertionError

    class Outer(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        async def aforward(self, prompt: Prompt) -> dspy.Prediction:
            return await self.inner.acall(prompt=prompt)

    begun = asyncio.Event()
    async with ActorSystem() as system:
        program = await Program(Outer, attempts=1).start(system)
        with no_collector():
            prompt = Prompt()
            alive = weakref.ref(prompt)
            call = asyncio.create_task(program.acall(prompt=prompt))
            del prompt
            if way != "fails":
                await begun.wait()
                match way:
                    case "is cancelled":
                        call.cancel()
                    case "sub-module is killed":
                        program.submodule("inner").kill()
                    case "program is killed":
                        program.ref.kill()
            assert isinstance(await outcome(call), BaseException)
            del call
            await until(lambda: alive() is None)
