"""The scenarios, by subject. Each module lists its own in `SCENARIOS`; here they are all, in order."""

from __future__ import annotations

from tests.conformance.scenario import Scenario
from tests.conformance.scenarios import calls, dynamic, groups, intensity, nested, significant, simple, starting

__all__ = ["SCENARIOS"]

SCENARIOS: tuple[Scenario, ...] = (
    *simple.SCENARIOS,
    *starting.SCENARIOS,
    *groups.SCENARIOS,
    *intensity.SCENARIOS,
    *calls.SCENARIOS,
    *nested.SCENARIOS,
    *significant.SCENARIOS,
    *dynamic.SCENARIOS,
)
