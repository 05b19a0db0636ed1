"""What holds for every test: no key, no network beyond this machine, no cache from another run.

pytest imports this module before any test imports dspy or litellm, which read these variables at import.
"""

from __future__ import annotations

import ast
import gc
import ipaddress
import os
import signal
import sys
import tempfile
import threading
from typing import Any

import hypothesis
import pytest

# The demo and the pools prefer a hosted model where one of these is set; tests run without.
for name in ("GEMINI_API_KEY", "OPENAI_API_KEY", "OPENAI_API_BASE", "OPENAI_BASE_URL", "PROMPTSIDE_MODEL"):
    os.environ.pop(name, None)
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else importing litellm asks the network for prices
os.environ["HF_HUB_OFFLINE"] = "1"
_cache = tempfile.TemporaryDirectory(prefix="promptside-tests-", ignore_cleanup_errors=True)
os.environ["DSPY_CACHEDIR"] = _cache.name  # a cached answer of an earlier run would make a test pass without its call

# What a shell runs in the background ignores Ctrl+C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How many examples of each property; `--hypothesis-profile` chooses. No deadline, for a shared machine takes what time
# it takes; pytest-timeout ends what hangs.
hypothesis.settings.register_profile("dev", deadline=None, max_examples=25)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile("dev")

if sys.version_info < (3, 11, 8):
    # Before CPython 3.11.8 `ast.parse` counts its depth for all threads at once, and fails where two are in it. DSPy
    # calls it whenever it makes a signature, also in the threads of agents.
    _parsing, _parse = threading.RLock(), ast.parse  # a finalizer that logs an error may parse within a parse

    def _parse_alone(*args: Any, **kwargs: Any) -> Any:
        with _parsing:
            return _parse(*args, **kwargs)

    ast.parse = _parse_alone  # type: ignore[assignment]


def _refuse_the_outside(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else "127.0.0.1"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost"):
        return
    try:
        inside = ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise RuntimeError(f"a test tried to reach {host!r}; tests reach only this machine: use the local fake server")


sys.addaudithook(_refuse_the_outside)


def pytest_xdist_auto_num_workers(config: Any) -> int:
    """Three tests at a time on two cores, for many of them wait."""
    return max(2, (os.cpu_count() or 1) * 3 // 2)


def pytest_collection_finish() -> None:
    """Tests collect garbage, some of them often: what was imported until now is none."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _what_others_left(request: pytest.FixtureRequest) -> None:
    """What asyncio tells of the garbage of other tests is logged before a test that looks at the log, not in it."""
    if "caplog" in request.fixturenames:
        gc.collect()
