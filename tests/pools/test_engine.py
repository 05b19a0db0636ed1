"""The engine pair: a pool as a full `dspy.LM`, from threads, from the application's loop and from any other."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import threading
import time
from typing import Any

import dspy
import pydantic
import pytest
from dspy.clients.cache import Cache
from dspy.clients.provider import Provider
from dspy.lm15 import Message, Request, Response, ToolCallPart, Usage
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside import Actor, ActorSystem
from promptside.pools import Capabilities, Endpoint, PoolUnavailable
from promptside.testing import FakeServer, Fault, MockLM
from promptside.threads import Heartbeat
from tests.support.pools import Scene, endpoint, running


def mock(*answers: Any, **settings: Any) -> Endpoint:
    return Endpoint("mock/mock", engine=MockLM(*answers, **settings))


async def in_a_thread(work: Any) -> Any:
    """Run in a thread of its own, so that no executor's size matters."""
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    loop = done.get_loop()

    def run() -> None:
        try:
            loop.call_soon_threadsafe(done.set_result, work())
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)

    threading.Thread(target=run).start()
    return await done


# -- who may call ------------------------------------------------------------------------------------------------------


async def test_sync_calls_from_many_threads_are_answered() -> None:
    with FakeServer("hello") as server:
        async with running(server) as scene:
            with concurrent.futures.ThreadPoolExecutor(16) as threads:
                calls = [threads.submit(scene.lm, f"call {number}") for number in range(64)]
                answers = await asyncio.gather(*(asyncio.wrap_future(call) for call in calls))
            assert answers == [["hello"]] * 64
            assert len(server.requests) == 64


async def test_a_sync_call_may_block_the_applications_own_loop() -> None:
    with FakeServer("hello") as server:
        async with running(server) as scene:
            assert scene.lm("hello") == ["hello"]


async def test_calls_come_from_any_event_loop() -> None:
    async with running(mock("hello", latency=0.01)) as scene:

        async def elsewhere() -> list[Any]:
            return list(await asyncio.gather(*(scene.lm.acall(f"call {number}") for number in range(20))))

        answers = await asyncio.gather(*(in_a_thread(lambda: asyncio.run(elsewhere())) for _ in range(3)))
        assert answers == [[["hello"]] * 20] * 3


async def test_a_sync_call_on_the_pools_own_loop_is_refused_at_once_and_an_async_one_is_answered() -> None:
    class Neighbour(Actor, expected=(PoolUnavailable,)):
        """Lives on the pool's node."""

        async def call(self, lm: dspy.LM) -> Any:
            return lm("hello")

        async def acall(self, lm: dspy.LM) -> Any:
            return await lm.acall("hello")

        async def stream(self, lm: dspy.LM, request: Request) -> Any:
            return next(lm.engine.stream(request))

    async with running(mock("hello")) as scene:
        neighbour = await scene.system.with_options(parent=scene.pool.ref).spawn(Neighbour)
        with pytest.raises(PoolUnavailable, match="would wait for itself"):
            await neighbour.ask(Neighbour.call, scene.lm)
        assert await neighbour.ask(Neighbour.acall, scene.lm) == ["hello"]
        request = Request(model="mock/mock", messages=(Message.user("hello"),))
        with pytest.raises(PoolUnavailable, match="would wait for itself"):
            await neighbour.ask(Neighbour.stream, scene.lm, request)


async def test_a_blocked_pool_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeat, "SECONDS", 0.02)
    async with running(mock("hello")) as scene:
        blocked, release = threading.Event(), threading.Event()

        def block() -> None:
            blocked.set()
            release.wait(30)

        scene.pool.ref.node.loop.call_soon_threadsafe(block)
        await asyncio.to_thread(blocked.wait)
        try:
            began = time.monotonic()
            with pytest.raises(PoolUnavailable, match=r"is blocked: '[\w-]+' in block .*test_engine\.py, line \d+"):
                await scene.lm.acall("async")
            with pytest.raises(PoolUnavailable, match="is blocked"):
                await in_a_thread(lambda: scene.lm("sync"))
            with pytest.raises(PoolUnavailable, match="is blocked"):
                scene.lm("sync, on the application's loop")
            assert time.monotonic() - began < 10
        finally:
            release.set()
        assert await scene.lm.acall("again") == ["hello"]
        assert len(scene.events("lm.call.started")) == 1, "what was given up is not done later"


