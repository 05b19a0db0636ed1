"""Every example runs, by itself and from any folder, as a reader would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SERVED = {"04_asgi_service.py"}  # ends by a signal: tests/supervision/test_service.py runs it
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("[0-9]*.py") if path.name not in SERVED)
SECONDS = 240  # the embedded model answers in 0.6 s on two idle cores; a shared machine may be ten times slower


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_to_its_end(example: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(example)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )

    said = f"exit code {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
    assert done.returncode == 0, said
    assert "Traceback" not in done.stdout + done.stderr, said
    assert done.stdout.strip(), "an example shows something"


def test_the_demo_without_a_key_and_without_the_local_extra_ends_with_one_message_and_exit_code_2() -> None:
    demo = ROOT / "examples" / "01_triage.py"
    run = f"runpy.run_path({str(demo)!r}, run_name='__main__')"
    unplugged = f"import runpy, sys; sys.modules['xllamacpp'] = None; {run}"
    done = subprocess.run(
        [sys.executable, "-c", unplugged],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "",
        'the package xllamacpp is not installed; run: pip install "promptside[local]"',
        "Or set GEMINI_API_KEY, OPENAI_API_KEY or PROMPTSIDE_MODEL.",
    ]
