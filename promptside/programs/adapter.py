"""`ChatAdapter`: DSPy's chat adapter, which writes once what depends on a signature's fields alone.

Users give it to `dspy.context` or `dspy.configure`; DSPy's predictors call it. It writes the same messages as
`dspy.ChatAdapter`, and reads answers by DSPy's own code.
"""

from __future__ import annotations

import json
import operator
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, TypeAlias, Union, get_args, get_origin

import dspy
from dspy.adapters.utils import format_field_value
from pydantic import BaseModel, TypeAdapter

from promptside.checks import check

__all__ = ["ChatAdapter"]

MAX_KEPT: Final = 256
"""Sets of fields whose texts one adapter keeps; an evaluation has a few, an optimizer's candidates share theirs."""

ATOMS: Final = frozenset({str, int, float, bool, bytes, NoneType})
CONTAINERS: Final = frozenset({list, dict, tuple, set, frozenset})
PLAIN: Final = (*ATOMS, *CONTAINERS, Any, None, ...)
"""What an annotation may name that never changes."""

SERIALIZED: Final = (NoneType, bool, int, float, list, dict, tuple)
"""Values of these very types have a serializer each. DSPy makes one for each value: 80 us, for a list 270 (3.11)."""

JSON_HOOK: Final = "__get_pydantic_json_schema__"
HOOKS: Final = ("__get_pydantic_core_schema__", JSON_HOOK)
"""Methods by which a type writes its schema itself, each time as it likes."""

LIVE: Final = ("json_schema_extra", "model_title_generator", "field_title_generator")
"""Settings of a model that may write another schema each time."""

Key: TypeAlias = tuple[Any, ...]


