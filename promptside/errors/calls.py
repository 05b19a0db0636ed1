"""The errors of calls: of pools, protected functions, programs, pipelines, evaluations and tools."""

from __future__ import annotations

import math

from promptside.errors.base import PromptsideError
from promptside.texts import describe

__all__ = [
    "CallTimeout",
    "CircuitOpen",
    "EvaluationAborted",
    "LMPoolError",
    "MCPUnavailable",
    "OptimizationAborted",
    "PipelineError",
    "PoolError",
    "PoolSaturated",
    "ProgramError",
    "QueueTimeout",
    "ToolTimeout",
]


class PoolError(PromptsideError):
    """Base of the errors of worker pools and of protected functions."""


class PoolSaturated(PoolError):
    """A pool refused a call: as many waited as may.

    `pool` is the path of the pool, and `max_queue` the number of calls that may wait in it.
    """

    def __init__(self, pool: str, max_queue: int) -> None:
        self.pool = pool
        self.max_queue = max_queue
        super().__init__(
            f"the pool {pool!r} is saturated: {max_queue} calls wait already, its max_queue; make fewer calls at a time"
        )


class QueueTimeout(PoolError, TimeoutError):
    """A call waited too long for a slot and was not begun.

    `pool` is the path of the pool, and `waited` its `queue_timeout` in seconds, which is also its `retry_after`.
    """

    def __init__(self, pool: str, waited: float) -> None:
        self.pool = pool
        self.waited = waited
        super().__init__(f"the call waited {waited:g} s in the queue of the pool {pool!r}, and was not begun")
        self.retry_after = waited


class CircuitOpen(PoolError):
    """A call was not made, because every circuit that it could use is open after too many failures.

    Attributes:
        endpoints: Names of the endpoints, or of the protected function.
        retry_after: Seconds until the first circuit lets a probe through; None while all are held open.
    """

    def __init__(self, endpoints: tuple[str, ...], retry_after: float) -> None:
        held = retry_after == math.inf
        soon = f"open after too many failures; try again in {retry_after:.3g} s"
        state = "held open; it lets nothing through until it is reset" if held else soon
        super().__init__(f"the circuit of {', '.join(endpoints)} is {state}")
        self.endpoints = endpoints
        self.retry_after = None if held else retry_after


class LMPoolError(PromptsideError):
    """Base of the errors of LM pools; the subclasses are in `promptside.pools`."""


class ProgramError(PromptsideError):
    """Base of the errors of programs, pipelines, evaluation and optimization."""


class PipelineError(ProgramError):
    """A pipeline's stages do not fit together, or it was given or has made other fields than it declares.

    `stage` is the name of the stage, or of the pipeline itself; `field` is the field, if it is about one.
    """

    def __init__(self, stage: str, problem: str, remedy: str, *, field: str | None = None) -> None:
        self.stage = stage
        self.field = field
        super().__init__(f"{stage!r} {problem}; {remedy}")


class _Aborted(ProgramError):
    _what = ""

    def __init__(self, run: str, reason: BaseException) -> None:
        self.run = run
        self.reason = reason
        super().__init__(f"the {self._what} {run!r} was aborted: {describe(reason)}")


class EvaluationAborted(_Aborted):
    """An evaluation was given up and has no score: the score would hold an outage or too many failures.

    Attributes:
        run: Its name.
        reason: The error that it was aborted for, also its `__cause__`.
    """

    _what = "evaluation"


class OptimizationAborted(_Aborted):
    """An optimization was given up: its scores would hold an outage. Attributes as of `EvaluationAborted`."""

    _what = "optimization"


class CallTimeout(ProgramError, TimeoutError):
    """A call of a program or of a pipeline took longer than its `timeout`. It was cancelled, its LM calls included.

    `name` is that of the program or pipeline, and `timeout` the seconds that the call was allowed.
    """

    def __init__(self, kind: str, name: str, timeout: float) -> None:
        self.name = name
        self.timeout = timeout
        super().__init__(f"{kind} {name!r} did not answer within {timeout:g} s; the call was cancelled")


class ToolTimeout(ProgramError, TimeoutError):
    """A tool did not return in time. An async one was cancelled; a synchronous one goes on in its thread.

    `tool` is its name, and `timeout` the seconds that the call was allowed.
    """

    def __init__(self, tool: str, timeout: float) -> None:
        self.tool = tool
        self.timeout = timeout
        super().__init__(f"the tool {tool!r} did not return within {timeout:g} s")


class MCPUnavailable(ProgramError):
    """An MCP server cannot be used: the package is missing, it cannot be reached, or the connection broke.

    `session` is the session's name, and `reason` says what is wrong.
    """

    def __init__(self, session: str, reason: str) -> None:
        self.session = session
        self.reason = reason
        super().__init__(f"the MCP session {session!r} is not available: {reason}")
