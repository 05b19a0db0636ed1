"""`Host`: what the actors of one program share. Made by `ProgramSupervisor` and `ModuleActor`."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

import anyio
import dspy

from promptside.programs.hosting.making import Maker, ModuleSource
from promptside.programs.hosting.parts import ROOT, ModuleTree, Part
from promptside.programs.hosting.request import Request
from promptside.programs.hosting.versions import Version, VersionHistory

__all__ = ["Host"]


class Host:
    """One program that runs.

    Args:
        tree: Its modules.
        whole: Whether its sub-modules are actors too.
        max_threads: Calls of synchronous modules that run at a time, each in a worker thread, >= 1.
        attempts: How often a call is made, at most, whose actor crashes under it.
        versions: Of the program; by default it begins with its first.

    Attributes:
        home: The thread that the modules belong to, if they do.
        parts: All parts, those that were swapped in included, by the `id` of their modules, which they keep alive.
    """

    def __init__(
        self,
        tree: ModuleTree,
        *,
        whole: bool,
        max_threads: int,
        attempts: int = 1,
        versions: VersionHistory | None = None,
    ) -> None:
        self.root = tree.root
        self.home = tree.maker.home
        self.parts: dict[int, Part] = {}
        self.threads = anyio.CapacityLimiter(max_threads)
        self.versions = versions or VersionHistory()
        self._whole = whole
        self._attempts = attempts
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

    def find(self, path: str) -> Part:
        """The part at `path` in the current version; raises `KeyError` with those that there are."""
        parts = self.versions.current.parts(self.root)
        if path in parts:
            return parts[path]
        for name, module in parts[ROOT].module.named_parameters():  # DSPy names a shared one by another of its paths
            if name == path and (part := self.parts.get(id(module))) is not None:
                return part
        raise KeyError(f"there is no submodule {path!r}, but {', '.join(map(repr, parts))}")

    def maker_for(self, source: ModuleSource, name: str) -> Maker:
        """Makes what is swapped in: in the thread that the program belongs to, if it does."""
        return Maker(source, name, home=self.home)

    def current(self, lm: dspy.BaseLM | None = None) -> Request:
        """A call of the current version, with an LM of its own if one is given."""
        return Request(self.root, self.parts, self.versions.current, self._whole, self._attempts, lm, self.threads)

    @contextlib.contextmanager
    def request(self, lm: dspy.BaseLM | None) -> Iterator[Request]:
        """One call of the program, which pins the version that is the current one now."""
        request = self.current(lm)
        version = request.version
        self._pinned[version] += 1
        try:
            yield request
        finally:
            self._pinned[version] -= 1
            if self._pinned[version] == 0:
                del self._pinned[version]

    def is_pinned(self, version: Version) -> bool:
        """Whether a call that is under way came in when this version was the current one."""
        return version in self._pinned
