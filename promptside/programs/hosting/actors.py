"""`ModuleActor`: a DSPy module as an actor; `SubmoduleActor`: a sub-module of one.

A `ModuleActor` is started under a supervisor, by `Program` or by a user's own `ChildSpec`. It calls the module as
before, in the message's own context: the module sees the caller's `dspy.context` overrides, active call id and every
other contextvar. The sub-modules of a program have a `SubmoduleActor` each, to which their hosted classes lead.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, cast

import dspy

from promptside.actors import Actor
from promptside.actors.spi import cell_of, request_stop
from promptside.errors import ProgramError
from promptside.events import Content
from promptside.events.span import Span
from promptside.pools import NoLMLoaded
from promptside.pools.clients.served_history import MAX_HISTORY_SIZE, bounded_history
from promptside.pools.context.batch import find_abort
from promptside.pools.context.call_tree import enclosing
from promptside.pools.context.cancel import CallCancelled
from promptside.pools.context.labels import with_program
from promptside.pools.context.priority import BatchAborted
from promptside.pools.context.settings import current_call_id, read_setting
from promptside.programs.hosting.callbacks import has_listener, recording
from promptside.programs.hosting.entry import FORWARD, REACTS, Entry, entry_of, make_call, original_class, own_method
from promptside.programs.hosting.host import Host
from promptside.programs.hosting.making import Maker, ModuleSource, explain_thread
from promptside.programs.hosting.parts import ModuleTree, Part
from promptside.programs.hosting.request import REQUEST, Request, arguments_of
from promptside.programs.hosting.threads import MAX_THREADS
from promptside.programs.lm_choice import choose_lm
from promptside.texts import text_of
from promptside.waiting import cancellations

__all__ = ["ModuleActor", "SubmoduleActor"]

AGENTS: Final[Any] = (*REACTS, dspy.CodeAct, dspy.ProgramOfThought, dspy.RLM)
"""Modules of which each run is an actor of its own, so that one run can be killed and watched alone."""

ANSWERS: Final = (Exception, BatchAborted, CallCancelled)


def _misses_lm(error: BaseException) -> bool:
    """Whether it is DSPy's error of a predictor without an LM."""
    return issubclass(type(error), ValueError) and text_of(error).startswith("No LM is loaded")


class AgentRun(Actor, expected=ANSWERS, timeout=math.inf):
    """One run of an agent."""

    async def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Await it, and end with it."""
        try:
            return await work()
        finally:
            self.stop()


class SubmoduleActor(Actor, max_concurrency=100_000, mailbox=math.inf, expected=ANSWERS, timeout=math.inf):
    """Hosts a sub-module of a program. The program's entry actor bounds how many calls run at a time.

    Args:
        host: The program.
        part: The sub-module.
    """

    def __init__(self, host: Host, part: Part) -> None:
        self._host = host
        self._part = part
        part.begin(self.ref)

    async def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module, for an asynchronous caller.

        Args:
            args: Of its `aforward`.
            kwargs: Of its `aforward`.

        Raises:
            Exception: Whatever the module raised.
        """
        part = self._part
        entry = entry_of(part.module, kwargs, methods=FORWARD)
        method = own_method(part.module, "aforward" if entry.awaited else "forward")
        return await self._serve(part, entry, lambda: method(*args, **kwargs))

    async def run_in_callers_thread(self) -> None:
        """Returns once the actor takes messages. A `ThreadRun` in the caller's thread stands for the rest."""

    async def _serve(self, part: Part, entry: Entry, call: Callable[[], Any]) -> Any:
        """Make the call that `entry` says, where it says."""
        module, home = part.module, part.home

        def renewed() -> Any:
            part.refresh()
            return call()

        async def work() -> Any:
            try:
                return await make_call(entry, renewed, self._host.threads, None if home is None else home.run)
            except asyncio.CancelledError:
                if cancellations():
                    raise
                raise ProgramError(f"the module {self._part.path!r} has cancelled itself") from None
            except Exception as error:
                explained = explain_thread(error, self.ref.path) if entry.threaded and home is None else None
                if explained is None:
                    raise
                raise explained from error

        try:
            if not isinstance(module, AGENTS):
                return await work()
            run = await self.spawn(AgentRun)
            try:
                return await run.ask(AgentRun.run, work)
            finally:
                request_stop(cell_of(run), "normal")  # if it was never asked
        except BaseExceptionGroup as group:  # of a TaskGroup in the module
            if (ending := find_abort(group)) is None:
                raise
            raise ending from group


