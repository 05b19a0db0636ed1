"""`Content`: which prompts, answers, inputs and outputs events carry, and how they are made safe first.

Given to an `ActorSystem`, or to one program; without one, events carry no content. It is applied where an event's data
is built, in the thread that makes the call, so that redacted text never reaches the bus, its queues or its sinks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any, Final

from promptside.checks import check, check_count
from promptside.texts import kind_of, text_of

__all__ = ["NOTHING", "Content", "project"]

MAX_DEPTH: Final = 8
"""Levels of nested containers that are copied; a marker stands for deeper ones."""

MAX_VALUES: Final = 1000
"""Values that are copied for one event; a marker stands for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """Which content events carry. Content is often private: give a `redact` before events leave the process.

    It appears in the data of an event as `inputs` (of ``*.started``), `outputs` (of ``*.stopped``) and `message` (of
    ``*.failed``): JSON-safe copies, in which a marker such as ``"<Lock>"`` stands for each object that is not data.

    Args:
        inputs: Whether to include inputs: of programs, modules and tools, code for sandboxes, prompts.
        outputs: Whether to include outputs: predictions, results of tools and sandboxes, completions, texts of errors.
        redact: Called with the type of the event (``"lm.call.started"``) and the copy; returns the content that is
            published in its place, or None for nothing. It runs in the caller's thread and must not wait. If it raises,
            the event has no content, but `content_dropped`, the error's type.
        limit: Characters of text in the content of one event, >= 1; the rest is cut.

    Raises:
        ValueError: A field is out of its range.
    """

    inputs: bool = True
    outputs: bool = True
    redact: Callable[[str, Any], Any] | None = None
    limit: int = 20_000

    def __post_init__(self) -> None:
        for field in ("inputs", "outputs"):
            value = getattr(self, field)
            check("Content", field, value, isinstance(value, bool), "give True or False")
        valid = self.redact is None or callable(self.redact)
        check("Content", "redact", self.redact, valid, "give a function of an event type and its content")
        check_count("Content", "limit", self.limit)

    def of_inputs(self, wants: Callable[[str], bool], type: str, value: Any) -> dict[str, Any]:
        """Data with the `inputs` of an event.

        Args:
            wants: `EventBus.wants`: nothing is copied for an event that has no listener.
            type: The event's type.
            value: The inputs.
        """
        return self._copy("inputs", type, value) if self.inputs and wants(type) else {}

    def of_outputs(self, wants: Callable[[str], bool], type: str, value: Any) -> dict[str, Any]:
        """Data with the `outputs` of an event; as `of_inputs`."""
        return self._copy("outputs", type, value) if self.outputs and wants(type) else {}

    def of_error(self, wants: Callable[[str], bool], type: str, error: BaseException) -> dict[str, Any]:
        """Data with the text of an error, as `message`, where outputs are included; as `of_inputs`."""
        return self._copy("message", type, error) if self.outputs and wants(type) else {}

    def _copy(self, key: str, type_: str, value: Any) -> dict[str, Any]:
        try:
            copied = project(value, self.limit)
            if self.redact is not None:
                copied = self.redact(type_, copied)
                if copied is None:
                    return {}
                copied = project(copied, self.limit)  # a redaction may return an object that is not JSON-safe
        except BaseException as error:  # noqa: BLE001 - a user's hook: the call must go on
            return {"content_dropped": kind_of(error)}
        return {key: copied}


NOTHING: Final = Content(inputs=False, outputs=False)
"""No content, the default."""


def project(value: Any, limit: int = 20_000) -> Any:
    """A JSON-safe copy that shares nothing with `value`.

    Mappings, sequences, dataclasses, pydantic models and DSPy's examples and predictions are copied as data, errors
    as their text; of any other object its type's name remains, as ``"<Type>"``. Cost: O(`limit` + 1,000 values).

    Args:
        value: Anything.
        limit: Characters of text in all; a text beyond it is cut, and says how much is missing.
    """
    return _Projection(limit).copy(value, 0)


class _Projection:
    """One copy, and how many characters and values it may still take."""

    def __init__(self, limit: int) -> None:
        self._text = limit
        self._values = MAX_VALUES

    def copy(self, value: Any, depth: int) -> Any:
        self._values -= 1
        try:
            return self._copied(value, depth)
        except BaseException:  # noqa: BLE001 - of a value's own code
            return f"<{kind_of(value)}>"

    def _copied(self, value: Any, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return int(value) if -(2**63) <= value < 2**63 else self._cut(value)
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(value)
        if isinstance(value, (str, BaseException)):
            return self._cut(value)
        if depth < MAX_DEPTH:
            fields = _fields(value)
            if fields is not None:
                return self._mapping(fields, depth + 1)
            if isinstance(value, (list, tuple, set, frozenset)):
                return self._sequence(value, depth + 1)
        return f"<{kind_of(value)}>"

    def _mapping(self, fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        copied: dict[str, Any] = {}
        for number, (name, item) in enumerate(tuple(itertools.islice(fields.items(), MAX_VALUES + 1))):
            if self._values <= 0:
                copied["..."] = f"<{len(fields) - number} more>"
                break
            copied[self._cut(name)] = self.copy(item, depth)
        return copied

    def _sequence(self, items: Any, depth: int) -> list[Any]:
        copied: list[Any] = []
        for number, item in enumerate(tuple(itertools.islice(items, MAX_VALUES + 1))):
            if self._values <= 0:
                copied.append(f"<{len(items) - number} more>")
                break
            copied.append(self.copy(item, depth))
        return copied

    def _cut(self, value: object) -> str:
        text = text_of(value, self._text)
        self._text = max(0, self._text - len(text))
        return text


def _fields(value: Any) -> Mapping[Any, Any] | None:
    """The fields of a mapping, a dataclass or a model; None for any other object."""
    if isinstance(value, type):
        return None
    if isinstance(value, Mapping):
        return value
    if is_dataclass(value):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    model_fields = getattr(type(value), "model_fields", None)  # pydantic
    if isinstance(model_fields, Mapping):
        return {name: getattr(value, name) for name in model_fields}
    as_dict = getattr(type(value), "toDict", None)  # DSPy's examples and predictions
    return dict(value.items()) if callable(as_dict) else None
