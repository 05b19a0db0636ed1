"""Labels: under which program, session and run an LM call is counted, remembered and bounded.

Users set `session` and `run` around calls; module actors set `program`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from promptside.checks import check_text
from promptside.pools.context.settings import read_setting, setting

__all__ = ["KINDS", "LABELS", "current_labels", "labels", "session", "with_program"]

KINDS: Final = ("program", "session", "run")
"""What an LM call can be counted under."""

LABELS: Final = "promptside_labels"
"""The key of DSPy's settings under which they are found."""


@contextlib.contextmanager
def labels(*, session: str | None = None, run: str | None = None) -> Iterator[None]:
    """Count the LM calls within under a session, a run, or both; those of an outer block are kept where not given.

    ::

        with labels(session=user.id):
            answer = await program.acall(question=question)

    Args:
        session: Such as a user, a conversation, a tenant.
        run: Such as an evaluation or an optimization.

    Raises:
        ValueError: A label is not a text, or empty.
    """
    given = {kind: label for kind, label in (("session", session), ("run", run)) if label is not None}
    for kind, label in given.items():
        check_text("labels", kind, label)
    with setting(LABELS, {**current_labels(), **given}):
        yield


def session(id: str) -> contextlib.AbstractContextManager[None]:
    """Count the LM calls within under a session, such as a user, a conversation, a tenant: ``labels(session=id)``.

    Raises:
        ValueError: `id` is not a text, or empty.
    """
    check_text("session", "id", id)
    return labels(session=id)


def current_labels() -> Mapping[str, str]:
    """The labels around the caller, by kind."""
    found: Mapping[str, str] = read_setting(LABELS) or {}
    return found


def with_program(program: str) -> dict[str, Any]:
    """Settings for `dspy.context` within which calls are counted under `program`.

    A program that is called by another one is a part of it: its calls are counted under the outer one.
    """
    return {LABELS: {"program": program, **current_labels()}}
