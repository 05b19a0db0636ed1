"""Pools: language models behind supervised workers, breakers and retries, used as one `dspy.LM`.

`Endpoint` names a model and its door, `LMPool` makes several of them one LM, `pools.local` runs a model on this
machine. Called by users and programs; calls DSPy's engines below.
"""

from promptside.pools.breaker import BreakerConfig, CircuitBreaker
from promptside.pools.circuit import Circuit
from promptside.pools.config import LMConfig
from promptside.pools.costs import Budget
from promptside.pools.embedder import PoolEmbedder
from promptside.pools.endpoint import Capabilities, Endpoint
from promptside.pools.ensemble import Aggregate, Best, Majority
from promptside.pools.errors import (
    BudgetExceeded,
    CircuitOpen,
    EnsembleFailed,
    LMPoolSaturated,
    LMQueueTimeout,
    NoLMLoaded,
    PoolUnavailable,
    TooFewDescriptors,
    WorkerLost,
)
from promptside.pools.labels import labels
from promptside.pools.limiter import LimiterConfig
from promptside.pools.lm_pool import LMPool
from promptside.pools.protect import Protected, protect
from promptside.pools.retry import RetryPolicy
from promptside.pools.runs import Run, batch_run, caller

__all__ = [
    "Aggregate",
    "Best",
    "BreakerConfig",
    "Budget",
    "BudgetExceeded",
    "Capabilities",
    "Circuit",
    "CircuitBreaker",
    "CircuitOpen",
    "Endpoint",
    "EnsembleFailed",
    "LMConfig",
    "LMPool",
    "LMPoolSaturated",
    "LMQueueTimeout",
    "LimiterConfig",
    "Majority",
    "NoLMLoaded",
    "PoolEmbedder",
    "PoolUnavailable",
    "Protected",
    "RetryPolicy",
    "Run",
    "TooFewDescriptors",
    "WorkerLost",
    "batch_run",
    "caller",
    "labels",
    "protect",
]
