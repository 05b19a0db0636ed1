"""A server reached by TLS, and by way of a proxy (`CONNECT`), for real sockets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import pytest
import trustme


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, asyncio.IncompleteReadError):
        while piece := await reader.read(65_536):
            writer.write(piece)
            await writer.drain()
    writer.close()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """Copy both ways, until one side closes."""
    try:
        other_reader, other_writer = await asyncio.open_connection(host, port)
    except OSError:
        writer.close()
        return
    await asyncio.gather(_copy(reader, other_writer), _copy(other_reader, writer))


@asynccontextmanager
async def by_proxy(url: str, patch: pytest.MonkeyPatch, directory: str) -> AsyncIterator[tuple[str, list[str]]]:
    """An https address that leads to `url` by the environment's proxy, and what the proxy was asked for."""
    target, asked, authority = urlsplit(url), [], trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(f"{directory}/authority.pem")
    assert target.hostname is not None
    assert target.port is not None
    host, port = target.hostname, target.port

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        place = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        asked.append(place)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        await _join(reader, writer, "127.0.0.1", int(place.rpartition(":")[2]))

    async with (
        await asyncio.start_server(lambda r, w: _join(r, w, host, port), "127.0.0.1", 0, ssl=context) as secure,
        await asyncio.start_server(proxy, "127.0.0.1", 0) as way,
    ):
        patch.setenv("SSL_CERT_FILE", f"{directory}/authority.pem")
        patch.setenv("REQUESTS_CA_BUNDLE", f"{directory}/authority.pem")
        for name in ("HTTPS_PROXY", "https_proxy"):
            patch.setenv(name, f"http://127.0.0.1:{way.sockets[0].getsockname()[1]}")
        yield f"https://localhost:{secure.sockets[0].getsockname()[1]}{target.path}", asked
