"""Modules of every shape that a user may have, and how each is called: see `tests.support.comparison.Case`."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import inspect
import io
import itertools
import pickle
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import cloudpickle
import dspy
import numpy as np
import pydantic
from dspy.lm15 import ContextLengthError, RateLimitError
from dspy.primitives.code_interpreter import CodeExecutionError, FinalOutput

from promptside.testing import MockLM
from tests.support.comparison import Case, Heard, script

T = TypeVar("T")

QA = "question -> answer"
WHY = {"question": "why?"}


class Triage(dspy.Signature):  # type: ignore[misc]
    """Sort a message."""

    message: str = dspy.InputField(desc="what was written")
    kind: Literal["bug", "wish"] = dspy.OutputField()
    urgency: int = dspy.OutputField(desc="1 to 5")
    tags: list[str] = dspy.OutputField()


class Person(pydantic.BaseModel):
    name: str
    age: int


class Who(dspy.Signature):  # type: ignore[misc]
    text: str = dspy.InputField()
    person: Person = dspy.OutputField()


# --- custom modules


class Both(dspy.Module):  # type: ignore[misc]
    """A pipeline of two, synchronous and asynchronous."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> query")
        self.second = dspy.ChainOfThought("query, question -> answer")
        self.calls = 0

    def forward(self, question: str) -> dspy.Prediction:
        self.calls += 1
        query = self.first(question=question).query
        return self.second(query=query, question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        self.calls += 1
        query = (await self.first.acall(question=question)).query
        return await self.second.acall(query=query, question=question)


class Sync(dspy.Module):  # type: ignore[misc]
    """As many users' modules are: `forward` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> query")
        self.second = dspy.ChainOfThought("query, question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        query = self.first(question=question).query
        return self.second(query=query, question=question)


class Calls(dspy.Module):  # type: ignore[misc]
    """Synchronous; runs what a case gives, with a module in it."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in (parts or {"predict": dspy.Predict(QA)}).items():
            setattr(self, name, part)

    def forward(self, **inputs: Any) -> Any:
        return self.function(self, **inputs)


class Awaits(Calls):
    """The same, asynchronous alone."""

    forward = None  # type: ignore[assignment]

    async def aforward(self, **inputs: Any) -> Any:
        return await self.function(self, **inputs)


def calls(function: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], dspy.Module]:
    return lambda: Calls(function, **{name: make() for name, make in parts.items()})


def awaits(function: Callable[..., Any], **parts: Callable[[], Any]) -> Callable[[], dspy.Module]:
    return lambda: Awaits(function, **{name: make() for name, make in parts.items()})


