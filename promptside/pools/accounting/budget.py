"""`Ledger`: what the calls of an LM pool have used and cost, by model, endpoint and label; and `Budget`s, which stop.

An `LMPool` owns one, and it outlives the pool's restarts. The engine pair opens a `CallUsage` for each call, before
anything is sent, and leaves it in a contextvar; the LM workers find it there and bill each attempt to it. Answers from
a cache never come here and cost nothing.
"""

from __future__ import annotations

import contextvars
import math
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from dspy.lm15 import Usage

from promptside.checks import check, check_count
from promptside.pools.context.labels import KINDS
from promptside.pools.errors import BudgetExceeded

__all__ = ["CALL_USAGE", "MAX_LABELS", "AttemptUsage", "Budget", "CallUsage", "Ledger"]

MAX_LABELS: Final = 10_000
"""Sessions (and programs, and runs) whose figures are kept; those that were not used for longest are added up."""

OTHERS: Final = "..."
"""The label under which they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much may be spent; the call after that raises `BudgetExceeded`, before anything is sent.

    `calls` is never exceeded, however many come at once. What a call uses is known when it is answered, so `cost` and
    `tokens` are exceeded by at most what is under way when they are reached. What has no known price adds nothing to
    `cost`: look at `unknown_cost` in the costs, and add `tokens` or `calls` where it matters.

    Args:
        cost: US dollars, >= 0, as DSPy's price table estimates them.
        tokens: Input and output together, as the providers count them, >= 0.
        calls: Calls that reach the network, >= 0; one that is retried or goes to another endpoint is one call.

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
        valid = cost is None or (isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < math.inf)
        check("Budget", "cost", cost, valid, "give US dollars >= 0, or leave it out for no bound")
        for field in ("tokens", "calls"):
            if getattr(self, field) is not None:
                check_count("Budget", field, getattr(self, field), least=0)


@dataclass(slots=True)
class _Figures:
    """What is told of one label."""

    calls: int = 0
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    tokens: int = 0
    cost: float = 0.0
    unknown_tokens: int = 0
    unknown_cost: int = 0

    def add(self, other: _Figures) -> None:
        self.calls += other.calls  # by name: a loop over the names takes 5 us of a call more
        self.attempts += other.attempts
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.tokens += other.tokens
        self.cost += other.cost
        self.unknown_tokens += other.unknown_tokens
        self.unknown_cost += other.unknown_cost


class _Account:
    """The figures of one label, with its budget and the calls that are admitted and have sent nothing yet."""

    __slots__ = ("budget", "figures", "pending", "users")

    def __init__(self) -> None:
        self.figures = _Figures()
        self.budget: Budget | None = None  # of its own
        self.pending = 0
        self.users = 0  # charges that are open

    def is_idle(self) -> bool:
        """Whether its figures may be added to others': nothing is under way, and it has no budget of its own."""
        return not self.users and self.budget is None

    def exceeded(self, budget: Budget) -> tuple[str, float, float] | None:
        """What is exceeded, spent and the limit; None while another call may begin."""
        figures = self.figures
        if budget.calls is not None and figures.calls + self.pending >= budget.calls:
            return "calls", figures.calls + self.pending, budget.calls
        if budget.tokens is not None and figures.tokens >= budget.tokens:
            return "tokens", figures.tokens, budget.tokens
        if budget.cost is not None and figures.cost >= budget.cost:
            return "cost", figures.cost, budget.cost
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
        _check_budget("budget", budget)
        budgets = dict(budgets or {})
        unknown = [kind for kind in budgets if kind not in KINDS]
        check("LMPool", "budgets", unknown, not unknown, f"give a Budget for some of {', '.join(KINDS)}")
        for kind, each in budgets.items():
            _check_budget(f"budgets[{kind!r}]", each)
        self._pool = pool
        self._each = budgets
        self._total = _Account()
        self._total.budget = budget
        self._accounts: dict[str, dict[str, _Account]] = {kind: {} for kind in ("model", "endpoint", *KINDS)}
        self._lock = threading.Lock()

    def set_budget(self, budget: Budget | None, given: Mapping[str, str]) -> None:
        """Bound one label, or without one the pool; None takes its own bound away."""
        _check_budget("budget", budget)
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
        """All figures, JSON-safe; a copy. 10 us a label, during which calls go on."""
        with self._lock:
            kinds = {f"by_{kind}": list(accounts.items()) for kind, accounts in self._accounts.items()}
        rolled = {kind: {label: self._read(account) for label, account in each} for kind, each in kinds.items()}
        return {"total": self._read(self._total), **rolled}

    def _read(self, account: _Account) -> dict[str, Any]:
        with self._lock:
            return asdict(account.figures)

    def _admit(self, account: _Account, budget: Budget | None, kind: str, label: str) -> None:
        spent = None if budget is None else account.exceeded(budget)
        if spent is not None:
            raise BudgetExceeded(kind, label, *spent)

    def _account(self, kind: str, label: str) -> _Account:
        """That of a label, which is now the one used last."""
        accounts = self._accounts[kind]
        account = accounts.pop(label, None) or _Account()
        accounts[label] = account
        if len(accounts) > MAX_LABELS:
            idle = (each for each in accounts if each not in (label, OTHERS) and accounts[each].is_idle())
            if (oldest := next(idle, None)) is not None:
                gone = accounts.pop(oldest)
                accounts.setdefault(OTHERS, _Account()).figures.add(gone.figures)
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
        """A request is about to be sent; the bill says what became of it, once."""
        with self._ledger._lock:
            if not self._sent:
                self._sent = True
                for account in self._accounts:
                    account.figures.calls += 1
                    account.pending -= 0 if self._closed else 1
            billed = [*self._accounts]
            for kind, label in (("model", model), ("endpoint", endpoint)):
                account = self._tried.get((kind, label)) or self._ledger._account(kind, label)
                if (kind, label) not in self._tried:
                    self._tried[kind, label] = account
                    account.users += 1
                    account.figures.calls += 1
                billed.append(account)
            for account in billed:
                account.figures.attempts += 1
            self.endpoint = endpoint
        return AttemptUsage(self, billed)

    def close(self) -> None:
        """The call has ended. One that sent nothing is given back. More than once is once."""
        with self._ledger._lock:
            if not self._closed:
                self._closed = True
                self.cost = self.cost if self._sent else 0.0
                for account in self._accounts:
                    account.pending -= 0 if self._sent else 1
                for account in (*self._accounts, *self._tried.values()):
                    account.users -= 1

    def _bill(self, accounts: list[_Account], used: _Figures) -> None:
        with self._ledger._lock:
            for account in accounts:
                account.figures.add(used)
            self._unknown = self._unknown or used.unknown_cost > 0
            self.cost = None if self._unknown else (self.cost or 0.0) + used.cost


