"""`Ensemble`: several modules or programs that answer the same question, and one prediction made of theirs.

A `dspy.Module` like any other: in a `Program` each member is an actor of its own. For one prompt that goes to
several models, see `LMPool.vote`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import dspy

from promptside.checks import check, check_count
from promptside.pools.context.cancel import CallCancelled
from promptside.pools.context.priority import BatchAborted
from promptside.pools.errors import EnsembleFailed
from promptside.programs.hosting.entry import enter
from promptside.programs.program import Program

__all__ = ["Ensemble"]


class Ensemble(dspy.Module):
    """Calls all members at the same time, and combines what at least a quorum of them answer.

    ::

        program = await Program(lambda: Ensemble([Terse(), Careful(), Careful()], quorum=2)).start(system)

    Args:
        members: Modules, of which synchronous ones run in threads; or `Program`s, whose actors live elsewhere.
        combine: From the list of the members' predictions, in the order of the members, to one; sync or async.
            `dspy.majority` by default: the most frequent value of the last output field. It runs on the event loop.
        quorum: Answers that are needed, in [1, len(members)].

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        members: Sequence[dspy.Module | Program],
        *,
        combine: Callable[[list[dspy.Prediction]], Any] = dspy.majority,
        quorum: int = 1,
    ) -> None:
        super().__init__()
        self.members = list(members)
        check_count("Ensemble", "quorum", quorum)
        check("Ensemble", "quorum", quorum, quorum <= len(self.members), f"there are {len(self.members)} members")
        check("Ensemble", "combine", combine, callable(combine), "give a function of a list of predictions")
        for index, member in enumerate(self.members):
            able = isinstance(member, Program | dspy.Module)
            check("Ensemble", f"members[{index}]", member, able, "give a dspy.Module, or a Program")
        self.combine = combine
        self.quorum = quorum

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Ask all members.

        Args:
            **inputs: Of each of them.

        Raises:
            EnsembleFailed: Fewer members than the quorum answered; the others under way were cancelled.
        """
        threads = anyio.CapacityLimiter(len(self.members))
        answers: dict[int, dspy.Prediction] = {}
        failures: list[tuple[str, Exception]] = []
        aborted: list[BatchAborted | CallCancelled] = []
        async with anyio.create_task_group() as group:

            async def ask(index: int, member: dspy.Module | Program) -> None:
                try:
                    answers[index] = await (
                        member.call_with((), inputs)
                        if isinstance(member, Program)
                        else enter(member, (), inputs, threads)
                    )
                except (BatchAborted, CallCancelled) as abort:
                    aborted.append(abort)
                    group.cancel_scope.cancel()
                except Exception as error:  # noqa: BLE001 - a member may fail
                    failures.append((f"members[{index}]", error))
                    if len(self.members) - len(failures) < self.quorum:
                        group.cancel_scope.cancel()

            for index, member in enumerate(self.members):
                group.start_soon(ask, index, member)
        if aborted:
            raise aborted[0]
        if len(answers) < self.quorum:
            if not failures:
                raise asyncio.CancelledError  # by which members have ended of themselves
            raise EnsembleFailed("Ensemble", tuple(failures), len(answers), self.quorum) from failures[-1][1]
        combined = self.combine([answers[index] for index in sorted(answers)])
        return await combined if inspect.isawaitable(combined) else combined
