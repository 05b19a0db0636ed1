"""Patterns over event types: a pure function, called once for each listener.

Called by `subscription`, `hooks`, the sinks and `log.read`; it calls nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from promptside.texts import repr_of

__all__ = ["compile_pattern"]


def compile_pattern(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern over dotted event types.

    A pattern is words joined by dots. A ``*`` in place of a word stands for exactly one word, and in the last place for
    one word or more: ``lm.*`` matches ``lm.call.stopped``, ``lm.*.failed`` matches ``lm.call.failed`` and
    ``lm.attempt.failed``, ``*`` matches everything. There is no other wildcard.

    Args:
        pattern: Such as ``"lm.*"``, ``"breaker.opened"`` or ``"*"``.

    Returns:
        The predicate over event types.

    Raises:
        TypeError: `pattern` is not a string, as in ``@events.on`` without its parentheses.
        ValueError: `pattern` has an empty word, or a ``*`` that is only a part of one.
    """
    if not isinstance(pattern, str):
        raise TypeError(
            f'pattern={repr_of(pattern)} is not a string; write `@events.on("lm.*")`, or "*" for every event'
        )
    words = pattern.split(".")
    for word in words:
        if not word or ("*" in word and word != "*"):
            raise ValueError(
                f"pattern={pattern!r} has the word {word!r}; words between the dots are either whole names or a single "
                'asterisk, as in "lm.call.failed", "lm.*.failed" or "lm.*"'
            )
    if "*" not in words:
        return pattern.__eq__
    *front, last = (r"[^.]+" if word == "*" else re.escape(word) for word in words)
    tail = r".+" if words[-1] == "*" else last
    matcher = re.compile(r"\.".join([*front, tail]), re.DOTALL)
    return lambda type: matcher.fullmatch(type) is not None
