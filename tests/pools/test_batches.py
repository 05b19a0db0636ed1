"""Batches: an outage gives an evaluation true scores or an abort, and never a score of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, RateLimitError, Request, ServerError
from dspy.utils.exceptions import LMInvalidRequestError, LMServerError
from dspy.utils.parallelizer import ParallelExecutor

from promptside import ActorSystem
from promptside.errors import EvaluationAborted, OptimizationAborted
from promptside.pools import (
    BreakerConfig,
    Budget,
    BudgetExceeded,
    CircuitOpen,
    Endpoint,
    LMPool,
    PoolUnavailable,
    RetryConfig,
    batch_run,
    labels,
    priority,
)
from promptside.pools.context.labels import current_labels
from promptside.pools.context.priority import Batch, BatchAborted, current_priority
from promptside.pools.lm import outage as outage_module
from promptside.testing import FakeServer, Fault, MockLM, run_virtual
from tests.support.actors import until
from tests.support.pools import Scene, async_engine, running

BREAKER = BreakerConfig(min_calls=3, open_for=0.1, max_open_for=0.1)
RETRY = RetryConfig(initial=0.01, maximum=0.05)
SIZE = 24


def devset(size: int = SIZE) -> list[dspy.Example]:
    return [dspy.Example(question=f"number {n}?", answer=str(n)).with_inputs("question") for n in range(size)]


def right(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return bool(example.answer == prediction.answer)


def number(body: Any) -> dict[str, str]:
    """The model knows every number, so that a true score is 100."""
    return {"answer": body["messages"][-1]["content"].split("number ")[1].split("?")[0]}


def evaluate(lm: dspy.LM, size: int = SIZE, **door: Any) -> Any:
    """DSPy's own evaluation in threads, behind the front door."""
    with batch_run("nightly", **door), dspy.context(lm=lm):
        return dspy.Evaluate(devset=devset(size), metric=right, num_threads=4)(dspy.Predict("question -> answer"))


class Outage:
    """A server that fails from its eighth request on, until it is healed."""

    def __init__(self, fault: Fault) -> None:
        self.server = FakeServer(number)
        self.server.script([None] * 8)
        self.server.fail(fault, times=None)


def questions(server: FakeServer) -> list[str]:
    """What was asked, of those requests that were answered."""
    return [request.body["messages"][-1]["content"] for request in server.requests if request.status == 200]


# -- evaluations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [Fault.status(500), Fault.status(529), Fault.reset(), Fault.malformed(), Fault.status(429)],
    ids=lambda fault: f"{fault.kind} {fault.status_code}",
)
async def test_an_outage_in_mid_run_is_waited_out_and_every_score_is_true(fault: Fault) -> None:
    outage = Outage(fault)
    with outage.server as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            running_ = asyncio.create_task(asyncio.to_thread(evaluate, scene.lm))
            await scene.until("limiter.changed" if fault.status_code == 429 else "breaker.opened")
            assert not running_.done()
            server.heal()
            result = await running_
            assert result.score == 100.0
            assert [score for _, _, score in result.results] == [True] * SIZE


async def test_a_server_that_is_gone_and_comes_back_in_mid_run_costs_no_score() -> None:
    with FakeServer(number, latency=0.01) as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            running_ = asyncio.create_task(asyncio.to_thread(evaluate, scene.lm))
            await server.until(lambda: len(server.requests) >= 8)
            await asyncio.to_thread(server.close)
            await scene.until("breaker.opened")
            await asyncio.to_thread(server.start)
            assert (await running_).score == 100.0
            assert scene.circuit() == "closed"


async def test_a_run_that_is_out_of_patience_is_aborted_and_no_later_call_reaches_the_network() -> None:
    outage = Outage(Fault.status(500))
    with outage.server as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            with pytest.raises(EvaluationAborted, match="the evaluation 'nightly' was aborted") as aborted:
                await asyncio.to_thread(evaluate, scene.lm, outage_timeout=0.5)
            assert isinstance(aborted.value.__cause__, LMServerError | CircuitOpen)
            assert aborted.value.reason is aborted.value.__cause__
            assert aborted.value.run == "nightly"
            sent = len(server.requests)
            await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("ThreadPoolExecutor")])
            assert len(server.requests) <= sent + 1, "one probe may have been on its way"
            assert len(questions(server)) == 8
            server.heal()
            with priority("batch"):
                assert await scene.lm.acall("number 5?") == ['{"answer": "5"}'], "the pool serves other runs"


