"""A module run plainly and its twin run as a program, and everything that a user could see of either.

`Case` says what runs; `plainly` and `hosted` run it, each with a module and an LM of its own, and give what was seen as
one dict, which is the same for both if hosting changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import dspy
import pydantic
import pytest
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside import ActorRef, ActorSystem
from promptside.programs import Program
from promptside.testing import MockLM


def script(*answers: Any) -> Callable[[], Any]:
    """Answers for `MockLM`, one after the other; an exception is raised."""

    def make() -> Any:
        left = iter(answers)

        def answer(_: Any) -> Any:
            found = next(left)
            if isinstance(found, Exception):
                raise found
            return found

        return answer

    return make


@dataclass(frozen=True, kw_only=True)
class Case:
    """What runs.

    Attributes:
        source: Makes the module.
        answers: Makes what the LM says.
        calls: The inputs of each call.
        settings: Makes what `dspy.context` gets besides.
        options: Of the LM.
        below: Whether predictors run in actors of their own below the module's; False where it makes or copies them.
        ordered: Whether the calls below one call have an order.
        only: The one way in which DSPy itself can call it, or of which it tells the same as of the other: the program
            must then do as this way does, however it is called itself.
    """

    source: Callable[[], dspy.Module]
    answers: Callable[[], Any] = lambda: "yes"
    calls: Sequence[Mapping[str, Any]] = ({"question": "why?"},)
    settings: Callable[[], dict[str, Any]] = dict
    options: Mapping[str, Any] | None = None
    below: bool = True
    ordered: bool = True
    only: Literal["awaited", "called"] | None = None


class Heard(BaseCallback):  # type: ignore[misc]
    """Everything that DSPy tells callbacks: what began below what, with which inputs, and how it ended."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self._names: dict[str | None, str] = {None: "nothing"}

    @property
    def hooks(self) -> set[str]:
        """The kinds of calls that were told."""
        return {name.partition(" ")[0] for name, *_ in self.told}

    def _begin(self, hook: str, call_id: str, instance: Any, detail: Any) -> None:
        parent = self._names.get(ACTIVE_CALL_ID.get(), "a call that was never told")
        self._names[call_id] = name = f"{hook} {getattr(instance, 'name', type(instance).__name__)}"
        self.told.append((name, "below", parent, detail))

    def _end(self, call_id: str, outputs: Any, exception: BaseException | None) -> None:
        self.told.append(
            (self._names[call_id], "ended", _shown(outputs), None if exception is None else type(exception))
        )

    def __getattribute__(self, name: str) -> Any:
        hook, _, moment = name.removeprefix("on_").rpartition("_")
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        if moment == "start":
            return lambda call_id, instance, inputs: self._begin(hook, call_id, instance, _told(hook, instance, inputs))
        return lambda call_id, outputs, exception=None: self._end(call_id, outputs, exception)


def _told(hook: str, instance: Any, inputs: dict[str, Any]) -> Any:
    """The inputs of a call, as far as they can be compared."""
    if hook == "lm":
        return (instance.kwargs.get("rollout_id"), instance.kwargs.get("temperature"))
    if hook in ("module", "tool", "interpreter_execute", "interpreter_tool_call"):
        return repr(_shown(inputs)).partition(" at 0x")[0]
    return sorted(inputs)


