"""A client raises what it likes: its own call ends by it, and neither the worker nor another call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request, Response, ServerError, UnsupportedFeatureError

from promptside.pools import BreakerConfig, Endpoint, LMPool, RetryConfig
from promptside.pools.clients.litellm_call import setting_errors
from promptside.testing import MockLM
from tests.support.pools import async_engine


class Illegible(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class Trap(Exception):
    @property
    def status(self) -> int:
        raise KeyboardInterrupt


class IllegibleOfDSPy(dspy.LMServerError):  # type: ignore[misc]
    def __str__(self) -> str:
        raise ValueError("no text")


RAISED = {
    "SystemExit": lambda: SystemExit(1),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "a cancellation of its own": asyncio.CancelledError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "BaseException": BaseException,
    "a group": lambda: BaseExceptionGroup("several", [SystemExit(1), ValueError()]),
    "MemoryError": MemoryError,
    "RecursionError": RecursionError,
    "without a text": Illegible,
    "with a trap": Trap,
    "of DSPy without a text": lambda: IllegibleOfDSPy("it failed", model="m"),
}


class Client:
    """An engine that raises before its answer, within it, or not."""

    def __init__(self) -> None:
        self.raised: Any = None
        self.pieces = 0
        self._mock = MockLM("hello world").async_engine

    async def complete(self, request: Request) -> Response:
        if self.raised is not None:
            raise self.raised()
        answer: Response = await self._mock.complete(request)
        return answer

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        sent = 0
        async for event in self._mock.stream(request):
            if self.raised is not None and sent == self.pieces:
                raise self.raised()
            sent += 1
            yield event

    async def aclose(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("way", ["async", "sync", "stream", "within a stream"])
@pytest.mark.parametrize("raised", RAISED)
async def test_what_a_client_raises_ends_its_own_call(raised: str, way: str) -> None:
    client = Client()
    never = BreakerConfig(min_calls=1_000)
    async with LMPool(Endpoint("mock/m", engine=client), retry=RetryConfig(attempts=1), breaker=never) as pool:
        lm = pool.lm(cache=False)
        client.raised, client.pieces = RAISED[raised], 2 if way == "within a stream" else 0
        with pytest.raises(Exception) as caught:
            if way == "async":
                await lm.acall("hi")
            elif way == "sync":
                await asyncio.to_thread(lm, "hi")
            else:
                request = Request(lm.model, (Message.user("hi"),))
                async for _ in async_engine(lm).stream(request):
                    pass
        assert isinstance(caught.value, dspy.LMError)
        assert str(caught.value)
        client.raised = None
        assert await lm.acall("hi") == ["hello world"]
        assert [worker.incarnation for worker in pool.worker_refs().values()] == [1, 1]
        stats = pool.stats()["mock/m"]
        assert (stats["attempts"], stats["failures"], stats["in_flight"]) == (2, 1, 0)


async def test_a_cancelled_call_is_cancelled_as_before() -> None:
    began = asyncio.Event()

    class Slow(Client):
        async def complete(self, request: Request) -> Response:
            loop.call_soon_threadsafe(began.set)
            await asyncio.Event().wait()
            raise AssertionError("not reached")

    loop = asyncio.get_running_loop()
    async with LMPool(Endpoint("mock/m", engine=Slow())) as pool:
        call = asyncio.ensure_future(pool.lm(cache=False).acall("hi"))
        await began.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call


@pytest.mark.parametrize(
    ("behind", "kind"),
    [
        (TypeError("create() got an unexpected keyword argument 'seed'"), UnsupportedFeatureError),
        (ValueError("odd"), ServerError),
    ],
)
def test_the_causes_of_a_clients_error_may_go_in_a_circle(behind: Exception, kind: type[Exception]) -> None:
    error = ServerError("no answer")
    error.__cause__, behind.__cause__ = behind, error
    with pytest.raises(kind), setting_errors():
        raise error
