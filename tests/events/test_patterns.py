"""Patterns over dotted types, and the catalogue of types."""

from __future__ import annotations

import re

import pytest

from promptside.events import CATALOGUE, EventBus
from promptside.events.catalogue import FIELDS
from promptside.events.patterns import compile_pattern

DESIGNED = {
    "actor": ["started", "stopped", "crashed", "restarted"],
    "supervisor": ["gave_up"],
    "message": ["dead"],
    "module": ["started", "stopped", "failed"],
    "pipeline": ["started", "stopped", "failed"],
    "program": ["swapped"],
    "tool": ["started", "stopped", "failed"],
    "sandbox": ["started", "stopped", "failed"],
    "sandbox.run": ["started", "stopped", "failed"],
    "lm.call": ["started", "stopped", "failed"],
    "lm.attempt": ["started", "stopped", "failed"],
    "lm.stream": ["chunk"],
    "breaker": ["opened", "half_opened", "closed"],
    "limiter": ["changed"],
    "pool": ["saturated"],
    "session": ["opened", "closed", "lost"],
    "worker": ["recycled"],
    "evaluation": ["started", "example", "stopped", "failed"],
    "optimizer": ["started", "step", "candidate_proposed", "candidate_evaluated", "best", "stopped"],
    "sink": ["gap"],
}


@pytest.mark.parametrize(
    ("pattern", "type", "matches"),
    [
        ("*", "lm", True),
        ("*", "lm.call.started", True),
        ("*", "two\nlines", True),
        ("lm.*", "lm.call", True),
        ("lm.*", "lm.call.started", True),
        ("lm.*", "lm", False),
        ("lm.*", "lmx.call", False),
        ("lm.*", "my.lm.call", False),
        ("lm.*.failed", "lm.call.failed", True),
        ("lm.*.failed", "lm.failed", False),
        ("lm.*.failed", "lm.call.retry.failed", False),
        ("*.failed", "module.failed", True),
        ("*.failed", "lm.call.failed", False),
        ("*.*.failed", "lm.call.failed", True),
        ("lm.call.failed", "lm.call.failed", True),
        ("lm.call.failed", "lm.call.failed.twice", False),
        ("lm.call.failed", "lmxcall.failed", False),
        ("lm.call.*", "lmxcall.failed", False),
        ("a+b.*", "a+b.c", True),
        ("a+b.*", "aab.c", False),
    ],
)
def test_a_star_is_one_word_and_at_the_end_one_or_more(pattern: str, type: str, matches: bool) -> None:
    assert compile_pattern(pattern)(type) is matches


@pytest.mark.parametrize("pattern", ["", ".", "lm.", ".lm", "lm..call", "l*", "lm.call.st*", "**", "lm.**"])
def test_a_pattern_that_can_only_be_a_mistake_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(pattern))):
        compile_pattern(pattern)


def test_a_decorator_without_parentheses_gets_an_error_with_the_right_form() -> None:
    bus = EventBus()

    with pytest.raises(TypeError, match=r'@events\.on\("lm\.\*"\)'):

        @bus.on  # type: ignore[arg-type]
        def hook(event: object) -> None: ...


def test_the_catalogue_holds_the_types_of_the_design_each_described() -> None:
    assert set(CATALOGUE) == {f"{subject}.{verb}" for subject, verbs in DESIGNED.items() for verb in verbs}
    for name, type in CATALOGUE.items():
        assert re.fullmatch(r"[A-Z].+\.", type.description), name
    words = {word for type in CATALOGUE.values() for word in (type.fields or "").split()}
    assert words == set(FIELDS)
