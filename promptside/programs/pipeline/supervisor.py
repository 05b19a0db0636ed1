"""`PipelineSupervisor`: the actor of a pipeline. Made by `Pipeline`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

from promptside.actors import ActorRef
from promptside.programs.pipeline.stage import PipelineRuntime
from promptside.supervision import ChildSpec, Supervisor
from promptside.supervision.handle import Handle

__all__ = ["Children", "PipelineSupervisor"]

Children: TypeAlias = tuple[list[ChildSpec], PipelineRuntime]
"""The specs of a pipeline's children, and what runs for it."""


class PipelineSupervisor(Supervisor):
    """The actor of a pipeline: the supervisor of its stages and calls.

    Args:
        handle: The pipeline.
        make_children: Called at each start.
        settings: Of the supervisor.
    """

    def __init__(
        self,
        handle: Handle[PipelineRuntime],
        make_children: Callable[[ActorRef[Any]], Children],
        settings: Mapping[str, Any],
    ) -> None:
        handle.claim(self)
        specs, runtime = make_children(self.ref)
        self._attach = partial(handle.attach, self, runtime)
        super().__init__(specs, **settings)

    async def on_start(self) -> None:
        """Start the stages, then take calls."""
        await super().on_start()
        self._attach()
