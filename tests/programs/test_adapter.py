"""`promptside.programs.ChatAdapter` writes and reads what `dspy.ChatAdapter` does, and keeps no more than it may."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from functools import partial
from typing import Annotated, Any, Generic, Literal, NamedTuple, Optional, TypeVar
from unittest import mock

import annotated_types
import dspy
import hypothesis.strategies as st
import numpy as np
import pydantic
import pytest
from dspy.utils.callback import BaseCallback
from hypothesis import given
from typing_extensions import TypedDict

from promptside.programs import ChatAdapter, adapter
from promptside.testing import MockLM
from tests.support.module_cases import search

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
Item = TypeVar("Item")


class Mood(Enum):
    GOOD = "good\n"
    BAD = 2


class Tone(str, Enum):  # noqa: UP042 - its `str` is not its value, other than a StrEnum's
    LOW = "low"


class Point(pydantic.BaseModel):
    x: int = pydantic.Field(ge=0, description="to the right")
    mood: Mood | None = None


class Line(pydantic.BaseModel):
    """From a point to others."""

    begin: Point
    others: list[Line] = []


class Box(pydantic.BaseModel, Generic[Item]):
    item: Item


@dataclass
class Record:
    name: str
    when: datetime


class Pair(NamedTuple):
    left: int
    right: str


class Options(TypedDict):
    depth: int


class Event(dspy.Type):  # type: ignore[misc]
    name: str

    def format(self) -> list[dict[str, Any]]:
        return [{"type": "text", "text": f"event {self.name}\n"}]

    @classmethod
    def description(cls) -> str:
        return "What happened."


class Shout(dspy.Type):  # type: ignore[misc]
    text: str

    def format(self) -> str:
        return f" {self.text.upper()} \n"


class Text(str):
    """A text of the user's."""

    __slots__ = ()


class Unprintable:
    def __str__(self) -> str:
        raise LookupError("no text")


LOOP: list[Any] = []
LOOP.append(LOOP)
CALLS = dspy.ToolCalls.from_dict_list([{"name": "search", "args": {"query": "it"}}])

VALUES: dict[str, tuple[Any, list[Any]]] = {
    "str": (str, ["a", " b \n", "", "\ud800", Text("c \n"), ["one", "two\nlines", "«"], [], ["x"], 3, None]),
    "int": (int, [1, True, 10**30, "7"]),
    "float": (float, [0.5, float("nan"), float("-inf"), np.float32(0.5)]),
    "bool": (bool, [True, np.bool_(False)]),
    "bytes": (bytes, [b"a", b"\xff"]),
    "datetime": (datetime, [datetime(2026, 1, 2, tzinfo=UTC)]),
    "Enum": (Mood, [*Mood, "good"]),
    "Enum of texts": (Tone, [Tone.LOW]),
    "Literal": (Literal["a", "it's", 2, True], ["a", 2]),
    "Literal of an Enum": (Literal[Mood.GOOD], [Mood.GOOD]),
    "list": (list[str], [["a", "b \n"], [], [1, Mood.GOOD, Point(x=1)], ("a", 1), {"a"}, LOOP]),
    "bare list": (list, [["a", Event(name="e")]]),
    "dict": (
        dict[str, Any],
        [{"a": [1, None, float("nan")], "ü": Record("r", datetime(2026, 1, 2, tzinfo=UTC))}, {1: 2}],
    ),
    "dict of what cannot be printed": (dict[str, Any], [{"a": np.arange(2), "b": object}]),
    "tuple": (tuple[int, ...], [(1, 2), Pair(1, "b")]),
    "set": (set[int], [{1}, frozenset({2})]),
    "Optional": (Optional[int], [None, 3]),  # noqa: UP045 - another type than the next
    "union": (int | str | None, [None, "x", 3]),
    "Any": (Any, [None, "x", Point(x=1), int, 1j, np.arange(3), [np.float64(1)]]),
    "model": (Point, [Point(x=1), Point(x=2, mood=Mood.BAD), {"x": 3}]),
    "recursive model": (Line, [Line(begin=Point(x=1), others=[Line(begin=Point(x=2))])]),
    "generic model": (Box[int], [Box[int](item=1)]),
    "models in a dict": (dict[str, list[Point]], [{"a": [Point(x=1)]}]),
    "dataclass": (Record, [Record("r", datetime(2026, 1, 2, tzinfo=UTC))]),
    "named tuple": (Pair, [Pair(1, "b")]),
    "typed dict": (Options, [{"depth": 1}]),
    "Annotated": (list[Annotated[int, annotated_types.Ge(2)]], [[3]]),
    "Annotated without a hash": (list[Annotated[int, {}]], [[3]]),  # type: ignore[valid-type]
    "Image": (dspy.Image, [dspy.Image(PIXEL), dspy.Image("https://x.org/a.png")]),
    "Images": (list[dspy.Image], [[dspy.Image(PIXEL)] * 2]),
    "Image in a dict": (dict[str, dspy.Image], [{"a": dspy.Image(PIXEL)}]),
    "Audio": (dspy.Audio, [dspy.Audio(data="UklGRiQAAABXQVZF", audio_format="wav")]),
    "File": (dspy.File, [dspy.File(file_data="data:application/pdf;base64,QQ==")]),
    "Code": (dspy.Code["python"], [dspy.Code(code="x = 1\n")]),
    "Reasoning": (dspy.Reasoning, [dspy.Reasoning(content="so \n")]),
    "Tool": (dspy.Tool, [dspy.Tool(search)]),
    "Tools": (list[dspy.Tool], [[dspy.Tool(search)]]),
    "ToolCalls": (dspy.ToolCalls, [CALLS]),
    "custom type": (Event, [Event(name="e")]),
    "custom types": (list[Event] | None, [[Event(name="e")], None]),
    "custom type that is a text": (Shout, [Shout(text="s")]),
}
"""By kind, its annotation and values of it."""


