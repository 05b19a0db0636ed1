"""The language of the scenarios: trees, what their workers do, and steps as text; and their rendering for Erlang.

`scenarios/` is written in it. `record` renders it as Erlang terms for `supervisor_traces.escript`; `play` runs it on
promptside. Times are in seconds, as everywhere in promptside, except those of pauses and of slow workers, which are in
milliseconds, as in OTP.

Steps:

==============================  ========================================================================================
``crash a``                     the worker ends with the reason ``crash``
``exit a REASON``               it ends itself: ``normal``, ``shutdown``, ``{shutdown,x}`` or another word
``kill a``                      it is killed from outside
``stop``                        the whole supervisor is stopped, with ``shutdown``
``pause MS``                    the next step begins that long after the beginning of the step before
``start_child a``               of the spec with that id, in the tree or in `later`; or ``start_child a in inner``
``terminate_child a``           and ``restart_child``, ``delete_child``: asked of the supervisor that has it, or of top
``which_children inner``        and ``count_children``; of top when none is named
``crash a & crash b``           the supervisor sees both only when both have happened
``crash a, meanwhile crash b``  the second happens while the first has a worker in a slow init or terminate
==============================  ========================================================================================

Between steps the whole tree comes to rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal
from zlib import crc32

__all__ = [
    "STARTING",
    "STOPPING",
    "Act",
    "Child",
    "Dynamic",
    "Scenario",
    "Step",
    "Tree",
    "Worker",
    "erlang",
    "slowness",
    "sup",
    "work",
]


STARTING = "a stop does not wait for a child that is being started, whose on_start may never return: it kills it"
STOPPING = "a stop overtakes: what is to be started only to be stopped again is not started any more"


@dataclass(frozen=True, kw_only=True)
class Child:
    """What every child spec says.

    Attributes:
        id: Unique in its scenario.
        restart: As in `ChildSpec`.
        shutdown: Seconds; 0 is OTP's ``brutal_kill``, `math.inf` its ``infinity``.
        significant: As in `ChildSpec`.
    """

    id: str = "top"
    restart: Literal["permanent", "transient", "temporary"] = "permanent"
    shutdown: float = 5.0
    significant: bool = False


@dataclass(frozen=True, kw_only=True)
class Worker(Child):
    """A worker.

    Attributes:
        inits: How one start after the other goes: ``"ok"``, ``"fail"``, ``"slow 100"``, ``"slow fail 100"``; then ok.
        terminate: How it ends: ``"ok"``, ``"slow 100"``, ``"hang"`` or ``"crash"``.
    """

    inits: Sequence[str] = ()
    terminate: str = "ok"


@dataclass(frozen=True, kw_only=True)
class Tree(Child):
    """A supervisor and its children; the arguments are `Supervisor`'s."""

    children: Sequence[Child]
    strategy: Literal["one_for_one", "one_for_all", "rest_for_one"] = "one_for_one"
    max_restarts: int = 3
    max_seconds: int = 5
    auto_shutdown: Literal["never", "any_significant", "all_significant"] = "never"
    shutdown: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Dynamic(Child):
    """A `DynamicSupervisor`; OTP's ``simple_one_for_one``, whose children have all one restart and shutdown."""

    child_restart: Literal["permanent", "transient", "temporary"] = "permanent"
    child_shutdown: float = 5.0
    max_restarts: int = 3
    max_seconds: int = 5
    shutdown: float = math.inf


def work(id: str, *inits: str, **options: Any) -> Worker:
    """A `Worker`, written short."""
    return Worker(id=id, inits=inits, **options)


def sup(*children: Child, **options: Any) -> Tree:
    """A `Tree`, written short; the top one unless `id` says otherwise."""
    return Tree(children=children, **options)


@dataclass(frozen=True)
class Act:
    """One thing that is done to a tree.

    Attributes:
        verb: The first word.
        id: Of the actor it is done to; of the supervisor for ``stop``, ``which_children`` and ``count_children``.
        supervisor: The id of the supervisor that is asked, or that will be told.
        reason: Of an ``exit``.
    """

    verb: str
    id: str
    supervisor: str
    reason: str = ""


@dataclass(frozen=True)
class Step:
    """Acts that belong together, or a pause.

    Attributes:
        text: As written.
        mode: How the acts relate.
        acts: At least one, but for a pause.
        pause: Milliseconds.
    """

    text: str
    mode: Literal["one", "together", "meanwhile", "pause"]
    acts: tuple[Act, ...] = ()
    pause: int = 0


