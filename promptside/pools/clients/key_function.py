"""An API key that is a function's: asked for before each request, and once again when it was refused.

An `Endpoint` takes the function. `KeyedClient` is around its client, and asks; the client finds the key of its request
with `current_key`, so that one client, and its connections, serve all keys.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import anyio
from dspy import lm15
from dspy.lm15 import Request, Response

from promptside.callables import is_async
from promptside.pools.clients.credentials import hide_keys
from promptside.pools.context.labels import current_labels
from promptside.texts import describe
from promptside.waiting import cancellations

__all__ = ["ApiKey", "Client", "KeyFunction", "KeyedClient", "current_key", "is_key", "takes_labels"]

T = TypeVar("T")

ApiKey: TypeAlias = (
    str | Callable[[], str] | Callable[[], Awaitable[str]] | Callable[[Mapping[str, str]], str | Awaitable[str]]
)
"""A key, or a function that returns one."""

LONGEST: Final = 30.0
"""Seconds that a function may take, at most half of the endpoint's `timeout`."""

THREADS: Final = 8
"""Calls of one synchronous function at a time; one that hangs keeps its thread."""

_KEY: Final[ContextVar[str]] = ContextVar("_KEY")


def current_key() -> str:
    """The key of the request that is being sent."""
    return _KEY.get()


def is_key(key: str) -> bool:
    """Whether a request can have it: what no header may hold ends it, in a client's error that shows the key."""
    return key.isascii() and key.isprintable() and key == key.strip()


def takes_labels(function: Callable[..., Any]) -> bool:
    """Whether it must be called with an argument, the labels of the call.

    Raises:
        TypeError: It must be called with more.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # of some that are written in C
        return False
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    required = [each for each in parameters if each.default is each.empty and each.kind not in variable]
    if len(required) > 1 or any(each.kind is each.KEYWORD_ONLY for each in required):
        raise TypeError("it takes more than one argument")
    return bool(required)


class Client(Protocol):
    """DSPy's asynchronous engine, as workers call it."""

    async def complete(self, request: Request) -> Response:
        """One answer."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""


class KeyFunction:
    """Asks a function for keys, on one event loop.

    Args:
        endpoint: Name of the endpoint, for errors.
        function: Returns a key; see `Endpoint`.
        timeout: The endpoint's.
    """

    def __init__(self, endpoint: str, function: Callable[..., Any], timeout: float) -> None:
        self._endpoint = endpoint
        self._function = function
        self._takes_labels = takes_labels(function)
        self._timeout = min(LONGEST, timeout / 2)
        self._threads: anyio.CapacityLimiter | None = None

    async def send(self, request: Callable[[], Awaitable[T]]) -> T:
        """Send a request with a key; with another one where the first is refused.

        Raises:
            lm15.AuthError: The function failed, took too long or returned no key; or what `request` raised.
        """
        refused: lm15.AuthError | None = None
        old = ""
        while True:
            key = await self._ask()
            if refused is not None and key == old:
                raise refused
            try:
                return await request()
            except Exception as error:
                hide_keys(error, (key,))
                if refused is not None or not isinstance(error, lm15.AuthError) or error.status not in (401, 403):
                    raise
                refused, old = error, key

    async def _ask(self) -> str:
        """Have the function return a key, which is then the current one."""
        arguments = (current_labels(),) if self._takes_labels else ()
        bound = asyncio.timeout(self._timeout)
        try:
            async with bound:
                key = await self._call(arguments)
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and cancellations():
                raise
            if isinstance(error, TimeoutError) and bound.expired():
                raise self._error(f"has not returned after {self._timeout:g} s") from error
            raise self._error(f"failed: {describe(error)}") from error
        if not isinstance(key, str):
            raise self._error(f"returned no text, but: {type(key).__name__}")
        if not key or not is_key(key):
            raise self._error("returned a text that is empty, or has spaces at its ends, line breaks or other signs")
        _KEY.set(key)
        return key

    async def _call(self, arguments: tuple[Any, ...]) -> Any:
        if is_async(self._function):
            return await self._function(*arguments)
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(THREADS)
        key, error = await anyio.to_thread.run_sync(
            self._called, arguments, limiter=self._threads, abandon_on_cancel=True
        )
        if error is not None:
            raise error
        return await key if inspect.isawaitable(key) else key

    def _called(self, arguments: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
        try:
            return self._function(*arguments), None
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised in the caller
            return None, error

    def _error(self, what: str) -> lm15.AuthError:
        hint = "the function is called before each request, and may take the labels of the call; mend what it does"
        return lm15.AuthError(f"the api_key function of the endpoint {self._endpoint!r} {what}", credential_hint=hint)


class KeyedClient:
    """A client whose requests have the keys of a function.

    Args:
        keys: The function.
        client: Finds the key with `current_key`.
    """

    def __init__(self, keys: KeyFunction, client: Any) -> None:
        self._keys = keys
        self._client = client

    async def complete(self, request: Request) -> Response:
        """One answer."""
        return await self._keys.send(lambda: self._client.complete(request))

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer; a refusal comes before the first."""
        stream = self._client.stream(request)

        async def begin() -> Any:
            nonlocal stream
            await stream.aclose()
            stream = self._client.stream(request)
            return await anext(stream, None)

        event = await self._keys.send(begin)
        async with aclosing(stream):
            try:
                while event is not None:
                    yield event
                    event = await anext(stream, None)
            except Exception as error:
                hide_keys(error, (current_key(),))
                raise

    async def open_ahead(self, model: str, count: int) -> None:
        """Open so many connections, which have no key."""
        await self._client.open_ahead(model, count)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
