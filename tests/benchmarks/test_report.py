"""The harness of the benchmarks, run as `make bench` runs it, on subjects that cost nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

CHILD = """
    import sys, threading
    from benchmarks.report import Unsupported, measure_each

    def hang() -> float:
        threading.Event().wait()
        return 0.0

    def lack() -> float:
        raise Unsupported("no such thing")

    def chatty() -> float:
        print("a library that prints")
        return float(sys.argv[2])

    def crash() -> float:
        sys.exit("the subject crashed")

    size = {"lacks": lack, "hangs": hang, "crashes": crash}.get(sys.argv[1], lambda: 4.0)
    measure_each({"rate": chatty, "size": size})
"""
PARENT = """
    import benchmarks.report as report
    from benchmarks.report import Metric, Subject, main

    report.PROCESS_SECONDS = 3.0
    subjects = [
        Subject(name="promptside", command=("child", "well", "30")),
        Subject(name="promptside", command=("child", "well", "60"), suffix="_fast"),
        Subject(name="floor", command=("child", "lacks", "60")),
        Subject(name="hanging", command=("child", "hangs", "20")),
        Subject(name="crashing", command=("child", "crashes", "10")),
        Subject(name="absent", command=("child", "well", "1"), packages=("no-such-distribution-here",)),
        Subject(name="later", command=("child", "well", "1"), python=(4, 0)),
    ]
    metrics = [
        Metric(name="rate", unit="1/s", title="things a second"),
        Metric(name="size", unit="KiB", title="memory a thing", higher_is_better=False),
    ]
    main("parent", metrics, subjects)
"""


def run_parent(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "child.py").write_text(textwrap.dedent(CHILD))
    (folder / "parent.py").write_text(textwrap.dedent(PARENT))
    return subprocess.run(
        [sys.executable, "-m", "parent", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )


def test_json_holds_medians_of_all_rounds_and_names_what_was_skipped_and_why(tmp_path: Path) -> None:
    report = json.loads(run_parent(tmp_path, "--json", "--rounds", "2").stdout)

    assert report["benchmark"] == "parent"
    assert {"date", "python", "system", "processor", "cores", "memory_gib", "packages"} == report["machine"].keys()
    results: dict[tuple[str, str], dict[str, Any]] = {(e["metric"], e["subject"]): e for e in report["results"]}
    assert {key: (entry["value"], entry["rounds"]) for key, entry in results.items()} == {
        ("rate", "promptside"): (30.0, 2),
        ("rate", "floor"): (60.0, 2),
        ("rate", "hanging"): (20.0, 1),
        ("rate", "crashing"): (10.0, 1),
        ("size", "promptside"): (4.0, 2),
        ("rate_fast", "promptside"): (60.0, 2),
        ("size_fast", "promptside"): (4.0, 2),
    }
    assert results["rate", "floor"] | {"low": 60.0, "high": 60.0, "unit": "1/s"} == results["rate", "floor"]
    assert {(skip["subject"], skip["metric"]): skip["reason"] for skip in report["skipped"]} == {
        ("absent", None): "not installed: no-such-distribution-here",
        ("later", None): "needs Python 4.0",
        ("floor", "size"): "no such thing",
        ("hanging", "size"): "no end within 3 s",
        ("crashing", "size"): "exit code 1: the subject crashed",
    }


def test_table_gives_medians_with_their_ratio_to_the_floor(tmp_path: Path) -> None:
    table = run_parent(tmp_path, "--quick", "--rounds", "1", "--only", "promptside,floor").stdout

    assert "| promptside | 30 (0.50) | 4 " in table
    assert "| floor      | 60 (1.00) | - " in table
    assert "| promptside | 60 (1.00) | 4 (1.00)  |" in table, "on its own, promptside is what ratios refer to"
    assert "- rate: things a second (1/s, more is better)" in table
    assert "- floor (size): no such thing" in table


def test_an_unknown_subject_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        run_parent(tmp_path, "--only", "pikka")

    assert refused.value.returncode == 2
    assert "no subject pikka; there are absent, crashing, floor, hanging, later, promptside" in refused.value.stderr
