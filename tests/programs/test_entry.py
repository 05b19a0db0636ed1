"""By which method a hosted module is entered: the one that stands nearest to the user's class."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest

from promptside import ActorSystem
from promptside.programs import Ensemble, Program, evaluate, execute
from promptside.testing import MockLM

QA = "question -> answer"
PARIS = {"reasoning": "so", "answer": "Paris"}
LOUD_PARIS = {"reasoning": "so", "answer": "PARIS"}


def mark(answer: Any, how: str) -> dspy.Prediction:
    return dspy.Prediction(answer=f"{how} {answer.answer}")


class Forward(dspy.ChainOfThought):  # type: ignore[misc]
    def forward(self, **inputs: Any) -> Any:
        return mark(super().forward(**inputs), "forward")


class Aforward(dspy.ChainOfThought):  # type: ignore[misc]
    async def aforward(self, **inputs: Any) -> Any:
        return mark(await super().aforward(**inputs), "aforward")


class Call(dspy.ChainOfThought):  # type: ignore[misc]
    def __call__(self, *args: Any, **inputs: Any) -> Any:
        return mark(super().__call__(*args, **inputs), "__call__")


class Acall(dspy.ChainOfThought):  # type: ignore[misc]
    async def acall(self, *args: Any, **inputs: Any) -> Any:
        return mark(await super().acall(*args, **inputs), "acall")


class BelowForward(Forward):
    """Inherits the override."""


class AforwardOverForward(Forward):
    async def aforward(self, **inputs: Any) -> Any:
        return mark(await super().aforward(**inputs), "aforward")


class Mixin:
    def forward(self, **inputs: Any) -> Any:
        return mark(super().forward(**inputs), "mixin")  # type: ignore[misc]


class Mixed(Mixin, dspy.ChainOfThought):  # type: ignore[misc]
    """Its override comes from a class that knows no DSPy."""


class AsyncForward(dspy.Module):  # type: ignore[misc]
    """A `forward` that is a coroutine function: its call is awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    async def forward(self, question: str) -> Any:
        return mark(await self.predict.acall(question=question), "async forward")


class Returning(dspy.Module):  # type: ignore[misc]
    """A plain `forward` that returns an awaitable."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def forward(self, question: str) -> Any:
        return self.predict.acall(question=question)


class OnlyAcall(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    async def acall(self, question: str) -> Any:
        return mark(await self.predict.acall(question=question), "acall")


class Guarded(dspy.ReAct):  # type: ignore[misc]
    """An agent with synchronous tools, whose `aforward` is the user's."""

    async def aforward(self, **inputs: Any) -> Any:
        return dspy.Prediction(answer="aforward")


class Sandboxed(dspy.RLM):  # type: ignore[misc]
    """A module that would block the event loop, whose `aforward` is the user's."""

    async def aforward(self, **inputs: Any) -> Any:
        on_loop = threading.current_thread() is threading.main_thread()
        return dspy.Prediction(answer=f"aforward {'on the loop' if on_loop else 'in a thread'}")


def with_instances_own() -> dspy.Module:
    module = dspy.ChainOfThought(QA)
    module.forward = lambda **inputs: mark(dspy.Prediction(answer="Paris"), "instance's")
    return module


ENTRIES: dict[str, tuple[Callable[[], dspy.Module], str]] = {
    "forward": (lambda: Forward(QA), "forward Paris"),
    "aforward": (lambda: Aforward(QA), "aforward Paris"),
    "__call__": (lambda: Call(QA), "__call__ Paris"),
    "acall": (lambda: Acall(QA), "acall Paris"),
    "a subclass": (lambda: BelowForward(QA), "forward Paris"),
    "aforward over forward": (lambda: AforwardOverForward(QA), "aforward Paris"),
    "a mixin": (lambda: Mixed(QA), "mixin Paris"),
    "a coroutine function": (AsyncForward, "async forward Paris"),
    "a function that returns an awaitable": (Returning, "Paris"),
    "acall alone": (OnlyAcall, "acall Paris"),
    "an agent": (lambda: Guarded(QA, tools=[str.upper]), "aforward"),
    "a sandbox": (lambda: Sandboxed(QA), "aforward in a thread"),
    "the instance": (with_instances_own, "instance's Paris"),
}


class Outer(dspy.Module):  # type: ignore[misc]
    """Calls a module below it as its own caller called it."""

    def __init__(self, inner: dspy.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)

    async def aforward(self, **inputs: Any) -> Any:
        return await self.inner.acall(**inputs)


async def answers(source: Callable[[], dspy.Module], **settings: Any) -> tuple[str, str]:
    """Of a program, awaited and called from a thread."""
    lm = settings.pop("lm", None) or MockLM({"default": PARIS}).lm()
    async with ActorSystem() as system:
        program = await Program(source, lm=lm).start(system)
        with dspy.context(**settings):
            awaited = (await program.acall(question="?")).answer
            called = (await asyncio.to_thread(program, question="?")).answer
    return awaited, called


