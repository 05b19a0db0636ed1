"""What the documents show is what the examples hold and print."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks_after(heading: str) -> list[str]:
    section = README.split(f"\n{heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```(?:\w*)\n(.*?)```", section, flags=re.DOTALL)


def without_times(text: str) -> str:
    return re.sub(r"\d+\.\d+ s", "_ s", text)


def run_example(name: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "examples" / name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, env=environment)


def test_the_readmes_first_program_is_the_example_and_prints_what_the_readme_shows() -> None:
    code, shown = blocks_after("## A first program")
    example = ROOT / "examples" / "00_first_program.py"
    assert example.read_text().endswith(code)
    run = run_example(example.name)
    logged = [line for line in shown.splitlines() if line.startswith("actor.crashed")]
    assert run.stderr.splitlines() == logged
    printed = [line for line in shown.splitlines() if line not in logged]
    assert without_times(run.stdout) == without_times("\n".join(printed) + "\n")


@pytest.mark.parametrize(
    "guide",
    [ROOT / "docs" / "tutorial.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))],
    ids=lambda path: path.stem,
)
def test_the_code_of_a_guide_stands_in_an_example_and_prints_what_the_guide_shows(guide: Path) -> None:
    examples = {example: example.read_text() for example in (ROOT / "examples").glob("*.py")}
    text = guide.read_text()
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        assert any(code in example for example in examples.values()), f"in no example:\n{code}"
    for name, shown in re.findall(r"`examples/(\w+\.py)` prints:\n\n```\n(.*?)```", text, flags=re.DOTALL):
        assert without_times(run_example(name).stdout) == without_times(shown)


def test_what_the_tutorial_shows_step_by_step_is_all_that_its_example_prints() -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), flags=re.DOTALL)
    shown = "".join(block for language, block in blocks if not language)
    assert without_times(run_example("11_tutorial.py").stdout) == without_times(shown)


def test_the_reference_is_generated_from_the_code(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / ".ci" / "reference.py", tmp_path]
    subprocess.run(command, check=True, timeout=50, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for fresh in tmp_path.iterdir():
        assert (ROOT / "docs" / "reference" / fresh.name).read_text() == fresh.read_text(), "run `make reference`"


def test_every_file_and_folder_that_the_documents_name_exists() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        named = re.findall(r"`((?:examples|docs|promptside|tests|benchmarks|pools)/[\w/.]*)`", document.read_text())
        for path in named:
            assert (ROOT / path).exists() or (ROOT / "promptside" / path).exists(), f"{document.name} names {path}"