def outcome(call: Callable[[], Any]) -> Any:
    """What a call gives: its value, or its error."""
    try:
        return call()
    except Exception as error:
        return type(error), str(error)


def formatted(by: dspy.Adapter, signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
    return outcome(lambda: by.format(signature, list(demos), dict(inputs)))


def check_same(ours: ChatAdapter, signature: Any, demos: Sequence[Any], inputs: Mapping[str, Any]) -> Any:
    """Compare the messages at the first and the second use."""
    expected = formatted(dspy.ChatAdapter(), signature, demos, inputs)
    for _ in range(2):
        # By `repr` too, for 1 == True.
        found = formatted(ours, signature, demos, inputs)
        assert found == expected
        assert repr(found) == repr(expected)
    return expected


def making(
    inputs: Mapping[str, Any], outputs: Mapping[str, Any], instructions: str = "Do it.", **field: Any
) -> type[dspy.Signature]:
    fields = {name: (annotation, dspy.InputField(**field)) for name, annotation in inputs.items()}
    fields |= {name: (annotation, dspy.OutputField(**field)) for name, annotation in outputs.items()}
    made: type[dspy.Signature] = dspy.Signature(fields, instructions)
    return made


def kept(ours: ChatAdapter) -> int:
    """How many texts it keeps."""
    return sum(len(entry.texts) for entry in ours._kept._entries.values())


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("annotation", "values"), VALUES.values(), ids=VALUES)
def test_messages_with_a_kind_of_field_are_those_of_dspy(annotation: Any, values: list[Any]) -> None:
    ours = ChatAdapter()
    signature = making({"question": str, "given": annotation}, {"made": annotation, "answer": str})
    for value in values:
        whole = {"question": "q", "given": value, "made": value, "answer": " a \n"}
        for demos in (
            [],
            [whole],
            [{"given": value, "made": value}],
            [{"question": "q", "made": None}],
            [{"given": 1}],
        ):
            check_same(ours, signature, demos, {"question": "why? ", "given": value})
        check_same(ours, signature, [dspy.Example(whole)], {"given": value})


def test_an_error_of_a_value_that_cannot_be_written_is_that_of_dspy() -> None:
    ours = ChatAdapter()
    assert check_same(ours, dspy.Signature("given: Any -> answer"), [], {"given": Unprintable()})[0] is LookupError
    assert check_same(ours, dspy.Signature("given -> answer"), [], {"given": [1]})[0] is TypeError
    # A tool has no JSON schema.
    signature = making({"question": str}, {"tool": dspy.Tool})
    assert check_same(ours, signature, [], {"question": "q"})[0] is pydantic.errors.PydanticInvalidForJsonSchema


