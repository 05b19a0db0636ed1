"""What a provider's error means: one reading of status, code and text for every client, server and way of telling.

`judge` reads errors that travel in a 200, `judged_lm15` those with a status, `client_errors` whatever a client raises.
All of them become an error of lm15. The tables are in `docs/reference/answers.md`, which is generated from them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from dspy import lm15

from promptside.checks import wait_asked_for
from promptside.pools.clients.unicode import repaired

__all__ = ["ProviderSays", "read_error"]

Kind: TypeAlias = type[lm15.ProviderError]

STATUSES: Final[Mapping[int, Kind]] = {
    401: lm15.AuthError,
    402: lm15.BillingError,
    403: lm15.AuthError,
    408: lm15.TimeoutError,
    429: lm15.RateLimitError,
    504: lm15.TimeoutError,
}
"""What a status means; any other of 500 to 599 is a `ServerError`, any other of 400 to 499 an `InvalidRequestError`."""

VAGUE: Final = frozenset({400, 500, 502, 503})
"""Statuses that servers and gateways send for many reasons: a code that says more comes before them."""

CODES: Final[Mapping[Kind, tuple[str, ...]]] = {
    lm15.ContextLengthError: (
        "context_exceeded",
        "context_length_exceeded",
        "context_window_exceeded",
        "exceed_context_size",
        "model_context_window_exceeded",
        "prompt_too_long",
        "request_too_large",
        "string_above_max_length",
        "tokens_limit_reached",
    ),
    lm15.BillingError: (
        "1008",  # MiniMax
        "1113",  # Z.AI
        "arrearage",
        "billing",
        "billing_hard_limit_reached",
        "billing_not_active",
        "budget_exceeded",
        "exceeded_current_quota",
        "failed_precondition",
        "insufficient_balance",
        "insufficient_credits",
        "insufficient_quota",
        "organization_restricted",
    ),
    lm15.UnsupportedModelError: (
        "deployment_not_found",
        "model_decommissioned",
        "model_deprecated",
        "model_not_available",
        "model_not_found",
        "model_not_supported",
        "model_terms_required",
        "operation_not_supported",
        "unsupported_model",
    ),
}
"""Codes and types that mean the same with whatever status. Here and below they are spelt with `_` and without
`_error`."""

WORDS: Final[Mapping[int, tuple[str, ...]]] = {
    400: (
        "1026",  # MiniMax, as the next
        "1027",
        "bad_request",
        "content_filter",
        "content_policy_violation",
        "data_inspection_failed",
        "invalid_argument",
        "invalid_prompt",
        "invalid_request",
        "sensitive_words_detected",
        "unprocessable_entity",
    ),
    401: (
        "1004",  # MiniMax
        "api_key_invalid",
        "authentication",
        "invalid_api_key",
        "invalid_authentication",
        "unauthenticated",
        "unauthorized",
    ),
    402: ("payment_required",),
    403: ("forbidden", "permission", "permission_denied"),
    404: ("not_found", "resource_not_found"),
    408: ("request_timeout",),
    409: ("aborted", "conflict"),
    429: (
        "1002",  # MiniMax
        "1302",  # Z.AI
        "no_capacity",
        "rate_limit",
        "rate_limit_exceeded",
        "rate_limited",
        "resource_exhausted",
        "throttling",
        "too_many_requests",
    ),
    499: ("cancelled", "client_closed_request"),
    500: ("api", "internal", "internal_server", "server"),
    502: ("bad_gateway",),
    503: ("engine_overloaded", "overloaded", "service_unavailable", "unavailable"),
    504: ("deadline_exceeded", "gateway_timeout", "timeout"),
}
"""Codes and types that stand for a status."""

RATES: Final = r"rate.?limit|too many requests|throttl"
PERIODS: Final = r"\bquota\b|\b[rt]p[dhm]\b|\bper (day|hour|min|minute|second)\b|tokens processed"

OVERFLOW: Final = re.compile(
    r"context[ _]?(length|window|limit|size)|maximum (context|model|prompt|input) length|max_model_len|\bn_ctx\b"
    r"|(prompt|input|messages?|text|history) (is|are) too (long|large)|too long for (the )?(requested )?model"
    r"|too large (for model|to process)|prompt exceeds max|range of input length|total length of all messages"
    r"|reduce the length of|exceeded model token limit"
    r"|(?<!tokens you requested )exceed\w* (the )?(configured |model )?(token )?limit of \d+"
    r"|(input|prompt) (token count|tokens?|length)\b.{0,40}\bexceed|total tokens limit|too many (input )?tokens"
    r"|token count is \d+ but (the )?model|prompt_?tokens?\W{0,2}\(?\d+\)? must be less than"
    r"|max tokens of \d+ exceeded"
    r"|prompt (length \(?\d+\)? is greater|tokens too long)|exceed max message tokens|default_max_tokens \(-\d"
    r"|max_?tokens must be at least 1, got -\d"
    r"|inputs?`? (tokens \+|must have less than)|(body|request|prompt) too large for .{0,60}(model|token)",
    re.IGNORECASE,
)
"""How servers say that a prompt is too long, where no code does; not so where a text speaks of a rate."""

ALWAYS_TOO_LARGE: Final = re.compile(r"request too large for .*limit:? [\d,]+,? *requested:? [\d,]+", re.IGNORECASE)
"""A prompt above what is allowed in a whole minute: no waiting helps, a shorter one does."""

TEXTS: Final[tuple[tuple[Kind, frozenset[int | None], tuple[str, ...]], ...]] = (
    (
        lm15.InvalidRequestError,
        frozenset({None, 403, 500}),
        (
            r"\bviolat\w+ .{0,40}(usage|content|safety) (guideline|polic)",
            r"(input|prompt|content|messages?|request) (was|were|is|has been) flagged",
            r"sensitive (words?|content)|new_sensitive",
        ),
    ),
    (
        lm15.BillingError,
        frozenset({None, 400, 403, 429, 500}),
        (
            r"insufficient(_| )(account )?(balance|credit|fund|quota)",
            r"(credit|account) balance is too low",
            r"(out of|no|requires more|not enough) credits(?! were)",
            r"used all (available|your) .{0,20}credits",
            r"spend(ing)? limit",
            r"credits?( have been|s are)? (exhausted|depleted)",
            r"payment required",
            r"billing (hard limit|is not active|is disabled)",
            r"account is (not active|in arrears)",
            r"organization (has been|is) (disabled|restricted|suspended)",
        ),
    ),
    (lm15.BillingError, frozenset({None, 400, 403}), (r"(reached|exceeded) .{0,40}(usage|budget) limit",)),
    (
        lm15.AuthError,
        frozenset({None, 400, 500}),
        (
            r"api.?key (is |was )?(not valid|invalid|expired|missing|incorrect)",
            r"(invalid|incorrect|expired) api.?key",
            r"\bunauthorized\b",
            r"authentication (failed|required)",
            r"invalid (credential|authentication)",
        ),
    ),
    (
        lm15.UnsupportedModelError,
        frozenset({None, 400, 404}),
        (
            r"\bmodels?\b[^,;]{0,80}\b(not found|not exist|no longer|decommissioned|retired|shut ?down|not deployed)",
            r"\bmodels?\b[^,;]{0,80}(n't exist|not available|unavailable in|been (removed|deprecated|discontinued))",
            r"\b(no such|unknown|unsupported|invalid) model\b",
            r"not a valid model",
            r"no endpoints found",
            r"model [`'\"]?[\w./:-]+[`'\"]? is not supported",
            r"(requested|specified|provided|this|the) model is not supported",
            r"model (identifier|id)\b.{0,120}(is invalid|not supported|n.t supported)",
            r"must be verified to \w+ this model",
        ),
    ),
    (lm15.RateLimitError, frozenset({None, 400, 500, 503}), (RATES,)),
    (lm15.RateLimitError, frozenset({None}), (PERIODS,)),
    (lm15.TimeoutError, frozenset({None}), (r"timed?.?out", r"deadline exceeded")),
    (
        lm15.ServerError,
        frozenset({None}),
        (
            r"overload",
            r"at capacity",
            r"(temporarily|currently|service) unavailable",
            r"(try again|come back) later",
            r"internal (server )?error",
            r"bad gateway",
            r"upstream",
            r"no healthy",
        ),
    ),
    (lm15.InvalidRequestError, frozenset({None}), (r"content (filter|policy|management)", r"flagged", r"moderation")),
)
"""What texts say where neither a code nor the status does, with the statuses beside which they are read; None stands
for an error without one."""

_TEXTS: Final = [(re.compile("|".join(texts), re.IGNORECASE), kind, statuses) for kind, statuses, texts in TEXTS]
_RATE: Final = re.compile(f"{RATES}|{PERIODS}", re.IGNORECASE)
_EXACT: Final = {code: kind for kind, codes in CODES.items() for code in codes}
_STATUS_OF: Final = {word: status for status, words in WORDS.items() for word in words}
_NUMBER: Final = re.compile(r"\W*(?:(?:error|http|status)\W*(?:code\W*)?)?([45]\d\d)\b", re.IGNORECASE)
_HUMP: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")
_SUFFIX: Final = re.compile(r"_(error|exception)$")

MAX_TEXT: Final = 10_000
"""Characters of an error's text that are read and told. Some servers answer with a page, or with the whole prompt."""

