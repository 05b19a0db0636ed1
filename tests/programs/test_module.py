"""`promptside.programs.ModuleActor`: a DSPy module in an actor, in the caller's own context."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config

from promptside import ActorStartError, ActorSystem, ChildSpec, Supervisor
from promptside.pools import Endpoint, LMPool, NoLMLoaded
from promptside.programs import ModuleActor
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.modules import Answer, Failing, SyncAnswer, lm


async def test_a_module_is_called_with_its_inputs_and_answers_with_its_prediction() -> None:
    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, Answer, lm=lm("42"))
        prediction = await actor.ask(ModuleActor.call, {"question": "what?"})
        assert prediction.answer == "42"
        assert isinstance(prediction, dspy.Prediction)


async def test_a_class_a_factory_and_an_instance_are_sources() -> None:
    module = Answer()
    async with ActorSystem() as system:
        for source in (Answer, lambda: module, module, functools.partial(dspy.Predict, "question -> answer")):
            actor = await system.spawn(ModuleActor, source, lm=lm("yes"))
            assert (await actor.ask(ModuleActor.call, {"question": "?"})).answer == "yes"
        assert module.calls == 2


@pytest.mark.parametrize("source", [lambda: "no module", dict, 3])
async def test_a_source_that_gives_no_module_is_named_with_the_remedy(source: Any) -> None:
    async with ActorSystem() as system:
        with pytest.raises(ActorStartError, match=r"give a dspy\.Module, or a callable that returns one"):
            await system.spawn(ModuleActor, source)


# -- which LM ----------------------------------------------------------------------------------------------------------


async def test_the_calls_lm_goes_over_the_contexts_over_the_programs_over_the_applications(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(main_thread_config, "lm", lm("application"))
    async with ActorSystem() as system:
        bare = await system.spawn(ModuleActor, Answer)
        actor = await system.spawn(ModuleActor, Answer, lm=lm("program"))

        async def answer(ref: Any, *more: Any) -> str:
            return str((await ref.ask(ModuleActor.call, {"question": "?"}, *more)).answer)

        assert await answer(bare) == "application"
        assert await answer(actor) == "program"
        with dspy.context(lm=lm("context")):
            assert await answer(actor) == "context"
            assert await answer(actor, lm("call")) == "call"
        assert await answer(actor) == "program"


async def test_without_an_lm_at_any_level_the_error_says_how_to_load_one() -> None:
    async with ActorSystem() as system:
        actor = await system.with_options(name="triage").spawn(ModuleActor, Answer)
        with pytest.raises(NoLMLoaded) as caught:
            await actor.ask(ModuleActor.call, {"question": "?"})
        text = str(caught.value)
        assert text.startswith("No LM is loaded for 'triage'.")
        for level in ("acall(lm=", "dspy.context(lm=", "Program(..., lm=", "set_default_lm(system, lm)"):
            assert level in text
        assert caught.value.program == "triage"
        assert actor.incarnation == 1


async def test_a_module_whose_predictors_have_their_own_lm_or_that_has_none_needs_no_other() -> None:
    module = Answer()
    module.set_lm(lm("own"))
    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, module)
        assert (await actor.ask(ModuleActor.call, {"question": "?"})).answer == "own"
        other = lm("call")
        assert (await actor.ask(ModuleActor.call, {"question": "?"}, other)).answer == "own", "as in DSPy"
        plain = await system.spawn(ModuleActor, Failing)
        assert (await plain.ask(ModuleActor.call, {"error": None})).answer == "well"


# -- context -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [Answer, SyncAnswer])
async def test_a_hundred_concurrent_callers_with_ten_lms_never_see_each_others(source: Any) -> None:
    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, source)
        models = [lm(f"model {number}", latency=0.001 * (number % 3)) for number in range(10)]

        async def call(number: int) -> bool:
            with dspy.context(lm=models[number % 10]):
                prediction = await actor.ask(ModuleActor.call, {"question": f"call {number}"})
            return bool(prediction.answer == f"model {number % 10}")

        assert all(await asyncio.gather(*(call(number) for number in range(100))))


MARK: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="none")


class Marked(dspy.Module):  # type: ignore[misc]
    """Tells in which context and thread it runs."""

    def forward(self) -> dspy.Prediction:
        prediction = dspy.Prediction(
            mark=MARK.get(),
            adapter=type(dspy.settings.adapter).__name__,
            thread=threading.get_ident(),
            trace=dspy.settings.trace,
        )
        MARK.set("changed inside")
        return prediction


class AsyncMarked(Marked):
    async def aforward(self) -> dspy.Prediction:
        return self.forward()


@pytest.mark.parametrize("source", [Marked, AsyncMarked])
async def test_the_module_runs_in_the_context_of_its_caller(source: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with ActorSystem() as system:
        with dspy.context(adapter=dspy.JSONAdapter()):
            actor = await system.spawn(ModuleActor, source)
        MARK.set("caller's")
        with dspy.context(adapter=dspy.XMLAdapter()):
            prediction = await actor.ask(ModuleActor.call, {})
        assert (prediction.mark, prediction.adapter) == ("caller's", "XMLAdapter")
        assert (prediction.thread != threading.get_ident()) == (source is Marked)
        assert MARK.get() == "caller's"
        assert (await actor.ask(ModuleActor.call, {})).mark == "caller's"


async def test_the_shared_trace_does_not_grow_and_a_callers_own_is_filled() -> None:
    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, Answer, lm=lm("yes"))
        before = len(dspy.settings.trace)
        for _ in range(5):
            await actor.ask(ModuleActor.call, {"question": "?"})
        assert len(dspy.settings.trace) == before
        with dspy.context(trace=[]):
            await actor.ask(ModuleActor.call, {"question": "?"})
            assert len(dspy.settings.trace) == 1


async def test_a_synchronous_module_does_not_block_the_loop() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Blocking(dspy.Module):  # type: ignore[misc]
        def forward(self) -> dspy.Prediction:
            begun.set()
            assert go_on.wait(10)
            return dspy.Prediction(answer="done")

    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, Blocking)
        call = asyncio.create_task(actor.ask(ModuleActor.call, {}))
        await asyncio.to_thread(begun.wait, 10)
        assert not call.done()
        go_on.set()
        assert (await call).answer == "done"


async def test_many_synchronous_modules_and_their_pool_do_not_run_out_of_threads() -> None:
    endpoint = Endpoint("mock/mock", engine=MockLM("yes", latency=0.005))
    async with ActorSystem() as system:
        pool = await LMPool([endpoint]).start(system)
        actor = await system.spawn(ModuleActor, SyncAnswer, lm=pool.lm(cache=False))
        calls = (actor.ask(ModuleActor.call, {"question": f"call {number}"}) for number in range(150))
        predictions = await asyncio.gather(*calls)
        assert {prediction.answer for prediction in predictions} == {"yes"}
        assert threading.get_ident() not in {prediction.thread for prediction in predictions}


# -- exceptions, crashes, cancellation ---------------------------------------------------------------------------------


async def test_an_exception_is_an_answer_and_the_actor_goes_on() -> None:
    async with ActorSystem() as system:
        actor = await system.spawn(ModuleActor, Failing)
        odd = ValueError("odd")
        with pytest.raises(ValueError) as caught:
            await actor.ask(ModuleActor.call, {"error": odd})
        assert caught.value is odd
        assert (await actor.ask(ModuleActor.call, {"error": None})).answer == "well"
        assert actor.incarnation == 1
        with pytest.raises(TypeError, match="unexpected keyword argument"):
            await actor.ask(ModuleActor.call, {"no_such": 1})
        assert actor.incarnation == 1


async def test_cancelling_the_caller_cancels_the_lm_call_down_to_the_socket() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            actor = await system.spawn(ModuleActor, Answer, lm=pool.lm(cache=False))
            server.fail(Fault.hang())
            call = asyncio.create_task(actor.ask(ModuleActor.call, {"question": "?"}))
            await server.until(lambda: server.active == 1)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await server.until(lambda: server.requests[0].aborted)
            assert (await actor.ask(ModuleActor.call, {"question": "?"})).answer == "yes"
            assert actor.incarnation == 1
            assert pool.stats()["openai/fake"]["failures"] == 0


async def test_a_killed_module_cancels_its_lm_calls() -> None:
    with FakeServer("yes") as server:
        async with ActorSystem() as system:
            pool = await LMPool([Endpoint("openai/fake", api_base=server.url, api_key="none")]).start(system)
            spec = ChildSpec("answer", functools.partial(ModuleActor, Answer, lm=pool.lm(cache=False)))
            supervisor = await system.spawn(Supervisor, [spec])
            actor = await supervisor.ask(Supervisor.child, "answer")
            server.fail(Fault.hang(), times=3)
            calls = [asyncio.create_task(actor.ask(ModuleActor.call, {"question": f"{n}"})) for n in range(3)]
            await server.until(lambda: server.active == 3)
            actor.kill()
            errors = await asyncio.gather(*calls, return_exceptions=True)
            assert [getattr(error, "started", None) for error in errors] == [True] * 3
            await server.until(lambda: all(request.aborted for request in server.requests))
