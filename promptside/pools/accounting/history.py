"""`History`: the last calls of a pool, as plain records.

An `LMPool` owns one; the engine pair adds each call. Prompts and answers stay in this process: none is published on the
event bus, which has its own `Content`. Records are made when they are read, not when calls are made.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from dspy.lm15 import Request, Response, materialize_response

from promptside.clock import monotonic, wall
from promptside.events.content import project
from promptside.pools.accounting.ledger import CallUsage
from promptside.pools.clients.embeddings import ModelRequest, Outline
from promptside.pools.context.labels import KINDS
from promptside.texts import kind_of, text_of

__all__ = ["History", "Interaction"]

LIMIT: Final = 200_000
"""Longest field of a record in characters, such as all messages together; the rest is cut."""


class Interaction:
    """One call; made by `History.begin`.

    Attributes:
        source: Sync half of the engine pair that made it.
        labels: Labels around it, by kind.
    """

    def __init__(self, source: object, request: ModelRequest, labels: Mapping[str, str], usage: CallUsage) -> None:
        self.source = source
        self.labels = labels
        self._model = request.model
        self._endpoint = ""
        self._request = request
        self._usage = usage
        self._time = wall()
        self._began = monotonic()
        self._seconds: float | None = None
        self._answer: Response | Outline | None = None
        self._pieces: list[Any] = []
        self._error: BaseException | None = None

    def on_chunks(self, pieces: list[Any]) -> None:
        """Add pieces of a streamed answer."""
        self._pieces += pieces

    def answered_by(self, endpoint: str, model: str) -> None:
        """The endpoint, and its model, that answers."""
        self._endpoint, self._model = endpoint, model

    def end(self, error: BaseException | None = None, *, answer: Response | Outline | None = None) -> None:
        """It has ended, well or not."""
        self._seconds = monotonic() - self._began
        self._answer = answer
        self._error = error
        self._usage.close()

    def record(self) -> dict[str, Any]:
        """As JSON-safe data."""
        request, error = self._request, self._error
        answer = self._answer or self._streamed()
        fields: dict[str, Callable[[], Any]] = {
            "system": lambda: request.system,
            "messages": lambda: request.messages,
            "tools": lambda: request.tools,
            "settings": lambda: {name: value for name, value in _settings(request.config).items() if value},
            "answer": lambda: None if answer is None else answer.message,
            "finish_reason": lambda: None if answer is None else answer.finish_reason,
            "usage": lambda: (
                {} if answer is None else {k: v for k, v in _fields(answer.usage).items() if v is not None}
            ),
            "cost": lambda: self._usage.cost,
            "error": lambda: None if error is None else {"type": kind_of(error), "message": text_of(error)},
        }
        return {
            "time": self._time,
            "seconds": self._seconds,
            **{kind: project(self.labels.get(kind)) for kind in KINDS},
            "model": self._model,
            "requested_model": request.model,
            "endpoint": self._endpoint or self._usage.endpoint,
            **{name: _json_safe(value) for name, value in fields.items()},
        }

    def _streamed(self) -> Response | None:
        """The streamed answer as far as it was read; None if that is no answer."""
        try:
            if self._pieces and isinstance(self._request, Request):
                return materialize_response(iter(self._pieces), self._request)
        except Exception:  # noqa: BLE001, S110 - an answer that was cut off; the other fields survive
            pass
        return None


class History:
    """The last interactions of one pool. Any thread.

    Args:
        kept: Number of interactions kept, >= 0.
    """

    def __init__(self, kept: int) -> None:
        self._last: deque[Interaction] = deque(maxlen=kept)
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here

    def begin(self, source: object, request: ModelRequest, labels: Mapping[str, str], usage: CallUsage) -> Interaction:
        """Add a call that begins now; its `end` must follow."""
        interaction = Interaction(source, request, labels, usage)
        with self._lock:
            self._last.append(interaction)
        return interaction

    def last(self, n: int, wanted: Callable[[Interaction], bool]) -> list[dict[str, Any]]:
        """Records of the last `n` interactions that are wanted, oldest first."""
        with self._lock:
            kept = list(self._last)
        chosen = [interaction for interaction in kept if wanted(interaction)]
        return [interaction.record() for interaction in chosen[max(0, len(chosen) - n) :]]


def _settings(config: Any) -> Mapping[str, Any]:
    return config if isinstance(config, Mapping) else _fields(config)


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


def _json_safe(value: Callable[[], Any]) -> Any:
    """A JSON-safe copy, or the name of the error that making it raises."""
    try:
        return project(value(), LIMIT)
    except Exception as error:  # noqa: BLE001 - a value's own code may raise anything; the other fields survive
        return f"<{type(error).__name__}>"
