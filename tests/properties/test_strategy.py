"""Which children stop and start, against a model that looks at each child by itself."""

from __future__ import annotations

from typing import get_args

import hypothesis.strategies as st
from hypothesis import given

from promptside import MaxRestartsExceeded
from promptside.supervision.strategy import (
    AutoShutdown,
    Restart,
    Strategy,
    is_orderly,
    is_restarted,
    plan,
    shuts_down,
)

children = st.lists(
    st.tuples(st.integers(0, 99).map(str), st.sampled_from(get_args(Restart))),
    min_size=1,
    max_size=8,
    unique_by=lambda child: child[0],
)


@given(strategy=st.sampled_from(get_args(Strategy)), children=children, data=st.data())
def test_each_child_stops_and_starts_by_its_own_place_and_type(
    strategy: Strategy, children: list[tuple[str, Restart]], data: st.DataObject
) -> None:
    failed = data.draw(st.sampled_from([id for id, _ in children]))
    result = plan(strategy, children, failed)
    places = {id: place for place, (id, _) in enumerate(children)}
    for id, restart in children:
        concerned = {
            "one_for_one": id == failed,
            "one_for_all": True,
            "rest_for_one": places[id] >= places[failed],
        }[strategy]
        lost = concerned and id != failed and restart == "temporary"
        assert (id in result.stop) == (concerned and id != failed)
        assert (id in result.forget) == lost
        assert (id in result.start) == (concerned and not lost)
    assert list(result.start) == sorted(result.start, key=places.__getitem__)
    assert list(result.stop) == sorted(result.stop, key=places.__getitem__, reverse=True)
    assert len(set(result.stop)) == len(result.stop)
    assert len(set(result.start)) == len(result.start)


ORDERLY = ["normal", "shutdown", ("shutdown",), ("shutdown", "why"), MaxRestartsExceeded("a", 1, 5.0, ())]
FAILURES = ["killed", "noproc", "Normal", ValueError("normal"), ("normal",), None, 0, (), b"normal"]


@given(restart=st.sampled_from(get_args(Restart)), at=st.integers(0, len(ORDERLY + FAILURES) - 1))
def test_who_is_restarted_is_otps_table(restart: Restart, at: int) -> None:
    reason = (ORDERLY + FAILURES)[at]
    orderly = at < len(ORDERLY)
    assert is_orderly(reason) == orderly
    table = {"permanent": True, "transient": not orderly, "temporary": False}
    assert is_restarted(restart, reason) == table[restart]


@given(auto_shutdown=st.sampled_from(get_args(AutoShutdown)), alive=st.lists(st.booleans(), min_size=1), data=st.data())
def test_the_supervisor_ends_with_the_first_or_the_last_significant_child(
    auto_shutdown: AutoShutdown, alive: list[bool], data: st.DataObject
) -> None:
    """`alive` says of each child whether it is significant; they end one after the other."""
    order = data.draw(st.permutations(range(len(alive))))
    ended: list[int] = []
    for child in order:
        left = [other for other in range(len(alive)) if other not in ended and other != child]
        others = any(alive[other] for other in left)
        shut = shuts_down(auto_shutdown, significant=alive[child], others=others)
        ended.append(child)
        significant = {each for each in range(len(alive)) if alive[each]}
        expected = {
            "never": False,
            "any_significant": child in significant,
            "all_significant": child in significant and significant <= set(ended),
        }[auto_shutdown]
        assert shut == expected
