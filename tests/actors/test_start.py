"""Start: acknowledged, refused with its cause, and usable from `__init__` on."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any

import pytest

from promptside.actors import Actor, ActorRef, ActorSystem, Down, State
from promptside.errors import ActorStartError, ActorStopped, AskCycleError, MailboxFull
from promptside.supervision import ChildSpec, Supervisor
from tests.support.actors import Boom, Gate, Worker, busy, outcome, started, turns, until


async def test_spawn_returns_after_on_start_has_returned() -> None:
    gate = Gate()

    class Starting(Worker):
        async def on_start(self) -> None:
            await gate.walk()

    async with ActorSystem() as system:
        spawn = await started(system.spawn(Starting))
        await turns(20)
        assert not spawn.done()
        gate.open.set()
        ref = await spawn
        assert ref.info().state is State.RUNNING


@pytest.mark.parametrize("where", ["__init__", "on_start"])
async def test_a_failing_start_raises_with_its_cause_and_leaves_nothing(where: str) -> None:
    boom = Boom("no")

    class Failing(Worker):
        def __init__(self) -> None:
            super().__init__()
            if where == "__init__":
                raise boom

        async def on_start(self) -> None:
            await asyncio.sleep(0)
            raise boom

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError) as raised:
            await system.with_options(name="failing").spawn(Failing)
        assert raised.value.__cause__ is boom
        assert raised.value.path == "failing"
        assert "Boom: no" in str(raised.value)
        assert system.tree().children == ()
        await system.with_options(name="failing").spawn(Worker)


async def test_an_expected_exception_in_on_start_is_a_failed_start_all_the_same() -> None:
    class Failing(Worker, expected=(Boom,)):
        async def on_start(self) -> None:
            raise Boom

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError):
            await system.spawn(Failing)


async def test_on_stop_does_not_run_for_an_actor_that_did_not_start() -> None:
    log: list[object] = []

    class Failing(Worker):
        async def on_start(self) -> None:
            raise Boom

        async def on_stop(self, reason: object) -> None:
            log.append(reason)

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError):
            await system.spawn(Failing)
    assert log == []


async def test_the_children_of_an_actor_that_did_not_start_are_stopped() -> None:
    children: list[ActorRef[Worker]] = []

    class Failing(Worker):
        async def on_start(self) -> None:
            children.append(await self.spawn(Worker))
            raise Boom

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError):
            await system.spawn(Failing)
        assert children[0].info().state is State.STOPPED
        assert system.tree().children == ()


async def test_wrong_arguments_are_a_start_error_that_names_them() -> None:
    async with ActorSystem() as system:
        with pytest.raises(ActorStartError, match="unexpected keyword argument"):
            await system.spawn(Worker, nonsense=1)  # type: ignore[call-arg]


async def test_what_is_not_an_actor_is_refused_with_the_remedy() -> None:
    kept = Worker()
    async with ActorSystem() as system:
        for factory, text in (
            (dict, "must return an Actor"),
            (lambda: kept, "a new actor at each call"),
            (kept, "class"),
            ("Worker", "class"),
        ):
            with pytest.raises((ActorStartError, TypeError), match=text):
                await system.spawn(factory)  # type: ignore[arg-type]
        assert system.tree().children == ()


async def test_ref_and_system_are_there_in_init() -> None:
    seen: list[object] = []

    class Curious(Worker):
        def __init__(self) -> None:
            super().__init__()
            seen.extend([self.ref, self.system])

    async with ActorSystem() as system:
        ref = await system.spawn(Curious)
        assert seen == [ref, system]


async def test_an_actor_made_within_another_ones_init_is_a_plain_object() -> None:
    class Outer(Worker):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Worker()

        async def inner_has_ref(self) -> bool:
            try:
                return self.inner.ref is not None
            except RuntimeError:
                return False

    async with ActorSystem() as system:
        outer = await system.spawn(Outer)
        assert await outer.ask(Outer.inner_has_ref) is False


class Starting(Worker):
    """Has what the test gives run in its `__init__` and its `on_start`."""

    def __init__(self, making: Callable[[Any], object], starting: Callable[[Any], Awaitable[object]]) -> None:
        super().__init__()
        self.starting = starting
        making(self)

    async def on_start(self) -> None:
        await self.starting(self)
        self.seen.append("started")


class WideStarting(Starting, max_concurrency=4): ...


async def from_outside(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has taken its first steps, and not on behalf of the actor."""
    task = asyncio.get_running_loop().create_task(work, context=Context())
    await turns(3)
    return task


def note(actor: Worker) -> None:
    actor.ref.tell(Worker.note, "told")


