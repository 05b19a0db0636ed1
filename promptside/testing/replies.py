"""`reply`: formats a mock model's answer as the prompt asks.

`MockLM` and `FakeServer` reduce a request to a `Prompt` and call `reply` for the text. A DSPy adapter's prompt says how
the answer must be formatted: by a JSON schema, or by sections in the system message. `reply` follows it, so that a test
gives ``"Paris"`` and not the two sections that `ChatAdapter` parses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from promptside.checks import check

__all__ = [
    "Answer",
    "AnswerMap",
    "NoAnswer",
    "Prompt",
    "check_answers",
    "choose",
    "content_text",
    "reply",
    "split_tokens",
]

Answer: TypeAlias = str | Mapping[str, Any]
"""A text, which fills every output field of the prompt, or output fields by name (JSON-compatible values)."""

AnswerMap: TypeAlias = Mapping[str, Answer]
"""Answers by a substring of the last user message; ``"default"`` is the answer to all other messages."""

Layout: TypeAlias = Literal["chat", "json", "xml", "plain"]

_OUTPUT_FIELDS = re.compile(
    r"^Your output fields are:\n(.*?)^All interactions will be structured", re.MULTILINE | re.DOTALL
)
_TOKEN = re.compile(r"\S+\s*|\s+")
_FIELD = re.compile(r"^\d+\. `(\w+)`", re.MULTILINE)


class NoAnswer(LookupError):
    """No key of an answer map occurs in the prompt, and the map has no ``"default"``.

    Attributes:
        prompt: The last user message.
        keys: The keys that were tried.
    """

    def __init__(self, prompt: str, keys: tuple[str, ...]) -> None:
        self.prompt = prompt
        self.keys = keys
        shown = prompt if len(prompt) <= 200 else f"{prompt[:200]}..."
        super().__init__(
            f"no key of the mock's answers ({', '.join(map(repr, keys)) or 'there are none'}) occurs in the prompt "
            f'{shown!r}; add one, or an answer under "default"'
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """The parts of a request that decide the answer.

    Attributes:
        system: Text of the system message, or ``""``.
        user: Text of the last user message.
        schema: JSON schema that the answer must follow, or None when the request has none.
    """

    system: str
    user: str
    schema: Mapping[str, Any] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the output fields that the prompt asks for, in order; empty if no adapter wrote it."""
        if self.schema is not None:
            return tuple(self.schema.get("properties", ()))
        section = _OUTPUT_FIELDS.search(self.system)
        return tuple(_FIELD.findall(section[1])) if section else ()


def choose(answers: AnswerMap, user: str) -> Answer:
    """The answer of the first key that occurs in a user message, else the one under ``"default"``.

    Args:
        answers: Answers by substring, tried in the mapping's order: O(keys).
        user: Text of the last user message.

    Raises:
        NoAnswer: No key occurs and there is no ``"default"``.
    """
    for key, answer in answers.items():
        if key != "default" and key in user:
            return answer
    try:
        return answers["default"]
    except KeyError:
        raise NoAnswer(user, tuple(answers)) from None


def check_answers(owner: str, field: str, answers: object) -> None:
    """Raise `ValueError` unless a mock can answer with this: a text, a mapping or a function."""
    valid = isinstance(answers, str | Mapping) or callable(answers)
    check(owner, field, answers, valid, "give a text, a mapping from substrings of prompts to answers, or a function")


def reply(answer: Answer, prompt: Prompt) -> str:
    """Format an answer as the prompt asks.

    A text fills every output field. It is unchanged if it is formatted already (it has a field marker, or is a JSON
    object for a JSON schema), and if no DSPy adapter wrote the prompt. A mapping gives the fields that the prompt asks
    for; a missing one is left out, as a model might, and DSPy's parser then fails.

    Args:
        answer: A text, or output fields by name.
        prompt: The prompt.

    Raises:
        TypeError: A value of a mapping is not JSON-compatible.
    """
    fields = prompt.fields
    layout = _layout(prompt, fields)
    if isinstance(answer, str):
        if layout == "plain" or _is_formatted(answer, layout, fields):
            return answer
        values: dict[str, Any] = dict.fromkeys(fields, answer)
    else:
        values = {name: answer[name] for name in fields or answer if name in answer}
    match layout:
        case "chat":
            sections = [f"[[ ## {name} ## ]]\n{_text(value)}" for name, value in values.items()]
            return "\n\n".join([*sections, "[[ ## completed ## ]]"])
        case "xml":
            return "\n\n".join(f"<{name}>\n{_xml_text(value)}\n</{name}>" for name, value in values.items())
        case _:
            return json.dumps(values, ensure_ascii=False)


def content_text(content: str | Iterable[Mapping[str, Any]] | None) -> str:
    """The text of a chat message's content, which is a text, a list of parts, or absent."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content or () if part.get("type") == "text")


def split_tokens(text: str) -> list[str]:
    """Split a text into the mocks' tokens: words, each with the space after it."""
    return _TOKEN.findall(text)


def _layout(prompt: Prompt, fields: tuple[str, ...]) -> Layout:
    if prompt.schema is not None:
        return "json"
    if not fields:
        return "plain"
    if "[[ ## completed ## ]]" in prompt.system:
        return "chat"
    return "xml" if f"<{fields[0]}>" in prompt.system else "json"


def _is_formatted(text: str, layout: Layout, fields: tuple[str, ...]) -> bool:
    if layout == "json":
        try:
            return isinstance(json.loads(text), dict)
        except ValueError:
            return False
    marker = "[[ ## {} ## ]]" if layout == "chat" else "<{}>"
    return any(marker.format(name) in text for name in fields)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _xml_text(value: Any) -> str:
    return _text(value).replace("&", "&amp;").replace("<", "&lt;")