async def test_a_call_longer_than_the_start_timeout_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Heartbeat, "SECONDS", 0.01)
    async with running(mock("hello", latency=0.2)) as scene:
        answers = await asyncio.gather(scene.lm.acall("async"), in_a_thread(lambda: scene.lm("sync")))
        assert answers == [["hello"], ["hello"]]


async def test_interrupting_a_waiting_thread_ends_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        server.wait_for(lambda: server.active == 1)
        raise KeyboardInterrupt

    with FakeServer("hello") as server:
        async with running(server) as scene:
            server.fail(Fault.hang())
            with monkeypatch.context() as patch:
                patch.setattr(concurrent.futures, "wait", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    scene.lm("hello")
            await server.until(lambda: server.requests[0].aborted)
            assert (await scene.until("lm.call.failed")).data["error"] == "CancelledError"


# -- a full dspy.LM ----------------------------------------------------------------------------------------------------


async def test_a_hit_in_dspys_cache_never_reaches_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    # In memory only: a thread of DSPy's disk cache leaves its database connection to the garbage collector.
    memory = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir="")
    monkeypatch.setattr(dspy, "cache", memory)
    async with running(mock("hello")) as scene:
        lm = scene.pool.lm(cache=True)
        assert await lm.acall("once") == await lm.acall("once") == ["hello"]
        assert len(scene.events("lm.call.started")) == scene.pool.stats()["mock/mock"]["attempts"] == 1
        assert await in_a_thread(lambda: [lm("once"), lm("once")]) == [["hello"]] * 2
        assert len(scene.events("lm.call.started")) == 2, "DSPy's cache keeps sync and async calls apart"


async def test_dspy_tracks_usage_and_keeps_history() -> None:
    async with running(mock("hello there")) as scene:
        with dspy.track_usage() as usage:
            await scene.lm.acall("one two three")
        assert usage.get_total_tokens()["mock/mock"]["completion_tokens"] == 2
        assert scene.lm.history[-1]["outputs"] == ["hello there"]
        with dspy.context(lm=scene.lm, track_usage=True):
            prediction = await dspy.Predict("question -> answer").acall(question="why?")
        assert prediction.get_lm_usage()["mock/mock"]["total_tokens"] > 0


async def test_a_call_carries_the_settings_of_its_lm() -> None:
    with FakeServer("hello") as server:
        async with running(server) as scene:
            await scene.pool.lm(cache=False, temperature=0.5, max_tokens=7).acall("hello")
            body = server.requests[0].body
            assert (body["temperature"], body["max_completion_tokens"]) == (0.5, 7)
            assert await scene.lm.acall("hello", n=3, temperature=1.0) == ["hello"] * 3
            assert len(server.requests) == 4


async def test_copies_of_the_lm_share_its_pool() -> None:
    async with running(mock("hello")) as scene:
        copies = [copy.deepcopy(scene.lm), copy.copy(scene.lm), scene.lm.copy(temperature=1.0)]
        copies += [copy.deepcopy(program_with(scene.lm)).get_lm(), scene.lm.copy(model="mock/tuned")]
        for each in copies:
            assert each.engine is scene.lm.engine
            assert await each.acall("hello") == ["hello"]
        assert scene.pool.stats()["mock/mock"]["attempts"] == len(copies)
        models = [event.data["model"] for event in scene.events("lm.call.started")]
        assert models == ["mock/mock"] * 4 + ["mock/tuned"]


def program_with(lm: dspy.LM) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    return program


