"""Versions of a program: state and modules that are swapped under load, rolled back, saved and loaded."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request

from promptside import ActorSystem, Supervisor
from promptside.errors import NotStarted, ProgramError
from promptside.programs import Program, execute, list_programs, set_default_lm
from promptside.programs.hosting.versions import KEPT
from promptside.testing import MockLM
from tests.support.actors import until
from tests.support.modules import Answer


class Two(dspy.Module):  # type: ignore[misc]
    """Asks two predictors, one after the other, and says what both have said."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")
        self.calls = 0

    async def aforward(self, question: str) -> dspy.Prediction:
        self.calls += 1
        first = await self.first.acall(question=question)
        second = await self.second.acall(question=question)
        return dspy.Prediction(answer=f"{first.answer} {second.answer}", calls=self.calls)


class SyncTwo(dspy.Module):  # type: ignore[misc]
    """The same, in a thread."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = dspy.ChainOfThought("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        first, second = self.first(question=question), self.second(question=question)
        return dspy.Prediction(answer=f"{first.answer} {second.answer}")


class Copying(dspy.Module):  # type: ignore[misc]
    """Calls a copy of its predictor, as `dspy.BestOfN` does."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.first.deepcopy().acall(question=question)


def obey(request: Request) -> str:
    """An LM that says the word after `say` in its instructions."""
    found = re.search(r"say (\w+) now", repr(request))
    return found[1] if found else "plain"


def model(latency: float = 0.0) -> dspy.LM:
    return MockLM(obey, latency=latency).lm(cache=False)


def told_to_say(word: str, module: dspy.Module) -> dspy.Module:
    for predictor in module.predictors():
        predictor.signature = predictor.signature.with_instructions(f"say {word} now")
    return module


def state(word: str, source: Any = Two) -> dict[str, Any]:
    found: dict[str, Any] = told_to_say(word, source()).dump_state()
    return found


async def said(program: Program) -> str:
    return str((await program.acall(question="?")).answer)


@pytest.mark.parametrize("source", [Two, SyncTwo, Two()])
async def test_swapped_state_is_what_the_next_call_gets_and_the_module_itself_is_not_changed(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=model()).start(system)
        assert await said(program) == "plain plain"
        version = await program.swap_state(state("blue"))
        assert (version.number, version.change) == (2, "swap_state")
        assert await said(program) == "blue blue"
        if isinstance(source, dspy.Module):
            assert "blue" not in repr(source.dump_state())
        assert program.copy().dump_state() == state("blue")
        assert repr(program) == "<Program Two running, version 2>".replace("Two", program.name)


@pytest.mark.parametrize("source", [Two, SyncTwo])
async def test_no_call_under_load_fails_or_sees_two_versions(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=model(latency=0.002)).start(system)
        answers: list[str] = []

        async def call() -> None:
            answers.append(await said(program))

        async with asyncio.TaskGroup() as group:
            for number in range(200):
                group.create_task(call())
                if number % 20 == 10:
                    await program.swap_state(state(f"v{number}"))
                await asyncio.sleep(0.0005)
        assert len(answers) == 200
        assert all(first == second for first, second in map(str.split, answers))
        assert len(set(answers)) > 5


async def test_a_call_that_came_in_before_keeps_its_version_to_the_end() -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    class Waiting(Two):
        async def aforward(self, question: str) -> dspy.Prediction:
            first = await self.first.acall(question=question)
            begun.set()
            await go_on.wait()
            return dspy.Prediction(answer=f"{first.answer} {(await self.second.acall(question=question)).answer}")

    async with ActorSystem() as system:
        program = await Program(Waiting, lm=model()).start(system)
        call = asyncio.create_task(said(program))
        await begun.wait()
        await program.swap_state(state("blue"))
        await program.swap("second", told_to_say("green", dspy.Predict("question -> answer")))
        go_on.set()
        assert await call == "plain plain"
        assert await said(program) == "blue green"


