"""Maximum restart intensity: the sliding window of restarts, as a pure function.

Called by `supervisor` with the loop's time. Source of the semantics: Erlang/OTP supervisor, 'Maximum Restart
Intensity': more than `max_restarts` within the last `max_seconds` and the supervisor gives up.
"""

from __future__ import annotations

__all__ = ["add_restart"]


def add_restart(
    history: tuple[float, ...], now: float, max_restarts: int, max_seconds: float
) -> tuple[tuple[float, ...], bool]:
    """Count one restart.

    Args:
        history: Times of the restarts so far, oldest first, in seconds.
        now: Time of this one, not before the last of `history`.
        max_restarts: Restarts allowed within the window, >= 0.
        max_seconds: Length of the window in seconds, > 0.

    Returns:
        The restarts still in the window, this one included, and whether this one is allowed.
        A restart exactly `max_seconds` old is still inside, as in OTP.
    """
    recent = (*(then for then in history if now - then <= max_seconds), now)
    return recent, len(recent) <= max_restarts
