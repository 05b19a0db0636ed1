"""Every error that promptside raises on its own account.

::

    PromptsideError
    |- ActorError        ActorStartError, ActorStopped, AskTimeout(TimeoutError), AskCycleError,
    |                    MailboxFull, UnhandledMessage, NotStarted, AlreadyRunning
    |- RegistryError     NameTaken, NameNotFound
    |- SupervisionError  InvalidChildSpec(ValueError), InvalidChildState, ChildNotFound(LookupError),
    |                    MaxRestartsExceeded, MaxChildrenReached, SupervisorCrashed
    |- PoolError         PoolSaturated, QueueTimeout(TimeoutError), CircuitOpen
    |- LMPoolError       LMCircuitOpen(dspy.LMError), WorkerLost(dspy.LMTransportError), LMPoolSaturated(dspy.LMError),
    |                    LMQueueTimeout(dspy.LMError), BudgetExceeded(dspy.LMError), NoLMLoaded,
    |                    EmbeddedModelUnavailable, PoolUnavailable(dspy.LMError), TooFewDescriptors,
    |                    EnsembleFailed(dspy.LMError), LMCallTimeout(dspy.LMTimeoutError)
    |- OpaqueError
    `- ProgramError      PipelineError, EvaluationAborted, OptimizationAborted, CallTimeout(TimeoutError),
                         ToolTimeout(TimeoutError), MCPUnavailable

The subclasses of `LMPoolError` are in `promptside.pools`: they also derive from DSPy's errors. A handler's own error is
never wrapped: its asker gets the exception object itself.

Every error can be pickled and copied, with its data, notes and cause. A foreign exception in it that cannot be pickled
is an `OpaqueError` on the other side, and another object a text.
"""

from __future__ import annotations

from promptside.errors.base import OpaqueError, PromptsideError
from promptside.errors.calls import (
    CallTimeout,
    CircuitOpen,
    EvaluationAborted,
    LMPoolError,
    MCPUnavailable,
    OptimizationAborted,
    PipelineError,
    PoolError,
    PoolSaturated,
    ProgramError,
    QueueTimeout,
    ToolTimeout,
)
from promptside.texts import describe, kind_of, repr_of

__all__ = [
    "ActorError",
    "ActorStartError",
    "ActorStopped",
    "AlreadyRunning",
    "AskCycleError",
    "AskTimeout",
    "CallTimeout",
    "ChildNotFound",
    "CircuitOpen",
    "EvaluationAborted",
    "InvalidChildSpec",
    "InvalidChildState",
    "LMPoolError",
    "MCPUnavailable",
    "MailboxFull",
    "MaxChildrenReached",
    "MaxRestartsExceeded",
    "NameNotFound",
    "NameTaken",
    "NotStarted",
    "OpaqueError",
    "OptimizationAborted",
    "PipelineError",
    "PoolError",
    "PoolSaturated",
    "ProgramError",
    "PromptsideError",
    "QueueTimeout",
    "RegistryError",
    "SupervisionError",
    "SupervisorCrashed",
    "ToolTimeout",
    "UnhandledMessage",
]


class ActorError(PromptsideError):
    """Base of the errors of actors, handles and mailboxes. `path`, where there is one, is the actor's."""


class ActorStartError(ActorError):
    """An actor's `__init__` or `on_start` raised; the original exception is `__cause__`."""

    def __init__(self, path: str, cause: BaseException) -> None:
        self.path = path
        super().__init__(f"actor {path!r} did not start: {describe(cause)}")


class ActorStopped(ActorError):
    """A message could not be answered, because its actor stopped, crashed or is not running.

    Attributes:
        reason: Why it is not running: an exception, or a word such as ``"normal"`` or ``"killed"``.
        started: Whether the handler had begun. False means that nothing was done.
        incarnation: The incarnation that was addressed; 0 before the first start.
        retry_after: Seconds until a restart is expected, when a retry may help; None when none is.
    """

    def __init__(
        self, path: str, reason: object, *, started: bool, incarnation: int, retry_after: float | None = None
    ) -> None:
        self.path = path
        self.reason = reason
        self.started = started
        self.incarnation = incarnation
        self.retry_after = retry_after
        how = "while it handled the message" if started else "before it handled the message; nothing was done"
        soon = "" if retry_after is None else f"; a restart is expected in {retry_after:.3g} s"
        super().__init__(f"actor {path!r} (incarnation {incarnation}) stopped ({describe(reason)}) {how}{soon}")


