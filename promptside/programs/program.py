"""`Program`: the handle of a running DSPy program, and `start_program`, which starts one.

The module runs in an actor under a supervisor of its own; the handle is called as the module was.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from typing import Any

import dspy

from promptside.actors import ActorRef, ActorSystem
from promptside.clock import monotonic
from promptside.errors import ActorStopped, NameTaken, ProgramError
from promptside.events import Content
from promptside.programs.module import ModuleActor, ModuleSource
from promptside.supervision import Backoff, ChildSpec, Supervisor
from promptside.supervision.place import stands_elsewhere
from promptside.supervision.strategy import Restart

__all__ = ["Program", "start_program"]

RESTART = 5.0
"""Seconds for which a call that has not begun waits for the restart of its program."""

PAUSE = 0.01
"""Seconds between two looks at whether it runs again."""


class Program:
    """A DSPy program that runs under supervision.

    Made by `start_program`; or made here, to stand in a supervision tree by its `child_spec`.

    Args:
        source: A module's class or another factory (new state at each restart), or a module.
        name: Of the program in the tree and the registry; by default the module's class, or ``"program"`` for a
            factory.
        lm: The LM for calls that bring none.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.
    """

    def __init__(
        self,
        source: ModuleSource,
        *,
        name: str | None = None,
        lm: dspy.LM | None = None,
        content: Content | None = None,
    ) -> None:
        kind = source if isinstance(source, type) else type(source)
        self.name = name or (kind.__name__ if issubclass(kind, dspy.Module) else "program")
        self._module = functools.partial(ModuleActor, source, lm=lm, content=content)
        self._supervisor: ActorRef[Any] | None = None
        self._ref: ActorRef[ModuleActor] | None = None

    def child_spec(self, *, restart: Restart = "permanent", backoff: Backoff | None = None) -> ChildSpec:
        """To have the program started, and restarted, by a `Supervisor`. This handle works with each incarnation.

        Args:
            restart: As in `ChildSpec`.
            backoff: As in `ChildSpec`.
        """
        return ChildSpec(
            self.name, functools.partial(ProgramSupervisor, self), restart, name=self.name, backoff=backoff
        )

    @property
    def ref(self) -> ActorRef[ModuleActor]:
        """The module's actor; the same across its restarts.

        Raises:
            ActorStopped: The program was never started.
        """
        if self._ref is None:
            raise ActorStopped(self.name, "not started yet", started=False, incarnation=0)
        return self._ref

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
            ref = self.ref
            try:
                return await ref.ask(ModuleActor.call, inputs, lm)
            except ActorStopped as stopped:
                retry_after = self._retry_after(ref, stopped)
                if stopped.started or retry_after is None or monotonic() > deadline:
                    raise
                await asyncio.sleep(max(retry_after, PAUSE))

    def _retry_after(self, ref: ActorRef[ModuleActor], stopped: ActorStopped) -> float | None:
        """Seconds until the module or the whole program is expected back; None if it is not."""
        if self._ref != ref:
            return 0.0  # the program has been restarted meanwhile
        if stopped.retry_after is not None or self._supervisor is None:
            return stopped.retry_after
        return self._supervisor._cell.retry_after()

    async def stop(self) -> None:
        """Stop the program; calls under way have 5 seconds to end. Under a supervisor, that decides what follows."""
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")


class ProgramSupervisor(Supervisor):
    """The actor of a program: the supervisor of its module.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        if stands_elsewhere(self, program._supervisor):
            raise ProgramError(f"the program {program.name!r} runs already; make another Program for another place")
        self._program = program
        super().__init__([ChildSpec("module", functools.partial(program._module, program=program.name))])

    async def on_start(self) -> None:
        """Start the module, then take calls."""
        await super().on_start()
        self._program._ref = await self.child("module")
        self._program._supervisor = self.ref


async def start_program(
    system: ActorSystem,
    source: ModuleSource,
    *,
    name: str | None = None,
    lm: dspy.LM | None = None,
    content: Content | None = None,
) -> Program:
    """Start a DSPy program as a supervised actor.

    Args:
        system: The running system.
        source: A module's class or another factory (new state at each restart), or a module.
        name: Of the program in the tree and the registry; by default the module's class, or ``"program"`` for a
            factory, with a number where that is taken.
        lm: The LM for calls that bring none.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.

    Raises:
        ActorStartError: The factory raised; the cause is chained.
        NameTaken: Another live actor holds the name.
    """
    program = Program(source, name=name, lm=lm, content=content)
    default = program.name
    for number in itertools.count(2):
        try:
            await system.with_options(name=program.name).spawn(ProgramSupervisor, program)
        except NameTaken:
            if name is not None:
                raise
            program.name = f"{default}-{number}"
        else:
            break
    return program
