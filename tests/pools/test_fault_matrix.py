"""What becomes of one call under each fault: whole or streamed, by thread or coroutine, of a server or of a run.

The tables say all of it, one cell a test: how the call ended, how many requests reached the provider, the circuit, and
what the bus told. A call makes up to three attempts, and three failures open the circuit. The first attempt meets a
fault that passes, all three of them one that is over after that, and every attempt one that lasts.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from dspy.lm15 import Message, Request
from dspy.utils.exceptions import LMError

from promptside import Event
from promptside.pools import BreakerConfig, LimiterConfig, RetryConfig, priority
from promptside.pools.context.priority import BatchAborted, PriorityClass
from promptside.testing import FakeServer, Fault
from tests.support.pools import Scene, async_engine, endpoint, running

ANSWER = "one two three"

FAULTS = {
    "429": Fault.status(429),
    "429 in 0.02": Fault.status(429, retry_after=0.02),
    "500": Fault.status(500),
    "529": Fault.status(529),
    "hang": Fault.hang(),
    "reset": Fault.reset(),
    "half body": Fault.half_body(),
    "malformed": Fault.malformed(),
    "empty": Fault.empty_choices(),
    "cut": Fault.cut_stream(1),
    "slow tokens": Fault.slow_tokens(0.01),
    "killed": Fault.hang(),  # and then the server is killed
}
"""The rows of the tables."""

# A cell: how the call ended ("LM...Error" by what is between), requests that reached the provider, the circuit, events.
# Events: - attempt failed, + attempt answered, o h c circuit opened, half open, closed, l limiter changed, . call
# answered, ! call failed. Threads and coroutines fare alike, and share each cell.
SERVING = """
fault       | passing              | lasting                    | passing, streamed     | lasting, streamed
429         | answer 2 closed l-+. | RateLimit 3 closed l-l-l-! | answer 2 closed l-+.  | RateLimit 3 closed l-l-l-!
429 in 0.02 | answer 2 closed l-+. | RateLimit 3 closed l-l-l-! | answer 2 closed l-+.  | RateLimit 3 closed l-l-l-!
500         | answer 2 closed -+.  | Server 3 open --o-!        | answer 2 closed -+.   | Server 3 open --o-!
529         | answer 2 closed -+.  | Server 3 open --o-!        | answer 2 closed -+.   | Server 3 open --o-!
hang        | Timeout 1 closed -!  | Timeout 1 closed -!        | Timeout 1 closed -!   | Timeout 1 closed -!
reset       | answer 2 closed -+.  | Transport 3 open --o-!     | answer 2 closed -+.   | Transport 3 open --o-!
half body   | answer 2 closed -+.  | Transport 3 open --o-!     | Transport 1 closed -! | Transport 1 closed -!
malformed   | answer 2 closed -+.  | Provider 3 open --o-!      | answer 2 closed -+.   | Provider 3 open --o-!
empty       | answer 2 closed -+.  | Provider 3 open --o-!      | answer 2 closed -+.   | Provider 3 open --o-!
cut         | answer 2 closed -+.  | Transport 3 open --o-!     | Transport 1 closed -! | Transport 1 closed -!
slow tokens | answer 1 closed +.   | answer 1 closed +.         | answer 1 closed +.    | answer 1 closed +.
killed      | answer 2 closed -+.  | Transport 1 open --o-!     | answer 2 closed -+.   | Transport 1 open --o-!
"""
# A run gets a stream when it is there as a whole, and so with the same cells: what breaks off is made again.
BATCH = """
fault       | passing              | over                     | lasting
429         | answer 2 closed l-+. | answer 4 closed l-l-l-+. | aborted 3 closed l-l-l-!
429 in 0.02 | answer 2 closed l-+. | answer 4 closed l-l-l-+. | aborted 3 closed l-l-l-!
500         | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
529         | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
hang        | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 1 closed -!
reset       | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
half body   | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
malformed   | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
empty       | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
cut         | answer 2 closed -+.  | answer 4 closed --o-hc+. | aborted 3 open --o-!
slow tokens | answer 1 closed +.   | answer 1 closed +.       | answer 1 closed +.
killed      | answer 2 closed -+.  | answer 2 closed --o-hc+. | aborted 1 open --o-!
"""
SIGNS = {
    "lm.attempt.failed": "-",
    "lm.attempt.stopped": "+",
    "breaker.opened": "o",
    "breaker.half_opened": "h",
    "breaker.closed": "c",
    "limiter.changed": "l",
    "pool.saturated": "s",
    "lm.call.stopped": ".",
    "lm.call.failed": "!",
}

TIMES = {"passing": 1, "over": 3, "lasting": None}
"""Requests that fail, by column; None for all."""

RESTART = {"passing": "lm.attempt.failed", "over": "breaker.opened", "lasting": None}
"""What is told when a server that was killed is there again, by column; None for never."""

Way: TypeAlias = Callable[[Scene], Awaitable[str]]


@dataclass(frozen=True)
class Cell:
    """A cell, and one of the ways to make the call that it is about."""

    kind: PriorityClass
    fault: str
    column: str
    says: str
    way: Way

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.fault}-{self.column}-{self.way.__name__}"


def cells() -> Iterator[Cell]:
    tables: dict[PriorityClass, str] = {"serving": SERVING, "batch": BATCH}
    for kind, table in tables.items():
        head, *rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
        assert [row[0] for row in rows] == list(FAULTS)
        for row, (place, title) in itertools.product(rows, enumerate(head)):
            column, _, streamed = title.partition(", ")
            if place > 0:
                ways = STREAMED if streamed else WHOLE if kind == "serving" else WHOLE + STREAMED
                yield from (Cell(kind, row[0], column, row[place], way) for way in ways)


async def in_thread(scene: Scene) -> str:
    (answer,) = await asyncio.to_thread(scene.lm, "hello")
    return str(answer)


async def in_coroutine(scene: Scene) -> str:
    (answer,) = await scene.lm.acall("hello")
    return str(answer)


async def streamed_in_thread(scene: Scene) -> str:
    return await asyncio.to_thread(lambda: text(list(scene.lm.engine.stream(hello(scene)))))


async def streamed_in_coroutine(scene: Scene) -> str:
    return text([event async for event in async_engine(scene.lm).stream(hello(scene))])


def hello(scene: Scene) -> Request:
    return Request(model=scene.lm.model, messages=(Message.user("hello"),))


def text(events: list[Any]) -> str:
    return "".join(event.delta.text for event in events if event.type == "delta")


WHOLE: list[Way] = [in_thread, in_coroutine]
STREAMED: list[Way] = [streamed_in_thread, streamed_in_coroutine]


async def kill(server: FakeServer, scene: Scene, *, until: str | None) -> None:
    """Kill the server under the call; it is there again when that was told, before anything else happens."""
    gone = threading.Event()
    if until is not None:

        def restart(event: Event) -> None:
            assert gone.wait(10)
            server.start()

        scene.system.events.on(until, restart)
    await server.until(lambda: server.active == 1)
    server.close()
    gone.set()


async def observe(cell: Cell) -> str:
    """What the cell should say."""
    times = TIMES[cell.column]
    settings: dict[str, Any] = {
        "breaker": BreakerConfig(min_calls=3, open_for=60.0 if times is None else 0.05),
        "retry": RetryConfig(attempts=3, initial=0, max_rate_limited=3),
        "limiter": LimiterConfig(max_pause=0.01),
        "workers": 1,
    }
    # Only what is to hang gets little time: on a busy machine another would seem to hang as well.
    timeout = 30.0 if cell.fault != "hang" else 1.0 if times == 1 else 0.3
    with FakeServer(ANSWER) as server:
        async with running(endpoint(server, timeout=timeout), **settings) as scene:
            server.fail(FAULTS[cell.fault], times=1 if cell.fault == "killed" else times)
            with priority(cell.kind, outage_timeout=0 if times is None else 600):
                made = asyncio.ensure_future(cell.way(scene))
            try:
                if cell.fault == "killed":
                    await kill(server, scene, until=RESTART[cell.column])
                assert await made == ANSWER
                end = "answer"
            except BatchAborted:
                end = "aborted"
            except LMError as error:
                end = type(error).__name__.removeprefix("LM").removesuffix("Error")
            signs = "".join(SIGNS.get(type, "") for type in scene.types("*"))
            return f"{end} {len(server.requests)} {scene.circuit()} {signs}"


@pytest.mark.parametrize("cell", [pytest.param(cell, id=cell.id) for cell in cells()])
async def test_a_call_fares_as_its_cell_says(cell: Cell) -> None:
    assert await observe(cell) == cell.says
