"""Pools: language models behind supervised workers, breakers and retries, used as one `dspy.LM`.

`LMPool` makes several models one LM, `Endpoint` says where a model is, `EmbeddedServer` runs one on this
machine. Called by users and programs; calls DSPy's engines below.
"""

from promptside.errors import CircuitOpen
from promptside.pools.accounting.budget import Budget
from promptside.pools.clients.embedded import EmbeddedModelUnavailable, EmbeddedServer, default_model_path
from promptside.pools.clients.endpoint import Capabilities, Endpoint
from promptside.pools.clients.model_config import LMConfig
from promptside.pools.context.batch import batch_run
from promptside.pools.context.labels import labels, session
from promptside.pools.context.priority import Batch, priority
from promptside.pools.errors import (
    BudgetExceeded,
    EnsembleFailed,
    LMCallTimeout,
    LMCircuitOpen,
    LMPoolSaturated,
    LMQueueTimeout,
    NoLMLoaded,
    PoolUnavailable,
    TooFewDescriptors,
    WorkerLost,
)
from promptside.pools.lm.config import LMPoolConfig, LMPoolSettings
from promptside.pools.lm.embedder import PoolEmbedder
from promptside.pools.lm.pool import LMPool
from promptside.pools.lm.target import BreakerControl
from promptside.pools.lm.vote import Aggregate, Best, Majority
from promptside.pools.resilience.breaker import BreakerConfig, CircuitBreaker
from promptside.pools.resilience.limiter import LimiterConfig
from promptside.pools.resilience.protect import Protected, protect
from promptside.pools.resilience.retry import RetryConfig

__all__ = [
    "Aggregate",
    "Batch",
    "Best",
    "BreakerConfig",
    "BreakerControl",
    "Budget",
    "BudgetExceeded",
    "Capabilities",
    "CircuitBreaker",
    "CircuitOpen",
    "EmbeddedModelUnavailable",
    "EmbeddedServer",
    "Endpoint",
    "EnsembleFailed",
    "LMCallTimeout",
    "LMCircuitOpen",
    "LMConfig",
    "LMPool",
    "LMPoolConfig",
    "LMPoolSaturated",
    "LMPoolSettings",
    "LMQueueTimeout",
    "LimiterConfig",
    "Majority",
    "NoLMLoaded",
    "PoolEmbedder",
    "PoolUnavailable",
    "Protected",
    "RetryConfig",
    "TooFewDescriptors",
    "WorkerLost",
    "batch_run",
    "default_model_path",
    "labels",
    "priority",
    "protect",
    "session",
]