ANNOTATIONS = st.sampled_from([annotation for annotation, _ in VALUES.values()])
NAMES = st.sampled_from(["question", "context", "given", "answer"])


@st.composite
def signatures(draw: st.DrawFn) -> type[dspy.Signature]:
    inputs = draw(st.dictionaries(NAMES, ANNOTATIONS, min_size=1, max_size=2))
    outputs = draw(st.dictionaries(NAMES.map(lambda name: f"{name}_out"), ANNOTATIONS, min_size=1, max_size=2))
    described = draw(st.sampled_from([{}, {"desc": "It."}, {"desc": ""}, {"desc": "Few.", "max_length": 3}]))
    return making(inputs, outputs, draw(st.sampled_from(["Do it.", "  Do\n    that.\n"])), **described)


EDITS: dict[str, Callable[[Any, str, Any], Any]] = {
    "instructions in place": lambda it, _, kind: setattr(it, "instructions", f"Now {kind}."),
    "instructions": lambda it, _, kind: it.with_instructions(f"Then {kind}."),
    "description in place": lambda it, name, kind: it.fields[name].json_schema_extra.update(desc=f"as {kind}"),
    "constraints in place": lambda it, name, kind: it.fields[name].json_schema_extra.update(constraints=f"c {kind}"),
    "description": lambda it, name, kind: it.with_updated_fields(name, desc=f"of {kind}"),
    "type in place": lambda it, name, kind: setattr(it.fields[name], "annotation", kind),
    "metadata in place": lambda it, name, kind: setattr(it.fields[name], "metadata", [list[Event]]),
    "type": lambda it, name, kind: it.with_updated_fields(name, type_=kind),
    "append": lambda it, _, kind: it.append("last", dspy.OutputField(), kind),
    "prepend": lambda it, _, kind: it.prepend("first", dspy.InputField(), kind),
    "delete": lambda it, name, _: it.delete(name) if min(len(it.input_fields), len(it.output_fields)) > 1 else None,
    "to the other side in place": lambda it, name, _: it.fields[name].json_schema_extra.update(
        __dspy_field_type="output" if name in it.input_fields else "input"
    ),
}
"""Changes of a signature: in place, or to another one."""


@given(data=st.data())
def test_one_adapter_writes_any_signatures_as_they_are_now(data: st.DataObject) -> None:
    ours = ChatAdapter()
    known = [data.draw(signatures())]
    for _ in range(data.draw(st.integers(1, 5))):
        signature = data.draw(st.sampled_from(known))
        name = data.draw(st.sampled_from(list(signature.fields)))
        edit = EDITS[data.draw(st.sampled_from(list(EDITS)))]
        if (changed := edit(signature, name, data.draw(ANNOTATIONS))) is not None:
            known.append(changed)
        for each in known:
            check_same(ours, each, [], dict.fromkeys(each.input_fields, "x"))


@pytest.mark.parametrize("name", EDITS)
def test_a_signature_that_is_changed_after_its_use_is_written_anew(name: str) -> None:
    ours = ChatAdapter()
    signature = making({"question": str, "more": list[Point]}, {"answer": str, "line": Line})
    before = check_same(ours, signature, [], {"question": "q"})
    changed = EDITS[name](signature, "line", dict[str, Event])
    after = check_same(ours, signature if changed is None else changed, [], {"question": "q"})
    assert after[0] != before[0], "the change does not show in the system message, and proves nothing"


def test_two_signatures_that_are_alike_share_their_texts_and_different_ones_do_not() -> None:
    ours = ChatAdapter()
    inputs = {"question": "q"}
    check_same(ours, making({"question": str}, {"answer": Point}), [], inputs)
    assert kept(ours) == 2
    check_same(ours, making({"question": str}, {"answer": Point}, "Other instructions."), [], inputs)
    assert kept(ours) == 2
    with mock.patch.object(dspy.ChatAdapter, "format_field_structure", side_effect=AssertionError("made anew")):
        ours.format(making({"question": str}, {"answer": Point}), [], inputs)
    others = (
        {"question": str, "answer": Point, "made": str},
        {"question": Point, "answer": str},
        {"answer": str, "question": Point},
        {"question": int | str, "answer": str | int},
        {"question": str | int, "answer": int | str},
    )
    for fields in others:
        first, *rest = fields
        check_same(ours, making({first: fields[first]}, {name: fields[name] for name in rest}), [], {first: "q"})


