"""What can be named in an ask: methods under decorators of every kind, and those of a class that was defined again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from promptside.actors import Actor, ActorSystem


def passing_through(function: Any) -> Any:
    """A plain function that returns the coroutine."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def without_a_name(function: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return wrapper


class proxied:
    """As of wrapt: each access on the class makes another object."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: object, owner: object) -> Any:
        class Proxy:
            __wrapped__ = self.function
            __name__ = self.function.__name__

            async def __call__(proxy, *args: Any) -> Any:  # noqa: N805
                return await self.function(instance, *args)

        return Proxy()


@contextlib.contextmanager
def around() -> Iterator[None]:
    yield


@contextlib.asynccontextmanager
async def async_around() -> AsyncIterator[None]:
    yield


class Decorated(Actor):
    def __init__(self) -> None:
        self.total = 10

    async def add(self, amount: int) -> int:
        return self.total + amount

    @passing_through
    async def passed(self, amount: int) -> int:
        return self.total + amount

    @without_a_name
    async def nameless(self, amount: int) -> int:
        return self.total + amount

    @proxied
    async def behind_proxy(self, amount: int) -> int:
        return self.total + amount

    @proxied
    async def behind_another(self, amount: int) -> int:
        return self.total - amount

    @staticmethod
    async def static(amount: int) -> int:
        return 10 + amount

    @classmethod
    async def of_class(cls, amount: int) -> int:
        return 10 + amount if issubclass(cls, Decorated) else -1

    @functools.cache  # noqa: B019 - wrong for other reasons, too, and yet a method
    async def cached(self, amount: int) -> int:
        return self.total + amount

    @around()
    async def within(self, amount: int) -> int:
        return self.total + amount

    @async_around()
    async def within_async(self, amount: int) -> int:
        return self.total + amount

    @functools.singledispatchmethod
    async def dispatched(self, amount: object) -> int:
        return -1

    @dispatched.register
    async def _(self, amount: int) -> int:
        return self.total + amount

    five_more = functools.partialmethod(add, 5)

    @property
    def size(self) -> int:
        return self.total

    @property
    async def later_size(self) -> int:
        return self.total

    @functools.cached_property
    def kept_size(self) -> int:
        return self.total

    @passing_through
    async def count(self, upto: int) -> Any:
        for number in range(upto):
            yield number

    @contextlib.asynccontextmanager
    async def scope(self) -> AsyncIterator[None]:
        yield

    @passing_through
    def plain(self) -> int:
        return 1


class Derived(Decorated):
    async def passed(self, amount: int) -> int:
        return -self.total


WITH_FIVE = (
    "passed", "nameless", "behind_proxy", "static", "of_class", "cached", "within", "within_async", "dispatched",
)  # fmt: skip
WITHOUT = {"five_more": 15, "size": 10, "later_size": 10, "kept_size": 10}


@pytest.mark.parametrize("named_on", [Decorated, Derived])
@pytest.mark.parametrize("spawned", [Decorated, Derived])
async def test_a_decorated_method_is_asked_as_any_other(spawned: Any, named_on: Any) -> None:
    if spawned is Decorated:
        named_on = Decorated
    async with ActorSystem() as system:
        ref = await system.spawn(spawned)
        for name in WITH_FIVE:
            wanted = -10 if name == "passed" and spawned is Derived else 15
            assert await ref.ask(getattr(named_on, name), 5) == wanted, name
        for name, wanted in WITHOUT.items():
            assert await ref.ask(getattr(named_on, name)) == wanted, name
        assert await ref.ask(named_on.behind_another, 4) == 6
        assert [number async for number in ref.stream(named_on.count, 3)] == [0, 1, 2]
        ref.tell(named_on.static, 1)
        await ref.deliver(named_on.dispatched, 1)
        assert ref.incarnation == 1
        assert system.dead_letters == 0


async def test_what_is_new_at_each_access_is_not_kept_at_each_ask() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Decorated)
        for _ in range(3):
            await ref.ask(Decorated.behind_proxy, 1)
        before = len(Decorated.__options__.handlers)
        for _ in range(10):
            await ref.ask(Decorated.behind_proxy, 1)
            await ref.ask(Decorated.dispatched, 1)
            await ref.ask(Decorated.five_more)
        assert len(Decorated.__options__.handlers) == before


@pytest.mark.parametrize(
    ("name", "why"),
    [("scope", "makes a context manager"), ("plain", "is not async"), ("count", "is an async generator")],
)
async def test_a_decorator_makes_nothing_async(name: str, why: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Decorated)
        with pytest.raises(TypeError, match=why):
            await ref.ask(getattr(Decorated, name))


CELL = """
class Counter(Actor):
    async def add(self, amount):
        return amount

    @passing_through
    async def take(self, amount):
        return -amount

    async def count(self):
        yield 1
"""


@pytest.mark.parametrize("name", ["add", "take", "count"])
@pytest.mark.parametrize("older", ["actor", "method"])
async def test_a_class_that_was_defined_again_is_another_class_and_the_error_says_so(name: str, older: str) -> None:
    first: dict[str, Any] = {"Actor": Actor, "passing_through": passing_through, "__name__": "__main__"}
    second = dict(first)
    exec(CELL, first)
    exec(CELL, second)
    spawned, named = (first, second) if older == "actor" else (second, first)
    async with ActorSystem() as system:
        ref = await system.spawn(spawned["Counter"])
        with pytest.raises(TypeError, match=r"another class with the name 'Counter'.*run again"):
            await anext(ref.stream(named["Counter"].count)) if name == "count" else await ref.ask(
                getattr(named["Counter"], name), 1
            )
        with pytest.raises(TypeError, match="is not a method of Counter"):
            await ref.ask(Decorated.add, 1)
        assert await ref.ask(spawned["Counter"].add, 2) == 2


async def test_the_tasks_of_a_decorated_ask_are_cancelled_with_it() -> None:
    ended = asyncio.Event()

    class Waiting(Actor):
        @passing_through
        async def wait(self) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async with ActorSystem() as system:
        ref = await system.spawn(Waiting)
        with pytest.raises(TimeoutError):
            await ref.with_options(timeout=0.01).ask(Waiting.wait)
        await ended.wait()
