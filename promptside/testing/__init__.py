"""The test kit that is shipped: a fake provider to put behind real clients, and a mock LM to put into programs.

`FakeServer` is a real HTTP server that fails on demand (`Fault`); `MockLM` answers inside the process. Neither needs a
key or a network. Nothing else in promptside imports this package. `MockLM` needs DSPy, which is imported when
the name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from promptside.testing.fake_server import FakeServer
from promptside.testing.faults import Fault
from promptside.testing.replies import NoAnswer

if TYPE_CHECKING:
    from promptside.testing.mock_lm import MockLM

__all__ = ["FakeServer", "Fault", "MockLM", "NoAnswer"]


def __getattr__(name: str) -> object:
    if name == "MockLM":
        from promptside.testing.mock_lm import MockLM

        return MockLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
