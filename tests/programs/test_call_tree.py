"""The events of one program call form one tree, whole and exact, whatever becomes of the call."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import dspy
import pytest
from dspy.clients.cache import Cache
from dspy.lm15 import RateLimitError, Request
from dspy.utils.callback import BaseCallback
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside import ActorStopped, ActorSystem, ChildSpec, Event, Supervisor
from promptside.events.content import Content
from promptside.events.span import TRACE_PARENT, TraceParent
from promptside.pools import Endpoint, LMPool, RetryConfig
from promptside.programs import ModuleActor, Program
from promptside.programs.hosting.callbacks import CallEvents
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.call_tree import listen, outline, outlines
from tests.support.modules import Answer, Failing, SyncAnswer, lm


def search(query: str) -> str:
    """Search the archive."""
    return f"nothing about {query}"


def react(request: Request) -> dict[str, Any]:
    """One search, then the answer; told apart by what the prompt holds, so that it serves any number of calls."""
    tool = "finish" if "observation_0" in str(request.messages) else "search"
    arguments = {"query": "owls"} if tool == "search" else {}
    thought = {"next_thought": "hm", "next_tool_name": tool, "next_tool_args": arguments}
    return {**thought, "reasoning": "because", "answer": "42"}


class SyncAgent(dspy.Module):  # type: ignore[misc]
    """A program of the user's own around a stock agent."""

    def __init__(self) -> None:
        super().__init__()
        self.agent = dspy.ReAct("question -> answer", tools=[search])

    def forward(self, question: str) -> dspy.Prediction:
        return self.agent(question=question)


class Agent(SyncAgent):
    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.agent.acall(question=question)


AGENT = """\
module Agent
  module agent
    module agent.react
      lm.call mock/mock
        lm.attempt mock/mock
    tool search
    module agent.react
      lm.call mock/mock
        lm.attempt mock/mock
    tool finish
    module agent.extract
      module agent.extract.predict
        lm.call mock/mock
          lm.attempt mock/mock"""

ANSWER = """\
module Answer
  module predict
    lm.call mock/mock
      lm.attempt mock/mock"""


@asynccontextmanager
async def hosting(
    source: Any, model: Any = "yes", pattern: str = "*", **settings: Any
) -> AsyncIterator[tuple[ActorSystem, Program, list[Event]]]:
    """A program over a pool over a mock, and what is told from then on."""
    cache = settings.pop("cache", False)
    content = settings.pop("content", None)
    settings.setdefault("retry", RetryConfig(initial=0))
    endpoint = model if isinstance(model, Endpoint) else Endpoint("mock/mock", engine=MockLM(model))
    async with ActorSystem() as system:
        pool = await LMPool([endpoint], **settings).start(system)
        program = await Program(source, lm=pool.lm(cache=cache), content=content).start(system)
        yield system, program, listen(system, pattern)


def find(told: list[Event], type: str) -> list[Event]:
    return [event for event in told if event.type == type]


# -- one tree, node by node --------------------------------------------------------------------------------------------


async def test_an_agents_call_is_one_tree_from_the_program_down_to_the_attempts() -> None:
    async with hosting(Agent, react) as (_, program, told):
        assert (await program.acall(question="?")).answer == "42"
        assert outline(told) == AGENT
        told = [event for event in told if not event.type.startswith("actor.")]  # a run of an agent is one
        assert [event.type for event in told[:6]] == [
            "module.started",
            "module.started",
            "module.started",
            "lm.call.started",
            "lm.attempt.started",
            "lm.attempt.stopped",
        ]
        root, agent, predict, call, attempt = told[:5]
        assert (root.source, root.incarnation, root.data) == ("Agent/forward", 1, {"module": "Agent"})
        assert (agent.source, agent.incarnation) == ("Agent/agent/forward", 1)
        assert (predict.source, predict.incarnation) == ("Agent/agent/react", 1)
        assert agent.data == {"module": "ReAct", "name": "agent"}
        assert predict.data == {"module": "Predict", "name": "agent.react"}
        assert (call.source, call.data) == ("lm", {"model": "mock/mock"})
        assert attempt.source == "lm"
        assert find(told, "tool.started")[0].data == {"tool": "search"}


async def test_a_stock_module_as_the_program_is_its_own_root() -> None:
    async with hosting(lambda: dspy.ChainOfThought("question -> answer")) as (_, program, told):
        await program.acall(question="?")
        assert outline(told) == ANSWER.replace("Answer", "ChainOfThought")


