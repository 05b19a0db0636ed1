"""Threads with an event loop: what fails in one reaches its starter, and an end does not wait for ever for one."""

from __future__ import annotations

import asyncio
import errno
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from promptside import ChildSpec, DynamicSupervisor, Endpoint, LMPool
from promptside.actors import Actor, ActorSystem, loop_thread, start_portal
from promptside.events.sinks import JSONLSink
from promptside.testing import MockLM
from tests.support.actors import Worker, outcome, started, turns, until


def pool() -> LMPool:
    return LMPool(Endpoint("mock/a", engine=MockLM({"default": "x"})))


async def node(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        await system.start_node("far")


async def child(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        top = await DynamicSupervisor.start(system)
        await top.start_child(ChildSpec("far", Worker, node="far"))


async def lm_pool(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        await pool().start(system)


async def portal(tmp_path: Path) -> None:
    with start_portal():
        pass


async def pool_in_a_script(tmp_path: Path) -> None:
    with pool():
        pass


async def sink(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        await JSONLSink(tmp_path / "log").start(system.events)


Start = Callable[[Path], Awaitable[None]]
LOOPS: list[Start] = [node, child, lm_pool, portal, pool_in_a_script]


@pytest.mark.parametrize("start", [*LOOPS, sink])
async def test_a_thread_that_cannot_be_started_is_the_starters_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await start(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError("no")])
@pytest.mark.parametrize("start", LOOPS)
async def test_an_event_loop_that_cannot_be_made_is_the_starters_error(
    start: Start, error: BaseException, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(runner: asyncio.Runner) -> None:
        raise error

    before = threading.active_count()
    monkeypatch.setattr(asyncio.Runner, "get_loop", refuse)
    with pytest.raises(type(error)) as raised:
        await start(tmp_path)
    assert raised.value is error
    await until(lambda: threading.active_count() == before)


@pytest.mark.parametrize("start", [node, child, lm_pool])
async def test_the_start_of_a_loop_can_be_cancelled_and_its_thread_has_then_ended(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    go, get_loop = threading.Event(), asyncio.Runner.get_loop

    def late(runner: asyncio.Runner) -> asyncio.AbstractEventLoop:
        go.wait(60)
        return get_loop(runner)

    before = threading.active_count()
    monkeypatch.setattr(asyncio.Runner, "get_loop", late)
    starting = await started(start(tmp_path))
    await until(lambda: threading.active_count() > before)
    starting.cancel()
    await turns()
    assert not starting.done()
    go.set()
    assert isinstance(await outcome(starting), asyncio.CancelledError)
    assert threading.active_count() == before
    assert not caplog.records


def test_a_loop_that_is_told_to_stop_while_it_is_closed_is_closed_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    close = asyncio.Runner.close

    def closing(runner: asyncio.Runner) -> None:
        if threading.current_thread() is thread.thread:
            thread.request_stop()
        close(runner)

    before = threading.active_count()
    monkeypatch.setattr(asyncio.Runner, "close", closing)
    thread = loop_thread.LoopThread("far")
    thread.running.result(60).run_in_executor(None, before.bit_length)
    thread.stop_and_wait()
    assert threading.active_count() == before
    assert not caplog.records


@pytest.mark.parametrize(("library", "module"), [("gevent", "gevent.monkey"), ("eventlet", "eventlet.patcher")])
@pytest.mark.parametrize("start", [*LOOPS, sink])
async def test_threads_that_are_replaced_by_green_ones_are_refused_by_name(
    start: Start, library: str, module: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def is_patched(what: str) -> bool:
        return what in ("threading", "thread")

    marker = SimpleNamespace(is_module_patched=is_patched, is_monkey_patched=is_patched)
    monkeypatch.setitem(sys.modules, module, marker)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=f"^{library} has replaced the threads"):
        await start(tmp_path)
    marker.is_module_patched = marker.is_monkey_patched = lambda what: False
    await start(tmp_path)


# -- ends ----------------------------------------------------------------------------------------------------------


class Blocking(Actor):
    """Blocks its event loop, or a thread of it, until the test lets it go."""

    def __init__(self, go: threading.Event) -> None:
        self.go = go

    async def block(self, entered: threading.Event) -> None:
        entered.set()
        self.go.wait(60)

    async def block_a_thread(self, entered: threading.Event) -> None:
        await asyncio.to_thread(self._wait, entered)

    def _wait(self, entered: threading.Event) -> None:
        entered.set()
        self.go.wait(60)


@pytest.mark.parametrize("method", [Blocking.block, Blocking.block_a_thread])
@pytest.mark.parametrize("supervised", [False, True])
async def test_a_system_ends_although_a_thread_of_a_node_hangs_and_names_it(
    method: Any, supervised: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_thread, "STUCK_AFTER", 2)
    go, entered = threading.Event(), threading.Event()
    before = threading.active_count()
    try:
        async with ActorSystem() as system:
            if supervised:
                top = await DynamicSupervisor.start(system)
                ref = await top.start_child(ChildSpec("far", lambda: Blocking(go), node="far"))
            else:
                far = await system.start_node("far")
                ref = await system.with_options(node=far).spawn(Blocking, go)
            ref.tell(method, entered)
            await asyncio.to_thread(entered.wait, 60)
            monkeypatch.setattr("promptside.actors.lifecycle.KILL_GRACE", 0.01)
            ref.kill()
        told = [each.getMessage() for each in caplog.records if each.name == "promptside.actors"]
        assert any("waits for" in each and "test_loop_threads.py" in each for each in told), told
        assert any("hang" in each or "blocked" in each for each in told), told
        assert system.closed
    finally:
        go.set()
    await until(lambda: threading.active_count() <= before + 1)  # the test's own worker thread may stay


@pytest.mark.parametrize("method", ["block", "block_a_thread"])
def test_a_script_ends_although_a_thread_of_its_portal_hangs_and_names_it(method: str, tmp_path: Path) -> None:
    script = f"""
        import asyncio, logging, threading
        from promptside.actors import Actor, loop_thread, lifecycle, start_portal

        loop_thread.STUCK_AFTER = 2
        lifecycle.KILL_GRACE = 0.01

        class Blocking(Actor, shutdown=0.01):
            async def block(self, entered):
                entered.set()
                threading.Event().wait()

            async def block_a_thread(self, entered):
                await asyncio.to_thread(Blocking._wait, entered)

            def _wait(entered):
                entered.set()
                threading.Event().wait()

        entered = threading.Event()
        try:
            with start_portal("desk") as portal:
                portal.spawn(Blocking).tell(Blocking.{method}, entered)
                entered.wait()
        except RuntimeError as error:
            print(error)
        print("left")
        raise SystemExit(7)
    """
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(script))
    began = time.monotonic()
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 7, done.stderr
    assert "left" in done.stdout
    assert "promptside-desk-portal" in done.stderr
    assert str(path) in done.stderr
    assert time.monotonic() - began < 60


def test_a_worker_thread_of_an_executor_that_was_let_go_does_not_hold_the_interpreter(tmp_path: Path) -> None:
    script = """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        from promptside.threads import let_go, start_thread

        executor, begun = ThreadPoolExecutor(), threading.Event()
        def hang():
            begun.set()
            threading.Event().wait()
        start_thread(lambda: executor.submit(hang), "starter").join()
        begun.wait()
        for each in threading.enumerate():
            if each.name.startswith("ThreadPoolExecutor"):
                assert each.daemon
                let_go(each)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], timeout=60, check=False)
    assert done.returncode == 0


async def test_an_end_that_only_takes_long_on_another_node_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    ends: list[str] = []

    class Slow(Worker):
        async def on_stop(self, reason: object) -> None:
            await asyncio.sleep(1.5)
            ends.append("on_stop")

    with caplog.at_level(logging.WARNING):
        async with ActorSystem() as system:
            await system.with_options(node=await system.start_node("far")).spawn(Slow)
    assert ends == ["on_stop"]
    assert caplog.records == []
