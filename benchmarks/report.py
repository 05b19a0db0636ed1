"""Runs the subjects of a benchmark in turn, each in a process of its own, and prints a table or JSON.

A benchmark module states its metrics and subjects and calls `main`; the process that measures a subject calls
`measure_each` (or prints the same lines itself). Subjects are interleaved: every round runs each of them once, in an
order that moves on by one place a round, so that a slow minute of a shared machine falls on all alike. Imports nothing
of promptside.

The lines that a measuring process prints are JSON objects: ``{"metric": M}`` before a metric is measured, then one of
``{"metric": M, "value": X}``, ``{"metric": M, "lacks": TEXT}`` for what the subject cannot do, and
``{"metric": M, "error": TEXT}``.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

__all__ = ["Metric", "Subject", "Unsupported", "machine", "main", "measure_each"]

OURS, FLOOR = "promptside", "floor"
ROUNDS, QUICK_ROUNDS = 5, 3
PROCESS_SECONDS = 180.0
QUICK_SECONDS = 38.0  # of the 45 s that `--quick` may take; the rest is for the process that is under way


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One thing that is measured.

    Attributes:
        name: Its name in the results; a subject's `suffix` is put behind it.
        unit: The unit of its values.
        title: What it is, in a few words.
        higher_is_better: False for durations and sizes.
    """

    name: str
    unit: str
    title: str
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One thing that is measured against the others.

    Attributes:
        name: ``"promptside"``, ``"floor"``, or the peer's name.
        command: Module and arguments that measure it once, as after ``python -m``; `main` adds ``--quick`` where asked.
        packages: Distributions that it needs; with one of them missing, the subject is named as skipped.
        python: The oldest Python that it runs on.
        suffix: Put behind the metrics' names, as ``"_uvloop"``.
    """

    name: str
    command: tuple[str, ...]
    packages: tuple[str, ...] = ()
    python: tuple[int, int] = (3, 11)
    suffix: str = ""

    @property
    def label(self) -> str:
        """Name and suffix."""
        return self.name + self.suffix

    def missing(self) -> str | None:
        """Return why the subject cannot be measured here, or None."""
        if sys.version_info < self.python:
            return f"needs Python {self.python[0]}.{self.python[1]}"
        absent = [package for package in self.packages if _version(package) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


class Unsupported(Exception):
    """Raised by a measurement: the subject has no such operation; the text says what it lacks."""


@dataclass(slots=True)
class _Collected:
    """What the rounds have brought so far; keys are (metric with suffix, subject)."""

    values: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------- in the measuring process


def measure_each(measures: Mapping[str, Callable[[], float]]) -> None:
    """Run each measurement once and print the lines that `main` reads.

    What a measurement itself prints to standard output goes to standard error.

    Args:
        measures: From a metric's name to the function that measures it; run in this order.
    """
    sys.stdout.flush()
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for metric, measure in measures.items():
        _write(results, metric=metric)
        gc.collect()
        try:
            value = measure()
        except Unsupported as lack:
            _write(results, metric=metric, lacks=str(lack))
        except Exception as error:  # noqa: BLE001 - peers raise what they like; it is reported and the rest is measured
            _write(results, metric=metric, error=f"{type(error).__name__}: {error}")
        else:
            _write(results, metric=metric, value=value)


def _write(results: TextIO, **fields: object) -> None:
    print(json.dumps(fields), file=results, flush=True)


# ------------------------------------------------------------------------------------------------ in the main process


def main(
    benchmark: str, metrics: Sequence[Metric], subjects: Sequence[Subject], argv: Sequence[str] | None = None
) -> None:
    """Read the command line, measure every subject round by round, and print the report.

    Args:
        benchmark: The benchmark's name.
        metrics: What is measured, in the order of the report.
        subjects: What is compared; several may have one name and different suffixes.
        argv: The command line; the process's own by default.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark}")
    parser.add_argument("--quick", action="store_true", help="less work and fewer rounds: done within 45 s")
    parser.add_argument("--json", action="store_true", help="print one JSON object and no table")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"default {ROUNDS}, or {QUICK_ROUNDS} with --quick")
    parser.add_argument("--only", metavar="A,B", help="measure only the subjects of these names")
    options = parser.parse_args(argv)

    names = {subject.name for subject in subjects}
    only = set(options.only.split(",")) if options.only else names
    if unknown := only - names:
        parser.error(f"no subject {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}")
    chosen = [subject for subject in subjects if subject.name in only]
    collected = _run_rounds(chosen, options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS), quick=options.quick)

    report = {
        "benchmark": benchmark,
        "machine": machine(sorted({package for subject in chosen for package in subject.packages})),
        "results": [
            entry
            for suffix in dict.fromkeys(subject.suffix for subject in chosen)
            for metric in metrics
            for entry in _entries(metric, suffix, collected)
        ],
        "skipped": [
            {"subject": subject, "metric": metric or None, "reason": reason}
            for (metric, subject), reason in collected.skipped.items()
        ],
    }
    print(json.dumps(report) if options.json else "\n".join(_table(report, metrics, chosen)))


def machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return what the figures were measured on: the class of machine, not which one.

    Args:
        packages: Distributions whose versions are included where they are installed.
    """
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": memory,
        "packages": {name: found for name in (OURS, *packages) if (found := _version(name)) is not None},
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _run_rounds(subjects: Sequence[Subject], rounds: int, *, quick: bool) -> _Collected:
    collected = _Collected()
    runnable: list[Subject] = []
    for subject in subjects:
        if (reason := subject.missing()) is None:
            runnable.append(subject)
        else:
            collected.skipped["", subject.label] = reason

    started = time.monotonic()
    longest_round = 0.0
    for turn in range(rounds):
        round_started = time.monotonic()
        if quick and round_started - started + longest_round > QUICK_SECONDS:
            break
        shift = turn % max(1, len(runnable))
        for subject in [*runnable[shift:], *runnable[:shift]]:
            left = started + QUICK_SECONDS - time.monotonic() if quick else PROCESS_SECONDS
            if left <= 1.0:
                collected.skipped.setdefault(("", subject.label), f"{QUICK_SECONDS:g} s were over")
                continue
            print(f"round {turn + 1} of {rounds}: {subject.label}", file=sys.stderr, flush=True)
            if not _run_once(subject, collected, quick=quick, seconds=min(left, PROCESS_SECONDS)):
                runnable.remove(subject)
        longest_round = max(longest_round, time.monotonic() - round_started)
    return collected


def _run_once(subject: Subject, collected: _Collected, *, quick: bool, seconds: float) -> bool:
    """Measure the subject once; return False when its process crashed or hung and is not worth another try."""
    command = [sys.executable, "-m", *subject.command, *(["--quick"] if quick else [])]
    pipe = subprocess.PIPE
    output = errors = failure = ""
    # A session of its own, so that what the subject started (xoscar forks) can be ended with it.
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            failure = f"no end within {seconds:.0f} s"
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        if failure:
            output, errors = process.communicate()
        elif process.returncode:
            failure = f"exit code {process.returncode}: {(errors.strip().splitlines() or ['no message'])[-1]}"

    under_way = ("", subject.label)
    for line in output.splitlines():
        entry = json.loads(line)
        key = (entry["metric"] + subject.suffix, subject.name)
        if "value" in entry:
            collected.values.setdefault(key, []).append(entry["value"])
        elif "lacks" in entry or "error" in entry:
            collected.skipped[key] = entry.get("lacks") or entry["error"]
        under_way = key if entry.keys() == {"metric"} else ("", subject.label)
    if failure:
        collected.skipped[under_way] = failure
    return not failure


def _entries(metric: Metric, suffix: str, collected: _Collected) -> list[dict[str, Any]]:
    name = metric.name + suffix
    return [
        {
            "metric": name,
            "subject": subject,
            "value": statistics.median(values),
            "unit": metric.unit,
            "low": _percentile(values, 10),
            "high": _percentile(values, 90),
            "rounds": len(values),
        }
        for (measured, subject), values in collected.values.items()
        if measured == name
    ]


def _percentile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _table(report: Mapping[str, Any], metrics: Sequence[Metric], subjects: Sequence[Subject]) -> Iterable[str]:
    on = report["machine"]
    yield (
        f"{report['benchmark']}: {on['date']}, {on['python']}, {on['system']}, {on['processor']}, "
        f"{on['cores']} cores, {on['memory_gib']} GiB"
    )
    if on["packages"]:
        yield ", ".join(f"{package} {version}" for package, version in on["packages"].items())
    for metric in metrics:
        better = "more" if metric.higher_is_better else "less"
        yield f"- {metric.name}: {metric.title} ({metric.unit}, {better} is better)"

    found = {(entry["metric"], entry["subject"]): entry for entry in report["results"]}
    for suffix in dict.fromkeys(subject.suffix for subject in subjects):
        columns = [metric.name + suffix for metric in metrics if any(name == metric.name + suffix for name, _ in found)]
        rows = [subject.name for subject in subjects if subject.suffix == suffix]
        rows = [row for row in rows if any((column, row) in found for column in columns)]
        if not columns:
            continue
        reference = next((name for name in (FLOOR, OURS) if name in rows), rows[0])
        yield f"\nMedians, and their ratio to {reference}:"
        yield from _markdown(rows, columns, functools.partial(_median, found, reference))
        yield "\np10 to p90 of the rounds:"
        yield from _markdown(rows, columns, functools.partial(_spread, found))
    if report["skipped"]:
        yield "\nSkipped:"
        for skip in report["skipped"]:
            what = f"{skip['subject']} ({skip['metric']})" if skip["metric"] else skip["subject"]
            yield f"- {what}: {skip['reason']}"


def _markdown(rows: Sequence[str], columns: Sequence[str], cell: Callable[[str, str], str]) -> Iterable[str]:
    lines = [["subject", *columns], *([row, *(cell(row, column) for column in columns)] for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns) + 1)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        yield f"| {' | '.join(text.ljust(width) for text, width in zip(line, widths, strict=True))} |"


def _median(found: Mapping[tuple[str, str], Mapping[str, Any]], reference: str, row: str, column: str) -> str:
    if (entry := found.get((column, row))) is None:
        return "-"
    base = found.get((column, reference))
    ratio = f" ({entry['value'] / base['value']:.2f})" if base and base["value"] else ""
    return _figure(entry["value"]) + ratio


def _spread(found: Mapping[tuple[str, str], Mapping[str, Any]], row: str, column: str) -> str:
    entry = found.get((column, row))
    return "-" if entry is None else f"{_figure(entry['low'])} - {_figure(entry['high'])}"


def _figure(value: float) -> str:
    """Return three significant digits: 1.89, 173k, 3.45M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{_figure(value / size)}{letter}"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
