"""`PooledLM`: the `dspy.LM` of a pool. Made by `LMPool`; its calls are made by `lm_call`.

DSPy calls an engine that it did not make with lm15's requests alone; a `dspy.LM` of a provider takes more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Self

import dspy

from promptside.checks import check
from promptside.pools.clients.lm_call import take_options
from promptside.pools.clients.routed_lm import RoutedLM
from promptside.pools.lm.saved import OWN, dump, load

__all__ = ["PooledLM"]


class PooledLM(RoutedLM):
    """As a `dspy.LM` of a provider.

    Args:
        model: Its name.
        engines: The two halves of the engine pair.
        record: By which the pool finds it again when it is loaded; see `saved`.
        **settings: As for `dspy.LM`.

    Raises:
        ValueError: A setting has its place elsewhere; the message says where.
    """

    def __init__(self, model: str, engines: tuple[Any, Any], record: Mapping[str, Any], **settings: Any) -> None:
        options = take_options(settings, "pool.lm")
        callbacks = settings.get("callbacks")
        check("pool.lm", "callbacks", callbacks, isinstance(callbacks, list | None), "give a list of DSPy's callbacks")
        engine, async_engine = engines
        super().__init__(model, engine=engine, async_engine=async_engine, num_retries=0, **settings)
        self.kwargs.update(options)
        self._record = record

    def dump_state(self) -> dict[str, Any]:
        """As of a `dspy.LM`: the state of a plain LM of its model, with the name of its pool."""
        return dump(self, {"fallback": self.model, **self._record, "model": self.model})

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state: Any = self.__getstate__()
        attributes = {name: value for name, value in state.items() if name not in OWN}
        return load, (self.dump_state(), attributes)

    def copy(self, **kwargs: Any) -> Self:
        """As of a `dspy.LM`."""
        options = take_options(kwargs, "LM.copy")  # of which those that are None are left, and removed by DSPy
        copied: Self = dspy.BaseLM.copy(self, **kwargs)  # pyright: ignore[reportAssignmentType]
        copied.kwargs.update(options)
        return copied
