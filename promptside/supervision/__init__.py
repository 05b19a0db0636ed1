"""Supervision: actors that start, watch and restart other actors, as Erlang/OTP does.

`ChildSpec` says how a child is started, restarted and stopped; `Supervisor` and `DynamicSupervisor` do it.
`TaskSupervisor` runs functions as actors. A `Service` is a whole application, from its start to its end by a signal.
Called by users, pools and programs; calls only `promptside.actors`.
"""

from promptside.actors import ChildSpec, Restart
from promptside.backoff import Backoff
from promptside.supervision.asgi import CancelOnDisconnect
from promptside.supervision.dynamic import DynamicSupervisor, DynamicSupervisorHandle
from promptside.supervision.handle import Handle
from promptside.supervision.service import Service
from promptside.supervision.spec import ChildCounts, ChildInfo
from promptside.supervision.supervisor import Supervisor, SupervisorHandle
from promptside.supervision.tasks.supervisor import TaskSupervisor

__all__ = [
    "Backoff",
    "CancelOnDisconnect",
    "ChildCounts",
    "ChildInfo",
    "ChildSpec",
    "DynamicSupervisor",
    "DynamicSupervisorHandle",
    "Handle",
    "Restart",
    "Service",
    "Supervisor",
    "SupervisorHandle",
    "TaskSupervisor",
]
