"""The base class of actors, and what the framework reads off a subclass.

A user subclasses `Actor`; its public async methods are its messages. `cell` makes the instance and keeps it;
`ref` looks methods up in the class's `Protocol` before it sends.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, Literal, ParamSpec, Self, TypeVar, get_args

from promptside.actors.child_spec import ChildSpec, Restart
from promptside.actors.links import Monitor, link, monitor, unlink
from promptside.actors.state import State
from promptside.actors.stream import producer
from promptside.actors.timers import Timer
from promptside.errors import UnhandledMessage

if TYPE_CHECKING:
    from promptside.actors.cell import Cell
    from promptside.actors.envelope import Handler
    from promptside.actors.node import Node
    from promptside.actors.ref import ActorRef
    from promptside.actors.system import ActorSystem
    from promptside.backoff import Backoff

__all__ = ["Actor", "Overflow", "Protocol"]

A = TypeVar("A", bound="Actor")
P = ParamSpec("P")

Overflow = Literal["reject", "drop_oldest", "drop_newest"]

BIRTH: ContextVar[Cell | None] = ContextVar("promptside_birth", default=None)
"""The cell whose instance is being made; taken by the first `Actor` that is constructed."""


@dataclass(slots=True, kw_only=True)
class Protocol:
    """What an actor class says about itself: its class options and its messages.

    Attributes:
        concurrency: Messages handled at one time.
        expected: Exceptions of ask handlers that are answers, not crashes.
        mailbox: Bound of the mailbox in messages; `math.inf` for none.
        overflow: What a full mailbox does.
        timeout: Default timeout of asks in seconds.
        shutdown: Default seconds that a stop may take before the actor is cancelled.
        trap_exit: Whether `Exit` of linked actors is received as a message.
        handlers: From the function named in an ask to the function that runs; filled as functions are seen.
        streams: The same for async generator methods, whose functions are wrapped to feed a channel.
        starts: Whether the class overrides `on_start`.
        stops: Whether the class overrides `on_stop`.
    """

    concurrency: int
    expected: tuple[type[BaseException], ...]
    mailbox: float
    overflow: Overflow
    timeout: float
    shutdown: float
    trap_exit: bool
    handlers: dict[Any, Handler]
    streams: dict[Any, Handler]
    starts: bool
    stops: bool

    def resolve(self, actor_class: type[Actor], method: Any, *, stream: bool = False) -> Handler:
        """The function that runs when `method` is asked of `actor_class`; the override, if there is one.

        Raises:
            TypeError: `method` is not a public async method of the class; of a stream, an async generator method.
        """
        name: str = getattr(method, "__name__", "")
        own = getattr(actor_class, name, None) if name else None
        label = getattr(method, "__qualname__", repr(method))
        if inspect.ismethod(method):
            raise TypeError(f"{label} is bound to an object; name it on the class: {actor_class.__name__}.{name}")
        if own is None or not any(vars(base).get(name) is method for base in actor_class.__mro__):
            raise TypeError(
                f"{label} is not a method of {actor_class.__name__}; name one as {actor_class.__name__}.<method>"
            )
        if name.startswith(("_", "on_")) or name == "receive" or own is getattr(Actor, name, None):
            raise TypeError(
                f"{label} is a hook, private or the base class's own, and cannot be asked; name a public method"
            )
        if inspect.isasyncgenfunction(own) and not stream:
            raise TypeError(f"{label} is an async generator; read it with `async for x in ref.stream({label}, ...)`")
        if inspect.iscoroutinefunction(own) and stream:
            raise TypeError(f"{label} yields nothing; call it with `await ref.ask({label}, ...)`")
        if not inspect.isasyncgenfunction(own) and not inspect.iscoroutinefunction(own):
            raise TypeError(f"{label} is not async; declare it as `async def {name}(self, ...)`")
        handler: Handler = producer(own) if stream else own
        (self.streams if stream else self.handlers)[method] = handler
        return handler


class Actor:
    """Base of all actors: a plain class whose public async methods are its messages.

    One message is handled at a time, in order of arrival, unless the class says otherwise. Class options are
    keywords of the subclass: ``class Worker(Actor, concurrency=64, expected=(ParseError,))``.

    Args:
        concurrency: Messages handled at one time, at least 1.
        expected: Exception classes that, leaving the handler of an ask, are *answers*: replied, counted, no crash; not
            those that end a task, a generator or the process, such as `asyncio.CancelledError`.
        mailbox: Bound of the mailbox in messages (`math.inf` for none).
        overflow: What a full mailbox does: ``"reject"`` raises `MailboxFull` in the sender, ``"drop_oldest"`` and
            ``"drop_newest"`` make a dead letter.
        timeout: Default timeout of asks to this actor, in seconds.
        shutdown: Default seconds that a stop may take before the actor is cancelled.
        trap_exit: Whether `Exit` of linked actors arrives at `receive` instead of stopping this actor.

    Do not use an actor where a function will do: an actor is for state, or for a failure to contain.
    """

    __protocol__: ClassVar[Protocol] = Protocol(
        concurrency=1,
        expected=(),
        mailbox=1000,
        overflow="reject",
        timeout=5.0,
        shutdown=5.0,
        trap_exit=False,
        handlers={},
        streams={},
        starts=False,
        stops=False,
    )
    _cell: Cell | None

    def __init_subclass__(
        cls,
        *,
        concurrency: int | None = None,
        expected: tuple[type[BaseException], ...] | None = None,
        mailbox: float | None = None,
        overflow: Overflow | None = None,
        timeout: float | None = None,
        shutdown: float | None = None,
        trap_exit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        try:
            super().__init_subclass__(**kwargs)
        except TypeError:
            options = ", ".join(sorted(_OPTIONS))
            raise TypeError(
                f"class {cls.__name__}(Actor, {next(iter(kwargs))}=...): the options are {options}"
            ) from None
        base = cls.__protocol__
        protocol = Protocol(
            concurrency=base.concurrency if concurrency is None else concurrency,
            expected=base.expected if expected is None else expected,
            mailbox=base.mailbox if mailbox is None else mailbox,
            overflow=base.overflow if overflow is None else overflow,
            timeout=base.timeout if timeout is None else timeout,
            shutdown=base.shutdown if shutdown is None else shutdown,
            trap_exit=base.trap_exit if trap_exit is None else trap_exit,
            handlers={},
            streams={},
            starts=cls.on_start is not Actor.on_start,
            stops=cls.on_stop is not Actor.on_stop,
        )
        _validate(cls.__name__, protocol)
        cls.__protocol__ = protocol

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Take the place in the tree that a spawn has prepared, if one has."""
        self = super().__new__(cls)
        self._cell = BIRTH.get()
        if self._cell is not None:
            BIRTH.set(None)
        return self

    @classmethod
    def child_spec(
        cls,
        id: str,
        *args: Any,
        restart: Restart = "permanent",
        shutdown: float | None = None,
        name: str | None = None,
        node: Node | str | None = None,
        significant: bool = False,
        backoff: Backoff | None = None,
        **kwargs: Any,
    ) -> ChildSpec:
        """This actor as a supervisor's child: ``Counter.child_spec("counter", 10)``.

        Args:
            id: See `ChildSpec`, as for the others that are not described here.
            *args: For the class, which checks them when it starts.
            restart: See `ChildSpec`.
            shutdown: See `ChildSpec`.
            name: See `ChildSpec`.
            node: See `ChildSpec`.
            significant: See `ChildSpec`.
            backoff: See `ChildSpec`.
            **kwargs: For the class. For one that is named as an argument here, give ``ChildSpec(id, partial(...))``.

        Raises:
            InvalidChildSpec: An argument for `ChildSpec` is not valid.
        """
        start = partial(cls, *args, **kwargs) if args or kwargs else cls
        return ChildSpec(id, start, restart, shutdown, name, node, significant, backoff)

    @property
    def ref(self) -> ActorRef[Self]:
        """This actor's own reference, usable from `__init__` on.

        Raises:
            RuntimeError: The object was constructed directly and not spawned.
        """
        return self._spawned().ref

    @property
    def system(self) -> ActorSystem:
        """The system this actor lives in; raises as `ref` does."""
        return self._spawned().system

    async def spawn(self, actor_class: Callable[P, A], /, *args: P.args, **kwargs: P.kwargs) -> ActorRef[A]:
        """Start a child of this actor; it is stopped, after this actor's `on_stop`, when this actor ends.

        Args:
            actor_class: The class, or another callable that returns a new actor.
            *args: For the class.
            **kwargs: For the class.

        Returns:
            The child's reference, once its `on_start` has returned.

        Raises:
            ActorStartError: `__init__` or `on_start` raised; the cause is chained.
        """
        cell = self._living()
        return await cell.system.with_options(parent=cell.ref).spawn(actor_class, *args, **kwargs)

    def stop(self, reason: object = "normal") -> None:
        """Stop this actor after the current message, as `ActorRef.stop` does.

        Args:
            reason: Told to `on_stop` and to whoever watches.
        """
        self._living().request_stop(reason)

    def monitor(self, ref: ActorRef[Any]) -> Monitor:
        """Have `Down` sent to this actor's `receive` when `ref` ends (Erlang/OTP `monitor`); once.

        Args:
            ref: The actor to watch, on any node.

        Returns:
            A handle with which to take it back.
        """
        return monitor(self._living(), ref._cell)

    def link(self, ref: ActorRef[Any]) -> None:
        """Share the fate of `ref` (Erlang/OTP `link`): if one ends, but not with ``"normal"``, so does the other.

        An actor with ``trap_exit=True`` gets `Exit` instead. A link holds for the current incarnations.

        Args:
            ref: The other actor, on any node.
        """
        link(self._living(), ref._cell)

    def unlink(self, ref: ActorRef[Any]) -> None:
        """Undo `link`.

        Args:
            ref: The other actor.
        """
        unlink(self._spawned(), ref._cell)

    def tell_after(
        self,
        delay: float,
        method: Callable[Concatenate[Self, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Timer:
        """Send this actor a message later; it dies with this incarnation.

        Args:
            delay: Seconds >= 0.
            method: As for `ActorRef.tell`.
            *args: For the method.
            **kwargs: For the method.

        Returns:
            The timer, which can be cancelled.
        """
        return self._timer(delay, None, method, args, kwargs)

    def tell_every(
        self,
        interval: float,
        method: Callable[Concatenate[Self, P], Coroutine[Any, Any, Any]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Timer:
        """Send this actor a message again and again; the first after one interval.

        A tick is skipped, and counted in `Timer.skipped`, while the one before is still queued or handled.

        Args:
            interval: Seconds > 0.
            method: As for `ActorRef.tell`.
            *args: For the method.
            **kwargs: For the method.

        Returns:
            The timer, which can be cancelled.
        """
        return self._timer(interval, interval, method, args, kwargs)

    def _timer(
        self, delay: float, interval: float | None, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Timer:
        cell = self._living()
        handler = self.__protocol__.resolve(type(self), method)
        return Timer(cell, delay, interval, handler, args, kwargs, copy_context())

    async def on_start(self) -> None:
        """Called before the first message; the spawner waits for it. Raise to refuse to start."""

    async def on_stop(self, reason: object) -> None:
        """Called after the last message, but not after a kill.

        Args:
            reason: ``"normal"``, ``"shutdown"``, another word given to `stop`, or the exception of a crash.
        """

    async def receive(self, message: Any) -> None:
        """Called for a plain message: `Down`, `Exit`, a timer's, or one sent with `ref.send_message`.

        Raises:
            UnhandledMessage: Unless overridden.
        """
        raise UnhandledMessage(self.ref.path, message)

    def _stop_requested(self) -> None:
        """Called when an ordered stop was asked for, while a message may still be handled."""

    def _living(self) -> Cell:
        """The cell, unless this instance is of an incarnation that has ended: then raises `ActorStopped`."""
        cell = self._spawned()
        if cell.instance is not self and not (cell.instance is None and cell.state is State.STARTING):
            raise cell.stopped("this incarnation has ended", started=False)
        return cell

    def _spawned(self) -> Cell:
        if self._cell is None:
            raise RuntimeError(
                f"{type(self).__name__} was constructed directly; start it with "
                f"`await system.spawn({type(self).__name__}, ...)` to give it a ref and a system"
            )
        return self._cell


_OPTIONS = ("concurrency", "expected", "mailbox", "overflow", "timeout", "shutdown", "trap_exit")


def _validate(name: str, protocol: Protocol) -> None:
    def check(field: str, valid: bool, remedy: str) -> None:
        if not valid:
            raise ValueError(f"class {name}(Actor, {field}={getattr(protocol, field)!r}): {remedy}")

    def number(value: object) -> bool:
        return isinstance(value, int | float) and not math.isnan(value)

    concurrency, expected = protocol.concurrency, protocol.expected
    check("concurrency", isinstance(concurrency, int) and concurrency >= 1, "give a whole number >= 1")
    answers = isinstance(expected, tuple) and all(map(_can_answer, expected))
    check("expected", answers, "give a tuple of exception classes, none that ends a task or the process")
    check("mailbox", number(protocol.mailbox) and protocol.mailbox >= 1, "give a bound of at least 1, or math.inf")
    check("overflow", protocol.overflow in get_args(Overflow), f"use one of {get_args(Overflow)}")
    check("timeout", number(protocol.timeout) and protocol.timeout > 0, "give seconds > 0, or math.inf")
    check("shutdown", number(protocol.shutdown) and protocol.shutdown >= 0, "give seconds >= 0 (0 kills), or math.inf")


def _can_answer(error: object) -> bool:
    if not (isinstance(error, type) and issubclass(error, BaseException)) or error is BaseException:
        return False
    return not issubclass(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit)