async def test_a_revoked_key_aborts_the_run_at_once() -> None:
    outage = Outage(Fault.status(401))
    with outage.server as server:
        async with running(server) as scene:
            with pytest.raises(EvaluationAborted) as aborted:
                await asyncio.to_thread(evaluate, scene.lm)
            assert isinstance(aborted.value.reason, dspy.LMAuthError)


async def test_a_request_that_fails_by_its_own_fault_is_the_programs_failure() -> None:
    with FakeServer(number) as server:
        server.script([None, None, Fault.status(400)])
        async with running(server) as scene:
            result = await asyncio.to_thread(evaluate, scene.lm)
            assert sum(score for _, _, score in result.results) == SIZE - 1


async def test_a_request_that_fails_while_others_are_answered_is_in_the_end_its_own_fault() -> None:
    def answer(body: Any) -> dict[str, str]:
        if "number 7?" in body["messages"][-1]["content"]:
            raise RuntimeError("this one breaks the provider")  # status 500
        return number(body)

    with FakeServer(answer, latency=0.005) as server:
        breaker = BreakerConfig(min_calls=1000)
        async with running(server, breaker=breaker, retry=RETRY) as scene:
            result = await asyncio.to_thread(evaluate, scene.lm, 200)
            assert sum(score for _, _, score in result.results) == 199
            assert len([r for r in server.requests if "number 7?" in r.body["messages"][-1]["content"]]) == 9


def shorten_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """DSPy begins with an example again after a second in place of 120, in runs that ask each question once."""
    defaults = ParallelExecutor.__init__.__defaults__
    monkeypatch.setattr(ParallelExecutor.__init__, "__defaults__", (*defaults[:-2], 1.0, defaults[-1]))
    monkeypatch.setattr(outage_module, "STRAGGLER_AFTER", 0.0)


