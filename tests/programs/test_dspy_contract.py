"""What programs rely on in DSPy beyond its documentation. A test that fails here names what has to be adapted."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.adapters.utils import format_field_value
from dspy.streaming import StreamListener, StreamResponse
from dspy.utils.callback import BaseCallback

from promptside.programs import ChatAdapter
from promptside.programs.hosting.parts import Parameter
from promptside.testing import MockLM
from tests.support.modules import lm


@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
async def test_a_predictor_compares_itself_with_the_predict_of_each_listener_before_it_streams(kind: Any) -> None:
    """`hosting/streaming.py`, `_Listeners`: the predictors that are to stream are learned from that comparison."""
    compared: list[object] = []
    chunks: list[Any] = []

    class Listener:
        __hash__ = object.__hash__

        @property
        def predict(self) -> Listener:
            return self

        def __eq__(self, predictor: object) -> bool:
            compared.append(predictor)
            return True

    class Stream:
        chunks: list[Any] = []

        async def send(self, chunk: Any) -> None:
            chunks.append(chunk)

    module = kind("question -> answer")
    [(_, predictor)] = module.named_predictors()
    with dspy.context(lm=lm("yes"), send_stream=Stream(), stream_listeners=[Listener()]):
        await module.acall(question="?")
    assert compared == [predictor], "DSPy finds the predictors that stream in another way"
    assert {chunk.predict_id for chunk in chunks} == {id(predictor)}, "chunks no longer carry their predictor"


def test_a_listener_takes_its_predictor_and_the_name_of_that() -> None:
    """`hosting/streaming.py`: one listener for each field of each answer, made when its first chunk comes."""
    predictor = dspy.Predict("question -> answer")
    listener = StreamListener("answer", predictor, "name", allow_reuse=False)
    assert (listener.predict, listener.predict_name, listener.signature_field_name) == (predictor, "name", "answer")
    assert callable(listener.receive)
    assert callable(listener.finalize)
    assert [*StreamResponse.__dataclass_fields__] == [
        "predict_name",
        "signature_field_name",
        "chunk",
        "is_last_chunk",
    ]


def test_the_state_of_a_program_is_that_of_its_parameters() -> None:
    """`hosting/versions.py`, `hosting/parts.py`: a `Parameter` is what has state; a predictor is one."""
    module = dspy.ChainOfThought("question -> answer")
    assert all(isinstance(each, Parameter) for _, each in module.named_parameters())
    assert isinstance(dspy.Predict("question -> answer"), Parameter)
    assert set(module.dump_state()) - {"metadata"} == {"predict"}


def test_an_lm_of_a_synchronous_engine_alone_has_no_other_for_async_calls() -> None:
    """`hosting/entry.py`: a predictor with such an LM runs in a thread."""
    alone = dspy.LM("mock/mock", engine=MockLM("yes"))
    assert (isinstance(alone.engine, str), alone._async_engine_spec) == (False, None)
    assert isinstance(dspy.LM("openai/gpt-4o-mini").engine, str)
    assert MockLM("yes").lm()._async_engine_spec is not None


def test_a_value_is_written_by_the_function_that_the_chat_adapter_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """`adapter.py`: `format_field_value` writes what is of none of Python's own types."""
    called: list[object] = []

    def write(field_info: Any, value: Any) -> Any:
        called.append(value)
        return format_field_value(field_info=field_info, value=value)

    monkeypatch.setattr("dspy.adapters.chat_adapter.format_field_value", write)
    inputs = {"a": {1}, "b": ["x", "y"]}
    messages = dspy.ChatAdapter().format(dspy.Signature("a: set, b -> c"), [], inputs)
    assert called[-2:] == list(inputs.values())
    for name, info in dspy.Signature("a: set, b -> c").input_fields.items():
        assert f"[[ ## {name} ## ]]\n{format_field_value(info, inputs[name])}\n" in messages[-1]["content"]


def test_streams_know_an_adapter_by_the_name_of_its_class() -> None:
    """`adapter.py`: the class is named as DSPy's is."""
    assert ChatAdapter.__name__ in StreamListener("answer").adapter_identifiers


def test_dspy_wraps_format_and_parse_of_each_subclass() -> None:
    """`adapter.py` undoes it. When this fails, the two lines below the class can go."""
    told: list[str] = []

    class Heard(BaseCallback):  # type: ignore[misc]
        def on_adapter_format_start(self, call_id: str, instance: Any, inputs: Any) -> None:
            told.append(type(instance).__name__)

    class Below(dspy.ChatAdapter):  # type: ignore[misc]
        pass

    for kind in (dspy.ChatAdapter, ChatAdapter, Below):
        kind(callbacks=[Heard()]).format(dspy.Signature("question -> answer"), [], {"question": "?"})
    assert told == ["ChatAdapter", "ChatAdapter", "Below", "Below"]