# -- types that change -------------------------------------------------------------------------------------------------


def rebuild(model: Any) -> None:
    model.model_fields["size"].description = "in metres"
    model.model_rebuild(force=True)


def rename(model: Any) -> None:
    model.__name__ = "Another"


def document(model: Any) -> None:
    model.__doc__ = "Now it says so."


def configure(model: Any) -> None:
    model.model_config["title"] = "Titled"


@pytest.mark.parametrize("change", [rebuild, rename, document, configure])
@pytest.mark.parametrize("annotate", [lambda it: it, lambda it: list[it], lambda it: Box[it] | None])
def test_a_model_that_is_changed_after_its_use_is_written_anew(
    change: Callable[[Any], None], annotate: Callable[[Any], Any]
) -> None:
    class Thing(pydantic.BaseModel):
        size: float

    class Whole(pydantic.BaseModel):
        parts: list[Thing]

    ours = ChatAdapter()
    changed = Thing if change is rebuild else Whole
    signature = making({"question": str}, {"whole": annotate(Whole), "thing": annotate(Thing)})
    before = check_same(ours, signature, [], {"question": "q"})
    assert kept(ours) == 2
    change(changed)
    after = check_same(ours, signature, [], {"question": "q"})
    if changed is Whole or signature.output_fields["thing"].annotation is Thing:
        assert after != before


def test_an_enum_whose_docstring_changes_is_written_anew() -> None:
    Size = Enum("Size", {"BIG": 1})  # noqa: N806 - a class
    ours = ChatAdapter()
    signature = making({"question": str}, {"sizes": list[Size]})  # type: ignore[valid-type]
    before = check_same(ours, signature, [], {"question": "q"})
    assert kept(ours) == 2
    Size.__doc__ = "How large."
    assert check_same(ours, signature, [], {"question": "q"}) != before


def test_a_model_that_is_not_whole_yet_fails_as_with_dspy_until_it_is() -> None:
    class Early(pydantic.BaseModel):
        later: Later  # type: ignore[name-defined]  # noqa: F821

    ours = ChatAdapter()
    signature = making({"question": str}, {"early": Early})
    assert isinstance(check_same(ours, signature, [], {"question": "q"}), tuple)
    Early.model_rebuild(_types_namespace={"Later": int})
    assert isinstance(check_same(ours, signature, [], {"question": "q"}), list)
    assert kept(ours) == 2


def writes_its_schema() -> Any:
    class Own(pydantic.BaseModel):
        @classmethod
        def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
            return {**handler(core), "description": f"No. {next(numbers)}"}

    return Own


def has_a_callable_in_its_settings() -> Any:
    class Own(pydantic.BaseModel):
        model_config = {"json_schema_extra": lambda schema: schema.update(number=next(numbers))}

    return Own


def has_a_callable_in_a_field() -> Any:
    class Own(pydantic.BaseModel):
        size: int = pydantic.Field(json_schema_extra=lambda schema: schema.update(number=next(numbers)))

    return Own


class Hook:
    """Writes another schema each time."""

    def __get_pydantic_json_schema__(self, core: Any, handler: Any) -> Any:
        return {**handler(core), "description": f"No. {next(numbers)}"}


def has_a_hook_in_a_field() -> Any:
    return pydantic.create_model("Own", size=(Annotated[int, Hook()], ...))


def has_a_hook_of_its_own() -> Any:
    return Annotated[int, Hook()]


def is_an_enum_with_a_hook() -> Any:
    class Own(Enum):
        ONE = 1

        @classmethod
        def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> Any:
            return {**handler(core), "description": f"No. {next(numbers)}"}

    return Own


def is_no_model() -> Any:
    class Own:
        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            return handler(Literal[f"No. {next(numbers)}"])

    return Own


numbers = iter(range(1_000_000))


