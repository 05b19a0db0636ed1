"""one_for_all and rest_for_one: who is terminated and started again, and in which order."""

from __future__ import annotations

from typing import Any

from tests.conformance.scenario import STOPPING, Child, Scenario, sup, work

__all__ = ["SCENARIOS"]


def _both(name: str, *children: Child, steps: list[str], max_restarts: int = 3, **options: Any) -> list[Scenario]:
    """The same story under both strategies."""
    return [
        Scenario(f"{strategy}: {name}", sup(*children, strategy=strategy, max_restarts=max_restarts), steps, **options)
        for strategy in ("one_for_all", "rest_for_one")
    ]


SCENARIOS = [
    *_both("the middle child crashes", work("a"), work("b"), work("c"), steps=["crash b"]),
    *_both("the first child is killed", work("a"), work("b"), work("c"), steps=["kill a"]),
    *_both("the last child crashes", work("a"), work("b"), work("c"), steps=["crash c"]),
    *_both(
        "a transient sibling that had ended is started again",
        work("a"),
        work("b"),
        work("c", restart="transient"),
        steps=["exit c normal", "crash b"],
    ),
    *_both(
        "a permanent sibling that was terminated by hand is started again",
        work("a"),
        work("b"),
        work("c"),
        steps=["terminate_child c", "crash b"],
    ),
    *_both(
        "a temporary sibling is terminated and forgotten",
        work("a"),
        work("b"),
        work("c", restart="temporary"),
        work("d"),
        steps=["crash b", "which_children"],
    ),
    *_both(
        "a temporary child that crashes harms nobody",
        work("a"),
        work("b", restart="temporary"),
        work("c"),
        steps=["crash b", "which_children"],
    ),
    *_both(
        "a transient child that ends normally harms nobody",
        work("a"),
        work("b", restart="transient"),
        work("c"),
        steps=["exit b normal", "which_children"],
    ),
    *_both(
        "two crash at once: one restart of the group",
        work("a"),
        work("b"),
        work("c"),
        steps=["crash b & crash c"],
        max_restarts=1,
    ),
    *_both(
        "two crash at once, the later one first",
        work("a"),
        work("b"),
        work("c"),
        steps=["crash c & crash b"],
        max_restarts=2,
    ),
    *_both(
        "another one, started again already, crashes during the restart of the group",
        work("a"),
        work("b"),
        work("c", "ok", "slow 100"),
        steps=["crash a, meanwhile crash b"],
    ),
    *_both(
        "a restart of the group counts as one",
        work("a"),
        work("b"),
        work("c"),
        steps=["crash a", "crash b", "crash c"],
        max_restarts=3,
    ),
    *_both(
        "the restart of the group fails at its first child, then works",
        work("a"),
        work("b", "ok", "fail", "ok"),
        work("c"),
        steps=["crash b"],
    ),
    *_both(
        "the restart of the group fails at a later child, then works",
        work("a"),
        work("b"),
        work("c", "ok", "fail", "ok"),
        work("d"),
        steps=["crash b"],
    ),
    *_both(
        "the restart of the group keeps failing at a later child",
        work("a"),
        work("b"),
        work("c", "ok", *["fail"] * 9),
        work("d"),
        steps=["crash b"],
        max_restarts=2,
    ),
    *_both(
        "a sibling crashes while the restart of the group is about to fail",
        work("a"),
        work("b"),
        work("c", "ok", "slow fail 100", "ok"),
        work("d"),
        steps=["crash a, meanwhile crash b"],
    ),
    *_both(
        "a sibling crashes while another one is slow in terminate",
        work("a"),
        work("b"),
        work("c", terminate="slow 100"),
        steps=["crash a, meanwhile crash b"],
        max_restarts=1,
    ),
    *_both(
        "a sibling ends normally while another one is slow in terminate",
        work("a"),
        work("b", restart="transient"),
        work("c", terminate="slow 100"),
        steps=["crash a, meanwhile exit b normal"],
        max_restarts=1,
    ),
    *_both(
        "a stop that arrives while a sibling is slow in terminate",
        work("a"),
        work("b"),
        work("c", terminate="slow 100"),
        steps=["crash a, meanwhile stop"],
        differs=STOPPING,
        ours=[
            "> start",
            "init a",
            "init b",
            "init c",
            "= ok",
            "> crash a, meanwhile stop",
            "terminate a crash",
            "terminate c shutdown",
            "terminate b shutdown",
            "ended shutdown",
        ],
    ),
    *_both(
        "a child of an inner supervisor crashes during the restart of the group",
        work("a"),
        sup(work("b"), id="inner"),
        work("c", "ok", "slow 100"),
        steps=["crash a, meanwhile crash b"],
    ),
    *_both(
        "an inner supervisor gives up during the restart of the group",
        work("a"),
        sup(work("b"), id="inner", max_restarts=0),
        work("c", "ok", "slow 100"),
        steps=["crash a, meanwhile crash b"],
    ),
    *_both(
        "between two tries of a restart of the group",
        work("a"),
        work("b"),
        work("c", "ok", "slow fail 100", "ok"),
        work("d"),
        steps=["crash a, meanwhile which_children, meanwhile count_children", "which_children"],
    ),
    *(
        scenario
        for id in "bcd"
        for scenario in _both(
            f"{id} is terminated by hand between two tries of a restart of the group, where c fails",
            work("a"),
            work("b"),
            work("c", "ok", "slow fail 100", "ok"),
            work("d"),
            steps=[f"crash a, meanwhile terminate_child {id}", "which_children", "crash a"],
        )
    ),
    *(
        scenario
        for id in "bd"
        for scenario in _both(
            f"{id} is started by hand between two tries of a restart of the group, where c fails",
            work("a"),
            work("b"),
            work("c", "ok", "slow fail 100", "ok"),
            work("d"),
            steps=[f"crash a, meanwhile restart_child {id}", "which_children"],
        )
    ),
    *_both(
        "a new child is started between two tries of a restart of the group",
        work("a"),
        work("b"),
        work("c", "ok", "slow fail 100", "ok"),
        work("d"),
        steps=["crash a, meanwhile start_child e", "which_children"],
        later=[work("e")],
    ),
    *_both(
        "a sibling hangs in terminate and is killed",
        work("a"),
        work("b"),
        work("c", shutdown=0.1, terminate="hang"),
        work("d", shutdown=0),
        steps=["crash b"],
    ),
    *_both(
        "an inner supervisor is terminated with its children",
        work("a"),
        work("b"),
        sup(work("c"), work("d"), id="inner"),
        work("e"),
        steps=["crash b"],
    ),
    *_both(
        "a child that was added is part of the group",
        work("a"),
        work("b"),
        steps=["terminate_child b", "delete_child b", "start_child b", "crash a"],
    ),
]