async def test_copies_that_a_module_makes_in_a_call_are_of_the_calls_version() -> None:
    async with ActorSystem() as system:
        program = await Program(Copying, lm=model()).start(system)
        assert await said(program) == "plain"
        await program.swap_state(state("blue", Copying))
        assert await said(program) == "blue"
        await program.swap("first", told_to_say("green", dspy.ChainOfThought("question -> answer")))
        assert await said(program) == "green"


class Assigning(dspy.Module):  # type: ignore[misc]
    """Sets what its predictors are told, in one of its calls, before it asks them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")
        self.second = OwnMethods("question -> answer")

    def prepare(self, question: str) -> list[str]:
        told = [each.signature.instructions for each in (self.first, self.second)]
        if question == "mine":
            for each in (self.first, self.second):
                each.signature = each.signature.with_instructions("say mine now")
                each.demos = [*each.demos, dspy.Example(question="a", answer="b")]
        return told

    async def aforward(self, question: str) -> dspy.Prediction:
        told = self.prepare(question)
        await asyncio.sleep(0)
        first, second = await self.first.acall(question=question), await self.second.acall(question=question)
        return dspy.Prediction(answer=f"{first.answer} {second.answer}", told=told, demos=len(self.first.demos))


class SyncAssigning(Assigning):
    """The same, in a thread."""

    def forward(self, question: str) -> dspy.Prediction:
        told = self.prepare(question)
        first, second = self.first(question=question), self.second(question=question)
        return dspy.Prediction(answer=f"{first.answer} {second.answer}", told=told, demos=len(self.first.demos))


class OwnMethods(dspy.Predict):  # type: ignore[misc]
    """A predictor with a method of its own."""

    async def aforward(self, **kwargs: Any) -> Any:
        return await super().aforward(**kwargs)


@pytest.mark.parametrize("source", [Assigning, SyncAssigning])
async def test_what_a_call_sets_after_a_swap_holds_for_that_call_alone(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=model()).start(system)
        await program.swap_state(state("hot", source))
        mine, others = await asyncio.gather(program.acall(question="mine"), program.acall(question="others"))
        assert (mine.answer, mine.demos) == ("mine mine", 1)
        assert (others.answer, others.demos) == ("hot hot", 0)
        assert mine.told == others.told == ["say hot now"] * 2
        assert (await program.acall(question="others")).answer == "hot hot"


class Appending(Assigning):
    """Adds a demo in each of its calls, and says how many there are."""

    def prepare(self, question: str) -> list[str]:
        self.first.demos.append(dspy.Example(question="a", answer="b"))
        return []


class SyncAppending(Appending, SyncAssigning):
    """The same, in a thread."""


@pytest.mark.parametrize("source", [Appending, SyncAppending])
async def test_a_demo_that_a_call_adds_after_a_swap_is_none_of_the_versions(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=model()).start(system)
        await program.swap_state(state("hot", source))
        calls = await asyncio.gather(*(program.acall(question="?") for _ in range(3)))
        assert [each.demos for each in calls] == [1, 1, 1]
        assert program.copy().first.demos == []


@pytest.mark.parametrize("source", [Assigning, SyncAssigning])
async def test_what_a_call_sets_reaches_the_predictor_that_was_swapped_in(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source, lm=model()).start(system)
        for path in ("first", "second"):
            await program.swap(path, told_to_say("new", dspy.Predict("question -> answer")))
        told = await program.acall(question="mine")
        assert (told.answer, told.told, told.demos) == ("mine mine", ["say new now"] * 2, 1)
        assert [len(each.demos) for each in program.copy().predictors()] == [1, 1]
        await program.rollback(1)
        assert await said(program) == "plain plain"


class Choosing(dspy.Module):  # type: ignore[misc]
    """Sets the LM of its predictor and one of its settings, before it asks it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        self.set_lm(MockLM(lambda request: f"at {request.config.temperature}").lm(cache=False))
        self.first.update_config(temperature=0.3)
        return self.first(question=question)


