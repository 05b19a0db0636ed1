"""Pools: language models behind supervised workers, breakers and retries, used as one `dspy.LM`.

`Endpoint` names a model and its door, `LMPool` makes several of them one LM, `pools.local` runs a model on this
machine. Called by users and programs; calls DSPy's engines below.
"""

from promptside.pools.breaker import BreakerConfig, CircuitBreaker
from promptside.pools.dispatcher import RetryPolicy
from promptside.pools.endpoint import Capabilities, Endpoint
from promptside.pools.errors import CircuitOpen, NoLMLoaded, PoolUnavailable, WorkerLost
from promptside.pools.lm_pool import LMPool

__all__ = [
    "BreakerConfig",
    "Capabilities",
    "CircuitBreaker",
    "CircuitOpen",
    "Endpoint",
    "LMPool",
    "NoLMLoaded",
    "PoolUnavailable",
    "RetryPolicy",
    "WorkerLost",
]
