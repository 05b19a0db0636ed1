"""Errors that are pickled and copied: every class of the package, and what they may hold."""

from __future__ import annotations

import collections.abc
import copy
import importlib
import inspect
import pickle
import pkgutil
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

import promptside
from promptside.errors import ActorStopped, AskTimeout, MaxRestartsExceeded, OpaqueError, PromptsideError

SAMPLES: dict[Any, Any] = {
    str: "text",
    str | None: "text",
    int: 3,
    float: 1.5,
    float | None: 1.5,
    bool: True,
    object: ValueError("no"),
    BaseException: ValueError("no"),
    tuple[str, ...]: ("a", "b"),
    tuple[tuple[str, object], ...]: (("child", "why"), ("other", KeyError("x"))),
    tuple[tuple[str, Exception], ...]: (("member", ValueError("no")),),
    collections.abc.Sequence[int]: (1, 2),
}
"""A value for each type of argument."""


def all_errors() -> Iterator[type[PromptsideError]]:
    for module in pkgutil.walk_packages(promptside.__path__, "promptside."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    waiting: list[type[PromptsideError]] = [PromptsideError]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("promptside."):
            yield kind


ERRORS = sorted(all_errors(), key=lambda kind: kind.__name__)


def make(kind: type[PromptsideError]) -> PromptsideError:
    """An error of this class, with a value for each argument."""
    makes: Any = kind.__init__
    if not inspect.isfunction(makes):
        return kind("a text")
    known = typing.get_type_hints(makes)
    given, named = [], {}
    for name, parameter in list(inspect.signature(makes).parameters.items())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = SAMPLES[known[name]]
        else:
            given.append(SAMPLES[known[name]])
    return kind(*given, **named)


def pickled(error: Any) -> Any:
    return pickle.loads(pickle.dumps(error))


WAYS = {"pickle": pickled, "copy": copy.copy, "deepcopy": copy.deepcopy}


def as_text(value: object) -> str:
    """Errors have no equality; their texts do."""
    return repr(value)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_data_its_notes_and_its_cause(kind: type[PromptsideError], way: str) -> None:
    error = make(kind)
    error.__cause__ = OSError(111, "refused")
    error.add_note("in the stage 'answer'")

    twin = WAYS[way](error)

    assert type(twin) is kind
    assert twin is not error
    assert str(twin) == str(error)
    assert as_text(twin.args) == as_text(error.args)
    assert {name: as_text(value) for name, value in vars(twin).items()} == {
        name: as_text(value) for name, value in vars(error).items()
    }
    assert as_text(twin.__cause__) == "ConnectionRefusedError(111, 'refused')"
    twin.add_note("another")
    assert error.__notes__ == ["in the stage 'answer'"]


class Refused(Exception):
    """Its `__init__` takes what its `args` do not have, so that it can be pickled and not unpickled."""

    def __init__(self, status: int, url: str) -> None:
        super().__init__(f"{url} answered {status}")


class Panic(BaseException):
    pass


class Unwilling:
    def __reduce__(self) -> Any:
        raise Panic

    def __repr__(self) -> str:
        raise Panic


def with_lock() -> Exception:
    error = ValueError("held")
    error.lock = threading.Lock()  # type: ignore[attr-defined]
    return error


def within_itself() -> list[object]:
    made: list[object] = ["a"]
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("payload", "kind", "text"),
    [
        (Refused(503, "/chat"), OpaqueError, "Refused: /chat answered 503"),
        (with_lock(), OpaqueError, "ValueError: held"),
        (Unwilling(), str, "<Unwilling, whose repr raised Panic>"),
        (threading.Lock(), str, "<unlocked _thread.lock object at "),
        (ExceptionGroup("two", [Refused(503, "/a"), KeyError("b")]), ExceptionGroup, "two (2 sub-exceptions)"),
        (within_itself(), list, "['a', \"['a', [...]]\"]"),
        ({"held": (Unwilling(), 1)}, dict, "{'held': ('<Unwilling, whose repr raised Panic>', 1)}"),
        (ActorStopped("b", Refused(500, "/"), started=True, incarnation=1), ActorStopped, "actor 'b' (incarnation 1)"),
    ],
    ids=["__init__", "attribute", "__reduce__", "lock", "group", "list", "dict", "nested"],
)
def test_a_payload_that_is_hard_to_pickle_becomes_a_text(payload: object, kind: type, text: str) -> None:
    error = ActorStopped("desk", payload, started=False, incarnation=2)

    twin = pickled(error)

    assert str(twin) == str(error)
    assert type(twin.reason) is kind
    assert str(twin.reason).startswith(text)
    assert copy.copy(error).reason is payload
    assert str(copy.deepcopy(error)) == str(error)


def test_causes_are_kept_through_foreign_errors_and_a_chain_that_leads_back_ends() -> None:
    first, second, third = KeyError("user"), Refused(404, "/user"), AskTimeout("desk", "answer", 5.0, started=True)
    third.__cause__, second.__cause__, first.__cause__ = second, first, third
    second.add_note("at night")

    twin = pickled(third)

    assert isinstance(twin.__cause__, OpaqueError)
    assert (twin.__cause__.kind, twin.__cause__.__notes__) == ("Refused", ["at night"])
    assert as_text(twin.__cause__.__cause__) == "KeyError('user')"
    assert isinstance(twin.__cause__.__cause__.__cause__, OpaqueError)


def test_a_suppressed_context_stays_suppressed() -> None:
    def refuse() -> None:
        try:
            raise KeyError("user")
        except KeyError:
            raise AskTimeout("desk", "answer", 5.0, started=True) from None

    with pytest.raises(AskTimeout) as raised:
        refuse()

    assert all(way(raised.value).__suppress_context__ for way in WAYS.values())


def test_an_error_of_a_module_that_is_not_there_is_told_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("only_here")
    exec("class Gone(Exception): pass", vars(module))
    monkeypatch.setitem(sys.modules, "only_here", module)
    sent = pickle.dumps(ActorStopped("desk", module.Gone("far"), started=False, incarnation=1))
    monkeypatch.delitem(sys.modules, "only_here")

    assert str(pickle.loads(sent).reason) == "Gone: far"


class WithItsOwn(MaxRestartsExceeded):
    """As a user may derive it."""

    def __init__(self) -> None:
        super().__init__("desk", 3, 5.0, (("clerk", "killed"),))


def test_a_users_subclass_with_another_init_is_pickled_too() -> None:
    twin = pickled(WithItsOwn())

    assert (type(twin), twin.history) == (WithItsOwn, (("clerk", "killed"),))


def raise_it(make: Callable[[], Exception]) -> None:
    raise make()


def a_stop() -> Exception:
    return ActorStopped("desk", with_lock(), started=True, incarnation=1)


def test_an_error_crosses_a_process_pool_which_goes_on() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with pytest.raises(ActorStopped, match="held") as raised:
            pool.submit(raise_it, a_stop).result(timeout=60)

        assert pool.submit(len, "ab").result(timeout=60) == 2
    assert isinstance(raised.value.reason, OpaqueError)
