"""Dynamic children of one kind: OTP's simple_one_for_one, here `DynamicSupervisor`."""

from __future__ import annotations

from tests.conformance.scenario import Dynamic, Scenario, sup, work

__all__ = ["SCENARIOS"]

ABC = ["start_child a", "start_child b", "start_child c"]
WORKERS = [work("a"), work("b"), work("c")]

SCENARIOS = [
    Scenario("dynamic: nobody at first", Dynamic(), ["which_children", "count_children", "stop"]),
    Scenario(
        "dynamic: started one by one, stopped together",
        Dynamic(),
        [*ABC, "count_children", "stop"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a permanent child is restarted alone",
        Dynamic(),
        [*ABC, "crash b", "exit c normal"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a transient child is restarted after a crash, and forgotten after a normal end",
        Dynamic(child_restart="transient"),
        [*ABC, "crash b", "exit c normal", "exit a {shutdown,x}", "count_children"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a temporary child is forgotten",
        Dynamic(child_restart="temporary", max_restarts=0),
        [*ABC, "crash b", "exit c normal", "kill a", "count_children"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a start that fails leaves nothing behind",
        Dynamic(max_restarts=0),
        ["start_child a", "start_child b", "count_children"],
        later=[work("a"), work("b", "fail")],
    ),
    Scenario(
        "dynamic: a restart that fails is tried again",
        Dynamic(),
        ["start_child a", "start_child b", "crash b", "count_children"],
        later=[work("a"), work("b", "ok", "fail", "ok")],
    ),
    Scenario(
        "dynamic: a restart that keeps failing uses up the intensity",
        Dynamic(max_restarts=2),
        ["start_child a", "start_child b", "crash b"],
        later=[work("a"), work("b", "ok", *["fail"] * 9)],
    ),
    Scenario(
        "dynamic: the restarts of all children count together",
        Dynamic(max_restarts=1),
        [*ABC, "crash a", "crash c"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: terminate_child forgets the child",
        Dynamic(max_restarts=0),
        [*ABC, "terminate_child b", "count_children"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a give-up terminates the others, killing those that hang",
        Dynamic(max_restarts=0, child_shutdown=0.1),
        [*ABC, "crash a"],
        later=[work("a"), work("b", terminate="hang"), work("c")],
    ),
    Scenario(
        "dynamic: children that are killed brutally are not told",
        Dynamic(child_shutdown=0),
        [*ABC, "terminate_child a", "stop"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: two crash at once, and only one may be restarted",
        Dynamic(max_restarts=1),
        [*ABC, "crash c & crash a"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: within a tree, its children are gone after a give-up",
        sup(work("x"), Dynamic(id="inner", max_restarts=1), work("y")),
        [*(f"{step} in inner" for step in ABC), "crash a in inner", "crash b in inner", "which_children inner", "stop"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: within a tree, its children are gone after the restart of the group",
        sup(work("x"), Dynamic(id="inner"), work("y"), strategy="one_for_all"),
        [*(f"{step} in inner" for step in ABC), "crash x", "count_children inner"],
        later=WORKERS,
    ),
    Scenario(
        "dynamic: a child crashes while another one's slow restart is under way",
        Dynamic(),
        ["start_child a", "start_child b", "crash a, meanwhile crash b"],
        later=[work("a", "ok", "slow 100"), work("b")],
    ),
]
