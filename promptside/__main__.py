"""The command line: ``python -m promptside COMMAND``.

Each command is a module with `add_parser`, which says what it takes, and `run`, which returns the exit code: 0, 1 when
something failed, 2 when it was used wrongly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

COMMANDS: Final = {
    "tree": "promptside.supervision.command",
    "events": "promptside.events.log.command",
}
"""The commands, in the order in which the help lists them, and where they are."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What follows the program's name; that of the process by default.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m promptside",
        description="Look at applications made of supervised actors.",
        epilog="`python -m promptside COMMAND --help` says more of a command.",
    )
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for module in COMMANDS.values():
        import_module(module).add_parser(subparsers)
    chosen = parser.parse_args(arguments)
    if chosen.command is None:
        parser.print_help()
        return 0
    try:
        code: int = import_module(COMMANDS[chosen.command]).run(chosen)
    except KeyboardInterrupt:
        return 130  # as shells tell that SIGINT ended it
    return code


if __name__ == "__main__":
    sys.exit(main())
