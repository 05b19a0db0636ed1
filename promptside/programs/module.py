"""`ModuleActor`: a DSPy module as an actor.

Started under a supervisor, by `start_program` or by a user's own `ChildSpec`. It calls the module as before, in the
message's own context: `dspy.context` overrides, the active call id and every other contextvar of the caller are what
the module sees.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias, cast

import anyio
import dspy
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside.actors import Actor
from promptside.events import Content
from promptside.events.span import Span
from promptside.pools import NoLMLoaded
from promptside.pools.call_tree import enclosing
from promptside.pools.labels import with_program
from promptside.programs.callbacks import is_heard, recording
from promptside.programs.choice import choose_lm

__all__ = ["ModuleActor", "ModuleSource"]

ModuleSource: TypeAlias = dspy.Module | Callable[[], dspy.Module]

THREADS = 40
"""Calls of synchronous modules that one actor runs at a time, each in a worker thread."""


class ModuleActor(Actor, concurrency=64, expected=(Exception,), timeout=math.inf):
    """Hosts one module. Its exceptions are answers; the actor goes on.

    A module with an `aforward` is awaited, and cancelling its caller cancels its LM calls. Any other runs in a worker
    thread, with the caller's context; cancelled, it is left to end by itself.

    Args:
        source: A factory, which gives truly new state at each restart; or a module, which is shared by all
            incarnations. A module's class is a factory.
        lm: The LM for calls that bring none: neither `lm=` of the call nor a `dspy.context` around it.
        content: Which of its inputs and outputs, prompts and answers its events carry; the system's by default.
        program: Name under which its LM calls are counted; its path by default. See `promptside.pools.labels`.
    """

    def __init__(
        self,
        source: ModuleSource,
        *,
        lm: dspy.LM | None = None,
        content: Content | None = None,
        program: str | None = None,
    ) -> None:
        module = source() if callable(source) and not isinstance(source, dspy.Module) else source
        if not isinstance(module, dspy.Module):
            raise TypeError(f"source={source!r}: give a dspy.Module, or a callable that returns one")
        self._module = module
        # Kept by identity, with the modules: one may not be hashable, and the id of one that is gone may be another's.
        self._parts = [(part, name.removeprefix("self.")) for name, part in module.named_sub_modules()]
        self._names = {id(part): name for part, name in self._parts}
        self._lm = lm
        self._program = program
        self._threads = anyio.CapacityLimiter(THREADS)
        self._content = content or self.system.events.content

    async def call(self, inputs: dict[str, Any], lm: dspy.LM | None = None) -> dspy.Prediction:
        """Call the module.

        Args:
            inputs: Its keyword arguments.
            lm: The LM for this call, before every other.

        Returns:
            What the module returned.

        Raises:
            NoLMLoaded: No LM is set at any level.
            Exception: Whatever the module raised.
        """
        events, content = self.system.events, self._content
        span = Span(
            events,
            "module",
            self.ref.path,
            {"module": type(self._module).__name__},
            parent=enclosing(),
            parent_id=ACTIVE_CALL_ID.get(),
            incarnation=self.ref.incarnation,
        )
        span.started(content.of_inputs(events, "module.started", inputs))
        # In this message's context: what the module calls has this as its parent. (DSPy types it as None alone.)
        ACTIVE_CALL_ID.set(cast("Any", span.call_id))
        try:
            with self._settings(lm, span):
                result = await self._run(inputs)
        except BaseException as error:
            span.failed(error, content.of_error(events, "module.failed", error))
            raise
        span.stopped(content.of_outputs(events, "module.stopped", result))
        return result

    async def _run(self, inputs: dict[str, Any]) -> dspy.Prediction:
        if hasattr(self._module, "aforward"):
            return await self._module.acall(**inputs)
        return await anyio.to_thread.run_sync(
            lambda: self._module(**inputs), abandon_on_cancel=True, limiter=self._threads
        )

    @contextlib.contextmanager
    def _settings(self, lm: dspy.LM | None, span: Span) -> Iterator[None]:
        """The LM by its levels, and a trace of the call's own: the default one is a global list that only grows.

        If anybody listens, the module's own calls are told below `span`.
        """
        overrides = thread_local_overrides.get()
        settings = choose_lm(self.system, lm, self._lm)
        if settings["lm"] is None and any(predictor.lm is None for predictor in self._module.predictors()):
            raise NoLMLoaded(self._program or self.ref.path)
        settings |= {"trace": overrides.get("trace", []), **with_program(self._program or self.ref.path)}
        if is_heard(self.system.events):
            settings |= recording(
                span,
                module=self._module,
                names=self._names,
                content=self._content,
                incarnation=self.ref.incarnation,
            )
        with dspy.context(**settings):
            yield
