"""Writes docs/reference/ from the code; `make reference` calls it, and a test compares."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dspy import lm15

from promptside.events.catalogue import CATALOGUE, FIELDS, VERSION
from promptside.pools.clients.client_errors import wrap_error
from promptside.pools.clients.judge import ANSWERS, FINISH_REASONS
from promptside.pools.clients.provider_errors import CODES, STATUSES, TEXTS, WORDS
from promptside.pools.lm import classify


def events() -> Iterator[str]:
    yield "# Events"
    yield ""
    yield f"Version {VERSION} of the catalogue, generated from `promptside/events/catalogue.py` by `make reference`."
    yield ""
    yield "Every event also has `id`, `seq`, `source` and `time`. Calls have `call_id`, `parent_id`, `trace_id` and"
    yield "`span_id`, which make them one tree. Events of an actor have its `incarnation`."
    yield ""
    yield "`X.stopped` means that X **ended well**: an operation returned, an actor or a sandbox ended in order. A"
    yield "failed or cancelled operation is `X.failed`."
    yield ""
    yield "| type | when | data |"
    yield "|---|---|---|"
    for name, type in CATALOGUE.items():
        if type.fields is not None:
            fields = ", ".join(f"`{field}`" for field in type.fields.split())
            yield f"| `{name}` | {type.description} | {fields} |"
    yield ""
    yield "| field | what it is |"
    yield "|---|---|"
    for field, meaning in FIELDS.items():
        yield f"| `{field}` | {meaning} |"
    yield ""
    yield "A field is missing where it is not known. If a redaction raised, `content_dropped` is its error's type."
    yield ""
    yield "Reserved, and not published yet:"
    yield ", ".join(f"`{name}`" for name, type in CATALOGUE.items() if type.fields is None) + "."


def answers() -> Iterator[str]:
    yield from ANSWERS_PAGE.format(answers=listed(ANSWERS)).splitlines()
    yield ""
    yield "## The classes"
    yield ""
    yield "| `meaning` | the circuit counts it | the same endpoint again | another endpoint | in a batch |"
    yield "|---|---|---|---|---|"
    found = {means for means in vars(classify).values() if isinstance(means, classify.ErrorClass)}
    for means in sorted(found, key=lambda each: (each.name, each.of_request)):
        again = "no" if not means.retry else "once" if means.of_request else "yes"
        batch = "its answer" if means.of_request else "waits" if means.retry or means.breaker == "failure" else "aborts"
        counted, elsewhere = ("yes" if true else "no" for true in (means.breaker == "failure", means.failover))
        yield f"| `{means.name}` | {counted} | {again} | {elsewhere} | {batch} |"
    yield ""
    yield "A `limited` one counts as no attempt: the endpoint's limiter says when the next one is made."
    yield ""
    yield "## The errors"
    yield ""
    yield "| error | `meaning` |"
    yield "|---|---|"
    for kind, means in classify.TABLE:
        yield f"| `{kind.__name__}` | `{means.name}` |"
    for status, means in classify.STATUSES.items():
        yield f"| `LMInvalidRequestError` with status {status} | `{means.name}` |"
    yield f"| `LMInvalidRequestError` with any other status of 400 to 499 | `{classify.ELSEWHERE.name}` |"
    yield "| `LMTimeoutError` with a status | `failure` |"
    yield f"| `LMProviderError` of an answer without a choice | `{classify.EMPTY.name}` |"
    yield f"| any other | `{classify.UNKNOWN.name}` |"
    yield ""
    yield "## Statuses, codes and texts"
    yield ""
    yield "| status | error | codes and types that stand for it |"
    yield "|---|---|---|"
    for status in sorted({*STATUSES, *WORDS}):
        error = STATUSES.get(status) or (lm15.ServerError if status >= 500 else lm15.InvalidRequestError)
        yield f"| {status} | `{public(error)}` | {listed(WORDS.get(status, ()))} |"
    yield ""
    yield "Codes and types that mean the same with whatever status:"
    yield ""
    for kind, codes in CODES.items():
        yield f"- `{public(kind)}`: {listed(codes)}"
    yield ""
    yield "Texts, as regular expressions, where there is no such code; beside the statuses named, or without any (-):"
    yield ""
    for kind, statuses, texts in TEXTS:
        beside = ", ".join("-" if status is None else str(status) for status in sorted(statuses, key=lambda s: s or 0))
        yield f"- `{public(kind)}` ({beside}): {listed(texts)}"
    yield ""
    yield "A prompt that is too long is said in some thirty ways; not in a text that also speaks of a rate."
    yield ""
    yield "## Finish reasons"
    yield ""
    yield "Any other one is a failure: the answer broke off."
    yield ""
    for meaning, reasons in FINISH_REASONS.items():
        yield f"- {meaning}: {listed(reasons)}"


ANSWERS_PAGE = """# What each answer of a provider means

Generated from `promptside/pools/clients/provider_errors.py`, `promptside/pools/clients/judge.py` and
`promptside/pools/lm/classify.py` by `make reference`.

Each answer is judged once, whichever client sent the request and whether it is whole, streamed or an embedding:

| the provider sends | the call gets |
|---|---|
| an answer with a finish reason below | the answer, an empty one too: DSPy's adapters deal with it |
| a wrong `usage` | the answer; what it cost is unknown |
| an error in a 200, also as the first event of a stream, or a JSON body in place of one | what that status, code or \
text means below |
| another finish reason | `LMProviderError`; the answer is in no cache |
| a finish reason or a content that is no text, nor a list of parts | `LMProviderError`; the answer is in no cache |
| JSON without one of {answers}, or with no list in it | `LMProviderError` |
| what is no JSON | `LMProviderError` |
| no choice, and the results of a filter | `LMInvalidRequestError`: the prompt's, sent once |
| no choice | `LMProviderError`: sent once more at most, and no failure of the endpoint |
| a redirection (HTTP 3xx) | `LMConfigurationError` with the address, which belongs in `api_base=` |
| vectors that are not as many as the texts, of one length, of finite numbers | `LMProviderError` |

A prompt that is too long is `ContextWindowExceededError` from every kind of server, so that `dspy.ReAct` drops its
oldest step. Where endpoints state their `context_window`, it goes to those with a larger one first.

What an error means is in each `lm.attempt.failed` event, as `meaning`. In an evaluation or an optimizer, a batch, some
errors are the answer to an example, some wait for the end of an outage, and some end the run."""


def listed(words: Iterable[str]) -> str:
    """Words as code, also those with a backtick in them."""
    return ", ".join(f"`` {word} ``" if "`" in word else f"`{word}`" for word in words)


def public(kind: type[Exception]) -> str:
    """The name of DSPy's error for one of lm15's."""
    return type(wrap_error(kind("no"), model="")).__name__


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in {"events": events, "answers": answers}.items():
        (folder / f"{name}.md").write_text("\n".join(page()) + "\n")
