"""Which children stop and start when one has failed: pure functions.

Called by the supervisors. Source of the semantics: Erlang/OTP supervisor, 'Restart Strategy', 'Automatic Shutdown' and
'Restart' of a child specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from promptside.actors import Restart
from promptside.errors import MaxRestartsExceeded
from promptside.texts import is_word

__all__ = ["AutoShutdown", "Plan", "Strategy", "is_orderly", "is_restarted", "plan", "shuts_down"]

Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
AutoShutdown = Literal["never", "any_significant", "all_significant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a failure means for the children.

    Attributes:
        stop: Who is stopped, in this order; one that does not run is passed over.
        forget: Of these, who does not come back, because it is temporary.
        start: Who is started, in this order, once those have ended.
    """

    stop: tuple[str, ...]
    forget: tuple[str, ...]
    start: tuple[str, ...]


def plan(strategy: Strategy, children: Sequence[tuple[str, Restart]], failed: str) -> Plan:
    """What happens when a child has failed and is to be restarted.

    Children that had ended in order are started again with the group, as in OTP.
    Cost: O(number of children).

    Args:
        strategy: Of the supervisor.
        children: Every child's id and restart type, in the order of their start.
        failed: Id of the child that failed.
    """
    at = [id for id, _ in children].index(failed)
    group = {"one_for_one": children[at : at + 1], "one_for_all": children, "rest_for_one": children[at:]}[strategy]
    forget = tuple(id for id, restart in group if restart == "temporary" and id != failed)
    return Plan(
        stop=tuple(id for id, _ in reversed(group) if id != failed),
        forget=forget,
        start=tuple(id for id, _ in group if id not in forget),
    )


def is_orderly(reason: object) -> bool:
    """Whether an end for this reason is no failure.

    ``"normal"``, ``"shutdown"``, a tuple ``("shutdown", ...)``, and a supervisor's own giving up, whose reason in OTP
    is `shutdown`.
    """
    return (
        is_word(reason, "normal", "shutdown")
        or (type(reason) is tuple and reason != () and is_word(reason[0], "shutdown"))
        or issubclass(type(reason), MaxRestartsExceeded)
    )


def is_restarted(restart: Restart, reason: object) -> bool:
    """Whether a child of this restart type that ended for this reason is started again."""
    return restart == "permanent" or (restart == "transient" and not is_orderly(reason))


def shuts_down(auto_shutdown: AutoShutdown, *, significant: bool, others: bool) -> bool:
    """Whether a supervisor ends itself because a child has ended and is not restarted.

    Args:
        auto_shutdown: Of the supervisor.
        significant: Whether that child is significant.
        others: Whether another significant child runs, or is being restarted.
    """
    return significant and (auto_shutdown == "any_significant" or (auto_shutdown == "all_significant" and not others))
