"""`SingleFlight`: identical deterministic requests that are under way at the same time make one call.

Made by the pool with its dispatcher, asked by the engine pair, on the pool's event loop: sync and async callers meet
there. DSPy's cache answers what was answered before, and not what is being asked now: 50 identical calls at once were
50 requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace

from dspy.lm15 import Request, Response, Usage

from promptside.events import EventBus
from promptside.pools.context.priority import current_priority
from promptside.pools.lm.attempt import CallSpan

__all__ = ["SingleFlight", "is_deterministic"]

NOTHING = Usage(input_tokens=0, output_tokens=0)
"""What a call has used that joined another one."""


def is_deterministic(request: Request) -> bool:
    """Whether a second answer would be the first one again: at temperature 0.

    An unset temperature is the provider's default, which samples. There DSPy tells wanted samples apart by their
    `rollout_id`, which no engine sees; at temperature 0, it warns, a `rollout_id` has no effect.
    """
    return bool(request.config.temperature == 0)


@dataclass(slots=True, eq=False)
class _Flight:
    """One call for several callers.

    Attributes:
        request: What is asked.
        work: The call.
        waiting: Callers who have not gone; without one it is cancelled.
        paid: Whether one of them was told what it used.
    """

    request: Request
    work: asyncio.Future[Response]
    waiting: int = 0
    paid: bool = False


class SingleFlight:
    """The shared calls that are under way.

    The call belongs to none of its callers: one that is cancelled leaves it to the others, the last one ends it. Only
    callers of one class and run share, so that a server's call never waits as one of an optimizer does.

    Args:
        events: Where the calls that join another one are told; the first one's is told by what answers it.
        path: Path of the pool, their source.
    """

    def __init__(self, events: EventBus, path: str) -> None:
        self._events = events
        self._path = path
        self._flights: dict[Hashable, _Flight] = {}

    async def complete(self, source: Hashable, request: Request, work: Callable[[], Awaitable[Response]]) -> Response:
        """The answer to `request`: of the call that is under way for it, else of `work`.

        Args:
            source: What answers; calls of different ones are not shared.
            request: A deterministic one.
            work: Makes the call. It runs in the context of the first caller.

        Returns:
            The same answer for all; what it used is told to one of them, and nothing to the others.

        Raises:
            Exception: What the call raised, to all of its callers.
        """
        key = source, current_priority(), repr(request)
        flight = self._flights.get(key)
        if flight is not None and not flight.work.done() and flight.request == request:  # a repr may leave out bytes
            call = CallSpan(self._events, self._path, request)
            try:
                response = await self._joined(key, flight)
            except BaseException as error:
                call.end(error)
                raise
            call.span.attributes = {**call.span.attributes, "shared": True}
            call.end(response=response)
            return response

        async def run() -> Response:
            return await work()

        flight = _Flight(request, asyncio.ensure_future(run()))  # noqa: TID251 - ended by its last caller
        self._flights[key] = flight
        flight.work.add_done_callback(lambda work: self._forget(key, work))
        return await self._joined(key, flight)

    async def _joined(self, key: Hashable, flight: _Flight) -> Response:
        flight.waiting += 1
        try:
            await asyncio.wait({flight.work})
        finally:
            flight.waiting -= 1
            if not flight.waiting and not flight.work.done():
                self._forget(key, flight.work)
                flight.work.cancel()
        response = flight.work.result()
        if flight.paid:
            return replace(response, usage=NOTHING)
        flight.paid = True
        return response

    def _forget(self, key: Hashable, work: asyncio.Future[Response]) -> None:
        flight = self._flights.get(key)
        if flight is not None and flight.work is work:
            del self._flights[key]
        if work.done() and not work.cancelled():
            work.exception()  # its callers may all have gone in the turn in which it failed
