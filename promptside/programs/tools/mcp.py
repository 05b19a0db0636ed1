"""`MCPSession`: the tools of an MCP server, under supervision.

Users make it, start it and give its tools to an agent. Its connection is an actor: calls of any number of agents are
asked of it, and when the server dies, its supervisor connects again, and the tools go on with the new one. The package
`mcp`, of the extra of that name, speaks MCP; it is imported when a session connects.
"""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import math
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import anyio
import dspy

from promptside.actors import Actor, ActorRef, Down
from promptside.checks import check, check_seconds
from promptside.errors import ActorError, MCPUnavailable, ToolTimeout
from promptside.events import EventBus
from promptside.pools import BreakerConfig
from promptside.pools.resilience.breaker import Outcome
from promptside.programs.hosting.hosted_class import ask
from promptside.programs.tools.tool import SupervisedTool, tool
from promptside.supervision import Backoff, ChildSpec, Supervisor
from promptside.supervision.handle import Handle
from promptside.texts import describe

if TYPE_CHECKING:
    from mcp import Client
    from mcp.types import CallToolResult, Tool

__all__ = ["MCPSession"]

ServerSource: TypeAlias = str | Sequence[str] | Callable[[], Any]
Connect: TypeAlias = Callable[[anyio.Event], AbstractAsyncContextManager["Client"]]

BACKOFF = Backoff(initial=0.1, maximum=10.0, reset_after=10.0)

UNWIND = 10.0
"""Seconds for a server to end: its standard input is closed, 2 s later it is terminated, 2 s later killed."""


class MCPSession(Handle[ActorRef["MCPConnection"]]):
    """The connection to one MCP server, in any number of incarnations.

    ::

        files = await MCPSession(["uvx", "mcp-server-git"], name="git").start(system)
        agent = await Program(dspy.ReAct("task -> result", tools=await files.tools())).start(system)

    A server that is started by a command ends with the session; `stop` gives calls under way 5 s. When the server dies,
    calls under way fail, and it is started again, after 0.1 s and, while it goes on failing, up to 10 s; calls that
    come meanwhile wait up to 5 s for it. An agent reads each failure as an observation. The session never gives up:
    a server that is down is no failure of the tree around it.

    Args:
        server: A command and its arguments, for a server on standard input and output; a URL, for one on streamable
            HTTP; or a function without arguments that returns what `mcp.Client` takes, for an environment, a folder or
            headers of your own. It is called for each connection.
        name: Of the session in the tree and the registry.
        connect_timeout: Seconds that connecting may take, and listing the tools, > 0.

    Raises:
        MCPUnavailable: The package is not installed.
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(self, server: ServerSource, *, name: str = "mcp", connect_timeout: float = 30.0) -> None:
        command = isinstance(server, Sequence) and len(server) > 0 and all(isinstance(part, str) for part in server)
        valid = callable(server) or command
        check("MCPSession", "server", server, valid, "give a command as a list of texts, a URL, or a function")
        valid = not isinstance(server, str) or server.startswith(("http://", "https://"))
        check("MCPSession", "server", server, valid, "this is no URL; give a command as a list of texts")
        check_seconds("MCPSession", "connect_timeout", connect_timeout)
        super().__init__(name)
        self._connect = functools.partial(_connect, server)
        self._connect_timeout = connect_timeout
        if importlib.util.find_spec("mcp") is None:
            raise MCPUnavailable(name, 'the package mcp is not installed; run: pip install "promptside[mcp]"')

    @property
    def ref(self) -> ActorRef[MCPConnection]:
        """The connection's actor; the same across its restarts. Raises `NotStarted`."""
        return self._running()

    def _make_actor(self) -> MCPSupervisor:
        return MCPSupervisor(self, functools.partial(MCPConnection, self.name, self._connect, self._connect_timeout))

    async def tools(
        self, *, timeout: float = 30.0, breaker: BreakerConfig | None = None, events: EventBus | None = None
    ) -> list[SupervisedTool]:
        """The tools that the server offers now, for an agent; they stay good when it is started again.

        Args:
            timeout: Seconds that a call of one may take, > 0. Then it is cancelled at the server.
            breaker: As in `tool`. An error that the tool itself reports is no failure: the server works.
            events: As in `tool`.

        Raises:
            MCPUnavailable: The connection broke.
            NotStarted: The session was never started.
            ActorStopped: The session does not run.
            AskTimeout: The server did not list them within `connect_timeout`.
        """
        supervise = functools.partial(tool, timeout=timeout, breaker=breaker, outcome=_outcome, events=events)
        listed = await ask(
            ActorRef.ask, lambda: self.ref.with_options(timeout=self._connect_timeout), 1, MCPConnection.list_tools
        )
        return [supervise(dspy.Tool.from_mcp_tool(self, each)) for each in listed]

    async def call_tool(self, name: str, arguments: dict[str, Any] | None = None) -> CallToolResult:
        """Call a tool, as `mcp.Client.call_tool`; from any event loop. A cancellation reaches the server.

        It has no timeout of its own, as those of `tools` have.

        Args:
            name: Of the tool.
            arguments: By name.

        Raises:
            MCPUnavailable: The connection broke during the call.
            ActorStopped: The session does not run, or is not back after 5 s.
            mcp.MCPError: The server refused the call.
        """
        return await ask(ActorRef.ask, lambda: self.ref, 1, MCPConnection.call_tool, name, arguments)


