"""Where nothing would ever be handled, a message is refused at once: a loop that was stopped, another loop, a fork."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from promptside import Endpoint, LMPool, Program, Supervisor, TaskSupervisor
from promptside.actors import ActorRef, ActorSystem, Portal
from promptside.errors import ActorStopped
from promptside.pools import PoolUnavailable
from promptside.testing import MockLM
from tests.support.actors import Worker

# -- a loop that does not run ---------------------------------------------------------------------------------------


async def nothing() -> None: ...


class Left:
    """A system that was entered by hand, on a loop that was stopped; closed at the end of the test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.enter())

    async def enter(self) -> None:
        self.system = await ActorSystem().__aenter__()
        self.ref = (await self.system.spawn(Worker)).with_options(timeout=math.inf)
        self.tasks = await TaskSupervisor().start(self.system)
        model = MockLM({"default": "Paris"})
        self.pool = await LMPool(Endpoint("mock/a", engine=model)).start(self.system, node=self.system.home)
        lm = self.pool.lm(cache=False)
        self.program = await Program(lambda: dspy.Predict("question -> answer"), lm=lm).start(self.system)

    def close(self) -> None:
        self.loop.run_until_complete(self.system.__aexit__(None, None, None))
        self.loop.close()


ASYNC_WAYS: list[Callable[[Left], Any]] = [
    lambda left: left.ref.ask(Worker.add, 1),
    lambda left: left.ref.deliver(Worker.add, 1),
    lambda left: anext(left.ref.stream(Worker.count_to, 1)),
    lambda left: left.ref.stop(),
    lambda left: left.system.spawn(Worker),
    lambda left: left.system.start_node("far"),
    lambda left: left.system.drain(1),
    lambda left: Supervisor.start(left.system),
    lambda left: left.tasks.run(nothing),
    lambda left: left.program.acall(question="?"),
    lambda left: left.pool.lm(cache=False).acall("?"),
    lambda left: left.pool.stop(),
    lambda left: left.system.__aexit__(None, None, None),
]
SYNC_WAYS: list[Callable[[Left], Any]] = [
    lambda left: left.ref.tell(Worker.add, 1),
    lambda left: left.ref.send_message("x"),
    lambda left: left.ref.kill(),
    lambda left: left.ref.suspend(),
    lambda left: left.ref.resume(),
    lambda left: left.tasks.start_soon(nothing),
    lambda left: Portal(left.system).ask(left.ref, Worker.add, 1),
    lambda left: Portal(left.system).spawn(Worker),
    lambda left: left.program(question="?"),
    lambda left: left.pool.lm(cache=False)("?"),
]
REFUSED = (ActorStopped, PoolUnavailable, RuntimeError)


@pytest.mark.parametrize("elsewhere", ["the same thread", "another thread"])
def test_what_is_sent_to_a_loop_that_does_not_run_is_refused_at_once(elsewhere: str) -> None:
    left, answers = Left(), []
    before = left.ref.info()

    def try_all() -> None:
        for number, way in enumerate(SYNC_WAYS):
            try:
                answers.append((number, way(left)))
            except REFUSED as error:
                answers.append((number, str(error)))
        for number, way in enumerate(ASYNC_WAYS):
            try:
                answers.append((100 + number, asyncio.run(in_a_moment(way(left)))))
            except REFUSED as error:
                answers.append((100 + number, str(error)))

    async def in_a_moment(work: Any) -> Any:
        async with asyncio.timeout(30):
            return await work

    if elsewhere == "another thread":
        thread = threading.Thread(target=try_all)
        thread.start()
        thread.join()
    else:
        try_all()

    assert [answer for answer in answers if "does not run now" not in str(answer)] == []
    left.loop.run_until_complete(asyncio.sleep(0))
    assert left.ref.info().handled == before.handled, "it was handled later"
    assert left.loop.run_until_complete(left.ref.ask(Worker.add, 1)) == 1
    left.close()


async def test_a_timer_of_an_actor_is_set_on_its_own_loop() -> None:
    async with ActorSystem() as system:
        ref = await system.spawn(Worker)

        async def from_a_thread(worker: Worker) -> None:
            await asyncio.to_thread(worker.tell_after, 0, Worker.add, 1)

        with pytest.raises(RuntimeError, match="set in a thread or on another event loop"):
            await ref.ask(Worker.call, from_a_thread)


# -- a fork --------------------------------------------------------------------------------------------------------

