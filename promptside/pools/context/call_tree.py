"""`CallTree`: the calls that are under way below one entry call, so that whatever happens inside finds its parent.

Made by module actors for calls that somebody listens to, filled by their DSPy callback, and asked by LM pools on other
threads and loops. It travels in DSPy's own settings, beside the callbacks, and is keyed by DSPy's call ids: these are
what DSPy hands on to every thread that it starts, where other contextvars end.
"""

from __future__ import annotations

from typing import Final

from promptside.events.span import Span
from promptside.pools.context.settings import current_call_id, read_setting

__all__ = ["TREE", "CallTree", "enclosing"]

TREE: Final = "promptside_call_tree"
"""The key of DSPy's settings under which the tree of the running entry call is found."""


class CallTree:
    """The open spans of one entry call, by DSPy's call ids. Any thread.

    Args:
        root: The entry call itself.
    """

    def __init__(self, root: Span) -> None:
        self.root = root
        self._open: dict[str | None, Span] = {}

    def enclosing(self) -> Span:
        """The innermost open span around the caller; the root where no call is, and for what outlives its parent."""
        return self._open.get(current_call_id(), self.root)

    def put(self, call_id: str, span: Span) -> None:
        """DSPy's call `call_id` is this span, or passes for it, until it is taken."""
        self._open[call_id] = span

    def take(self, call_id: str) -> Span | None:
        """Forget a call that has ended."""
        return self._open.pop(call_id, None)


def enclosing() -> Span | None:
    """The innermost open span around the caller, if its entry call is listened to."""
    tree = read_setting(TREE)
    return tree.enclosing() if isinstance(tree, CallTree) else None
