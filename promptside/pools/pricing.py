"""What an answer has cost, by the price table that DSPy ships; an estimate in US dollars.

Asked by the dispatcher, on the pool's event loop: it never waits and never fetches anything.
"""

from __future__ import annotations

from dspy.clients import model_metadata
from dspy.clients.backend_selection import select_backend
from dspy.clients.costs import estimate_cost
from dspy.lm15 import Message, Request, Response, Usage

from promptside.pools.endpoint import Endpoint

__all__ = ["Prices"]


class Prices:
    """The prices of one endpoint.

    Args:
        endpoint: One with an engine of its own has none: nobody knows what it stands for.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._provider: str | None = None
        self._model = ""
        self._listed: dict[str, bool] = {}

    def cost(self, answer: Response | Usage, request: Request) -> float | None:
        """Dollars; None where the price is not known. 60 to 90 us.

        Args:
            answer: The answer; of a stream, what the provider counted.
            request: What was sent.
        """
        # Without a table in memory the first look-up would fetch one over the network. DSPy loads it when it is asked
        # what a model can do, as `LMPool.lm` does.
        if self._endpoint.engine is not None or getattr(model_metadata, "_data", None) is None:
            return None
        try:
            return self._estimate(answer, request)
        except Exception:  # noqa: BLE001 - a price table that cannot be read must not fail an answer that was paid for
            return None

    def _estimate(self, answer: Response | Usage, request: Request) -> float | None:
        if self._provider is None:
            resolution = select_backend(self._endpoint.template()).resolution
            self._provider, self._model = (resolution.provider, resolution.model) if resolution else ("", "")
        if isinstance(answer, Usage):
            said = Message.assistant("")
            model = self._model or request.model
            answer = Response(id=None, model=model, message=said, finish_reason="stop", usage=answer)
        if not self._provider or not self._is_listed(self._provider, answer.model):
            return None
        cost, _ = estimate_cost(answer, provider=self._provider, requested_model=self._model, request=request)
        return None if cost is None else float(cost)

    def _is_listed(self, provider: str, model: str) -> bool:
        """Whether the table has it; asked once per model, because to miss takes 1 ms."""
        if model not in self._listed:
            self._listed[model] = any(model_metadata.model_info(provider, name) for name in (model, self._model))
        return self._listed[model]
