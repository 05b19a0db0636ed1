"""The bus: publishers on any thread tell every listener whose pattern matches.

Every `ActorSystem` has one as `system.events`; actors, pools and programs publish, and hooks, subscriptions and sinks
listen. Publishing never waits and never fails: listeners are plain functions, run inline, or bounded queues.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, NamedTuple, cast

from promptside import clock
from promptside.callables import is_async
from promptside.events.content import NOTHING, Content
from promptside.events.event import Event, build_event
from promptside.events.hooks import AsyncHook, Hook, SyncHook
from promptside.events.listener import Listener
from promptside.events.patterns import compile_pattern
from promptside.events.subscription import Audience, Overflow, Subscription, deliver

__all__ = ["EventBus"]

HOOK_QUEUE: Final = 1000
"""Events that may wait for an asynchronous hook; beyond it the oldest is dropped and counted."""

CANCEL_GRACE: Final = 1.0
"""Seconds that `EventBus.aclose` waits for a cancelled hook; one that swallows its cancellation is then reported."""

FULL: Final = 64
"""Events for which the bound of each queue is checked one by one once a queue was found full."""

MAX_ROUTES: Final = 4096
"""Types whose listeners are remembered, so that an application that puts ids into types does not fill the memory."""

UNHEARD_LEVELS: Final[Mapping[str, int]] = {
    "actor.crashed": logging.ERROR,
    "supervisor.gave_up": logging.ERROR,
    "message.dead": logging.WARNING,
}
"""Types that are logged when nobody listens, with their level."""

_logger = logging.getLogger("promptside")
_events_logger = logging.getLogger("promptside.events")


class _Route(NamedTuple):
    """Who hears one type; `audience` is the subscriptions as `deliver` wants them."""

    audience: Audience
    taps: tuple[Listener, ...]
    hooks: tuple[SyncHook, ...]
    unheard_level: int | None


_UNHEARD: Final = _Route(Audience(()), (), (), None)


class EventBus:
    """Publish and subscribe within one process.

    **Order.** Each published event takes the next `seq`, heard or not, so a listener to ``*`` that sees a gap has lost
    something, and one to a narrower pattern counts its losses by `Subscription.dropped`. Every subscription sees `seq`
    grow, whatever threads publish; plain hooks run after the queues are filled and outside any lock, so those of two
    threads may overlap. (One exception: a finalizer or signal handler that publishes while its own thread is publishing
    comes before the event it interrupts.)

    **Cost**, measured on two slow shared cores: 0.25 us for an event that nobody hears, 2.5 us for one that somebody
    hears and 0.1 us more for each further subscription. The first event of a type after listeners have come or gone
    costs O(listeners).

    **Unheard.** Types that report a loss reach the logger ``promptside`` when no listener matches: ``actor.crashed``
    and ``supervisor.gave_up`` as errors, ``message.dead`` as a warning.

    Args:
        content: What those who publish calls of programs and models may tell of their content; nothing by default.

    Attributes:
        content: As given.

    Raises:
        TypeError: `content` is none.
    """

    def __init__(self, content: Content = NOTHING) -> None:
        if not isinstance(content, Content):
            raise TypeError(f"content={content!r}: give a promptside.events.Content(...)")
        self.content = content
        self._prefix = secrets.token_hex(6)
        self._seq = itertools.count(1)
        # Reentrant, because a finalizer that publishes may interrupt a publish of its own thread. Held only to fill
        # queues and to change the listeners: never while a hook, the logging module or a loop's wake-up runs.
        self._lock = threading.RLock()
        self._subscriptions: tuple[Subscription, ...] = ()
        self._idle: set[Subscription] = set()
        self._room = 0  # events that every queue has room for, at least; below 0, events until that is looked up again
        self._taps: tuple[Listener, ...] = ()
        self._hooks: tuple[SyncHook, ...] = ()
        self._ending: set[Listener] = set()
        self._running: set[AsyncHook] = set()
        self._routes: dict[str, _Route] = {}
        self._closed = False

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
    ) -> None:
        """Tell every listener of `type` what happened. Callable from any thread and loop, and after `aclose`.

        Never waits for a listener and never raises for one. Matching plain hooks have run when it returns.

        Args:
            type: Dotted words, past tense; those of promptside itself are in `CATALOGUE`.
            source: Path of the actor, or another name of the place.
            data: JSON-safe, not to be changed afterwards: listeners get this very object. None means none.
            incarnation: Incarnation of the actor at `source`.
            trace_id: See `Event`, as for the following.
            span_id: See `Event`.
            parent_id: See `Event`.
            run_id: See `Event`.
            call_id: See `Event`.
            session_id: See `Event`.
        """
        route = self._routes.get(type) or self._find_route(type)
        if route is _UNHEARD:
            next(self._seq)
            return
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        with self._lock:
            # Looked up again: whoever closes a subscription may rely on it that nothing arrives afterwards.
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
            elsewhere = deliver(event, route.audience, here, self._idle, room=self._has_room())
            for tap in route.taps:
                tap.put(event)
        heard = len(route.audience.members) + len(route.taps) + len(route.hooks)
        for subscription in elsewhere:
            if not subscription.wake():
                heard -= 1
                self._bury(subscription)
        if not heard and route.unheard_level is not None:
            _logger.log(route.unheard_level, "%s from %s: %s", type, source, event.data)
        for hook in route.hooks:
            hook.run(event)

    def wants(self, type: str) -> bool:
        """Whether an event of this type would be heard or logged; if not, its payload need not be built."""
        return (self._routes.get(type) or self._find_route(type)) is not _UNHEARD

    def on(self, pattern: str) -> Callable[[Callable[[Event], object]], Hook]:
        """Call a function for every event that matches; a decorator.

        ::

            @system.events.on("breaker.*")
            def warn(event: Event) -> None: ...

            warn.detach()

        A plain function runs inline, in whatever thread publishes: keep it short. It is not called for what it
        publishes itself while it runs; such events count as `Hook.dropped`. An ``async def`` function runs in a task of
        its own on the loop where it was registered, one event after the other, behind a queue of 1,000 that drops its
        oldest.

        A hook that raises is logged to ``promptside.events``; after five failures in a row it is detached.

        Args:
            pattern: As for `subscribe`.

        Returns:
            A decorator that returns a `Hook`: the handle to detach it, and callable as the function was.

        Raises:
            TypeError: `pattern` is not a string.
            ValueError: `pattern` is not valid.
            RuntimeError: From the decorator: the bus is closed, or no loop is running for an asynchronous function.
        """
        compile_pattern(pattern)

        def register(callback: Callable[[Event], object]) -> Hook:
            if isinstance(callback, Hook):
                callback = callback.callback
            if is_async(callback):
                return self._start_hook(pattern, cast("Callable[[Event], Awaitable[object]]", callback))
            hook = SyncHook(pattern, callback, self._remove_hook)
            with self._lock:
                self._check_open()
                self._hooks += (hook,)
                self._routes = {}
            return hook

        return register

    def subscribe(self, pattern: str = "*", *, maxsize: int = 1000, overflow: Overflow = "drop_oldest") -> Subscription:
        """Read every event that matches as an async iterator: ``async with bus.subscribe("lm.*") as stream``.

        Args:
            pattern: Words joined by dots; ``*`` stands for one word, and at the end for one or more: ``lm.*``,
                ``lm.*.failed``, ``breaker.opened``, ``*``.
            maxsize: Events that may wait for the consumer, at least 1.
            overflow: What a full queue does: ``"drop_oldest"`` or ``"drop_newest"``.

        Returns:
            The subscription, which listens while its ``async with`` is entered.

        Raises:
            TypeError: `pattern` is not a string.
            ValueError: An argument is not valid.
        """
        return Subscription(
            pattern,
            maxsize=maxsize,
            overflow=overflow,
            attach=self._attach,
            detach=self._remove,
            lock=self._lock,
            idle=self._idle,
        )

    def attach(self, tap: Listener) -> AbstractContextManager[object]:
        """Let a sink hear what it matches, until it calls `detach` or the bus closes; for those who write sinks.

        Args:
            tap: It is kept until its `ended` is done, and `aclose` waits for that.

        Returns:
            The lock under which `put` is called; hold it for a moment only.

        Raises:
            RuntimeError: The bus is closed.
        """
        with self._lock:
            self._check_open()
            self._taps += (tap,)
            self._ending.add(tap)
            self._routes = {}
        tap.ended.add_done_callback(lambda _: self._forget_tap(tap))
        return self._lock

    def detach(self, tap: Listener) -> None:
        """Put no more events into a sink, from any thread."""
        with self._lock:
            self._taps = tuple(other for other in self._taps if other is not tap)
            self._routes = {}

    async def aclose(self, *, drain: float = 1.0) -> None:
        """End every subscription, hook and sink. Iterators give what is queued and then end; later events are unheard.

        Sinks end last, so that they hold what hooks publish on their way out; each writes what it has, within its own
        `flush_timeout`.

        Args:
            drain: Seconds that asynchronous hooks get for what is queued; then they are cancelled, and get one second
                to end.
        """
        with self._lock:
            self._closed = True
            subscriptions, plain, running = self._subscriptions, self._hooks, tuple(self._running)
        for hook in plain:
            hook.detach()
        for subscription in subscriptions:
            subscription.close()
        try:
            await self._end_hooks([hook for hook in running if hook.must_be_awaited], drain)
        finally:
            with self._lock:
                taps = tuple(self._ending)
            for tap in taps:
                tap.end()
        for tap in taps:
            await tap.stop()

    async def _end_hooks(self, waiting: list[AsyncHook], drain: float) -> None:
        try:
            await _wait_for(waiting, drain)
        finally:
            # Also when this call is itself cancelled: no task may outlive the bus.
            late = [hook for hook in waiting if not hook.ended.done()]
            for task in late:
                task.cancel()
        await _wait_for(late, CANCEL_GRACE)
        for task in late:
            if not task.ended.done():
                _events_logger.error("%r did not end within %g s of its cancellation", task, CANCEL_GRACE)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the event bus is closed; listen before its actor system ends")

    def _has_room(self) -> bool:
        """Whether every queue has room for one more; as consumers only make room, one look is good for many events."""
        if self._room < 0:
            self._room += 1
            return False
        if self._room == 0:
            self._room = min((each.room for each in self._subscriptions), default=0) or -FULL
        self._room -= self._room > 0
        return self._room >= 0

    def _find_route(self, type: str) -> _Route:
        with self._lock:
            subscriptions = tuple(subscription for subscription in self._subscriptions if subscription.matches(type))
            taps = tuple(tap for tap in self._taps if tap.matches(type))
            hooks = tuple(hook for hook in self._hooks if hook.matches(type))
            level = UNHEARD_LEVELS.get(type)
            heard = subscriptions or taps or hooks or level is not None
            route = _Route(Audience(subscriptions), taps, hooks, level) if heard else _UNHEARD
            if len(self._routes) >= MAX_ROUTES:
                self._routes = {}
            self._routes[type] = route
            return route

    def _attach(self, subscription: Subscription) -> None:
        with self._lock:
            self._check_open()
            self._subscriptions += (subscription,)
            self._routes = {}
            self._room = 0

    def _remove(self, subscription: Subscription) -> None:
        with self._lock:
            self._subscriptions = tuple(other for other in self._subscriptions if other is not subscription)
            self._routes = {}

    def _remove_hook(self, hook: SyncHook) -> None:
        with self._lock:
            self._hooks = tuple(other for other in self._hooks if other is not hook)
            self._routes = {}

    def _start_hook(self, pattern: str, callback: Callable[[Event], Awaitable[object]]) -> AsyncHook:
        # One step, so that an `aclose` in another thread finds both the subscription and the task, or neither.
        with self._lock:
            hook = AsyncHook(callback, self.subscribe(pattern, maxsize=HOOK_QUEUE))
            self._running.add(hook)
        hook.ended.add_done_callback(lambda _: self._forget(hook))
        return hook

    def _forget(self, hook: AsyncHook) -> None:
        with self._lock:
            self._running.discard(hook)

    def _forget_tap(self, tap: Listener) -> None:
        with self._lock:
            self._ending.discard(tap)

    def _bury(self, subscription: Subscription) -> None:
        """Drop a subscriber whose loop was closed under it: nobody will ever read its queue."""
        subscription.close()
        lost = subscription.discard()
        with self._lock:
            for hook in [hook for hook in self._running if hook.stream is subscription]:
                hook.attached = False
                self._running.discard(hook)
        _events_logger.warning(
            "a subscriber to %r is dropped with %d queued events, because its event loop is closed",
            subscription.pattern,
            lost,
        )


async def _wait_for(hooks: Iterable[AsyncHook], timeout: float) -> None:
    ends = [asyncio.wrap_future(hook.ended) for hook in hooks]
    if ends:
        await asyncio.wait(ends, timeout=timeout)
