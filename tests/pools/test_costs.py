"""`LMPool.costs` and `Budget`: what calls use, under which labels, and what stops when a budget is spent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import dspy
import pytest
from dspy.clients.cache import Cache
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.lm15 import Message, Request, Usage

from promptside.errors import EvaluationAborted
from promptside.pools import Budget, BudgetExceeded, Endpoint, LMPool, RetryConfig, labels
from promptside.pools.accounting import ledger as costs_module
from promptside.pools.accounting.ledger import Ledger
from promptside.pools.clients.prices import Prices
from promptside.pools.clients.requests import Origin
from promptside.pools.context.batch import batch_run
from promptside.programs import Program
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.actors import until
from tests.support.modules import Answer, SyncAnswer
from tests.support.pools import async_engine, endpoint, running

PRICED = "openai/gpt-4o-mini"
USED = Usage(input_tokens=3, output_tokens=2)


def mock(*answers: Any, **settings: Any) -> Endpoint:
    return Endpoint("mock/mock", engine=MockLM(*answers, **settings))


def calls(figures: dict[str, dict[str, Any]]) -> dict[str, int]:
    return {label: each["calls"] for label, each in figures.items()}


# -- what is counted ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_is_counted_by_model_endpoint_and_label_with_its_price(streamed: bool) -> None:
    with FakeServer("one two") as server:
        async with running(endpoint(server, PRICED, name="door")) as scene:
            with labels(session="alice", run="nightly"):
                if streamed:
                    request = Request(model=PRICED, messages=(Message.user("hello"),))
                    assert [event async for event in async_engine(scene.lm).stream(request)]
                else:
                    await scene.lm.acall("hello")
            costs = scene.pool.costs()
            total = costs["total"]
            assert (total["calls"], total["attempts"], total["output_tokens"]) == (1, 1, 2)
            assert total["tokens"] == total["input_tokens"] + 2
            assert total["cost"] == pytest.approx(total["input_tokens"] * 0.15e-6 + 2 * 0.6e-6)
            assert (total["unknown_cost"], total["unknown_tokens"]) == (0, 0)
            assert costs["by_model"] == {PRICED: total}
            assert costs["by_endpoint"] == {"door": total}
            assert costs["by_session"] == {"alice": total}
            assert costs["by_run"] == {"nightly": total}
            assert costs["by_program"] == {}
            assert json.loads(json.dumps(costs)) == costs
            assert scene.pool.history()[0]["cost"] == total["cost"]


@pytest.mark.parametrize("kind", ["whole", "streamed", "embedded"])
async def test_an_answer_is_priced_once_and_whoever_listens_is_told_what_is_billed(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def price(prices: Prices, answer: Any, request: Any) -> Origin:
        priced.append(answer)
        return Origin("openai", 0.25)

    priced: list[Any] = []
    monkeypatch.setattr(Prices, "price", price)
    with FakeServer("one two") as server:
        async with running(server) as scene:
            if kind == "streamed":
                request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
                assert [event async for event in async_engine(scene.lm).stream(request)]
            elif kind == "embedded":
                await scene.pool.embedder(caching=False).acall("hello")
            else:
                await scene.lm.acall("hello")
            await scene.until("lm.call.stopped")
            told = [event.data["cost"] for event in scene.events("lm.*.stopped")]
            assert (len(priced), told) == (1, [0.25, 0.25]), "the attempt and the call"
            assert scene.pool.costs()["total"]["cost"] == 0.25


async def test_a_price_that_is_not_known_is_counted_as_unknown_and_not_as_nothing() -> None:
    async with running(mock("hello")) as scene:
        await scene.lm.acall("hello")
        total = scene.pool.costs()["total"]
        assert (total["unknown_cost"], total["cost"], total["unknown_tokens"]) == (1, 0.0, 0)
        assert scene.pool.history()[0]["cost"] is None


async def test_a_retried_call_is_one_call_of_several_attempts_and_each_endpoint_has_its_own() -> None:
    with FakeServer("hello") as first, FakeServer("hello") as second:
        doors = endpoint(first, PRICED), endpoint(second, "openai/gpt-4o", name="second")
        async with running(*doors) as scene:
            first.fail(Fault.status(500), times=None)
            await scene.lm.acall("hello")
            costs = scene.pool.costs()
            assert (costs["total"]["calls"], costs["total"]["attempts"]) == (1, 2)
            refused = costs["by_endpoint"][PRICED]
            assert (refused["calls"], refused["attempts"], refused["tokens"], refused["unknown_cost"]) == (1, 1, 0, 0)
            assert costs["by_endpoint"]["second"]["cost"] == costs["total"]["cost"] > 0


@pytest.mark.parametrize("fault", [Fault.reset(), Fault.half_body(), Fault.malformed()], ids=lambda fault: fault.kind)
async def test_what_broke_off_is_unknown_for_the_provider_may_charge_for_it(fault: Fault) -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, PRICED), retry=RetryConfig(attempts=1)) as scene:
            server.fail(fault)
            with pytest.raises(dspy.LMError):
                await scene.lm.acall("hello")
            total = scene.pool.costs()["total"]
            assert (total["attempts"], total["unknown_cost"], total["unknown_tokens"]) == (1, 1, 1)


async def test_a_cancelled_call_and_an_abandoned_stream_are_unknown_once_each() -> None:
    with FakeServer("one two three") as server:
        async with running(endpoint(server, PRICED)) as scene:
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: server.active == 1)
            call.cancel()
            await asyncio.wait([call])
            await server.until(lambda: server.requests[0].aborted)
            server.fail(Fault.slow_tokens(0.05))
            request = Request(model=PRICED, messages=(Message.user("hello"),))
            stream: Any = async_engine(scene.lm).stream(request)
            await anext(stream)
            await stream.aclose()
            await server.until(lambda: server.requests[1].aborted)
            await scene.lm.acall("hello")
            total = scene.pool.costs()["total"]
            assert (total["calls"], total["attempts"], total["unknown_cost"]) == (3, 3, 2)


async def test_programs_count_under_their_names_and_what_they_call_under_the_outer_one() -> None:
    async with running(mock("yes")) as scene:
        inner = await Program(Answer, name="inner", lm=scene.lm).start(scene.system)

        class Outer(dspy.Module):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.predict = dspy.Predict("question -> answer")

            async def aforward(self, question: str) -> Any:
                await self.predict.acall(question=question)
                return await inner.acall(question=question)

        outer = await Program(Outer, name="outer", lm=scene.lm).start(scene.system)
        threaded = await Program(SyncAnswer, name="threaded", lm=scene.lm).start(scene.system)
        with labels(session="alice"):
            await asyncio.gather(*(outer.acall(question=f"{n}") for n in range(3)), inner.acall(question="direct"))
            await threaded.acall(question="in a thread")
        costs = scene.pool.costs()
        assert calls(costs["by_program"]) == {"outer": 6, "inner": 1, "threaded": 1}
        assert calls(costs["by_session"]) == {"alice": 8}


async def test_labels_reach_the_threads_of_dspys_evaluate_and_end_with_their_block() -> None:
    async with running(mock("yes")) as scene:
        program = dspy.Predict("question -> answer")
        devset = [dspy.Example(question=f"{n}", answer="yes").with_inputs("question") for n in range(8)]

        def evaluate() -> Any:
            with dspy.context(lm=scene.lm), labels(run="nightly"), labels(session="alice"):
                return dspy.Evaluate(devset=devset, metric=lambda *_: 1.0, num_threads=4)(program)

        await asyncio.to_thread(evaluate)
        await scene.lm.acall("outside")
        costs = scene.pool.costs()
        assert calls(costs["by_run"]) == {"nightly": 8}
        assert calls(costs["by_session"]) == {"alice": 8}
        assert costs["total"]["calls"] == 9


def test_labels_do_not_freeze_the_applications_settings() -> None:
    with labels(session="alice"):
        assert thread_local_overrides.get().keys() == {"promptside_labels"}
    assert not thread_local_overrides.get()
    for given in ({"session": ""}, {"run": 3}):
        with pytest.raises(ValueError, match="give a text that is not empty"), labels(**given):  # type: ignore[arg-type]
            pass


async def test_a_program_that_is_restarted_and_a_worker_that_is_killed_lose_no_figures() -> None:
    with FakeServer("hello") as server:
        async with running(endpoint(server, PRICED), workers=1) as scene:
            await scene.lm.acall("hello")
            before = scene.pool.costs()["total"]["cost"]
            server.fail(Fault.hang())
            call = asyncio.create_task(scene.lm.acall("hello"))
            await server.until(lambda: len(server.requests) == 2)  # the first may still count as active
            scene.workers()[0].kill()
            assert await call == ["hello"]
            total = scene.pool.costs()["total"]
            assert (total["calls"], total["attempts"], total["unknown_cost"]) == (2, 3, 1)
            assert total["cost"] == pytest.approx(2 * before)


# -- budgets -----------------------------------------------------------------------------------------------------------


async def test_many_calls_at_once_do_not_exceed_a_budget_of_calls_and_nothing_more_is_sent() -> None:
    with FakeServer("hello") as server:
        async with running(server, budget=Budget(calls=10)) as scene:
            answers = await asyncio.gather(
                *(scene.lm.acall(f"call {n}") for n in range(40)),
                *(asyncio.to_thread(scene.lm, f"thread {n}") for n in range(10)),
                return_exceptions=True,
            )
            assert answers.count(["hello"]) == 10
            assert {type(answer) for answer in answers} == {list, BudgetExceeded}
            assert len(server.requests) == 10
            with pytest.raises(BudgetExceeded) as caught:
                await scene.lm.acall("late")
            error = caught.value
            facts = (error.kind, error.label, error.exceeded, error.spent, error.limit)
            assert facts == ("pool", "lm", "calls", 10, 10)
            assert str(error) == (
                "the budget of the pool 'lm' is spent: calls 10 of 10; for more, `pool.set_budget(Budget(calls=...))`"
            )
            failed = [event.data["error"] for event in scene.events("lm.call.failed")]
            assert failed == ["BudgetExceeded"] * 41
            assert len(server.requests) == 10


async def test_a_call_that_sent_nothing_is_given_back() -> None:
    with FakeServer("hello") as server:
        async with running(server, budget=Budget(calls=2), retry=RetryConfig(attempts=1)) as scene:
            scene.pool.breaker("openai/fake").force_open()
            for _ in range(5):
                with pytest.raises(dspy.LMError, match="circuit"):
                    await scene.lm.acall("hello")
            assert scene.pool.costs()["total"]["calls"] == 0


async def test_calls_that_join_an_identical_one_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dspy, "cache", Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=""))
    with FakeServer("hello") as server:
        async with running(endpoint(server, PRICED)) as scene:
            lm = scene.pool.lm(temperature=0)
            server.fail(Fault.hang())
            asking = [asyncio.create_task(lm.acall("the same")) for _ in range(5)]
            await server.until(lambda: server.active == 1 and len(scene.pool.history()) == 5)
            server.release()
            await asyncio.gather(*asking)
            total = scene.pool.costs()["total"]
            assert (total["calls"], total["attempts"], len(server.requests)) == (1, 1, 1)
            known = sorted(record["cost"] for record in scene.pool.history())
            assert known == [0.0, 0.0, 0.0, 0.0, total["cost"]]
            assert total["cost"] > 0


async def test_cost_and_tokens_stop_the_call_after_the_one_that_reached_them() -> None:
    with FakeServer("one two") as server:
        async with running(endpoint(server, PRICED)) as scene:
            await scene.lm.acall("hello")
            one = scene.pool.costs()["total"]
        for budget, exceeded in (
            (Budget(cost=one["cost"] * 1.5), "cost"),
            (Budget(tokens=one["tokens"] + 1), "tokens"),
        ):
            async with running(endpoint(server, PRICED), budget=budget) as scene:
                for _ in range(2):
                    await scene.lm.acall("hello")
                with pytest.raises(BudgetExceeded, match=f"is spent: {exceeded} "):
                    await scene.lm.acall("hello")
                scene.pool.set_budget(Budget(cost=1.0))
                assert await scene.lm.acall("hello") == ["one two"]
                scene.pool.set_budget(None)
                assert await scene.lm.acall("hello") == ["one two"]


async def test_each_session_has_its_own_budget_and_one_may_be_given_another() -> None:
    async with running(mock("hello"), budgets={"session": Budget(calls=2)}) as scene:

        async def answered(session: str) -> int:
            with labels(session=session):
                answers = await asyncio.gather(*(scene.lm.acall("?") for _ in range(5)), return_exceptions=True)
            return sum(isinstance(answer, list) for answer in answers)

        scene.pool.set_budget(Budget(calls=4), session="bob")
        assert await asyncio.gather(answered("alice"), answered("bob"), answered("carol")) == [2, 4, 2]
        assert await scene.lm.acall("of no session") == ["hello"]
        scene.pool.set_budget(None, session="bob")
        assert await answered("bob") == 0, "what was spent stays spent"
        with labels(session="alice"), pytest.raises(BudgetExceeded, match="session='alice'"):
            await scene.lm.acall("?")


async def test_a_budget_of_a_program_stops_that_program_alone() -> None:
    async with running(mock("yes"), budgets={"program": Budget(calls=1)}) as scene:
        one = await Program(Answer, name="one", lm=scene.lm).start(scene.system)
        two = await Program(Answer, name="two", lm=scene.lm).start(scene.system)
        for program in (one, two):
            assert (await program.acall(question="?")).answer == "yes"
            with pytest.raises(BudgetExceeded, match=f"the budget of the program '{program.name}' is spent"):
                await program.acall(question="?")


async def test_a_budget_that_is_spent_aborts_an_evaluation_and_is_no_score() -> None:
    async with running(mock("yes"), budgets={"run": Budget(calls=3)}) as scene:
        program = dspy.Predict("question -> answer")
        devset = [dspy.Example(question=f"{n}", answer="yes").with_inputs("question") for n in range(8)]

        def evaluate() -> Any:
            with dspy.context(lm=scene.lm), batch_run("nightly"):
                return dspy.Evaluate(devset=devset, metric=lambda *_: 1.0, num_threads=2)(program)

        with pytest.raises(EvaluationAborted) as caught:
            await asyncio.to_thread(evaluate)
        assert isinstance(caught.value.reason, BudgetExceeded)
        # The last one may still be on its way to the worker: an aborted evaluation does not wait for its other thread.
        await until(lambda: scene.pool.costs()["by_run"]["nightly"]["calls"] == 3)


async def test_budgets_outlive_a_restart_of_the_pool() -> None:
    from promptside import ActorSystem, Supervisor

    async with ActorSystem() as system:
        pool = LMPool([mock("hello")], budget=Budget(calls=1))
        top = await system.spawn(Supervisor, [pool.child_spec()])
        lm = pool.lm(cache=False)
        assert await lm.acall("hello") == ["hello"]
        await top.ask(Supervisor.terminate_child, "lm")
        await top.ask(Supervisor.restart_child, "lm")
        with pytest.raises(BudgetExceeded):
            await lm.acall("hello")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Budget(), r"Budget: cost, tokens, calls=\(None, None, None\): give at least one"),
        (lambda: Budget(cost=-1), "Budget: cost=-1: give US dollars >= 0"),
        (lambda: Budget(cost=float("nan")), "Budget: cost=nan"),
        (lambda: Budget(cost=True), "Budget: cost=True"),
        (lambda: Budget(tokens=1.5), "Budget: tokens=1.5"),
        (lambda: Budget(calls=-1), "Budget: calls=-1"),
        (lambda: LMPool([mock()], budget=5), "LMPool: budget=5: give a Budget"),
        (lambda: LMPool([mock()], budgets={"user": Budget(calls=1)}), r"budgets=\['user'\]: .* program, session, run"),
        (lambda: LMPool([mock()], budgets={"run": 5}), r"budgets\['run'\]=5: give a Budget"),
        (lambda: LMPool([mock()], max_history_size=-1), "max_history_size=-1"),
        (lambda: LMPool([mock()]).set_budget(5), "budget=5: give a Budget"),
    ],
)
def test_what_is_not_valid_is_named_with_the_remedy(make: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


# -- the ledger itself -------------------------------------------------------------------------------------------------


def spend(ledger: Ledger, **given: str) -> None:
    charge = ledger.open(given)
    charge.attempt("door", "model").record(USED, 0.5)
    charge.close()


def test_labels_that_were_not_used_for_longest_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs_module, "MAX_LABELS", 3)
    ledger = Ledger("lm")
    under_way = ledger.open({"session": "first"})
    ledger.set_budget(Budget(calls=1), {"session": "bounded"})
    spend(ledger, session="bounded")
    for number in range(20):
        spend(ledger, session=f"s{number}")
    under_way.attempt("door", "model").record(USED, 0.5)
    under_way.close()
    sessions = ledger.costs()["by_session"]
    assert sessions["first"]["calls"] == 1, "what is under way is not lost"
    with pytest.raises(BudgetExceeded):
        spend(ledger, session="bounded")
    assert sum(each["calls"] for each in sessions.values()) == 22
    assert sum(each["cost"] for each in sessions.values()) == 11.0
    assert sessions["s19"]["calls"] == 1
    assert len(sessions) <= 5


def test_a_bill_counts_once_and_an_attempt_that_outlives_its_call_counts_too() -> None:
    ledger = Ledger("lm", Budget(calls=2))
    charge = ledger.open({})
    charge.close()
    charge.close()
    bill = charge.attempt("door", "model")  # it was on its way when its caller left
    bill.record(USED, 0.5)
    bill.record_unknown()
    bill.record_refused()
    total = ledger.costs()["total"]
    assert (total["calls"], total["attempts"], total["cost"], total["unknown_cost"]) == (1, 1, 0.5, 0)
    spend(ledger)
    with pytest.raises(BudgetExceeded):
        ledger.open({})


@pytest.mark.parametrize(
    ("usage", "tokens", "unknown"),
    [(USED, 5, 0), (None, 0, 1), (Usage(), 0, 1), (Usage(input_tokens=3), 3, 1), (Usage(total_tokens=9), 9, 0)],
)
def test_tokens_that_a_provider_does_not_count_are_unknown(usage: Usage | None, tokens: int, unknown: int) -> None:
    ledger = Ledger("lm")
    ledger.open({}).attempt("door", "model").record(usage, None)
    total = ledger.costs()["total"]
    assert (total["tokens"], total["unknown_tokens"], total["unknown_cost"]) == (tokens, unknown, 1)