class MCPSupervisor(Supervisor):
    """The actor of a session: the supervisor of its connection.

    Args:
        handle: The session.
        connect: Makes the connection.
    """

    def __init__(self, handle: Handle[ActorRef[MCPConnection]], connect: Callable[[], MCPConnection]) -> None:
        handle.claim(self)
        self._handle = handle
        super().__init__([ChildSpec("connection", connect, backoff=BACKOFF)], max_restarts=sys.maxsize)

    async def on_start(self) -> None:
        """Connect, then take calls."""
        await super().on_start()
        self._handle.attach(self, await self.child("connection"))


class MCPConnection(Actor, max_concurrency=64, expected=(Exception,), timeout=math.inf):
    """One connection. Calls run at the same time; the end of the connection is a crash.

    Args:
        session: Name of the session.
        connect: Opens a client; sets its argument when the connection is over.
        timeout: Seconds for that.
    """

    def __init__(self, session: str, connect: Connect, timeout: float) -> None:
        self._session = session
        self._connect = connect
        self._timeout = timeout
        self._client: Client

    async def on_start(self) -> None:
        """Connect.

        Raises:
            MCPUnavailable: It failed, or took too long.
        """
        opened: asyncio.Future[Client] = asyncio.get_running_loop().create_future()
        scopes = await self.spawn(MCPScopes, self._connect)
        self.monitor(scopes)
        scopes.tell(MCPScopes.hold, opened, self.ref)
        try:
            async with asyncio.timeout(self._timeout):
                self._client = await opened
        except TimeoutError:
            raise MCPUnavailable(self._session, f"no answer within {self._timeout:g} s") from None
        except Exception as error:
            raise MCPUnavailable(self._session, describe(error)) from error

    async def receive(self, message: Any) -> None:
        """End with the connection.

        Args:
            message: Why it is over; or `Down`, when its scopes were ended.

        Raises:
            MCPUnavailable: It is over.
        """
        raise MCPUnavailable(self._session, describe(message.reason if isinstance(message, Down) else message))

    async def list_tools(self) -> list[Tool]:
        """All tools of the server, page by page."""
        with self._translated():
            page = await self._client.list_tools()
            tools = list(page.tools)
            while page.next_cursor is not None:
                page = await self._client.list_tools(cursor=page.next_cursor)
                tools += page.tools
            return tools

    async def call_tool(self, name: str, arguments: dict[str, Any] | None) -> CallToolResult:
        """As `MCPSession.call_tool`."""
        with self._translated():
            return await self._client.call_tool(name, arguments)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Tell an error of the connection from one of the server."""
        from mcp import MCPError
        from mcp.types import CONNECTION_CLOSED, INVALID_REQUEST

        try:
            yield
        except MCPError as error:
            if error.code not in {CONNECTION_CLOSED, INVALID_REQUEST}:
                raise
            if error.code == INVALID_REQUEST:  # over HTTP, the server was restarted and has forgotten the session
                self.ref.send_message(error.message)
            raise MCPUnavailable(self._session, f"{error.message}; the call may have begun") from None


class MCPScopes(Actor, shutdown=UNWIND):
    """Enters and leaves the scopes of one client, in the one task of its one message.

    Args:
        connect: Opens the client.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._scope = anyio.CancelScope()

    async def hold(self, opened: asyncio.Future[Client], owner: ActorRef[Any]) -> None:
        """Keep a client open until the connection breaks, or a stop is asked for.

        Args:
            opened: Gets the client, or why there is none.
            owner: Is sent the end of the connection, before what is left of it is taken down.
        """
        over = anyio.Event()
        reason: object = "normal"
        with self._scope:
            try:
                async with self._connect(over) as client:
                    if not opened.done():
                        opened.set_result(client)
                    await over.wait()
                    owner.send_message("the server has closed the connection")
            except Exception as error:  # noqa: BLE001 - whatever the client's tasks end with
                while isinstance(error, ExceptionGroup):
                    error = error.exceptions[0]
                reason = error
                if not opened.done():
                    opened.set_exception(error)
        self.stop(reason)

    def _stop_requested(self) -> None:
        self._scope.cancel()


class _Watched:
    """A stream of messages that sets an event at its end; a client does not report that.

    Args:
        stream: The stream.
        over: Set at its end.
    """

    def __init__(self, stream: Any, over: anyio.Event) -> None:
        self._stream = stream
        self._over = over

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._stream.__anext__()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stream.aclose()
        self._over.set()


@asynccontextmanager
async def _connect(server: ServerSource, over: anyio.Event) -> AsyncIterator[Client]:
    """A client of `server`; `over` is set when the connection is."""
    from mcp import Client, StdioServerParameters, stdio_client
    from mcp.client.streamable_http import streamable_http_client

    @asynccontextmanager
    async def watched(transport: Any) -> AsyncIterator[Any]:
        async with transport as (reading, writing):
            yield _Watched(reading, over), writing

    target: Any = server
    if callable(server):
        target = server()
    elif not isinstance(server, str):
        target = StdioServerParameters(command=server[0], args=list(server[1:]))
    if isinstance(target, str):
        target = streamable_http_client(target)
    elif isinstance(target, StdioServerParameters):
        target = stdio_client(target)
    async with Client(watched(target) if hasattr(target, "__aenter__") else target) as client:
        yield client


def _outcome(error: Exception) -> Outcome:
    """The outcome for the breaker: whether a failed call is the server's failure."""
    return "failure" if isinstance(error, ActorError | MCPUnavailable | ToolTimeout) else "success"
