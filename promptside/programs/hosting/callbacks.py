"""`CallEvents`: publishes DSPy's callbacks on the event bus, as the tree of spans below one entry call.

Module actors make one for each call whose events have a listener, and merge it with the user's own callbacks by
`recording`. It copies its data and never waits. An LM call of a pool is recorded here, its look-up in DSPy's cache
included; the pool's dispatcher adds the attempts below it, and their totals to it.

Adapters are left out: they format and parse text, twice per LM call, in microseconds, and would double the tree. The
calls of an adapter (a two-step one calls an LM to parse) have the caller of the adapter as their parent. `compile`, and
the start and end of an interpreter, are left out likewise.
"""

from __future__ import annotations

import itertools
from typing import Any

import dspy
from dspy.utils import BaseCallback

from promptside.events import EventBus
from promptside.events.content import Content
from promptside.events.span import Span
from promptside.pools.context.call_tree import TREE, CallTree
from promptside.pools.lm.engine import pool_path
from promptside.programs.hosting.request import Request

__all__ = ["CallEvents", "has_listener", "recording"]

HISTORY = 100
"""Entries of an LM's history that are searched for a call's own, which other threads may have covered."""

KINDS = ("module", "lm.call", "lm.attempt", "tool", "sandbox.run", "evaluation", "pipeline")
TYPES = tuple(f"{kind}.{suffix}" for kind in KINDS for suffix in ("started", "stopped", "failed"))


def has_listener(events: EventBus) -> bool:
    """Whether any event of a call tree has a listener."""
    return events.wants_any(TYPES)


def recording(
    root: Span,
    *,
    module: dspy.Module | None = None,
    request: Request | None = None,
    content: Content | None = None,
    incarnation: int | None = None,
) -> dict[str, Any]:
    """The settings for `dspy.context` that record every DSPy call below `root`, beside the user's callbacks.

    Args:
        root: The entry call; started.
        module: The module whose own call `root` already stands for.
        request: The call of a program, which gives the names of its modules, and their actors if they have any.
        content: Which content events carry; the bus's by default.
        incarnation: Of the actor in which this happens.
    """
    tree = CallTree(root)
    mine = CallEvents(tree, module, request, content or root.events.content, incarnation)
    others = [callback for callback in dspy.settings.callbacks if not isinstance(callback, CallEvents)]
    return {"callbacks": [*others, mine], TREE: tree}