async def test_a_synchronous_program_in_its_thread_gives_the_same_tree() -> None:
    async with hosting(SyncAgent, react) as (_, program, told):
        await program.acall(question="?")
        assert outline(told) == AGENT.replace("module Agent", "module SyncAgent")


async def test_a_call_from_another_loop_gives_the_same_tree() -> None:
    async with hosting(Agent, react) as (_, program, told):
        await asyncio.to_thread(lambda: asyncio.run(program.acall(question="?")))
        assert outline(told) == AGENT


async def test_fifty_concurrent_calls_are_fifty_trees_that_never_mix() -> None:
    for source, name in ((Agent, "Agent"), (SyncAgent, "SyncAgent")):
        async with hosting(source, react) as (_, program, told):
            await asyncio.gather(*(program.acall(question=f"{number}") for number in range(50)))
            assert outlines(told) == [AGENT.replace("module Agent", f"module {name}")] * 50
            assert len({event.trace_id for event in find(told, "module.started")}) == 50


async def test_calls_side_by_side_within_a_program_are_side_by_side_in_its_tree() -> None:
    class Wide(Answer):
        async def aforward(self, question: str) -> dspy.Prediction:
            return (await asyncio.gather(*(self.predict.acall(question=f"{question} {n}") for n in range(3))))[0]

    class WideInThreads(SyncAnswer):
        def forward(self, question: str) -> dspy.Prediction:
            pairs = [(self.predict, {"question": f"{question} {number}"}) for number in range(3)]
            return dspy.Parallel(num_threads=3, disable_progress_bar=True)(pairs)[0]

    below = ANSWER.partition("\n")[2]
    for source in (Wide, WideInThreads):
        async with hosting(source) as (_, program, told):
            await program.acall(question="?")
            assert outline(told) == "\n".join([f"module {source.__name__}", below, below, below])


async def test_a_program_called_within_another_is_told_below_what_called_it() -> None:
    async with hosting(Answer) as (system, inner, told):

        async def ask(question: str) -> str:
            """Ask a colleague."""
            return str((await inner.acall(question=question)).answer)

        class Outer(dspy.Module):  # type: ignore[misc]
            async def aforward(self) -> dspy.Prediction:
                return dspy.Prediction(answer=await dspy.Tool(ask).acall(question="?"))

        outer = await Program(Outer).start(system)
        told.clear()
        await outer.acall()
        assert outline(told) == "\n".join(
            ["module Outer", "  tool ask", *(f"    {line}" for line in ANSWER.split("\n"))]
        )


async def test_several_answers_of_one_lm_call_are_attempts_of_it() -> None:
    class Several(Answer):
        async def aforward(self, question: str) -> dspy.Prediction:
            return await self.predict.acall(question=question, config={"n": 2, "temperature": 1.0})

    async with hosting(Several) as (_, program, told):
        await program.acall(question="?")
        assert outline(told) == ANSWER.replace("Answer", "Several") + "\n      lm.attempt mock/mock"
        one, other = find(told, "lm.attempt.stopped")
        (call,) = find(told, "lm.call.stopped")
        assert call.data["attempts"] == 2
        assert call.data["output_tokens"] == one.data["output_tokens"] + other.data["output_tokens"]


@pytest.mark.parametrize("source", [Answer, SyncAnswer])
async def test_a_call_within_an_adapter_is_told_below_what_called_the_adapter(source: Any) -> None:
    async with hosting(source) as (_, program, told):
        with dspy.context(adapter=dspy.TwoStepAdapter(lm("yes"))):
            await program.acall(question="?")
        predict = next(event for event in told if event.data.get("name") == "predict")
        assert [event.parent_id for event in find(told, "lm.call.started")] == [predict.call_id] * 2
        assert outline(told).endswith("    lm.call mock/mock\n      lm.attempt mock/mock\n    lm.call mock/mock")