@pytest.mark.parametrize(
    "make",
    [
        writes_its_schema,
        has_a_callable_in_its_settings,
        has_a_callable_in_a_field,
        has_a_hook_in_a_field,
        has_a_hook_of_its_own,
        is_an_enum_with_a_hook,
        is_no_model,
    ],
)
def test_a_schema_that_a_type_writes_each_time_is_not_kept(make: Callable[[], Any]) -> None:
    ours = ChatAdapter()
    signature = making({"question": str}, {"made": list[make()]})
    first, second = (ours.format(signature, [], {"question": "q"})[0]["content"] for _ in range(2))
    assert first != second
    assert kept(ours) == 1, "the descriptions of the fields alone"


def test_an_enum_whose_value_can_change_is_written_as_it_is_now() -> None:
    value = ["old"]
    Odd = Enum("Odd", {"A": value})  # noqa: N806 - a class
    ours = ChatAdapter()
    signature = making({"question": str}, {"odd": Odd})
    before = check_same(ours, signature, [], {"question": "q"})
    value[0] = "new"
    assert check_same(ours, signature, [], {"question": "q"}) != before


def test_a_types_description_that_changes_is_written_anew() -> None:
    said = ["nothing"]

    class Told(Event):
        @classmethod
        def description(cls) -> str:
            return said[-1]

    ours = ChatAdapter()
    signature = making({"events": list[Told]}, {"answer": str})
    before = check_same(ours, signature, [], {})
    said.append("all")
    assert check_same(ours, signature, [], {}) != before


def test_descriptions_that_are_no_texts_are_written_each_time() -> None:
    said = ["one"]
    signature = dspy.Signature("question -> answer")
    signature.fields["answer"].json_schema_extra["desc"] = said
    ours = ChatAdapter()
    check_same(ours, signature, [], {"question": "q"})
    said.append("two")
    check_same(ours, signature, [], {"question": "q"})
    assert kept(ours) == 0


# -- histories, tools, answers -----------------------------------------------------------------------------------------

MESSAGES: list[dict[str, Any]] = [
    {"question": "one?", "answer": "1"},
    {"question": "two?"},
    {"answer": "three \n"},
    {"question": Text("x"), "picture": dspy.Image(PIXEL), "answer": None},
]


@pytest.mark.parametrize("native", [False, True])
def test_histories_are_written_as_dspy_does(native: bool) -> None:
    ours = ChatAdapter(use_native_function_calling=native)
    plain = dspy.ChatAdapter(use_native_function_calling=native)
    signature = making({"question": str, "picture": dspy.Image, "history": dspy.History}, {"answer": str})
    with_calls = making(
        {"question": str, "tools": list[dspy.Tool], "history": dspy.History}, {"calls": dspy.ToolCalls, "answer": str}
    )
    results = [{"call_id": "1", "name": "search", "value": {"a": [1]}}]
    called = dspy.ToolCalls.from_dict_list([{"id": "1", "name": "search", "args": {"query": "it"}}])
    called = called.model_copy(update={"tool_call_results": dspy.ToolCallResults.model_validate(results)})
    told = [*MESSAGES, {"question": "q", "calls": called}, {"calls": called, "answer": "a"}]
    for each, messages in ((signature, MESSAGES), (signature, []), (with_calls, told)):
        for inputs in ({"question": "why?", "history": dspy.History(messages=messages)}, {"question": "why?"}, {}):
            expected = formatted(plain, each, [], inputs)
            assert [formatted(ours, each, [], inputs) for _ in range(2)] == [expected, expected]


async def predicted(
    make: type[dspy.ChatAdapter], module: Callable[[], dspy.Module], answers: Any, **inputs: Any
) -> Any:
    """What a predictor gives, twice synchronously and twice awaited, and what its LM was asked."""
    lm = MockLM(answers())
    predictor, seen = module(), []
    with dspy.context(lm=lm.lm(cache=False), adapter=make()):
        for _ in range(2):
            for call in (predictor, predictor.acall):
                try:
                    found = call(**inputs)
                    seen.append(dict(await found if asyncio.iscoroutine(found) else found))
                except Exception as error:
                    seen.append((type(error), str(error), type(error.__cause__)))
    return repr(seen), repr([(request.system, request.messages, request.config) for request in lm.requests])


POINTS = "[[ ## points ## ]]\n"

