"""`Ledger`: what the calls of an LM pool have used and cost, by model, endpoint and label, within its budgets.

An `LMPool` owns one, which outlives the pool's restarts. The engine pair opens a `CallUsage` for each call, before
anything is sent, and puts it into a contextvar. The LM workers find it there and record each attempt in it. Answers
from a cache cost nothing and are not counted.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dspy.lm15 import Usage

from promptside.checks import check
from promptside.pools.accounting.budget import Budget, check_budget
from promptside.pools.context.labels import KINDS
from promptside.pools.errors import BudgetExceeded

__all__ = ["CALL_USAGE", "MAX_LABELS", "AttemptUsage", "CallUsage", "Ledger"]

MAX_LABELS: Final = 10_000
"""Labels of each kind that are kept apart; those unused for longest are added up under `OTHERS`."""

OTHERS: Final = "..."
"""The label of those that were added up."""


@dataclass(slots=True)
class Totals:
    """What the calls of one label have used."""

    calls: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0
    unknown_tokens: int = 0
    unknown_cost: int = 0

    def add(self, other: Totals) -> None:
        self.calls += other.calls  # by name: a loop over the names takes 5 us of a call more
        self.attempts += other.attempts
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.tokens += other.tokens
        self.cost += other.cost
        self.unknown_tokens += other.unknown_tokens
        self.unknown_cost += other.unknown_cost


class _Account:
    """The totals of one label, its budget, and its admitted calls that have sent nothing yet."""

    __slots__ = ("budget", "pending", "totals", "users")

    def __init__(self) -> None:
        self.totals = Totals()
        self.budget: Budget | None = None  # of its own
        self.pending = 0
        self.users = 0  # calls that are open

    def is_idle(self) -> bool:
        """Whether its totals may be added to others': no call is under way, and it has no budget of its own."""
        return not self.users and self.budget is None

    def exceeded(self, budget: Budget) -> tuple[str, float, float] | None:
        """The exceeded unit, the amount spent and the limit; None while another call may begin."""
        totals = self.totals
        if budget.calls is not None and totals.calls + self.pending >= budget.calls:
            return "calls", totals.calls + self.pending, budget.calls
        if budget.tokens is not None and totals.tokens >= budget.tokens:
            return "tokens", totals.tokens, budget.tokens
        if budget.cost is not None and totals.cost >= budget.cost:
            return "cost", totals.cost, budget.cost
        return None


