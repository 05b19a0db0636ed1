"""`Budget`: a limit on what a pool or a label may use. Given to an `LMPool`; its `Ledger` enforces it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from promptside.checks import check, check_count, is_number

__all__ = ["Budget", "check_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be used. The next call raises `BudgetExceeded`, before anything is sent.

    `calls` is never exceeded, however many come at once. Cost and tokens of a call are known from its answer, so `cost`
    and `tokens` are exceeded by at most the calls under way when they are reached. A call without a known price adds
    nothing to `cost`: see `unknown_cost` in the costs, and add `tokens` or `calls` where it matters.

    Args:
        cost: US dollars, >= 0, as DSPy's price table estimates them.
        tokens: Input and output together, as the providers count them, >= 0.
        calls: Calls that reach the network, >= 0. Retries of a call and other endpoints do not count again.

    Raises:
        ValueError: A field is out of its range, or none is given.
    """

    cost: float | None = None
    tokens: int | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        given = (self.cost, self.tokens, self.calls)
        check("Budget", "cost, tokens, calls", given, given != (None, None, None), "give at least one of them")
        cost = self.cost
        valid = cost is None or (is_number(cost) and 0 <= cost < math.inf)
        check("Budget", "cost", cost, valid, "give US dollars >= 0, or leave it out for no bound")
        for field in ("tokens", "calls"):
            if getattr(self, field) is not None:
                check_count("Budget", field, getattr(self, field), least=0)


def check_budget(field: str, budget: object) -> None:
    """Raise `ValueError` unless it is a `Budget` or None."""
    valid = budget is None or isinstance(budget, Budget)
    check("LMPool", field, budget, valid, "give a Budget, such as Budget(cost=5)")
