"""Saved LMs of pools: by the names of the pool and the model, and bound to the pool of that name where they are loaded.

Called by `PooledLM` when it is saved, and by DSPy and pickle when it is loaded. What is saved is the state of a plain
`dspy.LM` of the model, which loads without the pool, and without this library; the pool's name stands in its
`launch_kwargs`, which nothing sends. So `dspy.Module.load` needs no ``allow_unsafe_lm_state``.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol
from weakref import WeakSet

import dspy

from promptside.pools.clients.lm_call import LM_CLASS_STATE_KEY

__all__ = ["OWN", "SavedLM", "dump", "find_pool", "load", "register"]

POOL: Final = "promptside_pool"
"""Key of the pool's record in `launch_kwargs`."""

OWN: Final = ("_engine_spec", "_async_engine_spec", "_engine_lock", "_engine_store", "_record", "num_retries", "model")
"""What an LM that was loaded has of its new place, and not of its old one."""

logger = logging.getLogger(__name__)


class Pool(Protocol):
    """What is asked of an `LMPool`."""

    @property
    def running(self) -> bool:
        """Whether it runs."""
        ...

    @property
    def ended(self) -> bool:
        """Whether it ran, and will not be restarted."""
        ...

    def load_lm(self, record: Mapping[str, Any], **settings: Any) -> dspy.LM | None:
        """The LM of this record; None if the pool cannot make it."""
        ...


class SavedLM:
    """`dspy.LM.load_state`, in its place: the state of a pool's LM becomes an LM of that pool, if it is here.

    Args:
        original: DSPy's own.
    """

    def __init__(self, original: Any) -> None:
        self.pools: dict[str, WeakSet[Any]] = {}
        self._original = original

    def __get__(self, instance: object, owner: type[dspy.LM]) -> Callable[..., dspy.LM]:
        return functools.partial(self._load, owner)

    def _load(self, owner: type[dspy.LM], state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> dspy.LM:
        original = self._original.__get__(None, owner)
        loaded: dspy.LM = original(state, allow_custom_lm_class=allow_custom_lm_class)
        record = (state.get("launch_kwargs") or {}).get(POOL)
        return loaded if record is None or owner is not dspy.LM else _bound(loaded, record)


def register(name: str, pool: Pool) -> None:
    """From now on, LMs that were saved with a pool of this name can be loaded as this pool's, until it ends."""
    hook = vars(dspy.LM)["load_state"]
    if not isinstance(hook, SavedLM):
        hook = SavedLM(hook)
        dspy.LM.load_state = hook  # pyright: ignore[reportAttributeAccessIssue]
    hook.pools.setdefault(name, WeakSet()).add(pool)


def find_pool(name: str) -> Any:
    """The pool of this name in this process: one that runs, else one that may be started; None if there is none."""
    hook = vars(dspy.LM)["load_state"]
    pools = list(hook.pools.get(name, ())) if isinstance(hook, SavedLM) else []
    waiting = (pool for pool in pools if not pool.ended)
    return next((pool for pool in pools if pool.running), next(waiting, None))


def dump(lm: dspy.LM, record: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a pool's LM, for `dspy.LM.load_state`: that of a plain one of its model.

    Args:
        lm: It.
        record: For `LMPool.load_lm`; its `pool` is the pool's name, `model` the LM's, `fallback` that of a plain one.
    """
    plain = copy.copy(lm)
    plain._engine_spec, plain._async_engine_spec = "auto", None
    plain.launch_kwargs = {**lm.launch_kwargs, POOL: dict(record)}
    state: dict[str, Any] = dspy.LM.dump_state(plain)
    state |= {LM_CLASS_STATE_KEY: "dspy.clients.lm.LM", "model": record["fallback"]}
    del state["num_retries"]  # the pool's 0: it retries by itself
    return state


def load(state: dict[str, Any], attributes: dict[str, Any]) -> dspy.LM:
    """The LM of a pickle, with everything that it held: history, callbacks, settings."""
    loaded: dspy.LM = dspy.LM.load_state(state)  # pyright: ignore[reportAssignmentType]
    left = {*OWN, "launch_kwargs"}
    loaded.__dict__.update({name: value for name, value in attributes.items() if name not in left})
    return loaded


def _bound(loaded: dspy.LM, record: Mapping[str, Any]) -> dspy.LM:
    """The pool's LM with the settings of a plain one that was loaded; that itself where the pool is not."""
    pool = find_pool(record["pool"])
    lm = None if pool is None else pool.load_lm(record, model_type=loaded.model_type, cache=loaded.cache)
    if lm is None:
        missing = "is not here" if pool is None else "has no such model or vote"
        logger.warning(
            "the LM %r was saved with the LM pool %r, which %s: a plain dspy.LM(%r) is loaded in its place",
            record["model"],
            record["pool"],
            missing,
            record["fallback"],
        )
        return loaded
    settings = {name: value for name, value in vars(loaded).items() if name not in OWN}
    others = {name: value for name, value in loaded.launch_kwargs.items() if name != POOL}
    lm.__dict__.update({**settings, "launch_kwargs": others})
    return lm
