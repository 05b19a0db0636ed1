"""`Program`: the handle of a DSPy program under supervision.

Each module of the program runs in an actor, under supervisors shaped like the modules; the handle is called as the
module was.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
from collections.abc import AsyncGenerator, Collection, Mapping
from pathlib import Path
from typing import Any, Self, Unpack

import anyio
import dspy
from dspy.streaming import StatusMessageProvider

from promptside.actors import ActorRef, ActorSystem, Node
from promptside.actors.spi import ask_in_task
from promptside.checks import check, check_count, check_path, check_seconds
from promptside.errors import CallTimeout, NameTaken
from promptside.events import Content
from promptside.pools.clients.served_history import MAX_HISTORY_SIZE
from promptside.programs.chain import Chainable
from promptside.programs.hosting.actors import ModuleActor
from promptside.programs.hosting.host import Host
from promptside.programs.hosting.hosted_class import ask, copy_of
from promptside.programs.hosting.making import Maker, ModuleSource
from promptside.programs.hosting.parts import ROOT, ModuleTree, check_source, name_of_source
from promptside.programs.hosting.saving import read_state, save_state
from promptside.programs.hosting.streaming import Piece, check_streaming, stream_call
from promptside.programs.hosting.supervisor import ProgramSupervisor
from promptside.programs.hosting.threads import MAX_THREADS, wait_for
from promptside.programs.hosting.time_limit import TimeLimit
from promptside.programs.hosting.versions import Version, VersionHistory
from promptside.programs.lm_choice import check_lm
from promptside.supervision.handle import Again, Handle

__all__ = ["Program"]


class Program(Chainable, Handle[Host]):
    """A DSPy program under supervision: each of its modules as an actor, under supervisors shaped like the modules.

    ::

        rag = await Program(Rag, lm=pool.lm(), attempts=2, timeout=30).start(system)
        answer = await rag.acall(question="What is a perihelion?")

    `stop` gives calls under way 5 seconds to end.

    Args:
        source: A factory, such as a module's class, which gives a part that is restarted new state; or a module. A
            restart sets the parameters of a module back, and keeps its other attributes.
        name: In the tree and the registry. By default the name of the module's class or of the factory, or
            ``"program"`` where it has none; `start` adds a number where that is taken.
        lm: Default LM: used when neither the call nor its `dspy.context` sets one.
        timeout: Seconds that a call may take, > 0, all its attempts included. See `acall`.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.
        max_threads: Calls of synchronous modules that run at a time, each in a worker thread, >= 1. With 1, they all
            run in the thread that made the modules; so they do where a module holds what works in that thread alone.
        attempts: How often a call of the program or of one of its modules is made, at most, when the actor crashes
            under it, >= 1. More than 1 is for programs in which what was done may be done twice.
        max_history_size: Calls of LMs that DSPy's histories keep, of each LM, of each module and of all LMs, >= 0. With
            0, the events of an LM outside a pool have no usage.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        source: ModuleSource,
        *,
        name: str | None = None,
        lm: dspy.LM | None = None,
        timeout: float = math.inf,
        content: Content | None = None,
        max_threads: int = MAX_THREADS,
        attempts: int = 1,
        max_history_size: int = MAX_HISTORY_SIZE,
    ) -> None:
        check_source(source)
        check_lm("Program", lm)
        check("Program", "content", content, isinstance(content, Content | None), "give a Content(...), or None")
        check_seconds("Program", "timeout", timeout)
        check_count("Program", "max_threads", max_threads)
        check_count("Program", "attempts", attempts)
        check_count("Program", "max_history_size", max_history_size, least=0)
        super().__init__(name_of_source(source) if name is None else name)
        self._default_name = self.name if name is None else None
        self._source = source
        self._lm = lm
        self._timeout = timeout
        self._content = content
        self._max_threads = max_threads
        self._attempts = attempts
        self._max_history_size = max_history_size
        self._versions = VersionHistory()

    async def start(
        self, system: ActorSystem, *, name: str | None = None, node: Node | str | None = None, **again: Unpack[Again]
    ) -> Self:
        """Start it at the top of a system; it ends with the system, or with `stop`. It may be started again then.

        Args:
            system: The running system.
            name: Another name than that of the program.
            node: Where its modules run; see `Handle.start`.
            **again: `restart` and `backoff`, whether it comes back when it has given up; see `Handle.start`.

        Raises:
            ActorStartError: The factory raised; the cause is chained.
            AlreadyRunning: It runs already.
            NameTaken: Another live actor holds the name, which was given.
        """
        if name is not None or self._default_name is None:
            return await super().start(system, name=name, node=node, **again)
        free = self._default_name
        for number in itertools.count(2):
            try:
                return await super().start(system, name=free, node=node, **again)
            except NameTaken:
                free = f"{self._default_name}-{number}"
        raise AssertionError

    @property
    def ref(self) -> ActorRef[ModuleActor]:
        """The actor of the outermost module; the same across its restarts. Raises `NotStarted`."""
        return self._running().root.ref

    @property
    def module(self) -> dspy.Module:
        """The outermost module in the current version: to look at, and not to be changed; see `copy` and `swap`.

        Raises:
            NotStarted: The program was never started.
        """
        return self._running().find(ROOT).module

    def submodule(self, path: str) -> ActorRef[Any]:
        """The actor of a sub-module, in the current version; the same across its restarts.

        Args:
            path: As in `named_predictors()`, such as ``"generate.predict"``.

        Raises:
            KeyError: The program has no such sub-module; the message lists those it has.
            NotStarted: The program was never started.
        """
        return self._running().find(path).ref

    async def acall(
        self, *inputs: Any, lm: dspy.LM | None = None, timeout: float | None = None, **fields: Any
    ) -> dspy.Prediction:
        """Call the program, as `dspy.Module.acall`: ``await program.acall(question="...")``.

        At the end of its `timeout` the call is cancelled: its modules, its tools and its LM calls, down to the
        provider. A synchronous module is left to end in its thread, and its LM calls fail. An asynchronous one that
        catches the cancellation and goes on is waited for. In a batch, such as `evaluate`, the time that a call waits
        for the end of an outage does not count.

        Args:
            *inputs: One mapping with the inputs, or a `dspy.Example`, of which those of `with_inputs` are taken; or
                positional arguments, where the module takes these.
            lm: The LM for this call alone. It comes before one that a predictor has of its own.
            timeout: Seconds that this call may take, > 0; the program's by default.
            **fields: The inputs as keywords. An input named ``lm`` or ``timeout`` goes into the mapping.

        Raises:
            CallTimeout: It took longer than `timeout`.
            NotStarted: The program was never started.
            ActorStopped: An actor of the program crashed or was stopped during the call (`started` is True), or does
                not run. A call that finds one restarting waits for it, up to 5 seconds.
            MailboxFull: 1,024 calls are under way and 1,000 wait.
            NoLMLoaded: No LM is set at any level.
            ValueError: An argument is not valid.
            Exception: Whatever the module raised.
        """
        return await self.call_with(inputs, fields, lm, timeout)

    def __call__(
        self, *inputs: Any, lm: dspy.LM | None = None, timeout: float | None = None, **fields: Any
    ) -> dspy.Prediction:
        """As `acall`, from a thread that runs no event loop, which waits.

        A module that has both a `forward` and an `aforward` is called by its `forward`.

        When not to use it: by `asyncio.to_thread` on the program's own event loop. There await `acall`; DSPy's cache
        takes threads of the same executor, and would wait for them for ever.

        Raises:
            RuntimeError: The thread runs an event loop: await `acall` instead.
            ActorStopped: The program's event loop is closed or stopped, or this process is a fork of its own.
            Exception: As for `acall`.
        """
        ref = self.ref  # which raises where there is none, before there is a coroutine
        return wait_for(self.call_with(inputs, fields, lm, timeout, called=True), ref)

    def stream(
        self,
        *inputs: Any,
        lm: dspy.LM | None = None,
        timeout: float | None = None,
        streamed: Collection[str] | None = None,
        status: StatusMessageProvider | None = None,
        **fields: Any,
    ) -> AsyncGenerator[Piece, None]:
        """Call the program, and read output fields while they are written.

        ::

            async for piece in program.stream(question="...", streamed=["answer"]):
                print(piece.text, end="")
            print(piece.prediction)

        A slow reader holds the models back. Leaving the loop early cancels the call: at once with
        ``contextlib.aclosing``, otherwise when the iterator is collected.

        Args:
            *inputs: As for `acall`.
            lm: As for `acall`.
            timeout: As for `acall`. The time for which a slow reader holds the models back counts.
            streamed: Output fields of its predictors that are streamed; all by default.
            status: Writes status messages of the modules, LMs and tools at work; none by default.
            **fields: As for `acall`. Inputs of the names above go into the mapping.

        Yields:
            `Piece`s of the fields; at the end, one with the prediction. An answer from a cache has no others.

        Raises:
            ValueError: An argument is not valid; raised by the call of `stream`.
            Exception: As for `acall`, after the pieces that came before.
        """
        self._running()
        assert self._actor is not None
        check_streaming("Program.stream", streamed, status)
        self._check(lm, timeout)
        return stream_call(
            self._actor, lambda: self.acall(*inputs, lm=lm, timeout=timeout, **fields), fields=streamed, status=status
        )

    async def call_with(
        self,
        args: tuple[Any, ...],
        fields: dict[str, Any],
        lm: dspy.LM | None = None,
        timeout: float | None = None,
        *,
        called: bool = False,
    ) -> dspy.Prediction:
        """As `acall`, with the positional and the named arguments apart; `called` as for a synchronous caller."""
        seconds = self._check(lm, timeout)
        limit = TimeLimit(seconds, lambda: CallTimeout("Program", self.name, seconds))
        async with contextlib.nullcontext() if seconds == math.inf else limit:
            return await ask(
                ask_in_task, lambda: self.ref, self._attempts, ModuleActor.call, fields, lm, args, called=called
            )

    def _check(self, lm: dspy.LM | None, timeout: float | None) -> float:
        """The seconds that a call may take; raises `ValueError` for an argument that is not valid."""
        check_lm("Program", lm)
        if timeout is None:
            return self._timeout
        check_seconds("Program", "timeout", timeout)
        return timeout

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
            state: As from `dspy.Module.dump_state`, of an optimized `copy` for example: all predictors of the program.

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
            ValueError: It is no whole number.
            ActorStopped: The program does not run.
        """
        valid = isinstance(number, int | None) and not isinstance(number, bool)
        check("Program.rollback", "number", number, valid, "give the number of one of the program's versions, or None")
        return await self._change(ProgramSupervisor.rollback, number)

    def copy(self) -> dspy.Module:
        """A plain copy of the program in its current version, which runs without actors: for optimizers.

        Raises:
            NotStarted: The program was never started.
        """
        return copy_of(self._running().current())

    async def save(self, directory: str | os.PathLike[str]) -> Path:
        """Save the state of the current version, as ``NAME-TIME.json`` and as ``NAME-latest.json``.

        Args:
            directory: Made if it is not there. Each file is whole or not there, whatever happens meanwhile.

        Returns:
            The file with the time, in UTC.

        Raises:
            OSError: It could not be written.
            ValueError: `directory` is no path.
            NotStarted: The program was never started.
        """
        check_path("Program.save", "directory", directory)
        return await anyio.to_thread.run_sync(save_state, self.copy(), Path(directory), self.name)

    async def load(self, path: str | os.PathLike[str]) -> Version:
        """`swap_state` to what was saved. The program keeps its LMs, where DSPy's own `load` replaces them.

        Args:
            path: A file, also one of `dspy.Module.save`; or a directory, for the latest one of this program in it.

        Raises:
            FileNotFoundError: There is none.
            ProgramError: It is not of this program; nothing has changed.
            ValueError: `path` is no path.
            ActorStopped: The program does not run.
        """
        check_path("Program.load", "path", path)
        return await self.swap_state(await anyio.to_thread.run_sync(read_state, Path(path), self.name))

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, version {self._versions.current.number}>"

    def _make_actor(self) -> ProgramSupervisor:
        settings: dict[str, Any] = {
            "lm": self._lm,
            "content": self._content,
            "max_history_size": self._max_history_size,
        }
        entry = functools.partial(ModuleActor, program=self.name, **settings)
        return ProgramSupervisor(self, self._make_host, entry)

    async def _make_host(self) -> Host:
        return Host(
            await ModuleTree.make(Maker(self._source, self.name, one_thread=self._max_threads == 1)),
            whole=True,
            max_threads=self._max_threads,
            attempts=self._attempts,
            versions=self._versions,
        )

    async def _change(self, method: Any, *args: Any) -> Version:
        self._running()
        assert self._actor is not None
        version: Version = await self._actor.ask(method, *args)
        return version
