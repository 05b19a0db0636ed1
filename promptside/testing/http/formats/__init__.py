"""The wire formats that a `FakeServer` speaks, one module for each provider's, and the paths they are served on.

Each follows its provider's documents and is tested with DSPy's clients, lm15 and litellm.
"""

from __future__ import annotations

import re

from promptside.checks import check
from promptside.testing.http.formats.anthropic import ANTHROPIC
from promptside.testing.http.formats.cohere import COHERE
from promptside.testing.http.formats.format import Format
from promptside.testing.http.formats.gemini import GEMINI
from promptside.testing.http.formats.openai import OPENAI, embeddings, models

__all__ = ["OPENAI", "base_path", "embeddings", "format_of", "models"]

_PATHS = {"/v1/chat/completions": OPENAI, "/v1/messages": ANTHROPIC, "/v2/chat": COHERE}
_GEMINI_PATH = re.compile(r"/v1(beta)?/models/[^/]+:(generateContent|streamGenerateContent)")
_BASES = {"openai": "/v1", "anthropic": "/v1", "gemini": "/v1beta", "cohere": "/v2/chat"}


def format_of(path: str) -> Format | None:
    """The format of the chat requests that are posted to a path, or None where there is none."""
    return GEMINI if _GEMINI_PATH.fullmatch(path) else _PATHS.get(path)


def base_path(provider: str) -> str:
    """The path of a provider's base URL.

    Args:
        provider: ``"openai"``, ``"anthropic"``, ``"gemini"`` or ``"cohere"``.

    Raises:
        ValueError: The provider is another.
    """
    check("FakeServer", "provider", provider, provider in _BASES, f"give one of {', '.join(_BASES)}")
    return _BASES[provider]
