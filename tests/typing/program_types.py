"""What mypy and pyright infer about programs; checked by both, never run."""

from __future__ import annotations

from typing import assert_type

import dspy

from promptside import ActorSystem, ChildSpec
from promptside.programs import Piece, Program, execute


async def programs(system: ActorSystem) -> None:
    program = await Program(lambda: dspy.Predict("question -> answer"), attempts=2, timeout=30).start(system)
    assert_type(program, Program)
    assert_type(program.child_spec(), ChildSpec)
    assert_type(await program.acall(question="q"), dspy.Prediction)
    assert_type(await program.acall({"question": "q"}, timeout=5), dspy.Prediction)
    assert_type(program(question="q"), dspy.Prediction)
    assert_type(await execute(program, {"question": "q"}), dspy.Prediction)
    async for piece in program.stream(question="q"):
        assert_type(piece, Piece)
        assert_type(piece.prediction, dspy.Prediction | None)
    async with Program(lambda: dspy.Predict("question -> answer")) as own:
        assert_type(own, Program)
    Program(lambda: dspy.Predict("question -> answer"), retries=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
