"""What is relied on in DSPy beyond its documented interface; each test names one thing, and how it has to behave.

A test that fails here says what has moved in DSPy. The things are imported from where the package imports them.
"""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import math
import threading
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import formatdate
from typing import Any

import dspy
import httpx
import numpy as np
import pytest
from dspy import lm15
from dspy._vendor.lm15.providers.base import _attach_error_metadata
from dspy._vendor.lm15.sse import aparse_sse
from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy.clients import execution, model_metadata
from dspy.clients import lm as dspy_lm
from dspy.clients._deprecation import warn_legacy_lm, warn_openai_messages
from dspy.clients._http import retry_after_seconds
from dspy.clients._litellm import get_litellm
from dspy.clients.backend_selection import CLIENT_KEYS, select_backend
from dspy.clients.base_lm import GLOBAL_HISTORY, LM_CLASS_STATE_KEY, BaseLM, record_history
from dspy.clients.call_result import usage_dict
from dspy.clients.costs import estimate_cost
from dspy.clients.engines.litellm_engine import AsyncLiteLLMEngine, _ChatStream
from dspy.clients.engines.litellm_errors import litellm_errors, to_lm15_error
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for
from dspy.clients.errors import wrap_error
from dspy.clients.execution import aexecute, execute, finalize, prepare
from dspy.dsp.utils.settings import dotdict, main_thread_config, thread_local_overrides
from dspy.evaluate.evaluate import EvaluationResult
from dspy.lm15 import RouterConfig
from dspy.predict.parameter import Parameter
from dspy.streaming.messages import StatusStreamingCallback
from dspy.utils.callback import BaseCallback, with_callbacks
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside.pools.clients.endpoint import CONNECTION
from promptside.pools.clients.lm_call import PER_CALL
from promptside.testing import FakeServer, MockLM

ASKED = lm15.Request(model="openai/fake", messages=(lm15.Message.user("hello"),))


def names(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters)


@contextmanager
def overridden(**settings: Any) -> Iterator[None]:
    token = thread_local_overrides.set(dotdict({**thread_local_overrides.get(), **settings}))
    try:
        yield
    finally:
        thread_local_overrides.reset(token)


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["openai-chat", "openai", "anthropic", "gemini"])
def test_a_client_of_lm15_reads_answers_through_its_dialect_and_streams_through_a_method_of_its_own(
    provider: str,
) -> None:
    client = lm15.AsyncLMRouter(RouterConfig(api_keys={provider: "key"})).lm(f"{provider}:model")
    assert names(client._inner.parse_response) == {"request", "response"}
    assert names(client._inner.parse_stream_events) == {"request", "raw_event"}
    assert names(client._inner.normalize_error) == {"status", "body"}
    assert names(client._inner._http_error) == {"response"}
    assert names(client._stream_raw) == {"request", "req"}
    client._stream_raw = "one of our own"
    assert client._stream_raw == "one of our own"


def test_sse_is_parsed_with_limits_that_can_be_given() -> None:
    assert {"max_line_bytes", "max_event_bytes"} <= names(aparse_sse)


def test_the_headers_of_a_refusal_are_read_into_its_error() -> None:
    error = lm15.RateLimitError("no")
    _attach_error_metadata(error, [("retry-after-ms", "250"), ("x-request-id", "7")])
    assert (error.retry_after, error.request_id) == (0.25, "7")


# -- settings ----------------------------------------------------------------------------------------------------------


def test_thread_local_overrides_is_a_contextvar_with_a_mapping_that_settings_read_first() -> None:
    assert isinstance(thread_local_overrides, contextvars.ContextVar)
    assert dict(contextvars.Context().run(thread_local_overrides.get)) == {}
    with overridden(max_errors=3, promptside_of_our_own="here"):
        assert dspy.settings.max_errors == 3
        assert dspy.settings.get("promptside_of_our_own") == "here"
        with dspy.context(max_errors=4):
            assert thread_local_overrides.get()["promptside_of_our_own"] == "here"
        assert dspy.settings.max_errors == 3
    assert "promptside_of_our_own" not in dspy.settings


