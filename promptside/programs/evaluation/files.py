"""The output of an evaluation besides its result: the progress bar and the files. Called by `Evaluator`."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import dspy
from tqdm import tqdm  # type: ignore[import-untyped]

from promptside.texts import text_of

__all__ = ["Bar", "can_be_file", "save_csv", "save_json"]


class Bar(tqdm):
    """A progress bar without tqdm's thread, which would outlive the evaluation."""

    monitor_interval = 0


def can_be_file(path: object) -> bool:
    """Whether it is a path at which a file can be written."""
    return isinstance(path, str | os.PathLike) and Path(path).parent.is_dir() and not Path(path).is_dir()


def save_csv(path: str, rows: list[dict[str, Any]]) -> None:
    """As DSPy does, and with the columns that the first row lacks."""
    with Path(path).open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(column for row in rows for column in row))
        writer.writeheader()
        writer.writerows(rows)


def save_json(path: str, rows: list[dict[str, Any]]) -> None:
    """As DSPy does; a value that JSON does not know is written as text."""

    def plain(value: Any) -> Any:
        return value.toDict() if isinstance(value, dspy.Example) else text_of(value, limit=10**9)

    with Path(path).open("w") as file:
        json.dump(rows, file, default=plain)