@pytest.mark.parametrize(("source", "expected"), ENTRIES.values(), ids=ENTRIES)
async def test_the_override_that_is_nearest_to_the_users_class_runs_however_the_program_is_called(
    source: Callable[[], dspy.Module], expected: str
) -> None:
    assert await answers(source) == (expected, expected)


@pytest.mark.parametrize("name", ["forward", "__call__", "a subclass", "a mixin", "the instance"])
async def test_so_does_that_of_a_module_below_it(name: str) -> None:
    source, expected = ENTRIES[name]
    assert await answers(lambda: Outer(source())) == (expected, expected)


@pytest.mark.parametrize("name", ["forward", "aforward", "__call__", "acall", "a coroutine function"])
async def test_and_that_of_the_member_of_an_ensemble(name: str) -> None:
    source, expected = ENTRIES[name]
    assert await answers(lambda: Ensemble([source()])) == (expected, expected)
    with dspy.context(lm=MockLM({"default": PARIS}).lm()):
        assert (await Ensemble([source()]).acall(question="?")).answer == expected


async def test_a_module_with_both_is_entered_as_its_program_is() -> None:
    class Both(dspy.Module):  # type: ignore[misc]
        def forward(self) -> dspy.Prediction:
            return dspy.Prediction(answer="forward")

        async def aforward(self) -> dspy.Prediction:
            return dspy.Prediction(answer="aforward")

    async with ActorSystem() as system:
        program = await Program(Both).start(system)
        assert (await program.acall()).answer == "aforward"
        assert (await asyncio.to_thread(program)).answer == "forward"


# -- adapters and LMs --------------------------------------------------------------------------------------------------


class Loud(dspy.ChatAdapter):  # type: ignore[misc]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [{**each, "answer": each["answer"].upper()} for each in super().__call__(*args, **kwargs)]


class LoudLater(dspy.ChatAdapter):  # type: ignore[misc]
    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return [{**each, "answer": each["answer"].upper()} for each in await super().acall(*args, **kwargs)]


def completion() -> Any:
    from types import SimpleNamespace

    text = "[[ ## reasoning ## ]]\nso\n\n[[ ## answer ## ]]\nPARIS\n\n[[ ## completed ## ]]"
    message = SimpleNamespace(content=text)
    return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage={}, model="mine")


class SyncLM(dspy.BaseLM):  # type: ignore[misc]
    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return completion()


class AsyncLM(dspy.BaseLM):  # type: ignore[misc]
    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return completion()


class CalledLM(dspy.LM):  # type: ignore[misc]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [completion().choices[0].message.content]


LOUD: dict[str, Callable[[], dict[str, Any]]] = {
    "an adapter's __call__": lambda: {"adapter": Loud()},
    "an adapter's acall": lambda: {"adapter": LoudLater()},
    "an LM's forward": lambda: {"lm": SyncLM("mine")},
    "an LM's aforward": lambda: {"lm": AsyncLM("mine")},
    "an LM's synchronous engine": lambda: {"lm": dspy.LM("mock/mock", engine=MockLM({"default": LOUD_PARIS}))},
    "an LM's __call__": lambda: {"lm": CalledLM("openai/mine")},
}


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("settings", LOUD.values(), ids=LOUD)
@pytest.mark.parametrize("source", [lambda: dspy.Predict(QA), lambda: dspy.ChainOfThought(QA)], ids=["Predict", "CoT"])
async def test_an_override_of_an_adapter_or_an_lm_runs_too(
    source: Callable[[], dspy.Module], settings: Callable[[], dict[str, Any]]
) -> None:
    assert await answers(source, **settings()) == ("PARIS", "PARIS")


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("name", ["an adapter's __call__", "an LM's forward", "an LM's synchronous engine"])
async def test_below_a_module_that_awaits_its_predictor_it_runs_in_a_thread(name: str) -> None:
    class Awaiting(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.predict = dspy.Predict(QA)

        async def aforward(self, question: str) -> dspy.Prediction:
            return await self.predict.acall(question=question)

    assert await answers(Awaiting, **LOUD[name]()) == ("PARIS", "PARIS")


# -- on the event loop -------------------------------------------------------------------------------------------------


class Clean(dspy.Module):  # type: ignore[misc]
    def forward(self, question: str) -> str:
        return question.strip()


async def test_a_module_without_predictors_may_be_called_on_the_event_loop_as_plainly() -> None:
    class Cleaning(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.clean = Clean()

        async def aforward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=self.clean(question=question))

    async with ActorSystem() as system:
        program = await Program(Cleaning).start(system)
        assert (await program.acall(question=" ? ")).answer == "?"


# -- arguments ---------------------------------------------------------------------------------------------------------


class Taking(dspy.Module):  # type: ignore[misc]
    def forward(self, record: Any, style: str = "plain", /, *, loud: bool = False) -> dspy.Prediction:
        return dspy.Prediction(answer=(record, style, loud))


POSITIONAL: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "one": (("a",), {}),
    "two": (("a", "b"), {"loud": True}),
    "a mapping that it takes as such": (({"question": "?"},), {}),
    "an example that it takes as such": ((dspy.Example(question="?").with_inputs("question"),), {}),
    "too many": (("a", "b", "c"), {}),
    "one missing": ((), {"loud": True}),
}


