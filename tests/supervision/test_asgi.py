"""A web client that leaves, at any moment, of any handler: what was asked for it ends, and nothing else does."""

from __future__ import annotations

import asyncio
import runpy
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import dspy
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

from promptside import ActorSystem, CancelOnDisconnect, Endpoint, LMPool, MailboxFull, Program
from promptside.errors import PoolSaturated, QueueTimeout
from promptside.pools import LMPoolSaturated, LMQueueTimeout, PoolUnavailable
from promptside.testing import MockLM
from tests.support.actors import hear, until

ROOT = Path(__file__).parents[2]
EXAMPLES = ["04_asgi_service.py", "12_fastapi.py"]
CALLERS = 20


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """The application on a real server; gives its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    running = asyncio.ensure_future(server.serve())
    await until(lambda: server.started or running.done())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await running


class Handlers:
    """Handlers that wait, and what became of them."""

    def __init__(self) -> None:
        self.entered = 0
        self.cancelled = 0
        self.finished = 0
        self.go = asyncio.Event()

    async def wait(self) -> None:
        self.entered += 1
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1

    async def get(self, request: Request) -> PlainTextResponse:
        await self.wait()
        return PlainTextResponse("done")

    async def post(self, request: Request) -> PlainTextResponse:
        body = await request.body()
        await self.wait()
        return PlainTextResponse(str(len(body)))

    async def unread(self, request: Request) -> PlainTextResponse:
        await self.wait()
        return PlainTextResponse("done")

    async def asks_whether_it_is_gone(self, request: Request) -> PlainTextResponse:
        assert len(await request.body()) > 0
        assert not await request.is_disconnected()
        await self.wait()
        return PlainTextResponse("done")

    async def stream(self, request: Request) -> StreamingResponse:
        async def parts() -> AsyncIterator[str]:
            yield "first"
            await self.wait()

        return StreamingResponse(parts())

    async def background(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse("done", background=BackgroundTask(self.wait))

    def app(self) -> Starlette:
        handlers = (self.get, self.post, self.unread, self.asks_whether_it_is_gone, self.stream, self.background)
        routes = [Route(f"/{each.__name__}", each, methods=["GET", "POST"]) for each in handlers]
        return Starlette(routes=routes, middleware=[Middleware(CancelOnDisconnect)])


BODIES = {"get": b"", "post": b"x" * 300_000, "unread": b"x", "asks_whether_it_is_gone": b"x", "stream": b"x"}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("leaves", [True, False])
async def test_a_handler_is_cancelled_when_its_client_leaves_and_else_answers(name: str, leaves: bool) -> None:
    handlers = Handlers()
    async with serving(handlers.app()) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        method = "GET" if name == "get" else "POST"
        asked = asyncio.ensure_future(client.request(method, f"/{name}", content=BODIES[name]))
        await until(lambda: handlers.entered)
        if leaves:
            asked.cancel()
            await until(lambda: handlers.cancelled)
        else:
            handlers.go.set()
            response = await asked
            assert response.status_code == 200
            assert response.text == {"post": "300000", "stream": "first"}.get(name, "done")
            assert (handlers.finished, handlers.cancelled) == (1, 0)


async def test_what_runs_after_the_response_goes_on_when_the_client_leaves() -> None:
    handlers = Handlers()
    async with serving(handlers.app()) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            assert (await client.get("/background")).text == "done"
        await until(lambda: handlers.entered)
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:  # the server has noticed that the first left
            await client.get("/background")
        handlers.go.set()
        await until(lambda: handlers.finished == 2)
        assert handlers.cancelled == 0


async def test_other_errors_and_other_connections_pass_as_they_are() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])
        raise KeyError("mine")

    for kind in ("http", "websocket", "lifespan"):
        with pytest.raises(KeyError, match="mine"):
            await CancelOnDisconnect(app)({"type": kind}, asyncio.Event().wait, None)  # type: ignore[arg-type]
    assert seen == ["http", "websocket", "lifespan"]


# -- the examples of the how-tos -----------------------------------------------------------------------------------


@pytest.mark.parametrize("example", EXAMPLES)
async def test_callers_who_leave_end_their_paid_calls_in_the_examples(example: str) -> None:
    shown = runpy.run_path(str(ROOT / "examples" / example))
    model, heard = MockLM("Paris", latency=3600), []

    async def start(system: ActorSystem) -> Program:
        heard.append(hear(system.events, "lm.*"))
        pool = await LMPool(Endpoint("mock/atlas", engine=model)).start(system)
        lm = pool.lm(cache=False)
        return await Program(lambda: dspy.Predict("question -> answer"), name="desk", lm=lm).start(system)

    def count(*types: str) -> int:
        return sum(event.type in types for event in heard[0])

    shown["service"]._start = start
    async with serving(shown["app"]) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        asked = [
            asyncio.ensure_future(client.post("/answer", json={"question": f"{number}?"})) for number in range(CALLERS)
        ]
        await until(lambda: count("lm.attempt.started") == CALLERS)
        for each in asked:
            each.cancel()
        await until(lambda: count("lm.call.stopped", "lm.call.failed") == CALLERS)
        model.latency = 0.0
        answer = await client.post("/answer", json={"question": "once more?"})
        assert (answer.status_code, answer.json()) == (200, {"answer": "Paris"})


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (MailboxFull("desk", 1000), "1"),
        (LMQueueTimeout("lm", 2.4, model="mock/atlas"), "3"),
        (QueueTimeout("search", 30), "30"),
        (LMPoolSaturated("lm", 10, model="mock/atlas"), "1"),
        (PoolSaturated("search", 10), "1"),
        (PoolUnavailable("it is being restarted", retry_after=4.0), "4"),
    ],
)
async def test_a_service_that_is_full_answers_503_and_when_to_ask_again(
    example: str, error: Exception, seconds: str
) -> None:
    shown = runpy.run_path(str(ROOT / "examples" / example))
    app: Starlette | FastAPI = shown["app"]

    class Full:
        async def acall(self, **inputs: object) -> object:
            raise error

    async def start(system: object) -> Full:
        return Full()

    shown["service"]._start = start
    async with app.router.lifespan_context(app):
        transport: Callable[..., Awaitable[Any]] | Any = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/answer", json={"question": "?"})
    assert (response.status_code, response.headers["Retry-After"]) == (503, seconds)


def test_the_application_of_the_middleware_can_be_called() -> None:
    with pytest.raises(ValueError, match=r"^CancelOnDisconnect: app=5: give an ASGI application"):
        CancelOnDisconnect(5)
