"""Starts that fail: the first start of a tree, and restarts that are tried again."""

from __future__ import annotations

from tests.conformance.scenario import STARTING, Scenario, sup, work

__all__ = ["SCENARIOS"]

SCENARIOS = [
    Scenario("the first child fails to start", sup(work("a", "fail"), work("b"), work("c"))),
    Scenario("the middle child fails to start", sup(work("a"), work("b", "fail"), work("c"))),
    Scenario("the last child fails to start", sup(work("a"), work("b"), work("c", "fail"))),
    Scenario("a temporary child fails to start", sup(work("a"), work("b", "fail", restart="temporary"))),
    Scenario(
        "a child of an inner supervisor fails to start", sup(work("a"), sup(work("b"), work("c", "fail"), id="inner"))
    ),
    Scenario("slow starts are waited for", sup(work("a", "slow 50"), work("b", "slow 50"), work("c")), ["stop"]),
    Scenario("two children have one id", sup(work("a"), work("a"))),
    Scenario(
        "a restart that fails once is tried again",
        sup(work("a", "ok", "fail", "ok"), work("b")),
        ["crash a"],
    ),
    Scenario(
        "every try of a restart counts, up to the last allowed",
        sup(work("a", "ok", "fail", "fail", "ok"), work("b"), max_restarts=3),
        ["crash a", "which_children"],
    ),
    Scenario(
        "a restart that keeps failing uses up the intensity",
        sup(work("a"), work("b", "ok", *["fail"] * 9), work("c"), max_restarts=3),
        ["crash b"],
    ),
    Scenario(
        "a transient child whose restart fails is tried again",
        sup(work("a", "ok", "fail", "ok", restart="transient"), work("b")),
        ["crash a"],
    ),
    Scenario(
        "another child crashes while a restart is about to fail",
        sup(work("a", "ok", "slow fail 100", "ok"), work("b")),
        ["crash a, meanwhile crash b"],
    ),
    Scenario(
        "a child between two tries is restarting",
        sup(work("a", "ok", "slow fail 100", "ok"), work("b")),
        ["crash a, meanwhile which_children, meanwhile count_children", "which_children"],
    ),
    Scenario(
        "a stop between two tries of a restart",
        sup(work("a", "ok", "slow fail 100", "ok"), work("b")),
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
]
