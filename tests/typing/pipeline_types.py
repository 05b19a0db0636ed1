"""What mypy and pyright infer about pipelines; checked by both, never run."""

from __future__ import annotations

from typing import assert_type

import dspy

from promptside import ActorSystem, ChildSpec
from promptside.programs import Program
from promptside.programs.hosting.streaming import Piece
from promptside.programs.pipeline.groups import branch, parallel
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import stage


async def search(question: str) -> list[str]:
    return [question]


async def pipelines(system: ActorSystem) -> None:
    retrieve = stage(search, outputs="context")
    assert_type(retrieve >> "context, question -> answer", Pipeline)
    assert_type("question -> query" >> stage("query -> answer"), Pipeline)
    assert_type(parallel(retrieve, ("words", len)) >> branch("context", {"x": "context -> answer"}), Pipeline)
    rag = await Pipeline([retrieve, "context, question -> answer"]).start(system)
    assert_type(rag, Pipeline)
    assert_type(rag.child_spec(), ChildSpec)
    assert_type(rag.program("answer"), Program)
    prediction = await rag(question="q")
    assert_type(prediction, dspy.Prediction)
    async for each in rag.map([{"question": "q"}]):
        assert_type(each, dspy.Prediction)
    async for outcome in rag.map([{"question": "q"}], return_exceptions=True):
        assert_type(outcome, dspy.Prediction | Exception)
    async for piece in rag.stream(question="q"):
        assert_type(piece, Piece)
