"""`Program`: the handle of a running DSPy program, and `start_program`, which starts one.

Each module of the program runs in an actor, under supervisors shaped like the modules; the handle is called as the
module was.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import Any

import anyio
import dspy
from dspy.streaming import StatusMessageProvider

from promptside.actors import ActorRef, ActorSystem
from promptside.actors.spi import top_cells
from promptside.checks import check, check_count
from promptside.errors import ActorStopped, NameTaken
from promptside.events import Content
from promptside.programs.chain import Chainable
from promptside.programs.hosting.actors import THREADS, ModuleActor
from promptside.programs.hosting.host import Host, Request
from promptside.programs.hosting.hosted_class import ask, copy_of
from promptside.programs.hosting.parts import SELF, ModuleSource, Part
from promptside.programs.hosting.saving import read_state, save_state
from promptside.programs.hosting.streaming import Piece, stream_call
from promptside.programs.hosting.supervisor import ProgramSupervisor
from promptside.programs.hosting.threads import wait_for
from promptside.programs.hosting.versions import Version, VersionHistory
from promptside.supervision import Backoff, ChildSpec, Restart

__all__ = ["Program", "list_programs", "start_program"]


class Program(Chainable):
    """A DSPy program that runs under supervision.

    Made by `start_program`; or made here, to stand in a supervision tree by its `child_spec`.

    Args:
        source: A module's class or another factory, which gives a part that is restarted new state; or a module, whose
            parameters a restart sets back, and whose other attributes it keeps.
        name: Of the program in the tree and the registry; by default the module's class or the factory's name, or
            ``"program"`` where it has none.
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
        check("Program", "lm", lm, isinstance(lm, dspy.BaseLM | None), "give a dspy.LM, such as pool.lm(), or None")
        check("Program", "content", content, isinstance(content, Content | None), "give a Content(...), or None")
        check_count("Program", "threads", threads)
        check_count("Program", "retries", retries, least=0)
        self.name = name or _name_of(source)
        self._source = source
        self._module = functools.partial(ModuleActor, lm=lm, content=content)
        self._threads = threads
        self._retries = retries
        self._versions = VersionHistory()
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

    @property
    def module(self) -> dspy.Module:
        """The outermost module in the current version: to look at, and not to be changed; see `copy` and `swap`.

        Raises:
            ActorStopped: The program was never started.
        """
        return self._part(SELF).module

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
            MailboxFull: 1,024 calls are under way and 1,000 wait.
            NoLMLoaded: No LM is set at any level.
            Exception: Whatever the module raised.
        """
        return await ask(lambda: self.ref, self._retries, ModuleActor.call, inputs, lm)

    def __call__(self, *, lm: dspy.LM | None = None, **inputs: Any) -> dspy.Prediction:
        """As `acall`, from a thread that runs no event loop, which waits.

        When not to use it: by `asyncio.to_thread` on the program's own event loop. There await `acall`; DSPy's cache
        takes threads of the same executor, and would wait for them for ever.

        Raises:
            RuntimeError: The thread runs an event loop: await `acall` instead.
            Exception: As for `acall`.
        """
        loop = self.ref.node.loop
        return wait_for(self.acall(lm=lm, **inputs), loop)

    def stream(
        self,
        inputs: Mapping[str, Any],
        *,
        lm: dspy.LM | None = None,
        fields: Collection[str] | None = None,
        status: StatusMessageProvider | None = None,
    ) -> AsyncGenerator[Piece, None]:
        """Call the program, and read output fields while they are written.

        A slow reader holds the models back. Leaving the loop early cancels the call: at once with
        ``contextlib.aclosing``, otherwise when the iterator is collected.

        Args:
            inputs: By name.
            lm: As for `acall`.
            fields: Output fields of its predictors that are streamed; all by default.
            status: Writes status messages of the modules, LMs and tools at work; none by default.

        Yields:
            `dspy.streaming.StreamResponse`s, with the names of predictor and field; then the prediction. An answer from
            a cache has no pieces.

        Raises:
            Exception: As for `acall`, after the pieces that came before.
        """
        self._running()
        assert self._supervisor is not None
        return stream_call(self._supervisor, lambda: self.acall(lm=lm, **inputs), fields=fields, status=status)

    def __repr__(self) -> str:
        state = "not started" if self._supervisor is None else self._supervisor.info().state.value
        return f"<Program {self.name} {state}, version {self._versions.current.number}>"

    # -- versions ----------------------------------------------------------------------------------------------

    @property
    def versions(self) -> tuple[Version, ...]:
        """The versions that can be rolled back to, oldest first; the last one is what calls that come in now get."""
        return self._versions.kept

    async def swap_state(self, state: Mapping[str, Any]) -> Version:
        """Give the predictors other instructions and demos, as a new version.

        Calls under way go on with the version they came in with, to their end; no call is refused, waits or sees two.
        The LMs stay as they are, whatever the state says of them.

        Args:
            state: As from `state`, `dspy.Module.dump_state` or an optimized copy's: all predictors of the program.

        Raises:
            ProgramError: It is not of this program; nothing has changed.
            ActorStopped: The program does not run.
        """
        return await self._change(ProgramSupervisor.swap_state, state)

    async def swap(self, path: str, module: ModuleSource) -> Version:
        """Put another module in the place of one of the program's, as a new version; otherwise as `swap_state`.

        Args:
            path: As in `named_predictors()`, such as ``"generate"``, or ``"self"`` for the whole program.
            module: Takes the arguments and returns the predictions that the one before did. The program keeps it: give
                a module that nobody else uses, or a factory.

        Raises:
            KeyError: The program has no such part; the message lists those it has.
            ProgramError: The module, or one below it, is a part of the program already.
            TypeError: It is no module.
            ActorStartError: It did not start; nothing has changed.
            ActorStopped: The program does not run.
        """
        return await self._change(ProgramSupervisor.swap, path, module)

    async def rollback(self, number: int | None = None) -> Version:
        """Make what an earlier version was a new one.

        Args:
            number: Of that version; by default the one before the current one.

        Raises:
            ProgramError: It is not among `versions`.
            ActorStopped: The program does not run.
        """
        return await self._change(ProgramSupervisor.rollback, number)

    def copy(self) -> dspy.Module:
        """A plain copy of the program in its current version, which runs without actors: for optimizers.

        Raises:
            ActorStopped: The program was never started.
        """
        host = self._running()
        request = Request(host, self._versions.current)
        return copy_of(request.part_of(host.root).module, request)

    async def save(self, directory: str | os.PathLike[str]) -> Path:
        """Save the state of the current version, as ``NAME-TIME.json`` and as ``NAME-latest.json``.

        Args:
            directory: Made if it is not there. Each file is whole or not there, whatever happens meanwhile.

        Returns:
            The file with the time, in UTC.

        Raises:
            OSError: It could not be written.
            ActorStopped: The program was never started.
        """
        return await anyio.to_thread.run_sync(save_state, self.copy(), Path(directory), self.name)

    async def load(self, path: str | os.PathLike[str]) -> Version:
        """`swap_state` to what was saved. The program keeps its LMs, where DSPy's own `load` replaces them.

        Args:
            path: A file, also one of `dspy.Module.save`; or a directory, for the latest one of this program in it.

        Raises:
            FileNotFoundError: There is none.
            ProgramError: It is not of this program; nothing has changed.
            ActorStopped: The program does not run.
        """
        return await self.swap_state(await anyio.to_thread.run_sync(read_state, Path(path), self.name))

    # -- life --------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Stop the program; calls under way have 5 seconds to end. Under a supervisor, that decides what follows."""
        if self._supervisor is not None:
            await self._supervisor.stop("shutdown")

    async def _change(self, method: Any, *args: Any) -> Version:
        self._running()
        assert self._supervisor is not None
        version: Version = await self._supervisor.ask(method, *args)
        return version

    def _running(self) -> Host:
        if self._host is None:
            raise ActorStopped(self.name, "not started yet", started=False, incarnation=0)
        return self._host

    def _part(self, path: str) -> Part:
        host = self._running()
        parts = self._versions.current.parts(host.root)
        if path in parts:
            return parts[path]
        for name, module in parts[SELF].module.named_parameters():  # DSPy names a shared one by another of its paths
            if name == path and (part := host.parts.get(id(module))) is not None:
                return part
        raise KeyError(f"the program {self.name!r} has no part {path!r}, but {', '.join(map(repr, parts))}")


def _name_of(source: ModuleSource) -> str:
    if isinstance(source, dspy.Module):
        return type(source).__name__
    name = getattr(source, "__name__", "")
    return name if name.isidentifier() else "program"  # a lambda, or a `functools.partial`


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
        name: Of the program in the tree and the registry; by default the module's class or the factory's name, or
            ``"program"`` where it has none; with a number where that is taken.
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


def list_programs(system: ActorSystem) -> tuple[Program, ...]:
    """The programs of a system that run, or are being restarted, in the order of the tree. Cost: O(actors)."""
    found: list[Program] = []
    waiting = list(reversed(top_cells(system)))
    while waiting:
        cell = waiting.pop()
        start = cell.factory
        if isinstance(start, functools.partial) and start.func is ProgramSupervisor:
            found += start.args
        waiting += reversed((cell.children or {}).values())
    return tuple(program for program in found if program._host is not None)
