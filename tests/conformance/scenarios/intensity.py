"""Maximum restart intensity: when a supervisor gives up."""

from __future__ import annotations

from tests.conformance.scenario import Scenario, sup, work

__all__ = ["SCENARIOS"]

SCENARIOS = [
    Scenario(
        "one restart more than allowed, and the supervisor gives up",
        sup(work("a"), work("b"), work("c"), max_restarts=2),
        ["crash b", "crash b", "crash b"],
    ),
    Scenario(
        "the restarts of all children count together",
        sup(work("a"), work("b"), work("c"), max_restarts=2),
        ["crash a", "kill b", "exit c normal"],
    ),
    Scenario(
        "two crash at once, and only one may be restarted",
        sup(work("a"), work("b"), work("c"), max_restarts=1),
        ["crash a & crash b"],
    ),
    Scenario("no restart allowed", sup(work("a"), work("b"), max_restarts=0), ["crash a"]),
    Scenario(
        "no restart allowed, and none needed",
        sup(work("a", restart="temporary"), work("b", restart="transient"), work("c"), max_restarts=0),
        ["crash a", "exit b normal", "which_children"],
    ),
    Scenario(
        "a give-up terminates the others in reverse, within their shutdown",
        sup(work("a"), work("b", shutdown=0), work("c"), work("d", shutdown=0.1, terminate="hang"), max_restarts=0),
        ["crash c"],
    ),
    Scenario(
        "a restart exactly as old as the window still counts",
        sup(work("a"), max_restarts=1, max_seconds=1),
        ["crash a", "pause 1000", "crash a"],
    ),
    Scenario(
        "a restart older than the window no longer counts",
        sup(work("a"), max_restarts=1, max_seconds=1),
        ["crash a", "pause 2000", "crash a"],
    ),
    Scenario(
        "a restart within the window counts",
        sup(work("a"), max_restarts=1, max_seconds=1),
        ["crash a", "pause 500", "crash a"],
    ),
    Scenario(
        "a restart older than the window by a part of a second",
        sup(work("a"), max_restarts=1, max_seconds=1),
        ["crash a", "pause 1500", "crash a"],
        differs="OTP counts in whole seconds of its clock, so its window is up to one second longer than it was set",
        ours=[
            "> start",
            "init a",
            "= ok",
            "> crash a",
            "terminate a crash",
            "init a",
            "> pause 1500",
            "> crash a",
            "terminate a crash",
            "init a",
            "survivors top: a running",
        ],
    ),
    Scenario(
        "the window slides: old restarts make room for new ones",
        sup(work("a"), max_restarts=2, max_seconds=3),
        ["crash a", "pause 2000", "crash a", "pause 2000", "crash a", "crash a"],
    ),
    *(
        Scenario(
            f"{strategy}: one restart of the group more than allowed",
            sup(work("a"), work("b"), work("c"), strategy=strategy, max_restarts=1),
            ["crash b", "crash b"],
        )
        for strategy in ("one_for_all", "rest_for_one")
    ),
]
