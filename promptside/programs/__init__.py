"""Programs: DSPy modules as supervised actors.

`start_program` starts one and returns its `Program` handle; `ModuleActor` is for a supervision tree of one's own.
Called by users; calls pools, supervision and DSPy.
"""

from promptside.programs.module import ModuleActor
from promptside.programs.program import Program, start_program

__all__ = ["ModuleActor", "Program", "start_program"]
