"""Programs: DSPy modules as supervised actors.

`start_program` starts one and returns its `Program` handle; `set_default_lm` gives a system its LM; `ModuleActor` is
for a supervision tree of one's own. Called by users; calls pools, supervision and DSPy.
"""

from promptside.programs.choice import set_default_lm
from promptside.programs.module import ModuleActor
from promptside.programs.program import Program, start_program

__all__ = ["ModuleActor", "Program", "set_default_lm", "start_program"]
