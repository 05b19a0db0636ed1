"""Routes: in which order the endpoints of a pool are tried for a request. Pure functions over small views.

Called by the dispatcher, once per call; the next endpoint is tried when one fails, whatever the route. The ensemble,
which asks several endpoints at once, is in `ensemble`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Literal, get_args

from promptside.checks import check

__all__ = ["ONLY", "DoorView", "Route", "check_route", "order"]

ONLY: Final[ContextVar[str | None]] = ContextVar("promptside_only_endpoint", default=None)
"""Name of the one endpoint that may serve the calls made in this context: of a member of an ensemble."""

Route = Literal["fallback", "round_robin", "least_busy", "ensemble"]
"""``"fallback"``: as they are listed. ``"round_robin"``: the one that was first longest ago. ``"least_busy"``: the one
with the least under way for its capacity. ``"ensemble"``: the pool's LM asks all of them at once."""


@dataclass(frozen=True, slots=True)
class DoorView:
    """What a route looks at.

    Attributes:
        load: Requests under way, and those that wait for a connection.
        capacity: Requests that may be under way, >= 1.
        turn: Number of the call for which it was last the first; 0 for never.
        closed: Whether its circuit lets nothing through now.
    """

    load: int
    capacity: int
    turn: int
    closed: bool


def check_route(owner: str, route: object) -> None:
    """Raise `ValueError` unless `route` is one."""
    words = get_args(Route)
    check(owner, "route", route, route in words, f"give one of {', '.join(map(repr, words))}")


def order(route: Route, doors: Sequence[DoorView]) -> list[int]:
    """The indices of `doors` in the order in which they are tried; O(n log n).

    Where calls are spread, an endpoint that lets nothing through comes last: otherwise its share would fall to the one
    that is listed behind it.

    Args:
        route: One that tries them one after another; ``"ensemble"`` does so as ``"fallback"``.
        doors: The endpoints that may serve the request, as they are listed.
    """
    indices = range(len(doors))
    match route:
        case "round_robin":
            return sorted(indices, key=lambda index: (doors[index].closed, doors[index].turn))
        case "least_busy":
            return sorted(
                indices,
                key=lambda index: (
                    doors[index].closed,
                    doors[index].load / doors[index].capacity,
                    doors[index].turn,
                ),
            )
        case _:
            return list(indices)
