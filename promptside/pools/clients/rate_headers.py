"""`read_quota`: what the headers of a refusal say about the provider's limit.

Called after each refusal for too many requests (HTTP 429). The headers are kept by lm15 and `litellm_client` as they
came, on the error. What they mean differs: OpenAI counts a bucket, Azure short windows, Groq requests by the day; so
the limiter takes the rate for an upper bound, and the reset for the latest time to ask again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

from promptside.clock import wall

__all__ = ["Quota", "read_quota"]

KINDS: Final = (
    "x-ratelimit-{}-requests",
    "anthropic-ratelimit-requests-{}",
    "x-ratelimit-{}-tokens",
    "anthropic-ratelimit-tokens-{}",
    "anthropic-ratelimit-input-tokens-{}",
    "anthropic-ratelimit-output-tokens-{}",
)
"""Headers of a limit, around one of `FIELDS`."""

FIELDS: Final = ("limit", "remaining", "reset")

CLOCKS: Final = 2.0
"""Seconds by which the provider's clock may be ahead, where a reset is a date."""

EPOCH: Final = 1e9
"""A number of seconds that is no wait, but counted from 1970."""

UNITS: Final = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001, "us": 1e-6, "ns": 1e-9}

DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|ns|d|h|m|s)", re.ASCII)


class Quota(NamedTuple):
    """What a refusal's headers say of the limits that are used up.

    Attributes:
        allowed: Requests a second that the provider takes at most; inf where they do not say.
        reset: Seconds after which all are there again; inf likewise.
    """

    allowed: float = math.inf
    reset: float = math.inf


def read_quota(headers: Mapping[str, Sequence[str]]) -> Quota:
    """The quota by a refusal's headers; what cannot be read, or makes no sense, is left out.

    Args:
        headers: Their values by their names in lower case.
    """
    allowed, reset = math.inf, math.inf
    for kind in KINDS if headers else ():
        limit, remaining, wait = (headers.get(kind.format(field), [""])[0] for field in FIELDS)
        most, left, seconds = _number(limit), _number(remaining), _seconds(wait)
        if left is None or left > 0 or seconds is None or seconds <= 0:
            continue
        reset = min(reset, seconds)
        if "requests" in kind and most is not None and most > 0:
            allowed = min(allowed, most / seconds)
    return Quota(allowed, reset)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _seconds(text: str) -> float | None:
    """Seconds from now until a reset: ``"6m0s"``, ``"120ms"``, ``"1.5"``, or a date of RFC 3339."""
    if (number := _number(text)) is not None:
        return number if number < EPOCH else number - wall() - CLOCKS
    parts = DURATION.findall(text)
    if parts and "".join(map("".join, parts)) == text:
        return sum(float(amount) * UNITS[unit] for amount, unit in parts)
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        return None
    return date.replace(tzinfo=date.tzinfo or UTC).timestamp() - wall() - CLOCKS