def test_a_key_of_ones_own_in_the_overrides_reaches_the_threads_that_dspy_starts() -> None:
    class Look(dspy.Module):  # type: ignore[misc]
        def forward(self) -> dspy.Prediction:
            overrides = thread_local_overrides.get()
            return dspy.Prediction(seen=overrides.get("promptside_of_our_own"), thread=threading.get_ident())

    with overridden(promptside_of_our_own="here"):
        found = dspy.Parallel(num_threads=2, disable_progress_bar=True)([(Look(), {}), (Look(), {})])
    assert [each.seen for each in found] == ["here"] * 2
    assert threading.get_ident() not in {each.thread for each in found}


def test_main_thread_config_is_what_a_context_copies() -> None:
    assert main_thread_config.get("no such key") is None
    with dspy.context():
        assert thread_local_overrides.get()["lm"] is main_thread_config.get("lm")


def test_dotdict_is_a_dict_that_reads_its_keys_as_attributes() -> None:
    made = dotdict({"one": 1})
    assert isinstance(made, dict)
    assert (made.one, made.get("two")) == (1, None)


def test_caller_modules_are_those_around_the_caller_outermost_first() -> None:
    class Inner(dspy.Module):  # type: ignore[misc]
        def forward(self) -> Any:
            return dspy.Prediction(found=list(thread_local_overrides.get()["caller_modules"]))

    class Outer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self) -> Any:
            return self.inner()

    outer = Outer()
    assert outer().found == [outer, outer.inner]


# -- callbacks ---------------------------------------------------------------------------------------------------------


