"""`Host`: what the actors of one program share, and `Request`: one call of it.

Made by `Program` and `ModuleActor`; read by the layer that hosting puts on modules.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import anyio
import dspy

from promptside.programs.hosting.parts import ModuleTree, Part
from promptside.programs.hosting.versions import Version, VersionHistory

__all__ = ["REQUEST", "Host", "Request", "plain"]

REQUEST: Final = "promptside_request"
"""The key of DSPy's settings under which the call of a program travels: they reach every thread that DSPy starts."""


class Host:
    """The live side of one program.

    Args:
        tree: Its modules.
        whole: Whether its sub-modules are actors too.
        threads: Calls of synchronous modules that run at a time, each in a worker thread, >= 1.
        retries: How often a call is made again whose actor crashed under it.
        versions: Of the program; by default it begins with its first.

    Attributes:
        parts: All parts, those that were swapped in included, by the `id` of their modules, which they keep alive.
    """

    def __init__(
        self, tree: ModuleTree, *, whole: bool, threads: int, retries: int = 0, versions: VersionHistory | None = None
    ) -> None:
        self.root = tree.root
        self.whole = whole
        self.parts: dict[int, Part] = {}
        self.threads = anyio.CapacityLimiter(threads)
        self.retries = retries
        self.versions = versions or VersionHistory()
        self._pinned: Counter[Version] = Counter()
        for part in (tree.root, *self.versions.modules):
            self.add(part)

    def add(self, part: Part) -> None:
        """Take in a part and those below it."""
        self.parts |= {id(each.module): each for each in part}

    def remove(self, part: Part) -> None:
        """Undo `add`."""
        for each in part:
            self.parts.pop(id(each.module), None)

    @contextlib.contextmanager
    def request(self) -> Iterator[Request]:
        """One call of the program, which pins the version that is the current one now."""
        version = self.versions.current
        self._pinned[version] += 1
        try:
            yield Request(self, version)
        finally:
            self._pinned[version] -= 1
            if self._pinned[version] == 0:
                del self._pinned[version]

    def is_pinned(self, version: Version) -> bool:
        """Whether a call that is under way came in when this version was the current one."""
        return version in self._pinned


@dataclass(frozen=True, slots=True)
class Request:
    """One call of a program.

    Attributes:
        host: The program.
        version: The version that was the current one when the call came in.
    """

    host: Host
    version: Version

    def part(self, module: dspy.Module) -> Part | None:
        """What stands in the place of `module` for this call; None for a module that is no part of the program."""
        part = self.host.parts.get(id(module))
        return None if part is None else self.part_of(part)

    def part_of(self, part: Part) -> Part:
        """What stands in the place of `part` for this call."""
        return self.version.modules.get(part.path, part)

    def pinned(self, part: Part, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a call, with what the version pins where the caller gives nothing else."""
        pins = self.version.pins.get(part.path)
        return arguments if pins is None else {**pins, **arguments}


def plain(module: dspy.Module) -> Any:
    """The module as it is beneath the layer, for a look-up of its own methods."""
    kind = type(module)
    return super(kind, module) if "__hosted__" in vars(kind) else module
