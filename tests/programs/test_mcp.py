"""`promptside.programs.MCPSession`: the tools of a real MCP server, which dies under its callers and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from promptside import ActorStartError, ActorStopped, ActorSystem, Backoff, Supervisor
from promptside.errors import AlreadyRunning, AskTimeout, MCPUnavailable, NotStarted, ToolTimeout
from promptside.pools import BreakerConfig
from promptside.programs.hosting import hosted_class
from promptside.programs.tools import mcp
from promptside.programs.tools.mcp import MCPSession
from promptside.programs.tools.tool import SupervisedTool
from tests.programs.test_tools import observe, start_agent
from tests.support import mcp_server
from tests.support.actors import until
from tests.support.call_tree import listen

SERVER = (sys.executable, mcp_server.__file__)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that starts on a busy machine may take longer than a call waits for it."""
    monkeypatch.setattr(hosted_class, "RESTART", 60.0)


async def offered(session: MCPSession, **settings: Any) -> dict[str, SupervisedTool]:
    return {tool.name: tool for tool in await session.tools(**settings)}


async def process_of(session: MCPSession) -> int:
    return int((await session.call_tool("pid")).content[0].text)  # type: ignore[union-attr]


def is_gone(process: int) -> bool:
    """Whether a child process has ended and was reaped."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


# -- the tools of a server -------------------------------------------------------------------------------------


async def test_an_agent_uses_the_tools_of_a_server_and_reads_their_errors() -> None:
    async with ActorSystem() as system:
        told = listen(system, "tool.*")
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        tools = await session.tools()
        assert {tool.name for tool in tools} == {"pid", "variable", "divide", "meet", "hang"}
        divide = next(tool for tool in tools if tool.name == "divide")
        assert divide.desc == "Divide a by b."
        assert (divide.args["a"]["type"], divide.args["b"]["default"]) == ("integer", 1)
        agent = await start_agent(system, *tools)
        good, bad, wrong = await observe(
            agent, ("divide", {"a": 3, "b": 2}), ("divide", {"a": 3, "b": 0}), ("divide", {"a": "x"})
        )
        assert good == "1.5"
        assert "b must not be 0" in bad
        assert "Arg a is invalid" in wrong
        ends = [event.type for event in told if not event.type.endswith("started")]
        assert ends == ["tool.stopped", "tool.failed", "tool.failed", "tool.stopped"]


async def test_the_errors_that_a_tool_reports_do_not_open_its_circuit() -> None:
    async with ActorSystem() as system:
        session = await MCPSession(lambda: mcp_server.server).start(system)  # in this process
        divide = (await offered(session, breaker=BreakerConfig(min_calls=2)))["divide"]
        for _ in range(5):
            with pytest.raises(RuntimeError, match="b must not be 0"):
                await divide.acall(a=1, b=0)
        assert await divide.acall(a=1) == "1.0"


async def test_calls_run_at_the_same_time_over_one_connection_and_from_any_thread() -> None:
    async with ActorSystem() as system:
        meet = (await offered(await MCPSession(SERVER, connect_timeout=60).start(system)))["meet"]
        calls = [meet.acall(guests=8) for _ in range(6)]
        threads = [asyncio.to_thread(meet, guests=8) for _ in range(2)]
        assert await asyncio.gather(*calls, *threads) == ["all here"] * 8


async def test_a_call_that_takes_too_long_is_cancelled_at_the_server(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        hang = (await offered(session, timeout=0.5))["hang"]
        with pytest.raises(ToolTimeout):
            await hang.acall(folder=str(tmp_path))
        await until((tmp_path / "cancelled").exists)
        assert session.ref.incarnation == 1


async def test_a_call_whose_caller_is_cancelled_is_cancelled_at_the_server(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        agent = await start_agent(system, *await session.tools())
        call = asyncio.create_task(observe(agent, ("hang", {"folder": str(tmp_path)})))
        await until((tmp_path / "begun").exists)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until((tmp_path / "cancelled").exists)
        assert session.ref.incarnation == 1


async def test_a_function_gives_a_server_an_environment_of_its_own() -> None:
    from mcp import StdioServerParameters

    def server() -> StdioServerParameters:
        return StdioServerParameters(command=SERVER[0], args=[SERVER[1]], env={"TOKEN": "secret"})

    async with ActorSystem() as system:
        session = await MCPSession(server).start(system)
        assert await (await offered(session))["variable"].acall(name="TOKEN") == "secret"


# -- the death of a server ---------------------------------------------------------------------------------------


async def test_an_agent_keeps_its_tools_when_the_server_is_killed_in_mid_call(tmp_path: Path) -> None:
    async with ActorSystem() as system:
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        agent = await start_agent(system, *await session.tools())
        before = await process_of(session)
        call = asyncio.create_task(observe(agent, ("hang", {"folder": str(tmp_path)}), ("pid", {})))
        await until((tmp_path / "begun").exists)
        os.kill(before, signal.SIGKILL)
        hung, after = await call
        assert "MCPUnavailable: the MCP session 'mcp' is not available" in hung
        assert int(after) != before
        assert is_gone(before)
        assert (session.ref.incarnation, agent.ref.incarnation) == (2, 1)


async def test_a_server_that_dies_while_nobody_calls_is_back_before_the_next_call() -> None:
    async with ActorSystem() as system:
        told = listen(system, "actor.crashed")
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        before = await process_of(session)
        os.kill(before, signal.SIGKILL)
        await until(lambda: session.ref.incarnation == 2)
        assert await process_of(session) != before
        assert [(event.source, event.data["error"]) for event in told] == [("mcp/connection", "MCPUnavailable")]
        assert "the server has closed the connection" in told[0].data["message"]


async def test_calls_wait_for_a_server_that_is_starting_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosted_class, "RESTART", 0.2)
    monkeypatch.setattr(mcp, "BACKOFF", Backoff(initial=0.01, maximum=0.02))
    is_up = True

    def server() -> Any:
        from mcp import StdioServerParameters

        return StdioServerParameters(command=SERVER[0], args=[SERVER[1]] if is_up else ["-c", "raise SystemExit"])

    async with ActorSystem() as system:
        session = await MCPSession(server).start(system)
        agent = await start_agent(system, *await session.tools())
        is_up = False
        os.kill(await process_of(session), signal.SIGKILL)
        await until(lambda: session.ref.incarnation > 6)
        (down,) = await observe(agent, ("divide", {"a": 1}))
        assert "ActorStopped" in down
        is_up = True
        monkeypatch.undo()
        while True:
            with contextlib.suppress(ActorStopped, MCPUnavailable):
                await process_of(session)
                break
        assert await observe(agent, ("divide", {"a": 1})) == ["1.0"]


# -- nothing outlives its owner ----------------------------------------------------------------------------------


async def test_no_server_outlives_its_session_or_its_connection() -> None:
    async with ActorSystem() as system:
        session = await MCPSession(SERVER, connect_timeout=60).start(system)
        processes = [await process_of(session)]
        session.ref.kill()
        processes.append(await process_of(session))
        assert is_gone(processes[0])
        await session.stop()
        assert is_gone(processes[1])
        with pytest.raises(ActorStopped):
            await session.call_tool("pid")
        other = await MCPSession(SERVER, name="other", connect_timeout=60).start(system)
        processes.append(await process_of(other))
        assert len(set(processes)) == 3
    assert all(map(is_gone, processes))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize(
    ("server", "reason"),
    [
        (["no-such-command"], "FileNotFoundError: "),
        ([sys.executable, "-c", "raise SystemExit"], "MCPError: Connection closed"),
        ([sys.executable, "-c", "import sys; sys.stdin.read()"], "no answer within 0.5 s"),
        ("http://127.0.0.1:9/mcp", "ConnectError: "),
    ],
)
async def test_a_server_that_cannot_be_used_is_known_at_the_start(server: Any, reason: str) -> None:
    async with ActorSystem() as system:
        session = MCPSession(server, connect_timeout=0.5 if "no answer" in reason else 30)
        with pytest.raises(ActorStartError) as caught:
            await session.start(system)
        cause: BaseException | None = caught.value
        while isinstance(cause, ActorStartError):
            cause = cause.__cause__
        assert isinstance(cause, MCPUnavailable)
        assert cause.session == "mcp"
        assert reason in cause.reason
        with pytest.raises(NotStarted):
            await session.tools()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_whose_start_is_given_up_is_gone(tmp_path: Path) -> None:
    note = tmp_path / "process"
    program = f"import os, sys; open({str(note)!r}, 'w').write(str(os.getpid())); sys.stdin.read()"
    async with ActorSystem() as system:
        start = asyncio.create_task(MCPSession([sys.executable, "-c", program]).start(system))
        await until(lambda: note.exists() and note.read_text())
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start
    assert is_gone(int(note.read_text()))
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_session_in_a_supervision_tree_keeps_its_tools_across_restarts_of_the_whole() -> None:
    session = MCPSession(SERVER, name="files", connect_timeout=60)
    async with ActorSystem() as system:
        await system.with_options(name="app").spawn(Supervisor, [session.child_spec()])
        pid = (await offered(session))["pid"]
        before = await pid.acall()
        connection = session.ref
        system.whereis("files").kill()
        await until(lambda: session.ref != connection)
        assert await pid.acall() != before
        with pytest.raises(AlreadyRunning, match="MCPSession 'files' runs already"):
            await session.start(system)


# -- streamable HTTP ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def http_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*SERVER, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def listening(port: int) -> None:
    for _ in range(1000):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the server did not start")


async def test_a_server_over_http_is_found_again_after_it_was_down(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    async with ActorSystem() as system:
        told = listen(system, "actor.crashed")
        with http_server(port) as first:
            await listening(port)
            session = await MCPSession(f"http://127.0.0.1:{port}/mcp").start(system)
            agent = await start_agent(system, *await session.tools())
            assert await process_of(session) == first.pid
            call = asyncio.create_task(observe(agent, ("hang", {"folder": str(tmp_path)})))
            await until((tmp_path / "begun").exists)
        (hung,) = await call
        assert "is not available" in hung or "ActorStopped" in hung
        await until(lambda: told)
        assert "Error: " in told[0].data["message"], "the client's own error is told"
        with http_server(port) as second:
            while True:
                with contextlib.suppress(ActorStopped, MCPUnavailable):
                    assert await process_of(session) == second.pid
                    break
            assert await observe(agent, ("divide", {"a": 1})) == ["1.0"]
            await session.stop()


# -- what a real server seldom does ------------------------------------------------------------------------------


class Peer:
    """A server that is played: it lists its tools in two pages, and forgets a session once."""

    def __init__(self, silent: str = "") -> None:
        self.silent = silent
        self.connections = 0

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Any]:
        from mcp.shared.message import SessionMessage
        from mcp.types import JSONRPCRequest, jsonrpc_message_adapter

        self.connections += 1
        to_client, from_server = anyio.create_memory_object_stream[Any](10)
        to_server, from_client = anyio.create_memory_object_stream[Any](10)

        async def play() -> None:
            async for received in from_client:
                request = received.message
                if isinstance(request, JSONRPCRequest) and request.method != self.silent:
                    answer = {"jsonrpc": "2.0", "id": request.id, **self.answer(request.method, request.params or {})}
                    await to_client.send(SessionMessage(jsonrpc_message_adapter.validate_python(answer)))

        async with to_client, from_server, to_server, from_client, anyio.create_task_group() as group:
            group.start_soon(play)
            yield from_server, to_server
            group.cancel_scope.cancel()

    def answer(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        tools = [{"name": name, "inputSchema": {"type": "object", "properties": {}}} for name in ("one", "two")]
        match method:
            case "initialize":
                info = {"name": "played", "version": "1"}
                facts = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
                return {"result": facts}
            case "tools/list" if "cursor" in params:
                return {"result": {"tools": tools[1:]}}
            case "tools/list":
                return {"result": {"tools": tools[:1], "nextCursor": "more"}}
            case "tools/call" if self.connections > 1:
                return {"result": {"content": [{"type": "text", "text": "here"}]}}
            case "tools/call":
                return {"error": {"code": -32600, "message": "Session terminated"}}
        return {"error": {"code": -32601, "message": "not found"}}


async def test_all_pages_are_listed_and_a_session_that_the_server_forgot_is_made_anew() -> None:
    peer = Peer()
    async with ActorSystem() as system:
        session = await MCPSession(peer).start(system)
        tools = await offered(session)
        assert list(tools) == ["one", "two"]
        with pytest.raises(MCPUnavailable, match="Session terminated"):
            await tools["one"].acall()
        assert await tools["two"].acall() == "here"
        assert peer.connections == 2


async def test_a_server_that_does_not_list_its_tools_is_not_waited_for_for_ever() -> None:
    async with ActorSystem() as system:
        session = await MCPSession(Peer(silent="tools/list"), connect_timeout=0.5).start(system)
        with pytest.raises(AskTimeout):
            await session.tools()


# -- what is wrong is named --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"server": []}, "MCPSession: server=[]: give a command"),
        ({"server": None}, "MCPSession: server=None: give a command"),
        ({"server": 5}, "MCPSession: server=5: give a command"),
        ({"server": "python server.py"}, "MCPSession: server='python server.py': this is no URL"),
        ({"name": "a/b"}, "MCPSession: name='a/b': give a non-empty text"),
        ({"connect_timeout": 0}, "MCPSession: connect_timeout=0: give seconds > 0"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        MCPSession(**{"server": SERVER, **settings})
    assert message in str(caught.value)


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MCPUnavailable, match=r'pip install "promptside\[mcp\]"'):
        MCPSession(SERVER)


def test_importing_it_does_not_import_the_package() -> None:
    probe = "import sys, promptside.programs.tools.mcp; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=150, check=True)
    assert done.stdout.split() == ["False"]
