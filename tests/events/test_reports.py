"""What the library logs: a few lines and a sum, which never lead to further lines, whatever a log handler does."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from promptside import ActorRef, ActorSystem, Event, MailboxFull, clock
from promptside.events.reports import WINDOW, Reports
from promptside.events.sinks import StructlogSink
from promptside.testing import run_virtual
from tests.support.actors import Worker, busy, turns, until

logger = logging.getLogger("promptside")


class Handler(logging.Handler):
    """Counts lines, and does with each what a test says."""

    def __init__(self, does: Callable[[str], object] = lambda line: None) -> None:
        super().__init__()
        self.does = does
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        self.does(record.getMessage())


@pytest.fixture
def handler() -> Iterator[Handler]:
    made = Handler()
    logging.getLogger().addHandler(made)
    yield made
    logging.getLogger().removeHandler(made)


class Now:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1_000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.seconds)


async def flood(system: ActorSystem, number: int) -> None:
    ref = await system.spawn(Worker)
    await ref.stop()
    for each in range(number):
        ref.tell(Worker.note, each)


async def test_thousands_of_dead_letters_are_a_few_lines_and_a_sum(handler: Handler) -> None:
    async with ActorSystem() as system:
        await flood(system, 5_000)
        assert system.dead_letters == 5_000
        assert len(handler.lines) == 10
    assert len(handler.lines) == 11
    assert handler.lines[-1] == "message.dead: 4,990 more, which were counted and not logged one by one"


def test_the_sum_comes_when_the_window_is_over_though_nothing_else_happens(handler: Handler) -> None:
    async def main() -> None:
        async with ActorSystem() as system:
            await flood(system, 100)
            await asyncio.sleep(WINDOW + 1)
            assert handler.lines[-1].startswith("message.dead: 90 more")
            await flood(system, 1)
            assert handler.lines[-1].startswith("message.dead from worker")

    run_virtual(main())
    assert len(handler.lines) == 12


def test_without_an_event_loop_the_sum_comes_with_the_next_line(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, reports = Now(monkeypatch), Reports(logger)
    for number in range(15):
        reports.write("losses", logging.WARNING, f"lost {number}")
    reports.write("others", logging.WARNING, "another kind", lines=1)
    now.seconds += WINDOW
    reports.write("losses", logging.WARNING, "lost again")
    reports.close()

    assert handler.lines[10:] == [
        "another kind",
        "losses: 5 more, which were counted and not logged one by one",
        "lost again",
    ]


class Lines(Worker, mailbox=5, overflow="drop_oldest"):
    pass


class Newest(Lines, overflow="drop_newest"):
    pass


class Refusing(Lines, overflow="reject"):
    pass


class Several(Lines, max_concurrency=2):
    pass


@pytest.mark.parametrize("kind", [Lines, Newest, Refusing, Several])
@pytest.mark.parametrize("place", ["here", "far"])
@pytest.mark.parametrize("ended", [False, True])
async def test_a_log_handler_may_tell_an_actor_that_is_full_or_ended(
    kind: type[Worker], place: str, ended: bool, handler: Handler
) -> None:
    async with ActorSystem() as system:
        node = await system.start_node("far") if place == "far" else system.home
        ref = await system.with_options(node=node).spawn(kind)
        ref.suspend()
        if ended:
            await ref.stop()

        def tell(line: str) -> None:
            ref.tell(Worker.note, line)

        handler.does = tell
        refused = 0
        for number in range(100):
            try:
                logging.getLogger("app").warning("line %d", number)
            except MailboxFull:  # of the application's own line, by the policy that it has chosen
                refused += 1
        await turns()
        lost = 100 if ended else 95
        await until(lambda: system.dead_letters + refused >= lost)
        assert system.dead_letters + refused <= lost + 40
        assert len(handler.lines) <= 140
        handler.does = lambda line: None
        ref.kill()


async def test_a_log_handler_may_publish_and_a_hook_may_log(handler: Handler) -> None:
    async with ActorSystem() as system:

        @system.events.on("*")
        def log(event: Event) -> None:
            logging.getLogger("app").warning("heard %s", event.type)

        handler.does = lambda line: system.events.publish("app.line", "app", {"line": line})
        system.events.publish("app.began", "app")

        assert handler.lines == ["heard app.began"]
        assert log.dropped == 1  # type: ignore[attr-defined]
        handler.does = lambda line: None


async def test_a_hook_that_fails_does_not_hear_of_its_own_failure(handler: Handler) -> None:
    async with ActorSystem() as system:

        async def broken(event: Event) -> None:
            raise ValueError(event.seq)

        hook = system.events.on("*", broken)
        handler.does = lambda line: system.events.publish("app.line", "app")
        system.events.publish("app.began", "app")
        await until(lambda: hook.dropped == 1)
        assert (hook.failures, len(handler.lines)) == (1, 1)
        handler.does = lambda line: None


class Flapping:
    """A stream of which every second write fails."""

    def __init__(self) -> None:
        self.writes = 0

    def isatty(self) -> bool:
        return False

    def write(self, text: str) -> None:
        self.writes += 1
        if self.writes % 2:
            raise OSError("the disk is full")

    def flush(self) -> None:
        pass


async def test_a_sink_that_fails_again_and_again_where_its_lines_are_events_is_bounded(handler: Handler) -> None:
    async with ActorSystem() as system:
        stream = Flapping()
        await StructlogSink(stream, interval=0.0).start(system.events)  # type: ignore[arg-type]
        handler.does = lambda line: system.events.publish("app.line", "app")
        for _ in range(30):
            writes = stream.writes
            system.events.publish("app.began", "app")
            await until(lambda writes=writes: stream.writes >= writes + 2)
        handler.does = lambda line: None
        assert len(handler.lines) <= 22


@pytest.mark.parametrize("error", [ValueError("full"), asyncio.CancelledError(), RecursionError(), GeneratorExit()])
async def test_a_log_handler_that_raises_disturbs_no_crash_and_no_restart(
    error: BaseException, handler: Handler
) -> None:
    def fail(line: str) -> None:
        raise error

    async with ActorSystem() as system:
        ref: ActorRef[Any] = await system.spawn(Worker)
        gate, task = await busy(ref)
        handler.does = fail
        ref.tell(Worker.fail, ValueError("crash"))
        gate.open.set()
        assert await task == "passed"
        await until(lambda: ref.state.value == "stopped")
        await flood(system, 3)
        handler.does = lambda line: None
    assert len(handler.lines) == 4


async def test_a_finalizer_that_tells_goes_on_while_its_thread_counts_or_looks_up_names() -> None:
    async with ActorSystem() as system:
        ref = await system.with_options(name="clerk").spawn(Worker)
        await ref.stop()
        runtime = system._runtime
        done = threading.Event()

        def interrupted() -> None:
            with runtime._counting, runtime.registry._lock, system.events._lock:
                ref.tell(Worker.note, 1)
                system.leave("group", ref)
                done.set()

        await asyncio.wait_for(asyncio.to_thread(interrupted), 60)
        assert done.is_set()
        await until(lambda: system.dead_letters == 1)


@pytest.mark.parametrize("cause", ["publish", "dead letter"])
async def test_an_asynchronous_hook_does_not_hear_what_it_causes_itself(cause: str) -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)
        await ref.stop()
        heard: list[str] = []

        async def alert(event: Event) -> None:
            heard.append(event.type)
            if cause == "publish":
                system.events.publish("app.alert", "app")
            else:
                ref.tell(Worker.note, event.type)
            await asyncio.sleep(0)

        hook = system.events.on("*", alert)
        for _ in range(3):
            system.events.publish("app.began", "app")
        await until(lambda: hook.dropped == 3)
        system.events.publish("app.ended", "app")
        await until(lambda: hook.dropped == 4)
        assert heard == ["app.began"] * 3 + ["app.ended"]


HOLDING = """
import logging, os, signal, sys, threading, warnings
from promptside.events.reports import Reports
warnings.simplefilter("ignore")  # that there are threads: it is what this is about

held, done = threading.Event(), threading.Event()
def hold():
    with Reports._lock:
        held.set()
        done.wait(60)

thread = threading.Thread(target=hold)
thread.start()
held.wait(60)
pid = os.fork()
if pid == 0:
    signal.alarm(30)  # it ends, too, where the lock is held for ever
    Reports(logging.getLogger("promptside")).write("forks", logging.ERROR, "told in the fork")
    os._exit(3)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
done.set()
thread.join()
sys.exit(code)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_fork_reports_while_a_thread_of_its_parent_does() -> None:
    done = subprocess.run([sys.executable, "-c", HOLDING], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.strip()) == (3, "told in the fork")
