"""`promptside.programs.tools.tool.tool`: every call of a tool ends, soon, in something that the agent can read."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import inspect
import math
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import dspy
import pytest

from promptside import ActorSystem
from promptside.errors import ToolTimeout
from promptside.pools import BreakerConfig, CircuitOpen
from promptside.programs import Program
from promptside.programs.tools.tool import tool
from promptside.testing import MockLM
from tests.support.actors import Gate, until
from tests.support.call_tree import listen, outline
from tests.support.modules import Answer, lm

FAST = BreakerConfig(min_calls=2, open_for=60, jitter=0)
USER: ContextVar[str] = ContextVar("user", default="nobody")


def add(a: int, b: int = 2) -> int:
    """Add two numbers."""
    return a + b


async def aadd(a: int, b: int = 2) -> int:
    """Add two numbers, later."""
    return a + b


class Adder:
    """Adds."""

    def __call__(self, a: int, b: int = 2) -> int:
        """Add two numbers."""
        return a + b

    async def aadd(self, a: int, **others: int) -> int:
        """Add many."""
        return a + sum(others.values())


def script(*calls: tuple[str, dict[str, Any]], answer: str = "done") -> dspy.LM:
    """A model that calls these tools in turn, and then answers."""
    turns = [
        {"next_thought": "hm", "next_tool_name": name, "next_tool_args": args}
        for name, args in (*calls, ("finish", {}))
    ]
    replies = iter([*turns, {"reasoning": "so", "answer": answer}])
    return MockLM(lambda request: next(replies)).lm()


async def start_agent(system: ActorSystem, *given: Any, **options: Any) -> Program:
    return await Program(lambda: dspy.ReAct("question -> answer", tools=list(given)), **options).start(system)


async def observe(program: Program, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
    """What an agent reads after each call; it then goes on to its answer."""
    prediction = await program.acall(question="?", lm=script(*calls))
    assert prediction.answer == "done"
    return [prediction.trajectory[f"observation_{number}"] for number in range(len(calls))]


# -- what the model is told ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fn", [add, aadd, Adder(), Adder().aadd, math.sqrt], ids=["sync", "async", "object", "method", "built-in"]
)
def test_the_model_is_told_of_a_tool_as_by_dspy(fn: Any) -> None:
    facts = ("name", "desc", "args", "arg_types", "has_kwargs")
    plain, made = dspy.Tool(fn), tool(fn)
    assert [getattr(made, fact) for fact in facts] == [getattr(plain, fact) for fact in facts]
    assert made.format_as_litellm_function_call() == plain.format_as_litellm_function_call()


async def test_a_tool_of_dspy_keeps_what_it_was_given() -> None:
    made = tool(dspy.Tool(add, name="plus", desc="Plus.", arg_desc={"a": "The first."}))
    assert (made.name, made.desc, made.args["a"]) == ("plus", "Plus.", {"type": "integer", "description": "The first."})
    assert tool(made, name="sum").name == "sum"
    assert await tool(made).acall(a=1) == 3


def test_its_source_is_the_functions_which_code_act_copies() -> None:
    assert inspect.isfunction(tool(add).func)
    assert inspect.getsource(tool(add).func) == inspect.getsource(add)


async def test_it_is_a_decorator_with_and_without_settings() -> None:
    @tool
    def one() -> int:
        return 1

    @tool(name="two", timeout=5)
    async def another() -> int:
        return 2

    assert (one.name, await one.acall()) == ("one", 1)
    assert (two := another).name == "two"
    assert await two.acall() == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fn": 7}, "tool: fn=7: give a function"),
        ({"timeout": 0}, "tool: timeout=0: give seconds > 0"),
        ({"name": ""}, "protect: name='': give a text"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        tool(**{"fn": add, **settings})
    assert message in str(caught.value)


async def test_wrong_arguments_are_refused_as_by_dspy_and_do_not_open_the_circuit() -> None:
    made = tool(Adder(), breaker=FAST)
    for wrong in ({"a": "x"}, {"c": 1}) * 3:
        with pytest.raises(ValueError, match=r"^Arg \w (is invalid|is not in)"):
            await made.acall(**wrong)

    @tool(breaker=FAST)
    def find(key: str) -> str:
        return {"a": "b"}[key]

    for _ in range(5):
        with pytest.raises(KeyError):
            await find.acall(key="c")
    assert await find.acall(key="a") == "b"


# -- agents ----------------------------------------------------------------------------------------------------


async def test_an_agent_uses_sync_and_async_tools_and_each_call_is_told_once() -> None:
    async with ActorSystem() as system:
        told = listen(system)
        agent = await start_agent(system, tool(add), tool(aadd), name="agent")
        assert await observe(agent, ("add", {"a": 1}), ("aadd", {"a": 1, "b": 3})) == [3, 4]
        lines = [line.strip() for line in outline(told).splitlines()]
        assert [line for line in lines if line.startswith("tool")] == ["tool add", "tool aadd", "tool finish"]


async def test_a_sync_tool_neither_blocks_the_event_loop_nor_loses_the_callers_context() -> None:
    entered, leave = threading.Event(), threading.Event()

    @tool
    def wait() -> str:
        entered.set()
        assert leave.wait(5)
        return USER.get()

    async with ActorSystem() as system:
        agent = await start_agent(system, wait)
        USER.set("ada")
        call = asyncio.create_task(observe(agent, ("wait", {})))
        await until(entered.is_set)
        leave.set()
        assert await call == ["ada"]


async def test_a_hanging_async_tool_is_cancelled_and_its_timeout_is_what_the_agent_reads() -> None:
    gate = Gate()

    @tool(timeout=0.05)
    async def hang() -> str:
        return await gate.walk()

    async with ActorSystem() as system:
        told = listen(system, "tool.*")
        agent = await start_agent(system, hang, tool(add))
        hung, added = await observe(agent, ("hang", {}), ("add", {"a": 1}))
        assert "ToolTimeout: the tool 'hang' did not return within 0.05 s" in hung
        assert (gate.outcome, added) == ("cancelled", 3)
        ends = [(event.type, event.data["tool"], event.data.get("error")) for event in told]
        assert ends[:2] == [("tool.started", "hang", None), ("tool.failed", "hang", "ToolTimeout")]
        assert len(ends) == 6


async def test_a_hanging_sync_tool_holds_its_thread_so_that_there_are_never_more_than_the_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("promptside.programs.tools.tool.MAX_THREADS", 1)
    leave, calls = threading.Event(), list[str]()

    @tool(timeout=0.05)
    def hang(mark: str) -> str:
        calls.append(mark)
        assert leave.wait(5)
        return mark

    for mark in ("runs", "waits"):
        with pytest.raises(ToolTimeout):
            await hang.acall(mark=mark)
    assert calls == ["runs"]
    leave.set()
    while calls == ["runs"]:
        with contextlib.suppress(ToolTimeout):  # the thread has not ended yet
            await hang.acall(mark="again")
    assert calls == ["runs", "again"]


async def test_what_a_tool_raises_is_read_with_the_line_that_raised_it() -> None:
    def fail() -> None:
        raise ConnectionError("the index is down")

    async def afail() -> None:
        fail()

    async with ActorSystem() as system:
        agent = await start_agent(system, tool(fail), tool(afail))
        for observation in await observe(agent, ("fail", {}), ("afail", {})):
            assert 'raise ConnectionError("the index is down")' in observation
            assert "to_thread" not in observation
            assert "protect" not in observation
        assert agent.ref.incarnation == 1


async def test_a_tool_that_fails_too_often_is_not_called_and_the_agent_is_told_so() -> None:
    calls: list[str] = []

    async def search(query: str) -> str:
        calls.append(query)
        raise ConnectionError("down")

    async with ActorSystem() as system:
        told = listen(system, "*")
        agent = await start_agent(system, tool(search, breaker=FAST, events=system.events))
        *_, last = await observe(agent, *(("search", {"query": str(number)}) for number in range(3)))
        assert "CircuitOpen: the circuit of search is open" in last
        assert calls == ["0", "1"]
        errors = [event.data["error"] for event in told if event.type == "tool.failed"]
        assert errors == ["ConnectionError", "ConnectionError", "CircuitOpen"]
        assert [event.source for event in told if event.type == "breaker.opened"] == ["search"]


def leave() -> None:
    sys.exit(2)


async def cancel_itself() -> None:
    raise asyncio.CancelledError


@pytest.mark.parametrize(
    ("fn", "said"),
    [
        (leave, "the tool 'leave' called sys.exit(2)"),
        (cancel_itself, "the tool 'cancel_itself' was cancelled from within"),
    ],
)
async def test_a_tool_that_would_end_more_than_itself_is_only_a_failed_one(fn: Callable[[], Any], said: str) -> None:
    async with ActorSystem() as system:
        agent = await start_agent(system, tool(fn))
        (observation,) = await observe(agent, (fn.__name__, {}))
        assert said in observation
        assert agent.ref.incarnation == 1


async def test_cancelling_the_caller_of_an_agent_cancels_its_async_tool_at_once() -> None:
    gate = Gate()

    @tool
    async def hang() -> str:
        return await gate.walk()

    async with ActorSystem() as system:
        agent = await start_agent(system, hang, tool(add))
        call = asyncio.create_task(observe(agent, ("hang", {})))
        await gate.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: gate.outcome == "cancelled")
        assert await observe(agent, ("add", {"a": 1})) == [3]
        assert agent.ref.incarnation == 1


async def test_cancelling_the_caller_of_an_agent_leaves_a_sync_tool_to_end_unheard() -> None:
    entered, leave, ended = threading.Event(), threading.Event(), threading.Event()

    @tool
    def hang() -> None:
        entered.set()
        leave.wait(5)
        ended.set()

    async with ActorSystem() as system:
        agent = await start_agent(system, hang, tool(add))
        call = asyncio.create_task(observe(agent, ("hang", {})))
        await until(entered.is_set)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await observe(agent, ("add", {"a": 1})) == [3]
        assert not ended.is_set()
        leave.set()
        await until(ended.is_set)


async def test_a_tool_may_call_another_program_from_its_thread_or_its_coroutine() -> None:
    async with ActorSystem() as system:
        told = listen(system)
        expert = await Program(Answer, name="expert", lm=lm("42")).start(system)

        @tool
        def consult(question: str) -> str:
            return str(expert(question=question).answer)

        @tool
        async def aconsult(question: str) -> str:
            return str((await expert.acall(question=question)).answer)

        # Not the call's LM: that would answer for the expert too, as it does for every module below the call.
        own = script(("consult", {"question": "?"}), ("aconsult", {"question": "?"}))
        agent = await start_agent(system, consult, aconsult, name="agent", lm=own)
        trajectory = (await agent.acall(question="?")).trajectory
        assert [trajectory["observation_0"], trajectory["observation_1"]] == ["42", "42"]
        lines = outline(told).splitlines()
        for name in ("consult", "aconsult"):
            below = lines[lines.index(f"  tool {name}") + 1]
            assert below.startswith("    module"), "the program's call is told below the tool's"


async def test_sync_tools_that_call_themselves_do_not_wait_for_their_own_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("promptside.programs.tools.tool.MAX_THREADS", 2)
    inside = threading.Barrier(2)

    @tool
    def count(depth: int) -> int:
        if depth == 3:
            inside.wait(5)
        return 1 + count(depth=depth - 1) if depth else 0

    assert await asyncio.gather(count.acall(depth=3), count.acall(depth=3)) == [3, 3]


async def test_react_v2_reads_a_failed_tool_as_an_error() -> None:
    @tool(timeout=0.05)
    async def hang() -> None:
        await asyncio.Event().wait()

    calls = [{"name": "hang", "args": {}}], [{"name": "submit", "args": {"answer": "done"}}]
    replies = iter([{"next_thought": "hm", "tool_calls": {"tool_calls": call}} for call in calls])
    async with ActorSystem() as system:
        agent = await Program(lambda: dspy.ReActV2("question -> answer", tools=[hang])).start(system)
        prediction = await agent.acall(question="?", lm=MockLM(lambda request: next(replies)).lm())
        assert prediction.answer == "done"
        (result,) = prediction.history.messages[0]["tool_calls"].tool_call_results.tool_call_results
        assert result.is_error
        assert "ToolTimeout" in result.value


# -- synchronous agents ------------------------------------------------------------------------------------------


class SyncAgent(dspy.Module):  # type: ignore[misc]
    """An agent in a module that has no `aforward`."""

    def __init__(self, *given: Any) -> None:
        super().__init__()
        self.agent = dspy.ReAct("question -> answer", tools=list(given))

    def forward(self, question: str) -> dspy.Prediction:
        return self.agent(question=question)


async def test_the_tools_of_a_synchronous_agent_run_on_the_event_loop_of_its_program() -> None:
    loops: list[asyncio.AbstractEventLoop] = []

    @tool
    async def where() -> str:
        loops.append(asyncio.get_running_loop())
        return USER.get()

    @tool(timeout=0.05)
    def hang() -> None:
        leave.wait(5)

    leave = threading.Event()
    async with ActorSystem() as system:
        told = listen(system, "tool.*")
        agent = await Program(functools.partial(SyncAgent, where, hang)).start(system)
        USER.set("ada")
        here, hung = await observe(agent, ("where", {}), ("hang", {}))
        assert here == "ada"
        assert loops == [asyncio.get_running_loop()]
        assert "ToolTimeout" in hung
        assert [event.data["tool"] for event in told if event.type == "tool.failed"] == ["hang"]
        leave.set()


async def test_cancelling_the_caller_of_a_synchronous_agent_cancels_its_async_tool_and_every_later_call() -> None:
    gate, calls, ended = Gate(), list[str](), threading.Event()

    class Recording(SyncAgent):
        def forward(self, question: str) -> dspy.Prediction:
            try:
                return super().forward(question)
            finally:
                ended.set()

    @tool
    async def hang() -> str:
        return await gate.walk()

    @tool
    def note() -> None:
        calls.append("note")

    async with ActorSystem() as system:
        agent = await Program(functools.partial(Recording, hang, note)).start(system)
        call = asyncio.create_task(observe(agent, ("hang", {}), ("note", {})))
        await gate.entered.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(ended.is_set)
        assert (gate.outcome, calls) == ("cancelled", [])


def test_outside_of_every_program_a_tool_is_called_as_the_function_was() -> None:
    async def who() -> str:
        return f"{USER.get()}, {dspy.settings.get('friend')}"

    USER.set("ada")
    with dspy.context(friend="grace"):
        assert tool(who)() == "ada, grace"
        assert tool(lambda: who())() == "ada, grace"
        assert tool(add)(a=1) == 3
    agent = dspy.ReAct("question -> answer", tools=[tool(add)])
    with dspy.context(lm=script(("add", {"a": 1}))):
        assert agent(question="?").trajectory["observation_0"] == 3


async def test_copies_of_an_agent_share_the_breakers_of_its_tools() -> None:
    @tool(breaker=FAST)
    async def search() -> None:
        raise ConnectionError("down")

    agents = [dspy.ReAct("question -> answer", tools=[search])]
    agents += [copy.deepcopy(agents[0]), agents[0].deepcopy()]
    for agent in agents[:2]:
        with pytest.raises(ConnectionError):
            await agent.tools["search"].acall()
    with pytest.raises(CircuitOpen):
        await agents[2].tools["search"].acall()


async def test_a_tool_that_nobody_holds_leaves_nothing_behind() -> None:
    gc.collect()
    before = sum(issubclass(type(each), anyio.CapacityLimiter) for each in gc.get_objects())
    for _ in range(10):
        assert await tool(add).acall(a=1) == 3
    gc.collect()
    assert sum(issubclass(type(each), anyio.CapacityLimiter) for each in gc.get_objects()) <= before
