"""promptside's supervisors do what Erlang/OTP's do, told by traces of the same scenarios on both."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.play import play
from tests.conformance.record import VECTORS
from tests.conformance.scenario import Scenario
from tests.conformance.scenarios import SCENARIOS

RECORDED: dict[str, Any] = json.loads(VECTORS.read_text())["vectors"]
DELIBERATE = [scenario for scenario in SCENARIOS if scenario.differs]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_trace_is_that_of_otp(scenario: Scenario) -> None:
    expected = scenario.ours if scenario.differs else RECORDED[scenario.name]["trace"]
    assert scenario.canonical(play(scenario)) == list(expected)


@pytest.mark.parametrize("scenario", DELIBERATE, ids=lambda scenario: scenario.name)
def test_a_deliberate_difference_is_one(scenario: Scenario) -> None:
    assert list(scenario.ours) != RECORDED[scenario.name]["trace"]


def test_the_recording_is_of_these_very_scenarios() -> None:
    assert {name: vector["scenario"] for name, vector in RECORDED.items()} == {
        scenario.name: scenario.fingerprint() for scenario in SCENARIOS
    }, "record anew with `make conformance`"


def test_every_scenario_has_a_name_of_its_own() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)


def test_recording_without_erlang_says_what_is_missing_and_changes_nothing() -> None:
    before = VECTORS.read_bytes()
    command = [sys.executable, "-m", "tests.conformance.record"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(command, cwd=root, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "install Erlang/OTP" in ended.stderr
    assert VECTORS.read_bytes() == before
