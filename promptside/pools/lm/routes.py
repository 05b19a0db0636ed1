"""Routes: in which order the endpoints of a pool are tried for a request. Pure functions over small views.

Called by the dispatcher, once per call; the next endpoint is tried when one fails, whatever the route.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from promptside.checks import check

__all__ = ["Route", "TargetView", "check_route", "order"]

Route = Literal["fallback", "round_robin", "least_busy", "vote"]
"""``"fallback"``: as they are listed. ``"round_robin"``: the one that was first longest ago. ``"least_busy"``: the one
with the least under way for its capacity. ``"vote"``: the pool's LM asks all of them at once."""


@dataclass(frozen=True, slots=True)
class TargetView:
    """A target as a route sees it.

    Attributes:
        load: Requests under way, and those that wait for a connection.
        capacity: Requests that may be under way, >= 1.
        last_first: Number of the last call that tried it first; 0 for none.
        closed: Whether its breaker or its limiter lets nothing through now.
    """

    load: int
    capacity: int
    last_first: int
    closed: bool


def check_route(owner: str, route: object) -> None:
    """Raise `ValueError` unless `route` is one."""
    words = get_args(Route)
    check(owner, "route", route, route in words, f"give one of {', '.join(map(repr, words))}")


def order(route: Route, targets: Sequence[TargetView]) -> list[int]:
    """The indices of `targets` in the order in which they are tried; O(n log n).

    Where calls are spread, a closed endpoint comes last: otherwise its share would fall to the one listed behind it.

    Args:
        route: One that tries them one after another; ``"vote"`` does so as ``"fallback"``.
        targets: The endpoints that may serve the request, as they are listed.
    """
    indices = list(range(len(targets)))
    match route:
        case "round_robin":
            indices.sort(key=lambda index: (targets[index].closed, targets[index].last_first))
        case "least_busy":
            indices.sort(key=lambda index: _busyness(targets[index]))
    return indices


def _busyness(target: TargetView) -> tuple[bool, float, int]:
    return target.closed, target.load / target.capacity, target.last_first
