"""Every public name of DSPy that a program can use does the same plainly and hosted."""

from __future__ import annotations

import types

import dspy
import dspy.evaluate
import dspy.experimental
import pytest
from dspy.adapters import baml_adapter
from dspy.utils.callback import BaseCallback

from tests.programs.twins import APART, COVERED, HOOKS, TWINS
from tests.support.comparison import Case, by_turns, check_alike, hosted
from tests.support.module_cases import CASES

ALL = {**CASES, **TWINS}

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")


@pytest.mark.parametrize(("case", "way"), by_turns(TWINS))
async def test_twins_are_alike(case: Case, way: str) -> None:
    await check_alike(case, way)


def public(namespace: types.ModuleType) -> set[str]:
    """The names that are DSPy's own, without its packages."""
    names = getattr(namespace, "__all__", None) or [name for name in vars(namespace) if not name.startswith("_")]
    found = {name: getattr(namespace, name) for name in names}
    return {name for name, value in found.items() if not isinstance(value, types.ModuleType) or name == "lm15"}


def test_every_public_name_of_dspy_has_a_twin_or_a_reason_to_have_none() -> None:
    names = public(dspy) | public(dspy.experimental) | {"cache"}  # which is made when it is first read
    names |= {name for name in public(dspy.evaluate) if isinstance(getattr(dspy.evaluate, name), type)}
    names |= {name for name in public(baml_adapter) if name.endswith("Adapter")}
    assert names == COVERED.keys() | APART.keys()
    assert not COVERED.keys() & APART.keys()
    assert {case for cases in COVERED.values() for case in cases} <= ALL.keys()


def test_every_module_adapter_and_type_of_dspy_that_is_public_is_covered() -> None:
    """A name alone could be put aside by mistake."""
    namespaces = (dspy, dspy.experimental, dspy.evaluate, baml_adapter)
    kinds = (dspy.Module, dspy.Adapter, dspy.Type)
    found = {
        name
        for namespace in namespaces
        for name, value in vars(namespace).items()
        if isinstance(value, type) and issubclass(value, kinds) and not name.startswith("_")
    }
    assert found <= COVERED.keys()


def test_every_hook_of_callbacks_has_a_twin() -> None:
    hooks = {name.removeprefix("on_").rpartition("_")[0] for name in vars(BaseCallback) if name.startswith("on_")}
    assert hooks == HOOKS.keys()


@pytest.mark.parametrize(("hook", "name"), HOOKS.items(), ids=HOOKS)
async def test_a_hook_fires_in_its_twin(hook: str, name: str) -> None:
    seen = await hosted(ALL[name], thread=False)
    assert any(told[0].startswith(f"{hook} ") for told in seen["callbacks"])
