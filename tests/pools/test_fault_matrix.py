"""What becomes of one call under each fault: by thread, coroutine or stream, for a server or a run, passing or lasting.

The tables say all of it, one cell a test: how the call ended, how many requests reached the provider, the circuit, and
what the bus told. A call makes up to three attempts, and three failures open the circuit.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from dspy.lm15 import Message, Request
from dspy.utils.exceptions import LMError

from promptside import Event
from promptside.pools import BreakerConfig, LimiterConfig, RetryPolicy, caller
from promptside.pools.engine import AsyncPoolEngine
from promptside.pools.runs import RunAborted
from promptside.testing import FakeServer, Fault
from tests.pools.scene import Scene, endpoint, running

ANSWER = "one two three"

FAULTS = {
    "429": Fault.status(429),
    "429 after 0.02": Fault.status(429, retry_after=0.02),
    "500": Fault.status(500),
    "529": Fault.status(529),
    "hang": Fault.hang(),
    "reset": Fault.reset(),
    "half body": Fault.half_body(),
    "malformed": Fault.malformed(),
    "empty": Fault.empty_choices(),
    "cut": Fault.cut_stream(1),
    "slow tokens": Fault.slow_tokens(0.01),
    "killed": Fault.hang(),  # and then the server is killed: for good, or until the attempt has failed
}
"""The rows of the tables."""

# A cell: how the call ended ("LM...Error" by what is between), requests that reached the provider, the circuit, events.
# Events: - attempt failed, + attempt answered, o circuit opened, l limiter changed, . call answered, ! call failed.
# Threads and coroutines fare alike, so that they share the table of whole answers.
WHOLE = """
fault          | passing                | lasting                           | lasting, of a run
429            | answered 2 closed l-+. | RateLimit 3 closed l-l-l-!        | aborted 3 closed l-l-l-!
429 after 0.02 | answered 2 closed l-+. | RateLimit 3 closed l-l-l-!        | aborted 3 closed l-l-l-!
500            | answered 2 closed -+.  | Server 3 open --o-!               | aborted 3 open --o-!
529            | answered 2 closed -+.  | Server 3 open --o-!               | aborted 3 open --o-!
hang           | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
reset          | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
half body      | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
malformed      | answered 2 closed -+.  | Provider 3 open --o-!             | aborted 3 open --o-!
empty          | answered 2 closed -+.  | Provider 3 open --o-!             | aborted 3 open --o-!
cut            | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
slow tokens    | answered 1 closed +.   | answered 1 closed +.              | answered 1 closed +.
killed         | answered 2 closed -+.  | Transport 1 open --o-!            | aborted 1 open --o-!
"""
STREAMED = """
fault          | passing                | lasting                           | lasting, of a run
429            | answered 2 closed l-+. | RateLimit 3 closed l-l-l-!        | aborted 3 closed l-l-l-!
429 after 0.02 | answered 2 closed l-+. | RateLimit 3 closed l-l-l-!        | aborted 3 closed l-l-l-!
500            | answered 2 closed -+.  | Server 3 open --o-!               | aborted 3 open --o-!
529            | answered 2 closed -+.  | Server 3 open --o-!               | aborted 3 open --o-!
hang           | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
reset          | answered 2 closed -+.  | Transport 3 open --o-!            | aborted 3 open --o-!
half body      | Transport 1 closed -!  | Transport 1 closed -!             | Transport 1 closed -!
malformed      | answered 2 closed -+.  | Provider 3 open --o-!             | aborted 3 open --o-!
empty          | answered 2 closed -+.  | Provider 3 open --o-!             | aborted 3 open --o-!
cut            | Transport 1 closed -!  | Transport 1 closed -!             | Transport 1 closed -!
slow tokens    | answered 1 closed +.   | answered 1 closed +.              | answered 1 closed +.
killed         | answered 2 closed -+.  | Transport 1 open --o-!            | aborted 1 open --o-!
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


