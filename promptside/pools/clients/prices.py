"""The cost of an answer by the price table that DSPy ships; an estimate in US dollars.

Asked by LM workers on the pool's event loop. Never waits, never fetches anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dspy.clients import model_metadata
from dspy.clients.backend_selection import select_backend
from dspy.clients.costs import estimate_cost
from dspy.lm15 import BuiltinTool, Message, Request, Response, Usage

from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.clients.requests import ModelType, Origin

__all__ = ["Prices"]


class Prices:
    """The prices of one endpoint.

    Args:
        endpoint: One with an engine of its own has no prices.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._routes: dict[ModelType, tuple[str, str]] = {}
        self._rates: dict[tuple[str, str], _Rates | None] = {}

    def price(self, answer: Response | Usage, request: Request | None) -> Origin:
        """The provider and the cost; a cost of None where the price is not known.

        5 us, or 70 to 90 where more than plain tokens is billed.

        Args:
            answer: The answer; of a stream, the provider's count.
            request: The request as sent; None if it is no chat.
        """
        if self._endpoint.engine is not None:
            return Origin(cost_details=_unknown("custom engine has no pricing provider"))
        # Without a table in memory the first look-up would fetch one over the network. DSPy loads it when it is asked
        # what a model can do, as `LMPool.lm` does.
        if getattr(model_metadata, "_data", None) is None:
            return Origin(cost_details=_unknown("no table of prices is loaded"))
        try:
            return self._priced(answer, request)
        except Exception:  # noqa: BLE001 - a price table that cannot be read must not fail an answer that was paid for
            return Origin(cost_details=_unknown("pricing metadata could not be interpreted"))

    def _priced(self, answer: Response | Usage, request: Request | None) -> Origin:
        model_type: ModelType = getattr(request, "model_type", "chat")
        if model_type not in self._routes:
            route = select_backend(self._endpoint.template(model_type)).resolution
            self._routes[model_type] = (route.provider, route.model) if route else ("", "")
        provider, model = self._routes[model_type]
        if isinstance(answer, Usage):
            said = Message.assistant("")
            named = model or (request.model if request is not None else "")
            answer = Response(id=None, model=named, message=said, finish_reason="stop", usage=answer)
        rates = self._rates_of(provider, answer.model, model) if provider else None
        if rates is None:
            return Origin(provider or None, cost_details=_unknown("no matching pricing entry"))
        if rates.flat and _is_plain(answer, request):
            cost = rates.input * (answer.usage.input_tokens or 0) + rates.output * (answer.usage.output_tokens or 0)
            return Origin(provider, cost, rates.details)
        return Origin(provider, *_estimate(answer, provider, model, request))

    def _rates_of(self, provider: str, answered: str, model: str) -> _Rates | None:
        """Prices of its plain tokens; None where the table has none. Kept, because a miss takes 1 ms."""
        if (provider, answered) not in self._rates:
            infos = (model_metadata.model_info(provider, name) for name in (answered, model))
            info = next(filter(None, infos), None)
            self._rates[provider, answered] = None if info is None else _find_rates(provider, answered, model, info)
        return self._rates[provider, answered]


def _estimate(
    answer: Response, provider: str, model: str, request: Request | None
) -> tuple[float | None, Mapping[str, Any]]:
    cost, details = estimate_cost(answer, provider=provider, requested_model=model, request=request)
    return None if cost is None else float(cost), details


def _find_rates(provider: str, answered: str, model: str, info: Mapping[str, Any]) -> _Rates:
    said = Message.assistant("")
    one_of_each = (Usage(input_tokens=1, output_tokens=0), Usage(input_tokens=0, output_tokens=1))
    answers = (Response(id=None, model=answered, message=said, finish_reason="stop", usage=one) for one in one_of_each)
    (given, details), (taken, _) = (_estimate(answer, provider, model, None) for answer in answers)
    flat = given is not None and taken is not None and not any("_above_" in key for key in info)
    return _Rates(given or 0.0, taken or 0.0, details, flat)


class _Rates(NamedTuple):
    """Dollars for a token, and where they are from; `flat` if no other rate applies, however long the prompt."""

    input: float
    output: float
    details: Mapping[str, Any]
    flat: bool


def _unknown(reason: str) -> dict[str, str]:
    """As DSPy says it."""
    return {"kind": "unknown", "reason": reason}


def _is_plain(answer: Response, request: Request | None) -> bool:
    """Whether only text is billed, at the ordinary rate."""
    usage, extra = answer.usage, answer.provider_data or {}
    others = usage.cache_read_tokens or usage.cache_write_tokens or usage.reasoning_tokens
    if others or usage.input_audio_tokens or usage.output_audio_tokens:
        return False
    if usage.input_tokens is None or usage.output_tokens is None:
        return False
    metadata = extra.get("usageMetadata")
    tier = extra.get("service_tier") or (metadata.get("serviceTier") if isinstance(metadata, Mapping) else None)
    if tier not in (None, "default"):
        return False
    if request is not None and (request.config.service_tier is not None or any(map(_is_hosted, request.tools))):
        return False
    return all(part.type == "text" for part in answer.message.parts)


def _is_hosted(tool: object) -> bool:
    return isinstance(tool, BuiltinTool)