@dataclass(frozen=True)
class Scenario:
    """One story, to be told alike by OTP and by promptside.

    Attributes:
        name: A sentence.
        tree: What is started.
        steps: What is then done to it, as text.
        later: Specs for ``start_child`` that are not in the tree.
        differs: Why promptside's trace is another one; empty if it is the same.
        ours: Then, promptside's trace.
    """

    name: str
    tree: Tree | Dynamic
    steps: Sequence[str] = ()
    later: Sequence[Child] = ()
    differs: str = ""
    ours: Sequence[str] = ()

    def parsed(self) -> list[Step]:
        """The steps, taken apart."""
        return [self._parse(text) for text in self.steps]

    def child(self, id: str) -> Child:
        """The spec with this id, of the tree or of `later`."""
        return next(child for top in (self.tree, *self.later) for child, _ in _walk(top) if child.id == id)

    def _parse(self, text: str) -> Step:
        if text.startswith("pause "):
            return Step(text, "pause", pause=int(text.removeprefix("pause ")))
        if ", meanwhile " in text:
            return Step(text, "meanwhile", tuple(map(self._act, text.split(", meanwhile "))))
        parts = text.split(" & ")
        return Step(text, "together" if len(parts) > 1 else "one", tuple(map(self._act, parts)))

    def _act(self, text: str) -> Act:
        verb, *words = text.split()
        if verb in {"stop", "which_children", "count_children"}:
            id = words[0] if words else "top"
            return Act(verb, id, id)
        id = words[0]
        if verb == "exit":
            return Act(verb, id, self._parent(id), words[1])
        if words[1:2] == ["in"]:
            return Act(verb, id, words[2])
        return Act(verb, id, self._parent(id))

    def _parent(self, id: str) -> str:
        return next((parent for child, parent in _walk(self.tree) if child.id == id), "top")

    def supervisor(self, id: str) -> Tree | Dynamic:
        """The supervisor with this id."""
        found = self.child(id)
        assert isinstance(found, Tree | Dynamic), f"{id} is no supervisor"
        return found

    def terms(self) -> str:
        """This scenario as the Erlang term that the escript reads."""
        steps = [("pause", step.pause) if step.mode == "pause" else self._step(step) for step in self.parsed()]
        return erlang(("scenario", self.name, _node(self.tree), steps)) + ".\n"

    def fingerprint(self) -> str:
        """Changes whenever a recorded trace would have to be recorded anew."""
        return f"{crc32(self.terms().encode()):08x}"

    def canonical(self, trace: Sequence[str]) -> list[str]:
        """The trace, made comparable where OTP leaves the order open.

        The children of a ``simple_one_for_one`` supervisor are stopped all at once, so what they say of it is sorted.
        """
        lines = list(trace)
        if any(isinstance(child, Dynamic) for child, _ in _walk(self.tree)):
            runs = [(together, list(run)) for together, run in groupby(lines, _tells_of_a_stop)]
            lines = [line for together, run in runs for line in (sorted(run) if together else run)]
        return lines

    def _step(self, step: Step) -> tuple[Any, ...]:
        acts = [(self._term(act), act.supervisor) for act in step.acts]
        return (step.text, (step.mode, acts[0] if step.mode == "one" else acts))

    def _term(self, act: Act) -> tuple[Any, ...]:
        if act.verb in {"crash", "kill", "stop", "which_children", "count_children"}:
            return (act.verb, act.id)
        if act.verb == "exit":
            return ("exit", act.id, Term(act.reason))
        dynamic = isinstance(self.supervisor(act.supervisor), Dynamic)
        if act.verb == "start_child":
            return ("start_dynamic" if dynamic else act.verb, act.supervisor, _node(self.child(act.id)))
        if act.verb == "terminate_child" and dynamic:
            return ("terminate_dynamic", act.supervisor, act.id)
        return (act.verb, act.supervisor, act.id)


def slowness(word: str) -> int:
    """Milliseconds that ``"slow 100"`` or ``"slow fail 100"`` takes; 0 for a word without."""
    return int(word.rsplit(maxsplit=1)[-1]) if word.startswith("slow") else 0


class Term(str):
    """Erlang text, rendered as it is."""

    __slots__ = ()


def erlang(value: Any) -> str:
    """A value as an Erlang term: texts become atoms, dicts maps, infinity ``infinity``."""
    if isinstance(value, Term):
        return str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    if isinstance(value, dict):
        return "#{" + ", ".join(f"{erlang(key)} => {erlang(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(erlang, value))
        return f"[{inner}]" if isinstance(value, list) else f"{{{inner}}}"
    return "infinity" if value == math.inf else str(value)


def _walk(child: Child, parent: str = "top") -> list[tuple[Child, str]]:
    """The child and every child below it, each with its supervisor's id."""
    below = child.children if isinstance(child, Tree) else ()
    return [(child, parent), *(pair for each in below for pair in _walk(each, child.id))]


def _tells_of_a_stop(line: str) -> bool:
    return line.startswith("terminate ") and line.endswith(" shutdown")


def _node(child: Child) -> dict[str, Any]:
    node: dict[str, Any] = {
        "id": child.id,
        "restart": child.restart,
        "shutdown": _shutdown(child.shutdown),
        "significant": child.significant,
        "type": "worker" if isinstance(child, Worker) else "supervisor",
    }
    if isinstance(child, Worker):
        node["inits"] = [("fail" if "fail" in word else "ok", slowness(word)) for word in child.inits]
        words: dict[str, Any] = {"hang": math.inf, "crash": "crash"}
        node["terminate"] = words.get(child.terminate, slowness(child.terminate))
    elif isinstance(child, Tree):
        node["flags"] = {
            "strategy": child.strategy,
            "intensity": child.max_restarts,
            "period": child.max_seconds,
            "auto_shutdown": child.auto_shutdown,
        }
        node["children"] = list(map(_node, child.children))
    elif isinstance(child, Dynamic):
        node["flags"] = {
            "strategy": "simple_one_for_one",
            "intensity": child.max_restarts,
            "period": child.max_seconds,
        }
        node["template"] = {"restart": child.child_restart, "shutdown": _shutdown(child.child_shutdown)}
    return node


def _shutdown(seconds: float) -> Any:
    if seconds == 0:
        return "brutal_kill"
    return seconds if seconds == math.inf else round(seconds * 1000)