async def test_an_evaluation_and_code_in_a_sandbox_are_nodes() -> None:
    class Judge(SyncAnswer):
        def forward(self) -> dspy.Prediction:
            devset = [dspy.Example(question=f"{number}", answer="yes").with_inputs("question") for number in range(2)]
            metric = dspy.evaluate.answer_exact_match
            result = dspy.Evaluate(devset=devset, metric=metric, num_threads=2, display_progress=False)(self.predict)
            tools = {"search": search, "lookup": dspy.Tool(search, name="lookup")}
            with dspy.LocalInterpreter(tools=tools) as sandbox:
                found = sandbox.execute("print(search(query='owls'), lookup(query='owls'))")
            return dspy.Prediction(score=result.score, found=found)

    async with hosting(Judge) as (_, program, told):
        assert (await program.acall()).score == 100
        lines = outline(told).split("\n")
        below = [f"  {line}" for line in ANSWER.split("\n")[1:]]
        assert lines == [
            "module Judge",
            "  evaluation 2",
            *below,
            *below,
            "  sandbox.run LocalInterpreter",
            "    tool search",
            "    tool lookup",
        ]
        assert find(told, "evaluation.stopped")[0].data["score"] == 100


# -- what the LM did ---------------------------------------------------------------------------------------------------


async def test_usage_cost_and_attempts_are_told_of_a_priced_model() -> None:
    with FakeServer({"default": "yes"}) as server:
        endpoint = Endpoint("openai/gpt-4o-mini", api_base=server.url, api_key="none")
        async with hosting(Answer, endpoint) as (_, program, told):
            server.fail(Fault.status(429, retry_after=0.01))
            await program.acall(question="?")
            lines = [*ANSWER.split("\n")[:2], "    lm.call openai/gpt-4o-mini"]
            failed, answered = (
                "      lm.attempt openai/gpt-4o-mini: LMRateLimitError",
                "      lm.attempt openai/gpt-4o-mini",
            )
            assert outline(told) == "\n".join([*lines, failed, answered])
            (call,), (attempt,) = find(told, "lm.call.stopped"), find(told, "lm.attempt.stopped")
            tokens = attempt.data["input_tokens"], attempt.data["output_tokens"]
            assert attempt.data["cost"] == pytest.approx(tokens[0] * 0.15e-6 + tokens[1] * 0.6e-6)
            figures = {"cache_hit": False, "attempts": 2, "input_tokens": tokens[0], "output_tokens": tokens[1]}
            assert figures.items() <= call.data.items()
            assert call.data["cost"] == attempt.data["cost"]
            assert find(told, "lm.attempt.failed")[0].data["retry_after"] == 0.01


async def test_no_cost_is_told_where_no_price_is_known() -> None:
    async with hosting(Answer) as (_, program, told):
        await program.acall(question="?")
        assert "cost" not in find(told, "lm.call.stopped")[0].data


async def test_an_answer_from_dspys_cache_is_told_as_a_hit_without_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    # In memory only: a thread of DSPy's disk cache leaves its database connection to the garbage collector.
    monkeypatch.setattr(dspy, "cache", Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=""))
    for source in (Answer, SyncAnswer):
        async with hosting(source, cache=True) as (system, program, told):
            await program.acall(question=source.__name__)
            told.clear()
            await program.acall(question=source.__name__)
            assert outline(told) == f"module {source.__name__}\n  module predict\n    lm.call mock/mock"
            data = find(told, "lm.call.stopped")[0].data
            assert (data["cache_hit"], data["attempts"]) == (True, 0)
            assert "input_tokens" not in data
            plain = await Program(source, lm=MockLM("yes").lm(cache=True)).start(system)
            told.clear()
            for _ in range(2):
                await plain.acall(question=f"{source.__name__} without a pool")
            assert [event.data["cache_hit"] for event in find(told, "lm.call.stopped")] == [False, True]


async def test_an_lm_without_a_pool_is_told_with_its_usage_from_dspys_history() -> None:
    async with ActorSystem() as system:
        program = await Program(Answer, lm=lm("yes")).start(system)
        told = listen(system)
        await program.acall(question="?")
        assert outline(told) == ANSWER.rpartition("\n")[0]
        (call,) = find(told, "lm.call.stopped")
        assert call.source == "Answer/forward"
        assert call.data["input_tokens"] > call.data["output_tokens"] > 0
        assert call.data["cache_hit"] is False


async def test_a_streamed_call_gives_the_same_tree_with_its_usage() -> None:
    async with hosting(Answer) as (_, program, told):
        pieces = [piece async for piece in dspy.streamify(program.acall, is_async_program=False)(question="?")]
        assert isinstance(pieces[-1], dspy.Prediction)
        assert len(pieces) > 1
        assert outline(told) == ANSWER
        assert find(told, "lm.call.stopped")[0].data["output_tokens"] > 0