class ModuleActor(SubmoduleActor, max_concurrency=1024, mailbox=1000):
    """Hosts one module. Its exceptions are answers; the actor goes on.

    A module is entered by the method that stands nearest to its class. An asynchronous one is awaited, and cancelling
    its caller cancels its LM calls. A synchronous one runs in a worker thread, with the caller's context; cancelled, it
    is left to end by itself, and its LM calls through a pool fail.

    Args:
        source: A factory, such as a module's class, which gives new state at each restart; or a module, which all
            incarnations share. Its sub-modules run in this actor; in a `Program`, each runs in its own.
        lm: Default LM: used when neither the call nor its `dspy.context` sets one.
        content: See `Program`.
        program: Name under which its LM calls are counted; its path by default. See `promptside.pools.context.labels`.
        max_history_size: See `Program`.
    """

    def __init__(
        self,
        source: ModuleSource | Host,
        *,
        lm: dspy.LM | None = None,
        content: Content | None = None,
        program: str | None = None,
        max_history_size: int = MAX_HISTORY_SIZE,
    ) -> None:
        if isinstance(source, Host):
            host = source
        else:
            maker = Maker(source, self.ref.path)
            host = Host(ModuleTree(maker.make_here(), maker), whole=False, max_threads=MAX_THREADS)
        super().__init__(host, host.root)
        self._lm = lm
        self._program = program
        self._max_history_size = max_history_size
        self._content = content or self.system.events.content

    async def call(
        self, inputs: dict[str, Any], lm: dspy.LM | None = None, args: tuple[Any, ...] = (), *, called: bool = False
    ) -> dspy.Prediction:
        """Call the module.

        Args:
            inputs: Its keyword arguments.
            lm: The LM for this call, before every other.
            args: Its positional arguments.
            called: Whether the caller is synchronous. A module that can be called and awaited, and neither way is
                nearer to its class, is then called.

        Returns:
            The prediction of the module.

        Raises:
            NoLMLoaded: A predictor was called, and no LM is set at any level.
            Exception: Whatever the module raised.
        """
        events, content = self.system.events, self._content
        with self._host.request(lm) as request:
            part = request.part_of(self._part)
            module = part.module
            args, inputs = arguments_of(module, args, inputs)
            span = Span(
                events,
                "module",
                self.ref.path,
                {"module": type(module).__name__},
                parent=enclosing(),
                parent_id=current_call_id(),
                incarnation=self.ref.incarnation,
            )
            span.started(content.of_inputs(events.wants, "module.started", inputs))
            if lm is not None and original_class(module) in (dspy.Predict, dspy.ChainOfThought):
                inputs = {"lm": lm, **inputs}  # as its callbacks see it plainly
            try:
                with self._settings(lm, span, request):
                    entry = entry_of(module, inputs, called=called and not part.bound)
                    method = module.acall if entry.awaited else module
                    result = await self._serve(part, entry, lambda: method(*args, **inputs))
            except BaseException as error:
                missing = NoLMLoaded(self._program or self.ref.path) if _misses_lm(error) else None
                span.failed(missing or error, content.of_error(events.wants, "module.failed", missing or error))
                if missing is None:
                    raise
                raise missing from error
            span.stopped(content.of_outputs(events.wants, "module.stopped", result))
            return cast("dspy.Prediction", result)

    @contextlib.contextmanager
    def _settings(self, lm: dspy.LM | None, span: Span, request: Request) -> Iterator[None]:
        """The LM by its levels, and a trace for this call: the default one is a global list that only grows.

        The module's own calls are recorded below `span`, if an event of a call tree has a subscriber.
        """
        settings = choose_lm(self.system, lm, self._lm)
        settings |= {"trace": read_setting("trace", []), **with_program(self._program or self.ref.path)}
        settings[REQUEST] = request
        if has_listener(self.system.events):
            settings |= recording(
                span,
                module=request.part_of(self._part).module,
                request=request,
                content=self._content,
                incarnation=self.ref.incarnation,
            )
        with bounded_history(self._max_history_size) as bound, dspy.context(**settings, **bound):
            yield
