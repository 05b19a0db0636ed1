"""A check, before a pool starts, that this process may open all the connections that the pool may need.

A process that runs out of descriptors later fails in places that have nothing to do with the pool: a log file, a name
look-up, a subprocess.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.errors import TooFewDescriptors

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]

__all__ = ["check_descriptors"]

RESERVE = 32
"""Descriptors left to the rest of the process: log files, name look-ups, subprocesses, another event loop."""


def check_descriptors(pool: str, workers: int, endpoints: Sequence[Endpoint]) -> None:
    """Raise `TooFewDescriptors` if the pool's connections and the descriptors open now exceed this process's limit.

    Args:
        pool: The pool's name.
        workers: How many workers; each opens the connections of every endpoint.
        endpoints: Those with an engine of their own open none here.
    """
    if resource is None:
        return
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    widths = [endpoint.max_connections for endpoint in endpoints if endpoint.engine is None]
    used = _open_now()
    if limit != resource.RLIM_INFINITY and workers * sum(widths) + used + RESERVE > limit:
        raise TooFewDescriptors(pool, workers, widths, used=used, reserve=RESERVE, limit=limit)


def _open_now() -> int:
    try:
        return len(os.listdir("/dev/fd")) - 1  # noqa: PTH208 - one descriptor is that of the listing
    except OSError:
        return 3
