"""Every example runs, by itself and from any folder, as a reader would run it, and prints what the documents show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_documents import GUIDES, ROOT, TUTORIAL, first_program

SERVED = {"04_asgi_service.py"}  # ends by a signal: tests/supervision/test_service.py runs it
LONG = {"02_rag_service.py", "03_evaluate.py"}  # many calls of the embedded model
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("[0-9]*.py") if path.name not in SERVED)
SECONDS = 240  # the embedded model answers in 0.6 s on two idle cores; a shared machine may be ten times slower


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d+ s", "_ s", text)


def outputs() -> list[tuple[str, str]]:
    """Each example of which a document shows the output, and that output."""
    printed = [line for line in first_program()[1].splitlines() if not is_logged(line)]
    blocks = re.findall(r"```(\w*)\n(.*?)```", TUTORIAL.read_text(), flags=re.DOTALL)
    return [
        ("00_first_program.py", "\n".join(printed) + "\n"),
        ("11_tutorial.py", "".join(block for language, block in blocks if not language)),
        *(
            output
            for guide in GUIDES
            for output in re.findall(r"`examples/(\w+\.py)` prints:\n\n```\n(.*?)```", guide.read_text(), re.DOTALL)
        ),
    ]


def is_logged(line: str) -> bool:
    return line.startswith("actor.crashed")


@pytest.mark.timeout(SECONDS + 20)
@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=pytest.mark.nightly) if name in LONG else name for name in EXAMPLES]
)
def test_example_runs_to_its_end_and_prints_what_the_documents_show(example: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(ROOT / "examples" / example)],
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
    for name, shown in outputs():
        if name == example:
            assert without_times(done.stdout) == without_times(shown)
    if example == "00_first_program.py":
        assert done.stderr.splitlines() == [line for line in first_program()[1].splitlines() if is_logged(line)]


def test_documents_show_the_output_of_examples_that_are_run_here_by_day() -> None:
    assert {name for name, _ in outputs()} <= set(EXAMPLES) - LONG


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
