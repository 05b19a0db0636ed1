"""`Program`: the handle of a running DSPy program, and `start_program`, which starts one.

The module runs in an actor under a supervisor of its own; the handle is called as the module was.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Iterable
from typing import Any

import dspy

from promptside.actors import ActorRef, ActorSystem
from promptside.clock import monotonic
from promptside.errors import ActorStopped, NameTaken
from promptside.programs.module import ModuleActor, ModuleSource
from promptside.supervision import ChildSpec, Supervisor

__all__ = ["Program", "start_program"]

RESTART = 5.0
"""Seconds for which a call that has not begun waits for the restart of its program."""

PAUSE = 0.01
"""Seconds between two looks at whether it runs again."""


class Program:
    """A DSPy program that runs under supervision; made by `start_program`.

    Attributes:
        ref: The module's actor; the same across restarts.
    """

    def __init__(self, supervisor: ActorRef[Supervisor], ref: ActorRef[ModuleActor]) -> None:
        self.ref = ref
        self._supervisor = supervisor

    async def acall(self, *, lm: dspy.LM | None = None, **inputs: Any) -> dspy.Prediction:
        """Call the program, as `dspy.Module.acall`.

        Args:
            lm: The LM for this call alone. A predictor that was given an LM of its own keeps it, as in DSPy.
            **inputs: The module's keyword arguments.

        Raises:
            ActorStopped: The program crashed or was stopped during the call (`started` is True), or does not run. A
                call that finds it restarting waits for it, up to 5 seconds.
            NoLMLoaded: No LM is set at any level.
            Exception: Whatever the module raised.
        """
        deadline = monotonic() + RESTART
        while True:
            try:
                return await self.ref.ask(ModuleActor.call, inputs, lm)
            except ActorStopped as stopped:
                if stopped.started or stopped.retry_after is None or monotonic() > deadline:
                    raise
                await asyncio.sleep(max(stopped.retry_after, PAUSE))

    async def stop(self) -> None:
        """Stop the program; calls under way have 5 seconds to end."""
        await self._supervisor.stop("shutdown")


async def start_program(
    system: ActorSystem, source: ModuleSource, *, name: str | None = None, lm: dspy.LM | None = None
) -> Program:
    """Start a DSPy program as a supervised actor.

    Args:
        system: The running system.
        source: A module's class or another factory (new state at each restart), or a module.
        name: Of the program in the tree and the registry; by default the module's class, or ``"program"`` for a
            factory, with a number where that is taken.
        lm: The LM for calls that bring none.

    Raises:
        ActorStartError: The factory raised; the cause is chained.
        NameTaken: Another live actor holds the name.
    """
    kind = source if isinstance(source, type) else type(source)
    default = kind.__name__ if issubclass(kind, dspy.Module) else "program"
    spec = ChildSpec("module", functools.partial(ModuleActor, source, lm=lm))
    names = [name] if name else (default if n == 1 else f"{default}-{n}" for n in itertools.count(1))
    supervisor = await _spawn_under_a_free_name(system, names, spec)
    return Program(supervisor, await supervisor.ask(Supervisor.child, "module"))


async def _spawn_under_a_free_name(system: ActorSystem, names: Iterable[str], spec: ChildSpec) -> ActorRef[Supervisor]:
    taken: NameTaken | None = None
    for name in names:
        try:
            return await system.with_options(name=name).spawn(Supervisor, [spec])
        except NameTaken as error:
            taken = error
    assert taken is not None
    raise taken