ANSWERS: dict[str, tuple[str, Callable[[], Any]]] = {
    "whole": ("question -> answer", lambda: "yes"),
    "typed": ("question -> points: list[Point], mood: Mood", lambda: {"default": {"points": [{"x": 1}], "mood": 2}}),
    "with a default": ("question -> answer, more: Optional[int]", lambda: lambda _: "[[ ## answer ## ]]\na\n"),
    "of another type": ("question -> points: list[Point]", lambda: lambda _: f"{POINTS}[{{'x': -1}}]"),
    "cut": ("question -> answer, points: list[Point]", lambda: lambda _: "[[ ## answer ## ]]\nso"),
    "without a header": ("question -> answer", lambda: lambda _: "Well."),
    "empty": ("question -> answer", lambda: lambda _: ""),
    "reasoning": (
        "question -> reasoning: dspy.Reasoning, answer",
        lambda: {"default": {"reasoning": "a", "answer": "b"}},
    ),
    "code": ("question -> code: dspy.Code", lambda: {"default": {"code": "```python\nx = 1\n```"}}),
    "tools": (
        "question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls",
        lambda: {"default": {"calls": CALLS.model_dump()}},
    ),
}


@pytest.mark.parametrize(("fields", "answers"), ANSWERS.values(), ids=ANSWERS)
@pytest.mark.parametrize("options", [{}, {"use_json_adapter_fallback": False}, {"use_native_function_calling": True}])
async def test_answers_and_errors_and_the_fallback_are_those_of_dspy(
    fields: str, answers: Callable[[], Any], options: dict[str, Any]
) -> None:
    made = dspy.Signature(fields, "Do it.", custom_types={"Point": Point, "Mood": Mood, "Optional": Optional})
    inputs = {"question": "why?", **({"tools": [dspy.Tool(search)]} if "tools" in fields else {})}
    run = partial(predicted, module=lambda: dspy.Predict(made), answers=answers, **inputs)
    plain = await run(partial(dspy.ChatAdapter, **options))
    assert await run(partial(ChatAdapter, **options)) == plain


# -- what DSPy tells of an adapter -------------------------------------------------------------------------------------


async def test_an_answer_streams_as_with_dspy() -> None:
    """DSPy's listeners know an adapter by the name of its class."""
    chunks: list[Any] = []
    with dspy.context(lm=MockLM("one two three").lm(cache=False), adapter=ChatAdapter()):
        program = dspy.streamify(
            dspy.Predict("question -> answer"), stream_listeners=[dspy.streaming.StreamListener("answer")]
        )
        chunks = [chunk async for chunk in program(question="?")]
    assert "".join(chunk.chunk for chunk in chunks[:-1]) == "one two three"


