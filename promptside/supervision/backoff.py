"""`Backoff`: how long a supervisor waits before it restarts a child that keeps failing.

Beyond Erlang/OTP, which restarts at once. Part of a `ChildSpec`; the supervisor counts the failures and keeps the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from promptside.errors import InvalidChildSpec

__all__ = ["Backoff"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """An exponential wait with jitter. Each restart still counts against the supervisor's intensity.

    Args:
        initial: Seconds before the first restart, > 0.
        maximum: Seconds that no wait exceeds, >= `initial`.
        factor: By which each further failure lengthens the wait, >= 1.
        jitter: Share of the wait that is random, in [0, 1]: children that failed together do not come back together.
        reset_after: Seconds that a child must have run for its earlier failures to be forgotten, > 0.

    Raises:
        InvalidChildSpec: A field is out of its range; the message names it.
    """

    initial: float = 0.1
    maximum: float = 30.0
    factor: float = 2.0
    jitter: float = 0.5
    reset_after: float = 60.0

    def __post_init__(self) -> None:
        def check(field: str, low: float, high: float, remedy: str) -> None:
            value = getattr(self, field)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise InvalidChildSpec(f"Backoff: {field}={value!r}: {remedy}")

        tiny, huge = math.ulp(0.0), math.nextafter(math.inf, 0.0)
        check("initial", tiny, huge, "give seconds > 0")
        check("maximum", self.initial, huge, f"give seconds >= initial={self.initial!r}")
        check("factor", 1, huge, "give a factor >= 1")
        check("jitter", 0, 1, "give a share between 0 and 1")
        check("reset_after", tiny, math.inf, "give seconds > 0, or math.inf")

    def delay(self, failures: int, drawn: float) -> float:
        """Seconds to wait before the next restart.

        Args:
            failures: Failures in a row, this one included, >= 1.
            drawn: A random number in [0, 1).
        """
        growth = (failures - 1) * math.log(self.factor)  # by its logarithm, for a power overflows after 1,000 failures
        longest = self.maximum if growth > 700 else min(self.maximum, self.initial * math.exp(growth))
        return longest * (1 - self.jitter * drawn)
