"""`promptside.pools.LMPool` as a type checker sees it: its keywords are those of `LMPoolConfig`. Checked, never run."""

from __future__ import annotations

from typing import assert_type

from promptside import ActorSystem
from promptside.pools import Endpoint, LMConfig, LMPool, LMPoolConfig, RetryConfig


async def a_pool_takes_endpoints_of_every_kind(system: ActorSystem) -> None:
    pool = LMPool("openai/a", Endpoint("openai/b"), LMConfig(model="openai/c"), workers=4, retry=RetryConfig())
    assert_type(await pool.start(system), LMPool)
    LMPool([Endpoint("openai/a")], config=LMPoolConfig(timeout=60), name="other")
    async with LMPool("openai/a") as entered:
        assert_type(entered, LMPool)


def a_script_enters_a_pool() -> None:
    with LMPool("openai/a") as pool:
        assert_type(pool, LMPool)


def a_wrong_setting_is_refused() -> None:
    LMPool("openai/a", workers="4")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    LMPool("openai/a", deadline=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    LMPool(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
