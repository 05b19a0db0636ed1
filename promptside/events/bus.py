"""`EventBus`: publishers on any thread, and the listeners to which it passes their events.

Every `ActorSystem` has one as `system.events`. Actors, pools and programs publish; hooks, subscriptions and sinks
listen. Publishing never waits and never fails: listeners are plain functions, called inline, or bounded queues.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, cast, overload

from promptside import clock
from promptside.callables import is_async
from promptside.checks import check, check_seconds
from promptside.events.content import NOTHING, Content
from promptside.events.event import Event, build_event
from promptside.events.fork import ForkGuard
from promptside.events.hooks import AsyncHook, Hook, SyncHook, end_hooks
from promptside.events.listener import Listener
from promptside.events.losses import LOG_LEVELS, Losses
from promptside.events.patterns import compile_pattern
from promptside.events.reports import Reports
from promptside.events.route import NO_LISTENERS, Route
from promptside.events.subscription import Overflow, Subscription
from promptside.texts import repr_of

__all__ = ["EventBus"]

HOOK_QUEUE: Final = 1000
"""Events that may wait for an asynchronous hook; beyond it the oldest is dropped and counted."""

RECHECK: Final = 64
"""Events after which it is checked again whether all queues have room, once one was full."""

MAX_ROUTES: Final = 4096
"""Types whose route is kept, so that an application that puts ids into types does not fill the memory."""


class EventBus:
    """Publish and subscribe within one process.

    **Order.** Each published event takes the next `seq`, also one without a listener. A listener to ``*`` that sees a
    gap has lost events; one to a narrower pattern counts its losses by `Subscription.dropped`. Every subscription sees
    `seq` grow, whatever threads publish. Plain hooks run after the queues are filled and outside any lock, so those of
    two threads may overlap. (One exception: an event of a finalizer or signal handler that interrupts a publishing
    thread comes before the event it interrupts.)

    **Cost**, measured on two slow shared cores: 0.25 us for an event without a listener, 2.5 us for one with a listener
    and 0.1 us more for each further subscription. The first event of a type after listeners have come or gone costs
    O(listeners).

    **Without a listener**, types that report a loss reach the logger ``promptside``: ``actor.crashed`` and
    ``supervisor.gave_up`` as errors, with the traceback, and ``message.dead`` as a warning. Of a flood, the first are
    logged (10 dead letters, 100 crashes in ten seconds), and then a sum; what a log handler causes is only counted.

    Args:
        content: Which content the events of programs and models carry; none by default.

    Attributes:
        content: As given.

    Raises:
        TypeError: `content` is not a `Content`.
    """

    def __init__(self, content: Content = NOTHING) -> None:
        if not isinstance(content, Content):
            raise TypeError(f"content={repr_of(content)}: give a promptside.events.Content(...)")
        self.content = content
        self._prefix = secrets.token_hex(6)
        self._seq = itertools.count(1)
        # Reentrant, because a finalizer that publishes may interrupt a publish of its own thread. Held only to fill
        # queues and to change the listeners: never while a hook, the logging module or a loop's wake-up runs.
        self._lock = threading.RLock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._idle: set[Subscription] = set()
        self._room = 0  # events that every queue has room for, at least; below 0, events until that is checked again
        self._sinks: tuple[Listener, ...] = ()
        self._hooks: tuple[SyncHook, ...] = ()
        self._unfinished_sinks: set[Listener] = set()
        self._running_hooks: set[AsyncHook] = set()
        self._routes: dict[str, Route] = {}
        self._wanted: dict[tuple[str, ...], bool] = {}
        self._closed = False
        self._guard = ForkGuard()
        self._losses = Losses()
        self._reports = Reports(logging.getLogger("promptside.events"))

    def publish(
        self,
        type: str,
        source: str,
        data: Mapping[str, Any] | None = None,
        *,
        incarnation: int | None = None,
        trace_id: str | None = None,
        span_id: str | None = None,
        parent_id: str | None = None,
        run_id: str | None = None,
        call_id: str | None = None,
        session_id: str | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Pass an event to every listener of its type. Callable from any thread and loop, and after `aclose`.

        It never waits for a listener, and raises nothing that a listener raises. Plain hooks have run when it returns.

        Args:
            type: Dotted words, past tense; those of promptside itself are in `CATALOGUE`. `ValueError` for no text.
            source: Path of the actor, or another name of the place.
            data: JSON-safe, not to be changed afterwards: listeners get this very object.
            incarnation: Incarnation of the actor at `source`.
            trace_id: See `Event`, as for the following.
            span_id: See `Event`.
            parent_id: See `Event`.
            run_id: See `Event`.
            call_id: See `Event`.
            session_id: See `Event`.
            error: An exception that the event tells of. Where the event is logged, its traceback is.
        """
        route = self._routes.get(type)
        if route is not NO_LISTENERS and self._guard.refuses(self._reports):
            return
        if (route or self._find_route(type)) is NO_LISTENERS:
            next(self._seq)
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        with self._lock:
            # Looked up again: after `Subscription.close` nothing may arrive any more.
            route = self._routes.get(type) or self._find_route(type)
            seq = next(self._seq)
            event = build_event(
                f"{self._prefix}-{seq}",
                seq,
                type,
                source,
                clock.wall(),
                {} if data is None else data,
                trace_id,
                span_id,
                parent_id,
                run_id,
                call_id,
                session_id,
                incarnation,
            )
            elsewhere = route.deliver(event, here, self._idle, room=self._has_room())
        listeners = route.size
        for subscription in elsewhere:
            if not subscription.wake():
                listeners -= 1
                self._drop_dead_subscriber(subscription)
        if not listeners and route.log_level is not None:
            self._losses.write_event(route.log_level, event, error)
        for hook in route.hooks:
            hook.run(event)

    def wants(self, type: str) -> bool:
        """Whether an event of this type has a listener or is logged; if not, its data need not be built."""
        return (self._routes.get(type) or self._find_route(type)) is not NO_LISTENERS

    def wants_any(self, types: tuple[str, ...]) -> bool:
        """Whether `wants` is true of one of these types."""
        wanted = self._wanted
        if (found := wanted.get(types)) is None:
            found = wanted[types] = any(map(self.wants, types))
        return found

    @overload
    def on(self, pattern: str) -> Callable[[Callable[[Event], object]], Hook]: ...

    @overload
    def on(self, pattern: str, callback: Callable[[Event], object]) -> Hook: ...

    def on(
        self, pattern: str, callback: Callable[[Event], object] | None = None
    ) -> Hook | Callable[[Callable[[Event], object]], Hook]:
        """Call a function for every event that matches; without the function, a decorator.

        ::

            hook = system.events.on("breaker.*", warn)
            hook.detach()

            @system.events.on("breaker.*")
            def warn(event: Event) -> None: ...

        A plain function runs inline, in the thread that publishes: keep it short. An ``async def`` function runs in a
        task of its own on the loop where it was registered, one event after the other, behind a queue of 1,000 that
        drops its oldest. Neither is called for events that it publishes itself while it runs, such as those of dead
        letters that it causes; they count as `Hook.dropped`.

        A hook that raises is logged to ``promptside.events``; after five failures in a row it is detached.

        Args:
            pattern: As for `subscribe`.
            callback: The function.

        Returns:
            The `Hook`: the handle to detach it, and callable as the function was. A decorator returns the same.

        Raises:
            TypeError: `pattern` is not a string, or `callback` cannot be called.
            ValueError: `pattern` is not valid.
            RuntimeError: The bus is closed, or no loop is running for an asynchronous function.
        """
        if callback is None:
            compile_pattern(pattern)  # a wrong pattern is reported at its own line, not at the function's
            return lambda callback: self.on(pattern, callback)
        if isinstance(callback, Hook):
            callback = callback.callback
        if not callable(callback):
            raise TypeError(f"callback={repr_of(callback)}: give a function of one event, as `on({pattern!r}, print)`")
        if is_async(callback):
            return self._start_hook(pattern, cast("Callable[[Event], Awaitable[object]]", callback))
        hook = SyncHook(pattern, callback, self._remove_hook)
        self._guard.check()
        with self._lock:
            self._check_open()
            self._hooks += (hook,)
            self._reset_routes()
        return hook

    def subscribe(
        self, pattern: str = "*", *, max_queue: int = 1000, overflow: Overflow = "drop_oldest"
    ) -> Subscription:
        """Read every event that matches as an async iterator: ``async with bus.subscribe("lm.*") as stream``.

        Args:
            pattern: Words joined by dots; ``*`` stands for one word, and at the end for one or more: ``lm.*``,
                ``lm.*.failed``, ``breaker.opened``, ``*``.
            max_queue: Events that may wait for the consumer, at least 1.
            overflow: What a full queue does: ``"drop_oldest"`` or ``"drop_newest"``.

        Returns:
            The subscription, which listens while its ``async with`` is entered.

        Raises:
            TypeError: `pattern` is not a string.
            ValueError: An argument is not valid.
        """
        return Subscription(
            pattern,
            max_queue=max_queue,
            overflow=overflow,
            attach=self._attach,
            detach=self._remove,
            lock=self._lock,
            idle=self._idle,
        )

    def attach(self, sink: Listener) -> AbstractContextManager[object]:
        """Pass events to a sink, until it calls `detach` or the bus closes; for those who write sinks.

        Args:
            sink: The bus keeps it until its `ended` is done, and `aclose` waits for that.

        Returns:
            The lock under which `put` is called; hold it for a moment only.

        Raises:
            RuntimeError: The bus is closed, or this process is a fork of its own.
            ValueError: `sink` is no sink.
        """
        check("attach", "sink", sink, isinstance(sink, Listener), "give a sink, such as a JSONLSink(...)")
        self._guard.check()
        with self._lock:
            self._check_open()
            self._sinks += (sink,)
            self._unfinished_sinks.add(sink)
            self._reset_routes()
        sink.ended.add_done_callback(lambda _: self._forget_sink(sink))
        return self._lock

    def detach(self, sink: Listener) -> None:
        """Pass no more events to a sink; from any thread."""
        with self._lock:
            self._sinks = tuple(other for other in self._sinks if other is not sink)
            self._reset_routes()

    async def aclose(self, *, drain: float = 1.0) -> None:
        """End every subscription, hook and sink. Iterators give what is queued and then end.

        Sinks end last, so that they record what hooks publish at their end; each writes what it has, within its own
        `flush_timeout`.

        Args:
            drain: Seconds that asynchronous hooks get for what is queued; then they are cancelled, and get one second
                to end.

        Raises:
            ValueError: `drain` is not >= 0.
        """
        check_seconds("aclose", "drain", drain, zero=True)
        with self._lock:
            self._closed = True
            subscriptions, plain, running = self._subscriptions, self._hooks, tuple(self._running_hooks)
        for hook in plain:
            hook.detach()
        for subscription in subscriptions:
            subscription.close()
        try:
            await end_hooks(running, drain)
        finally:
            with self._lock:
                sinks = tuple(self._unfinished_sinks)
            for sink in sinks:
                sink.end()
        for sink in sinks:
            await sink.stop()
        self._losses.close()
        self._reports.close()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the event bus is closed; listen before its actor system ends")

    def _has_room(self) -> bool:
        """Whether every queue has room for one more; as consumers only make room, one check holds for many events."""
        if self._room < 0:
            self._room += 1
            return False
        if self._room == 0:
            self._room = min((each.room for each in self._subscriptions), default=0) or -RECHECK
        self._room -= self._room > 0
        return self._room >= 0

    def _reset_routes(self) -> None:
        """The listeners have changed. Lock held."""
        self._routes = {}
        self._wanted = {}

    def _find_route(self, type: str) -> Route:
        check("EventBus", "type", type, isinstance(type, str), "give dotted words, such as 'order.paid'")
        with self._lock:
            subscriptions = [subscription for subscription in self._subscriptions if subscription.matches(type)]
            sinks = tuple(sink for sink in self._sinks if sink.matches(type))
            hooks = tuple(hook for hook in self._hooks if hook.matches(type))
            route = Route(subscriptions, sinks, hooks, LOG_LEVELS.get(type))
            if not route.size and route.log_level is None:
                route = NO_LISTENERS
            if len(self._routes) >= MAX_ROUTES:
                self._routes = {}
            self._routes[type] = route
            return route

    def _attach(self, subscription: Subscription) -> None:
        self._guard.check()
        with self._lock:
            self._check_open()
            self._subscriptions += (subscription,)
            self._reset_routes()
            self._room = 0

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)
            self._reset_routes()

    def _remove_hook(self, hook: SyncHook) -> None:
        with self._lock:
            self._hooks = tuple(other for other in self._hooks if other is not hook)
            self._reset_routes()

    def _start_hook(self, pattern: str, callback: Callable[[Event], Awaitable[object]]) -> AsyncHook:
        # One step, so that an `aclose` in another thread finds both the subscription and the task, or neither.
        with self._lock:
            hook = AsyncHook(callback, self.subscribe(pattern, max_queue=HOOK_QUEUE))
            self._running_hooks.add(hook)
        hook.ended.add_done_callback(lambda _: self._forget_hook(hook))
        return hook

    def _forget_hook(self, hook: AsyncHook) -> None:
        with self._lock:
            self._running_hooks.discard(hook)

    def _forget_sink(self, sink: Listener) -> None:
        with self._lock:
            self._unfinished_sinks.discard(sink)

    def _drop_dead_subscriber(self, subscription: Subscription) -> None:
        """Drop a subscription whose loop was closed before it: its queue will never be read."""
        subscription.close()
        lost = subscription.discard()
        with self._lock:
            for hook in [hook for hook in self._running_hooks if hook.stream is subscription]:
                hook.attached = False
                self._running_hooks.discard(hook)
        text = f"the subscription to {subscription.pattern!r} is dropped with {lost} queued events"
        self._reports.write("subscriptions", logging.WARNING, f"{text}, because its event loop is closed")
