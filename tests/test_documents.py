"""What the documents show is what the examples hold; what they print is compared in tests/test_examples.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
TUTORIAL = ROOT / "docs" / "tutorial.md"
GUIDES = [TUTORIAL, *sorted((ROOT / "docs" / "howto").glob("*.md"))]


def first_program() -> tuple[str, str]:
    """The README's first program, and what it prints."""
    section = README.split("\n## A first program\n", 1)[1].split("\n## ", 1)[0]
    code, shown = re.findall(r"```(?:\w*)\n(.*?)```", section, flags=re.DOTALL)
    return code, shown


def test_the_readmes_first_program_is_the_example() -> None:
    assert (ROOT / "examples" / "00_first_program.py").read_text().endswith(first_program()[0])


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_code_of_a_guide_stands_in_an_example(guide: Path) -> None:
    examples = [example.read_text() for example in (ROOT / "examples").glob("*.py")]
    for code in re.findall(r"```python\n(.*?)```", guide.read_text(), flags=re.DOTALL):
        assert any(code in example for example in examples), f"in no example:\n{code}"


def test_the_reference_is_generated_from_the_code(tmp_path: Path) -> None:
    command = [sys.executable, ROOT / ".ci" / "reference.py", tmp_path]
    subprocess.run(command, check=True, timeout=150, env={**os.environ, "PYTHONPATH": str(ROOT)})
    for fresh in tmp_path.iterdir():
        assert (ROOT / "docs" / "reference" / fresh.name).read_text() == fresh.read_text(), "run `make reference`"


def test_every_file_and_folder_that_the_documents_name_exists() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        named = re.findall(r"`((?:examples|docs|promptside|tests|benchmarks|pools)/[\w/.]*)`", document.read_text())
        for path in named:
            assert (ROOT / path).exists() or (ROOT / "promptside" / path).exists(), f"{document.name} names {path}"


def test_every_link_of_the_documents_leads_to_a_file() -> None:
    broken = [
        f"{document.relative_to(ROOT)}: {target}"
        for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text())
        if "://" not in target and not (document.parent / target).exists()
    ]
    assert broken == []
