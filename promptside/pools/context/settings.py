"""What travels with a call: entries in DSPy's settings, and DSPy's call ids. The one module that touches either.

DSPy hands its settings to every thread that it starts, and they go with messages between actors and with `asyncio`
tasks; other contextvars end at a thread of DSPy's. They are not set by `dspy.context`, which would freeze the
application's own settings, its LM included, for what is called inside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import Context
from typing import Any

from dspy.dsp.utils.settings import dotdict, main_thread_config, thread_local_overrides
from dspy.utils.callback_context import ACTIVE_CALL_ID

__all__ = [
    "configured",
    "current_call_id",
    "overrides",
    "put_setting",
    "put_setting_in",
    "read_setting",
    "setting",
]


def overrides() -> dict[str, Any]:
    """Everything that was set around the caller, by key; not what `dspy.configure` set."""
    found: dict[str, Any] = thread_local_overrides.get()
    return found


def read_setting(key: str, default: Any = None) -> Any:
    """What was set around the caller under `key`; `default` where nothing was."""
    return overrides().get(key, default)


def configured(key: str) -> Any:
    """What `dspy.configure` set under `key`."""
    return main_thread_config.get(key)


@contextlib.contextmanager
def setting(key: str, value: Any) -> Iterator[None]:
    """Within, `value` is found under `key`."""
    token = thread_local_overrides.set(dotdict({**overrides(), key: value}))
    try:
        yield
    finally:
        thread_local_overrides.reset(token)


def put_setting(key: str, value: Any) -> None:
    """Set `value` under `key` for the rest of this task or thread."""
    thread_local_overrides.set(dotdict({**overrides(), key: value}))


def put_setting_in(context: Context, key: str, value: Any) -> None:
    """`put_setting` for what will run in `context`, over the caller's own settings."""
    context.run(thread_local_overrides.set, dotdict({**overrides(), key: value}))


def current_call_id() -> str | None:
    """DSPy's id of the innermost call around the caller."""
    call_id: str | None = ACTIVE_CALL_ID.get()
    return call_id
