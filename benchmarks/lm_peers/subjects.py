"""The subjects of `benchmarks.lm_pool`: ways to call a chat model, each opened once and called with one question.

Each is used as its documentation says, with its own retries, and without an answer cache. Where it has a setting for
them, it may have 300 connections, so that its width is not what is compared; `dspy.LM` has none, and opens 100.
What a subject needs is imported when it is opened: litellm takes 3 to 6 s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

__all__ = ["DSPY", "SUBJECTS", "Call", "Opened"]

Call = Callable[[str], Awaitable[object]]
Opened = Callable[[str], AbstractAsyncContextManager[Call]]

KEY, CONNECTIONS = "none", 300
MODEL = "openai/gpt-4o-mini"  # one that price tables list: to miss costs DSPy 1 ms a call


def said(question: str) -> Any:
    return [{"role": "user", "content": question}]


@asynccontextmanager
async def promptside(url: str) -> AsyncIterator[Call]:
    from promptside import ActorSystem
    from promptside.pools import Endpoint, LMPool

    async with ActorSystem() as system:
        endpoint = Endpoint(MODEL, api_base=url, api_key=KEY, max_connections=CONNECTIONS // 2)
        pool = await LMPool(endpoint, workers=2).start(system)
        yield pool.lm(cache=False).acall


@asynccontextmanager
async def dspy_native(url: str) -> AsyncIterator[Call]:
    import dspy

    yield dspy.LM(MODEL, api_base=url, api_key=KEY, cache=False, engine="lm15").acall


@asynccontextmanager
async def dspy_litellm(url: str) -> AsyncIterator[Call]:
    import dspy

    yield dspy.LM(MODEL, api_base=url, api_key=KEY, cache=False, engine="litellm").acall


@asynccontextmanager
async def litellm(url: str) -> AsyncIterator[Call]:
    from litellm import acompletion

    async def call(question: str) -> object:
        return await acompletion(MODEL, said(question), api_base=url, api_key=KEY)

    yield call


@asynccontextmanager
async def litellm_router(url: str) -> AsyncIterator[Call]:
    from litellm import Router

    settings = {"model": MODEL, "api_base": url, "api_key": KEY}
    router = Router([{"model_name": "mini", "litellm_params": settings}])

    async def call(question: str) -> object:
        return await router.acompletion("mini", said(question))

    yield call


@asynccontextmanager
async def openai(url: str) -> AsyncIterator[Call]:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=url, api_key=KEY) as client:

        async def call(question: str) -> object:
            return await client.chat.completions.create(model="gpt-4o-mini", messages=said(question))

        yield call


@asynccontextmanager
async def aiohttp(url: str) -> AsyncIterator[Call]:
    from aiohttp import ClientSession, TCPConnector

    headers = {"authorization": f"Bearer {KEY}"}
    async with ClientSession(connector=TCPConnector(limit=CONNECTIONS), headers=headers) as session:

        async def call(question: str) -> Any:
            body = {"model": "gpt-4o-mini", "messages": said(question)}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                response.raise_for_status()
                return await response.json()

        yield call


SUBJECTS: dict[str, Opened] = {
    "promptside": promptside,
    "aiohttp": aiohttp,
    "dspy": dspy_native,
    "litellm-router": litellm_router,
    "openai": openai,
    "litellm": litellm,
    "dspy-litellm": dspy_litellm,
}

DSPY = ("promptside", "dspy", "dspy-litellm")
"""Those that are called as a `dspy.LM`."""
