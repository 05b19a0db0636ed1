"""Errors of clients, as the pool's callers get them: lm15's first, by `as_lm15`, and DSPy's by `wrap_error`.

Nothing here depends on how a client names its errors, because that changes with its versions. litellm takes for the
caller's mistake, or the server's, or a broken connection, what is neither, and its errors have no headers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from dspy import lm15
from dspy._vendor.lm15.providers.base import _attach_error_metadata
from dspy.clients import errors
from dspy.utils.exceptions import LMError

from promptside.checks import wait_asked_for
from promptside.pools.clients.judge import fault_of
from promptside.pools.clients.provider_errors import read_error

__all__ = ["as_lm15", "lm15_errors", "raised_from", "redirection", "refusal_behind", "with_headers", "wrap_error"]

E = TypeVar("E", bound=lm15.ProviderError)

_MORE_EXACT: Final = (lm15.AuthError, lm15.BillingError)
"""What a client may know of a refusal whose status says less: no credit with a 429, a wrong key with a 400. Not so of
one whose status hid what its text says.
"""

_UNREAD: Final = "Error in response object"
"""What litellm says, with a status of its own, of an error in a 200 that is a text."""

_TIMEOUTS: Final = {"TimeoutError", "TimeoutException"}
_DISCONNECTIONS: Final = {"ConnectionError", "ClientError", "TransportError", "gaierror"}
"""Bases of the errors of Python, aiohttp, httpx and openai's copy of httpx, by name: it is open which are installed."""


def wrap_error(error: Exception, *, model: str) -> Exception:
    """DSPy's error for whatever a client has raised; `LMUnexpectedError` for what says nothing of a provider."""
    foreign = not isinstance(error, lm15.LM15Error | LMError | Warning | ImportError)
    public: Exception = errors.wrap_error(as_lm15(error) if foreign else error, model=model)
    if isinstance(public, LMError):
        public.retry_after = wait_asked_for(public.retry_after)
    return public


@contextmanager
def lm15_errors() -> Iterator[None]:
    """Raise errors of a client as `as_lm15` types them."""
    try:
        yield
    except Exception as error:
        typed = as_lm15(error)
        if typed is error:
            raise
        raise typed from error


def as_lm15(error: Exception) -> Any:
    """The error of lm15 that goes with what happened, with the provider's own Retry-After.

    It is judged by what it was raised from: the provider's response or words, or the error of the connection. The type
    that a client chose decides only where there is neither, or where it is more exact.

    Returns:
        The error itself where it says all that is known.
    """
    typed = error if isinstance(error, lm15.LM15Error) else None
    if typed is not None and not isinstance(typed, (lm15.ProviderError, lm15.TransportError)):
        return error  # of a request or an answer that cannot be represented
    behind = list(raised_from(error if typed is None else error.__cause__ or error.__context__))
    if (judged := next((each for each in behind if isinstance(each, lm15.ProviderError)), None)) is not None:
        return judged  # by `judge`, within a client that has wrapped it
    message, provider = getattr(error, "message", str(error)), getattr(error, "provider", None)
    response = refusal_behind(error)
    if response is None and (kind := _kind_of_failure(behind)) is not None:
        made = kind(message, provider=provider, retry_after=wait_asked_for(getattr(error, "retry_after", None)))
        return error if type(error) is kind else made
    if response is not None and response.status_code < 400:
        return redirection(response.status_code, response.headers.get("location"))
    if response is not None:
        made = read_error(_read(response) or message).error(response.status_code, provider=provider)
        with_headers(made, response.headers.items())
    elif (said := _told(error, behind)) is not None:
        made = said
    else:
        return error
    if response is None and _UNREAD in message:
        return lm15.ProviderError(message, provider=provider)
    read_anew = response is not None and made.status != response.status_code
    if isinstance(typed, type(made)) or (isinstance(typed, _MORE_EXACT) and not read_anew):
        typed.retry_after = made.retry_after if typed.retry_after is None else typed.retry_after
        typed.rate_limit_headers = made.rate_limit_headers
        return typed
    return made


def redirection(status: int, location: str | None) -> lm15.ConfigurationError:
    """The error of a redirection, which is not followed: the other address would get the credentials."""
    text = f"the provider's address answers with a redirection (HTTP {status}) to {location}"
    return lm15.ConfigurationError(f"{text}; give the endpoint that address with api_base=", status=status)


def with_headers(error: E, headers: Iterable[tuple[str, str]]) -> E:
    """The error, with what a response's headers say: when to come back, which is believed before its body, and more."""
    later, error.retry_after = error.retry_after, None
    _attach_error_metadata(error, list(headers))
    error.retry_after = wait_asked_for(error.retry_after)
    if error.retry_after is None:
        error.retry_after = wait_asked_for(later)
    return error


def raised_from(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it was raised from, each once."""
    seen: list[BaseException] = []  # causes may go in a circle
    while error is not None and not any(error is each for each in seen):
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def refusal_behind(error: BaseException | None) -> Any:
    """The provider's response that an error was raised from, the innermost; litellm's copies have no headers."""
    for each in reversed(list(raised_from(error))):
        response: Any = getattr(each, "response", None)
        if getattr(response, "headers", None) and getattr(response, "status_code", 0) >= 300:
            return response
    return None


def _told(error: Exception, behind: list[BaseException]) -> lm15.ProviderError | None:
    """What the provider said in a stream or with a status that a client has kept; None if it is not known."""
    for each in reversed(behind):
        if isinstance(body := getattr(each, "body", None), dict | str) and body:
            return read_error(body).error()
        if (told := _fault_in(getattr(each, "message", None))) is not None:
            return told
    statuses = (getattr(each, name, None) for each in (error, *behind) for name in ("status", "status_code"))
    status = next((each for each in statuses if isinstance(each, int) and 400 <= each <= 599), None)
    return None if status is None else read_error(getattr(error, "message", str(error))).error(status)


def _fault_in(text: object) -> lm15.ProviderError | None:
    """The error that a body says which a client has put into the text of its own error."""
    try:
        return fault_of(json.loads(text)) if isinstance(text, str) and text[:1] == "{" else None
    except (ValueError, RecursionError):
        return None


def _kind_of_failure(behind: list[BaseException]) -> Any:
    """What it is where the provider refused nothing; None where that is not known."""
    bases = {base.__name__ for error in behind for base in type(error).__mro__}
    if bases & _TIMEOUTS:
        return lm15.TimeoutError
    if bases & _DISCONNECTIONS:
        return lm15.TransportError
    if any(isinstance(error, json.JSONDecodeError | StopAsyncIteration) or _is_too_deep(error) for error in behind):
        return lm15.ProviderError  # the answer, or an event of it, is none
    return None


def _is_too_deep(error: BaseException) -> bool:
    """Whether JSON was nested too deeply to be read."""
    return isinstance(error, RecursionError) and "decoding a JSON" in str(error)


def _read(response: Any) -> str:
    """Its body; empty if it was not read."""
    try:
        return bytes(response.content).decode(errors="replace")
    except (AttributeError, RuntimeError):  # httpx.ResponseNotRead is one
        return ""
