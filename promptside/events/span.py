"""`Span`: an operation that publishes `X.started` and then `X.stopped` (it ended well) or `X.failed`.

Made by module actors, DSPy's callbacks, LM pools, evaluations and sandboxes. Spans form a tree by `call_id` and
`parent_id`, within one `trace_id`; a listener can rebuild it from the events alone.
"""

from __future__ import annotations

import contextvars
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from promptside.clock import monotonic
from promptside.events.bus import EventBus

__all__ = ["TRACE_PARENT", "Span", "TraceParent"]


@dataclass(frozen=True, slots=True)
class TraceParent:
    """An operation in another service or another tracer, within which calls are made (W3C Trace Context).

    Args:
        trace_id: 32 lowercase hexadecimal digits, not all zero.
        span_id: 16 lowercase hexadecimal digits, not all zero.

    Raises:
        ValueError: A field has another form.
    """

    trace_id: str
    span_id: str

    def __post_init__(self) -> None:
        for field, value, digits in (("trace_id", self.trace_id, 32), ("span_id", self.span_id, 16)):
            valid = isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{digits}}}", value) and set(value) != {"0"}
            if not valid:
                raise ValueError(f"TraceParent: {field}={value!r}: give {digits} lowercase hex digits, not all zero")


TRACE_PARENT: Final[contextvars.ContextVar[TraceParent | None]] = contextvars.ContextVar(
    "promptside_trace_parent", default=None
)
"""Set it around an entry call to join its tree to that trace: the tree takes over `trace_id`, and the data of its first
event has the `span_id` as `remote_parent`. Contextvars travel with messages, so any caller may set it."""


class Span:
    """One operation, which publishes an event when it begins and one when it ends, if they have a listener.

    Any thread; `started` once, then `stopped` or `failed` once.

    Args:
        events: The bus.
        type: The prefix of its event types, such as ``"lm.call"``.
        source: Path of the actor, or another name of the place.
        attributes: Data of both events; JSON-safe, replaced and never changed.
        call_id: Its id, unique over processes; made when it is first read, unless given.
        parent: The span around it, whose trace it belongs to.
        parent_id: Id of the call around it, where that has no span.
        incarnation: Incarnation of the actor at `source`.
    """

    __slots__ = (
        "_began",
        "_call_id",
        "_counts",
        "_incarnation",
        "_parent",
        "_parent_id",
        "_remote",
        "_span_id",
        "_trace",
        "attributes",
        "events",
        "source",
        "type",
    )

    def __init__(
        self,
        events: EventBus,
        type: str,
        source: str,
        attributes: Mapping[str, Any],
        *,
        call_id: str | None = None,
        parent: Span | None = None,
        parent_id: str | None = None,
        incarnation: int | None = None,
    ) -> None:
        self.events = events
        self.type = type
        self.source = source
        self._call_id = call_id
        self.attributes = attributes
        self._trace: list[str]  # one list for the whole tree; empty until the id is read
        self._remote: str | None = None
        if parent is not None:
            self._trace = parent._trace
        elif (remote := TRACE_PARENT.get()) is not None:
            self._trace = [remote.trace_id]
            self._remote = remote.span_id
        else:
            self._trace = []
        self._parent = parent
        self._parent_id = parent_id
        self._incarnation = incarnation
        self._span_id: str | None = None
        self._counts: dict[str, float | None] = {}
        self._began = monotonic()

    @property
    def call_id(self) -> str:
        """Its id: 32 hexadecimal digits, as DSPy's own are. First read in the thread that made it."""
        if self._call_id is None:
            self._call_id = secrets.token_hex(16)
        return self._call_id

    @property
    def trace_id(self) -> str:
        """Id of its tree: of the `TraceParent` around its root, or made when it is first read."""
        if not self._trace:
            self._trace.append(secrets.token_hex(16))  # of two threads that do so at once, the first one's counts
        return self._trace[0]

    def started(self, content: Mapping[str, Any] | None = None) -> None:
        """Publish its beginning; `content` is data of this event alone."""
        if self.events.wants(f"{self.type}.started"):
            remote = {} if self._remote is None else {"remote_parent": self._remote}
            self._publish("started", {**self.attributes, **remote, **(content or {})})

    def count(self, **amounts: float | None) -> None:
        """Add to its totals, which its last event has. A total with an addend of None (unknown) is left out."""
        for name, amount in amounts.items():
            before = self._counts.get(name, 0)
            self._counts[name] = None if before is None or amount is None else before + amount

    def counted(self, name: str) -> float | None:
        """The total of this name so far; None if there is none, or if it is unknown."""
        return self._counts.get(name)

    def stopped(self, content: Mapping[str, Any] | None = None) -> None:
        """Publish that it has ended well."""
        if self.events.wants(f"{self.type}.stopped"):
            self._publish("stopped", {**self._ended(), **(content or {})})

    def failed(self, error: BaseException, content: Mapping[str, Any] | None = None) -> None:
        """Publish that it has ended by `error`, a cancellation included.

        The event has the error's type, and its `retry_after` if it has one; not its text, which may hold prompts.
        """
        if self.events.wants(f"{self.type}.failed"):
            retry_after = getattr(error, "retry_after", None)
            known = isinstance(retry_after, (int, float)) and math.isfinite(retry_after)
            later = {"retry_after": retry_after} if known else {}
            self._publish("failed", {**self._ended(), "error": type(error).__name__, **later, **(content or {})})

    def _ended(self) -> dict[str, Any]:
        known = {name: amount for name, amount in tuple(self._counts.items()) if amount is not None}
        return {**self.attributes, "seconds": monotonic() - self._began, **known}

    def _publish(self, suffix: str, data: dict[str, Any]) -> None:
        if self._span_id is None:
            self._span_id = secrets.token_hex(8)
        self.events.publish(
            f"{self.type}.{suffix}",
            self.source,
            data,
            incarnation=self._incarnation,
            trace_id=self.trace_id,
            span_id=self._span_id,
            parent_id=self._parent_id if self._parent is None else self._parent.call_id,
            call_id=self.call_id,
        )
