"""What mypy and pyright infer about tasks; checked by both, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from functools import partial
from typing import assert_type

import anyio.to_thread

from promptside.actors import Actor, ActorRef
from promptside.supervision import ChildSpec
from promptside.supervision.tasks.supervisor import TaskSupervisor


async def fetch(url: str, *, timeout: float = 1.0) -> bytes:
    return url.encode()


def parse(page: bytes) -> int:
    return len(page)


async def urls() -> AsyncIterator[str]:
    yield "a"


def more_urls() -> Iterator[str]:
    yield "b"


async def run_has_the_type_of_its_function(tasks: TaskSupervisor) -> None:
    assert_type(await tasks.run(fetch, "url"), bytes)
    assert_type(await tasks.run(fetch, "url", timeout=2.0), bytes)
    assert_type(await tasks.run(partial(fetch, "url")), bytes)
    assert_type(await tasks.run(lambda: fetch("url")), bytes)
    assert_type(await tasks.run(anyio.to_thread.run_sync, parse, b"page"), int)
    await tasks.run(fetch, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tasks.run(fetch)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await tasks.run(fetch, "url", retries=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await tasks.run(parse, b"page")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tasks.run(fetch("url"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


def start_soon_checks_its_arguments(tasks: TaskSupervisor) -> None:
    assert_type(tasks.start_soon(fetch, "url", timeout=2.0), ActorRef[Actor])
    tasks.start_soon(fetch, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.start_soon(parse, b"page")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def map_has_the_type_of_its_functions_results(tasks: TaskSupervisor, careful: bool) -> None:
    assert_type(tasks.map(fetch, ["a", "b"]), AsyncGenerator[bytes, None])
    assert_type(tasks.map(fetch, urls(), ordered=False), AsyncGenerator[bytes, None])
    assert_type(tasks.map(fetch, more_urls(), max_concurrency=2), AsyncGenerator[bytes, None])
    assert_type(tasks.map(fetch, urls(), return_exceptions=False), AsyncGenerator[bytes, None])
    assert_type(tasks.map(fetch, urls(), return_exceptions=True), AsyncGenerator[bytes | Exception, None])
    assert_type(tasks.map(fetch, urls(), return_exceptions=careful), AsyncGenerator[bytes | Exception, None])
    async for page in tasks.map(fetch, urls()):
        assert_type(page, bytes)
    tasks.map(fetch, [1, 2])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.map(parse, [b"page"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.map(fetch, 5)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


def a_task_supervisor_can_be_a_child(tasks: TaskSupervisor) -> None:
    assert_type(tasks.child_spec(restart="transient", node="jobs"), ChildSpec)
    tasks.child_spec(restart="always")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
