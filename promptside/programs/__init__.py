"""Programs: DSPy modules as supervised actors.

`Program` is the handle of one; `create_program` makes one from a signature. `Pipeline` composes them, and `evaluate`
scores them. `tool` and `MCPSession` give agents their tools. `set_default_lm` sets the LM of a system. `ChatAdapter`
writes DSPy's prompts for less CPU. `ModuleActor` is for a supervision tree of one's own. Called by users; calls pools,
supervision and DSPy.
"""

from promptside.programs.adapter import ChatAdapter
from promptside.programs.ensemble import Ensemble
from promptside.programs.evaluation.evaluate import evaluate
from promptside.programs.evaluation.result import Evaluation
from promptside.programs.evaluation.scores import Scores
from promptside.programs.from_signature import create_program, execute
from promptside.programs.hosting.actors import ModuleActor
from promptside.programs.hosting.streaming import Piece
from promptside.programs.hosting.versions import Version
from promptside.programs.listing import list_programs
from promptside.programs.lm_choice import set_default_lm
from promptside.programs.pipeline.groups import branch, parallel
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import stage
from promptside.programs.program import Program
from promptside.programs.tools.mcp import MCPSession
from promptside.programs.tools.tool import SupervisedTool, tool

__all__ = [
    "ChatAdapter",
    "Ensemble",
    "Evaluation",
    "MCPSession",
    "ModuleActor",
    "Piece",
    "Pipeline",
    "Program",
    "Scores",
    "SupervisedTool",
    "Version",
    "branch",
    "create_program",
    "evaluate",
    "execute",
    "list_programs",
    "parallel",
    "set_default_lm",
    "stage",
    "tool",
]