@pytest.mark.parametrize(("args", "fields"), POSITIONAL.values(), ids=POSITIONAL)
async def test_positional_arguments_are_those_of_the_module(args: tuple[Any, ...], fields: dict[str, Any]) -> None:
    def outcome(call: Callable[..., Any]) -> Any:
        try:
            return call(*args, **fields).answer
        except TypeError as error:
            return str(error)

    async with ActorSystem() as system:
        program = await Program(Taking).start(system)
        assert await asyncio.to_thread(outcome, program) == outcome(Taking())


async def test_inputs_by_name_of_an_evaluation_are_never_taken_by_position() -> None:
    """A wrong name would be passed as the value of the one input."""
    examples = [dspy.Example(wrong="?").with_inputs("wrong")]
    async with ActorSystem() as system:
        program = await Program(Plain, lm=MockLM("yes").lm()).start(system)
        result = await evaluate(program, examples, lambda *_: 1.0, max_errors=2, display_progress=False)
        assert result.score == 0
        with pytest.raises(TypeError, match="unexpected keyword argument 'wrong'"):
            await execute(program, {"wrong": "?"})


@pytest.mark.parametrize("source", [lambda: dspy.Predict(QA), lambda: dspy.ChainOfThought(QA)], ids=["Predict", "CoT"])
async def test_a_module_that_refuses_positional_arguments_refuses_them_hosted(
    source: Callable[[], dspy.Module],
) -> None:
    with pytest.raises(Exception) as plain:
        source()("?")
    async with ActorSystem() as system:
        program = await Program(source, lm=MockLM("yes").lm()).start(system)
        with pytest.raises(type(plain.value)) as hosted:
            await asyncio.to_thread(program, "?")
    assert str(hosted.value) == str(plain.value)


# -- the LM of a call --------------------------------------------------------------------------------------------------


def with_own_lm(make: Callable[[], dspy.Module]) -> Callable[[], dspy.Module]:
    def source() -> dspy.Module:
        module = make()
        module.set_lm(MockLM("own").lm())
        return module

    return source


class Plain(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def forward(self, question: str) -> dspy.Prediction:
        return self.predict(question=question)


class Strict(dspy.Predict):  # type: ignore[misc]
    """A predictor whose `forward` takes its input alone."""

    def forward(self, question: str) -> dspy.Prediction:
        return super().forward(question=question)


OWN: dict[str, Callable[[], dspy.Module]] = {
    "Predict": lambda: dspy.Predict(QA),
    "ChainOfThought": lambda: dspy.ChainOfThought(QA),
    "a predictor of the user's": lambda: Strict(QA),
    "a pipeline": Plain,
    "BestOfN": lambda: dspy.BestOfN(dspy.Predict(QA), N=2, reward_fn=lambda *_: 0.0, threshold=1.0),
}


@pytest.mark.parametrize("make", OWN.values(), ids=OWN)
async def test_the_lm_of_a_call_comes_before_the_predictors_own_and_that_before_the_contexts(
    make: Callable[[], dspy.Module],
) -> None:
    async with ActorSystem() as system:
        program = await Program(with_own_lm(make)).start(system)
        lm = MockLM("the call's").lm()
        with dspy.context(lm=MockLM("the context's").lm()):
            assert (await program.acall(question="?", lm=lm)).answer == "the call's"
            assert (await asyncio.to_thread(program, question="?", lm=lm)).answer == "the call's"
            assert (await program.acall(question="?")).answer == "own"
            assert program.module.get_lm().model == "mock/mock"


async def test_a_call_with_an_lm_leaves_the_predictors_own_as_it_is() -> None:
    async with ActorSystem() as system:
        program = await Program(with_own_lm(Plain)).start(system)
        own = program.module.predict.lm
        await program.acall(question="?", lm=MockLM("the call's").lm())
        assert program.module.predict.lm is own
        program.module.predict.lm = other = MockLM("other").lm()
        assert (await program.acall(question="?")).answer == "other"
        assert program.module.predict.lm is other
