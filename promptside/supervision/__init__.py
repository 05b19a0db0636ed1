"""Supervision: actors that start, watch and restart other actors, as Erlang/OTP does.

`ChildSpec` says how a child is started, restarted and stopped; `Supervisor` does it. Called by users, pools and
programs; calls only `promptside.actors`.
"""

from promptside.supervision.spec import ChildInfo, ChildSpec
from promptside.supervision.supervisor import Supervisor

__all__ = ["ChildInfo", "ChildSpec", "Supervisor"]