_NESTED: Final = ("errors", "error", "response", "base_resp", "detail", "details", "metadata", "raw")
_MESSAGES: Final = ("message", "msg", "status_msg", "detail", "error_message", "error_description", "title")
_CODES: Final = ("code", "reason", "type", "status", "status_code")
_DEEPEST: Final = 5


@dataclass(frozen=True, slots=True)
class ProviderSays:
    """An error as the provider tells it.

    Attributes:
        message: Its text; empty where there is none.
        codes: Whatever names it, in lower case and spelt with `_`: its code, type and status.
        number: An HTTP status among these; None if there is none.
        retry_after: Seconds after which the body asks to come back; None if it does not.
    """

    message: str
    codes: tuple[str, ...] = ()
    number: int | None = None
    retry_after: float | None = None

    def kind(self, status: int | None = None) -> tuple[Kind, int | None]:
        """The type of the error, and the status that goes with it.

        Args:
            status: That of the response, >= 400; None for an error that came as a success.
        """
        if status is None or status in VAGUE:
            told = [self.number, *(_STATUS_OF.get(code) for code in self.codes)]
            known = [number for number in told if number is not None]
            status = next((number for number in known if number not in VAGUE), status or next(iter(known), None))
        for code in self.codes:
            if code in _EXACT:
                return _EXACT[code], status
        text = self.message
        too_long = status in (None, 400, 413, 422, 500) and OVERFLOW.search(text) and not _RATE.search(text)
        if too_long or ALWAYS_TOO_LARGE.search(text):
            return lm15.ContextLengthError, status
        for pattern, kind, statuses in _TEXTS:
            if status in statuses and pattern.search(text):
                if kind is lm15.InvalidRequestError and status is not None:
                    return kind, 400  # which that status hid
                return kind, 504 if status is None and kind is lm15.TimeoutError else status
        if status is None:
            return lm15.ProviderError, None
        return STATUSES.get(status) or (lm15.ServerError if status >= 500 else lm15.InvalidRequestError), status

    def error(self, status: int | None = None, *, provider: str | None = None) -> lm15.ProviderError:
        """The error that it means; `status` as for `kind`."""
        kind, status = self.kind(status)
        code = next(iter(self.codes), None)
        message = self.message or code or ("the provider failed" if status is None else f"HTTP {status}")
        return kind(message, provider=provider, provider_code=code, status=status, retry_after=self.retry_after)


