"""`RoutedLM`: a pool's `dspy.LM`, whose calls may be answered by another model than its own.

Made by `LMPool`. DSPy makes each call as for any LM, and the engine pair says with `answered_by` which model answered.
The call is made by a copy of the LM, which takes that model's name: usage, history and price are then that model's. An
answer of another model than the LM's own is not kept in DSPy's cache, which would give it as the LM's own later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeAlias

import dspy
from dspy.clients._deprecation import warn_legacy_lm, warn_openai_messages
from dspy.clients.call_result import CallResult, usage_dict
from dspy.clients.execution import PreparedCall, finalize
from dspy.utils.callback import with_callbacks

from promptside.pools.clients.lm_call import aexecute, execute, prepare
from promptside.pools.clients.unicode import repaired
from promptside.pools.context.settings import setting

__all__ = ["RoutedLM", "answered_by"]

Messages: TypeAlias = list[dict[str, Any]] | None


@dataclass(slots=True)
class _Call:
    """A call that is being made.

    Attributes:
        lm: The copy of the LM that makes it.
        prepared: DSPy's record of it.
        models: Those that have answered so far; several for several completions.
    """

    lm: RoutedLM
    prepared: PreparedCall
    models: list[str] = field(default_factory=list)


_CALL: Final[ContextVar[_Call | None]] = ContextVar("_CALL", default=None)


def answered_by(model: str) -> None:
    """Say which model has answered the call that is being made; called by engines, in their caller's context."""
    call = _CALL.get()
    if call is not None:
        call.models.append(model)
        call.prepared.cache = call.prepared.cache and model == call.prepared.legacy["model"]
        call.lm.model = ", ".join(dict.fromkeys(call.models))


class RoutedLM(dspy.LM):
    """A `dspy.LM` whose engine may have another model answer."""

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, prompt: Any = None, *, messages: Messages = None, **kwargs: Any) -> Any:
        """As `dspy.LM` is called."""
        call = self._prepare(prompt, messages, kwargs, asynchronous=False)
        self._warn(call, messages)
        with self._making(call) as made:
            return _finish(made, execute(made.lm, call))

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, prompt: Any = None, *, messages: Messages = None, **kwargs: Any) -> Any:
        """As `dspy.LM.acall`."""
        call = await asyncio.to_thread(self._prepare, prompt, messages, kwargs, asynchronous=True)
        self._warn(call, messages)
        with self._making(call) as made:
            return _finish(made, await aexecute(made.lm, call))

    def forward(self, prompt: Any = None, messages: Messages = None, **kwargs: Any) -> Any:
        """As `dspy.LM.forward`."""
        call = _prepare(self, prompt, messages, kwargs, direct=True)
        with self._making(call) as made:
            return execute(made.lm, call).provider_response()

    async def aforward(self, prompt: Any = None, messages: Messages = None, **kwargs: Any) -> Any:
        """As `dspy.LM.aforward`."""
        call = await asyncio.to_thread(_prepare, self, prompt, messages, kwargs, asynchronous=True, direct=True)
        with self._making(call) as made:
            return (await aexecute(made.lm, call)).provider_response()

    def update_history(self, entry: dict[str, Any]) -> None:
        """Add a call to DSPy's histories; as its pool bounds them."""
        served = getattr(self.engine, "served", None)
        if served is None:  # loaded where its pool is not
            super().update_history(entry)
        else:
            served.record(self, entry)

    def _prepare(self, prompt: Any, messages: Messages, kwargs: dict[str, Any], *, asynchronous: bool) -> PreparedCall:
        method = "aforward" if asynchronous else "forward"
        overridden = method in vars(self) or getattr(type(self), method) is not getattr(RoutedLM, method)
        return _prepare(self, prompt, messages, kwargs, asynchronous=asynchronous, direct=not overridden)

    def _warn(self, call: PreparedCall, messages: Messages) -> None:
        if not call.managed:
            warn_legacy_lm()
        warn_openai_messages(self, messages)

    def _twin(self) -> Self:
        """A copy that shares everything, made in 1 us: `copy.copy` takes 30 us of each call."""
        copied = object.__new__(type(self))
        copied.__dict__.update(vars(self))
        return copied

    @contextmanager
    def _making(self, call: PreparedCall) -> Iterator[_Call]:
        made, around = _Call(self._twin(), call), _CALL.get()
        _CALL.set(made)
        try:
            yield made
        finally:
            _CALL.set(around)  # a reset would fail where a coroutine is closed by a garbage collection
            if around is not None and any(model != self.model for model in made.models):
                around.prepared.cache = False  # a vote, whose answer is made of this one


def _prepare(lm: RoutedLM, prompt: Any, messages: Messages, kwargs: dict[str, Any], **how: bool) -> PreparedCall:
    """As DSPy's `prepare`, which refuses texts that are repaired here."""
    call = prepare(lm, repaired(prompt), repaired(messages), repaired(kwargs), **how)
    call.legacy = repaired(call.legacy)  # with the LM's own settings
    return call


def _finish(call: _Call, result: CallResult) -> Any:
    """The outputs for the caller; usage and history are recorded."""
    models, tracker = call.models, dspy.settings.usage_tracker
    if tracker is None or len(set(models)) < 2 or len(models) != len(result.responses):
        return finalize(call.lm, call.prepared, result)
    for model, response in zip(models, result.responses, strict=True):
        tracker.add_usage(model, usage_dict(response))
    with setting("usage_tracker", None):
        return finalize(call.lm, call.prepared, result)
