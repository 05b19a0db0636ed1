"""What works in one thread alone works in a program: it is made and used in one, or the error says what to do."""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from promptside import ActorStartError, ActorSystem
from promptside.errors import ProgramError
from promptside.pools import Endpoint, LMPool
from promptside.programs import ModuleActor, Program
from promptside.testing import MockLM, run_virtual
from tests.support.actors import until

QA = "question -> answer"


class Connection:
    """A connection that refuses other threads than the one that made it."""

    def __init__(self, path: str) -> None:
        self.db = sqlite3.connect(path)
        self.db.execute("create table facts (text)")
        self.db.execute("insert into facts values ('Paris')")
        self.db.commit()

    def read(self) -> str:
        return str(self.db.execute("select text from facts").fetchone()[0])


class Local:
    """Data of one thread."""

    def __init__(self, path: str) -> None:
        self.local = threading.local()
        self.local.fact = "Paris"

    def read(self) -> str:
        return str(self.local.fact)


class Owned:
    """An object that remembers its thread."""

    def __init__(self, path: str) -> None:
        self.owner = threading.get_ident()

    def read(self) -> str:
        if threading.get_ident() != self.owner:
            raise RuntimeError("another thread")
        return "Paris"


class Closed:
    """The same, in a closure."""

    def __init__(self, path: str) -> None:
        owner = threading.current_thread()
        self.check: Callable[[], bool] = lambda: threading.current_thread() is owner

    def read(self) -> str:
        if not self.check():
            raise RuntimeError("another thread")
        return "Paris"


KINDS = [Connection, Local, Owned, Closed]


class Lookup(dspy.Module):  # type: ignore[misc]
    def __init__(self, kind: Callable[[str], Any], path: str = ":memory:") -> None:
        super().__init__()
        self.facts = [kind(path)]
        self.predict = dspy.Predict("fact, question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.predict(fact=self.facts[0].read(), question=question)


class AsyncLookup(Lookup):
    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.predict.acall(fact=self.facts[0].read(), question=question)


class Outer(dspy.Module):  # type: ignore[misc]
    """Its sub-module has the object."""

    def __init__(self, kind: Callable[[str], Any], path: str = ":memory:", inner: Any = Lookup) -> None:
        super().__init__()
        self.inner = inner(kind, path)

    def forward(self, question: str) -> dspy.Prediction:
        return self.inner(question=question)


class AsyncOuter(Outer):
    def __init__(self, kind: Callable[[str], Any], path: str = ":memory:") -> None:
        super().__init__(kind, path, AsyncLookup)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.inner.acall(question=question)


SHAPES = [Lookup, AsyncLookup, Outer, AsyncOuter]


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"{name}, ")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("factory", [functools.partial, lambda *args: lambda: args[0](*args[1:])], ids=["class", "any"])
async def test_what_a_factory_makes_works_in_every_call_and_after_restarts(
    factory: Any, shape: type[Lookup], kind: type[Any]
) -> None:
    async with ActorSystem() as system:
        program = await Program(factory(shape, kind), name="facts", lm=MockLM("yes").lm()).start(system)
        for restart in (False, True):
            if restart:
                for path in ("self", *(["inner"] if hasattr(program.module, "inner") else [])):
                    ref, before = program.submodule(path), program.submodule(path).incarnation
                    ref.kill()
                    await until(lambda ref=ref, before=before: ref.incarnation > before)
            answers = await asyncio.gather(
                *(program.acall(question=f"{number}") for number in range(3)),
                *(asyncio.to_thread(program, question=f"{number}") for number in range(3)),
            )
            assert {each.answer for each in answers} == {"yes"}
        await program.stop()
        await until(lambda: not threads_of("facts"))


async def test_a_factory_is_called_once_for_each_start(tmp_path: Path) -> None:
    """A second one would meet the table of the first."""
    async with ActorSystem() as system:
        for number, make in enumerate((functools.partial(Lookup, Connection), lambda path: Lookup(Connection, path))):
            source = functools.partial(make, str(tmp_path / f"{number}.db"))
            program = await Program(source, lm=MockLM("yes").lm()).start(system)
            assert (await program.acall(question="?")).answer == "yes"


async def test_one_that_cannot_be_called_again_says_how_to_have_it_called_once(tmp_path: Path) -> None:
    path = str(tmp_path / "facts.db")
    async with ActorSystem() as system:
        with pytest.raises(ActorStartError, match="already exists") as caught:
            await Program(lambda: AsyncLookup(Connection, path)).start(system)
        [note] = caught.value.__cause__.__notes__  # type: ignore[union-attr]
        assert "functools.partial" in note
        path = str(tmp_path / "other.db")
        await Program(functools.partial(AsyncLookup, Connection, path)).start(system)


