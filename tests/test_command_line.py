"""`python -m promptside`: what it prints, where, and how it ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from promptside.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[1]

DESK = """
    from promptside import Actor, ChildSpec, Supervisor

    class Front(Actor): ...
    class Clerk(Actor): ...

    async def start(system):
        specs = [ChildSpec("front", Front), ChildSpec("clerk", Clerk)]
        await system.with_options(name="desk").spawn(Supervisor, specs)
"""

numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of a name that no other test has imported; the tests write into it."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / f"application_{next(numbers)}.py"


def write(module: Path, source: str) -> None:
    module.write_text(textwrap.dedent(source))


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "promptside", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


def fails(capsys: pytest.CaptureFixture[str], target: str) -> tuple[int, str]:
    """The exit code of `tree`, and the one line that it says."""
    code = main(["tree", target])
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    start = f"promptside tree: {target}: "
    assert line.startswith(start)
    return code, line.removeprefix(start)


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 0
    said = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in said
    done = python(cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "python -m promptside" in done.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_has_a_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    assert " ".join(["usage: python -m promptside", *command]) in capsys.readouterr().out


def test_an_unknown_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["forest"])
    assert ended.value.code == 2
    assert "forest" in capsys.readouterr().err


def test_tree_prints_the_tree_of_an_application_in_the_current_directory(tmp_path: Path) -> None:
    write(tmp_path / "desk.py", DESK)
    done = python("tree", "desk:start", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        "desk  [system]  running",
        "`- desk  [Supervisor]  running",
        "   |- front  [Front]  running",
        "   `- clerk  [Clerk]  running",
    ]


def test_tree_ends_what_it_started(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = """
        import pathlib
        from promptside import Actor

        class Front(Actor):
            async def on_stop(self, reason):
                pathlib.Path(__file__).with_name("ended").touch()

        async def start(system):
            await system.spawn(Front)
    """
    write(module, source)
    assert main(["tree", f"{module.stem}:start"]) == 0
    assert "[Front]" in capsys.readouterr().out
    assert module.with_name("ended").exists()


@pytest.mark.parametrize("target", ["desk", "desk:", ":start", ""])
def test_a_target_names_a_module_and_a_function(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fails(capsys, target) == (2, "give MODULE:FUNCTION, such as desk:start")


@pytest.mark.parametrize("name", ["no_such_module", "no_such_package.module", "promptside.no_such_module"])
def test_a_module_that_is_not_there_is_a_mistake(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, f"{name}:start")
    assert code == 2
    assert f"no module {name!r}" in line


def test_a_file_name_is_not_a_module(module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(module, DESK)
    code, line = fails(capsys, f"{module.name}:start")
    assert code == 2
    assert f"no module {module.name!r}" in line


@pytest.mark.parametrize(
    ("function", "said"), [("begin", "has no 'begin'"), ("Front", "is a type"), ("__name__", "is a str")]
)
def test_what_is_no_start_function_is_a_mistake(
    function: str, said: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(module, DESK)
    code, line = fails(capsys, f"{module.stem}:{function}")
    assert code == 2
    assert said in line


@pytest.mark.parametrize(
    ("source", "said", "where"),
    [
        ("import no_such_dependency", "ModuleNotFoundError: No module named 'no_such_dependency'", "line 1"),
        ("\nraise ValueError('two\\nlines')", "ValueError: two lines", "line 2"),
        ("def start(", "SyntaxError: '(' was never closed", "line 1"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_in_one_line(
    source: str, said: str, where: str, module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(module, source)
    code, line = fails(capsys, f"{module.stem}:start")
    assert code == 1
    for part in (f"importing {module.stem!r} raised", said, module.name, where):
        assert part in line


def test_a_start_that_raises_is_told_in_one_line_with_its_place(
    module: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    source = """\
        from promptside import Actor

        class Front(Actor):
            async def on_start(self):
                raise OSError("no key")

        async def start(system):
            await system.spawn(Front)
    """
    write(module, source)
    code, line = fails(capsys, f"{module.stem}:start")
    assert code == 1
    for part in ("it did not start: ActorStartError", "OSError: no key", f"{module.name}, line 5"):
        assert part in line
    assert caplog.records == [], "one line is enough"


def test_a_command_that_is_interrupted_ends_quietly(module: Path) -> None:
    source = """
        import asyncio, os, signal

        async def start(system):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
    """
    write(module, source)
    assert main(["tree", f"{module.stem}:start"]) == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
