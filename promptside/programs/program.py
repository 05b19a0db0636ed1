"""`Program`: the handle of a running DSPy program, and `start_program`, which starts one.

Each module of the program runs in an actor, under supervisors shaped like the modules; the handle is called as the
module was.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import dspy

from promptside.actors import ActorRef, ActorSystem
from promptside.actors.portal import Portal
from promptside.errors import ActorStopped, NameTaken, ProgramError
from promptside.events import Content
from promptside.pools.validation import check_count
from promptside.programs.host import Host
from promptside.programs.layer import ask, put_layer
from promptside.programs.module import THREADS, ModuleActor, PartActor
from promptside.programs.tree import SELF, ModuleSource, ModuleTree, Part
from promptside.supervision import Backoff, ChildSpec, Supervisor
from promptside.supervision.place import stands_elsewhere
from promptside.supervision.strategy import Restart

__all__ = ["Program", "start_program"]


class Program:
    """A DSPy program that runs under supervision.

    Made by `start_program`; or made here, to stand in a supervision tree by its `child_spec`.

    Args:
        source: A module's class or another factory, which gives a part that is restarted new state; or a module, whose
            parameters a restart sets back, and whose other attributes it keeps.
        name: Of the program in the tree and the registry; by default the module's class, or ``"program"`` for a
            factory.
        lm: The LM for calls that bring none.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.
        threads: Calls of synchronous modules that run at a time, each in a worker thread, >= 1.
        retries: How often a call of the program or of one of its modules is made again when the actor crashed under
            it, >= 0. For programs in which what was done may be done twice.

    Raises:
        ValueError: A setting is not valid; the message names it.
    """

    def __init__(
        self,
        source: ModuleSource,
        *,
        name: str | None = None,
        lm: dspy.LM | None = None,
        content: Content | None = None,
        threads: int = THREADS,
        retries: int = 0,
    ) -> None:
        check_count("Program", "threads", threads)
        check_count("Program", "retries", retries, least=0)
        kind = source if isinstance(source, type) else type(source)
        self.name = name or (kind.__name__ if issubclass(kind, dspy.Module) else "program")
        self._source = source
        self._module = functools.partial(ModuleActor, lm=lm, content=content)
        self._threads = threads
        self._retries = retries
        self._supervisor: ActorRef[Any] | None = None
        self._host: Host | None = None

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
        """The actor of the outermost module; the same across its restarts.

        Raises:
            ActorStopped: The program was never started.
        """
        return self._running().root.ref

    def part(self, path: str) -> ActorRef[Any]:
        """The actor of a sub-module, in the current version; the same across its restarts.

        Args:
            path: As in `named_predictors()`, such as ``"generate.predict"``.

        Raises:
            KeyError: The program has no such sub-module; the message lists those it has.
            ActorStopped: The program was never started.
        """
        return self._part(path).ref

    async def acall(self, *, lm: dspy.LM | None = None, **inputs: Any) -> dspy.Prediction:
        """Call the program, as `dspy.Module.acall`.

        Args:
            lm: The LM for this call alone. A predictor that was given an LM of its own keeps it, as in DSPy.
            **inputs: The module's keyword arguments.

        Raises:
            ActorStopped: An actor of the program crashed or was stopped during the call (`started` is True), or does
                not run. A call that finds one restarting waits for it, up to 5 seconds.
            NoLMLoaded: No LM is set at any level.
            Exception: Whatever the module raised.
        """
        return await ask(lambda: self.ref, self._retries, ModuleActor.call, inputs, lm)

    def __call__(self, *, lm: dspy.LM | None = None, **inputs: Any) -> dspy.Prediction:
        """As `acall`, from a thread that runs no event loop, which waits.

        Raises:
            RuntimeError: The thread runs an event loop: await `acall` instead.
            Exception: As for `acall`.
        """
        return Portal(self.ref._cell.system).call(self.acall(lm=lm, **inputs))

    async def stop(self) -> None:
        """Stop the program; calls under way have 5 seconds to end. Under a supervisor, that decides what follows."""
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")

    def _running(self) -> Host:
        if self._host is None:
            raise ActorStopped(self.name, "not started yet", started=False, incarnation=0)
        return self._host

    def _part(self, path: str) -> Part:
        host = self._running()
        parts = host.version.below(host.root)
        if path not in parts:
            raise KeyError(f"the program {self.name!r} has no part {path!r}, but {', '.join(map(repr, parts))}")
        return parts[path]


class ProgramSupervisor(Supervisor):
    """The actor of a program: the supervisor of its outermost module, and of those below.

    Args:
        program: The program.
    """

    def __init__(self, program: Program) -> None:
        if stands_elsewhere(self, program._supervisor):
            raise ProgramError(f"the program {program.name!r} runs already; make another Program for another place")
        before = program._host
        self._program = program
        self._host = host = Host(
            ModuleTree(program._source),
            whole=True,
            threads=program._threads,
            retries=program._retries,
            version=None if before is None else before.version,
        )
        for part in host.parts.values():
            put_layer(part.module)
        door = functools.partial(program._module, host, program=program.name)
        super().__init__([*(_spec(host, part) for part in host.root.parts), ChildSpec(SELF, door)])

    async def on_start(self) -> None:
        """Start the modules, the outermost one last, then take calls."""
        await super().on_start()
        self._program._host = self._host
        self._program._supervisor = self.ref


def _spec(host: Host, part: Part, id: str | None = None) -> ChildSpec:
    """The actor of a part; with parts below it, a supervisor of these and it. They start first, and stop last."""
    start = functools.partial(PartActor, host, part)
    if not part.parts:
        return ChildSpec(id or part.id, start)
    return Supervisor.child_spec(id or part.id, [*(_spec(host, below) for below in part.parts), ChildSpec(SELF, start)])


async def start_program(
    system: ActorSystem,
    source: ModuleSource,
    *,
    name: str | None = None,
    lm: dspy.LM | None = None,
    content: Content | None = None,
    threads: int = THREADS,
    retries: int = 0,
) -> Program:
    """Start a DSPy program: each of its modules as an actor, under supervisors shaped like the modules.

    Args:
        system: The running system.
        source: A module's class or another factory, which gives a part that is restarted new state; or a module, whose
            parameters a restart sets back, and whose other attributes it keeps.
        name: Of the program in the tree and the registry; by default the module's class, or ``"program"`` for a
            factory, with a number where that is taken.
        lm: The LM for calls that bring none.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.
        threads: Calls of synchronous modules that run at a time, each in a worker thread, >= 1.
        retries: How often a call of the program or of one of its modules is made again when the actor crashed under
            it, >= 0. For programs in which what was done may be done twice.

    Raises:
        ActorStartError: The factory raised; the cause is chained.
        NameTaken: Another live actor holds the name.
        ValueError: A setting is not valid; the message names it.
    """
    program = Program(source, name=name, lm=lm, content=content, threads=threads, retries=retries)
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