@pytest.mark.parametrize("kind", [Starting, WideStarting])
async def test_what_is_sent_while_an_actor_starts_is_handled_after_on_start_in_its_order(kind: type[Starting]) -> None:
    asked: list[asyncio.Task[Any]] = []

    async def send(actor: Worker) -> None:
        asked.append(await from_outside(actor.ref.ask(Worker.add, 5)))
        asked.append(await from_outside(actor.ref.deliver(Worker.note, "delivered")))
        actor.ref.send_message("sent")
        await asyncio.to_thread(actor.ref.tell, Worker.note, "by a thread")
        await turns()

    async with ActorSystem() as system:
        ref = await system.spawn(kind, note, send)
        notes = await ref.ask(Worker.notes)
        assert notes == ["started", "told", "delivered", "sent", "by a thread"]
        assert await asked[0] == 5
        assert system.dead_letters == 0


@pytest.mark.parametrize("kind", [Starting, WideStarting])
async def test_an_actor_that_asks_itself_in_on_start_or_is_asked_by_whom_it_waits_for_is_told_at_once(
    kind: type[Starting],
) -> None:
    errors: list[object] = []

    async def collect(ask: Coroutine[Any, Any, Any]) -> None:
        errors.append(await outcome(asyncio.ensure_future(ask)))

    async with ActorSystem() as system:
        other = await system.spawn(Worker)

        async def ask(actor: Worker) -> None:
            try:
                await actor.ref.ask(Worker.add, 1)
            except AskCycleError as error:
                errors.append(error)
            back = actor.ref

            async def ask_back(worker: Worker) -> None:
                try:
                    await back.ask(Worker.add, 1)
                except AskCycleError as error:
                    errors.append(error)

            await other.ask(Worker.call, ask_back)

        ref = await system.spawn(kind, lambda actor: None, ask)
        assert [type(error) for error in errors] == [AskCycleError] * 2
        assert await ref.ask(Worker.add, 1) == 1


async def test_a_mailbox_that_is_full_while_its_actor_starts_refuses_as_always() -> None:
    class Small(Starting, mailbox=2): ...

    class Newest(Starting, mailbox=2, overflow="drop_oldest"): ...

    refused: list[BaseException] = []

    async def flood(actor: Worker) -> None:
        for number in range(4):
            try:
                actor.ref.tell(Worker.note, number)
            except MailboxFull as error:
                refused.append(error)

    async with ActorSystem() as system:
        for kind, kept in ((Small, [0, 1]), (Newest, [2, 3])):
            ref = await system.spawn(kind, lambda actor: None, flood)
            assert await ref.ask(Worker.notes) == ["started", *kept]
        assert len(refused) == system.dead_letters == 2


async def test_what_came_before_a_start_that_fails_is_answered_at_once() -> None:
    asked: list[asyncio.Task[Any]] = []

    async def fail(actor: Worker) -> None:
        actor.ref.tell(Worker.add, 1)
        asked.append(await from_outside(actor.ref.ask(Worker.add, 1)))
        raise Boom

    async with ActorSystem() as system:
        with pytest.raises(ActorStartError):
            await system.spawn(Starting, note, fail)
        error = await outcome(asked[0])
        assert isinstance(error, ActorStopped)
        assert not error.started
        assert system.dead_letters == 2


@pytest.mark.parametrize("tells", ["while it starts", "after that"])
async def test_a_restarted_actor_handles_what_is_told_while_it_starts_again(tells: str) -> None:
    gate = Gate()

    async def wait(actor: Worker) -> None:
        if actor.ref.incarnation > 1:
            await gate.walk()

    async with ActorSystem() as system:
        spec = ChildSpec("child", functools.partial(Starting, lambda actor: None, wait))
        top = await system.spawn(Supervisor, [spec])
        ref = await top.ask(Supervisor.child, "child")
        ref.kill()
        await gate.entered.wait()
        if tells == "while it starts":
            ref.tell(Worker.note, "told")
        gate.open.set()
        await until(lambda: ref.state is State.RUNNING)
        if tells == "after that":
            ref.tell(Worker.note, "told")
        assert await ref.ask(Worker.notes) == ["started", "told"]


async def test_a_timer_set_in_on_start_is_not_lost_when_on_start_takes_longer() -> None:
    class Polling(Worker):
        async def on_start(self) -> None:
            self.tell_after(0, Worker.note, "polled")
            await asyncio.sleep(0.005)

    async with ActorSystem() as system:
        ref = await system.spawn(Polling)
        await turns()
        assert system.dead_letters == 0
        assert await ref.ask(Worker.notes) == ["polled"]


