"""Measures one subject once: `python -m benchmarks.actor_peers MODULE [--quick] [--uvloop]`.

`benchmarks.report` starts it, for `benchmarks.actors`, and reads what it prints.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
from typing import Any

from benchmarks.actor_peers import Peer
from benchmarks.actor_peers.measure import MEASURES, Effort, Measure
from benchmarks.report import measure_each

QUICK = Effort(budget=0.06, bulk=0.06, tells=20_000, spawns=1_000, idle=2_000, restarts=50)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.actor_peers")
    parser.add_argument("module", help="a module of this package")
    parser.add_argument("--quick", action="store_true", help="less work: rough figures")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop instead of asyncio's own event loop")
    options = parser.parse_args()

    # Some libraries log every crash; formatted lines that nobody reads would be part of their restarts.
    logging.getLogger().addHandler(logging.NullHandler())
    subject: type[Peer[Any]] = importlib.import_module(f"benchmarks.actor_peers.{options.module}").Subject
    loop_factory = importlib.import_module("uvloop").new_event_loop if options.uvloop else None
    effort = QUICK if options.quick else Effort()

    def once(measure: Measure) -> float:
        peer = subject(loop_factory)
        try:
            return peer.run(functools.partial(measure, peer, effort))
        except BaseExceptionGroup as group:
            # A task group says no more than that something failed in it.
            raise _first(group) from group

    measure_each({name: functools.partial(once, measure) for name, measure in MEASURES.items()})


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    member = group.exceptions[0]
    return _first(member) if isinstance(member, BaseExceptionGroup) else member


if __name__ == "__main__":
    main()
