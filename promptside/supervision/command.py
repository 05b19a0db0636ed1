"""``python -m promptside tree MODULE:FUNCTION``: starts an application's actors, prints their tree, and ends them.

Called by the command line. The function is a start function, as a `Service` takes it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import traceback
from importlib import import_module
from typing import Any

from promptside.actors import ActorSystem
from promptside.callables import is_async
from promptside.supervision.service import START_FUNCTION, StartFunction
from promptside.texts import describe

__all__ = ["add_parser", "run"]


def add_parser(subparsers: Any) -> None:
    """Say what the command takes.

    Args:
        subparsers: Of the command line, as `argparse` made them.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tree",
        help="start the actors of an application and print their tree",
        description="Start the actors of an application, print their tree, and end them.",
        epilog="Exit codes: 0 the tree is printed; 1 the application failed; 2 the target is not a start function.",
    )
    parser.add_argument(
        "target",
        metavar="MODULE:FUNCTION",
        help="the start function, such as desk:start for `async def start(system)` in desk.py of this folder",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the tree.

    Args:
        arguments: As parsed.

    Returns:
        The exit code.
    """
    target: str = arguments.target
    name, _, function = target.partition(":")
    if not name or not function:
        return _fail(2, target, "give MODULE:FUNCTION, such as desk:start")
    try:
        module = import_module(name)
    except Exception as error:  # noqa: BLE001 - any error of the application becomes one line
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            return _fail(2, target, f"there is no module {name!r}; name it as `import` does, from its folder")
        return _fail(1, target, f"importing {name!r} raised {_describe(error)}")
    if not hasattr(module, function):
        return _fail(2, target, f"the module {name!r} has no {function!r}")
    start = getattr(module, function)
    if not is_async(start):
        return _fail(2, target, f"{function!r} is a {type(start).__name__}; {START_FUNCTION}")
    try:
        tree = asyncio.run(_start_and_look(start, name))
    except Exception as error:  # noqa: BLE001 - as above
        return _fail(1, target, f"it did not start: {_describe(error)}")
    print(tree)
    return 0


async def _start_and_look(start: StartFunction[Any], name: str) -> str:
    async with ActorSystem(name) as system:
        system.events.on("*", lambda _: None)  # `start` raises, or the tree shows, a crash on the way
        await start(system)
        return str(system.tree())


def _describe(error: BaseException) -> str:
    """An exception in one line, with the place where it began."""
    text = " ".join(describe(error).split())
    while error.__cause__ is not None:
        error = error.__cause__
    place = traceback.extract_tb(error.__traceback__)[-1]
    # A syntax error names its place itself, and was raised inside the import system.
    return text if isinstance(error, SyntaxError) else f"{text} ({place.filename}, line {place.lineno})"


def _fail(code: int, target: str, message: str) -> int:
    print(f"promptside tree: {target}: {message}", file=sys.stderr)
    return code
