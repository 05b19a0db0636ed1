"""The ledger of an LM pool against a model that keeps every call as a row and sums them anew at each question."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dspy.lm15 import Usage
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from promptside.pools import Budget, BudgetExceeded
from promptside.pools.accounting.ledger import AttemptUsage, CallUsage, Ledger

LABELS = st.fixed_dictionaries({}, optional={"program": st.sampled_from("pq"), "session": st.sampled_from("ab")})
BUDGETS = st.one_of(
    st.none(),
    st.builds(Budget, calls=st.integers(0, 4)),
    st.builds(Budget, tokens=st.integers(0, 20)),
    st.builds(Budget, cost=st.integers(0, 6).map(float), calls=st.integers(0, 9)),
)


@dataclass
class Row:
    """A call, as the model sees it."""

    given: dict[str, str]
    charge: CallUsage
    open: bool = True
    sent: bool = False
    attempts: list[list[Any]] = field(default_factory=list)  # [endpoint, tokens, cost or None]; None: not settled


class LedgerMachine(RuleBasedStateMachine):
    charges = Bundle("charges")
    bills = Bundle("bills")

    def __init__(self) -> None:
        super().__init__()
        self.each = Budget(calls=3)
        self.ledger = Ledger("lm", Budget(calls=12), {"session": self.each})
        self.total: Budget | None = Budget(calls=12)
        self.own: dict[str, Budget | None] = {}
        self.rows: list[Row] = []

    def spent(self, kind: str | None, label: str | None) -> tuple[int, int, float]:
        """Calls that hold a place, tokens and cost of a label, or of all."""
        rows = [row for row in self.rows if kind is None or row.given.get(kind) == label]
        settled = [attempt for row in rows for attempt in row.attempts if attempt[1] is not None]
        places = sum(row.sent or row.open for row in rows)
        return places, sum(each[1] for each in settled), sum(each[2] or 0.0 for each in settled)

    def allows(self, budget: Budget | None, kind: str | None, label: str | None) -> bool:
        if budget is None:
            return True
        bounds = (budget.calls, budget.tokens, budget.cost)
        return all(bound is None or used < bound for used, bound in zip(self.spent(kind, label), bounds, strict=True))

    @rule(target=charges, given=LABELS)
    def open(self, given: dict[str, str]) -> Any:
        allowed = self.allows(self.total, None, None) and all(
            self.allows(self.own.get(label) or self.each if kind == "session" else None, kind, label)
            for kind, label in given.items()
        )
        try:
            row = Row(given, self.ledger.open(given))
        except BudgetExceeded:
            assert not allowed
            return None
        assert allowed
        self.rows.append(row)
        return row

    @rule(target=bills, row=charges, endpoint=st.sampled_from("xy"))
    def attempt(self, row: Row | None, endpoint: str) -> Any:
        if row is None:
            return None
        row.sent = True
        row.attempts.append([endpoint, None, 0.0])
        return row.charge.attempt(endpoint, f"model {endpoint}"), row.attempts[-1]

    @rule(bill=bills, tokens=st.integers(0, 5), cost=st.one_of(st.none(), st.integers(0, 2).map(float)))
    def paid(self, bill: tuple[AttemptUsage, list[Any]] | None, tokens: int, cost: float | None) -> None:
        if bill is not None:
            bill[0].record(Usage(input_tokens=tokens, output_tokens=1), cost)
            if bill[1][1] is None:
                bill[1][1:] = [tokens + 1, cost]

    @rule(bill=bills, known=st.booleans())
    def broken(self, bill: tuple[AttemptUsage, list[Any]] | None, known: bool) -> None:
        if bill is not None:
            (bill[0].record_refused if known else bill[0].record_unknown)()
            if bill[1][1] is None:
                bill[1][1:] = [0, 0.0 if known else None]

    @rule(row=consumes(charges))
    def close(self, row: Row | None) -> None:
        if row is not None:
            row.charge.close()
            row.open = False

    @rule(budget=BUDGETS, session=st.one_of(st.none(), st.sampled_from("ab")))
    def set_budget(self, budget: Budget | None, session: str | None) -> None:
        if session is None:
            self.total = budget
            self.ledger.set_budget(budget, {})
        else:
            self.own[session] = budget
            self.ledger.set_budget(budget, {"session": session})

    @invariant()
    def figures_are_the_sums_of_the_rows(self) -> None:
        costs = self.ledger.costs()
        self.check(costs["total"], self.rows, None)
        for kind in ("program", "session"):
            for label, figures in costs[f"by_{kind}"].items():
                self.check(figures, [row for row in self.rows if row.given.get(kind) == label], None)
        for endpoint, figures in costs["by_endpoint"].items():
            self.check(figures, self.rows, endpoint)
            assert figures == costs["by_model"][f"model {endpoint}"]
        for row in self.rows:
            settled = [attempt[2] for attempt in row.attempts if attempt[1] is not None]
            if not row.sent and not row.open:
                settled = [0.0]
            assert row.charge.cost == (None if not settled or None in settled else sum(settled))

    def check(self, figures: dict[str, Any], rows: list[Row], endpoint: str | None) -> None:
        tried = [[each for each in row.attempts if endpoint in (None, each[0])] for row in rows]
        attempts = [attempt for each in tried for attempt in each]
        settled = [attempt for attempt in attempts if attempt[1] is not None]
        assert figures["calls"] == sum(bool(each) for each in tried)
        assert figures["attempts"] == len(attempts)
        assert figures["tokens"] == sum(attempt[1] for attempt in settled)
        assert figures["cost"] == sum(attempt[2] or 0.0 for attempt in settled)
        assert figures["unknown_cost"] == sum(attempt[2] is None for attempt in settled)


TestLedger = LedgerMachine.TestCase