async def test_a_call_parked_for_longer_than_dspys_limit_is_sent_once(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_the_limit(monkeypatch)
    asked: list[str] = []

    class Predict(dspy.Predict):  # type: ignore[misc]
        def forward(self, **inputs: Any) -> Any:
            asked.append(inputs["question"])
            return super().forward(**inputs)

    with FakeServer(number) as server:
        server.script([None] * 5)
        server.fail(Fault.status(500), times=None)
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:

            def run() -> Any:
                with batch_run("nightly"), dspy.context(lm=scene.lm):
                    program = Predict("question -> answer")
                    return dspy.Evaluate(devset=devset(8), metric=right, num_threads=8)(program)

            running_ = asyncio.create_task(asyncio.to_thread(run))
            await until(lambda: len(asked) >= 9)  # DSPy has called one of the last three a second time
            server.heal()
            result = await running_
            assert result.score == 100.0
            await until(lambda: scene.pool.stats()["openai/fake"]["in_flight"] == 0)
            assert len(asked) > 8
            assert sorted(questions(server)) == sorted(set(questions(server))), "each was answered once"


async def test_what_a_program_asked_before_it_was_parked_for_so_long_comes_from_dspys_cache(
    monkeypatch: pytest.MonkeyPatch, empty_cache: None
) -> None:
    shorten_the_limit(monkeypatch)
    begun: list[str] = []

    class Twice(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("question, draft -> answer")

        def forward(self, question: str) -> Any:
            begun.append(question)
            return self.second(question=question, draft=self.first(question=question).answer)

    with FakeServer(number) as server:
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            outage = scene.system.events.on("lm.call.stopped", lambda _: server.fail(Fault.status(500), times=None))

            def run() -> Any:
                with batch_run("nightly"), dspy.context(lm=scene.pool.lm()):
                    return dspy.Evaluate(devset=devset(3), metric=right, num_threads=6)(Twice())

            running_ = asyncio.create_task(asyncio.to_thread(run))
            await until(lambda: len(begun) == 6)  # DSPy has begun with each example a second time
            assert 0 < len(questions(server)) < 6, "one of them was at its second question"
            outage.detach()
            server.heal()
            result = await running_
            assert result.score == 100.0
            assert sorted(questions(server)) == sorted(set(questions(server))), "each was answered once"


# -- waiting, in virtual time ------------------------------------------------------------------------------------------


class Down:
    """A provider that is down until it is set up."""

    def __init__(self, error: type[Exception] = ServerError) -> None:
        self.up = asyncio.Event()
        self.requests = 0
        self._error = error

    async def complete(self, request: Any) -> Any:
        self.requests += 1
        if not self.up.is_set():
            raise self._error("down")
        return await MockLM("hello").async_engine.complete(request)


async def pooled(system: ActorSystem, engine: Any, **settings: Any) -> LMPool:
    """A pool on this loop, for its time."""
    return await LMPool(Endpoint("mock/mock", engine=engine), **settings).start(system)


@pytest.mark.parametrize("error", [ServerError, RateLimitError])
def test_a_call_is_parked_for_hours_if_the_run_has_the_patience_while_serving_fails_fast(
    error: type[Exception],
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        provider = Down(error)
        async with ActorSystem() as system:
            lm = (await pooled(system, provider)).lm(cache=False)
            with priority("batch", run="nightly", outage_timeout=7200):
                parked = asyncio.create_task(lm.acall("hello"))
            await asyncio.sleep(3600)
            assert not parked.done()
            if error is ServerError:
                began = loop.time()
                with pytest.raises(dspy.LMError):
                    await lm.acall("serving")
                assert loop.time() - began < 5
            assert provider.requests < 1000, "probes of a circuit, not a storm"
            provider.up.set()
            assert await parked == ["hello"]

    run_virtual(main())


def test_an_outage_of_more_than_a_thousand_tries_ends_in_an_answer() -> None:
    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            breaker = BreakerConfig(open_for=0.5, max_open_for=0.5)
            pool = await pooled(system, provider, retry=RetryConfig(maximum=0.2), breaker=breaker)
            with priority("batch", run="nightly", outage_timeout=600):
                parked = asyncio.create_task(pool.lm(cache=False).acall("hello"))
            await asyncio.sleep(590)
            assert provider.requests > 1024
            provider.up.set()
            assert await parked == ["hello"]

    run_virtual(main())


def test_the_second_call_that_dspy_makes_of_a_parked_one_gets_its_answer_and_sends_nothing() -> None:
    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            lm = (await pooled(system, provider)).lm(cache=False)
            with priority("batch", run="nightly", outage_timeout=7200):
                first = asyncio.create_task(lm.acall("hello"))
                sample = asyncio.create_task(lm.acall("hello"))  # at the same time: a sample of its own
                await asyncio.sleep(121)
                again = [asyncio.create_task(lm.acall("hello")) for _ in range(3)]
                other = asyncio.create_task(lm.acall("another"))
                await asyncio.sleep(121)
                before = provider.requests
                provider.up.set()
                assert await asyncio.gather(first, sample, *again, other) == [["hello"]] * 6
                assert provider.requests == before + 3, "first, sample, other"
                assert await lm.acall("hello") == ["hello"]
                assert provider.requests == before + 3, "one that DSPy had queued"
                await asyncio.sleep(61)
                assert await lm.acall("hello") == ["hello"]
                assert provider.requests == before + 4, "a new sample"

    run_virtual(main())


def test_what_both_ask_next_is_asked_once() -> None:
    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            lm = (await pooled(system, provider)).lm(cache=False)

            async def program() -> list[Any]:
                return [await lm.acall(f"step {step}") for step in range(5)]

            with priority("batch", run="nightly", outage_timeout=7200):
                first = asyncio.create_task(program())
                await asyncio.sleep(121)
                again = asyncio.create_task(program())
                await asyncio.sleep(121)
                before = provider.requests
                provider.up.set()
                assert await asyncio.gather(first, again) == [[["hello"]] * 5] * 2
                assert provider.requests == before + 5
            with priority("batch", run="another"):
                assert await asyncio.gather(*(lm.acall("step 1") for _ in range(3))) == [["hello"]] * 3
            assert provider.requests == before + 8

    run_virtual(main())


def test_when_a_parked_call_is_given_up_its_second_one_is_made() -> None:
    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            lm = (await pooled(system, provider)).lm(cache=False)
            with priority("batch", run="nightly", outage_timeout=7200):
                first = asyncio.create_task(lm.acall("hello"))
                await asyncio.sleep(121)
                again = asyncio.create_task(lm.acall("hello"))
                await asyncio.sleep(1)
                first.cancel()
                provider.up.set()
                assert await again == ["hello"]

    run_virtual(main())


def test_an_abort_ends_every_call_of_the_run_and_none_of_another() -> None:
    async def main() -> None:
        provider = Down()
        async with ActorSystem() as system:
            pool = await pooled(system, provider)
            lm = pool.lm(cache=False)
            with priority("batch", run="other", outage_timeout=7200):
                other = asyncio.create_task(lm.acall("other"))
            with pytest.raises(EvaluationAborted), batch_run("nightly", outage_timeout=50) as run:
                first = asyncio.create_task(lm.acall("first"))
                await asyncio.sleep(49)
                late = asyncio.create_task(lm.acall("late"))
                await asyncio.wait({first, late})
                assert run.cancelled
                for call in (first, late):
                    assert isinstance(call.exception(), BatchAborted)
                assert asyncio.get_running_loop().time() < 60, "the late one was aborted with the first"
                before = provider.requests
                provider.up.set()
                with pytest.raises(BatchAborted):
                    await lm.acall("after")
                assert provider.requests == before
            assert await other == ["hello"]

    run_virtual(main())


def test_a_batch_call_that_does_not_get_its_turn_waits_on() -> None:
    async def main() -> None:
        provider = Down()
        provider.up.set()

        async def busy(request: Any) -> Any:
            await asyncio.sleep(500)
            return await MockLM("hello").async_engine.complete(request)

        provider.complete = busy  # type: ignore[method-assign]
        door = Endpoint("mock/mock", engine=provider, max_connections=1)
        async with ActorSystem() as system:
            pool = await LMPool(door, workers=1, timeout=600, queue_timeout=100, max_queue=1).start(system)
            lm = pool.lm(cache=False)
            serving = asyncio.create_task(lm.acall("serving"))
            await asyncio.sleep(1)
            with priority("batch", run="nightly", outage_timeout=3600):
                batch = [asyncio.create_task(lm.acall(f"batch {n}")) for n in range(3)]
                assert await asyncio.gather(serving, *batch) == [["hello"]] * 4

    run_virtual(main())


async def test_the_end_of_the_pool_aborts_the_runs_whose_calls_it_had() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.status(500), times=None)
        async with running(server, breaker=BREAKER, retry=RETRY, max_restarts=0) as scene:
            with pytest.raises(EvaluationAborted), batch_run("nightly"):
                call = asyncio.create_task(scene.lm.acall("hello"))
                await scene.until("breaker.opened")
                await scene.pool.stop()
                await call


async def test_a_pool_that_was_stopped_or_whose_budget_is_spent_aborts_a_run_that_calls_it() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM("hello")), budget=Budget(calls=1)) as scene:
        assert await scene.lm.acall("hello") == ["hello"]
        with pytest.raises(BudgetExceeded):
            await scene.lm.acall("serving")
        with pytest.raises(EvaluationAborted) as aborted:
            await asyncio.to_thread(evaluate, scene.lm)
        assert isinstance(aborted.value.reason, BudgetExceeded)
        await scene.pool.stop()
        with pytest.raises(EvaluationAborted) as aborted:
            await asyncio.to_thread(evaluate, scene.lm)
        assert isinstance(aborted.value.reason, PoolUnavailable)
        for stream in (True, False):
            with pytest.raises(EvaluationAborted), batch_run("nightly"):
                if stream:
                    request = Request(model=scene.lm.model, messages=(Message.user("hello"),))
                    assert [event async for event in async_engine(scene.lm).stream(request)]
                await scene.lm.acall("hello")


