"""`tool`: a function as a tool of an agent that neither hangs nor crashes it, nor blocks its event loop.

Called by users, for the tools of `dspy.ReAct`, `dspy.ReActV2` or `dspy.RLM`, and by `mcp`. It needs no system. An agent
catches the exception of a tool and reads it as the observation; this adds that every call ends, and soon.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from threading import Lock
from types import TracebackType
from typing import Any, TypeAlias, overload
from weakref import WeakKeyDictionary

import anyio
import anyio.from_thread
import dspy
from dspy.utils import with_callbacks

from promptside.callables import is_async
from promptside.checks import check, check_seconds
from promptside.errors import ProgramError, ToolTimeout
from promptside.events import EventBus
from promptside.pools import BreakerConfig, CircuitOpen, protect
from promptside.pools.clients.unicode import repaired
from promptside.pools.context.cancel import CancelToken, current_cancel_token
from promptside.pools.resilience.breaker import Outcome
from promptside.programs.hosting.threads import MAX_THREADS, in_thread
from promptside.programs.hosting.time_limit import TimeLimit
from promptside.texts import repr_of
from promptside.waiting import cancellations

__all__ = ["SupervisedTool", "tool"]

ToolSource: TypeAlias = dspy.Tool | Callable[..., Any]
Threads: TypeAlias = WeakKeyDictionary[asyncio.AbstractEventLoop, anyio.CapacityLimiter]

MACHINERY = ("promptside.", "anyio.", "concurrent.", "threading", "asyncio.")

NESTED: ContextVar[bool] = ContextVar("promptside_tool_nested", default=False)
"""Whether a synchronous tool is what calls: it must not wait for its own thread."""


def tool_outcome(error: Exception) -> Outcome:
    """The default of `tool`: arguments that Python calls wrong are the model's mistake and say nothing of the tool."""
    wrong = isinstance(error, CircuitOpen | ValueError | TypeError | LookupError | ArithmeticError)
    return "ignored" if wrong else "failure"


class SupervisedTool(dspy.Tool):
    """The result of `tool`: a `dspy.Tool`, called as such."""

    @with_callbacks  # type: ignore[untyped-decorator]
    async def acall(self, **kwargs: Any) -> Any:
        """As `dspy.Tool.acall`; a synchronous function runs in a worker thread.

        Raises:
            ToolTimeout: It took too long.
            CircuitOpen: It failed too often of late.
            ValueError: An argument is unknown, or not of its type.
            Exception: Whatever the function raised.
        """
        arguments = self._validate_and_parse_args(**repaired(kwargs))
        try:
            return await self.func(**arguments)
        except Exception as error:  # noqa: BLE001 - raised again
            raise error.with_traceback(_below(error.__traceback__))  # noqa: B904 - the same error

    @with_callbacks  # type: ignore[untyped-decorator]
    def __call__(self, **kwargs: Any) -> Any:
        """As `acall`, from a synchronous agent: on the event loop of its program, or else on one for this call."""
        call = functools.partial(self.func, **self._validate_and_parse_args(**repaired(kwargs)))
        token = current_cancel_token() or CancelToken()
        token.check()
        try:
            return _wait_for(call, token)
        except Exception as error:  # noqa: BLE001 - raised again
            raise error.with_traceback(_below(error.__traceback__))  # noqa: B904 - the same error


@overload
def tool(
    fn: ToolSource,
    *,
    name: str | None = ...,
    timeout: float = ...,
    breaker: BreakerConfig | None = ...,
    outcome: Callable[[Exception], Outcome] = ...,
    events: EventBus | None = ...,
) -> SupervisedTool: ...


@overload
def tool(
    *,
    name: str | None = ...,
    timeout: float = ...,
    breaker: BreakerConfig | None = ...,
    outcome: Callable[[Exception], Outcome] = ...,
    events: EventBus | None = ...,
) -> Callable[[ToolSource], SupervisedTool]: ...