class Watch:
    """One run of a case: its module, its LM, and what was seen.

    Args:
        case: What runs.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.module = case.source()
        self.mock = MockLM(case.answers())
        self.lm = self.mock.lm(**(case.options or {}))
        self._heard = Heard()
        self._trace: list[Any] = []

    async def run(self, call: Callable[..., Awaitable[Any]]) -> dict[str, Any]:
        """Make the calls, and tell all.

        Args:
            call: Of the module or the program, with the inputs.
        """
        before = _state(self.module)
        settings = {
            "lm": self.lm,
            "trace": self._trace,
            "track_usage": True,
            "callbacks": [self._heard],
            **self.case.settings(),
        }
        outcomes = []
        with dspy.context(**settings):
            for inputs in self.case.calls:
                try:
                    outcomes.append(_shown(await call(**inputs)))
                except Exception as error:
                    outcomes.append((type(error), str(error), type(error.__cause__)))
        return {
            "outcomes": outcomes,
            "trace": self._sorted([(self.path(it), _shown(inputs), _shown(out)) for it, inputs, out in self._trace]),
            "requests": self._sorted([(request.system, request.messages) for request in self.mock.requests]),
            "history": self._sorted([_entry(entry) for entry in self.lm.history]),
            "histories": {
                name: self._sorted([_entry(entry) for entry in each.history])
                for name, each in self.module.named_sub_modules(dspy.Module)
            },
            "callbacks": self._sorted(self._heard.told),
            "before": before,
            "after": _state(self.module),
        }

    def path(self, predictor: Any) -> str:
        """Of a predictor in the trace; its kind for one that is no part of the module."""
        names = (name.removeprefix("self.") for name, each in self.module.named_sub_modules() if each is predictor)
        return next(names, type(predictor).__name__)

    @property
    def traced(self) -> set[int]:
        """The predictors that have run, by `id`."""
        return {id(predictor) for predictor, *_ in self._trace}

    def _sorted(self, seen: list[Any]) -> list[Any]:
        return seen if self.case.ordered else sorted(seen, key=repr)


WAYS = ["awaited", "from a thread"]


def by_turns(cases: Mapping[str, Case]) -> list[Any]:
    """Each case one way by day, by turns, and the other way by night; for `pytest.mark.parametrize`."""
    return [
        pytest.param(case, way, id=f"{name}-{way}", marks=[] if way == WAYS[number % 2] else [pytest.mark.nightly])
        for number, (name, case) in enumerate(cases.items())
        for way in WAYS
    ]


async def check_alike(case: Case, way: str) -> None:
    """Run both, and compare all that was seen."""
    expected = await plainly(case, thread=way == WAYS[1])
    seen = await hosted(case, thread=way == WAYS[1])
    for what, value in expected.items():
        assert seen[what] == value, what


async def plainly(case: Case, *, thread: bool) -> dict[str, Any]:
    """Run the module as DSPy does, from a thread or awaited."""
    watch = Watch(case)
    if not hasattr(watch.module, "aforward") or (case.only or ("called" if thread else "awaited")) == "called":
        return await watch.run(lambda **inputs: asyncio.to_thread(watch.module, **inputs))
    return await watch.run(watch.module.acall)


async def hosted(case: Case, *, thread: bool) -> dict[str, Any]:
    """Run the module as a program, its handle called from a thread or awaited."""
    watch = Watch(case)
    async with ActorSystem() as system:
        program = await Program(watch.module).start(system)
        if thread:
            seen = await watch.run(lambda **inputs: asyncio.to_thread(program, **inputs))
        else:
            seen = await watch.run(program.acall)
        _check_actors(case, program, watch)
    return seen


def _check_actors(case: Case, program: Program, watch: Watch) -> None:
    """It was the actors that ran, or there would be nothing to prove."""
    assert program.ref.incarnation == 1
    assert _handled(program.ref) == len(case.calls)
    parts = {id(part.module): part.ref for part in program._running().parts.values() if part.path != "self"}
    ran = {key for key, ref in parts.items() if _handled(ref)}
    assert ran or not parts or not case.below, "no part of the program has run in its actor"
    assert watch.traced & set(parts) <= ran


def _handled(ref: ActorRef[Any]) -> int:
    info = ref.info()
    return info.handled + info.failed


def _state(module: dspy.Module) -> dict[str, Any]:
    try:
        parameters = {name: _state_of(each) for name, each in module.named_parameters()}
        text = repr(module)
    except RecursionError:  # a module that contains itself: DSPy cannot list it
        parameters, text = {}, ""
    return {
        "parameters": parameters,
        "modules": [name for name, _ in module.named_sub_modules(dspy.Module)],
        "class": (type(module).__name__, type(module).__qualname__, type(module).__module__, type(module).__doc__),
        "repr": text,
        "attributes": {name: type(value).__name__ for name, value in vars(module).items()},
    }


def _state_of(predictor: Any) -> Any:
    lm = getattr(predictor, "lm", None)  # a mock cannot be saved
    if lm is None:
        return predictor.dump_state()
    predictor.lm = None
    try:
        return {**predictor.dump_state(), "lm": (lm.model, lm.kwargs)}
    finally:
        predictor.lm = lm


def _shown(value: Any) -> Any:
    """What an outcome says, to be compared by `==`."""
    if isinstance(value, dspy.Prediction):
        completions = value._completions
        return {
            "kind": type(value),
            "fields": {name: _shown(each) for name, each in value.items()},
            "completions": None if completions is None else dict(completions.items()),
            "usage": value.get_lm_usage(),
        }
    if isinstance(value, Mapping):
        return {name: _shown(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_shown(each) for each in value]
    if isinstance(value, dspy.Module):
        return type(value).__name__, repr(value)
    if isinstance(value, dspy.Tool) or (isinstance(value, type) and issubclass(value, pydantic.BaseModel)):
        return repr(value)  # each module and each call makes another
    return value


def _entry(entry: dict[str, Any]) -> dict[str, Any]:
    kept = ("prompt", "messages", "kwargs", "outputs", "usage", "cost", "model", "model_type")
    return {name: _shown(entry.get(name)) for name in kept}
