"""`promptside.pools.protect` as a type checker sees it: the function's own signature stays. Checked, never run."""

from __future__ import annotations

from typing import assert_type

from promptside.pools import protect


def find(query: str, *, k: int = 3) -> list[str]:
    return [query] * k


async def afind(query: str, *, k: int = 3) -> list[str]:
    return [query] * k


guarded = protect(find)
aguarded = protect(afind, name="search", timeout=5)


async def a_protected_function_is_called_as_before() -> None:
    assert_type(guarded("a", k=2), list[str])
    assert_type(await aguarded("a"), list[str])


def a_wrong_argument_is_refused() -> None:
    guarded(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    guarded("a", j=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
