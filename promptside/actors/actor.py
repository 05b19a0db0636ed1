"""The base class of actors.

A user subclasses `Actor`; its public async methods are its messages. `lifecycle` makes the instance.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import copy_context
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, Self, TypeVar
from weakref import WeakSet

from promptside.actors.cell import NEW_CELL, Cell
from promptside.actors.child_spec import ChildSpec, Restart
from promptside.actors.hints import add_hint
from promptside.actors.lifecycle import request_stop
from promptside.actors.links import Monitor, link, monitor, unlink
from promptside.actors.node import Node
from promptside.actors.options import DEFAULTS, ActorOptions, Overflow
from promptside.actors.ref import ActorRef
from promptside.actors.state import State
from promptside.actors.timers import Timer
from promptside.backoff import Backoff
from promptside.checks import check
from promptside.errors import ActorStopped, UnhandledMessage
from promptside.events import Hook, Subscription
from promptside.events.hooks import end_listener
from promptside.texts import repr_of

if TYPE_CHECKING:
    from promptside.actors.system import ActorSystem

__all__ = ["Actor", "check_ref"]

A = TypeVar("A", bound="Actor")
L = TypeVar("L", bound=Hook | Subscription)
P = ParamSpec("P")


class Actor:
    """Base of all actors: a plain class whose public async methods are its messages.

    One message is handled at a time, in order of arrival, unless the class says otherwise. Class options are
    keywords of the subclass: ``class Worker(Actor, max_concurrency=64, expected=(ParseError,))``.

    Args:
        max_concurrency: Messages handled at one time, at least 1.
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

    __options__: ClassVar[ActorOptions] = DEFAULTS
    _supervises: ClassVar[bool] = False  # whether its end, at the top of the tree, is one for the application
    _cell: Cell | None

    def __init_subclass__(
        cls,
        *,
        max_concurrency: int | None = None,
        expected: tuple[type[BaseException], ...] | None = None,
        mailbox: float | None = None,
        overflow: Overflow | None = None,
        timeout: float | None = None,
        shutdown: float | None = None,
        trap_exit: bool | None = None,
        **kwargs: Any,
    ) -> None:
        given = {
            "max_concurrency": max_concurrency,
            "expected": expected,
            "mailbox": mailbox,
            "overflow": overflow,
            "timeout": timeout,
            "shutdown": shutdown,
            "trap_exit": trap_exit,
        }
        try:
            super().__init_subclass__(**kwargs)
        except TypeError:
            options = ", ".join(sorted(given))
            raise TypeError(
                f"class {cls.__name__}(Actor, {next(iter(kwargs))}=...): the options are {options}"
            ) from None
        starts, stops = cls.on_start is not Actor.on_start, cls.on_stop is not Actor.on_stop
        cls.__options__ = cls.__options__.change(cls.__name__, given, starts=starts, stops=stops)
        for name, method in vars(cls).items():
            if not name.startswith("_") and (iscoroutinefunction(method) or isasyncgenfunction(method)):
                add_hint(name)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Take the place in the tree that a spawn has prepared, if one has."""
        self = super().__new__(cls)
        self._cell = NEW_CELL.get()
        if self._cell is not None:
            NEW_CELL.set(None)
            self._cell.adopt(cls)
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
        return self.ref.system

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
        return await self.system.with_options(parent=cell.ref).spawn(actor_class, *args, **kwargs)

    def stop(self, reason: object = "normal") -> None:
        """Stop this actor after the current message, as `ActorRef.stop` does.

        Args:
            reason: Given to `on_stop`, to monitors and to links.
        """
        request_stop(self._living(), reason)

    def monitor(self, ref: ActorRef[Any]) -> Monitor:
        """Have `Down` sent to this actor's `receive` when `ref` ends (Erlang/OTP `monitor`); once.

        Args:
            ref: The actor to watch, on any node.

        Returns:
            A handle with which to take it back.

        Raises:
            ValueError: `ref` is no reference.
        """
        return monitor(self._living(), check_ref("monitor", ref)._cell)

    def link(self, ref: ActorRef[Any]) -> None:
        """Share the fate of `ref` (Erlang/OTP `link`): if one ends, but not with ``"normal"``, so does the other.

        An actor with ``trap_exit=True`` gets `Exit` instead. A link holds for the current incarnations.

        Args:
            ref: The other actor, on any node.

        Raises:
            ValueError: `ref` is no reference.
        """
        link(self._living(), check_ref("link", ref)._cell)

    def unlink(self, ref: ActorRef[Any]) -> None:
        """Undo `link`.

        Args:
            ref: The other actor.

        Raises:
            ValueError: `ref` is no reference.
        """
        unlink(self._spawned(), check_ref("unlink", ref)._cell)

    def own(self, listener: L) -> L:
        """Have a listener to events end with this incarnation, however it ends: by a stop, a crash or a kill.

        ::

            self.own(self.system.events.on("breaker.*", self.note))
            async with self.own(self.system.events.subscribe("lm.*")) as stream: ...

        Args:
            listener: A hook, which is called no more, or a subscription, whose iterator gives what is queued and ends.

        Returns:
            The listener.

        Raises:
            ActorStopped: This incarnation has ended; then the listener has, too.
            TypeError: It is neither.
        """
        if not isinstance(listener, Hook | Subscription):
            raise TypeError(f"listener={repr_of(listener)}: give what `events.on` or `events.subscribe` has returned")
        try:
            cell = self._living()
        except ActorStopped:
            end_listener(listener)
            raise
        if cell.listeners is None:
            cell.listeners = WeakSet()
        cell.listeners.add(listener)
        return listener

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
        handler = self.__options__.resolve(type(self), method)
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


def check_ref(owner: str, ref: ActorRef[A]) -> ActorRef[A]:
    """The reference; raises `ValueError` if it is none."""
    check(owner, "ref", ref, isinstance(ref, ActorRef), "give the reference of an actor, such as the `ref` of a handle")
    return ref
