"""An agent whose tools hang, fail and die: each call ends, soon, in something that the agent can read."""

import asyncio
import logging
import sys
import time
from pathlib import Path

import dspy

from promptside import ActorSystem, BreakerConfig, MCPSession, Program, tool
from promptside.errors import MCPUnavailable
from promptside.testing import MockLM

STOCK_SERVER = str(Path(__file__).with_name("stock_server.py"))


@tool
def find_order(id: str) -> str:
    """Look an order up."""
    time.sleep(0.1)  # it blocks, in a thread of its own
    return f"{id}: a lamp, parcel P-19"


@tool(timeout=0.2)
async def track(parcel: str) -> str:
    """Ask the courier where a parcel is."""
    await asyncio.sleep(3600)
    return f"{parcel} is on its way"


@tool(breaker=BreakerConfig(min_calls=2))
async def refund(id: str) -> str:
    """Pay an order back."""
    raise ConnectionError("the bank is down")


def model(*calls: tuple[str, dict[str, str]]) -> dspy.LM:
    """It calls these tools in turn, whatever they say; a real model would choose them."""
    turns = [{"next_thought": "...", "next_tool_name": name, "next_tool_args": args} for name, args in calls]
    answers = iter([*turns, {"next_thought": "...", "next_tool_name": "finish", "next_tool_args": {}}, "sorry"])
    return MockLM(lambda request: next(answers)).lm()


async def show(system: ActorSystem, name: str, tools: list[dspy.Tool], *calls: tuple[str, dict[str, str]]) -> None:
    agent = await Program(lambda: dspy.ReAct("task -> answer", tools=tools), name=name).start(system)
    prediction = await agent.acall(task="Where is order A7?", lm=model(*calls))
    for number, (called, _) in enumerate(calls):
        *_, last = str(prediction.trajectory[f"observation_{number}"]).splitlines()
        print(f"{called:10} -> {last.partition(';')[0]}")


async def show_mcp(system: ActorSystem) -> None:
    stock = await MCPSession([sys.executable, STOCK_SERVER], name="stock").start(system)
    tools = await stock.tools(timeout=10)
    count = ("count", {"item": "lamp"})
    await show(system, "storeman", tools, count, ("recount", {}), count)


async def main() -> None:
    logging.disable()
    async with ActorSystem() as system:
        again = ("refund", {"id": "A7"})
        calls = ("find_order", {"id": "A7"}), ("track", {"parcel": "P-19"}), again, again, again
        await show(system, "desk", [find_order, track, refund], *calls)
        try:
            await show_mcp(system)
        except MCPUnavailable as missing:  # the package
            print(missing)


asyncio.run(main())