def tool(
    fn: ToolSource | None = None,
    *,
    name: str | None = None,
    timeout: float = 30.0,
    breaker: BreakerConfig | None = None,
    outcome: Callable[[Exception], Outcome] = tool_outcome,
    events: EventBus | None = None,
) -> SupervisedTool | Callable[[ToolSource], SupervisedTool]:
    """Make a function a tool of agents, with a timeout and a circuit breaker; also as a decorator.

    ::

        @tool(timeout=10)
        def search(query: str, k: int = 3) -> list[str]:
            \"\"\"Find passages.\"\"\"

        agent = dspy.ReAct("question -> answer", tools=[search])

    The model gets name, description and arguments as from `dspy.Tool`. An async function is awaited, and cancelled
    when the agent's caller is. Any other runs in a worker thread, with the caller's context, so that it may call a
    program or an LM and wait; given up, it is left to end by itself, and holds its thread, and the end of the process,
    until then: let what blocks have a timeout of its own.

    Nothing is retried: the agent reads the failure, and decides. `dspy.CodeAct` copies the source of a tool into its
    sandbox, where none of this applies.

    Args:
        fn: A function, a method, an object that can be called, sync or async; or a `dspy.Tool`, which keeps the
            name, description and arguments it was given.
        name: For the model, errors and events; the function's own by default.
        timeout: Seconds that a call may take, > 0, the wait for one of 40 threads included; `math.inf` for no bound.
        breaker: When calls fail at once, because it has failed too often; each tool has a breaker of its own.
        outcome: What an exception says about the tool, as for `protect`. By default every exception is a failure except
            `ValueError`, `TypeError`, `LookupError` and `ArithmeticError`: there the model's arguments were wrong.
        events: Bus for the changes of the breaker; none by default. Calls are events of the program.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """
    if fn is None:
        return functools.partial(tool, name=name, timeout=timeout, breaker=breaker, outcome=outcome, events=events)
    function: Any = fn.func if isinstance(fn, dspy.Tool) else fn
    check("tool", "fn", fn, callable(function), "give a function, an object that can be called, or a dspy.Tool")
    check_seconds("tool", "timeout", timeout)
    plain = fn if isinstance(fn, dspy.Tool) else dspy.Tool(function)
    title = str(plain.name) if name is None else name
    call = _bounded(function, title, timeout)
    guarded = protect(call, name=title, breaker=breaker, outcome=outcome, events=events)
    made = SupervisedTool(func=guarded, name=title, desc=plain.desc, args=plain.args, arg_types=plain.arg_types)
    made.has_kwargs = plain.has_kwargs  # those of an object's `__call__` are not seen through a function
    return made


def _bounded(fn: Callable[..., Any], name: str, timeout: float) -> Callable[..., Any]:
    """An async function that calls `fn`, and ends within `timeout` with what `fn` returned or an `Exception`."""
    threads: Threads = WeakKeyDictionary()

    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            async with TimeLimit(timeout, functools.partial(ToolTimeout, name, timeout)):
                work = functools.partial(fn, *args, **kwargs)
                result = work() if is_async(fn) else await _in_place(work, threads)
                return await result if inspect.isawaitable(result) else result
        except asyncio.CancelledError:
            if cancellations():
                raise
            raise ProgramError(f"the tool {name!r} was cancelled from within") from None
        except SystemExit as error:
            raise ProgramError(f"the tool {name!r} called sys.exit({repr_of(error.code)})") from None

    call.__annotations__ = {}  # a built-in function has none, and would seem to have these
    return functools.update_wrapper(call, fn) if inspect.isroutine(fn) else call


async def _in_place(work: Callable[[], Any], threads: Threads) -> Any:
    """Run `work` in a thread, of at most MAX_THREADS; a cancelled one counts until its thread has ended."""
    if NESTED.get():
        return await in_thread(work, anyio.CapacityLimiter(1))
    loop, place, begun = asyncio.get_running_loop(), object(), Lock()
    if (places := threads.get(loop)) is None:
        places = threads[loop] = anyio.CapacityLimiter(MAX_THREADS)
    release = functools.partial(places.release_on_behalf_of, place)

    def run() -> Any:
        if not begun.acquire(blocking=False):
            return None  # given up before
        NESTED.set(True)
        try:
            return work()
        finally:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(release)

    await places.acquire_on_behalf_of(place)
    try:
        return await in_thread(run, anyio.CapacityLimiter(1))
    finally:
        if begun.acquire(blocking=False):
            release()


def _wait_for(call: Callable[[], Any], token: CancelToken) -> Any:
    """Await `call` and wait for it: on the event loop that waits for this thread, if there is one.

    Args:
        call: Cancelled with `token`, when the caller of the agent in this thread has gone.
        token: Of this thread.
    """

    async def cancellable() -> Any:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        with token.on_cancel(lambda: loop.call_soon_threadsafe(task.cancel)):
            return await call()

    try:
        anyio.from_thread.check_cancelled()
    except RuntimeError:  # it is no worker thread
        with anyio.from_thread.start_blocking_portal() as portal:
            return portal.call(cancellable)
    return anyio.from_thread.run(cancellable)


def _below(traceback: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that is the tool's own: agents show the model its first frames, not its last."""
    while traceback is not None and f"{traceback.tb_frame.f_globals.get('__name__')}.".startswith(MACHINERY):
        traceback = traceback.tb_next
    return traceback