async def test_a_monitor_set_in_on_start_on_an_actor_that_has_ended_is_told() -> None:
    async with ActorSystem() as system:
        gone = await system.spawn(Worker)
        await gone.stop()

        class Watcher(Worker):
            async def on_start(self) -> None:
                self.monitor(gone)

        ref = await system.spawn(Watcher)
        await turns()
        (down,) = await ref.ask(Worker.notes)
        assert isinstance(down, Down)
        assert down.reason == "noproc"


async def test_a_monitor_set_in_on_start_on_an_actor_that_ends_meanwhile_is_told() -> None:
    gate = Gate()
    async with ActorSystem() as system:
        watched = await system.spawn(Worker)

        class Watcher(Worker):
            async def on_start(self) -> None:
                self.monitor(watched)
                await gate.walk()

        spawn = await started(system.spawn(Watcher))
        await gate.entered.wait()
        await watched.stop()
        gate.open.set()
        ref = await spawn
        await turns()
        assert [each.reason for each in await ref.ask(Worker.notes)] == ["normal"]


async def test_a_spawn_that_is_cancelled_ends_what_it_had_begun() -> None:
    entered = asyncio.Event()
    log: list[str] = []

    class Starting(Worker):
        async def on_start(self) -> None:
            entered.set()
            try:
                await asyncio.Event().wait()
            finally:
                for _ in range(5):
                    await asyncio.sleep(0)
                log.append("cleaned up")

    async with ActorSystem() as system:
        spawn = await started(system.with_options(name="starting").spawn(Starting))
        await entered.wait()
        spawn.cancel()
        assert isinstance(await outcome(spawn), asyncio.CancelledError)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert left == [], "on_start outlives the system"
    assert log == ["cleaned up"]


async def test_a_spawn_of_a_parent_that_is_stopped_meanwhile_fails_and_leaves_nothing() -> None:
    gate = Gate()

    class Child(Worker):
        async def on_start(self) -> None:
            await gate.walk()

    async with ActorSystem() as system:
        parent = await system.spawn(Worker)

        async def bear(actor: Worker) -> None:
            await actor.spawn(Child)

        asked = await started(parent.ask(Worker.call, bear))
        await gate.entered.wait()
        parent.kill()
        assert isinstance(await outcome(asked), ActorStopped)
        await until(lambda: parent.info().state is State.STOPPED)
        assert gate.outcome == "cancelled"
        assert system.tree().children == ()


async def test_a_child_that_asks_its_parent_while_the_parent_waits_for_its_start_fails_at_once() -> None:
    class Child(Worker):
        def __init__(self, parent: ActorRef[Worker]) -> None:
            super().__init__()
            self.parent = parent

        async def on_start(self) -> None:
            await self.parent.ask(Worker.add, 1)

    async with ActorSystem() as system:
        parent = await system.spawn(Worker)

        async def bear(actor: Worker) -> None:
            await actor.spawn(Child, actor.ref)

        asked = asyncio.ensure_future(parent.ask(Worker.call, bear))
        done, _ = await asyncio.wait({asked}, timeout=4)
        try:
            assert done, "the child waits for its parent, and the parent for the child, until the timeout"
            error = asked.exception()
            assert isinstance(error, ActorStartError)
            assert isinstance(error.__cause__, AskCycleError)
        finally:
            parent.kill()
            await outcome(asked)
            gc.collect()


async def test_a_slow_start_is_bounded_by_nobody_but_its_spawner() -> None:
    async with ActorSystem() as system:
        gate = Gate()

        class Slow(Actor, timeout=0.01):
            async def on_start(self) -> None:
                await gate.walk()

        spawn = await started(system.spawn(Slow))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.03):
                await asyncio.shield(spawn)
        gate.open.set()
        await spawn


async def test_spawning_many_actors_at_once_gives_each_its_own_path() -> None:
    async with ActorSystem() as system:
        refs = await asyncio.gather(*(system.spawn(Worker) for _ in range(200)))
        assert len({ref.path for ref in refs}) == 200
        gate, held = await busy(refs[0])
        assert await refs[1].ask(Worker.add, 1) == 1
        gate.open.set()
        await held


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_no_message_is_handled_before_on_start_has_returned(concurrency: int) -> None:
    log: list[str] = []

    class Slow(Worker, max_concurrency=concurrency):
        async def on_start(self) -> None:
            self.tell_after(0, Slow.tick)
            self.monitor(gone)
            await asyncio.sleep(0.005)
            log.append("on_start")

        async def tick(self) -> None:
            log.append("tick")

        async def receive(self, message: object) -> None:
            log.append("down")

    async with ActorSystem() as system:
        gone = await system.spawn(Worker)
        await gone.stop()
        ref = await system.spawn(Slow)
        await until(lambda: len(log) == 3)
        assert log[0] == "on_start"
        assert ref.info().state is State.RUNNING
