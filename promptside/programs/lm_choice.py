"""Which LM a call of a program uses: the call's, the context's, the program's, the system's, the application's.

Module actors ask `choose_lm` in the context of each call; users set the system's with `set_default_lm`. Nothing global
is kept: the system keeps its own, and the rest comes with the call.
"""

from __future__ import annotations

from typing import Any, Final

import dspy

from promptside.actors import ActorSystem
from promptside.checks import check
from promptside.pools.context.settings import configured, read_setting

__all__ = ["check_lm", "choose_lm", "set_default_lm"]

DEFAULT_LM: Final = "lm"
"""The key of the system's `defaults`."""

DEFAULTED: Final = "promptside_default_lm"
"""The key of DSPy's settings that holds the LM of a program that got none from its caller."""


def set_default_lm(system: ActorSystem, lm: dspy.BaseLM | None) -> None:
    """Set the default LM of a system: used when neither a call, its `dspy.context` nor its program sets one.

    Args:
        system: Any thread may set it, at any time; a call takes the one that is set when it begins.
        lm: None removes it; then the application's is used, of `dspy.configure`.

    Raises:
        ValueError: `system` is no system, or `lm` no LM.
    """
    check("set_default_lm", "system", system, isinstance(system, ActorSystem), "give an ActorSystem")
    check_lm("set_default_lm", lm)
    system.defaults[DEFAULT_LM] = lm


def check_lm(owner: str, lm: object) -> None:
    """Raise `ValueError` unless `lm` is an LM or None."""
    decides = getattr(lm, "supports_decision_requests", False) is True  # such as `dspy.experimental.TypeSafe`
    valid = decides or isinstance(lm, dspy.BaseLM | None)
    check(owner, "lm", lm, valid, "give a dspy.LM, such as `pool.lm()`, or None")


def choose_lm(system: ActorSystem, call: Any, program: Any) -> dict[str, Any]:
    """The settings for `dspy.context` that choose the LM; `lm` is None where no level has one.

    In this order: the call's; that of a `dspy.context` around it; the program's own; that of the program by which this
    one is called, if it is; the system's; the application's. `dspy.context(anything)` copies the application's LM,
    which is not the context's for that.

    Args:
        system: The system.
        call: The call's LM, or None.
        program: The program's own, or None.
    """
    found, defaulted = read_setting("lm"), read_setting(DEFAULTED)
    around = None if found is defaulted or found is configured("lm") else found
    if (chosen := call or around) is not None:
        return {"lm": chosen, DEFAULTED: None}
    chosen = program or defaulted or system.defaults.get(DEFAULT_LM) or configured("lm")
    return {"lm": chosen, DEFAULTED: chosen}