# -- calls that go wrong -----------------------------------------------------------------------------------------------


async def test_an_lm_that_fails_fails_the_nodes_above_it_and_says_how_long_to_wait() -> None:
    def busy(request: Request) -> str:
        raise RateLimitError("busy", retry_after=0.01)

    async with hosting(Answer, busy, retry=RetryConfig(max_rate_limited=3)) as (_, program, told):
        with pytest.raises(dspy.LMRateLimitError):
            await program.acall(question="?")
        failed = ": LMRateLimitError"
        lines = [*ANSWER.split("\n"), *ANSWER.split("\n")[-1:] * 2]
        assert outline(told) == "\n".join(line + failed for line in lines)
        (call,) = find(told, "lm.call.failed")
        assert (call.data["attempts"], call.data["retry_after"]) == (3, 0.01)


async def test_a_tool_that_fails_is_told_and_its_agent_goes_on() -> None:
    def search(query: str) -> str:
        raise OSError("the archive is closed")

    async with hosting(lambda: dspy.ReAct("question -> answer", tools=[search]), react) as (_, program, told):
        await program.acall(question="?")
        assert "\n  tool search: OSError\n" in outline(told)
        assert "archive" not in repr(told)


@pytest.mark.parametrize("end", ["cancel", "kill"])
@pytest.mark.parametrize("source", [Answer, SyncAnswer])
async def test_a_call_that_is_cancelled_or_whose_actor_is_killed_leaves_a_whole_tree(source: Any, end: str) -> None:
    with FakeServer("yes") as server:
        endpoint = Endpoint("openai/fake", api_base=server.url, api_key="none")
        async with hosting(source, endpoint) as (_, program, told):
            server.fail(Fault.hang())
            call = asyncio.create_task(program.acall(question="?"))
            await server.until(lambda: server.active == 1)
            if end == "cancel":
                call.cancel()
            else:
                program.ref.kill()
            with pytest.raises(asyncio.CancelledError if end == "cancel" else ActorStopped):
                await call
            # A thread cannot be cancelled; its LM call is, and that ends it, before or after the program's call.
            await until(lambda: all(len(find(told, f"{kind}.started")) == ended(told, kind) for kind in KINDS))
            lines = ANSWER.replace("Answer", source.__name__).replace("mock/mock", "openai/fake").split("\n")
            within = "CancelledError" if source is Answer else "CallCancelled"
            ends = ["CancelledError", within, within, "CancelledError"]
            assert outline(told) == "\n".join(f"{line}: {end}" for line, end in zip(lines, ends, strict=True))


KINDS = ("module", "lm.call", "lm.attempt")


def ended(told: list[Event], kind: str) -> int:
    return len(find(told, f"{kind}.stopped")) + len(find(told, f"{kind}.failed"))


async def test_a_call_under_way_when_the_system_ends_leaves_a_whole_tree() -> None:
    with FakeServer("yes") as server:
        endpoint = Endpoint("openai/fake", api_base=server.url, api_key="none")
        async with ActorSystem() as system:
            pool = await LMPool([endpoint], shutdown=0.1).start(system)
            source = functools.partial(ModuleActor, Answer, lm=pool.lm(cache=False))
            supervisor = await system.spawn(Supervisor, [ChildSpec("answer", source, shutdown=0.1)])
            program, told = await supervisor.ask(Supervisor.child, "answer"), listen(system)
            server.fail(Fault.hang())
            call = asyncio.create_task(program.ask(ModuleActor.call, {"question": "?"}))
            await server.until(lambda: server.active == 1)
        with pytest.raises(ActorStopped):
            await call
        lines = ANSWER.replace("mock/mock", "openai/fake").split("\n")
        assert outline(told) == "\n".join(f"{line}: CancelledError" for line in lines)


async def test_a_failure_is_told_by_its_type_and_without_its_content() -> None:
    async with hosting(Failing) as (_, program, told):
        with pytest.raises(ValueError):
            await program.acall(error=ValueError("what the customer wrote"))
        assert outline(told) == "module Failing: ValueError"
        assert "customer" not in repr(told)


async def test_a_call_without_an_lm_is_told_as_failed() -> None:
    async with ActorSystem() as system:
        program, told = await Program(Answer).start(system), listen(system)
        with pytest.raises(Exception, match="No LM is loaded"):
            await program.acall(question="?")
        assert outline(told) == "module Answer: NoLMLoaded\n  module predict: ValueError"