class Recorded(BaseCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.seen.append(("start", call_id, ACTIVE_CALL_ID.get(), inputs))

    def on_tool_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.seen.append(("end", call_id, ACTIVE_CALL_ID.get(), type(exception)))


async def test_with_callbacks_calls_back_around_either_kind_of_method_with_its_own_id_as_the_active_one_within() -> (
    None
):
    class Called(dspy.Tool):  # type: ignore[misc]
        @with_callbacks  # type: ignore[untyped-decorator]
        def __call__(self, **arguments: Any) -> Any:
            within.append(ACTIVE_CALL_ID.get())
            raise KeyboardInterrupt

        @with_callbacks  # type: ignore[untyped-decorator]
        async def acall(self, **arguments: Any) -> Any:
            within.append(ACTIVE_CALL_ID.get())
            raise asyncio.CancelledError

    recorded, within = Recorded(), []  # type: ignore[var-annotated]
    tool = Called(lambda: None, name="tool")
    with dspy.context(callbacks=[recorded]):
        with pytest.raises(KeyboardInterrupt):
            tool(query="owls")
        with pytest.raises(asyncio.CancelledError):
            await tool.acall(query="owls")
    first, second = within
    arguments = {"arguments": {"query": "owls"}}
    assert recorded.seen == [
        ("start", first, None, arguments),
        ("end", first, None, KeyboardInterrupt),
        ("start", second, None, arguments),
        ("end", second, None, asyncio.CancelledError),
    ]


def test_active_call_id_is_a_contextvar_that_dspy_sets_within_a_call_and_hands_to_its_threads() -> None:
    assert isinstance(ACTIVE_CALL_ID, contextvars.ContextVar)

    class Look(dspy.Module):  # type: ignore[misc]
        def forward(self) -> Any:
            return dspy.Prediction(parent=ACTIVE_CALL_ID.get())

    token = ACTIVE_CALL_ID.set("outer")  # type: ignore[arg-type]
    try:
        found = dspy.Parallel(num_threads=2, disable_progress_bar=True)([(Look(), {}), (Look(), {})])
    finally:
        ACTIVE_CALL_ID.reset(token)
    assert [each.parent for each in found] == ["outer"] * 2


def test_status_streaming_callback_takes_a_provider_of_messages() -> None:
    provider = dspy.streaming.StatusMessageProvider()
    assert isinstance(StatusStreamingCallback(provider), BaseCallback)


# -- engines and their errors ------------------------------------------------------------------------------------------


async def test_a_transport_of_lm15s_is_the_ones_who_made_it_and_takes_these_settings() -> None:
    waits = timeouts_for(2)
    assert waits is not None
    assert waits.read == waits.write == 2
    transport = StdlibAsyncTransport(
        connect_timeout=waits.connect,
        read_timeout=waits.read,
        write_timeout=waits.write,
        pool_timeout=None,
        max_connections=3,
        trust_env=False,
    )
    with FakeServer("one two three") as server:
        config = lm15.RouterConfig(
            api_keys={"openai-chat": "key"},
            base_urls={"openai-chat": server.url},
            transport=transport,
            providers=tuple(entry.definition for entry in lm15.registered_providers()),
        )
        engine = AsyncLM15Engine(config)
        provider, routed = engine._target(ASKED)
        assert (await provider.complete(routed)).text == "one two three"
        assert engine._target(ASKED)[0] is provider, "it is made once"
        await engine.aclose()
        assert server.connections == 1, "a transport that is given to it stays open"
        await transport.aclose()
        await server.until(lambda: server.connections == 0)


def test_timeouts_for_bounds_every_wait_and_leaves_the_connecting_as_it_is() -> None:
    waits = timeouts_for(7.5)
    assert waits is not None
    assert (waits.read, waits.write, waits.connect) == (7.5, 7.5, lm15.Timeouts().connect)


async def test_an_engine_plans_without_a_key_and_refuses_there_what_it_cannot_represent() -> None:
    engine = AsyncLM15Engine(lm15.RouterConfig(env={}))
    engine.plan(ASKED)
    hosted = lm15.Request(model="openai/fake", messages=ASKED.messages, tools=(lm15.BuiltinTool("web_search"),))
    with pytest.raises(lm15.UnsupportedFeatureError):
        engine.plan(hosted)
    await engine.aclose()


def test_a_router_makes_clients_by_lm_whose_transport_may_be_replaced() -> None:
    client = lm15.AsyncLMRouter(lm15.RouterConfig(api_keys={"gemini": "key"})).lm("gemini:fake")
    client.transport = transport = object()
    assert client.transport is transport
    engine = AsyncLM15Engine(lm15.RouterConfig(api_keys={"gemini": "key"}))
    engine.router = lm15.AsyncLMRouter(engine.config)
    assert engine._target(lm15.Request(model="gemini/fake", messages=ASKED.messages))[0] is engine.router.lm(
        "gemini:fake"
    )


def test_select_backend_says_who_speaks_to_a_model_and_with_which_settings() -> None:
    native = select_backend(dspy.LM("gemini/fake", api_key="key", api_base="http://127.0.0.1", timeout=3))
    assert native.native
    assert native.clients == {"api_key": "key", "api_base": "http://127.0.0.1", "timeout": 3}
    assert (native.resolution.provider, native.resolution.model) == ("gemini", "fake")
    assert native.resolution.declared is False
    other = select_backend(dspy.LM("cohere/fake", api_key="key"))
    assert not other.native
    assert other.clients == {"api_key": "key"}


def test_lm15s_transport_has_what_connections_that_are_opened_ahead_need() -> None:
    """`ahead.py`: a connection is opened, counted as in use, and given back as a kept one."""
    transport = StdlibAsyncTransport()
    assert vars(transport).keys() >= {"_proxy", "_trust_env", "_connect_timeout", "_pool"}
    assert names(transport._open) == {"parsed", "proxy", "origin", "connect_timeout"}
    assert names(transport._pool.register_new) == names(transport._pool.checkin) == {"conn"}


async def test_the_engine_of_litellm_takes_the_settings_of_a_client_and_has_both_kinds_of_answers() -> None:
    engine = AsyncLiteLLMEngine(model_type="chat", api_key="key", api_base="http://127.0.0.1", timeout=3.0)
    assert inspect.iscoroutinefunction(engine.complete)
    assert inspect.isasyncgenfunction(engine.stream)
    await engine.aclose()
    with pytest.raises(lm15.ConfigurationError):
        await engine.complete(ASKED)


def test_a_chat_stream_makes_events_of_chunks_and_its_end_of_all_of_them() -> None:
    engine = AsyncLiteLLMEngine(model_type="chat", api_key="key", timeout=3.0)
    arguments = engine._arguments(ASKED, streaming=True)
    assert (arguments["stream"], arguments["num_retries"], arguments["api_key"]) == (True, 0, "key")
    litellm = get_litellm(feature="tests")
    pieces = _ChatStream(ASKED)
    events = []
    for delta, reason in (({"content": "one "}, None), ({"content": "two"}, None), ({}, "stop")):
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        chunk = litellm.ModelResponseStream(id="x", created=1, model="m", choices=[choice])
        assert [choice.finish_reason for choice in chunk.choices] == [reason]
        events += list(pieces.feed(chunk))
    assert [event.type for event in events] == ["start", "delta", "delta"]
    end = pieces.finish(litellm)
    assert (end.type, end.finish_reason) == ("end", "stop")


async def test_lm15_reads_a_stream_by_the_lines_of_its_response_and_closes_them() -> None:
    """So a transport that wraps the response may end it."""
    read: list[bytes] = []

    class Response:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        async def aiter_lines(self) -> Any:
            async for line in self._inner.aiter_lines():
                read.append(line)
                yield line

    class Transport:
        @asynccontextmanager
        async def stream(self, request: Any) -> Any:
            async with transport.stream(request) as response:
                yield Response(response)

    with FakeServer("one two three") as server:
        transport = StdlibAsyncTransport()
        config = lm15.RouterConfig(
            api_keys={"openai-chat": "key"}, base_urls={"openai-chat": server.url}, transport=Transport()
        )
        engine = AsyncLM15Engine(config)
        events = [event async for event in engine.stream(ASKED)]
        assert [event.type for event in events] == ["start", "delta", "delta", "delta", "end"]
        assert any(b"finish_reason" in line for line in read)
        assert (await engine.complete(ASKED)).text == "one two three"
        await transport.aclose()


def test_get_litellm_names_what_wants_it_and_gives_the_module() -> None:
    assert names(get_litellm) == {"feature"}
    assert get_litellm(feature="LM pools").__name__ == "litellm"


def test_litellm_errors_raises_lm15s_from_the_original() -> None:
    class Refused(Exception):
        status_code = 429

    refused = Refused("no")
    with pytest.raises(lm15.RateLimitError) as caught, litellm_errors(model="openai/fake"):
        raise refused
    assert caught.value.__cause__ is refused
    own = lm15.ServerError("own")
    with pytest.raises(lm15.ServerError) as passed, litellm_errors(model="openai/fake"):
        raise own
    assert passed.value is own


def test_to_lm15_error_reads_an_error_of_the_openai_package() -> None:
    class Refused(Exception):
        def __init__(self) -> None:
            self.response = httpx.Response(429, headers={"retry-after": "3"})
            self.body = {"error": {"code": "insufficient_quota"}}

    mapped = to_lm15_error(Refused(), model="openai/fake", provider="openai")
    assert isinstance(mapped, lm15.BillingError)
    assert mapped.retry_after == 3


def test_wrap_error_makes_lm15s_error_a_public_one_and_leaves_a_public_one_alone() -> None:
    wrapped = wrap_error(lm15.RateLimitError("busy", retry_after=2, status=429), model="openai/fake")
    assert type(wrapped) is dspy.LMRateLimitError
    assert (wrapped.retry_after, wrapped.model) == (2, "openai/fake")
    assert wrap_error(wrapped, model="another") is wrapped
    assert type(wrap_error(ValueError("no"), model="m")).__name__ == "LMUnexpectedError"


def test_retry_after_seconds_reads_numbers_and_dates_and_nothing_else() -> None:
    assert retry_after_seconds("2.5") == 2.5
    assert retry_after_seconds(formatdate(0)) == 0
    for other in (None, "soon", "-1", str(math.inf)):
        assert retry_after_seconds(other) is None


# -- calls -------------------------------------------------------------------------------------------------------------


class Forbidding:
    """An engine that, once it has answered, forbids DSPy to keep its answer."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._mock = MockLM("hello")

    def complete(self, request: lm15.Request) -> lm15.Response:
        answer = self._mock.complete(request)
        self.calls[-1].cache = False
        return answer


class AsyncForbidding(Forbidding):
    async def complete(self, request: lm15.Request) -> lm15.Response:  # type: ignore[override]
        return super().complete(request)


@pytest.mark.usefixtures("empty_cache")
async def test_a_call_is_prepared_executed_and_finished_by_an_lm_which_may_be_a_copy_and_not_kept_at_its_end() -> None:
    sync, asynchronous = Forbidding(), AsyncForbidding()
    lm = dspy.LM("mock/mock", engine=sync, async_engine=asynchronous)
    for engine in (sync, asynchronous):
        for _ in range(2):
            made = copy.copy(lm)
            call = prepare(lm, "hello", None, {}, asynchronous=engine is asynchronous, direct=True)
            engine.calls.append(call)
            assert (call.managed, call.cache, call.legacy["model"]) == (True, True, "mock/mock")
            result = execute(made, call) if engine is sync else await aexecute(made, call)
            made.model = "mock/another"
            assert finalize(made, call, result) == ["hello"]
        assert len(engine._mock.requests) == 2, "the first answer was not kept"
        assert usage_dict(result.responses[0])["completion_tokens"] == 1
    assert [entry["model"] for entry in lm.history] == ["mock/another"] * 4, "a copy shares the history"


def test_what_is_deprecated_warns() -> None:
    for warn in (warn_legacy_lm, lambda: warn_openai_messages(object(), [])):
        with pytest.warns(DeprecationWarning, match="is deprecated"):
            warn()


def test_record_history_puts_an_entry_into_the_histories_of_all_lms_of_one_and_of_the_modules_around_it() -> None:
    lm, module, entries = MockLM("hello").lm(), dspy.Module(), [{"number": number} for number in range(3)]
    with overridden(caller_modules=[module], max_history_size=2):
        for entry in entries:
            record_history(lm, entry)
    assert module.history == lm.history == entries[1:]
    assert GLOBAL_HISTORY[-3:] == entries
    del GLOBAL_HISTORY[-3:]


# -- prices ------------------------------------------------------------------------------------------------------------


def test_prices_are_in_a_table_that_is_none_until_it_is_loaded_and_are_dollars() -> None:
    assert "_data" in vars(model_metadata)
    info = model_metadata.model_info("openai", "gpt-4o-mini")
    assert model_metadata._data is not None, "it is loaded by the first look-up"
    usage = lm15.Usage(input_tokens=1000, output_tokens=100)
    said = lm15.Message.assistant("yes")
    answer = lm15.Response(id=None, model="gpt-4o-mini", message=said, finish_reason="stop", usage=usage)
    cost, _ = estimate_cost(answer, provider="openai", requested_model="gpt-4o-mini", request=None)
    assert cost == pytest.approx(1000 * info["input_cost_per_token"] + 100 * info["output_cost_per_token"])
    assert not model_metadata.model_info("openai", "no-such-model")
    assert estimate_cost(answer, provider=None, requested_model="")[0] is None


# -- modules -----------------------------------------------------------------------------------------------------------


def test_predictors_are_parameters() -> None:
    assert isinstance(dspy.Predict("question -> answer"), Parameter)


def test_an_embedder_prepares_its_batches_and_puts_the_vectors_together() -> None:
    embedder = dspy.Embedder(lambda texts: texts, batch_size=2)
    batches, caching, options, single = embedder._preprocess(["a", "b", "c"], None, False, dimensions=8)
    assert (list(batches), caching, options, single) == ([["a", "b"], ["c"]], False, {"dimensions": 8}, False)
    made = embedder._postprocess([[1.0, 2.0]], True)
    assert (made.dtype, made.shape) == (np.float32, (2,))


def test_an_evaluation_writes_its_table_and_its_results_by_these_methods() -> None:
    example = dspy.Example(question="?").with_inputs("question")
    results = [(example, dspy.Prediction(answer="yes"), 1.0)]
    evaluate = dspy.Evaluate(devset=[example], display_progress=False)
    assert evaluate._prepare_results_output(results, "met") == [{"question": "?", "answer": "yes", "met": 1.0}]
    assert names(evaluate._construct_result_table) == {"results", "metric_name"}
    assert names(evaluate._display_result_table) == {"result_df", "display_table", "metric_name"}
    result = EvaluationResult(score=50.0, results=results)
    assert isinstance(result, dspy.Prediction)
    assert (result.score, result.results) == (50.0, results)


async def test_a_predictor_finds_its_listener_by_comparing_itself_with_what_listens() -> None:
    class Listener:
        """Stands for a listener and for its predictor."""

        compared: list[object] = []
        __hash__ = object.__hash__

        @property
        def predict(self) -> Listener:
            return self

        def __eq__(self, other: object) -> bool:
            self.compared.append(other)
            return False

    class Sink:
        async def send(self, item: Any) -> None: ...

    predict, listener = dspy.Predict("question -> answer"), Listener()
    with FakeServer("[[ ## answer ## ]]\nyes\n\n[[ ## completed ## ]]") as server:
        lm = dspy.LM("openai/fake", api_base=server.url, api_key="key", cache=False)
        with dspy.context(lm=lm, send_stream=Sink(), stream_listeners=[listener]):
            await predict.acall(question="?")
    assert any(each is predict for each in listener.compared)


# -- one call of an LM -------------------------------------------------------------------------------------------------


def test_the_parts_of_dspys_execution_take_what_they_are_given() -> None:
    assert names(execution.prepare) >= {"lm", "prompt", "messages", "kwargs", "asynchronous", "direct"}
    for part, wanted in {
        execution._cached: "lm call asynchronous",
        execution._store: "lm call result asynchronous",
        execution._canonical: "call compat",
        execution._attempt: "lm call backend request provider state results",
        execution._aattempt: "lm call backend request provider state results",
        execution._hint_responses_api: "lm exc",
        execution._account_failed_call: "lm results primary",
        execution.finalize: "lm call result",
    }.items():
        assert list(inspect.signature(part).parameters) == wanted.split()


def test_a_prepared_call_has_the_body_that_dspy_sends_through_litellm() -> None:
    lm = dspy.LM("openai/fake", temperature=0.5)
    call = execution.prepare(lm, "hi", None, {"top_p": 0.1})
    body = {"model": "openai/fake", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.5, "top_p": 0.1}
    assert {name: value for name, value in call.legacy.items() if value is not None} == body
    assert (call.managed, call.n, call.request) == (True, 1, None)


def test_an_attempt_keeps_the_response_and_adds_its_result() -> None:
    class Engine:
        def complete(self, request: lm15.Request) -> lm15.Response:
            said = lm15.Message.assistant("hello")
            return lm15.Response(id=None, model="m", message=said, finish_reason="stop", usage=lm15.Usage())

    state, results = execution._Attempt(), []
    lm = dspy.LM("openai/fake")
    execution._attempt(lm, execution.prepare(lm, "hi", None, {}), Engine(), ASKED, None, state, results)
    assert state.response.text == "hello"
    assert [result.outputs for result in results] == [["hello"]]


def test_the_settings_of_a_connection_are_those_that_an_endpoint_or_a_call_has() -> None:
    assert {*CONNECTION, *PER_CALL, "api_key", "api_base", "base_url"} == CLIENT_KEYS


def test_dspys_functions_for_litellm_take_a_body_and_send_it_by_the_api() -> None:
    for send in (dspy_lm.alitellm_completion, dspy_lm.alitellm_text_completion, dspy_lm.alitellm_responses_completion):
        assert list(inspect.signature(send).parameters)[:2] == ["request", "num_retries"]


def test_lms_are_loaded_by_load_state_of_the_builtin_class_which_keeps_launch_kwargs() -> None:
    lm = dspy.LM("openai/fake", launch_kwargs={"a": 1})
    state = lm.dump_state()
    assert state[LM_CLASS_STATE_KEY] == "dspy.clients.lm.LM"
    assert BaseLM.load_state(state).launch_kwargs == {"a": 1}
    taken = inspect.signature(dspy.LM.load_state).parameters
    assert "allow_custom_lm_class" in taken, "BaseLM.load_state looks for it"
