"""Ask: one answer, the handler's own exception, one message at a time, and clear errors for what cannot be asked."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator

import pytest

from promptside.actors import Actor, ActorSystem
from promptside.errors import ActorStopped
from tests.support.actors import Boom, Worker, busy, outcome, started


class Base(Actor):
    async def greet(self, name: str) -> str:
        return f"base {name}"


class Derived(Base):
    async def greet(self, name: str) -> str:
        return f"derived {name}"


class Stranger(Actor):
    async def add(self, amount: int) -> int:
        return -1


class Odd(Actor):
    def plain(self) -> int:
        return 1

    @property
    def size(self) -> int:
        return 1

    @staticmethod
    async def static() -> int:
        return 1

    async def _private(self) -> int:
        return 1

    async def on_anything(self) -> int:
        return 1

    async def items(self) -> AsyncIterator[int]:
        yield 1

    async def fine(self) -> int:
        return 1


async def test_the_answer_is_what_the_method_returned() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker, 10)
        assert await worker.ask(Worker.add, 5) == 15
        assert await worker.ask(Worker.add, amount=1) == 16


async def test_the_asker_gets_the_very_exception_that_the_handler_raised() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        error = Boom("mine")
        with pytest.raises(Boom) as raised:
            await worker.ask(Worker.fail, error)
        assert raised.value is error


async def test_an_override_runs_when_the_method_of_the_base_class_is_named() -> None:
    async with ActorSystem() as system:
        actor = await system.spawn(Derived)
        assert await actor.ask(Base.greet, "x") == "derived x"
        assert await actor.ask(Derived.greet, "x") == "derived x"


async def test_messages_of_one_sender_are_handled_in_their_order() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        for number in range(300):
            worker.tell(Worker.note, number)
        assert await worker.ask(Worker.notes) == list(range(300))


async def test_asks_sent_together_are_answered_each_with_its_own_answer() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        answers = await asyncio.gather(*(worker.ask(Worker.add, 1) for _ in range(500)))
        assert answers == list(range(1, 501))


async def test_a_mutable_argument_is_passed_and_not_copied() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        thing: list[int] = []
        worker.tell(Worker.note, thing)
        assert (await worker.ask(Worker.notes))[0] is thing


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (Odd.plain, "async def plain"),
        (Odd._private, "private"),
        (Odd.on_anything, "hook"),
        (Odd.receive, "hook"),
        (Odd.on_start, "hook"),
        (Odd.on_stop, "hook"),
        (Odd.items, "ref.stream"),
        (Stranger.add, "not a method of Odd"),
        (lambda self: None, "not a method of Odd"),
        (functools.partial(Odd.fine), "not a method of Odd"),
        ("fine", "not a method of Odd"),
        (None, "not a method of Odd"),
    ],
)
async def test_what_cannot_be_asked_is_a_type_error_that_says_what_can(method: object, text: str) -> None:
    async with ActorSystem() as system:
        odd = await system.spawn(Odd)
        with pytest.raises(TypeError) as raised:
            await odd.ask(method)  # type: ignore[arg-type]
        assert text in str(raised.value)
        with pytest.raises(TypeError) as raised:
            odd.tell(method)  # type: ignore[arg-type]
        assert text in str(raised.value)
        with pytest.raises(TypeError) as raised:
            await odd.deliver(method)  # type: ignore[arg-type]
        assert text in str(raised.value)
        assert await odd.ask(Odd.fine) == 1, "a sender's mistake must not harm the actor"
        assert odd.incarnation == 1


async def test_a_bound_method_is_refused_and_the_error_names_the_way_to_ask() -> None:
    async with ActorSystem() as system:
        odd = await system.spawn(Odd)
        with pytest.raises(TypeError) as raised:
            await odd.ask(Odd().fine)  # type: ignore[arg-type,call-arg]
        assert "Odd.fine" in str(raised.value)
        assert "Odd.fine is not a method of Odd" not in str(raised.value), "it contradicts itself"


async def test_a_stream_of_a_method_that_yields_nothing_is_a_type_error() -> None:
    async with ActorSystem() as system:
        odd = await system.spawn(Odd)
        for method, text in ((Odd.fine, "ref.ask"), (Odd.plain, "not async"), (Stranger.add, "not a method of Odd")):
            with pytest.raises(TypeError, match=text):
                await anext(odd.stream(method))  # type: ignore[arg-type]


async def test_wrong_arguments_are_the_askers_error_and_reach_the_asker() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        with pytest.raises(TypeError, match="add"):
            await worker.ask(Worker.add)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
async def test_a_timeout_that_is_not_positive_is_an_error_that_names_it(timeout: float) -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        with pytest.raises(ValueError, match="timeout=") as raised:
            worker.with_options(timeout=timeout)
        assert "give seconds > 0, or math.inf" in str(raised.value)


@pytest.mark.parametrize("timeout", ["5", None, True])
async def test_a_timeout_that_is_no_number_is_an_error_that_names_it(timeout: object) -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        with pytest.raises((TypeError, ValueError), match="timeout="):
            worker.with_options(timeout=timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"max_concurrency": 0}, "max_concurrency"),
        ({"max_concurrency": 1.5}, "max_concurrency"),
        ({"max_concurrency": "2"}, "max_concurrency"),
        ({"expected": ValueError}, "expected"),
        ({"expected": (BaseException,)}, "expected"),
        ({"expected": ("ValueError",)}, "expected"),
        ({"expected": (asyncio.CancelledError,)}, "expected"),
        ({"mailbox": 0}, "mailbox"),
        ({"mailbox": float("nan")}, "mailbox"),
        ({"mailbox": "10"}, "mailbox"),
        ({"overflow": "drop"}, "overflow"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"shutdown": -1}, "shutdown"),
        ({"shutdown": True}, "shutdown"),
        ({"timeout": True}, "timeout"),
        ({"mailbox": True}, "mailbox"),
        ({"max_concurrency": True}, "max_concurrency"),
        ({"trap_exit": 3}, "trap_exit"),
        ({"shutdown": float("nan")}, "shutdown"),
        ({"shutdown": "5"}, "shutdown"),
    ],
)
def test_a_class_option_out_of_range_is_an_error_at_the_class(options: dict[str, object], field: str) -> None:
    with pytest.raises(ValueError, match=rf"class Bad\(Actor, {field}=") as raised:
        type("Bad", (Actor,), {}, **options)
    assert any(word in str(raised.value) for word in ("give", "use"))


def test_an_unknown_class_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="concurency"):
        type("Bad", (Actor,), {}, concurency=2)


def test_class_options_are_inherited_and_overridden_one_by_one() -> None:
    class Parent(Actor, max_concurrency=3, timeout=7.0): ...

    class Child(Parent, timeout=1.0): ...

    assert (Child.__options__.max_concurrency, Child.__options__.timeout) == (3, 1.0)
    assert Parent.__options__.timeout == 7.0


def test_an_actor_that_was_constructed_directly_has_no_ref_and_says_how_to_get_one() -> None:
    worker = Worker()
    for use in (lambda: worker.ref, lambda: worker.system, lambda: worker.stop()):
        with pytest.raises(RuntimeError, match=r"await system.spawn\(Worker"):
            use()


async def test_methods_of_an_actor_constructed_directly_can_be_called_in_a_unit_test() -> None:
    assert await Worker(3).add(4) == 7


async def test_an_ask_from_a_task_that_nobody_waits_for_prints_no_warning_when_it_fails() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        gate, held = await busy(worker)
        queued = await started(worker.ask(Worker.add, 1))
        queued.cancel()
        assert isinstance(await outcome(queued), asyncio.CancelledError)
        gate.open.set()
        assert await held == "passed"
        assert await worker.ask(Worker.add, 0) == 0, "an ask that was cancelled in the queue is not run"


async def test_an_ask_of_a_method_never_used_before_to_a_stopped_actor_fails_as_any_other() -> None:
    class Fresh(Actor):
        async def used(self) -> None: ...

        async def unused(self) -> None: ...

    async with ActorSystem() as system:
        fresh = await system.spawn(Fresh)
        await fresh.ask(Fresh.used)
        await fresh.stop()
        for method in (Fresh.used, Fresh.unused):
            with pytest.raises(ActorStopped) as raised:
                await fresh.ask(method)
            assert not raised.value.started


async def test_what_every_actor_has_cannot_be_asked_from_outside() -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        with pytest.raises(TypeError, match="the base class's own"):
            await worker.ask(Worker.spawn, Worker)  # type: ignore[arg-type]