async def test_a_streamed_call_of_a_run_parks_and_is_aborted_as_any_other() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.status(500), times=None)
        async with running(server, breaker=BREAKER, retry=RETRY) as scene:
            request = Request(model=scene.lm.model, messages=(Message.user("hello"),))

            async def read() -> list[str]:
                return [event.type async for event in async_engine(scene.lm).stream(request)]

            with priority("batch"):
                parked = asyncio.create_task(read())
            await scene.until("breaker.opened")
            server.heal()
            assert await parked == ["start", "delta", "end"]
            server.fail(Fault.status(500), times=None)
            with pytest.raises(EvaluationAborted), batch_run("nightly", outage_timeout=0.2):
                await read()
            assert scene.pool.stats()["openai/fake"]["in_flight"] == 0


# -- priorities and batches --------------------------------------------------------------------------------------------


def test_a_caller_is_serving_unless_it_says_otherwise() -> None:
    assert current_priority().kind == "serving"
    with priority("batch", run="nightly", outage_timeout=5) as run:
        assert run is not None
        assert (run.name, run.outage_timeout) == ("nightly", 5)
        assert (current_priority().kind, current_priority().batch) == ("batch", run)
        assert current_labels()["run"] == "nightly"
        with priority("batch", run="inner") as inner, priority("batch") as unnamed, batch_run("door") as door:
            assert inner is unnamed is door is run, "a run within a run is a part of it"
        assert not run.cancelled
        with priority("serving") as none:
            assert none is None
            assert current_priority().batch is None
    assert current_priority().kind == "serving"
    assert current_labels() == {}


