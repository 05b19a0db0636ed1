"""The MCP server of test_mcp.py: a script that serves on standard input and output, or on the HTTP port it is given."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from mcp.server import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests", log_level="CRITICAL")
meeting = asyncio.Condition()
guests_here: list[object] = []


@server.tool()
def pid() -> int:
    """Tell the process."""
    return os.getpid()


@server.tool()
def variable(name: str) -> str:
    """Read the environment."""
    return os.environ.get(name, "")


@server.tool()
def divide(a: int, b: int = 1) -> float:
    """Divide a by b."""
    if b == 0:
        raise ToolError("b must not be 0")
    return a / b


@server.tool()
async def meet(guests: int) -> str:
    """Wait until that many are here."""
    async with meeting:
        guests_here.append(object())
        meeting.notify_all()
        await meeting.wait_for(lambda: len(guests_here) >= guests)
    return "all here"


@server.tool()
async def hang(folder: str) -> None:
    """Never return; leave a file when it has begun, and one when it was cancelled."""
    leave(folder, "begun")
    try:
        await asyncio.Event().wait()
    finally:
        leave(folder, "cancelled")


def leave(folder: str, name: str) -> None:
    Path(folder, name).touch()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
