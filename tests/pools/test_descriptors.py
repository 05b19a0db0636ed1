"""Descriptors and memory of an LM pool are bounded, however many calls there are; a low limit is found at the start."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import dspy
import pytest

from promptside import ActorSystem
from promptside.errors import ActorStartError
from promptside.pools import Endpoint, LMPool, TooFewDescriptors
from promptside.supervision import Supervisor
from promptside.testing import FakeServer, Fault, MockLM
from tests.support.pools import KEY, endpoint, running

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors are counted in /proc")

WORKERS, WIDTH = 2, 25


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("calls", [300, 1_000])
async def test_concurrent_calls_share_the_connections_and_wait_for_them(calls: int) -> None:
    async with (
        FakeServer("hello") as server,
        running(endpoint(server, max_connections=WIDTH), workers=WORKERS) as scene,
    ):
        assert await scene.lm.acall("the first") == ["hello"]
        before = open_descriptors()
        server.fail(Fault.hang(), times=WORKERS * WIDTH)
        under_way = [asyncio.create_task(scene.lm.acall(f"question {number}")) for number in range(calls)]
        await server.until(lambda: server.active == WORKERS * WIDTH)
        # The server is in this process, too: a connection has two ends.
        assert open_descriptors() <= before + 2 * WORKERS * WIDTH
        server.release()
        assert await asyncio.gather(*under_way) == [["hello"]] * calls
        assert server.max_active == WORKERS * WIDTH
        assert server.total_connections == WORKERS * WIDTH, "connections are used again"
    assert open_descriptors() < before, "nothing outlives the pool and the server"


async def test_memory_does_not_grow_with_the_calls_that_were_made() -> None:
    calls = 100
    async with (
        FakeServer("hello") as server,
        running(endpoint(server, max_connections=WIDTH), workers=WORKERS) as scene,
    ):

        async def ask_all() -> tuple[int, int]:
            """The bytes at the most, and those that are left."""
            tracemalloc.reset_peak()
            await asyncio.gather(*(scene.lm.acall(f"question {number}") for number in range(calls)))
            server.requests.clear()
            scene.told.clear()
            peak = tracemalloc.get_traced_memory()[1]
            gc.collect()
            return peak, tracemalloc.get_traced_memory()[0]

        with dspy.context(disable_history=True):
            await ask_all()
            tracemalloc.start()
            try:
                peaks, left = zip(*[await ask_all() for _ in range(5)], strict=True)
            finally:
                tracemalloc.stop()
    # Measured: 35 KiB for each that waits, client, server and test together; 0.1 KiB for each that was answered,
    # which the breaker counts for a minute.
    assert min(peaks) < calls * 64 * 1024
    assert left[-1] - left[0] < 4 * calls * 1024


LIMITED = """
import asyncio, json, os, resource, sys
import dspy
from promptside import ActorSystem
from promptside.pools import Endpoint, LMPool, RetryConfig, TooFewDescriptors

resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def pool(name, width, **settings):
    return LMPool([Endpoint("openai/fake", api_base=sys.argv[1], api_key="none", max_connections=width)], name=name,
                  **settings)

"""


def limited(url: str, script: str) -> Any:
    """What the script prints, run in a process that may have 256 descriptors open."""
    done = subprocess.run(
        [sys.executable, "-c", f"{LIMITED}\n{script}\nasyncio.run(main())", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_pool_that_could_need_more_than_the_limit_is_refused_at_its_start_with_the_remedy() -> None:
    script = """
async def main():
    async with ActorSystem() as system:
        try:
            await pool("lm", 150).start(system)
        except TooFewDescriptors as error:
            nodes = [child.name for child in system.tree().children]
            print(json.dumps([str(error), error.limit, error.wanted, nodes]))
"""
    text, limit, wanted, nodes = limited("http://127.0.0.1:9/v1", script)
    assert limit == 256
    assert wanted > 300
    assert nodes == []
    for part in ("'lm'", "300 connections", "workers=2", "max_connections=150", "RLIMIT_NOFILE", f"ulimit -n {wanted}"):
        assert part in text


async def test_below_a_limit_that_fits_a_thousand_calls_are_answered_and_no_descriptor_is_missing() -> None:
    script = """
async def main():
    async with ActorSystem() as system:
        lm = (await pool("lm", 80).start(system)).lm(cache=False)
        answers = await asyncio.gather(*(lm.acall(f"question {n}") for n in range(1_000)), return_exceptions=True)
        print(json.dumps([answers.count(["hello"]), len(os.listdir("/proc/self/fd"))]))
"""
    async with FakeServer("hello") as server:
        answered, descriptors = await asyncio.to_thread(limited, server.url, script)
        assert answered == 1_000
        assert descriptors <= 256
        assert server.max_connections <= 160


async def test_descriptors_that_the_application_used_up_are_an_error_of_the_call_and_not_of_the_pool() -> None:
    script = """
async def main():
    async with ActorSystem() as system:
        once = RetryConfig(attempts=1)
        first = await pool("first", 10).start(system)
        await first.lm(cache=False).acall("imports what a call needs")
        lm = (await pool("lm", 10, retry=once).start(system)).lm(cache=False)
        files = []
        try:
            while True:
                files.append(open(os.devnull))
        except OSError:
            pass
        try:
            await lm.acall("without a descriptor")
        except Exception as error:
            failed = [type(error).__name__, isinstance(error, dspy.LMError), isinstance(error, OSError)]
        for file in files:
            file.close()
        print(json.dumps([failed, await lm.acall("with one again")]))
"""
    async with FakeServer("hello") as server:
        failed, answer = await asyncio.to_thread(limited, server.url, script)
        assert failed == ["LMTransportError", True, False]
        assert answer == ["hello"]


async def test_only_connections_of_this_process_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    async with ActorSystem() as system:
        await LMPool([Endpoint("mock/mock", engine=MockLM("hello"), max_connections=1_000)]).start(system)
        big = LMPool([Endpoint("openai/fake", api_key=KEY, max_connections=1_000)], name="big")
        with pytest.raises(TooFewDescriptors):
            await big.start(system)
        with pytest.raises(ActorStartError, match="2000 connections"):
            await system.spawn(Supervisor, [big.child_spec()])


async def test_where_there_is_no_limit_any_width_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    async with ActorSystem() as system:
        await LMPool([Endpoint("openai/fake", api_key=KEY, max_connections=10**6)]).start(system)
