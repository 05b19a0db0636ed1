"""The test kit: a fake provider for real clients, a mock LM for programs, and virtual time.

`FakeServer` is a real HTTP server that fails on demand (`Fault`); `MockLM` answers inside the process. Neither needs a
key or a network. `run_virtual` runs a coroutine on a `VirtualTimeLoop`, where waiting takes no time. No other room
imports this one. `MockLM` needs DSPy, which is imported when the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptside.testing.fake_server import FakeServer
from promptside.testing.faults import Fault
from promptside.testing.replies import NoAnswer
from promptside.testing.virtual_time import Deadlock, VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from promptside.testing.mock_lm import MockLM

__all__ = ["Deadlock", "FakeServer", "Fault", "MockLM", "NoAnswer", "VirtualTimeLoop", "run_virtual"]


def __getattr__(name: str) -> object:
    if name == "MockLM":
        from promptside.testing.mock_lm import MockLM

        return MockLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