def test_the_caller_reaches_the_threads_that_dspy_starts() -> None:
    found: list[Any] = []

    class Look(dspy.Module):  # type: ignore[misc]
        def forward(self, question: str) -> dspy.Prediction:
            found.append(current_priority().batch)
            return dspy.Prediction(answer="")

    with labels(session="s"), batch_run("nightly") as run:
        dspy.Evaluate(devset=devset(4), metric=right, num_threads=2)(Look())
    assert found == [run] * 4


def test_a_run_that_was_aborted_has_no_result_even_if_the_abort_was_swallowed() -> None:
    reason = LMServerError("down")
    for ending in (None, ValueError("wrapped by an optimizer")):
        with (
            pytest.raises(OptimizationAborted, match="the optimization 'tune' was aborted: LMServerError") as aborted,
            batch_run("tune", raises=OptimizationAborted) as run,
        ):
            run.cancel(reason)
            run.cancel(ValueError("later"))
            with pytest.raises(BatchAborted):
                run.check()
            if ending is not None:
                raise ending
        assert aborted.value.reason is reason


async def test_an_abort_in_a_group_of_tasks_is_the_same_abort() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM("hello"))) as scene:
        with pytest.raises(EvaluationAborted), batch_run("nightly") as run:
            async with asyncio.TaskGroup() as tasks:
                run.cancel(LMServerError("down"))
                tasks.create_task(scene.lm.acall("hello"))
        assert not scene.events("lm.attempt.started")


def test_an_error_of_the_block_is_its_own() -> None:
    for error in (ValueError("mine"), KeyboardInterrupt(), BatchAborted("another"), ExceptionGroup("", [OSError()])):
        with pytest.raises(type(error)), batch_run("nightly") as run:
            raise error
        assert run.cancelled


def test_an_inner_door_leaves_the_abort_to_the_outer_one() -> None:
    with pytest.raises(OptimizationAborted) as aborted, batch_run("tune", raises=OptimizationAborted):
        try:
            with batch_run("evaluation") as inner:
                inner.cancel(LMServerError("down"))
                inner.check()
        except Exception:
            raise AssertionError("the abort was turned into an exception too early") from None
    assert aborted.value.run == "tune"


async def test_when_a_run_has_ended_what_it_left_behind_sends_nothing() -> None:
    async with running(Endpoint("mock/mock", engine=MockLM("hello"))) as scene:
        await leave_behind(scene)
        assert len(scene.events("lm.attempt.started")) == 1


async def leave_behind(scene: Scene) -> None:
    go = asyncio.Event()

    async def straggler() -> Any:
        await go.wait()
        return await scene.lm.acall("late")

    with batch_run("nightly"):
        assert await scene.lm.acall("in time") == ["hello"]
        late = asyncio.create_task(straggler())
        await asyncio.sleep(0)
    go.set()
    with pytest.raises(BatchAborted, match="the batch 'nightly' is over"):
        await late


async def test_a_refusal_of_the_request_itself_is_raised_in_a_run_as_ever() -> None:
    with FakeServer("hello") as server:
        server.fail(Fault.status(400))
        async with running(server) as scene:
            with batch_run("nightly"), pytest.raises(LMInvalidRequestError):
                await scene.lm.acall("hello")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: priority("other"), "priority: kind='other': give one of 'serving', 'batch'"),  # type: ignore[arg-type]
        (lambda: batch_run(""), "batch_run: run='': give a text that is not empty"),
        (lambda: batch_run("x", raises=5), "batch_run: raises=5: give EvaluationAborted or OptimizationAborted"),  # type: ignore[arg-type]
        (lambda: priority("batch", outage_timeout=-1), "Batch: outage_timeout=-1: give seconds >= 0"),
        (lambda: priority("batch", run=5), "Batch: name=5: give a text"),  # type: ignore[arg-type]
    ],
)
def test_an_invalid_argument_is_named_with_its_value_and_the_remedy(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as caught, make():
        pass
    assert str(caught.value) == message


def test_a_run_that_is_over_wakes_whoever_parks_in_it_later() -> None:
    run = Batch("nightly")
    run.cancel(None)
    on_cancel: list[bool] = []
    with run.on_cancel(lambda: on_cancel.append(True)):
        assert on_cancel == [True]
