"""The one seam for time: every other module asks here, or asks its event loop.

Durations inside actors and pools are measured by the event loop's own `time()`, so that a test on a loop with
virtual time needs no patching. Pure cores (restart windows, breakers, limiters) take `now` as an argument.
"""

from __future__ import annotations

import time

__all__ = ["monotonic", "wall"]

monotonic = time.monotonic
"""Seconds on a clock that never goes back; for spans that cross event loops or threads."""

wall = time.time
"""Seconds since the epoch; for the timestamps of events."""
