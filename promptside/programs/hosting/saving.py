"""Saved state of programs: one file for each time it was saved, and one that is always the latest.

Called by `Program`, in worker threads. The files are DSPy's own JSON, which `dspy.Module.load` reads too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy

from promptside.errors import ProgramError
from promptside.texts import text_of

__all__ = ["read_state", "save_state"]


def save_state(module: dspy.Module, directory: Path, name: str) -> Path:
    """Save the state of a module under `directory`, each file whole or not at all; returns that with the time."""
    directory.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path = directory / f"{name}-{stamp}.json"
    with tempfile.TemporaryDirectory(dir=directory, prefix=f".{name}-") as place:
        saved = Path(place) / "state.json"
        module.save(saved)
        latest = Path(shutil.copy(saved, Path(place) / "latest.json"))
        saved.replace(path)
        latest.replace(directory / f"{name}-latest.json")
    return path


def read_state(path: Path, name: str) -> dict[str, Any]:
    """The state in a file, or in the latest one of a directory.

    Raises:
        FileNotFoundError: There is none.
        ProgramError: It holds no saved state.
    """
    if path.is_dir():
        path /= f"{name}-latest.json"
    try:
        state = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ProgramError(f"{path} holds no saved state: {text_of(error)}; give a file that `save` wrote") from error
    if not isinstance(state, dict):
        raise ProgramError(f"{path} holds no saved state; give a file that `save` wrote")
    return state