@pytest.mark.parametrize("kind", [dict, functools.partial(sqlite3.connect, check_same_thread=False)])
async def test_what_any_thread_may_use_leaves_calls_at_the_same_time(kind: Any) -> None:
    inside = threading.Barrier(3)

    class Together(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kept = kind() if kind is dict else kind(":memory:")

        def forward(self) -> dspy.Prediction:
            inside.wait(60)
            return dspy.Prediction(answer="yes")

    async with ActorSystem() as system:
        program = await Program(Together).start(system)
        assert [each.answer for each in await asyncio.gather(*(program.acall() for _ in range(3)))] == ["yes"] * 3
        await until(lambda: not threads_of("Together"))


async def test_with_one_thread_the_modules_are_made_and_called_in_it() -> None:
    class Telling(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.made_in = threading.current_thread().name

        def forward(self) -> dspy.Prediction:
            return dspy.Prediction(same=threading.current_thread().name == self.made_in)

    async with ActorSystem() as system:
        program = await Program(Telling, max_threads=1).start(system)
        assert all(each.same for each in await asyncio.gather(*(program.acall() for _ in range(5))))


class Interpreting(dspy.Module):  # type: ignore[misc]
    """DSPy's interpreter belongs to the thread that uses it first."""

    def __init__(self) -> None:
        super().__init__()
        self.interpreter = dspy.PythonInterpreter(deno_command=["none"])

    def forward(self) -> dspy.Prediction:
        self.interpreter._check_thread_ownership()
        return dspy.Prediction(answer=threading.get_ident())


@pytest.mark.parametrize("source", [Interpreting, lambda: Interpreting(), Interpreting()], ids=["class", "any", "one"])
async def test_an_interpreter_is_used_in_one_thread(source: Any) -> None:
    async with ActorSystem() as system:
        program = await Program(source).start(system)
        assert len({each.answer for each in await asyncio.gather(*(program.acall() for _ in range(5)))}) == 1


@pytest.mark.parametrize("kind", [Connection, Local])
@pytest.mark.parametrize("start", ["Program", "ModuleActor"])
async def test_what_was_made_elsewhere_is_refused_with_the_remedy(start: str, kind: type[Any]) -> None:
    async with ActorSystem() as system:
        with dspy.context(lm=MockLM("yes").lm()):
            if start == "Program":
                call: Any = (await Program(Lookup(kind)).start(system)).acall(question="?")
            else:
                actor = await system.spawn(ModuleActor, functools.partial(Lookup, kind))
                call = actor.ask(ModuleActor.call, {"question": "?"})
            with pytest.raises(ProgramError, match="Give Program a factory, such as the module's class") as caught:
                await call
            assert isinstance(caught.value.__cause__, sqlite3.ProgrammingError | AttributeError)


async def test_a_module_that_was_swapped_in_has_a_thread_of_its_own_also_after_another_start() -> None:
    async with ActorSystem() as system:
        program = Program(lambda: dspy.Predict(QA), name="swapped", lm=MockLM("yes").lm())
        await program.start(system)
        await program.swap("self", functools.partial(Lookup, Connection))
        for _ in range(2):
            answers = await asyncio.gather(*(program.acall(question=f"{number}") for number in range(3)))
            assert {each.answer for each in answers} == {"yes"}
            await program.stop()
            await until(lambda: not threads_of("swapped"))
            await program.start(system)


async def test_a_factory_that_needs_the_event_loop_is_called_there() -> None:
    class Queueing(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.loop = asyncio.get_running_loop()

        async def aforward(self) -> dspy.Prediction:
            return dspy.Prediction(answer=self.loop is asyncio.get_running_loop())

    async with ActorSystem() as system:
        for source in (Queueing, lambda: Queueing()):
            program = await Program(source, name="loop").start(system)
            assert (await program.acall()).answer
            await program.stop()


@pytest.mark.parametrize("pooled", [False, True], ids=["a mock", "a pool"])
async def test_a_program_streams_from_the_thread_that_it_belongs_to(pooled: bool) -> None:
    mock = MockLM("one two three")
    async with ActorSystem() as system:
        pool = await LMPool([Endpoint("mock/mock", engine=mock)]).start(system)
        lm = pool.lm(cache=False) if pooled else mock.lm()
        program = await Program(functools.partial(Lookup, Connection), lm=lm).start(system)
        status = dspy.streaming.StatusMessageProvider()
        pieces = [piece async for piece in program.stream(question="?", status=status)]
        assert "".join(piece.text for piece in pieces) == "one two three"
        assert pieces[-1].prediction is not None


def test_in_virtual_time_the_thread_of_a_program_stops_no_clock() -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            program = await Program(functools.partial(Lookup, Connection), lm=MockLM("yes").lm()).start(system)
            assert (await program.acall(question="?")).answer == "yes"
            await asyncio.sleep(3600)
            assert (await program.acall(question="?")).answer == "yes"

    run_virtual(main())


async def test_a_call_that_hangs_in_the_thread_of_a_program_does_not_keep_the_system() -> None:
    go_on, begun = threading.Event(), threading.Event()

    class Hanging(Lookup):
        def forward(self, question: str) -> dspy.Prediction:
            begun.set()
            go_on.wait(30)
            return dspy.Prediction()

    try:
        async with ActorSystem() as system:
            program = await Program(functools.partial(Hanging, Owned)).start(system)
            call = asyncio.create_task(program.acall(question="?", timeout=0.05))
            await asyncio.to_thread(begun.wait, 10)
            with pytest.raises(TimeoutError):
                await call
    finally:
        go_on.set()