class AttemptUsage:
    """What one attempt has used; made by `CallUsage.attempt`. Only the first of `paid`, `free` and `unknown` counts."""

    def __init__(self, charge: CallUsage, accounts: list[_Account]) -> None:
        self._charge = charge
        self._accounts = accounts
        self._open = True

    def paid(self, usage: Usage | None, cost: float | None) -> None:
        """It was answered.

        Args:
            usage: What the provider counted; None where it told nothing.
            cost: US dollars; None where the price is not known.
        """
        given, taken = (None, None) if usage is None else (usage.input_tokens, usage.output_tokens)
        told = None if usage is None else usage.total_tokens
        tokens = (given or 0) + (taken or 0) if told is None else told
        self._settle(
            _Figures(
                input_tokens=given or 0,
                output_tokens=taken or 0,
                tokens=tokens,
                cost=cost or 0.0,
                unknown_tokens=int(told is None and (given is None or taken is None)),
                unknown_cost=int(cost is None),
            )
        )

    def free(self) -> None:
        """It was refused by the provider, which charges nothing for that."""
        self._settle(_Figures())

    def unknown(self) -> None:
        """It broke off, and the provider may have charged for it."""
        self._settle(_Figures(unknown_tokens=1, unknown_cost=1))

    def _settle(self, used: _Figures) -> None:
        if self._open:
            self._open = False
            self._charge._bill(self._accounts, used)


CALL_USAGE: Final[contextvars.ContextVar[CallUsage | None]] = contextvars.ContextVar("promptside_charge", default=None)
"""That of the call which is being made; it goes with the messages to the workers."""


def _check_budget(field: str, budget: object) -> None:
    check(
        "LMPool", field, budget, budget is None or isinstance(budget, Budget), "give a Budget, such as Budget(cost=5)"
    )
