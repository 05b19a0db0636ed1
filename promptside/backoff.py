"""`Backoff`: an exponential wait with jitter, between one failure and the next try.

Used by supervisors before a restart, by LM pools before a retry, and by event sinks. The caller counts the failures and
keeps the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from promptside.checks import check, check_seconds, is_number

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """An exponential wait with jitter.

    Args:
        initial: Seconds after the first failure, > 0.
        maximum: Longest wait in seconds, >= `initial`.
        factor: Growth of the wait with each further failure, >= 1.
        jitter: Random share of the wait, in [0, 1]; with 1 a wait is anything up to its full length (full jitter).
        reset_after: Seconds without a failure after which a supervisor forgets earlier ones, > 0. Others ignore it.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    initial: float = 0.1
    maximum: float = 30.0
    factor: float = 2.0
    jitter: float = 0.5
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        def within(field: str, low: float, high: float, remedy: str) -> None:
            value = getattr(self, field)
            check("Backoff", field, value, is_number(value) and low <= value <= high, remedy)

        largest = math.nextafter(math.inf, 0.0)
        check_seconds("Backoff", "initial", self.initial)
        within("maximum", self.initial, largest, f"give seconds >= initial={self.initial!r}")
        within("factor", 1, largest, "give a factor >= 1")
        within("jitter", 0, 1, "give a share between 0 and 1")
        check_seconds("Backoff", "reset_after", self.reset_after)

    def delay(self, failures: int, drawn: float) -> float:
        """Seconds to wait before the next try.

        Args:
            failures: Failures in a row, this one included, >= 1.
            drawn: A random number in [0, 1).
        """
        try:
            grown = self.initial * float(self.factor) ** (failures - 1)
        except OverflowError:  # after 1,024 failures with a factor of 2
            grown = math.inf
        return min(self.maximum, grown) * (1 - self.jitter * drawn)
