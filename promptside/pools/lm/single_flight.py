"""`SingleFlight`: identical deterministic requests that are under way at the same time make one call.

Called by the engine pair, on the pool's event loop, where sync and async callers meet. DSPy's cache knows answers, and
not calls under way: 50 identical calls at once were 50 requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, replace

from dspy.lm15 import Request, Usage

from promptside.events import EventBus
from promptside.pools.clients.requests import Origin, with_origin
from promptside.pools.context.labels import current_labels
from promptside.pools.context.priority import current_priority
from promptside.pools.lm.attempt import Answer, CallSpan

__all__ = ["SingleFlight", "is_deterministic"]

NO_USAGE = Usage(input_tokens=0, output_tokens=0)
"""Of a call that joined another one."""


def is_deterministic(request: Request) -> bool:
    """Whether the temperature is 0.

    An unset temperature is the provider's default, which samples: DSPy tells wanted samples apart by their
    `rollout_id`, which no engine sees, and which has no effect at temperature 0.
    """
    return bool(request.config.temperature == 0)


@dataclass(slots=True, eq=False)
class _SharedCall:
    """One call for several callers.

    Attributes:
        request: The request.
        work: The call.
        waiting: Callers that wait; without one it is cancelled.
        usage_given: Whether one of them got its usage.
    """

    request: Request
    work: asyncio.Future[Answer]
    waiting: int = 0
    usage_given: bool = False


class SingleFlight:
    """The shared calls that are under way.

    A cancelled caller leaves the call to the others; the last one cancels it. Only callers of one priority and batch
    share, so that a server's call never waits in an outage as an optimizer's does.

    Args:
        events: Where calls that join another one are published; the backend publishes the first one.
        path: Path of the pool, their source.
        by_labels: Whether only callers with the same labels share, because the labels choose the key that is sent.
    """

    def __init__(self, events: EventBus, path: str, *, by_labels: bool = False) -> None:
        self._events = events
        self._path = path
        self._by_labels = by_labels
        self._calls: dict[Hashable, _SharedCall] = {}

    async def complete(self, backend: Hashable, request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer to `request`: of the call that is under way for it, else of `work`.

        Args:
            backend: The dispatcher or a vote; calls of different ones are not shared.
            request: A deterministic one.
            work: Makes the call, in the context of the first caller.

        Returns:
            The same answer for all; one of them gets its usage, the others none.

        Raises:
            Exception: The error of the call, to all of its callers.
        """
        labels = frozenset(current_labels().items()) if self._by_labels else None
        key = backend, current_priority(), labels, repr(request)
        shared = self._calls.get(key)
        if shared is not None and not shared.work.done() and shared.request == request:  # a repr may leave out bytes
            span = CallSpan(self._events, self._path, request)
            try:
                answer = await self._join(key, shared)
            except BaseException as error:
                span.end(error)
                raise
            answered = {"endpoint": answer.endpoint, "response_model": answer.model}
            span.span.attributes = {**span.span.attributes, **answered, "shared": True}
            span.end(response=answer.response)
            return answer

        async def run() -> Answer:
            return await work()

        shared = _SharedCall(request, asyncio.ensure_future(run()))  # noqa: TID251 - ended by its last caller
        self._calls[key] = shared
        shared.work.add_done_callback(lambda work: self._forget(key, work))
        return await self._join(key, shared)

    async def _join(self, key: Hashable, shared: _SharedCall) -> Answer:
        shared.waiting += 1
        try:
            await asyncio.wait({shared.work})
        finally:
            shared.waiting -= 1
            if not shared.waiting and not shared.work.done():
                self._forget(key, shared.work)
                shared.work.cancel()
        answer = shared.work.result()
        if shared.usage_given:
            response = replace(answer.response, usage=NO_USAGE)
            origin = getattr(response, "origin", None)
            return replace(answer, response=with_origin(response, replace(origin or Origin(), cost=0.0)))
        shared.usage_given = True
        return answer

    def _forget(self, key: Hashable, work: asyncio.Future[Answer]) -> None:
        shared = self._calls.get(key)
        if shared is not None and shared.work is work:
            del self._calls[key]
        if work.done() and not work.cancelled():
            work.exception()  # all its callers may have been cancelled as it failed
