"""Supervised actors for DSPy programs, in asyncio.

The rooms, from the ground up; each uses only those before it:

- `promptside.events`: the bus that tells every subscriber what happens.
- `promptside.actors`: actors with mailboxes, their references, and the system they live in.
- `promptside.supervision`: supervisors, which start, watch and restart actors as Erlang/OTP does.
- `promptside.pools`: language models behind supervised workers and circuit breakers, used as one `dspy.LM`.
- `promptside.programs`: DSPy modules as actors.
- `promptside.testing`: a fake provider and mock LMs for tests.

The names below are those of the first three and of `promptside.errors`. Pools, programs and testing are imported by
name, because they import DSPy.
"""

from promptside.actors import Actor, ActorRef, ActorSystem, Down, Exit, Node
from promptside.errors import (
    ActorError,
    ActorStartError,
    ActorStopped,
    AlreadyRunning,
    AskCycleError,
    AskTimeout,
    ChildNotFound,
    InvalidChildSpec,
    InvalidChildState,
    MailboxFull,
    MaxChildrenReached,
    MaxRestartsExceeded,
    NameNotFound,
    NameTaken,
    NotStarted,
    PromptsideError,
    UnhandledMessage,
)
from promptside.events import Event, EventBus
from promptside.supervision import Backoff, ChildSpec, DynamicSupervisor, Service, Supervisor, TaskSupervisor

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
    "ChildNotFound",
    "ChildSpec",
    "Down",
    "DynamicSupervisor",
    "Event",
    "EventBus",
    "Exit",
    "InvalidChildSpec",
    "InvalidChildState",
    "MailboxFull",
    "MaxChildrenReached",
    "MaxRestartsExceeded",
    "NameNotFound",
    "NameTaken",
    "Node",
    "NotStarted",
    "PromptsideError",
    "Service",
    "Supervisor",
    "TaskSupervisor",
    "UnhandledMessage",
]