async def test_callbacks_of_the_lm_hear_each_call_once_with_its_outputs_or_its_error() -> None:
    class Heard(BaseCallback):
        def __init__(self) -> None:
            self.told: list[Any] = []

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.told.append(inputs["prompt"])

        def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            self.told.append(outputs or type(exception).__name__)

    with FakeServer("hello") as server:
        async with running(server) as scene:
            heard = Heard()
            lm = scene.pool.lm(cache=False, callbacks=[heard])
            await lm.acall("async")
            await in_a_thread(lambda: lm("sync"))
            server.fail(Fault.status(400))
            with pytest.raises(dspy.LMInvalidRequestError):
                await lm.acall("refused")
            refused = ["refused", "LMInvalidRequestError"]
            assert heard.told == ["async", ["hello"], "sync", ["hello"], *refused]


async def test_the_history_of_dspy_can_be_inspected(capsys: pytest.CaptureFixture[str]) -> None:
    async with running(mock("the answer")) as scene:
        await scene.lm.acall("the question")
        scene.lm.inspect_history(n=1)
        dspy.inspect_history(n=1)
        shown = capsys.readouterr().out
        assert shown.count("the question") == shown.count("the answer") == 2
        entry = scene.lm.history[-1]
        assert (entry["model"], entry["response"].usage.output_tokens) == ("mock/mock", 2)


class Verdict(pydantic.BaseModel):
    """What a schema is made of; DSPy resolves its name in the module."""

    label: str
    score: int


class Judge(dspy.Signature):  # type: ignore[misc]
    """Judge the text."""

    text: str = dspy.InputField()
    verdict: Verdict = dspy.OutputField()


async def test_a_schema_reaches_a_model_that_follows_schemas_and_a_prompt_any_other() -> None:
    able = Capabilities(response_schema=True, params=frozenset({"response_format"}))
    for supports, kind in ((able, "json_schema"), (Capabilities(response_schema=False, params=frozenset()), None)):
        with FakeServer({"default": {"verdict": {"label": "good", "score": 3}}}) as server:
            async with running(endpoint(server, supports=supports)) as scene:
                with dspy.context(lm=scene.lm, adapter=dspy.JSONAdapter()):
                    answers = [
                        await dspy.Predict(Judge).acall(text="fine"),
                        await asyncio.to_thread(dspy.Predict(Judge), text="fine"),
                    ]
                assert [answer.verdict for answer in answers] == [Verdict(label="good", score=3)] * 2
                formats = [record.body.get("response_format") for record in server.requests]
                assert [asked and asked["type"] for asked in formats] == [kind] * 2
                if kind is not None:
                    assert "score" in str(formats[0])


async def test_tools_are_offered_natively_to_a_model_that_calls_them_and_its_calls_come_back() -> None:
    def search(query: str) -> str:
        """Search the web."""
        return query

    class Able:
        supports_function_calling = True
        supported_params = frozenset({"tools"})
        requests: list[Request] = []

        async def complete(self, request: Request) -> Response:
            self.requests.append(request)
            call = ToolCallPart(id="1", name="search", input={"query": "otp"})
            said = Message(role="assistant", parts=(call,))
            return Response(id=None, model=request.model, message=said, finish_reason="tool_call", usage=Usage())

        async def aclose(self) -> None:
            """Nothing."""

    class Decide(dspy.Signature):  # type: ignore[misc]
        question: str = dspy.InputField()
        tools: list[dspy.Tool] = dspy.InputField()
        calls: dspy.ToolCalls = dspy.OutputField()

    async with running(Endpoint("able/model", engine=Able())) as scene:
        with dspy.context(lm=scene.lm, adapter=dspy.ChatAdapter(use_native_function_calling=True)):
            decided = await dspy.Predict(Decide).acall(question="what?", tools=[dspy.Tool(search)])
        assert [(call.name, call.args) for call in decided.calls.tool_calls] == [("search", {"query": "otp"})]
        assert [tool.name for tool in Able.requests[0].tools] == ["search"]