class Ledger:
    """The accounts of one pool. Any thread; nothing here waits.

    Args:
        pool: Name of the pool, for errors.
        budget: For the pool as a whole.
        budgets: For each program, each session, each run, by kind.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(self, pool: str, budget: Budget | None = None, budgets: Mapping[str, Budget] | None = None) -> None:
        check_budget("budget", budget)
        valid = isinstance(budgets, Mapping | None)
        check("LMPool", "budgets", budgets, valid, 'give a mapping, such as {"session": Budget(cost=0.5)}')
        budgets = dict(budgets or {})
        unknown = [kind for kind in budgets if kind not in KINDS]
        check("LMPool", "budgets", unknown, not unknown, f"give a Budget for some of {', '.join(KINDS)}")
        for kind, each in budgets.items():
            check_budget(f"budgets[{kind!r}]", each)
        self._pool = pool
        self._each = budgets
        self._total = _Account()
        self._total.budget = budget
        self._accounts: dict[str, dict[str, _Account]] = {kind: {} for kind in ("model", "endpoint", *KINDS)}
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here

    def set_budget(self, budget: Budget | None, given: Mapping[str, str]) -> None:
        """Set the budget of one label, or without one of the pool; None removes it."""
        check_budget("budget", budget)
        with self._lock:
            accounts = [self._account(kind, label) for kind, label in given.items()] or [self._total]
            for account in accounts:
                account.budget = budget

    def open(self, given: Mapping[str, str]) -> CallUsage:
        """Admit one call under these labels; `CallUsage.close` must follow.

        Raises:
            BudgetExceeded: One of its budgets is spent.
        """
        with self._lock:
            accounts = [self._total]
            self._admit(self._total, self._total.budget, "pool", self._pool)
            for kind in KINDS:
                if kind in given:
                    account = self._account(kind, given[kind])
                    self._admit(account, account.budget or self._each.get(kind), kind, given[kind])
                    accounts.append(account)
            for account in accounts:
                account.pending += 1
                account.users += 1
        return CallUsage(self, accounts)

    def costs(self) -> dict[str, Any]:
        """All totals as JSON-safe data, a copy. Takes 10 us a label, and does not hold calls up."""
        with self._lock:
            kinds = {f"by_{kind}": list(accounts.items()) for kind, accounts in self._accounts.items()}
        by_kind = {kind: {label: self._read(account) for label, account in each} for kind, each in kinds.items()}
        return {"total": self._read(self._total), **by_kind}

    def _read(self, account: _Account) -> dict[str, Any]:
        with self._lock:
            return asdict(account.totals)

    def _admit(self, account: _Account, budget: Budget | None, kind: str, label: str) -> None:
        spent = None if budget is None else account.exceeded(budget)
        if spent is not None:
            raise BudgetExceeded(kind, label, *spent)

    def _account(self, kind: str, label: str) -> _Account:
        """The account of a label, which becomes the one used last."""
        accounts = self._accounts[kind]
        account = accounts.pop(label, None) or _Account()
        accounts[label] = account
        if len(accounts) > MAX_LABELS:
            idle = (each for each in accounts if each not in (label, OTHERS) and accounts[each].is_idle())
            if (oldest := next(idle, None)) is not None:
                gone = accounts.pop(oldest)
                accounts.setdefault(OTHERS, _Account()).totals.add(gone.totals)
        return account


class CallUsage:
    """One call that was admitted; made by `Ledger.open`.

    Attributes:
        endpoint: Name of the endpoint that was tried last; empty before.
        cost: US dollars of all its attempts; None before the first is answered, and when one's is not known. Of a
            call that has ended and sent nothing, 0.
    """

    def __init__(self, ledger: Ledger, accounts: list[_Account]) -> None:
        self.endpoint = ""
        self.cost: float | None = None
        self._ledger = ledger
        self._accounts = accounts  # of the pool and the labels
        self._tried: dict[tuple[str, str], _Account] = {}  # of models and endpoints
        self._unknown = False
        self._sent = False
        self._closed = False

    def attempt(self, endpoint: str, model: str) -> AttemptUsage:
        """A request is about to be sent; its usage is recorded once."""
        with self._ledger._lock:
            if not self._sent:
                self._sent = True
                for account in self._accounts:
                    account.totals.calls += 1
                    account.pending -= 0 if self._closed else 1
            accounts = [*self._accounts]
            for kind, label in (("model", model), ("endpoint", endpoint)):
                account = self._tried.get((kind, label)) or self._ledger._account(kind, label)
                if (kind, label) not in self._tried:
                    self._tried[kind, label] = account
                    account.users += 1
                    account.totals.calls += 1
                accounts.append(account)
            for account in accounts:
                account.totals.attempts += 1
            self.endpoint = endpoint
        return AttemptUsage(self, accounts)

    def close(self) -> None:
        """The call has ended; one that sent nothing is not counted. Further times do nothing."""
        with self._ledger._lock:
            if not self._closed:
                self._closed = True
                self.cost = self.cost if self._sent else 0.0
                for account in self._accounts:
                    account.pending -= 0 if self._sent else 1
                for account in (*self._accounts, *self._tried.values()):
                    account.users -= 1

    def _add(self, accounts: list[_Account], used: Totals) -> None:
        with self._ledger._lock:
            for account in accounts:
                account.totals.add(used)
            self._unknown = self._unknown or used.unknown_cost > 0
            self.cost = None if self._unknown else (self.cost or 0.0) + used.cost


class AttemptUsage:
    """What one attempt has used; made by `CallUsage.attempt`. Only the first record counts."""

    def __init__(self, call: CallUsage, accounts: list[_Account]) -> None:
        self._call = call
        self._accounts = accounts
        self._open = True

    def record(self, usage: Usage | None, cost: float | None) -> None:
        """It was answered.

        Args:
            usage: The provider's count; None where it gave none.
            cost: US dollars; None where the price is not known.
        """
        given, taken, total = (
            (None, None, None) if usage is None else (usage.input_tokens, usage.output_tokens, usage.total_tokens)
        )
        self._record(
            Totals(
                input_tokens=given or 0,
                output_tokens=taken or 0,
                tokens=(given or 0) + (taken or 0) if total is None else total,
                cost=cost or 0.0,
                unknown_tokens=int(total is None and (given is None or taken is None)),
                unknown_cost=int(cost is None),
            )
        )

    def record_refused(self) -> None:
        """The provider refused it, and charges nothing."""
        self._record(Totals())

    def record_unknown(self) -> None:
        """It broke off; the provider may have charged for it."""
        self._record(Totals(unknown_tokens=1, unknown_cost=1))

    def _record(self, used: Totals) -> None:
        if self._open:
            self._open = False
            self._call._add(self._accounts, used)


CALL_USAGE: Final[contextvars.ContextVar[CallUsage | None]] = contextvars.ContextVar(
    "promptside_call_usage", default=None
)
"""Usage of the current call; it travels to the workers with the messages."""