class ChatAdapter(dspy.ChatAdapter):
    """A `dspy.ChatAdapter` that needs less CPU for a call, and is the same in all else.

    ::

        dspy.configure(adapter=ChatAdapter())  # or, for some calls: with dspy.context(adapter=...)

    For each call DSPy writes a signature's system message anew, and makes a serializer for each value. This adapter
    keeps the descriptions of fields and the structure of messages, and the serializers of Python's own types. Messages,
    parsed answers, errors, callbacks, streams and the fallback to `dspy.JSONAdapter` are those of `dspy.ChatAdapter`;
    the class has its name, too, for DSPy's streams and errors go by that.

    A call of a `dspy.Predict` takes about 0.7 of the CPU without demos, and about half of it with 16
    (``python -m benchmarks.programs``); it shows where an event loop has many calls under way, as in an evaluation.
    When not to use it: nothing is won by one that is made for each call, by what uses another of DSPy's adapters, and
    by calls that spend their time waiting for the LM.

    Kept are two texts, some kB, for each of the 256 sets of fields that were written last: their names, types,
    descriptions and constraints. Instructions and demos may differ from call to call. Signatures themselves are not
    held, their types are. Each call looks whether the texts still hold, in O(fields and models): one is written anew
    where a signature has changed, or a pydantic model or an enum among the types of its outputs. The structure is not
    kept where that cannot be seen: with dataclasses, typed dicts, `Annotated` or a type that writes its own JSON schema
    among them.

    One adapter serves any number of threads and loops. A copy, a pickled one too, keeps nothing yet. A subclass may
    override any method; what it makes of a signature's fields must depend on them alone.

    Args:
        callbacks: As for `dspy.ChatAdapter`.
        use_native_function_calling: As for `dspy.ChatAdapter`.
        native_response_types: As for `dspy.ChatAdapter`.
        use_json_adapter_fallback: As for `dspy.ChatAdapter`.
        parallel_tool_calls: As for `dspy.ChatAdapter`.

    Raises:
        ValueError: An argument is of another type.
    """

    def __init__(
        self,
        callbacks: list[Any] | None = None,
        use_native_function_calling: bool = False,
        native_response_types: list[type[Any]] | None = None,
        use_json_adapter_fallback: bool = True,
        parallel_tool_calls: bool | None = None,
    ) -> None:
        _check_list("callbacks", callbacks, "BaseCallback objects")
        _check_flag("use_native_function_calling", use_native_function_calling)
        _check_list("native_response_types", native_response_types, "types, such as dspy.Reasoning", type)
        _check_flag("use_json_adapter_fallback", use_json_adapter_fallback)
        if parallel_tool_calls is not None:
            _check_flag("parallel_tool_calls", parallel_tool_calls, "True, False or None")
        super().__init__(
            callbacks=callbacks,
            use_native_function_calling=use_native_function_calling,
            native_response_types=native_response_types,
            use_json_adapter_fallback=use_json_adapter_fallback,
            parallel_tool_calls=parallel_tool_calls,
        )
        self._kept = _Kept()

    def format_field_description(self, signature: type[dspy.Signature]) -> str:
        """The description of all fields; see `dspy.ChatAdapter`. O(fields) from the second time on."""
        return self._kept.text(signature, "description", super().format_field_description)

    def format_field_structure(self, signature: type[dspy.Signature]) -> str:
        """The structure of the messages; see `dspy.ChatAdapter`. O(fields) from the second time on."""
        return self._kept.text(signature, "structure", super().format_field_structure)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: Mapping[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """The inputs that are given, in the signature's order; see `dspy.ChatAdapter`."""
        parts = [prefix]
        for name, info in signature.input_fields.items():
            if name in inputs:
                parts.append(f"[[ ## {name} ## ]]\n{self._kept.value(info, inputs.get(name))}")
        if main_request:
            requirements: str | None = self.user_message_output_requirements(signature)
            if requirements is not None:
                parts.append(requirements)
        parts.append(suffix)
        return "\n\n".join(parts).strip()

    def format_field_with_value(self, fields_with_values: Mapping[Any, Any]) -> str:
        """Fields with their values; see `dspy.ChatAdapter`."""
        return "\n\n".join(
            f"[[ ## {named.name} ## ]]\n{self._kept.value(named.info, value)}"
            for named, value in fields_with_values.items()
        ).strip()


# DSPy wraps both anew in each subclass, so that callbacks would be told of each call twice.
ChatAdapter.format = dspy.ChatAdapter.format
ChatAdapter.parse = dspy.ChatAdapter.parse


def _check_flag(name: str, value: object, remedy: str = "True or False") -> None:
    check("ChatAdapter", name, value, isinstance(value, bool), f"give {remedy}")


def _check_list(name: str, value: object, what: str, kind: type = object) -> None:
    valid = value is None or (isinstance(value, list) and all(isinstance(each, kind) for each in value))
    check("ChatAdapter", name, value, valid, f"give a list of {what}, or None")


@dataclass(frozen=True, slots=True)
class _Entry:
    """What was written for one set of fields, and what that depends on.

    Attributes:
        held: Annotations and their metadata, which the key names by `id`: an id that is held cannot become another's.
        described: DSPy's types among the annotations, whose descriptions are in the text.
        reached: The models and enums that the JSON schemas of the outputs are made of.
        settled: Whether these are all that the schemas depend on.
        facts: What was seen of them before anything was written.
        schemas: Likewise; another object is another schema.
        texts: By name.
    """

    held: tuple[Any, ...]
    described: Sequence[type[dspy.Type]]
    reached: Sequence[type]
    settled: bool
    facts: list[Any]
    schemas: list[Any]
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        facts, schemas = _look(self.described, self.reached)
        return self.facts == facts and all(map(operator.is_, self.schemas, schemas))


class _Kept:
    """The texts of one adapter by their fields, and its serializers."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # for what is written; a read is one look-up
        self._entries: dict[Key, _Entry] = {}
        self._serializers = MappingProxyType({kind: TypeAdapter(kind) for kind in SERIALIZED})

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()

    def text(self, signature: type[dspy.Signature], name: str, make: Callable[[Any], str]) -> str:
        """The text of that name, kept if it still holds, or else made.

        Args:
            signature: Any.
            name: ``"description"`` or ``"structure"``.
            make: Called with the signature; what it raises is the caller's.
        """
        key, held = _read(signature)
        if key is None:
            return make(signature)
        entry = self._entries.get(key)
        if entry is None or not entry.holds:
            entry = _examine(signature, held)
        if (kept := entry.texts.get(name)) is not None:
            return kept
        text = make(signature)
        # Another thread may have changed the signature meanwhile, or pydantic built the model only now.
        if (entry.settled or name == "description") and entry.holds and _read(signature)[0] == key:
            entry.texts[name] = text
            self._keep(key, entry)
        return text

    def value(self, info: Any, value: Any) -> str:
        """A field's value as DSPy writes it."""
        kind = type(value)
        if kind is str:
            return str(value)
        serializer = self._serializers.get(kind)
        if serializer is None or (kind is list and info.annotation is str):
            return str(format_field_value(field_info=info, value=value))
        try:
            jsonable = serializer.dump_python(value, mode="json")
        except Exception:  # noqa: BLE001 - DSPy knows what becomes of a value that cannot be serialized
            return str(format_field_value(field_info=info, value=value))
        return json.dumps(jsonable, ensure_ascii=False) if isinstance(jsonable, dict | list) else str(jsonable)

    def _keep(self, key: Key, entry: _Entry) -> None:
        with self._lock:
            if self._entries.pop(key, None) is None and len(self._entries) >= MAX_KEPT:
                del self._entries[next(iter(self._entries))]
            self._entries[key] = entry


def _read(signature: type[dspy.Signature]) -> tuple[Key | None, tuple[Any, ...]]:
    """What the texts say of a signature's fields, and what is named by its `id` there; None where it may change."""
    key: list[Any] = []
    held: list[Any] = []
    for fields in (signature.input_fields, signature.output_fields):
        for name, info in fields.items():
            extra: Any = info.json_schema_extra
            description, constraints = extra.get("desc"), extra.get("constraints", "")
            if type(description) is not str or type(constraints) is not str:
                return None, ()
            # Each is read once, for another thread may change it.
            annotation, metadata = info.annotation, tuple(info.metadata)
            key += (name, id(annotation), description, constraints, *map(id, metadata))
            held += (annotation, *metadata)
        key.append(None)  # where the inputs end
    return tuple(key), tuple(held)


def _examine(signature: type[dspy.Signature], held: tuple[Any, ...]) -> _Entry:
    """An entry without its texts."""
    extract = dspy.Type.extract_custom_type_from_annotation
    described = [kind for info in signature.fields.values() for kind in extract(info.rebuild_annotation())]
    reached: dict[type, None] = {}
    settled = all(_is_settled(info.annotation, reached) for info in signature.output_fields.values())
    models = list(reached)
    return _Entry(held, described, models, settled, *_look(described, models))


def _look(described: Sequence[type[dspy.Type]], reached: Sequence[type]) -> tuple[list[Any], list[Any]]:
    """What may change of these types; pydantic makes a model's core schema anew when the model is rebuilt."""
    facts: list[Any] = [kind.description() for kind in described]
    facts += [(kind.__name__, kind.__doc__, dict(getattr(kind, "model_config", {}))) for kind in reached]
    return facts, [vars(kind).get("__pydantic_core_schema__") for kind in reached]


def _is_settled(annotation: Any, reached: dict[type, None]) -> bool:
    """Whether an annotation's JSON schema depends on nothing but the models and enums that are added to `reached`."""
    origin = get_origin(annotation)
    if origin is Literal:  # PEP 586: of values that never change
        return True
    if origin in CONTAINERS or origin is Union or origin is UnionType:
        return all(_is_settled(argument, reached) for argument in get_args(annotation))
    if any(annotation is known for known in (*PLAIN, *reached)):  # by identity, for it may have no hash
        return True
    if not isinstance(annotation, type):
        return False
    if issubclass(annotation, Enum):
        reached[annotation] = None
        return all(type(each.value) in ATOMS for each in annotation) and not hasattr(annotation, JSON_HOOK)
    if not issubclass(annotation, BaseModel):
        return False
    reached[annotation] = None  # before its fields, among which it may be itself
    if any(
        getattr(getattr(annotation, hook), "__func__", None) is not getattr(BaseModel, hook).__func__ for hook in HOOKS
    ):
        return False
    if any(annotation.model_config.get(setting) is not None for setting in LIVE):
        return False
    return all(
        info.json_schema_extra is None
        and not any(hasattr(each, JSON_HOOK) for each in info.metadata)
        and _is_settled(info.annotation, reached)
        for info in annotation.model_fields.values()
    )
