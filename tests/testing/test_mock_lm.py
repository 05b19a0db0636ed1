"""`promptside.testing.MockLM`: its three modes, how its answers are laid out, and its place under DSPy."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import dspy
import pytest
from dspy.lm15 import (
    Message,
    RateLimitError,
    Request,
    Response,
    StreamDeltaEvent,
    StreamEndEvent,
    StreamStartEvent,
    TextPart,
)

from promptside import testing
from promptside.testing import FakeServer, MockLM, run_virtual
from promptside.testing.replies import NoAnswer, Prompt, reply

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]
by_adapter = pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)


class Triage(dspy.Signature):  # type: ignore[misc]
    """Sort a support ticket."""

    ticket: str = dspy.InputField()
    category: Literal["billing", "bug", "other"] = dspy.OutputField()
    urgency: int = dspy.OutputField(desc="1. `low` to 5. `high`")
    tags: list[str] = dspy.OutputField()


def request(text: str) -> Request:
    return Request(model="mock/mock", messages=(Message.user(text),))


def text_of(response: Response) -> str | None:
    text: str | None = response.message.text
    return text


def test_a_map_answers_by_the_first_substring_and_else_by_default() -> None:
    mock = MockLM({"What is the capital of France?": "Paris", "capital": "which?", "default": "mock response"})
    assert text_of(mock.complete(request("What is the capital of France?"))) == "Paris"
    assert text_of(mock.complete(request("What is the capital of Spain?"))) == "which?"
    assert text_of(mock.complete(request("Hello"))) == "mock response"


def test_the_last_user_message_decides() -> None:
    turns = (Message.user("France"), Message.assistant("Paris"), Message.user("Spain"))
    mock = MockLM({"France": "Paris", "Spain": "Madrid"})
    assert text_of(mock.complete(Request(model="m", messages=turns))) == "Madrid"


def test_a_system_message_in_parts_is_read_as_text() -> None:
    system = dspy.ChatAdapter().format_system_message(dspy.Signature("question -> answer"))
    parts = (TextPart(system[:50]), TextPart(system[50:]))
    with_parts = Request(model="m", system=parts, messages=(Message.user("?"),))
    assert "[[ ## answer ## ]]" in (text_of(MockLM("Paris").complete(with_parts)) or "")


def test_without_answers_it_says_mock_response() -> None:
    assert text_of(MockLM().complete(request("Hello"))) == "mock response"


def test_a_prompt_that_no_key_matches_is_an_error_that_names_prompt_keys_and_remedy() -> None:
    lm = MockLM({"France": "Paris", "Italy": "Rome"}).lm()
    with dspy.context(lm=lm), pytest.raises(dspy.LMInvalidRequestError) as caught:
        dspy.Predict("question -> answer")(question="Spain?")
    assert "'France', 'Italy'" in str(caught.value)
    assert "Spain?" in str(caught.value)
    assert '"default"' in str(caught.value)
    assert caught.value.__cause__ is not None
    assert isinstance(caught.value.__cause__.__cause__, NoAnswer)


def test_random_answers_are_mock_1_to_1000_and_follow_from_the_seed() -> None:
    def draw(seed: int) -> list[str | None]:
        mock = MockLM(random=seed)
        return [text_of(mock.complete(request("x"))) for _ in range(200)]

    answers = draw(7)
    assert answers == draw(7) != draw(8)
    numbers = [int((answer or "").removeprefix("mock_")) for answer in answers]
    assert min(numbers) >= 1
    assert max(numbers) <= 1000
    assert len(set(numbers)) > 100


def test_a_function_answers_from_the_request() -> None:
    mock = MockLM(lambda request: f"{request.model} heard {request.messages[-1].text}")
    assert text_of(mock.complete(request("hello"))) == "mock/mock heard hello"


def test_what_a_function_raises_is_what_the_model_raises() -> None:
    def fail(request: Request) -> str:
        raise RateLimitError("slow down", retry_after=2.0)

    mock = MockLM(fail)
    with dspy.context(lm=mock.lm()), pytest.raises(dspy.LMRateLimitError) as caught:
        dspy.Predict("question -> answer")(question="?")
    assert caught.value.retry_after == 2.0
    assert mock.calls == 1


@by_adapter
def test_a_plain_text_answers_a_signature_under_every_adapter(adapter: Any) -> None:
    mock = MockLM("a < b & [[c]]")
    with dspy.context(lm=mock.lm(), adapter=adapter):
        assert dspy.Predict("question -> answer")(question="?").answer == "a < b & [[c]]"
        thought = dspy.ChainOfThought("question -> answer")(question="?")
    assert thought.reasoning == thought.answer == "a < b & [[c]]"
    assert mock.calls == 2


@by_adapter
def test_fields_answer_a_typed_signature_under_every_adapter(adapter: Any) -> None:
    fields = {"category": "bug", "urgency": 3, "tags": ["a & b", "<c>"], "surplus": None}
    mock = MockLM({"default": fields})
    with dspy.context(lm=mock.lm(), adapter=adapter):
        prediction = dspy.Predict(Triage)(ticket="it crashes")
    assert prediction.toDict() == {"category": "bug", "urgency": 3, "tags": ["a & b", "<c>"]}
    assert mock.calls == 1


@by_adapter
def test_the_fake_server_lays_answers_out_alike(adapter: Any) -> None:
    fields = {"category": "bug", "urgency": 3, "tags": ["a"]}
    with FakeServer({"crashes": fields}) as server:
        lm = dspy.LM("openai/m", api_base=server.url, api_key="none", engine="lm15", cache=False)
        with dspy.context(lm=lm, adapter=adapter):
            assert dspy.Predict(Triage)(ticket="it crashes").toDict() == fields
        assert len(server.requests) == 1


def test_a_missing_field_is_left_out_so_that_the_parser_says_so() -> None:
    with (
        dspy.context(lm=MockLM({"default": {"category": "bug"}}).lm()),
        pytest.raises(dspy.AdapterParseError, match="urgency"),
    ):
        dspy.Predict(Triage)(ticket="it crashes")


def test_a_raw_call_gets_the_text_itself_and_fields_as_json() -> None:
    assert MockLM("Paris").lm()("The capital of France?") == ["Paris"]
    assert MockLM({"default": {"n": 1}}).lm()("n?") == ['{"n": 1}']


@pytest.mark.parametrize(
    ("system", "schema", "text"),
    [
        ("[[ ## answer ## ]] [[ ## completed ## ]]", None, "[[ ## answer ## ]]\nParis\n\n[[ ## completed ## ]]"),
        ("<answer>", None, "<answer>\nParis\n</answer>"),
        ("a JSON object", None, '{"answer": "Paris"}'),
        ("", {"properties": {"answer": {}}}, '{"answer": "Paris"}'),
    ],
)
def test_a_text_that_is_laid_out_already_goes_out_unchanged(system: str, schema: Any, text: str) -> None:
    fields = "Your output fields are:\n1. `answer` (str): \nAll interactions will be structured so: "
    prompt = Prompt(system=fields + system, user="?", schema=schema)
    assert reply(text, prompt) == text
    assert reply("Paris", prompt) == text


def test_async_calls_wait_their_latency_together() -> None:
    mock = MockLM("yes", latency=0.05)
    predict = dspy.Predict("question -> answer")

    async def main() -> float:
        with dspy.context(lm=mock.lm()):
            await asyncio.gather(*(predict.acall(question=str(i)) for i in range(50)))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(0.05)
    assert mock.calls == 50


def test_sync_calls_wait_their_latency() -> None:
    began = time.perf_counter()
    MockLM(latency=0.05).complete(request("x"))
    assert time.perf_counter() - began >= 0.05


def test_calls_from_many_threads_are_all_counted_and_the_last_requests_kept() -> None:
    mock = MockLM(random=1)
    barrier = threading.Barrier(8)

    def call_often(thread: int) -> None:
        barrier.wait()
        for i in range(200):
            mock.complete(request(f"{thread} {i}"))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call_often, range(8)))
    assert mock.calls == 1600
    assert len(mock.requests) == 100


def test_usage_counts_words() -> None:
    usage = MockLM("one two").complete(request("three small words")).usage
    assert (usage.input_tokens, usage.output_tokens, usage.total_tokens) == (3, 2, 5)


async def test_streams_come_word_by_word_from_both_engines() -> None:
    mock = MockLM("one two three")
    sync = list(mock.stream(request("?")))
    assert [event async for event in mock.async_engine.stream(request("?"))] == sync
    start, *deltas, end = sync
    assert isinstance(start, StreamStartEvent)
    assert [delta.delta.text for delta in deltas if isinstance(delta, StreamDeltaEvent)] == ["one ", "two ", "three"]
    assert isinstance(end, StreamEndEvent)
    assert end.usage is not None
    assert end.usage.output_tokens == 3


async def test_dspy_streams_the_tokens_of_a_field() -> None:
    predict = dspy.Predict("question -> answer")
    stream = dspy.streamify(predict, stream_listeners=[dspy.streaming.StreamListener(signature_field_name="answer")])
    with dspy.context(lm=MockLM("one two three four five six seven eight nine ten eleven twelve").lm()):
        received = [item async for item in stream(question="?")]
    *chunks, prediction = received
    assert len(chunks) > 1
    assert "".join(chunk.chunk for chunk in chunks) == prediction.answer


def test_copies_of_an_lm_share_the_mock_and_its_counts() -> None:
    mock = MockLM("yes")
    lm = mock.lm()
    lm.copy(temperature=1.0)("one")
    copy.deepcopy(lm)("two")
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    program.deepcopy()(question="three")
    assert mock.calls == 3


def test_options_of_the_lm_are_dspys() -> None:
    lm = MockLM(model="mock/other").lm(temperature=0.3)
    assert lm.model == "mock/other"
    assert lm.kwargs["temperature"] == 0.3
    assert (lm.cache, lm.num_retries) == (False, 0)


async def test_closing_releases_nothing_and_the_mock_goes_on() -> None:
    mock = MockLM("yes")
    mock.close()
    await mock.async_engine.aclose()
    assert text_of(await mock.async_engine.complete(request("?"))) == "yes"


def test_misuse_is_an_error_with_its_remedy() -> None:
    with pytest.raises(ValueError, match="MockLM: random=1: give answers or random, not both"):
        MockLM("x", random=1)
    with pytest.raises(ValueError, match="latency=-1"):
        MockLM(latency=-1)


def test_the_fake_server_is_imported_without_dspy() -> None:
    probe = "import sys, promptside.testing as kit; kit.FakeServer, kit.Fault; print('dspy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_name_that_the_kit_has_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Nothing"):
        _ = testing.Nothing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MockLM(5), "MockLM: answers=5: give a text, a mapping"),
        (lambda: MockLM(random=[]), r"MockLM: random=\[\]: give a whole number"),
        (lambda: MockLM(model=5), "MockLM: model=5: give a text"),
    ],
)
def test_what_a_mock_cannot_use_is_named_in_the_error(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
