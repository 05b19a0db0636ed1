"""Significant children and automatic shutdown."""

from __future__ import annotations

from typing import Any

from tests.conformance.scenario import Scenario, sup, work

__all__ = ["SCENARIOS"]

ANY: dict[str, Any] = {"auto_shutdown": "any_significant"}
ALL: dict[str, Any] = {"auto_shutdown": "all_significant"}
TRANSIENT: dict[str, Any] = {"restart": "transient", "significant": True}
TEMPORARY: dict[str, Any] = {"restart": "temporary", "significant": True}

SCENARIOS = [
    Scenario("significant and permanent is refused", sup(work("a", significant=True), **ANY)),
    Scenario("significant without auto_shutdown is refused", sup(work("a", **TRANSIENT))),
    Scenario(
        "any_significant: the first significant end shuts down",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TRANSIENT), work("d"), **ANY),
        ["exit b normal"],
    ),
    Scenario(
        "any_significant: an end for shutdown counts too",
        sup(work("a"), work("b", **TRANSIENT), **ANY),
        ["exit b {shutdown,x}"],
    ),
    Scenario(
        "any_significant: a transient crash is restarted",
        sup(work("a"), work("b", **TRANSIENT), **ANY),
        ["crash b", "exit b normal"],
    ),
    Scenario(
        "any_significant: a temporary crash shuts down",
        sup(work("a"), work("b", **TEMPORARY), **ANY),
        ["crash b"],
    ),
    Scenario(
        "any_significant: another one crashes just before the significant end",
        sup(work("a"), work("b", **TRANSIENT), **ANY),
        ["crash a & exit b normal"],
    ),
    Scenario(
        "any_significant: another one crashes just after the significant end",
        sup(work("a"), work("b", **TRANSIENT), work("c"), **ANY),
        ["exit b normal & crash a"],
    ),
    Scenario(
        "all_significant: both end at once",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TRANSIENT), **ALL),
        ["exit b normal & exit c normal"],
    ),
    Scenario(
        "any_significant: other children do not count",
        sup(work("a", restart="transient"), work("b", **TRANSIENT), work("c", restart="temporary"), **ANY),
        ["exit a normal", "crash c", "which_children"],
    ),
    Scenario(
        "any_significant: terminate_child does not count",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TEMPORARY), **ANY),
        ["terminate_child b", "terminate_child c", "which_children"],
    ),
    Scenario(
        "any_significant: the group restart of others does not count",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TEMPORARY), strategy="one_for_all", **ANY),
        ["crash a", "which_children"],
    ),
    Scenario(
        "all_significant: the last significant end shuts down",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TEMPORARY), work("d", **TRANSIENT), **ALL),
        ["exit d normal", "crash c", "exit b shutdown"],
    ),
    Scenario(
        "all_significant: a significant child that was terminated by hand does not keep it alive",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TRANSIENT), **ALL),
        ["terminate_child b", "exit c normal"],
    ),
    Scenario(
        "all_significant: the last one terminated by hand does not shut down",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TRANSIENT), **ALL),
        ["exit c normal", "terminate_child b", "which_children"],
    ),
    Scenario(
        "all_significant: one that was started again counts again",
        sup(work("a"), work("b", **TRANSIENT), work("c", **TRANSIENT), **ALL),
        ["exit b normal", "restart_child b", "exit c normal", "exit b normal"],
    ),
    Scenario(
        "start_child: a significant child is refused without auto_shutdown",
        sup(work("a")),
        ["start_child b", "which_children"],
        later=[work("b", **TRANSIENT)],
    ),
    Scenario(
        "start_child: a significant child counts",
        sup(work("a"), **ANY),
        ["start_child b", "exit b normal"],
        later=[work("b", **TRANSIENT)],
    ),
    *(
        Scenario(
            f"a {restart} inner supervisor shuts itself down",
            sup(work("a"), sup(work("b"), work("c", **TRANSIENT), id="inner", restart=restart, **ANY), work("d")),
            ["exit c normal", "which_children"],
        )
        for restart in ("permanent", "transient", "temporary")
    ),
    Scenario(
        "a significant inner supervisor that shuts itself down takes the top with it",
        sup(work("a"), sup(work("b", **TRANSIENT), id="inner", **TRANSIENT, **ANY), work("c"), **ANY),
        ["exit b normal"],
    ),
    Scenario(
        "a significant inner supervisor that gives up takes the top with it",
        sup(work("a"), sup(work("b"), id="inner", max_restarts=0, **TRANSIENT), work("c"), **ANY),
        ["crash b"],
    ),
]