@pytest.mark.parametrize("module", [dspy.Predict, dspy.ChainOfThought])
async def test_the_lm_and_settings_of_a_call_reach_what_was_swapped_in_where_it_has_such(module: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(Choosing, lm=model()).start(system)
        await program.swap("first", module("question -> answer"))
        assert await said(program) == ("at 0.3" if module is dspy.Predict else "plain")


async def test_a_restarted_actor_takes_the_current_version() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        await program.swap_state(state("blue"))
        program.submodule("first").kill()
        program.submodule("second.predict").kill()
        program.ref.kill()
        assert await said(program) == "blue blue"


async def test_a_restarted_program_keeps_its_versions_and_what_was_swapped_in() -> None:
    async with ActorSystem() as system:
        program = Program(Two, lm=model(), attempts=2)
        await system.spawn(Supervisor, [program.child_spec()])
        await program.swap("second", told_to_say("green", dspy.ChainOfThought("question -> answer")))
        system.whereis("Two").kill()
        assert await said(program) == "plain green"
        assert [version.number for version in program.versions] == [1, 2]


# -- modules -----------------------------------------------------------------------------------------------------------


async def test_a_swapped_module_has_actors_of_its_own_and_those_of_the_old_one_stay_for_a_rollback() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        await program.swap("second", told_to_say("green", dspy.ReAct("question -> answer", tools=[])))
        assert program.submodule("second").path == "Two/second@2/forward"
        assert program.submodule("second.react").path == "Two/second@2/react"
        program.submodule("second.react").kill()
        await program.rollback()
        assert await said(program) == "plain plain"
        assert program.submodule("second").path == "Two/second/forward"
        assert [version.change for version in program.versions] == ["start", "swap second", "rollback to 1"]


async def test_the_whole_program_can_be_swapped() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        for source in (SyncTwo, lambda: told_to_say("green", SyncTwo()), told_to_say("red", Two())):
            await program.swap("self", source)
        assert await said(program) == "red red"
        await program.rollback()
        assert await said(program) == "green green"
        await program.swap_state(state("blue"))
        assert await said(program) == "blue blue"


async def test_state_is_swapped_below_a_swapped_module_too_and_is_forgotten_with_it() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        await program.swap_state(state("blue"))
        await program.swap("second", Answer())
        assert await said(program) == "blue plain"
        new = program.copy()
        await program.swap_state(told_to_say("red", new).dump_state())
        assert await said(program) == "red red"
        await program.swap("second.predict", told_to_say("green", dspy.Predict("question -> answer")))
        assert await said(program) == "red green"


@pytest.mark.parametrize("path", ["third", "second.predict.x", ""])
async def test_a_part_that_is_not_there_is_named_with_those_that_are(path: str) -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        with pytest.raises(KeyError, match=r"no submodule .*'self', 'first', 'second', 'second.predict'"):
            await program.swap(path, Answer())
        with pytest.raises(KeyError, match="no submodule"):
            program.submodule(path)


async def test_a_module_that_cannot_be_swapped_in_changes_nothing() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        with pytest.raises(TypeError, match=r"give a dspy\.Module"):
            await program.swap("first", lambda: "no module")  # type: ignore[arg-type,return-value]
        shared = dspy.Predict("question -> answer")
        await program.swap("first", shared)
        with pytest.raises(ProgramError, match="already; give a copy"):
            await program.swap("second", shared)
        assert len(program.versions) == 2
        assert await said(program) == "plain plain"


async def test_versions_are_bounded_and_the_actors_of_forgotten_ones_end() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        for number in range(KEPT + 5):
            await program.swap("second", told_to_say(f"v{number}", dspy.Predict("question -> answer")))
        assert await said(program) == f"plain v{KEPT + 4}"
        assert len(program.versions) == KEPT
        assert str(system.tree()).count("second@") == KEPT
        with pytest.raises(ProgramError, match="versions that are kept are 7, 8"):
            await program.rollback(1)


async def test_a_version_that_a_call_has_pinned_is_kept_until_it_has_ended() -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    class Waiting(Two):
        async def aforward(self, question: str) -> dspy.Prediction:
            begun.set()
            await go_on.wait()
            return await self.second.acall(question=question)

    async with ActorSystem() as system:
        program = await Program(Waiting, lm=model()).start(system)
        await program.swap("second", told_to_say("pinned", dspy.Predict("question -> answer")))
        call = asyncio.create_task(said(program))
        await begun.wait()
        for _ in range(KEPT + 5):
            await program.swap("second", dspy.Predict("question -> answer"))
        go_on.set()
        assert await call == "pinned"
        await program.swap("second", dspy.Predict("question -> answer"))
        assert len(program.versions) == KEPT


async def test_the_state_of_a_lone_predictor_is_swapped_saved_and_loaded(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: dspy.Predict("question -> answer"), lm=model()).start(system)
        await program.swap_state(told_to_say("blue", dspy.Predict("question -> answer")).dump_state())
        assert await said(program) == "blue"
        await program.save(tmp_path)
        await program.rollback()
        assert await said(program) == "plain"
        await program.load(tmp_path)
        assert await said(program) == "blue"
        with pytest.raises(ProgramError, match="without demos, signature; it takes signature, demos"):
            await program.swap_state({})


# -- state that does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "without first, second.predict; it takes first, second.predict"),
        ({**state("x"), "third": {}}, "with third"),
        ({**state("x"), "first": {"demos": 3}}, "KeyError"),
        ({**state("x"), "first": "text"}, "is not of the program"),
        ({**state("x"), "first": dspy.Predict("a, b -> c").dump_state()}, "a signature of 3 fields, for one of 2"),
        ({**state("x"), "first": {**state("x")["first"], "demos": ["text"]}}, "demos="),
        ({**state("x"), "first": {**state("x")["first"], "demos": 3}}, "demos=3"),
        ({**state("x"), 3: {}}, "with 3"),
        ("text", "'text'; give a mapping"),
    ],
)
async def test_state_of_another_program_is_refused_and_changes_nothing(wrong: Any, message: str) -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        with pytest.raises(ProgramError, match=message):
            await program.swap_state(wrong)
        assert await said(program) == "plain plain"
        assert len(program.versions) == 1


