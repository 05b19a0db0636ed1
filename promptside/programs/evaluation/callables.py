"""Programs, metrics and devsets of any kind in one form each: async functions, and an async generator.

Called by `Evaluator`.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Generator, Iterable
from typing import Any, TypeAlias, cast

import anyio
import dspy

from promptside.callables import is_async
from promptside.programs.hosting.entry import enter
from promptside.programs.hosting.threads import RunInThread, in_thread
from promptside.programs.program import Program

__all__ = ["Devset", "numbered", "to_async"]

Devset: TypeAlias = Iterable[dspy.Example] | AsyncIterable[dspy.Example]


def to_async(
    function: Any, threads: anyio.CapacityLimiter, run: RunInThread | None = None
) -> Callable[..., Awaitable[Any]]:
    """A program or metric as an async function; a synchronous function runs in a thread, as `in_thread` says."""
    if isinstance(function, Program):

        async def call(**inputs: Any) -> Any:
            return await function.call_with((), inputs)

        return call
    if isinstance(function, dspy.Module):

        async def entered(*args: Any, **inputs: Any) -> Any:
            return await enter(function, args, inputs, threads)

        return entered
    if is_async(function):
        return cast("Callable[..., Awaitable[Any]]", function)

    async def threaded(*args: Any, **kwargs: Any) -> Any:
        result = await in_thread(functools.partial(function, *args, **kwargs), threads, run)
        return await result if inspect.isawaitable(result) else result

    return threaded


async def numbered(devset: Devset) -> AsyncGenerator[tuple[int, dspy.Example], None]:
    """The examples of either kind of devset with their indices; closing it closes the devset."""
    numbers = itertools.count()
    if isinstance(devset, AsyncIterable):
        examples = aiter(devset)
        try:
            async for example in examples:
                yield next(numbers), example
        finally:
            if (close := getattr(examples, "aclose", None)) is not None:
                await close()
    else:
        try:
            for example in devset:
                yield next(numbers), example
        finally:
            if isinstance(devset, Generator):
                devset.close()
