"""Fixtures of the tests of the LM pool."""

from __future__ import annotations

import dspy
import pytest
from dspy.clients.cache import Cache
from dspy.clients.engines.lm15_engine import AsyncLM15Engine
from dspy.lm15 import UnsupportedFeatureError


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """DSPy's cache, in memory and empty: what another test was answered is asked again."""
    cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=None)
    monkeypatch.setattr(dspy, "cache", cache)


@pytest.fixture
def only(client: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that lm15 cannot represent, where litellm is to send them."""

    def refuse(engine: AsyncLM15Engine, model: str) -> None:
        raise UnsupportedFeatureError("there is no such field", feature="field")

    if client == "litellm":
        monkeypatch.setattr(AsyncLM15Engine, "resolve", refuse)