class NotStarted(ActorError):
    """A handle, such as a program or a pool, was used before its start. A retry does not help; start it.

    `kind` is the class of the handle, and `name` its name.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.kind = kind
        self.name = name
        super().__init__(
            f"{kind} {name!r} is not started; `await it.start(system)`, enter it by `with` or `async with`, or give "
            "its `child_spec()` to a supervisor"
        )


class AlreadyRunning(ActorError):
    """A handle was started a second time. It runs in one place of a tree at a time.

    `kind` and `name` as of `NotStarted`; `path` is that of the running actor.
    """

    def __init__(self, kind: str, name: str, path: str) -> None:
        self.kind = kind
        self.name = name
        self.path = path
        super().__init__(f"{kind} {name!r} runs already, at {path!r}; stop it first, or make another {kind}")


class AskTimeout(ActorError, TimeoutError):
    """No answer came within the timeout; the handler was cancelled, or never begun.

    Attributes:
        method: Name of the asked method.
        timeout: Seconds that the ask was allowed; a nested ask may inherit less than it asked for.
        started: Whether the handler had begun. False means that it never will.
    """

    def __init__(self, path: str, method: str, timeout: float, *, started: bool) -> None:
        self.path = path
        self.method = method
        self.timeout = timeout
        self.started = started
        state = "its handler was cancelled" if started else "it was still queued and will not be run"
        super().__init__(f"{path!r} did not answer {method!r} within {timeout:.3g} s; {state}")


class AskCycleError(ActorError):
    """The ask could never be answered: its actor waits, through other asks, for the asker itself.

    `cycle` holds the paths of the actors around the cycle, the asked actor first and last.
    """

    def __init__(self, cycle: tuple[str, ...]) -> None:
        self.cycle = cycle
        super().__init__(
            f"this ask would wait for itself: {' -> '.join(cycle)}; use tell, give the asked actor "
            "max_concurrency > 1, or call the method on self directly"
        )


class MailboxFull(ActorError):
    """The mailbox holds its `capacity` of messages, and its policy is to reject."""

    def __init__(self, path: str, capacity: int) -> None:
        self.path = path
        self.capacity = capacity
        super().__init__(
            f"the mailbox of {path!r} is full ({capacity} messages); wait for room with "
            "`await ref.deliver(...)`, or give the actor a larger `mailbox=` or another `overflow=` policy"
        )


class UnhandledMessage(ActorError):
    """A plain `message` reached an actor that does not override `receive`."""

    def __init__(self, path: str, message: object) -> None:
        self.path = path
        self.message = message
        super().__init__(f"{path!r} got a {kind_of(message)} and has no `receive(message)` to handle it")


class RegistryError(PromptsideError):
    """Base of the errors of the registry of names."""


class NameTaken(RegistryError):
    """Another live actor holds the `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"the name {repr_of(name)} is taken by a live actor; stop that one first, or choose another name"
        )


class NameNotFound(RegistryError):
    """No live actor holds the `name`."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"no actor is registered as {repr_of(name)}; names are given by `with_options(name=...)`")


class SupervisionError(PromptsideError):
    """Base of the errors of supervisors. `path` is the supervisor's."""


class InvalidChildSpec(SupervisionError, ValueError):
    """A `ChildSpec` or a supervisor's setting is not valid; raised before anything starts."""


class ChildNotFound(SupervisionError, LookupError):
    """The supervisor has no child with this id.

    `id` was asked for; `known` are the ids that it has, in the order of their start.
    """

    def __init__(self, path: str, id: str, known: tuple[str, ...]) -> None:
        self.path = path
        self.id = id
        self.known = known
        super().__init__(f"supervisor {path!r} has no child {repr_of(id)}; it has {', '.join(known) or 'none'}")


class InvalidChildState(SupervisionError):
    """What a supervisor was asked for is not possible in the state of that child.

    Attributes:
        id: Id of the child.
        state: ``"running"``, ``"restarting"`` or ``"stopped"``.
    """

    def __init__(self, path: str, id: str, state: str, remedy: str) -> None:
        self.path = path
        self.id = id
        self.state = state
        super().__init__(f"child {id!r} of supervisor {path!r} is {state}; {remedy}")


class MaxChildrenReached(SupervisionError):
    """A supervisor of dynamic children has its `max_children` already."""

    def __init__(self, path: str, max_children: int) -> None:
        self.path = path
        self.max_children = max_children
        super().__init__(f"{path!r} has {max_children} children already, its max_children; wait for one to end")


class MaxRestartsExceeded(SupervisionError):
    """A supervisor gave up: its children needed more restarts than its intensity allows.

    The last failure is its `__cause__`, where that is an exception. For the supervisor above, this is an orderly end,
    as OTP's reason `shutdown` is: a transient supervisor that gave up is not restarted.

    Attributes:
        max_restarts: Restarts allowed within the window.
        max_seconds: Length of the window in seconds.
        history: The last failures within the window, at most 32, oldest first, each ``(child id, reason)``; exceptions
            are texts.
    """

    def __init__(
        self, path: str, max_restarts: int, max_seconds: float, history: tuple[tuple[str, object], ...]
    ) -> None:
        self.path = path
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self.history = history
        last = f"; last: {history[-1][0]!r} ({describe(history[-1][1])})" if history else ""
        super().__init__(f"supervisor {path!r} gave up: more than {max_restarts} restarts in {max_seconds:g} s{last}")


class SupervisorCrashed(SupervisionError):
    """A supervisor at the top of the tree crashed or was killed, so that nothing restarts what it supervised.

    Leaving the system raises it for a crash, and `Service.run` for both.

    `reason` is why: an exception, or a word such as ``"killed"``.
    """

    def __init__(self, path: str, reason: object) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"supervisor {path!r}, at the top of the tree, crashed: {describe(reason)}")


for _name in __all__:  # users see them by the name that they import
    globals()[_name].__module__ = __name__
