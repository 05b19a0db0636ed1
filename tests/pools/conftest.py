"""Fixtures of the tests of the LM pool."""

from __future__ import annotations

import dspy
import pytest
from dspy.clients.cache import Cache


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """DSPy's cache, in memory and empty: what another test was answered is asked again."""
    cache = Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=None)
    monkeypatch.setattr(dspy, "cache", cache)
