"""Errors carry their facts with types; checked by mypy and pyright, never run."""

from __future__ import annotations

from typing import assert_type

from promptside.errors import ActorError, ActorStopped, AskCycleError, AskTimeout, InvalidChildSpec, MaxRestartsExceeded


def stopped(error: ActorStopped) -> None:
    assert_type(error.started, bool)
    assert_type(error.retry_after, float | None)
    assert_type(error.reason, object)


def cycle(error: AskCycleError) -> None:
    assert_type(error.cycle, tuple[str, ...])


def history(error: MaxRestartsExceeded) -> None:
    assert_type(error.history, tuple[tuple[str, object], ...])


def builtin_handlers_catch_ours(timeout: AskTimeout, invalid: InvalidChildSpec) -> tuple[TimeoutError, ValueError]:
    return timeout, invalid


def a_retry_needs_to_know_whether_the_handler_began() -> ActorError:
    return ActorStopped("root/counter", "killed", incarnation=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
