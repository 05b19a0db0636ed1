"""Which LM a program uses: call over context over program over caller over system over application."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config

from promptside import ActorSystem
from promptside.pools import LMPool, NoLMLoaded, labels
from promptside.programs import Program, set_default_lm
from promptside.testing import FakeServer
from tests.support.modules import Answer, SyncAnswer, lm
from tests.support.pools import endpoint


async def said(program: Program, **options: Any) -> str:
    return str((await program.acall(question="?", **options)).answer)


class Calling(dspy.Module):  # type: ignore[misc]
    """Asks its own predictor, and then another program; says both."""

    def __init__(self, inner: Program) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.inner = [inner]  # a list, which DSPy does not search for parameters

    async def aforward(self, question: str) -> dspy.Prediction:
        own = (await self.predict.acall(question=question)).answer
        return dspy.Prediction(answer=f"{own}, {await said(self.inner[0])}")


@pytest.mark.parametrize("source", [Answer, SyncAnswer])
async def test_each_level_goes_over_the_wider_ones(source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with ActorSystem() as system:
        bare = await Program(source).start(system)
        own = await Program(source, lm=lm("program")).start(system)
        with pytest.raises(NoLMLoaded):
            await said(bare)
        monkeypatch.setitem(main_thread_config, "lm", lm("application"))
        assert await said(bare) == "application"
        set_default_lm(system, lm("system"))
        assert (await said(bare), await said(own)) == ("system", "program")
        with dspy.context(lm=lm("context")):
            assert (await said(bare), await said(own)) == ("context", "context")
            assert await said(own, lm=lm("call")) == "call"
        assert await said(own, lm=lm("call")) == "call"
        assert await said(own) == "program"
        set_default_lm(system, None)
        assert await said(bare) == "application"


@pytest.mark.parametrize(
    "block", [functools.partial(dspy.context, track_usage=True), functools.partial(labels, run="r")]
)
async def test_a_context_that_names_no_lm_leaves_the_choice_as_it_was(
    block: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(main_thread_config, "lm", lm("application"))
    async with ActorSystem() as system:
        set_default_lm(system, lm("system"))
        bare = await Program(Answer).start(system)
        own = await Program(Answer, lm=lm("program")).start(system)
        with block():
            assert (await said(bare), await said(own)) == ("system", "program")


async def test_a_program_called_by_another_keeps_its_own_lm_unless_the_outermost_caller_brought_one() -> None:
    async with ActorSystem() as system:
        set_default_lm(system, lm("system"))
        own = await Program(Answer, name="own", lm=lm("inner")).start(system)
        bare = await Program(Answer, name="bare").start(system)
        of_own = await Program(lambda: Calling(own), lm=lm("outer")).start(system)
        of_bare = await Program(lambda: Calling(bare), lm=lm("outer")).start(system)
        of_both = await Program(lambda: Calling(bare)).start(system)
        assert await said(of_own) == "outer, inner"
        assert await said(of_bare) == "outer, outer", "as a module within a module"
        assert await said(of_both) == "system, system"
        with dspy.context(lm=lm("context")):
            assert await said(of_own) == "context, context"
        assert await said(of_own, lm=lm("call")) == "call, call"


async def test_systems_do_not_share_their_default() -> None:
    async with ActorSystem() as one, ActorSystem() as two:
        set_default_lm(one, lm("one"))
        assert await said(await Program(Answer).start(one)) == "one"
        with pytest.raises(NoLMLoaded):
            await said(await Program(Answer).start(two))
        with pytest.raises(ValueError, match=r"set_default_lm: lm='gpt': give a dspy\.LM"):
            set_default_lm(two, "gpt")  # type: ignore[arg-type]


async def test_a_client_of_decisions_is_an_lm_as_for_a_predictor() -> None:
    class Decides:
        supports_decision_requests = True

    class Telling(dspy.Module):  # type: ignore[misc]
        async def aforward(self) -> dspy.Prediction:
            return dspy.Prediction(answer=type(dspy.settings.lm).__name__)

    async with ActorSystem() as system:
        client: Any = Decides()
        program = await Program(Telling, lm=client).start(system)
        assert (await program.acall()).answer == "Decides"
        assert (await program.acall(lm=client)).answer == "Decides"


async def test_200_concurrent_calls_of_one_program_never_see_each_others_lm() -> None:
    models = [f"openai/model-{number}" for number in range(20)]
    with FakeServer(lambda body: str(body["model"])) as server:
        async with ActorSystem() as system:
            pool = await LMPool([endpoint(server, model) for model in models], workers=1).start(system)
            set_default_lm(system, pool.lm(models[0], cache=False))
            lms = [pool.lm(model, cache=False) for model in models]
            programs = [
                await Program(source, name=name).start(system)
                for name, source in (("async", Answer), ("sync", SyncAnswer))
            ]

            async def call(number: int) -> bool:
                program, index = programs[number % 2], number % 20
                match number % 3:
                    case 0:
                        answer = await program.acall(question=f"{number}", lm=lms[index])
                    case 1:
                        with dspy.context(lm=lms[index]):
                            answer = await program.acall(question=f"{number}")
                    case _:
                        index = 0
                        answer = await program.acall(question=f"{number}")
                return bool(answer.answer == models[index].removeprefix("openai/"))

            assert all(await asyncio.gather(*(call(number) for number in range(200))))
            assert len(server.requests) == 200
