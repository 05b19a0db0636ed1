"""`Program`: the handle of a running DSPy program, and `start_program`, which starts one.

The module runs in an actor under a supervisor of its own; the handle is called as the module was.
"""

from __future__ import annotations

import functools
from typing import Any

import dspy

from promptside.actors import ActorRef, ActorSystem
from promptside.programs.module import ModuleActor, ModuleSource
from promptside.supervision import ChildSpec, Supervisor

__all__ = ["Program", "start_program"]


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
            lm: The LM for this call alone.
            **inputs: The module's keyword arguments.

        Raises:
            ActorStopped: The program crashed during the call, or is being restarted; see `started`.
            NoLMLoaded: No LM is set at any level.
            Exception: Whatever the module raised.
        """
        return await self.ref.ask(ModuleActor.call, inputs, lm)

    async def stop(self) -> None:
        """Stop the program; calls under way end first."""
        await self._supervisor.stop("shutdown")


async def start_program(
    system: ActorSystem, source: ModuleSource, *, name: str | None = None, lm: dspy.LM | None = None
) -> Program:
    """Start a DSPy program as a supervised actor.

    Args:
        system: The running system.
        source: A module's class or another factory (new state at each restart), or a module.
        name: Of the program in the tree and the registry; the module's class by default.
        lm: The LM for calls that bring none.

    Raises:
        ActorStartError: The factory raised; the cause is chained.
        NameTaken: Another live actor holds the name.
    """
    if name is None:
        name = type(source).__name__ if isinstance(source, dspy.Module) else getattr(source, "__name__", "program")
    spec = ChildSpec("module", functools.partial(ModuleActor, source, lm=lm))
    supervisor = await system.with_options(name=name).spawn(Supervisor, [spec])
    return Program(supervisor, await supervisor.ask(Supervisor.child, "module"))
