"""What a running supervisor is asked for: start_child, terminate_child, restart_child, delete_child, and the lists."""

from __future__ import annotations

from tests.conformance.scenario import Scenario, sup, work

__all__ = ["SCENARIOS"]

AB = (work("a"), work("b"))

SCENARIOS = [
    Scenario(
        "start_child: a new one, supervised like the others and stopped first",
        sup(*AB),
        ["start_child c", "which_children", "crash c", "stop"],
        later=[work("c")],
    ),
    Scenario("start_child: one that runs already", sup(*AB), ["start_child a", "which_children"]),
    Scenario("start_child: one that was stopped", sup(*AB), ["terminate_child a", "start_child a", "which_children"]),
    Scenario(
        "start_child: one that fails to start is forgotten",
        sup(*AB),
        ["start_child c", "which_children", "restart_child c"],
        later=[work("c", "fail")],
    ),
    Scenario(
        "start_child: one that fails to start does not count as a restart",
        sup(*AB, max_restarts=1),
        ["start_child c", "start_child c", "start_child c", "crash a", "which_children"],
        later=[work("c", "fail", "fail", "ok")],
    ),
    Scenario(
        "start_child: an inner supervisor, and a child in it",
        sup(*AB),
        ["start_child inner", "which_children", "start_child d in inner", "count_children", "stop"],
        later=[sup(work("c"), id="inner"), work("d")],
    ),
    Scenario(
        "start_child: an inner supervisor whose child fails to start",
        sup(*AB),
        ["start_child inner", "which_children", "start_child inner", "which_children inner"],
        later=[sup(work("c"), work("d", "fail"), id="inner")],
    ),
    Scenario(
        "delete_child: an inner supervisor that was stopped",
        sup(*AB, sup(work("c"), id="inner")),
        ["delete_child inner", "terminate_child inner", "delete_child inner", "count_children"],
    ),
    Scenario(
        "start_child: a temporary one, which is forgotten at its end",
        sup(*AB),
        ["start_child c", "crash c", "which_children", "start_child c", "which_children"],
        later=[work("c", restart="temporary")],
    ),
    Scenario(
        "start_child during a slow restart waits for it",
        sup(work("a", "ok", "slow 100"), work("b")),
        ["crash a, meanwhile start_child c"],
        later=[work("c")],
    ),
    Scenario(
        "terminate_child: stops it, keeps its spec, restarts nothing",
        sup(*AB),
        ["terminate_child a", "which_children", "count_children", "stop"],
    ),
    Scenario(
        "terminate_child: a temporary one is forgotten",
        sup(work("a", restart="temporary"), work("b")),
        ["terminate_child a", "which_children", "terminate_child a"],
    ),
    Scenario(
        "terminate_child: stopped and unknown ones",
        sup(*AB),
        ["terminate_child a", "terminate_child a", "terminate_child x"],
    ),
    Scenario(
        "terminate_child: does not count as a restart, nor does restart_child",
        sup(*AB, max_restarts=0),
        ["terminate_child a", "restart_child a", "terminate_child a", "restart_child a", "which_children"],
    ),
    Scenario(
        "terminate_child: hanging and brutally killed ones",
        sup(work("a", shutdown=0.1, terminate="hang"), work("b", shutdown=0)),
        ["terminate_child a", "terminate_child b", "which_children"],
    ),
    Scenario(
        "terminate_child: one that has just crashed is not restarted",
        sup(*AB),
        ["crash a & terminate_child b", "terminate_child b & crash a", "which_children"],
    ),
    Scenario(
        "terminate_child: asked before its crash is seen",
        sup(*AB),
        ["terminate_child a & crash a", "which_children"],
    ),
    Scenario(
        "terminate_child: one between two tries of its restart is not tried again",
        sup(work("a", "ok", "slow fail 100", "ok"), work("b")),
        ["crash a, meanwhile terminate_child a", "which_children", "restart_child a"],
    ),
    Scenario(
        "restart_child and delete_child: one between two tries of its restart is refused",
        sup(work("a", "ok", "slow fail 100", "ok"), work("b")),
        ["crash a, meanwhile restart_child a, meanwhile delete_child a, meanwhile start_child a", "which_children"],
    ),
    Scenario(
        "restart_child: stopped, running and unknown ones",
        sup(*AB),
        ["terminate_child a", "restart_child a", "restart_child a", "restart_child x", "which_children"],
    ),
    Scenario(
        "restart_child: keeps the place of the child in the order",
        sup(work("a"), work("b"), work("c")),
        ["terminate_child a", "restart_child a", "stop"],
    ),
    Scenario(
        "restart_child: a start that fails leaves it stopped",
        sup(work("a", "ok", "fail", "ok"), work("b"), max_restarts=0),
        ["terminate_child a", "restart_child a", "which_children", "restart_child a", "which_children"],
    ),
    Scenario(
        "restart_child: a transient one that has ended",
        sup(work("a", restart="transient"), work("b")),
        ["exit a normal", "which_children", "restart_child a", "crash a"],
    ),
    Scenario(
        "delete_child: running, stopped and unknown ones",
        sup(*AB),
        [
            "delete_child a",
            "terminate_child a",
            "delete_child a",
            "delete_child a",
            "which_children",
            "restart_child a",
        ],
    ),
    Scenario(
        "delete_child: a transient one that has ended",
        sup(work("a", restart="transient"), work("b")),
        ["exit a normal", "delete_child a", "which_children"],
    ),
    Scenario(
        "count_children: of every kind, running and not",
        sup(work("a"), work("b", restart="transient"), work("c", restart="temporary"), sup(work("d"), id="inner")),
        ["count_children", "exit b normal", "crash c", "count_children", "terminate_child inner", "count_children"],
    ),
]
