"""For servers that answer byte by byte: the requests that they get."""

from __future__ import annotations

import asyncio
import re


async def read_request(reader: asyncio.StreamReader) -> bytes:
    """The next request, whole; empty when the client has closed.

    Clients write the head and the body apart. A server that closes with the body unread resets the connection, and the
    client may never see the answer.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        return head + (await reader.readexactly(int(length[1])) if length else b"")
    except asyncio.IncompleteReadError:
        return b""
