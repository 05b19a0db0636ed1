"""`open_ahead`: connections of lm15's transport that are made before the first requests, which find them as kept ones.

Called by `NativeEngine`. No other module touches lm15's pool of connections.
"""

from __future__ import annotations

import asyncio

from dspy._vendor.lm15.transports import StdlibAsyncTransport
from dspy._vendor.lm15.transports._proxy import proxy_route_for, route_origin
from dspy._vendor.lm15.transports._url import parse_url

from promptside.pools.clients.connections import CONNECT_SECONDS

__all__ = ["open_ahead"]


async def open_ahead(transport: StdlibAsyncTransport, address: str, count: int) -> None:
    """Open so many connections at the same time, or as many as can be: what is wrong, the first request will tell."""
    url = parse_url(address)
    proxy = proxy_route_for(url, proxy=transport._proxy, trust_env=transport._trust_env)
    origin = route_origin(url, proxy)

    async def open_one() -> None:
        connection = await transport._open(url, proxy=proxy, origin=origin, connect_timeout=CONNECT_SECONDS)
        await transport._pool.register_new(connection)
        await transport._pool.checkin(connection)

    await asyncio.gather(*(open_one() for _ in range(count)), return_exceptions=True)