@dataclass(frozen=True)
class Cell:
    """One cell, with where it stands."""

    fault: str
    column: str
    says: str


def cells(table: str) -> list[Any]:
    head, *rows = [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]
    assert [row[0] for row in rows] == list(FAULTS)
    found = [Cell(row[0], column, says) for row in rows for column, says in zip(head[1:], row[1:], strict=True)]
    return [pytest.param(cell, id=f"{cell.fault}-{cell.column}") for cell in found]


async def in_thread(scene: Scene) -> str:
    (answer,) = await asyncio.to_thread(scene.lm, "hello")
    return str(answer)


async def in_coroutine(scene: Scene) -> str:
    (answer,) = await scene.lm.acall("hello")
    return str(answer)


async def in_stream(scene: Scene) -> str:
    asked = Request(model=scene.lm.model, messages=(Message.user("hello"),))
    events = [event async for event in AsyncPoolEngine(scene.pool).stream(asked)]
    return "".join(event.delta.text for event in events if event.type == "delta")


async def kill(server: FakeServer, scene: Scene, *, for_good: bool) -> None:
    """Kill the server under the call; it is there again before the next attempt, or never."""
    gone = threading.Event()
    if not for_good:

        def restart(event: Event) -> None:
            assert gone.wait(10)
            server.start()

        scene.system.events.on("lm.attempt.failed")(restart)
    await server.until(lambda: server.active == 1)
    server.close()
    gone.set()


async def observe(call: Callable[[Scene], Awaitable[str]], cell: Cell) -> str:
    """What the cell should say."""
    lasting = cell.column.startswith("lasting")
    settings: dict[str, Any] = {
        "breaker": BreakerConfig(minimum_calls=3, open_for=60.0),
        "retry": RetryPolicy(attempts=3, base=0, limited=3),
        "limiter": LimiterConfig(pause=0.01, max_pause=0.01, jitter=0),
        "workers": 1,
    }
    # Only what is to hang gets little time: on a busy machine another would seem to hang as well.
    timeout = 30.0 if cell.fault != "hang" else 0.3 if lasting else 1.0
    with FakeServer(ANSWER) as server:
        async with running(endpoint(server, timeout=timeout), **settings) as scene:
            server.fail(FAULTS[cell.fault], times=None if lasting and cell.fault != "killed" else 1)
            killing = kill(server, scene, for_good=lasting) if cell.fault == "killed" else asyncio.sleep(0)
            kind = "batch" if cell.column.endswith("of a run") else "serving"
            with caller(kind, patience=0):
                made = asyncio.create_task(call(scene))
            try:
                await killing
                assert await made == ANSWER
                end = "answered"
            except RunAborted:
                end = "aborted"
            except LMError as error:
                end = type(error).__name__.removeprefix("LM").removesuffix("Error")
            signs = "".join(SIGNS.get(type, "") for type in scene.types("*"))
            return f"{end} {len(server.requests)} {scene.circuit()} {signs}"


@pytest.mark.parametrize("cell", cells(WHOLE))
async def test_a_call_of_a_thread_fares_as_the_table_says(cell: Cell) -> None:
    assert await observe(in_thread, cell) == cell.says


@pytest.mark.parametrize("cell", cells(WHOLE))
async def test_a_call_of_a_coroutine_fares_as_the_table_says(cell: Cell) -> None:
    assert await observe(in_coroutine, cell) == cell.says


@pytest.mark.parametrize("cell", cells(STREAMED))
async def test_a_stream_fares_as_the_table_says(cell: Cell) -> None:
    assert await observe(in_stream, cell) == cell.says


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_passing_fault_is_the_same_to_a_run_as_to_a_server(fault: str) -> None:
    (says,) = (param.values[0].says for param in cells(WHOLE) if param.id == f"{fault}-passing")
    assert await observe(in_coroutine, Cell(fault, "passing, of a run", says)) == says
