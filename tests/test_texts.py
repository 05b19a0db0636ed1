"""Texts of objects whose own code does what it likes: alone, and wherever the library makes one."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from functools import partial
from types import MethodType
from typing import Any
from unittest.mock import Mock

import pytest

from promptside import (
    Actor,
    ActorStartError,
    ActorStopped,
    ActorSystem,
    Backoff,
    ChildSpec,
    DynamicSupervisor,
    EventBus,
    InvalidChildSpec,
    NameNotFound,
    Supervisor,
    TaskSupervisor,
)
from promptside.callables import label_of, name_of
from promptside.checks import check_seconds
from promptside.texts import add_note, describe, facts, is_word, kind_of, repr_of, text_of
from tests.support.actors import Worker, hear, outcome, started, turns, until


class Panic(BaseException):
    """As extension modules raise it: no `Exception`."""


class Sly(str):
    """A text that a `__str__` may return."""

    __slots__ = ()

    def __len__(self) -> int:
        raise Panic

    def __getitem__(self, key: Any) -> str:
        raise Panic

    def __format__(self, spec: str) -> str:
        raise Panic


class Refused(Exception):
    def __str__(self) -> str:
        return self.response.text  # type: ignore[attr-defined, no-any-return]


class Panicking(Exception):
    def __str__(self) -> str:
        raise Panic


class Wordless(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class Endless(Exception):
    def __str__(self) -> str:
        return f"because of {self}"


class Huge(Exception):
    def __str__(self) -> str:
        return "x" * 1_000_000


class Half(Exception):
    def __str__(self) -> str:
        return "half \ud800"


class Slippery(Exception):
    def __str__(self) -> str:
        return Sly("as it should")


class Shy(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise Panic


class Noted(Exception):
    @property
    def __notes__(self) -> Any:
        raise Panic


class Unequal(Exception):
    def __eq__(self, other: object) -> bool:
        raise Panic

    def __bool__(self) -> bool:
        raise Panic

    __hash__ = None  # type: ignore[assignment]


class Hidden(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise Panic


class Meta(type):
    @property
    def __name__(cls) -> Any:  # type: ignore[override]
        raise Panic


class Nameless(Exception, metaclass=Meta):
    pass


HOSTILE = (Refused, Panicking, Wordless, Endless, Huge, Half, Slippery, Shy, Noted, Unequal, Hidden, Nameless)
NAMES = [kind_of(kind()) for kind in HOSTILE]
every_error = pytest.mark.parametrize("kind", HOSTILE, ids=NAMES)


class Thing:
    """As an argument or a result: both texts raise, and so do its truth and its class."""

    def __str__(self) -> str:
        raise Panic

    __repr__ = __str__

    def __getattr__(self, name: str) -> Any:
        raise Panic

    def __bool__(self) -> bool:
        raise Panic

    def __eq__(self, other: object) -> bool:
        raise Panic

    __hash__ = None  # type: ignore[assignment]


TEXT = "<Thing, whose repr raised Panic>"


@every_error
def test_every_text_is_short_and_can_be_written(kind: type[Exception]) -> None:
    error = kind()
    for text in (
        text_of(error),
        repr_of(error),
        repr_of([error]),
        describe(error),
        describe(ExceptionGroup("", [error])),
    ):
        assert type(text) is str
        assert len(text.encode()) < 5_000
    assert kind_of(error) in describe(error)
    json.dumps(facts(error), allow_nan=False).encode()


def test_what_cannot_tell_of_itself_is_told_by_its_class() -> None:
    assert describe(Refused()) == "Refused: <Refused, whose str raised AttributeError>"
    assert describe(Panicking()) == "Panicking: <Panicking, whose str raised Panic>"
    assert describe(Wordless()) == "Wordless: <Wordless, whose str raised TypeError>"
    assert describe(Endless()) == "Endless: <Endless, whose str raised RecursionError>"
    assert text_of(Huge(), 3) == "xxx<999997 more characters>"
    assert describe(Half()) == "Half: half ?"
    assert describe(Slippery()) == "Slippery: as it should"
    assert describe(ValueError()) == "ValueError"
    assert describe("killed") == "killed"
    assert describe(Thing()) == "<Thing, whose str raised Panic>"
    assert repr_of([Thing()]) == "<list, whose repr raised Panic>"


def test_a_group_is_told_by_its_parts_as_far_as_there_is_room() -> None:
    inner = ExceptionGroup("inner", [KeyError("a"), ValueError("b")])
    told = describe(ExceptionGroup("outer", [inner, OSError("c")]))
    assert told == (
        "ExceptionGroup: outer (2 sub-exceptions) "
        "[ExceptionGroup: inner (2 sub-exceptions) [KeyError: 'a'; ValueError: b]; OSError: c]"
    )
    many = describe(ExceptionGroup("many", [KeyError(number) for number in range(1_000)]))
    assert many.endswith("; 969 more]")


def test_facts_have_the_place_the_parts_and_the_causes() -> None:
    def fail() -> None:
        try:
            raise KeyError("user")
        except KeyError as error:
            raise ExceptionGroup("two", [OSError("a"), ValueError("b")]) from error

    with pytest.raises(ExceptionGroup) as raised:
        fail()
    found = facts(raised.value)

    assert found["error"] == "ExceptionGroup"
    assert [file == __file__ and function for file, line, function in found["traceback"]][-1] == "fail"
    assert [(part["error"], part["message"]) for part in found["parts"]] == [("OSError", "a"), ("ValueError", "b")]
    assert [(cause["error"], cause["traceback"][0][2]) for cause in found["causes"]] == [("KeyError", "fail")]


def test_facts_of_errors_that_lead_to_each_other_and_of_deep_groups_end() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert [cause["message"] for cause in facts(one)["causes"]] == ["other"]
    deep: Exception = ValueError("core")
    for _ in range(500):
        deep = ExceptionGroup("", [deep])
    assert len(json.dumps(facts(deep))) < 500_000
    assert len(describe(deep)) < 5_000


def test_a_frozen_or_hostile_error_takes_no_note_and_raises_nothing() -> None:
    for error in (Noted(), Hidden(), Shy()):
        add_note(error, "in the stage 'answer'")
    plain = ValueError()
    plain.__notes__ = "no list"  # type: ignore[attr-defined]
    add_note(plain, "in the stage 'answer'")
    twice = ValueError()
    add_note(twice, "once")
    add_note(twice, "once")
    assert twice.__notes__ == ["once"]


def test_a_reason_is_compared_with_words_only_where_it_is_one() -> None:
    assert is_word("normal", "normal", "shutdown")
    assert not is_word(Thing(), "normal")
    assert (name_of(Thing()), label_of(Thing())) == ("Thing", TEXT)


@every_error
async def test_a_crash_is_told_under_the_errors_own_type_and_counted(
    kind: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        worker = await system.spawn(Worker)
        assert type(await outcome(asyncio.ensure_future(worker.ask(Worker.fail, kind())))) is kind
        await until(lambda: crashes)
        assert crashes[0].data["error"] == kind_of(kind())
        assert crashes[0].data["traceback"][-1][2] == "fail"
        assert type(await outcome(asyncio.ensure_future(worker.ask(Worker.notes)))) is ActorStopped
        told = (await system.spawn(Worker)).tell  # and to a log, without a listener
        crashes.clear()
    async with ActorSystem() as system:
        worker = await system.spawn(Worker)
        worker.tell(Worker.fail, kind())
        await until(lambda: worker.state.value == "stopped")
    assert kind_of(kind()) in caplog.text
    assert told is not None


down: list[Exception] = []


class Connected(Worker):
    async def on_start(self) -> None:
        if down:
            raise down[0]


class Made(Worker):
    def __init__(self) -> None:
        if down:
            raise down[0]
        super().__init__()


@every_error
@pytest.mark.parametrize("child", [Connected, Made])
async def test_a_start_that_fails_is_counted_and_tried_again(kind: type[Exception], child: type[Worker]) -> None:
    down.clear()
    async with ActorSystem() as system:
        specs = [ChildSpec("sibling", Worker), ChildSpec("child", child, backoff=Backoff(initial=0.001, jitter=0.0))]
        top = await system.spawn(Supervisor, specs, max_restarts=1_000)
        first, sibling = [await top.ask(Supervisor.child, id) for id in ("child", "sibling")]
        down.append(kind())
        first.tell(Worker.fail, kind())
        await until(lambda: first.incarnation > 3)
        down.clear()
        await until(lambda: first.state.value == "running")
        assert await first.ask(Worker.add, 1) == 1
        assert sibling.incarnation == 1
        down.append(kind())
        with pytest.raises(ActorStartError, match=kind_of(kind())):
            await system.spawn(child)
        down.clear()


@pytest.mark.parametrize("error", [Panic(), SystemExit(2), asyncio.CancelledError()])
async def test_an_init_that_raises_no_exception_is_a_failed_start_too(error: BaseException) -> None:
    def make() -> Worker:
        raise error

    async with ActorSystem() as system:
        crashes = hear(system.events, "actor.crashed")
        with pytest.raises(ActorStartError, match=kind_of(error)):
            await system.spawn(make)
        with pytest.raises(ActorStartError):
            await system.spawn(Supervisor, [ChildSpec("child", make)])
        assert [event.data["error"] for event in crashes] == [kind_of(error)] * 2 + ["ActorStartError"]


async def test_an_init_that_is_interrupted_passes_the_interrupt_on_and_leaves_nothing() -> None:
    def make() -> Worker:
        raise KeyboardInterrupt

    async with ActorSystem() as system:
        with pytest.raises(KeyboardInterrupt):
            await system.spawn(make)
        assert system.tree().children == ()


class Listening(Worker, trap_exit=True):
    pass


@pytest.mark.parametrize("kind", [*HOSTILE, Thing], ids=[*NAMES, "Thing"])
async def test_any_object_may_be_the_reason_of_a_stop(kind: type[object]) -> None:
    reason = kind()
    async with ActorSystem() as system:
        stops = hear(system.events, "actor.stopped")
        worker, watcher, tied = [await system.spawn(kind) for kind in (Worker, Listening, Worker)]

        async def watch(actor: Worker) -> None:
            actor.monitor(worker)
            actor.link(worker)

        async def tie(actor: Worker) -> None:
            actor.link(worker)

        await watcher.ask(Worker.call, watch)
        await tied.ask(Worker.call, tie)
        await worker.stop(reason)
        down, left = await watcher.ask(Worker.notes)
        assert down.reason is left.reason is reason
        await until(lambda: tied.state.value == "stopped")
        assert stops[0].data["reason"] == describe(reason)
        for send in (worker.ask(Worker.notes), worker.deliver(Worker.note, 1)):
            assert type(await outcome(asyncio.ensure_future(send))) is ActorStopped
        worker.tell(Worker.note, 1)
        worker.send_message(Thing())


async def test_a_cancelled_handler_that_raises_a_hostile_error_is_a_dead_letter() -> None:
    async def swallow(worker: Worker) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise Refused from None

    async with ActorSystem() as system:
        dead = hear(system.events, "message.dead")
        worker = await system.spawn(Worker)
        asked = await started(worker.ask(Worker.call, swallow))
        asked.cancel()
        await until(lambda: dead)
        assert dead[0].data["reason"] == "cancelled, then Refused: <Refused, whose str raised AttributeError>"
        assert worker.state.value == "running"


async def test_a_stray_message_of_any_kind_ends_no_supervisor() -> None:
    async with ActorSystem() as system:
        dead = hear(system.events, "message.dead")
        tasks = await TaskSupervisor().start(system)
        tops = [await system.spawn(Supervisor), await system.spawn(DynamicSupervisor), tasks.ref]
        for top in tops:
            top.send_message(Thing())
            top.send_message(Shy())
        await until(lambda: len(dead) == 6)
        assert [event.data["reason"] for event in dead] == [
            f"a supervisor takes no {kind}" for _ in tops for kind in ("Thing", "Shy")
        ]
        assert all(top.state.value == "running" for top in tops)


async def raises(work: Coroutine[Any, Any, Any]) -> None:
    await work


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda system: ChildSpec(Thing(), Worker), InvalidChildSpec),
        (lambda system: ChildSpec("a", Thing()), InvalidChildSpec),
        (lambda system: ChildSpec("a", Worker, Thing()), InvalidChildSpec),
        (lambda system: ChildSpec("a", Worker, node=Thing()), InvalidChildSpec),
        (lambda system: Supervisor(Thing()), InvalidChildSpec),
        (lambda system: Supervisor(strategy=[Thing()]), InvalidChildSpec),
        (lambda system: Supervisor(max_restarts=Thing()), InvalidChildSpec),
        (lambda system: DynamicSupervisor(max_children=[Thing()]), InvalidChildSpec),
        (lambda system: TaskSupervisor(max_tasks=[Thing()]), ValueError),
        (lambda system: TaskSupervisor().map(turns, Thing()), TypeError),
        (lambda system: system.whereis([Thing()].__class__.__name__ + "/"), NameNotFound),
        (lambda system: check_seconds("here", "there", Thing()), ValueError),
        (lambda system: system.events.on(Thing()), TypeError),
        (lambda system: system.events.on("*", Thing()), TypeError),
        (lambda system: system.events.subscribe("*", max_queue=Thing()), ValueError),
        (lambda system: EventBus(Thing()), TypeError),
        (lambda system: type("Odd", (Actor,), {}, timeout=Thing()), ValueError),
        (lambda system: system.with_options(name=Thing()), ValueError),
    ],
)
async def test_a_wrong_argument_that_has_no_text_is_still_named(
    call: Callable[[ActorSystem], object], error: type[Exception]
) -> None:
    async with ActorSystem() as system:
        with pytest.raises(error) as raised:
            call(system)
    assert re.search(r"Thing, whose repr raised|list, whose repr raised|registered", str(raised.value))


class Hashed(Thing):
    """As a method: an ask looks it up first."""

    def __hash__(self) -> int:  # type: ignore[override]
        return 1


class Masked(Hashed):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise Panic


class Named(Hashed):
    """Each attribute that it is asked for is one more of its kind."""

    def __getattr__(self, name: str) -> Any:
        return Named()


class Laden(Worker):
    hashed, named = Hashed(), Named()


@pytest.mark.parametrize("child", [Worker, Laden])
@pytest.mark.parametrize(
    ("method", "why"),
    [
        (Hashed(), "<Hashed, whose repr raised Panic> is not a method of"),
        (Masked(), "<Masked, whose repr raised Panic> is not a method of"),
        (Named(), "<Named, whose repr raised Panic> is not a method of"),
        (Mock(), "<Mock id=.*> is not a method of"),
        (MethodType(partial(turns), Hashed()), r"is bound to an object; name it on the class: \w+\.method"),
    ],
    ids=["hashed", "masked", "named", "mock", "bound"],
)
async def test_a_method_of_a_hostile_kind_is_named(child: type[Worker], method: Any, why: str) -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(child)
        with pytest.raises(TypeError, match=why):
            worker.tell(method)
        with pytest.raises(TypeError, match=why):
            await worker.ask(method)
        with pytest.raises(TypeError, match=why):
            await anext(worker.stream(method))
        assert await worker.ask(Worker.add, 1) == 1


@pytest.mark.parametrize("name", ["hashed", "named"])
async def test_an_attribute_of_a_hostile_kind_is_not_async(name: str) -> None:
    async with ActorSystem() as system:
        worker = await system.spawn(Laden)
        with pytest.raises(TypeError, match="is not async"):
            worker.tell(getattr(Laden, name))