def read_error(body: object) -> ProviderSays:
    """What an error's body says.

    Args:
        body: A decoded JSON body of whatever shape, or a text, which may be such a body.
    """
    messages, codes, later = list[str](), list[object](), None
    for part in _parts(body):
        if isinstance(part, str):
            messages.append(part)
            continue
        messages += (text for name in _MESSAGES if isinstance(text := part.get(name), str) and text)
        if isinstance(part.get("message"), Mapping | list):
            messages.append(json.dumps(part["message"]))
        codes += (code for name in _CODES if isinstance(code := part.get(name), str | int) and code)
        later = part.get("retryDelay", later)
    named = dict.fromkeys(_SUFFIX.sub("", re.sub(r"\W+", "_", _HUMP.sub("_", str(code))).lower()) for code in codes)
    text = repaired("; ".join(dict.fromkeys(messages)))
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT // 2]}…{text[-MAX_TEXT // 2 :]}"
    numbers = [int(code) for code in named if re.fullmatch(r"[45]\d\d", code)]
    numbers += (int(number[1]) for number in (_NUMBER.match(text),) if number is not None)
    return ProviderSays(text, tuple(named), next(iter(numbers), None), _seconds(later))


def _parts(body: object, depth: int = 0) -> Iterator[str | Mapping[str, Any]]:
    """The error and what is nested in it; what is further in comes first, because it says more."""
    if isinstance(body, str) and body.strip():
        try:
            nested = json.loads(body) if body.lstrip()[0] in "{[" else None
        except (ValueError, RecursionError):  # it is no JSON, or nested too deeply
            nested = None
        yield from _parts(nested, depth + 1) if isinstance(nested, Mapping | list) else (body.strip(),)
    elif isinstance(body, list) and depth < _DEEPEST:
        for item in body:
            yield from _parts(item, depth + 1)
    elif isinstance(body, Mapping):
        for name in _NESTED if depth < _DEEPEST else ():
            yield from _parts(body.get(name), depth + 1)
        yield body


def _seconds(delay: object) -> float | None:
    """The seconds of a google.rpc.RetryInfo, such as "34.07s"."""
    try:
        return None if delay is None else wait_asked_for(float(str(delay).removesuffix("s")))
    except ValueError:
        return None