class CallEvents(BaseCallback):
    """The one callback; made by `recording`, with its arguments."""

    def __init__(
        self,
        tree: CallTree,
        module: dspy.Module | None,
        request: Request | None,
        content: Content,
        incarnation: int | None,
    ) -> None:
        self._tree = tree
        self._module = module  # until its own call has begun
        self._request = request
        self._content = content
        self._incarnation = incarnation
        self._lms: dict[str, dspy.BaseLM] = {}  # of the calls under way

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A module within the program; the program's own call is the root."""
        if instance is self._module:
            self._module = None  # it may call itself
            self._tree.put(call_id, self._tree.root)
            return
        attributes, actor = {"module": type(instance).__name__}, None
        if self._request is not None and (part := self._request.part(instance)) is not None:
            attributes["name"] = part.path
            actor = part.ref if self._request.whole else None
        place = (None, None) if actor is None else (actor.path, actor.incarnation)
        self._begin("module", call_id, attributes, _arguments(inputs), *place)

    def on_module_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """It has ended."""
        self._end(call_id, outputs, exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """An LM is called; a cache may answer before its pool gets the call."""
        self._lms[call_id] = instance
        attributes = {"model": str(getattr(instance, "model", type(instance).__name__))}
        self._begin("lm.call", call_id, attributes, _prompt(inputs), source=pool_path(instance))

    def on_lm_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """It has answered, from a cache or not."""
        lm, span = self._lms.pop(call_id), self._tree.take(call_id)
        if span is None:
            return
        if pool_path(lm) is not None:
            if exception is None:
                span.attributes = {**span.attributes, "cache_hit": not span.counted("attempts")}
            span.count(attempts=0)
        elif exception is None:
            span.attributes = {**span.attributes, **_totals(lm, outputs)}
        self._close(span, outputs, exception)

    def on_tool_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A tool is called."""
        self._begin("tool", call_id, {"tool": instance.name}, _arguments(inputs))

    def on_tool_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """It has returned."""
        self._end(call_id, outputs, exception)

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """DSPy's own evaluator begins; its programs run below it, in threads."""
        devset = inputs.get("devset") or instance.devset or ()
        self._begin("evaluation", call_id, {"examples": len(devset)}, {})

    def on_evaluate_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """It has a score."""
        score = getattr(outputs, "score", None)
        self._end(call_id, None, exception, **({} if score is None else {"score": float(score)}))

    def on_interpreter_execute_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A sandbox runs a piece of code."""
        self._begin("sandbox.run", call_id, {"sandbox": type(instance).__name__}, inputs)

    def on_interpreter_execute_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """It has ended."""
        self._end(call_id, outputs, exception)

    def on_interpreter_tool_call_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Code in a sandbox calls a tool; a `dspy.Tool` is recorded by its own call."""
        name = str(inputs.get("tool_name"))
        if isinstance(instance.tools.get(name), dspy.Tool):
            self._tree.put(call_id, self._tree.enclosing())
        else:
            self._begin("tool", call_id, {"tool": name}, inputs.get("kwargs"))

    def on_interpreter_tool_call_end(
        self, call_id: str, outputs: Any | None, exception: BaseException | None = None
    ) -> None:
        """It has returned."""
        self._end(call_id, outputs, exception)

    def on_adapter_format_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Not recorded; its own calls get its parent."""
        self._tree.put(call_id, self._tree.enclosing())

    def on_adapter_format_end(self, call_id: str, outputs: Any | None, exception: BaseException | None = None) -> None:
        """Not recorded."""
        self._tree.take(call_id)

    on_adapter_parse_start = on_interpreter_startup_start = on_interpreter_shutdown_start = on_adapter_format_start
    on_adapter_parse_end = on_interpreter_startup_end = on_interpreter_shutdown_end = on_adapter_format_end
    on_compile_start, on_compile_end = on_adapter_format_start, on_adapter_format_end

    def _begin(
        self,
        type: str,
        call_id: str,
        attributes: dict[str, Any],
        inputs: Any,
        source: str | None = None,
        incarnation: int | None = None,
    ) -> None:
        root = self._tree.root
        span = Span(
            root.events,
            type,
            source or root.source,
            attributes,
            call_id=call_id,
            parent=self._tree.enclosing(),
            incarnation=self._incarnation if source is None else incarnation,
        )
        self._tree.put(call_id, span)
        span.started(self._content.of_inputs(root.events.wants, f"{type}.started", inputs))

    def _end(self, call_id: str, outputs: Any, error: BaseException | None, **attributes: Any) -> None:
        span = self._tree.take(call_id)
        if span is not None and span.call_id == call_id:  # else it has passed for the span around it
            span.attributes = {**span.attributes, **attributes}
            self._close(span, outputs, error)

    def _close(self, span: Span, outputs: Any, error: BaseException | None) -> None:
        if error is not None:
            span.failed(error, self._content.of_error(span.events.wants, f"{span.type}.failed", error))
        else:
            span.stopped(self._content.of_outputs(span.events.wants, f"{span.type}.stopped", outputs))


def _arguments(inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, from how DSPy hands them to callbacks; positional ones as `args`."""
    args = inputs.get("args")
    return {**({"args": args} if args else {}), **inputs.get("kwargs", {})}


def _prompt(inputs: dict[str, Any]) -> dict[str, Any]:
    """The content of a request: the prompt or messages and the settings, without those of the connection."""
    settings = {name: value for name, value in inputs.get("kwargs", {}).items() if not name.startswith("api_")}
    return {name: value for name, value in {**inputs, "kwargs": settings}.items() if value}


def _totals(lm: dspy.BaseLM, outputs: Any) -> dict[str, Any]:
    """Usage, cost and cache hit of an answer, from the entry of DSPy's history that holds these very outputs."""
    recent = itertools.islice(reversed(getattr(lm, "history", ())), HISTORY)
    entry = next((entry for entry in recent if entry.get("outputs") is outputs), None)
    if entry is None:
        return {}
    usage, cost = entry.get("usage") or {}, entry.get("cost")
    counted = getattr(getattr(entry.get("response"), "usage", None), "input_tokens", None) is not None
    if not usage and counted:  # DSPy records a cached answer as using nothing, beside the provider's count of old
        return {"cache_hit": True}
    totals = {
        "input_tokens": usage.get("prompt_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "cost": cost,
    }
    return {"cache_hit": False, **{name: value for name, value in totals.items() if isinstance(value, (int, float))}}
