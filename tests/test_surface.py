"""The public surface of the package: what exists, and what an import costs. `lint-imports` holds the arrows."""

from __future__ import annotations

import ast
import builtins
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import promptside
from promptside import errors

PACKAGE = Path(promptside.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = ["promptside"] + [
    module.name
    for module in pkgutil.walk_packages([str(PACKAGE)], "promptside.")
    if module.name != "promptside.__main__"  # a command line, not an interface
]


def constants_then_classes_then_functions(name: str) -> tuple[bool, bool, str]:
    """Return the sort key of a public name: the order that `ruff check --fix` writes."""
    return not name.isupper(), not name[0].isupper(), name


def test_names_in_all_are_sorted_and_exist() -> None:
    wrong: list[str] = []
    for name in MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None)
        if hasattr(module, "__path__") and public is None:
            wrong.append(f"the package {name} says nothing of what is public")
        if list(public or []) != sorted(set(public or []), key=constants_then_classes_then_functions):
            wrong.append(f"{name}.__all__ is not sorted")
        wrong += [
            f"{name}.__all__ names {listed}, which is not there"
            for listed in public or []
            if not hasattr(module, listed)
        ]
    assert not wrong, "\n".join(wrong)


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    assert dir(promptside) == sorted([*promptside.__all__, "__version__"])


def test_no_module_is_longer_than_400_lines() -> None:
    lines = {str(file.relative_to(PACKAGE)): len(file.read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > 400} == {}


def test_only_the_clock_reads_the_time() -> None:
    """Ruff bans this too, except in actors/, where its one rule for banned names is off for `asyncio.create_task`."""
    clocks = {"time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns"}
    wrong: list[str] = []
    for file in FILES:
        if file.name == "clock.py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="time"), attr=read) if read in clocks:
                    wrong.append(f"{file}:{node.lineno}: time.{read}; use promptside.clock")
                case ast.ImportFrom(module="time", names=names) if {alias.name for alias in names} & clocks:
                    wrong.append(f"{file}:{node.lineno}: imports a clock; use promptside.clock")
                case _:
                    pass
    assert not wrong, "\n".join(wrong)


def test_importing_promptside_imports_nothing_heavy() -> None:
    heavy = {"dspy", "litellm", "numpy", "openai", "opentelemetry", "prometheus_client", "structlog", "xllamacpp"}
    probe = f"import sys, promptside; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=150, check=True
    )

    assert done.stdout.split() == []


def drawn_tree() -> dict[str, dict[str, str | None]]:
    """Return the tree of the docstring: from each branch to its leaves, each with its second base or None."""
    tree: dict[str, dict[str, str | None]] = {}
    branch = ""
    for line in (errors.__doc__ or "").splitlines():
        if branching := re.fullmatch(r"    [|`]- (\w+)(.*)", line):
            branch, leaves = branching[1], branching[2]
            tree[branch] = {}
        elif line.startswith(("    | ", "      ")):
            leaves = line[len("    | ") :]
        else:
            continue
        for name, base in re.findall(r"(\w+)(?:\(([\w.]+)\))?", leaves):
            tree[branch][name] = base or None
    return tree


def defined_errors() -> dict[str, type[errors.PromptsideError]]:
    """Return every public error that the package defines, apart from the root, by name."""
    for name in MODULES:
        importlib.import_module(name)
    found: dict[str, type[errors.PromptsideError]] = {}
    waiting = errors.PromptsideError.__subclasses__()
    while waiting:
        error = waiting.pop()
        waiting.extend(error.__subclasses__())
        if error.__module__.startswith("promptside.") and not error.__name__.startswith("_"):
            found[error.__name__] = error
    return found


def test_tree_in_the_docstring_of_errors_is_the_class_hierarchy() -> None:
    tree = drawn_tree()
    assert len(tree) >= 6, "the tree in the docstring of promptside.errors was not understood"
    defined = defined_errors()
    second_bases = {name: base for leaves in tree.values() for name, base in leaves.items()}
    branch_of = {name: branch for branch, leaves in tree.items() for name in leaves}

    undrawn = defined.keys() - tree.keys() - branch_of.keys()
    assert not undrawn, f"not in the tree: {sorted(undrawn)}"
    absent = (tree.keys() | branch_of.keys()) - defined.keys()
    assert not absent, f"drawn in the tree, and not defined: {sorted(absent)}"
    for name, error in defined.items():
        if name in tree:
            assert error.__bases__ == (errors.PromptsideError,)
            continue
        assert issubclass(error, defined[branch_of[name]]), f"{name} is drawn under {branch_of[name]}"
        foreign = [base for base in error.__bases__ if not issubclass(base, errors.PromptsideError)]
        assert foreign == ([] if second_bases[name] is None else [resolve(second_bases[name])]), name


def resolve(base: str) -> type:
    """Return the class that the tree names: a builtin, or dspy's."""
    module, _, name = base.rpartition(".")
    found = getattr(importlib.import_module(module) if module else builtins, name)
    assert isinstance(found, type)
    return found


DOCUMENTED = {"dspy", "dspy.evaluate", "dspy.lm15", "dspy.streaming", "dspy.utils", "dspy.utils.exceptions"}
"""The paths of DSPy that its users import from."""

SEAMS = {
    "dspy": (
        "pools/context/settings.py",
        "pools/clients/",
        "programs/adapter.py",
        "programs/hosting/parts.py",
        "programs/hosting/streaming.py",
    ),
    "litellm": ("pools/clients/native.py", "pools/clients/litellm_client.py"),
}
"""The modules that import what is private; tests/pools/ and tests/programs/ have a contract test for each thing."""


def test_what_is_private_in_dspy_and_litellm_is_imported_in_few_places() -> None:
    wrong: list[str] = []
    for file in FILES:
        place = str(file.relative_to(PACKAGE))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                seams = SEAMS.get(name.partition(".")[0], ())
                if seams and name not in DOCUMENTED and not place.startswith(seams):
                    wrong.append(f"{place}:{node.lineno} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_lock_that_a_thread_waits_for_is_reentrant() -> None:
    """A finalizer or a signal handler may run anywhere, and come to the lock that its thread holds."""
    wrong: list[str] = []
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        if "acquire(blocking=False)" in text and "with lock" not in text:
            continue  # only tried
        for node in ast.walk(ast.parse(text)):
            match node:
                case ast.Call(func=ast.Attribute(attr="Lock") | ast.Name(id="Lock")):
                    wrong.append(f"{file}:{node.lineno}: use threading.RLock")
                case _:
                    pass
    assert not wrong, "\n".join(wrong)
