"""One supervisor, one_for_one: which end leads to a restart, and how children are stopped."""

from __future__ import annotations

import math

from tests.conformance.scenario import STARTING, Scenario, sup, work

__all__ = ["SCENARIOS"]

ENDS = ["exit a normal", "exit b shutdown", "exit c {shutdown,x}", "exit d other"]


def _all_ends(restart: str) -> list[Scenario]:
    """Every way to end, for one restart type."""
    return [
        Scenario(
            f"{restart} children that end normal, shutdown, {{shutdown,x}} and otherwise",
            sup(*(work(id, restart=restart) for id in "abcd"), max_restarts=10),
            ENDS,
        ),
        Scenario(
            f"{restart} children that crash and are killed",
            sup(*(work(id, restart=restart) for id in "abc")),
            ["crash a", "kill b"],
        ),
    ]


SCENARIOS = [
    Scenario("a supervisor without children", sup(), ["which_children", "count_children", "stop"]),
    Scenario(
        "children start in order and stop in reverse", sup(work("a"), work("b"), work("c")), ["count_children", "stop"]
    ),
    *_all_ends("permanent"),
    *_all_ends("transient"),
    *_all_ends("temporary"),
    Scenario("the same child crashes three times", sup(work("a"), work("b")), ["crash a", "crash a", "crash a"]),
    Scenario(
        "two crash at once: restarted in the order of their ends",
        sup(work("a"), work("b"), work("c")),
        ["crash c & crash a"],
    ),
    Scenario(
        "a child crashes while another one's slow restart is under way",
        sup(work("a", "ok", "slow 100"), work("b")),
        ["crash a, meanwhile crash b"],
    ),
    Scenario(
        "brutal kill: the child is not told",
        sup(work("a"), work("b", shutdown=0), work("c")),
        ["stop"],
    ),
    Scenario(
        "a child that hangs in terminate is killed after its shutdown time",
        sup(work("a"), work("b", shutdown=0.1, terminate="hang"), work("c")),
        ["stop"],
    ),
    Scenario(
        "a child that is slow in terminate is waited for",
        sup(work("a"), work("b", shutdown=1, terminate="slow 100"), work("c", shutdown=math.inf, terminate="slow 50")),
        ["stop"],
    ),
    Scenario(
        "a child that crashes in terminate holds up nobody",
        sup(work("a"), work("b", terminate="crash"), work("c")),
        ["stop"],
    ),
    Scenario(
        "a child that crashes in terminate after a crash is restarted once",
        sup(work("a"), work("b", terminate="crash")),
        ["crash b"],
    ),
    Scenario(
        "a transient child that crashes in terminate after a normal end is restarted",
        sup(work("a"), work("b", restart="transient", terminate="crash")),
        ["exit b normal"],
    ),
    Scenario(
        "a child is killed in its slow restart",
        sup(work("a", "ok", "slow 100"), work("b")),
        ["crash a, meanwhile kill a"],
    ),
    Scenario(
        "a stop that arrives during a slow restart",
        sup(work("a", "ok", "slow 100"), work("b")),
        ["crash a, meanwhile stop"],
        differs=STARTING,
        ours=[
            "> start",
            "init a",
            "init b",
            "= ok",
            "> crash a, meanwhile stop",
            "terminate a crash",
            "init a",
            "terminate b shutdown",
            "ended shutdown",
        ],
    ),
    Scenario(
        "a child crashes while another one is stopped slowly",
        sup(work("a"), work("b", terminate="slow 100"), work("c")),
        ["stop, meanwhile crash a"],
    ),
    Scenario(
        "a child crashes while another one is terminated slowly by hand",
        sup(work("a"), work("b", terminate="slow 100"), work("c")),
        ["terminate_child b, meanwhile crash a"],
    ),
    Scenario(
        "a child is killed while it is terminated slowly by hand",
        sup(work("a"), work("b", terminate="slow 100"), work("c")),
        ["terminate_child b, meanwhile kill b", "which_children"],
    ),
]
