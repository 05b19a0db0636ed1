"""Actors: plain classes whose public async methods are messages, with mailboxes, in a supervised tree.

`Actor` is the base class, `ActorSystem` where actors live, `ActorRef` how they are reached. Called by everything
above (supervision, pools, programs), whose own actors also use `promptside.actors.spi`; calls only the event bus.
"""

from promptside.actors.actor import Actor
from promptside.actors.child_spec import ChildSpec, Restart
from promptside.actors.info import ActorInfo, SystemStatistics
from promptside.actors.links import Monitor
from promptside.actors.messages import Down, Exit
from promptside.actors.node import Node
from promptside.actors.portal import Portal, start_portal
from promptside.actors.ref import ActorRef
from promptside.actors.state import State
from promptside.actors.system import ActorSystem
from promptside.actors.timers import Timer
from promptside.actors.tree import TreeNode

__all__ = [
    "Actor",
    "ActorInfo",
    "ActorRef",
    "ActorSystem",
    "ChildSpec",
    "Down",
    "Exit",
    "Monitor",
    "Node",
    "Portal",
    "Restart",
    "State",
    "SystemStatistics",
    "Timer",
    "TreeNode",
    "start_portal",
]
