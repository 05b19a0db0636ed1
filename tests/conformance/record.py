"""Record the traces of the scenarios on Erlang/OTP's own supervisor: ``python -m tests.conformance.record``.

Runs all scenarios three times, wants three equal recordings, and writes `vectors.json`. Needs Erlang (``escript``);
the tests, which read the file, do not.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conformance.scenario import Scenario
from tests.conformance.scenarios import SCENARIOS

__all__ = ["VECTORS", "record"]

HERE = Path(__file__).parent
VECTORS = HERE / "vectors.json"
RECORDINGS = 3
TIMEOUT = 300.0


def record(scenarios: Sequence[Scenario], escript: str) -> dict[str, Any]:
    """The version of OTP, and each scenario's trace and fingerprint by its name, as `vectors.json` holds them.

    Args:
        scenarios: What to run.
        escript: Path of Erlang's ``escript``.

    Raises:
        subprocess.CalledProcessError: The escript failed; it has said why on stderr.
    """
    with tempfile.TemporaryDirectory() as folder:
        terms = Path(folder, "scenarios.terms")
        terms.write_text("%% -*- coding: utf-8 -*-\n" + "".join(scenario.terms() for scenario in scenarios))
        command = [escript, str(HERE / "supervisor_traces.escript"), str(terms)]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=TIMEOUT).stdout
    first, *lines = printed.splitlines()
    trace: list[str] = []
    traces: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("scenario "):
            trace = traces[line.removeprefix("scenario ")] = []
        else:
            trace.append(line)
    vectors = {
        scenario.name: {"scenario": scenario.fingerprint(), "trace": scenario.canonical(traces[scenario.name])}
        for scenario in scenarios
    }
    return {"otp": first.removeprefix("otp "), "vectors": vectors}


def main() -> None:
    """Record, compare, write."""
    escript = shutil.which("escript")
    if escript is None:
        sys.exit("escript not found: install Erlang/OTP 24 or newer (Debian: erlang-base) to record; tests need none")
    recordings = [record(SCENARIOS, escript) for _ in range(RECORDINGS)]
    for name in recordings[0]["vectors"]:
        traces = [recording["vectors"][name]["trace"] for recording in recordings]
        if any(trace != traces[0] for trace in traces):
            lines = "\n".join(" | ".join(trace) for trace in traces)
            sys.exit(f"{VECTORS.name} is unchanged; it is not the same each time: {name}\n{lines}")
    VECTORS.write_text(json.dumps(recordings[0], indent=1) + "\n")
    print(f"{VECTORS.name}: {len(SCENARIOS)} traces from Erlang/OTP {recordings[0]['otp']}")


if __name__ == "__main__":
    main()
