"""Maximum restart intensity: a sliding window over the restarts of a supervisor's children.

Owned by `supervisor`, which passes in the loop's time. Source of the semantics: Erlang/OTP supervisor, 'Maximum
Restart Intensity': more than `max_restarts` within the last `max_seconds`, and the supervisor gives up.
"""

from __future__ import annotations

from collections import deque

from promptside.texts import describe, is_error

__all__ = ["RestartWindow"]

HISTORY = 32
"""Reasons that are kept, exceptions as texts: an exception holds its traceback, and so the variables of its frames."""


class RestartWindow:
    """Counts restarts; nothing here waits or reads a clock.

    Args:
        max_restarts: Restarts allowed within the window, >= 0.
        max_seconds: Length of the window in seconds, > 0.
    """

    def __init__(self, max_restarts: int, max_seconds: float) -> None:
        self.max_restarts = max_restarts
        self.max_seconds = max_seconds
        self._times: deque[float] = deque()
        self._last: deque[tuple[float, str, object]] = deque(maxlen=HISTORY)

    def add(self, now: float, child: str, reason: object) -> bool:
        """Count one restart. Cost: O(1), amortized.

        Args:
            now: Seconds, not before an earlier call's.
            child: Whose restart it is.
            reason: Why it is needed.

        Returns:
            Whether it is allowed. A restart exactly `max_seconds` old still counts, as in OTP.
        """
        times, last = self._times, self._last
        times.append(now)
        last.append((now, child, describe(reason) if is_error(reason) else reason))
        while now - times[0] > self.max_seconds:
            times.popleft()
        while now - last[0][0] > self.max_seconds:
            last.popleft()
        return len(times) <= self.max_restarts

    @property
    def history(self) -> tuple[tuple[str, object], ...]:
        """The last restarts in the window, at most 32, oldest first, as ``(child, reason)``; exceptions are texts."""
        return tuple((child, reason) for _, child, reason in self._last)