class Nested(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.steps = [dspy.Predict(QA), dspy.Predict(QA)]
        self.pair = (dspy.Predict(QA), dspy.ChainOfThought(QA))
        self.named = {"one": dspy.Predict(QA), "two words": dspy.Predict(QA)}
        self.deep = {"steps": [(Sync(),)]}

    def forward(self, question: str) -> dspy.Prediction:
        every = [*self.steps, *self.pair, *self.named.values(), self.deep["steps"][0][0]]
        return dspy.Prediction(answers=[each(question=question).answer for each in every])


class Shared(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.first = self.again = Both()
        self.more: list[Any] = [self.first, {"it": self.first.first}]

    async def aforward(self, question: str) -> dspy.Prediction:
        one = await self.first.acall(question=question)
        two = await self.again.acall(question=one.answer)
        three = await self.more[1]["it"].acall(question=two.answer)
        return dspy.Prediction(query=three.query, calls=self.first.calls)

    def forward(self, question: str) -> dspy.Prediction:
        one = self.first(question=question)
        two = self.again(question=one.answer)
        three = self.more[1]["it"](question=two.answer)
        return dspy.Prediction(query=three.query, calls=self.first.calls)


class Countdown(dspy.Module):  # type: ignore[misc]
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def forward(self, question: str, depth: int = 2) -> dspy.Prediction:
        answer = self.predict(question=f"{question} {depth}").answer
        below = self(question=question, depth=depth - 1).answers if depth else []
        return dspy.Prediction(answers=[answer, *below])

    async def aforward(self, question: str, depth: int = 2) -> dspy.Prediction:
        answer = (await self.predict.acall(question=f"{question} {depth}")).answer
        below = (await self.acall(question=question, depth=depth - 1)).answers if depth else []
        return dspy.Prediction(answers=[answer, *below])


class Down(dspy.Module):  # type: ignore[misc]
    """A module whose part calls itself."""

    def __init__(self, kind: type[dspy.Module] = Countdown) -> None:
        super().__init__()
        self.inner = kind()

    def forward(self, question: str) -> dspy.Prediction:
        return self.inner(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.inner.acall(question=question)


class Child(dspy.Module):  # type: ignore[misc]
    """Calls the module that holds it."""

    def __init__(self, parent: dspy.Module) -> None:
        super().__init__()
        self.parent = parent
        self.predict = dspy.Predict(QA)

    def forward(self, question: str, depth: int) -> str:
        answer = self.predict(question=f"{question} {depth}").answer
        return f"{answer} {self.parent(question=question, depth=depth - 1).answer}"

    async def aforward(self, question: str, depth: int) -> str:
        answer = (await self.predict.acall(question=f"{question} {depth}")).answer
        return f"{answer} {(await self.parent.acall(question=question, depth=depth - 1)).answer}"


class Parent(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.child = Child(self)

    def forward(self, question: str, depth: int = 2) -> dspy.Prediction:
        return dspy.Prediction(answer=self.child(question=question, depth=depth) if depth else "end")

    async def aforward(self, question: str, depth: int = 2) -> dspy.Prediction:
        return dspy.Prediction(answer=await self.child.acall(question=question, depth=depth) if depth else "end")


class PingPong(dspy.Module):  # type: ignore[misc]
    """Two parts that call each other."""

    def __init__(self) -> None:
        super().__init__()
        self.ping, self.pong = Countdown(), Countdown()
        self.ping.other, self.pong.other = self.pong, self.ping
        for each in (self.ping, self.pong):
            each.__class__ = Alternating

    def forward(self, question: str) -> dspy.Prediction:
        return self.ping(question=question, depth=3)


class Alternating(Countdown):
    def forward(self, question: str, depth: int = 2) -> dspy.Prediction:
        answer = self.predict(question=f"{question} {depth}").answer
        below = self.other(question=question, depth=depth - 1).answers if depth else []
        return dspy.Prediction(answers=[answer, *below])


class Changing(dspy.Module):  # type: ignore[misc]
    """Makes modules, and attributes, in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.seen: list[str] = []

    def forward(self, question: str) -> dspy.Prediction:
        made = dspy.ChainOfThought(QA)
        self.seen.append(question)
        self.last = made(question=question).reasoning
        self.added = dspy.Predict(QA)
        self.predict = dspy.Predict("question -> answer, doubt") if len(self.seen) > 1 else self.predict
        return dspy.Prediction(one=self.added(question=question), two=self.predict(question=self.last), seen=self.seen)


class Slotted(dspy.Module):  # type: ignore[misc]
    __slots__ = ("count", "hidden")

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.hidden = dspy.Predict(QA)
        self.count = 0

    def forward(self, question: str) -> dspy.Prediction:
        self.count += 1
        return dspy.Prediction(
            one=self.predict(question=question).answer, two=self.hidden(question=question).answer, count=self.count
        )


@dataclasses.dataclass
class Data(dspy.Module):  # type: ignore[misc]
    times: int = 2
    predict: dspy.Predict = dataclasses.field(default_factory=lambda: dspy.Predict(QA))

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answers=[self.predict(question=question).answer for _ in range(self.times)])


class Delegating(dspy.Module):  # type: ignore[misc]
    """What it lacks, it has from the module within."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Both()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)


class Strict(dspy.Module):  # type: ignore[misc]
    """Takes no new attributes once it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.done = True

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("done") and name not in vars(self):
            raise AttributeError(f"{name} is new")
        super().__setattr__(name, value)

    def forward(self, question: str) -> dspy.Prediction:
        try:
            self.surprise = 1
        except AttributeError as error:
            return dspy.Prediction(answer=self.predict(question=str(error)).answer)
        raise AssertionError


class Reduced(dspy.Module):  # type: ignore[misc]
    """Says itself how it is pickled and copied."""

    def __init__(self, style: str = "plain") -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.style = style

    def __reduce__(self) -> Any:
        return type(self), (f"{self.style}+",)

    def forward(self, question: str) -> dspy.Prediction:
        copies = [copy.copy(self), copy.deepcopy(self), pickle.loads(pickle.dumps(self))]
        kinds = [type(each) in {Reduced, type(self)} for each in copies]
        return dspy.Prediction(
            styles=[each.style for each in copies],
            kinds=kinds,
            answers=[each.predict(question=question).answer for each in copies],
        )


class Stateful(dspy.Module):  # type: ignore[misc]
    """Leaves out of its pickles what cannot be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.lock = io.StringIO("cannot be pickled")
        self.notes = ["first"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.lock = io.StringIO("new")

    def forward(self, question: str) -> dspy.Prediction:
        copies = [copy.deepcopy(self), cloudpickle.loads(cloudpickle.dumps(self)), self.reset_copy()]
        self.notes.append(question)
        return dspy.Prediction(
            notes=[each.notes for each in (*copies, self)],
            locks=[each.lock.getvalue() for each in copies],
            answers=[each.predict(question=question).answer for each in copies],
        )


class DeepCopied(dspy.Module):  # type: ignore[misc]
    """Copies itself."""

    def __init__(self, generation: int = 0) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.generation = generation

    def __deepcopy__(self, memo: dict[int, Any]) -> DeepCopied:
        return self.__class__(self.generation + 1)

    def forward(self, question: str) -> dspy.Prediction:
        child = copy.deepcopy(self)
        again = child.deepcopy()
        stored = cloudpickle.loads(cloudpickle.dumps(again))
        return dspy.Prediction(
            generations=[self.generation, child.generation, again.generation, stored.generation],
            answer=stored.predict(question=question).answer,
        )


class Box(dspy.Module, Generic[T]):  # type: ignore[misc]
    def __init__(self, value: T) -> None:
        super().__init__()
        self.value = value
        self.predict = dspy.Predict(QA)

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.predict(question=question).answer, value=self.value)


class Overriding(dspy.Module):  # type: ignore[misc]
    """Does something around its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return dspy.Prediction(wrapped=super().__call__(*args, **kwargs))

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        return dspy.Prediction(wrapped=await super().acall(*args, **kwargs))

    def forward(self, question: str) -> dspy.Prediction:
        return self.predict(question=question)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.predict.acall(question=question)


class OnlyCall(dspy.Module):  # type: ignore[misc]
    """Has no `forward`: it overrides `__call__`."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def __call__(self, question: str) -> Any:
        return self.predict(question=question)


class Base(dspy.Module):  # type: ignore[misc]
    kinds: tuple[str, ...] = ()

    def __init_subclass__(cls, *, label: str) -> None:
        Base.kinds = (*Base.kinds, label)

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.predict(question=question).answer, kinds=Base.kinds)


class Registered(Base, label="registered"):
    """Of a base that its subclasses must tell their label."""


class Inheriting(Both):
    """Calls what it overrides."""

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(above=super().forward(question=f"{question}!"), kind=self.__class__ is Inheriting)

    async def aforward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(above=await super().aforward(question=f"{question}!"), kind=True)


class Looking(dspy.Module):  # type: ignore[misc]
    """Looks at what its parts are."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.both = Both()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(
            names=[type(each).__name__ for each in (self, self.predict, self.both)],
            kinds=[isinstance(self.predict, dspy.Predict), isinstance(self.both, Both)],
            classes=[self.both.__class__ is Both, self.predict.__class__ is dspy.Predict],
            source=inspect.getsource(type(self.both)),
            same_source=inspect.getsource(self.both.__class__) == inspect.getsource(Both),
            module=(type(self.both).__module__, type(self.both).__qualname__, type(self.both).__doc__),
            signature=str(inspect.signature(self.both.forward)),
            awaited=inspect.iscoroutinefunction(self.both.aforward),
            repr=repr(self),
            answer=self.both(question=question).answer,
        )


class Raising(dspy.Module):  # type: ignore[misc]
    """Raises what it is given, from a part."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict(QA)
        self.inner = Calls(_raise)

    def forward(self, error: Exception) -> dspy.Prediction:
        self.predict(question="first")
        return self.inner(error=error)


class AsyncRaising(Raising):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Awaits(_raise_later)

    async def aforward(self, error: Exception) -> dspy.Prediction:
        await self.predict.acall(question="first")
        return await self.inner.acall(error=error)


def _raise(_: Any, error: Exception) -> Any:
    raise error


async def _raise_later(_: Any, error: Exception) -> Any:
    raise error


class Odd(Exception):
    """One whose making takes two."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


# --- what they do


def search(query: str) -> str:
    """Find something."""
    return f"found {query}"


async def search_later(query: str) -> str:
    """Find something, in time."""
    await asyncio.sleep(0)
    return f"found {query} later"


def broken(query: str) -> str:
    """Find nothing."""
    raise LookupError(f"no {query}")


def use(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"next_thought": "hm", "next_tool_name": tool, "next_tool_args": arguments}


DONE = {"reasoning": "so", "answer": "42"}


def submit(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"next_thought": "hm", "tool_calls": {"tool_calls": [{"name": tool, "args": arguments}]}}


def longer(_: Any, prediction: dspy.Prediction) -> float:
    return float(len(prediction.answer))


class Interpreter:
    """Runs code in this process: no sandbox, and no Deno."""

    def __init__(self) -> None:
        self.tools: dict[str, Any] = {}
        self.output_fields: list[dict[str, Any]] | None = None
        self._names: dict[str, Any] = {}

    def start(self) -> None:
        pass

    def shutdown(self) -> None:
        self._names.clear()

    def execute(self, code: str, variables: dict[str, Any] | None = None) -> Any:
        class Submitted(BaseException):
            pass

        def SUBMIT(*args: Any, **kwargs: Any) -> None:  # noqa: N802 - the name that models are told
            names = [field["name"] for field in self.output_fields or ()]
            raise Submitted({**dict(zip(names, args, strict=False)), **kwargs} if names else args[0])

        self._names |= {**self.tools, **(variables or {}), "SUBMIT": SUBMIT, "__name__": "sandbox"}
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                exec(code, self._names)
        except Submitted as submitted:
            return FinalOutput(submitted.args[0])
        except Exception as error:
            raise CodeExecutionError(f"{type(error).__name__}: {error}") from error
        return said.getvalue() or None


def deprecated(make: Callable[[], dspy.Module]) -> Callable[[], dspy.Module]:
    def source() -> dspy.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return make()

    return source


def in_parallel(self: Any, **inputs: Any) -> dspy.Prediction:
    pairs = [(self.predict, {"question": f"{number}"}) for number in range(6)]
    results = dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)
    return dspy.Prediction(answers=[result.answer for result in results])


def in_batch(self: Any, **inputs: Any) -> dspy.Prediction:
    examples = [dspy.Example(question=f"{number}").with_inputs("question") for number in range(6)]
    return dspy.Prediction(answers=[it.answer for it in self.sync.batch(examples, disable_progress_bar=True)])


def in_pool(self: Any, **inputs: Any) -> dspy.Prediction:
    import contextvars

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(contextvars.copy_context().run, self.predict, question=f"{n}") for n in range(6)]
        return dspy.Prediction(answers=[job.result().answer for job in jobs])


def in_evaluate(self: Any, **inputs: Any) -> dspy.Prediction:
    devset = [dspy.Example(question=f"{n}", answer="yes").with_inputs("question") for n in range(4)]
    evaluate = dspy.Evaluate(devset=devset, metric=dspy.evaluate.answer_exact_match, num_threads=2)
    return dspy.Prediction(score=evaluate(self.sync).score)


def in_loop(self: Any, **inputs: Any) -> dspy.Prediction:
    return asyncio.run(self.both.acall(**inputs))


def in_syncify(self: Any, **inputs: Any) -> dspy.Prediction:
    return dspy.syncify(self.both, in_place=False)(**inputs)


async def in_asyncify(self: Any, **inputs: Any) -> dspy.Prediction:
    return await dspy.asyncify(self.sync)(**inputs)


async def in_gather(self: Any, **inputs: Any) -> dspy.Prediction:
    answers = await asyncio.gather(*(self.predict.acall(question=f"{number}") for number in range(5)))
    return dspy.Prediction(answers=[answer.answer for answer in answers])


async def in_group(self: Any, **inputs: Any) -> dspy.Prediction:
    async with asyncio.TaskGroup() as group:
        one = group.create_task(self.predict.acall(**inputs))
        two = group.create_task(self.both.acall(**inputs))
    return dspy.Prediction(one=one.result(), two=two.result())


def with_settings(self: Any, **inputs: Any) -> dspy.Prediction:
    trace: list[Any] = []
    with dspy.context(adapter=dspy.JSONAdapter(), trace=trace):
        one = self.predict(**inputs)
    with dspy.context(adapter=dspy.XMLAdapter()):
        two = self.predict(**inputs)
    return dspy.Prediction(one=one, two=two, traced=[part is self.predict for part, *_ in trace])


def with_usage(self: Any, **inputs: Any) -> dspy.Prediction:
    with dspy.track_usage() as usage:
        prediction = self.predict(**inputs)
    return dspy.Prediction(prediction=prediction, usage=usage.get_total_tokens())


def with_lm(self: Any, **inputs: Any) -> dspy.Prediction:
    other = MockLM("other", model="mock/other").lm()
    with dspy.context(lm=other):
        one = self.both(**inputs)
    two = self.both(**inputs)
    return dspy.Prediction(one=one, two=two, calls=len(other.history), usage=one.get_lm_usage())


def with_callbacks(self: Any, **inputs: Any) -> dspy.Prediction:
    heard = Heard()
    with dspy.context(callbacks=[heard]):
        self.both(**inputs)
    return dspy.Prediction(told=heard.told)


def with_copies(self: Any, **inputs: Any) -> dspy.Prediction:
    copies = [self.both.deepcopy(), self.both.reset_copy(), copy.copy(self.both), copy.deepcopy(self.both)]
    copies += [cloudpickle.loads(cloudpickle.dumps(self.both, protocol)) for protocol in (2, 5)]
    return dspy.Prediction(
        answers=[each(**inputs).answer for each in copies],
        kinds=[type(each) is Both and type(each.first) in {dspy.Predict, type(self.both.first)} for each in copies],
        plain=[type(each.first) is dspy.Predict for each in copies if each.first is not self.both.first],
        states=[each.dump_state() for each in copies],
    )


def with_files(self: Any, **inputs: Any) -> dspy.Prediction:
    with tempfile.TemporaryDirectory() as folder:
        self.both.save(Path(folder) / "state.json")
        self.both.load(Path(folder) / "state.json")
        self.both.save(Path(folder) / "whole", save_program=True)
        whole = dspy.load(str(Path(folder) / "whole"), allow_pickle=True)
        return dspy.Prediction(kind=type(whole) is Both, one=whole(**inputs), two=self.both(**inputs))


def with_labeled(self: Any, **inputs: Any) -> dspy.Prediction:
    compiled = dspy.LabeledFewShot(k=2).compile(self.sync, trainset=TRAINSET)
    return dspy.Prediction(state=compiled.dump_state(), answer=compiled(**inputs).answer)


def with_bootstrap(self: Any, **inputs: Any) -> dspy.Prediction:
    compiled = dspy.BootstrapFewShot(max_bootstrapped_demos=2, max_labeled_demos=1).compile(
        self.sync, trainset=TRAINSET
    )
    return dspy.Prediction(state=compiled.dump_state(), answer=compiled(**inputs).answer)


def with_direct_forward(self: Any, **inputs: Any) -> dspy.Prediction:
    return dspy.Prediction(one=self.sync.forward(**inputs), two=self.predict.forward(**inputs))


def with_settings_on_a_part(self: Any, **inputs: Any) -> dspy.Prediction:
    self.both.first.demos = [dspy.Example(question="a", query="b")]
    self.both.second.predict.signature = self.both.second.predict.signature.with_instructions("Be brief.")
    self.both.set_lm(dspy.settings.lm.copy(temperature=0.3))
    prediction = self.both(**inputs)
    return dspy.Prediction(prediction=prediction, temperature=self.both.get_lm().kwargs["temperature"])


def with_patched_forward(self: Any, **inputs: Any) -> dspy.Prediction:
    before = self.sync.forward
    self.sync.forward = lambda **kwargs: dspy.Prediction(patched=before(**kwargs))
    try:
        return self.sync(**inputs)
    finally:
        del self.sync.forward


async def streamed(self: Any, **inputs: Any) -> dspy.Prediction:
    chunks: list[Any] = []
    listener = dspy.streaming.StreamListener(signature_field_name="answer")
    stream = dspy.streamify(self.both, stream_listeners=[listener], is_async_program=True)
    async for chunk in stream(**inputs):
        chunks.append(chunk if isinstance(chunk, dspy.Prediction) else (chunk.predict_name, chunk.chunk))
    return dspy.Prediction(chunks=chunks)


def own_lm() -> dspy.Module:
    module = Both()
    module.first.lm = MockLM("own", model="mock/own").lm()
    return module


def with_demos() -> dspy.Module:
    module = Both()
    module.first.demos = [dspy.Example(question=f"q{number}", query=f"r{number}") for number in range(3)]
    module.second.predict.demos = [{"query": "r", "question": "q", "reasoning": "s", "answer": "t"}]
    return module


def frozen() -> dspy.Module:
    module = Down(Both)
    module.inner._compiled = True
    return module


def heard_by_itself() -> dspy.Module:
    module = Sync()
    module.first.callbacks = [Marking()]
    return module


class Marking(dspy.utils.callback.BaseCallback):  # type: ignore[misc]
    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        instance.traces.append("started")


def patched() -> dspy.Module:
    """Its own `forward`, given to the instance, as `dspy.KNNFewShot` and others do."""
    module = Sync()
    predict = module.first
    module.forward = lambda **inputs: predict(**inputs)  # type: ignore[method-assign]
    return module


def patched_both() -> dspy.Module:
    module = Both()
    predict = module.first
    module.forward = lambda **inputs: predict(**inputs)  # type: ignore[method-assign]
    return module


def knn() -> dspy.Module:
    embed = dspy.Embedder(lambda texts: np.array([[len(text), 1.0] for text in texts]))
    found = dspy.KNN(k=2, trainset=TRAINSET, vectorizer=embed)

    def forward(self: Any, question: str) -> dspy.Prediction:
        return self.predict(question=question, demos=found(question=question))

    return Calls(forward)


def knn_few_shot(kind: type[dspy.Module] = Sync) -> dspy.Module:
    embed = dspy.Embedder(lambda texts: np.array([[len(text), 1.0] for text in texts]))
    return dspy.KNNFewShot(k=2, trainset=TRAINSET, vectorizer=embed, max_bootstrapped_demos=1).compile(kind())


TRAINSET = [
    dspy.Example(question=f"what is {'very ' * number}true?", answer="yes").with_inputs("question")
    for number in range(4)
]

REWARDED = script("a", "abc", "ab")

BOTH = {"sync": Sync, "both": Both, "predict": lambda: dspy.Predict(QA)}

ERRORS: dict[str, Exception] = {
    "ValueError": ValueError("bad"),
    "KeyError": KeyError("missing"),
    "Odd": Odd(1, 2),
    "TimeoutError": TimeoutError("late"),
    "RecursionError": RecursionError("deep"),
    "AssertionError": AssertionError("not so"),
    "StopAsyncIteration": StopAsyncIteration("over"),
    "ExceptionGroup": ExceptionGroup("two", [ValueError("a"), KeyError("b")]),
}

CASES: dict[str, Case] = {
    # Predict
    "predict": Case(source=lambda: dspy.Predict(QA)),
    "predict, a signature class": Case(
        source=lambda: dspy.Predict(Triage),
        answers=script({"kind": "bug", "urgency": 4, "tags": ["a", "b"]}),
        calls=[{"message": "it broke"}],
    ),
    "predict, a typed output": Case(
        source=lambda: dspy.Predict(Who),
        answers=script({"person": {"name": "Ada", "age": 36}}),
        calls=[{"text": "Ada, 36"}],
    ),
    "predict, n completions": Case(
        source=lambda: dspy.Predict(QA, n=3, temperature=1.0), answers=script("one", "two", "three")
    ),
    "predict, settings by call": Case(
        source=lambda: dspy.Predict(QA, max_tokens=7),
        calls=[
            {**WHY, "config": {"temperature": 0.5}},
            {**WHY, "demos": [dspy.Example(question="a", answer="b")]},
            {**WHY, "signature": dspy.Signature("question -> answer, doubt")},
        ],
    ),
    "predict, an input too many and one missing": Case(
        source=lambda: dspy.Predict("question, context -> answer"), calls=[{**WHY, "extra": 1}]
    ),
    "predict, no inputs": Case(source=lambda: dspy.Predict(QA), calls=[{}]),
    "a predictor's own LM": Case(source=own_lm),
    "demos": Case(source=with_demos),
    "several calls": Case(source=Both, calls=[{"question": f"{number}"} for number in range(4)]),
    "chain of thought": Case(source=lambda: dspy.ChainOfThought(QA)),
    "chain of thought, a class": Case(
        source=lambda: dspy.ChainOfThought(Triage),
        answers=script({"reasoning": "so", "kind": "wish", "urgency": 1, "tags": []}),
        calls=[{"message": "please"}],
    ),
    # agents
    "ReAct": Case(
        source=lambda: dspy.ReAct(QA, tools=[search]),
        answers=script(use("search", query="it"), use("search", query="more"), use("finish"), DONE),
    ),
    "ReAct, a failing tool": Case(
        source=lambda: dspy.ReAct(QA, tools=[broken]),
        answers=script(use("broken", query="it"), use("finish"), DONE),
        only="called",  # the observation has a traceback, and with synchronous tools alone it is a thread's
    ),
    "ReAct, an asynchronous tool": Case(
        source=lambda: dspy.ReAct(QA, tools=[search_later, search]),
        answers=script(use("search_later", query="it"), use("search", query="it"), use("finish"), DONE),
        only="awaited",
    ),
    "ReAct, out of turns": Case(
        source=lambda: dspy.ReAct(QA, tools=[search], max_iters=2),
        answers=script(use("search", query="1"), use("search", query="2"), DONE),
    ),
    "ReAct, turns by call": Case(
        source=lambda: dspy.ReAct(QA, tools=[search]),
        answers=script(use("search", query="1"), DONE),
        calls=[{**WHY, "max_iters": 1}],
    ),
    "ReAct, a tool that is not there": Case(
        source=lambda: dspy.ReAct(QA, tools=[search]),
        answers=script(use("other", query="1"), use("other", query="1"), DONE),
    ),
    "ReAct, a trajectory too long": Case(
        source=lambda: dspy.ReAct(QA, tools=[search]),
        answers=script(
            use("search", query="1"),
            use("search", query="2"),
            ContextLengthError("too long"),
            use("finish"),
            ContextLengthError("too long"),
            DONE,
        ),
    ),
    "ReAct in a module": Case(
        source=calls(lambda self, **inputs: self.agent(**inputs), agent=lambda: dspy.ReAct(QA, tools=[search])),
        answers=script(use("search", query="it"), use("finish"), DONE),
    ),
    "ReActV2": Case(
        source=lambda: dspy.ReActV2(QA, tools=[search]),
        answers=script(submit("search", query="it"), submit("submit", answer="42")),
    ),
    "ReActV2, forced": Case(
        source=lambda: dspy.ReActV2(QA, tools=[broken], max_iters=1),
        answers=script(submit("broken", query="it"), submit("submit", answer="42")),
        only="called",  # the observation has a traceback, and with synchronous tools alone it is a thread's
    ),
    # modules that run others several times
    "BestOfN": Case(
        source=lambda: dspy.BestOfN(dspy.Predict(QA), N=3, reward_fn=longer, threshold=9.0),
        answers=REWARDED,
        below=False,
    ),
    "BestOfN, good enough": Case(
        source=lambda: dspy.BestOfN(dspy.ChainOfThought(QA), N=3, reward_fn=longer, threshold=2.0),
        answers=REWARDED,
        below=False,
    ),
    "BestOfN of a pipeline": Case(
        source=lambda: dspy.BestOfN(Sync(), N=2, reward_fn=longer, threshold=9.0), below=False
    ),
    "BestOfN of failures": Case(
        source=lambda: dspy.BestOfN(Sync(), N=2, reward_fn=longer, threshold=9.0),
        answers=script(*[RateLimitError("slow")] * 9),
        below=False,
    ),
    "BestOfN in a module": Case(
        source=calls(
            lambda self, **inputs: self.best(**inputs),
            best=lambda: dspy.BestOfN(Sync(), N=3, reward_fn=longer, threshold=9.0),
        ),
        below=False,
        options={"rollout_id": 5, "temperature": 1.0},
    ),
    "Refine": Case(
        source=lambda: dspy.Refine(dspy.Predict(QA), N=3, reward_fn=longer, threshold=9.0),
        answers=script(
            "a",
            {"discussion": "hm", "advice": {"self": "say more"}},
            "abc",
            {"discussion": "hm", "advice": {"self": "say less"}},
            "ab",
        ),
        below=False,
    ),
    "Refine of a pipeline": Case(
        source=lambda: dspy.Refine(Sync(), N=2, reward_fn=longer, threshold=9.0),
        answers=script(
            "a",
            "b",
            {"discussion": "hm", "advice": {"first": "say more", "second.predict": "N/A"}},
            "c",
            "dd",
        ),
        below=False,
    ),
    "MultiChainComparison": Case(
        source=deprecated(lambda: dspy.MultiChainComparison(QA, M=2)),
        calls=[{**WHY, "completions": [{"reasoning": "a", "answer": "1"}, {"reasoning": "b", "answer": "2"}]}],
    ),
    # modules that run code
    "ProgramOfThought": Case(
        source=deprecated(lambda: dspy.ProgramOfThought(QA, interpreter_factory=Interpreter)),
        answers=script(
            {"reasoning": "x", "generated_code": "oops("},
            {"reasoning": "y", "generated_code": "x = 6\nSUBMIT({'answer': 7 * x})"},
            {"reasoning": "z", "answer": "42"},
        ),
    ),
    "CodeAct": Case(
        source=deprecated(lambda: dspy.CodeAct(QA, tools=[search], interpreter_factory=Interpreter)),
        answers=script(
            {"generated_code": "print(search('it'))", "finished": False},
            {"generated_code": "print(1 + 1)", "finished": True},
            DONE,
        ),
        only="called",  # it inherits an `aforward` that is not its own
    ),
    "RLM": Case(
        source=lambda: dspy.RLM(QA, interpreter_factory=Interpreter, tools=[search]),
        answers=script(
            {"reasoning": "look", "code": "print(search(query=question))"},
            {"reasoning": "done", "code": "SUBMIT(llm_query('sum up'))"},
            "summed up",
        ),
        calls=[WHY],
    ),
    "RLM in a module": Case(
        source=awaits(
            lambda self, **inputs: self.rlm.acall(**inputs),
            rlm=lambda: dspy.RLM(QA, interpreter_factory=Interpreter, max_iters=1),
        ),
        answers=script({"reasoning": "look", "code": "print(1)"}, {"answer": "42"}),
        only="awaited",
    ),
    # many at once
    "Parallel": Case(source=calls(in_parallel), ordered=False),
    "batch": Case(source=calls(in_batch, sync=Sync), ordered=False),
    "Evaluate": Case(source=calls(in_evaluate, sync=Sync), ordered=False),
    "a pool of threads": Case(source=calls(in_pool), ordered=False),
    "gather": Case(source=awaits(in_gather), ordered=False, only="awaited"),
    "a task group": Case(source=awaits(in_group, **BOTH), ordered=False, only="awaited"),
    # between threads and loops
    "a loop in a thread": Case(source=calls(in_loop, **BOTH)),
    "syncify": Case(source=calls(in_syncify, **BOTH), ordered=False),
    "asyncify": Case(source=awaits(in_asyncify, **BOTH), only="awaited"),
    "a synchronous pipeline": Case(source=Sync),
    "an asynchronous pipeline": Case(source=Both),
    # shapes
    "lists, tuples and dicts": Case(source=Nested),
    "shared parts": Case(source=Shared),
    "a module that calls itself": Case(source=Countdown),
    "a part that calls itself": Case(source=Down),
    "a part that calls its parent": Case(source=Parent),
    "parts that call each other": Case(source=PingPong),
    "modules made in a call": Case(source=Changing, calls=[WHY, WHY, WHY]),
    "slots": Case(source=Slotted, calls=[WHY, WHY]),
    "slots in a module": Case(source=calls(lambda self, **it: self.slotted(**it), slotted=Slotted)),
    "a dataclass": Case(source=Data),
    "a dataclass in a module": Case(source=lambda: Calls(lambda self, **it: self.data(**it), data=Data())),
    "__getattr__": Case(source=Delegating),
    "__setattr__": Case(source=Strict),
    "__reduce__": Case(source=Reduced, below=False),
    "__getstate__": Case(source=Stateful, below=False),
    "__deepcopy__": Case(source=DeepCopied, below=False),
    "__init_subclass__": Case(source=Registered),
    "a generic class": Case(source=lambda: Box[int](3)),
    "__call__ and acall": Case(source=Overriding),
    "__call__ and acall in a module": Case(source=lambda: Down(Overriding)),
    "no forward": Case(source=OnlyCall),
    "super": Case(source=Inheriting),
    "classes looked at": Case(source=Looking),
    "a frozen part": Case(source=frozen, below=False),
    "a forward of the instance's own": Case(source=patched),
    "a forward of the instance's own, beside an aforward": Case(source=patched_both, only="called"),
    "a forward patched in a call": Case(source=calls(with_patched_forward, **BOTH)),
    "forward called directly": Case(source=calls(with_direct_forward, **BOTH)),
    "parameters set in a call": Case(source=calls(with_settings_on_a_part, **BOTH), calls=[WHY, WHY]),
    "a module's own callbacks": Case(source=heard_by_itself),
    "KNN": Case(source=knn),
    "KNNFewShot": Case(source=knn_few_shot, below=False),
    "KNNFewShot, beside an aforward": Case(source=lambda: knn_few_shot(Both), below=False, only="called"),
    # settings
    "JSON": Case(source=Both, settings=lambda: {"adapter": dspy.JSONAdapter()}),
    "XML": Case(source=Both, settings=lambda: {"adapter": dspy.XMLAdapter()}),
    "two steps": Case(
        source=lambda: dspy.Predict(QA),
        settings=lambda: {"adapter": dspy.TwoStepAdapter(dspy.settings.lm or _extraction())},
        answers=script("free text", {"answer": "extracted"}),
    ),
    "settings in a call": Case(source=calls(with_settings)),
    "an LM in a call": Case(source=calls(with_lm, **BOTH)),
    "callbacks in a call": Case(source=calls(with_callbacks, **BOTH)),
    "usage in a call": Case(source=calls(with_usage)),
    "no trace": Case(source=Both, settings=lambda: {"trace": None}, below=False),
    "no usage": Case(source=Both, settings=lambda: {"track_usage": False}),
    "no history": Case(source=Both, settings=lambda: {"disable_history": True}),
    "a short trace": Case(source=Sync, settings=lambda: {"max_trace_size": 1}),
    # copies, files, optimizers
    "copies in a call": Case(source=calls(with_copies, **BOTH), below=False),
    "files in a call": Case(source=calls(with_files, **BOTH)),
    "LabeledFewShot": Case(source=calls(with_labeled, **BOTH), below=False),
    "BootstrapFewShot": Case(source=calls(with_bootstrap, **BOTH), below=False, ordered=False),
    "streamify in a call": Case(source=awaits(streamed, **BOTH), only="awaited"),
    # errors
    "an answer that cannot be parsed": Case(
        source=Both, answers=script({"query": "q"}, {"odd": "x"}, {"odd": "x"}), below=True
    ),
    "a typed answer that cannot be parsed": Case(
        source=lambda: dspy.Predict(Triage),
        answers=script(*[{"kind": "neither", "urgency": "x", "tags": "y"}] * 3),
        calls=[{"message": "?"}],
        below=False,
    ),
    "a rate limit": Case(source=Both, answers=script({"query": "q"}, RateLimitError("slow down"))),
    "a context too long": Case(source=Sync, answers=script({"query": "q"}, ContextLengthError("long"))),
    "an argument that is not taken": Case(source=Both, calls=[{"wrong": 1}], below=False),
    "a part with neither": Case(source=calls(lambda self, **_: asyncio.run(self.sync.acall()), **BOTH), below=False),
    **{
        f"{name}{how}": Case(source=source, calls=[{"error": error}], only="awaited" if how else None)
        for (how, source), (name, error) in itertools.product(
            {"": Raising, ", awaited": AsyncRaising}.items(), ERRORS.items()
        )
    },
}
"""By what is particular about it."""


def _extraction() -> dspy.LM:
    return MockLM({"default": {"answer": "extracted"}}).lm()
