"""The MCP server that 10_agent_tools.py starts; any other MCP server would do."""

import os

from mcp.server import MCPServer

server = MCPServer("stock", log_level="ERROR")


@server.tool()
def count(item: str) -> str:
    """Count what is in stock."""
    return f"12 of {item}"


@server.tool()
def recount() -> str:
    """Count everything anew."""
    os._exit(1)  # as a crash would


server.run()
