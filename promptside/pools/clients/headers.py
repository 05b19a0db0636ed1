"""Headers of an endpoint's own, as gateways want them: checked, and added to each request by a transport of lm15.

litellm and the openai package take them as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from promptside.checks import check

__all__ = ["HeadersTransport", "checked_headers", "secrets_in"]

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[!-~](?:[ \t!-~]*[!-~])?")

_CLIENTS: Final = frozenset({"connection", "content-length", "content-type", "host", "transfer-encoding"})
"""Those that say how the client sends a request."""


def checked_headers(owner: str, headers: object) -> Mapping[str, str]:
    """A copy that cannot be changed; raises `ValueError`, in which no value is shown."""
    shown = type(headers).__name__
    check(owner, "headers", shown, isinstance(headers, Mapping), 'give a mapping, such as {"x-gateway-key": "..."}')
    assert isinstance(headers, Mapping)
    for name, value in headers.items():
        valid = isinstance(name, str) and _NAME.fullmatch(name) is not None
        check(owner, "headers", name, valid, "give names of letters, digits and -")
        check(owner, "headers", name, name.lower() not in _CLIENTS, "leave this one out: the client sets it")
        valid = isinstance(value, str) and _VALUE.fullmatch(value) is not None
        remedy = "give it a value that is a text of ASCII characters, with no line breaks, and no spaces at its ends"
        check(owner, "headers", name, valid, remedy)
    names = [name.lower() for name in headers]
    twice = sorted({name for name in names if names.count(name) > 1})
    check(owner, "headers", twice, not twice, "give each name once; upper and lower case are the same")
    return MappingProxyType(dict(headers))


def secrets_in(headers: Mapping[str, str]) -> Iterator[str]:
    """Their values, and the words of these: a server repeats the token of ``Bearer <token>`` without the rest."""
    for value in headers.values():
        yield value
        yield from value.split()


class HeadersTransport:
    """A transport of lm15 that sends further headers, in place of lm15's own of the same name."""

    def __init__(self, inner: Any, headers: Mapping[str, str]) -> None:
        self._inner = inner
        self._headers = headers
        self._names = {name.lower() for name in headers}

    def stream(self, request: Any) -> AbstractAsyncContextManager[Any]:
        """As that of lm15's transports."""
        own = [(name, value) for name, value in request.headers if name.lower() not in self._names]
        opening: AbstractAsyncContextManager[Any] = self._inner.stream(
            replace(request, headers=[*own, *self._headers.items()])
        )
        return opening