def test_callbacks_are_told_once_of_each_call() -> None:
    class Heard(BaseCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.told: list[str] = []

        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.told.append("format")

        def on_adapter_parse_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            self.told.append("parse")

    heard = Heard()
    with dspy.context(lm=MockLM("yes").lm(cache=False), adapter=ChatAdapter(callbacks=[heard])):
        dspy.Predict("question -> answer")(question="?")
    assert heard.told == ["format", "parse"]


def test_a_subclass_may_write_its_own() -> None:
    def make(base: type[dspy.ChatAdapter]) -> dspy.ChatAdapter:
        class Own(base):  # type: ignore[misc,valid-type]
            def format_field_description(self, signature: Any) -> str:
                return f"Fields: {super().format_field_description(signature)}"

            def format_field_with_value(self, fields_with_values: Any) -> Any:
                return super().format_field_with_value(fields_with_values).replace("##", "#")

        return Own()

    ours, plain, signature = make(ChatAdapter), make(dspy.ChatAdapter), dspy.Signature("question -> answer: list[int]")
    for _ in range(2):
        messages = ours.format(signature, [{"question": "q", "answer": [1]}], {"question": "?"})
        assert messages == plain.format(signature, [{"question": "q", "answer": [1]}], {"question": "?"})
        assert messages[0]["content"].startswith("Fields: ")
        assert messages[2]["content"].startswith("[[ # answer # ]]")


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_what_is_kept_is_bounded() -> None:
    ours = ChatAdapter()
    for number in range(adapter.MAX_KEPT + 20):
        ours.format(dspy.Signature(f"question -> answer_{number}"), [], {"question": "?"})
    assert len(ours._kept._entries) == adapter.MAX_KEPT
    assert kept(ours) == 2 * adapter.MAX_KEPT
    latest = dspy.Signature(f"question -> answer_{number}")
    with mock.patch.object(dspy.ChatAdapter, "format_field_structure", side_effect=AssertionError("made anew")):
        ours.format(latest, [], {"question": "?"})
    check_same(ours, dspy.Signature("question -> answer_0"), [], {"question": "?"})


def test_a_signature_is_not_held() -> None:
    ours = ChatAdapter()
    signature = making({"question": str}, {"answer": Point})
    ours.format(signature, [], {"question": "?"})
    gone = weakref.ref(signature)
    del signature
    gc.collect()
    assert gone() is None
    assert kept(ours) == 2


def test_an_id_that_stands_for_a_type_is_not_taken_by_another() -> None:
    """Types that are let go are followed by others in the same place."""
    ours = ChatAdapter()
    signature = dspy.Signature("question -> answer")
    info = signature.fields["answer"]
    for turn in range(200):
        info.annotation = None
        info.annotation = list[(int, str)[turn % 2]]  # type: ignore[misc]
        text = ours.format(signature, [], {"question": "?"})[0]["content"]
        assert ('{"type": "integer"}', '{"type": "string"}')[turn % 2] in text


def test_a_copy_keeps_nothing_yet_and_writes_the_same() -> None:
    ours = ChatAdapter(use_json_adapter_fallback=False)
    signature = dspy.Signature("question -> answer: int")
    expected = ours.format(signature, [], {"question": "?"})
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert kept(copied) == 0
        assert copied.use_json_adapter_fallback is False
        assert copied.format(signature, [], {"question": "?"}) == expected


def test_threads_that_share_an_adapter_each_get_their_own_messages() -> None:
    with mock.patch.object(adapter, "MAX_KEPT", 3):
        ours, plain = ChatAdapter(), dspy.ChatAdapter()
        known = [making({"question": str}, {f"answer_{number}": list[Point]}) for number in range(8)]
        expected = [formatted(plain, each, [], {"question": "?"}) for each in known]
        together = threading.Barrier(8)

        def write(first: int) -> None:
            together.wait()
            for turn in range(40):
                place = (first * 3 + turn) % 8
                assert formatted(ours, known[place], [], {"question": "?"}) == expected[place]

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(write, range(8)))
        assert len(ours._kept._entries) <= 3


def test_a_signature_that_changes_while_it_is_written_leaves_no_false_text() -> None:
    ours = ChatAdapter()
    signature = dspy.Signature("question -> answer")
    write = dspy.ChatAdapter.format_field_description

    def change(self: Any, signature: Any) -> str:
        signature.fields["answer"].json_schema_extra["desc"] = "new"
        text: str = write(self, signature)
        signature.fields["answer"].json_schema_extra["desc"] = "newer"
        return text

    with mock.patch.object(dspy.ChatAdapter, "format_field_description", change):
        ours.format_field_description(signature)
    assert kept(ours) == 0
    check_same(ours, dspy.Signature("question -> answer"), [], {"question": "?"})
    check_same(ours, signature, [], {"question": "?"})


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"callbacks": BaseCallback()}, "callbacks=<.*: give a list of BaseCallback objects, or None"),
        ({"callbacks": ()}, r"callbacks=\(\): give a list"),
        ({"use_native_function_calling": "no"}, "use_native_function_calling='no': give True or False"),
        ({"native_response_types": ["Reasoning"]}, "native_response_types=.*: give a list of types, such as dspy.R"),
        ({"use_json_adapter_fallback": 1}, "use_json_adapter_fallback=1: give True or False"),
        ({"parallel_tool_calls": "yes"}, "parallel_tool_calls='yes': give True, False or None"),
    ],
)
def test_an_argument_of_another_type_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"ChatAdapter: {said}"):
        ChatAdapter(**options)


def test_arguments_are_those_of_dspy() -> None:
    """By position, too."""
    given = ([BaseCallback()], True, [dspy.Reasoning], False, True)
    ours, plain = (vars(make(*given)) for make in (ChatAdapter, dspy.ChatAdapter))
    assert {name: value for name, value in ours.items() if name != "_kept"} == plain
    assert vars(ChatAdapter()).keys() - {"_kept"} == vars(dspy.ChatAdapter()).keys()
