"""``>>``: what stands on either side of it becomes a pipeline."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from promptside.programs.pipeline.pipeline import Pipeline

__all__ = ["Chainable"]


class Chainable:
    """Base of what may stand in a pipeline by ``a >> b``, of which one side is such an object."""

    def __rshift__(self, after: object) -> Pipeline:
        return _pipeline(self, after)

    def __rrshift__(self, before: object) -> Pipeline:
        return _pipeline(before, self)


def _pipeline(*steps: object) -> Pipeline:
    from promptside.programs.pipeline.pipeline import Pipeline  # which is made of these

    return Pipeline(steps)