async def test_a_fine_tuned_copy_is_served_by_the_same_pool() -> None:
    class Tuning(Provider):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.finetunable = True

        @staticmethod
        def finetune(job: Any, model: str, train_data: Any, train_data_format: Any, train_kwargs: Any = None) -> str:
            return f"{model}-tuned"

    def tune() -> Any:
        student = program_with(scene.pool.lm(cache=False, provider=Tuning()))
        trainset = [dspy.Example(question="?", answer="hello").with_inputs("question")]
        return dspy.BootstrapFinetune(num_threads=1, exclude_demos=True).compile(student, trainset=trainset)

    with FakeServer("hello") as server:
        async with running(server) as scene:
            tuned = await in_a_thread(tune)
            assert (await tuned.acall(question="again?")).answer == "hello"
            assert [record.body["model"] for record in server.requests] == ["fake", "fake-tuned"]
            assert set(scene.pool.costs()["by_model"]) == {"openai/fake", "openai/fake-tuned"}


async def test_a_call_is_told_below_the_dspy_call_that_made_it() -> None:
    async with running(mock("hello")) as scene:
        ACTIVE_CALL_ID.set("parent")
        await scene.lm.acall("async")
        await asyncio.to_thread(scene.lm, "sync")
        assert [event.parent_id for event in scene.events("lm.call.*")] == ["parent"] * 4
        ids = {event.call_id for event in scene.events("lm.call.started")}
        assert {event.parent_id for event in scene.events("lm.attempt.*")} == ids
        assert len(ids) == 2


async def test_an_error_that_no_provider_raised_is_dspys_unexpected_error_after_a_second_attempt() -> None:
    def broken(request: Request) -> str:
        raise KeyError("a bug in the engine")

    async with running(mock(broken)) as scene:
        with pytest.raises(dspy.utils.exceptions.LMUnexpectedError, match="a bug in the engine") as caught:
            await scene.lm.acall("hello")
        assert isinstance(caught.value.__cause__, KeyError)
        assert scene.pool.stats()["mock/mock"]["attempts"] == 2
        assert [event.data["meaning"] for event in scene.events("lm.attempt.failed")] == ["unknown"] * 2
        assert scene.circuit("mock/mock") == "closed"


async def test_an_engine_that_raises_dspys_own_errors_is_taken_at_its_word() -> None:
    answers = iter([dspy.LMServerError("down"), dspy.LMRateLimitError("busy"), "hello"])

    def scripted(request: Request) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with running(mock(scripted)) as scene:
        assert await scene.lm.acall("hello") == ["hello"]
        failed = scene.events("lm.attempt.failed")
        assert [event.data["error"] for event in failed] == ["LMServerError", "LMRateLimitError"]


async def test_an_engine_of_the_users_own_is_borrowed_and_not_closed() -> None:
    class Own:
        closed = False

        async def complete(self, request: Request) -> Response:
            return MockLM("own").answer(request)

        async def aclose(self) -> None:
            self.closed = True

    own = Own()
    async with running(Endpoint("own/model", engine=own)) as scene:
        assert await scene.lm.acall("hello") == ["own"]
        assert not scene.lm.supports_response_schema
    assert not own.closed


async def test_after_the_system_has_ended_calls_are_refused() -> None:
    async with running(mock("hello")) as scene:
        assert await scene.lm.acall("hello") == ["hello"]
    for call in (scene.lm.acall("late"), in_a_thread(lambda: scene.lm("late"))):
        with pytest.raises(PoolUnavailable, match="its actor system has ended"):
            await call


async def test_two_systems_and_their_pools_live_side_by_side() -> None:
    async with running(mock("one")) as one, running(mock("two")) as two:
        both = await asyncio.gather(one.lm.acall("hello"), two.lm.acall("hello"))
        assert both == [["one"], ["two"]]
        assert isinstance(one, Scene)
        assert isinstance(two.system, ActorSystem)
