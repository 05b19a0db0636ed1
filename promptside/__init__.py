"""Supervised actors for DSPy programs, in asyncio.

::

    from promptside import ActorSystem, LMPool, Program

    async with ActorSystem() as system:
        pool = await LMPool("openai/gpt-4o-mini", "gemini/gemini-2.5-flash-lite").start(system)
        rag = await Program(Rag, lm=pool.lm()).start(system)
        answer = await rag.acall(question="...")

The rooms, from the ground up. Each uses only those before it:

- `promptside.events`: the bus that tells every subscriber what happens.
- `promptside.actors`: actors with mailboxes, their references, and the system they live in.
- `promptside.supervision`: supervisors, which start, watch and restart actors as Erlang/OTP does.
- `promptside.pools`: language models behind supervised workers and circuit breakers, used as one `dspy.LM`.
- `promptside.programs`: DSPy modules as actors, pipelines of them, evaluation.
- `promptside.testing`: a fake provider, mock LMs and virtual time for tests. It is imported by name.

What these packages export is public, and the names below are the most used ones; other modules are private. Importing
promptside imports no DSPy: the names of pools and programs are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from promptside.actors import Actor, ActorRef, ActorSystem, ChildSpec, Down, Exit, Node
from promptside.backoff import Backoff
from promptside.errors import (
    ActorError,
    ActorStartError,
    ActorStopped,
    AlreadyRunning,
    AskCycleError,
    AskTimeout,
    ChildNotFound,
    CircuitOpen,
    InvalidChildSpec,
    InvalidChildState,
    MailboxFull,
    MaxChildrenReached,
    MaxRestartsExceeded,
    NameNotFound,
    NameTaken,
    NotStarted,
    PromptsideError,
    SupervisorCrashed,
    UnhandledMessage,
)
from promptside.events import Event, EventBus
from promptside.supervision import CancelOnDisconnect, DynamicSupervisor, Service, Supervisor, TaskSupervisor

if TYPE_CHECKING:
    from promptside.pools import (
        BreakerConfig,
        Budget,
        Endpoint,
        LimiterConfig,
        LMConfig,
        LMPool,
        RetryConfig,
        batch_run,
        labels,
        priority,
        protect,
        session,
    )
    from promptside.programs import (
        MCPSession,
        Pipeline,
        Program,
        branch,
        create_program,
        evaluate,
        execute,
        parallel,
        set_default_lm,
        stage,
        tool,
    )

__all__ = [
    "Actor",
    "ActorError",
    "ActorRef",
    "ActorStartError",
    "ActorStopped",
    "ActorSystem",
    "AlreadyRunning",
    "AskCycleError",
    "AskTimeout",
    "Backoff",
    "BreakerConfig",
    "Budget",
    "CancelOnDisconnect",
    "ChildNotFound",
    "ChildSpec",
    "CircuitOpen",
    "Down",
    "DynamicSupervisor",
    "Endpoint",
    "Event",
    "EventBus",
    "Exit",
    "InvalidChildSpec",
    "InvalidChildState",
    "LMConfig",
    "LMPool",
    "LimiterConfig",
    "MCPSession",
    "MailboxFull",
    "MaxChildrenReached",
    "MaxRestartsExceeded",
    "NameNotFound",
    "NameTaken",
    "Node",
    "NotStarted",
    "Pipeline",
    "Program",
    "PromptsideError",
    "RetryConfig",
    "Service",
    "Supervisor",
    "SupervisorCrashed",
    "TaskSupervisor",
    "UnhandledMessage",
    "batch_run",
    "branch",
    "create_program",
    "evaluate",
    "execute",
    "labels",
    "parallel",
    "priority",
    "protect",
    "session",
    "set_default_lm",
    "stage",
    "tool",
]


def __getattr__(name: str) -> Any:
    """Import what costs time at its first use (PEP 562): pools and programs, which need DSPy, and the version."""
    if name == "__version__":
        from importlib.metadata import version

        return version("promptside")
    if name in __all__:
        for room in ("pools", "programs"):
            found = getattr(import_module(f"promptside.{room}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