# -- the user's own callbacks ------------------------------------------------------------------------------------------


class Recorder(BaseCallback):
    """A user's callback: what was called, with which parent."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.calls.append((f"{type(instance).__name__} starts", inputs["kwargs"]))

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.calls.append(("module ends", outputs))

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self.calls.append(("lm starts", inputs["kwargs"]))

    def on_lm_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.calls.append(("lm ends", outputs))


@pytest.mark.parametrize("heard", [False, True])
async def test_callbacks_of_the_user_fire_as_without_us(heard: bool) -> None:
    around, own = Recorder(), Recorder()
    module = Answer()
    module.predict.callbacks.append(own)
    before = dspy.settings.callbacks
    async with hosting(lambda: module, pattern="*" if heard else "breaker.*") as (_, program, told):
        with dspy.context(callbacks=[around]):
            await program.acall(question="?")
            assert dspy.settings.callbacks == [around]
        names = [name for name, _ in around.calls]
        assert names == ["Answer starts", "Predict starts", "lm starts", "lm ends", "module ends", "module ends"]
        assert around.calls[0][1] == {"question": "?"}
        assert around.calls[-1][1].answer == "yes"
        assert own.calls == [call for call in around.calls[1:-1] if not call[0].startswith("lm")]
        assert bool(told) == heard
        if heard:
            assert outline(told) == ANSWER
    assert dspy.settings.callbacks is before


async def test_callbacks_that_the_program_replaces_leave_its_lm_calls_in_its_tree() -> None:
    own = Recorder()

    class Private(Answer):
        async def aforward(self, question: str) -> dspy.Prediction:
            with dspy.context(callbacks=[own]):
                return await self.predict.acall(question=question)

    async with hosting(Private) as (_, program, told):
        await program.acall(question="?")
        assert [name for name, _ in own.calls] == ["Predict starts", "lm starts", "lm ends", "module ends"]
        assert outline(told) == "module Private\n  lm.call mock/mock\n    lm.attempt mock/mock"


async def test_without_a_listener_no_callback_of_ours_is_there() -> None:
    seen: list[list[Any]] = []

    class Looking(Failing):
        async def aforward(self) -> dspy.Prediction:
            seen.append(dspy.settings.callbacks)
            return dspy.Prediction()

    async with hosting(Looking, pattern="actor.*") as (system, program, _):
        await program.acall()
        listen(system, "tool.failed")
        await program.acall()
        assert [[type(callback) for callback in callbacks] for callbacks in seen] == [[], [CallEvents]]


# -- traces of the outside ---------------------------------------------------------------------------------------------


async def test_a_tree_joins_the_trace_that_is_set_around_its_entry_call() -> None:
    async with hosting(Answer) as (_, program, told):
        TRACE_PARENT.set(TraceParent("ab" * 16, "cd" * 8))
        await program.acall(question="?")
        assert {event.trace_id for event in told} == {"ab" * 16}
        assert [event.data["remote_parent"] for event in told if "remote_parent" in event.data] == ["cd" * 8]
        assert told[0].data["remote_parent"] == "cd" * 8
        TRACE_PARENT.set(None)
        told.clear()
        await program.acall(question="?")
        assert "ab" * 16 not in {event.trace_id for event in told}


async def test_a_hook_on_the_entry_call_sees_the_callers_context() -> None:
    """So a tracer can take its own current span as the parent."""
    mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark")
    seen: list[str] = []
    async with hosting(Answer) as (system, program, _):
        system.events.on("module.started", lambda event: seen.append(mark.get()))
        mark.set("caller's")
        await program.acall(question="?")
        assert seen == ["caller's"] * 2


async def test_a_program_called_within_a_dspy_call_of_the_application_names_it_as_its_parent() -> None:
    async with hosting(Answer) as (_, program, told):
        ACTIVE_CALL_ID.set("outer")  # type: ignore[arg-type]
        await program.acall(question="?")
        assert ACTIVE_CALL_ID.get() == "outer"
        assert told[0].parent_id == "outer"
        assert outline(told) == ANSWER


# -- nothing live ------------------------------------------------------------------------------------------------------


async def test_events_are_json_and_hold_nothing_live() -> None:
    async with hosting(Agent, react) as (_, program, told):
        await program.acall(question="a private question")
        text = json.dumps([dict(event.data) for event in told])
        assert "private" not in text
        assert "owls" not in text


async def test_a_call_that_outlives_its_program_is_told_below_the_root() -> None:
    go_on, done = threading.Event(), threading.Event()

    class Hasty(SyncAnswer):
        def forward(self) -> dspy.Prediction:
            context = contextvars.copy_context()

            def later() -> None:
                go_on.wait(10)
                self.predict(question="?")
                done.set()

            threading.Thread(target=lambda: context.run(later)).start()
            return dspy.Prediction()

    async with hosting(Hasty) as (_, program, told):
        await program.acall()
        assert outline(told) == "module Hasty"
        go_on.set()
        await asyncio.to_thread(done.wait, 10)
        assert outline(told) == ANSWER.replace("Answer", "Hasty")


async def test_a_module_actor_of_ones_own_tree_tells_the_same() -> None:
    async with ActorSystem() as system:
        actor = await system.with_options(name="mine").spawn(ModuleActor, Answer, lm=lm("yes"))
        told = listen(system, "module.*")
        await actor.ask(ModuleActor.call, {"question": "?"})
        assert outline(told) == "module Answer\n  module predict"
        assert {event.source for event in told} == {"mine"}


# -- content -----------------------------------------------------------------------------------------------------------


def contents(told: list[Event]) -> list[Any]:
    """Of every event that carries content, its type and the content."""
    keys = ("inputs", "outputs", "message", "content_dropped")
    return [(event.type, event.data[key]) for event in told for key in keys if key in event.data]


async def test_with_content_every_node_tells_what_went_in_and_what_came_out() -> None:
    async with hosting(Agent, react, content=Content()) as (_, program, told):
        await program.acall(question="who?")
        assert outline(told) == AGENT
        first, last = told[0], told[-1]
        assert first.data["inputs"] == {"question": "who?"}
        assert last.data["outputs"]["answer"] == "42"
        assert "inputs" not in last.data
        (search_,) = (event for event in find(told, "tool.stopped") if event.data["tool"] == "search")
        assert search_.data["outputs"] == "nothing about owls"
        assert find(told, "tool.started")[0].data["inputs"] == {"query": "owls"}
        prompt, completion = find(told, "lm.call.started")[0], find(told, "lm.call.stopped")[0]
        assert "who?" in prompt.data["inputs"]["messages"][-1]["content"]
        assert "owls" in completion.data["outputs"][0]
        assert {type.rpartition(".")[2] for type, _ in contents(told)} == {"started", "stopped"}
        assert len(contents(told)) == 2 * (AGENT.count("\n") + 1 - AGENT.count("lm.attempt")), "attempts carry none"


async def test_redaction_comes_before_the_bus_and_when_it_raises_the_event_is_told_without_content() -> None:
    def redact(type: str, content: Any) -> Any:
        if type == "lm.call.stopped":
            raise ValueError("secret")
        return json.loads(json.dumps(content).replace("secret", "***"))

    async with hosting(Answer, "secret", content=Content(redact=redact)) as (_, program, told):
        assert (await program.acall(question="a secret")).answer == "secret"
        assert outline(told) == ANSWER
        assert told[0].data["inputs"] == {"question": "a ***"}
        assert find(told, "lm.call.stopped")[0].data["content_dropped"] == "ValueError"
        assert "secret" not in repr(told)


async def test_the_text_of_an_error_is_content() -> None:
    async with hosting(Failing, content=Content()) as (_, program, told):
        with pytest.raises(ValueError):
            await program.acall(error=ValueError("what the customer wrote"))
        assert contents(told) == [
            ("module.started", {"error": "what the customer wrote"}),
            ("module.failed", "what the customer wrote"),
        ]


async def test_credentials_of_a_call_are_no_content() -> None:
    model = MockLM("yes").lm()
    model.kwargs["api_key"] = "sk-very-secret-key"

    class Direct(dspy.Module):  # type: ignore[misc]
        async def aforward(self) -> dspy.Prediction:
            with pytest.raises(ValueError):  # DSPy refuses it for this LM; it was told that it was tried
                await model.acall("hello", api_key="sk-very-secret-key")
            return dspy.Prediction()

    async with hosting(Direct, content=Content()) as (_, program, told):
        await program.acall()
        assert find(told, "lm.call.started")[0].data["inputs"] == {"prompt": "hello"}
        assert "sk-very-secret-key" not in repr(told)
