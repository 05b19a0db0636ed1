"""Supervisors under supervisors: escalation, and the order of a whole tree."""

from __future__ import annotations

from tests.conformance.scenario import Scenario, sup, work

__all__ = ["SCENARIOS"]

SCENARIOS = [
    Scenario(
        "a tree starts depth first and stops in reverse",
        sup(work("a"), sup(work("b"), sup(work("c"), id="deep"), work("d"), id="inner"), work("e")),
        ["which_children inner", "count_children", "stop"],
    ),
    Scenario(
        "a crash within an inner supervisor is its own affair",
        sup(work("a"), sup(work("b"), work("c"), id="inner", strategy="one_for_all"), work("d")),
        ["crash b"],
    ),
    *(
        Scenario(
            f"a {restart} inner supervisor gives up",
            sup(work("a"), sup(work("b"), work("c"), id="inner", max_restarts=0, restart=restart), work("d")),
            ["crash c", "which_children"],
        )
        for restart in ("permanent", "transient", "temporary")
    ),
    *(
        Scenario(
            f"{strategy}: an inner supervisor gives up",
            sup(
                work("a"),
                sup(work("b"), work("c"), id="inner", max_restarts=0),
                work("d"),
                strategy=strategy,
            ),
            ["crash b"],
        )
        for strategy in ("one_for_all", "rest_for_one")
    ),
    Scenario(
        "an inner supervisor that gives up again and again takes the top with it",
        sup(work("a"), sup(work("b"), id="inner", max_restarts=1), max_restarts=1),
        ["crash b", "crash b", "crash b", "crash b"],
    ),
    Scenario(
        "a restarted inner supervisor has its whole intensity again",
        sup(work("a"), sup(work("b"), id="inner", max_restarts=1), max_restarts=3),
        ["crash b", "crash b", "crash b", "which_children inner"],
    ),
    Scenario(
        "three deep: the give-ups go up one by one",
        sup(
            work("a"),
            sup(sup(work("b"), id="deep", max_restarts=0), work("c"), id="inner", max_restarts=0),
            max_restarts=0,
        ),
        ["crash b"],
    ),
    Scenario(
        "the restart of an inner supervisor fails at a child, then works",
        sup(work("a"), sup(work("b"), work("c", "ok", "fail", "ok"), id="inner", max_restarts=0)),
        ["crash b"],
    ),
    Scenario(
        "the restart of an inner supervisor keeps failing",
        sup(work("a"), sup(work("b"), work("c", "ok", *["fail"] * 9), id="inner", max_restarts=0), max_restarts=2),
        ["crash b"],
    ),
    Scenario(
        "a child whose restart always fails within an inner supervisor takes all with it",
        sup(work("a"), sup(work("b", "ok", *["fail"] * 99), id="inner", max_restarts=1), max_restarts=1),
        ["crash b"],
    ),
    Scenario(
        "terminate_child and restart_child of an inner supervisor",
        sup(work("a"), sup(work("b"), work("c"), id="inner"), work("d")),
        ["terminate_child inner", "which_children", "restart_child inner", "which_children inner"],
    ),
    Scenario(
        "children that were added are gone after the restart of their supervisor",
        sup(work("a"), sup(work("b"), id="inner", max_restarts=1)),
        ["start_child c in inner", "which_children inner", "crash b", "crash b", "which_children inner"],
        later=[work("c")],
    ),
    Scenario(
        "an inner supervisor with little shutdown time is killed with its children",
        sup(work("a"), sup(work("b", terminate="slow 300"), id="inner", shutdown=0.1), work("c")),
        ["terminate_child inner", "which_children"],
    ),
    Scenario(
        "crashes in two inner supervisors at once do not mix",
        sup(sup(work("a"), work("b"), id="left", strategy="one_for_all"), sup(work("c"), work("d"), id="right")),
        ["crash a", "crash c"],
    ),
]