async def test_a_program_that_was_never_started_has_no_versions_to_change() -> None:
    program = Program(Two)
    for change in (program.swap_state({}), program.swap("first", Answer()), program.rollback(1), program.save("x")):
        with pytest.raises(NotStarted, match="not started"):
            await change


async def test_a_change_is_told() -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        async with system.events.subscribe("program.*") as told:
            await program.swap_state(state("blue"))
            event = await anext(told)
        assert (event.type, event.source) == ("program.swapped", "Two")
        assert event.data == {"version": 2, "change": "swap_state"}


# -- saving ------------------------------------------------------------------------------------------------------------


async def test_saved_state_is_loaded_by_another_program_which_keeps_its_lm(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        await program.swap_state(state("blue"))
        path = await program.save(tmp_path / "saved")
        assert sorted(each.name for each in path.parent.iterdir()) == [path.name, "Two-latest.json"]
        await program.swap_state(state("red"))
        await program.save(path.parent)

        own = Two()
        own.set_lm(model())
        other = await Program(own, name="Two-other").start(system)
        await other.load(path)
        assert await said(other) == "blue blue"
        assert other.copy().predictors()[0].lm is not None
        await program.rollback(1)
        await program.load(path.parent)
        assert await said(program) == "red red"
        plain = Two()
        plain.load(path)
        assert plain.dump_state() == state("blue")


async def test_a_file_that_holds_no_state_is_refused(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        program = await Program(Two, lm=model()).start(system)
        with pytest.raises(FileNotFoundError):
            await program.load(tmp_path)
        for text in ("half a fi", json.dumps([1]), json.dumps({"metadata": {}})):
            (tmp_path / "Two-latest.json").write_text(text)
            with pytest.raises(ProgramError):
                await program.load(tmp_path)
        assert len(program.versions) == 1


class Loud(dspy.Predict):  # type: ignore[misc]
    """Takes its input by name alone, and asks another predictor with the same arguments."""

    def __init__(self) -> None:
        super().__init__("question -> answer")
        self.judge = dspy.Predict("question -> verdict")

    def forward(self, question: str) -> dspy.Prediction:
        answer = super().forward(question=question.upper())
        return dspy.Prediction(answer=answer.answer, verdict=self.judge(question=question).verdict)

    async def aforward(self, question: str) -> dspy.Prediction:
        answer = await super().aforward(question=question.upper())
        verdict = await self.judge.acall(question=question)
        return dspy.Prediction(answer=answer.answer, verdict=verdict.verdict, read=self.signature.instructions)


class LoudProgram(dspy.Module):  # type: ignore[misc]
    def __init__(self, awaited: bool) -> None:
        super().__init__()
        self.loud = Loud()
        self.awaited = awaited

    async def aforward(self, question: str) -> dspy.Prediction:
        if self.awaited:
            return await self.loud.acall(question=question)
        return await asyncio.to_thread(self.loud, question=question)


@pytest.mark.parametrize("awaited", [True, False])
async def test_a_predictor_with_methods_of_its_own_gets_the_version_and_no_argument_that_it_does_not_take(
    awaited: bool,
) -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: LoudProgram(awaited), lm=model()).start(system)
        assert (await program.acall(question="?")).answer == "plain"
        state = program.copy().dump_state()
        state["loud"]["signature"]["instructions"] = "say yes now"
        await program.swap_state(state)
        prediction = await program.acall(question="?")
        assert (prediction.answer, prediction.verdict) == ("yes", "plain")
        if awaited:
            assert prediction.read == "say yes now"
        assert program.submodule("loud").info().handled == 2


class Helper:
    """Holds a module, and is none."""

    def __init__(self, module: dspy.Module) -> None:
        self.module = module


class Indirect(dspy.Module):  # type: ignore[misc]
    """Its first step asks its second one, to which something leads that is searched for no modules."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.second = dspy.Predict("question -> answer")
        self.first = Asking()
        helper = Helper(self.second)
        ways: dict[str, Callable[..., Any]] = {
            "a closure": lambda question: self.second.acall(question=question),
            "a partial": functools.partial(Indirect.ask, self),
            "a plain object": lambda question: helper.module.acall(question=question),
        }
        self.first.asks = ways[way]

    async def ask(self, question: str) -> Any:
        return await self.second.acall(question=question)

    async def aforward(self, question: str) -> Any:
        return await self.first.acall(question=question)


class Asking(dspy.Module):  # type: ignore[misc]
    asks: Callable[..., Any]

    async def aforward(self, question: str) -> Any:
        return await self.asks(question=question)


@pytest.mark.parametrize("killed", ["first", "self"])
@pytest.mark.parametrize("way", ["a closure", "a partial", "a plain object"])
async def test_after_restarts_whatever_leads_to_a_module_leads_to_the_one_of_the_program(way: str, killed: str) -> None:
    async with ActorSystem() as system:
        program = await Program(lambda: Indirect(way), lm=model()).start(system)
        for number in range(1, 4):
            state = program.copy().dump_state()
            state["second"]["signature"]["instructions"] = f"say word{number} now"
            await program.swap_state(state)
            assert (await program.acall(question="?")).answer == f"word{number}"
            assert program.submodule("second").info().handled == number
            part = program.submodule(killed) if killed == "first" else program.ref
            incarnation = part.incarnation
            part.kill()
            await until(lambda part=part, before=incarnation: part.incarnation > before and part.info().uptime > 0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda program, _: program.rollback(True), "Program.rollback: number=True: give the number"),
        (lambda program, _: program.rollback("1"), "Program.rollback: number='1': give the number"),
        (lambda program, _: program.save(None), "Program.save: directory=None: give a path"),
        (lambda program, _: program.load(5), "Program.load: path=5: give a path"),
        (lambda *_: list_programs(None), "list_programs: system=None: give an ActorSystem"),
        (lambda *_: set_default_lm(None, None), "set_default_lm: system=None: give an ActorSystem"),
        (lambda *_: execute(None, {}), "execute: program=None: give a Program"),
        (lambda program, _: program.child_spec(node=""), "node='': "),
    ],
)
async def test_what_a_program_cannot_use_is_named_in_the_error(call: Any, message: str) -> None:
    async with ActorSystem() as system:
        program = await Program(Two).start(system)
        with pytest.raises(ValueError, match=message):
            await call(program, system)
        assert len(program.versions) == 1
