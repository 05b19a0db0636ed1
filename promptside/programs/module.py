"""`ModuleActor`: a DSPy module as an actor.

Started under a supervisor, by `start_program` or by a user's own `ChildSpec`. It calls the module as before, in the
message's own context: `dspy.context` overrides, the active call id and every other contextvar of the caller are what
the module sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import anyio
import dspy
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback_context import ACTIVE_CALL_ID

from promptside.actors import Actor
from promptside.pools import NoLMLoaded

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
    """

    def __init__(self, source: ModuleSource, *, lm: dspy.LM | None = None) -> None:
        module = source() if callable(source) and not isinstance(source, dspy.Module) else source
        if not isinstance(module, dspy.Module):
            raise TypeError(f"source={source!r}: give a dspy.Module, or a callable that returns one")
        self._module = module
        self._lm = lm
        self._threads = anyio.CapacityLimiter(THREADS)
        self._calls = 0

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
        self._calls += 1
        path, publish, now = self.ref.path, self.system.events.publish, asyncio.get_running_loop().time
        keys: dict[str, Any] = {
            "call_id": f"{path}#{self.ref.incarnation}-{self._calls}",
            "parent_id": ACTIVE_CALL_ID.get(),
            "incarnation": self.ref.incarnation,
        }
        facts, began = {"module": type(self._module).__name__}, now()
        publish("module.started", path, facts, **keys)
        ACTIVE_CALL_ID.set(keys["call_id"])  # in this message's context: what the module calls has this as its parent
        try:
            with self._settings(lm):
                result = await self._run(inputs)
        except BaseException as error:
            # Without its message, which may hold prompts and answers.
            publish("module.failed", path, {**facts, "error": type(error).__name__, "seconds": now() - began}, **keys)
            raise
        publish("module.stopped", path, {**facts, "seconds": now() - began}, **keys)
        return result

    async def _run(self, inputs: dict[str, Any]) -> dspy.Prediction:
        if hasattr(self._module, "aforward"):
            return await self._module.acall(**inputs)
        return await anyio.to_thread.run_sync(
            lambda: self._module(**inputs), abandon_on_cancel=True, limiter=self._threads
        )

    @contextlib.contextmanager
    def _settings(self, lm: dspy.LM | None) -> Iterator[None]:
        """The LM by its levels, and a trace of the call's own: the default one is a global list that only grows."""
        overrides = thread_local_overrides.get()
        chosen = lm or overrides.get("lm") or self._lm or dspy.settings.lm
        if chosen is None and any(predictor.lm is None for predictor in self._module.predictors()):
            raise NoLMLoaded(self.ref.path)
        with dspy.context(lm=chosen, trace=overrides.get("trace", [])):
            yield
