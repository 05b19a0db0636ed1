"""What is seen of a callable without a call."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from promptside.callables import function_of, is_async, name_of


def plain() -> None: ...


async def fetch() -> None: ...


async def tokens() -> AsyncIterator[int]:
    yield 1


class Plain:
    def __call__(self) -> None: ...

    def read(self) -> None: ...


class Async:
    async def __call__(self) -> None: ...

    async def read(self) -> None: ...

    @classmethod
    async def of(cls) -> None: ...

    @staticmethod
    async def static() -> None: ...


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


def awaiting(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any) -> Any:
        return await function(*args)

    return wrapper


@pytest.mark.parametrize(
    ("candidate", "asynchronous", "name"),
    [
        (plain, False, "plain"),
        (fetch, True, "fetch"),
        (functools.partial(fetch), True, "fetch"),
        (functools.partial(functools.partial(fetch)), True, "fetch"),
        (functools.partial(plain), False, "plain"),
        (Async(), True, "Async"),
        (functools.partial(Async()), True, "Async"),
        (Plain(), False, "Plain"),
        (Async, False, "Async"),
        (Async().read, True, "read"),
        (functools.partial(Async().read), True, "read"),
        (Async.of, True, "of"),
        (Async.static, True, "static"),
        (Plain().read, False, "read"),
        (awaiting(fetch), True, "fetch"),
        (decorated(fetch), False, "fetch"),
        (decorated(plain), False, "plain"),
        (lambda: fetch(), False, "<lambda>"),
        (tokens, False, "tokens"),
        (functools.lru_cache(plain), False, "plain"),
        (len, False, "len"),
        (int, False, "int"),
        (3, False, "int"),
        (None, False, "NoneType"),
    ],
)
def test_a_callable_is_async_if_its_call_surely_returns_a_coroutine(
    candidate: object, asynchronous: bool, name: str
) -> None:
    assert is_async(candidate) is asynchronous
    assert name_of(candidate) == name


def test_the_function_of_a_callable_is_what_its_call_runs() -> None:
    assert function_of(functools.partial(fetch)) is fetch
    assert function_of(functools.partial(Async())) is Async.__call__
    assert function_of(plain) is plain