IN_CHILD = """
import asyncio, json, logging, multiprocessing, os, sys, threading, warnings
from pathlib import Path
import dspy
from promptside import Actor, ActorSystem, Endpoint, LMPool, Program, TaskSupervisor
from promptside.actors import Portal, start_portal
from promptside.events import read
from promptside.events.sinks import SQLiteSink
from promptside.testing import MockLM

warnings.simplefilter("ignore")  # that there are threads: it is what this is about
logging.disable(logging.CRITICAL)

class Clerk(Actor):
    async def hello(self): return os.getpid()
    async def items(self): yield os.getpid()
    async def set_a_timer(self): self.tell_after(0, Clerk.hello)

async def nothing(): ...

def try_all(parts):
    system, ref, tasks, lm, program, portal = parts
    seen = {}
    def attempt(name, what):
        try:
            answer = what()
            if asyncio.iscoroutine(answer):
                async def bounded():
                    async with asyncio.timeout(20):
                        return await answer
                answer = asyncio.run(bounded())
            seen[name] = f"gave {answer!r}"
        except Exception as error:
            seen[name] = f"{type(error).__name__}: {error}"
    attempt("tell", lambda: ref.tell(Clerk.hello))
    attempt("message", lambda: ref.send_message(1))
    attempt("ask", lambda: ref.ask(Clerk.hello))
    attempt("deliver", lambda: ref.deliver(Clerk.hello))
    attempt("stream", lambda: anext(ref.stream(Clerk.items)))
    attempt("kill", lambda: ref.kill())
    attempt("stop", lambda: ref.stop())
    attempt("spawn", lambda: system.spawn(Clerk))
    attempt("portal", lambda: portal.ask(ref, Clerk.hello))
    attempt("task", lambda: tasks.run(nothing))
    attempt("start_soon", lambda: tasks.start_soon(nothing))
    attempt("lm", lambda: lm("?"))
    attempt("async lm", lambda: lm.acall("?"))
    attempt("program", lambda: program(question="?"))
    attempt("async program", lambda: program.acall(question="?"))
    attempt("hook", lambda: system.events.on("*", print))
    attempt("sink", lambda: SQLiteSink("x.db").start(system.events))
    attempt("close", lambda: system.__aexit__(None, None, None))
    before = seen.copy()
    system.events.publish("from.child", "child")
    with start_portal() as own:
        seen["own system"] = own.ask(own.spawn(Clerk), Clerk.hello) == os.getpid()
    return seen

async def main(how, folder):
    log = Path(folder) / "run.db"
    async with ActorSystem() as system:
        await SQLiteSink(log, interval=30).start(system.events)
        ref = await system.spawn(Clerk)
        pool = await LMPool(Endpoint("mock/a", engine=MockLM({"default": "Paris"}))).start(system)
        lm = pool.lm(cache=False)
        program = await Program(lambda: dspy.Predict("question -> answer"), lm=lm).start(system)
        tasks = await TaskSupervisor().start(system)
        await program.acall(question="?")
        parts = (system, ref, tasks, lm, program, Portal(system))
        for n in range(5):
            system.events.publish("from.parent", "parent", {"n": n})
        told = Path(folder) / "told.json"
        def child():
            told.write_text(json.dumps(try_all(parts)))
        if how == "os.fork in the loop":
            pid = os.fork()
            if pid == 0:
                thread = threading.Thread(target=child)  # a thread without the loop, which asyncio believes to run here
                thread.start(); thread.join()
                os._exit(3)
            code = os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, pid, 0))[1])
        elif how == "os.fork in a thread":
            def fork():
                pid = os.fork()
                if pid == 0:
                    try: child()
                    finally: os._exit(3)
                return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            code = await asyncio.to_thread(fork)
        else:
            process = multiprocessing.get_context("fork").Process(target=child)
            process.start()
            await asyncio.to_thread(process.join)
            code = process.exitcode + 3
        alive = await ref.ask(Clerk.hello) == os.getpid() and (await program.acall(question="?")).answer == "Paris"
    logged = [event.data["n"] for event in read(log, type="from.parent")]
    print(json.dumps({"seen": json.loads(told.read_text()), "code": code, "alive": alive, "logged": logged}))

asyncio.run(main(sys.argv[1], sys.argv[2]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("how", ["os.fork in the loop", "os.fork in a thread", "multiprocessing"])
def test_a_fork_is_told_at_once_and_harms_nothing(how: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IN_CHILD, how, str(tmp_path)], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    seen = told["seen"]
    assert seen.pop("own system") is True
    assert {name: answer for name, answer in seen.items() if "fork" not in answer} == {}
    assert (told["alive"], told["logged"]) == (True, list(range(5)))
    assert told["code"] == 3, done.stderr


LEAVING = """
import logging, os, sys, warnings
from promptside import Actor, Endpoint, LMPool
from promptside.actors import start_portal
from promptside.testing import MockLM

warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

class Clerk(Actor):
    async def hello(self): return os.getpid()

def leave(how):
    if how == "sys.exit":
        sys.exit(3)
    if how == "an error":
        raise KeyError("mine")

how, pid = sys.argv[1], None
try:
    with start_portal() as portal, LMPool(Endpoint("mock/a", engine=MockLM({"default": "Paris"}))) as pool:
        clerk, lm = portal.spawn(Clerk), pool.lm(cache=False)
        pid = os.fork()
        if pid == 0:
            leave(how)
        else:
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            alive = portal.ask(clerk, Clerk.hello) == os.getpid() and lm("?") == ["Paris"]
except KeyError:
    os._exit(3)
if pid == 0:
    os._exit(3)
print(code, alive)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("how", ["the end of the block", "sys.exit", "an error"])
def test_a_fork_that_leaves_the_block_of_its_parents_system_ends_nothing(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, how], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.stdout.split() == ["3", "True"], done.stderr


def test_another_loop_in_the_thread_of_a_closed_system_reaches_nobody() -> None:
    refs: list[ActorRef[Worker]] = []

    async def first() -> None:
        async with ActorSystem() as system:
            refs.append(await system.spawn(Worker))

    async def second() -> None:
        for way in (refs[0].ask(Worker.add, 1), refs[0].deliver(Worker.add, 1)):
            with pytest.raises(ActorStopped):
                await way

    asyncio.run(first())
    asyncio.run(second())
