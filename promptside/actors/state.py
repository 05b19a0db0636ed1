"""The states of an actor's life, as `info` and the tree show them."""

from __future__ import annotations

from enum import Enum

__all__ = ["State"]


class State(Enum):
    """Where an actor is in its life.

    STARTING until `on_start` has returned, RUNNING while it takes messages, STOPPING and CRASHED while `on_stop`
    runs, KILLED while cancelled handlers unwind, STOPPED from then on, until a supervisor restarts it.
    """

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    CRASHED = "crashed"
    KILLED = "killed"
    STOPPED = "stopped"
