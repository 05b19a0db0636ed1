"""`EventBus.on` as a type checker sees it, as a call and as a decorator. Checked, never run."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_type

from promptside.events import Event, EventBus, Hook

bus = EventBus()


def warn(event: Event) -> None: ...


async def page(event: Event) -> None: ...


@bus.on("breaker.*")
def decorated(event: Event) -> None: ...


def both_forms_give_the_hook() -> None:
    assert_type(bus.on("breaker.*", warn), Hook)
    assert_type(bus.on("breaker.*", page), Hook)
    assert_type(bus.on("breaker.*"), Callable[[Callable[[Event], object]], Hook])
    assert_type(decorated, Hook)
    assert_type(decorated.detach(), None)


def a_wrong_function_is_refused() -> None:
    bus.on("breaker.*", print_name)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def print_name(name: str) -> None: ...
