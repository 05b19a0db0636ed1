"""One call of a pool's LM: DSPy's `prepare` and `execute`, for an engine that takes all that a plain `dspy.LM` takes.

Called by the LM's own methods; calls the engine pair. Of an engine that is not its own, DSPy takes only what lm15 has a
form for, knows no price, and refuses settings of the connection. Everything else, as the cache, streams and errors, is
DSPy's: this module alone touches its `dspy.clients.execution`, which a contract test holds in place.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, closing, contextmanager
from dataclasses import fields
from typing import Any, Final

import dspy
from dspy.clients import execution as dspy_execution
from dspy.clients.backend_selection import CLIENT_KEYS
from dspy.clients.base_lm import LM_CLASS_STATE_KEY
from dspy.clients.call_result import CallResult, combine, usage_dict
from dspy.clients.errors import error_boundary
from dspy.clients.execution import PreparedCall
from dspy.lm15 import LM15Error, Message, Request, Response
from dspy.utils.exceptions import LMUnsupportedFeatureError

from promptside.checks import check, check_seconds
from promptside.pools.clients.endpoint import Dialect
from promptside.pools.clients.headers import checked_headers
from promptside.pools.clients.requests import Origin, PoolRequest, PoolResponse, PoolStreamEnd

__all__ = ["LM_CLASS_STATE_KEY", "aexecute", "execute", "prepare", "take_options"]

PER_CALL: Final = frozenset({"headers", "extra_headers", "extra_query", "timeout"})
"""Settings of the connection that one call, or one LM of a pool, may have of its own."""

REFUSED: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        CLIENT_KEYS - PER_CALL, "a pool's connections belong to its endpoints: give it to Endpoint({}=...)"
    ),
    "base_url": "a pool's connections belong to its endpoints: give Endpoint(api_base=...)",
    **dict.fromkeys(
        ("num_retries", "max_retries"), "the pool retries; set LMPool(retry=RetryConfig(attempts=...)) instead"
    ),
    **dict.fromkeys(
        ("engine", "async_engine"), "the pool is the engine: give yours to an endpoint, Endpoint(engine=...)"
    ),
    **dict.fromkeys(
        ("client", "http_client", "shared_session"),
        "the pool opens its own HTTP clients, on its own event loop: Endpoint(engine=...) takes a client of yours",
    ),
    **dict.fromkeys(
        ("proxy", "proxies"), "the environment says which proxy to use: set HTTPS_PROXY, and NO_PROXY for exceptions"
    ),
}
"""The remedy for each setting that belongs elsewhere."""


def take_options(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Take the settings of the connection out of `settings`.

    Args:
        settings: Keywords of an LM or of a call.
        where: For the error, such as ``"pool.lm"``.

    Raises:
        ValueError: One of them has its place elsewhere, or is not valid.
    """
    take_refused(settings, where)
    given = sorted(name for name in settings.keys() & PER_CALL if settings[name] is not None)
    options = {name: settings.pop(name) for name in given}
    for name, value in options.items():
        if name == "timeout":
            check_seconds(where, name, value, finite=True)
            continue
        check(where, name, type(value).__name__, isinstance(value, Mapping), "give a dict of texts")
        if name != "extra_query":
            checked_headers(where, value)
    return options


def take_refused(settings: dict[str, Any], where: str) -> None:
    """Take what has its place elsewhere out of `settings`; raises `ValueError` unless it is None there."""
    for name in sorted(settings.keys() & REFUSED.keys()):
        if settings.pop(name) is not None:
            raise ValueError(f"{where}: {name}: {REFUSED[name].format(name)}")


def prepare(
    lm: dspy.LM, prompt: Any, messages: Any, kwargs: dict[str, Any], *, asynchronous: bool = False, direct: bool = False
) -> PreparedCall:
    """As DSPy's `prepare`, with the settings of the connection that the call has."""
    explicit = isinstance(prompt, Request) or kwargs.get("request") is not None
    kwargs = dict(kwargs)
    options = {} if explicit else take_options(kwargs, "LM call")
    call = dspy_execution.prepare(lm, prompt, messages, kwargs, asynchronous=asynchronous, direct=direct)
    call.kwargs.update(options)
    call.legacy.update(options)
    return call


def execute(lm: dspy.LM, call: PreparedCall) -> CallResult:
    """As DSPy's `execute`; blocks the calling thread."""
    if not call.managed:
        return dspy_execution.execute(lm, call)
    if found := dspy_execution._cached(lm, call, False):
        return found
    with _Running(lm, call) as running:
        for _ in range(running.repeats):
            attempt = _Attempt(lm.engine)
            with running.attempting():
                dspy_execution._attempt(lm, call, attempt, running.request, None, attempt.state, running.results)
                running.accept(attempt)
        result = running.result()
        dspy_execution._store(lm, call, result, False)
    return result


async def aexecute(lm: dspy.LM, call: PreparedCall) -> CallResult:
    """As DSPy's `aexecute`, on any event loop."""
    if not call.managed:
        return await dspy_execution.aexecute(lm, call)
    if call.cache and (found := await asyncio.to_thread(dspy_execution._cached, lm, call, True)):
        return found
    with _Running(lm, call) as running:
        for _ in range(running.repeats):
            attempt = _AsyncAttempt(lm._async_engine_spec)
            with running.attempting():
                await dspy_execution._aattempt(lm, call, attempt, running.request, None, attempt.state, running.results)
                running.accept(attempt)
        result = running.result()
        if call.cache:
            await asyncio.to_thread(dspy_execution._store, lm, call, result, True)
    return result


class _Running:
    """A call under way: its request, and what was answered so far. A context: a call that fails counts its usage."""

    def __init__(self, lm: dspy.LM, call: PreparedCall) -> None:
        self.results: list[CallResult] = []
        self._lm = lm
        self._call = call
        with error_boundary(lm.model):
            self.request = _read(lm, call)
        self.repeats = 1 if self.request.candidates > 1 else call.n

    def __enter__(self) -> _Running:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            dspy_execution._hint_responses_api(self._lm, error)
            dspy_execution._account_failed_call(self._lm, self.results, error)

    @contextmanager
    def attempting(self) -> Iterator[None]:
        """Around one answer: its errors are DSPy's; what comes whole is not streamed."""
        with error_boundary(self._lm.model, unexpected=True):
            if self.request.streams or dspy.settings.send_stream is None:
                yield
            else:
                with dspy.context(send_stream=None):
                    yield

    def accept(self, attempt: _Attempt) -> None:
        """Take the answer, as a `dspy.LM` of its provider has it."""
        response, origin = attempt.state.response, attempt.origin or Origin()
        if attempt.raw is not None and self._call.request is None:
            self.results[-1] = CallResult.legacy(self._lm, attempt.raw, kwargs=self._call.legacy)
            return
        plain: Any = response.plain() if isinstance(response, PoolResponse) else response
        result: Any = self.results[-1]
        result.responses, result.raw = (plain,), plain
        result.usage = usage_dict(plain, origin.provider)
        result.cost, result.cost_details = origin.cost, dict(origin.cost_details)

    def result(self) -> CallResult:
        """All answers together."""
        results = self.results
        combined: CallResult = results[0] if len(results) == 1 else combine(results, model_type=self._lm.model_type)
        return combined


class _Attempt:
    """Asks the engine for one answer, as DSPy asks it, and keeps what DSPy has no place for."""

    def __init__(self, engine: Any) -> None:
        self.state = dspy_execution._Attempt()
        self.origin: Origin | None = None
        self.raw: Any = None
        self._engine = engine

    def complete(self, request: Request) -> Response:
        answer: Response = self._engine.complete(request)
        return self._noted(answer)

    def stream(self, request: Request) -> Any:
        with closing(self._engine.stream(request)) as events:
            for event in events:
                self._note_end(event)
                yield event

    def _noted(self, answer: Response) -> Response:
        self.origin, self.raw = getattr(answer, "origin", None), getattr(answer, "raw", None)
        return answer

    def _note_end(self, event: Any) -> None:
        if isinstance(event, PoolStreamEnd):
            self.origin = event.origin


class _AsyncAttempt(_Attempt):
    """The same for the asynchronous engine."""

    async def complete(self, request: Request) -> Response:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._noted(await self._engine.complete(request))

    async def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        async with aclosing(self._engine.stream(request)) as events:
            async for event in events:
                self._note_end(event)
                yield event


def _read(lm: dspy.LM, call: PreparedCall) -> PoolRequest:
    """The request: lm15's, where it has a form for the call and its first endpoint speaks it."""
    dialect: Dialect = lm.engine.dialect  # pyright: ignore[reportAttributeAccessIssue]
    settings = {**lm.kwargs, **call.legacy}
    options = {name: value for name in PER_CALL if (value := settings.get(name)) is not None}
    request, native, body = call.request, dialect.native, None
    if request is None:
        body = call.legacy
        try:
            request = dspy_execution._canonical(call, compat=dialect.compat)
        except (LM15Error, TypeError, ValueError) as error:
            if not dialect.has_litellm:
                raise
            if body.get("prompt_cache") is not None:
                raise LMUnsupportedFeatureError(
                    f"prompt_cache= is sent by lm15 alone, which has no form for this call: {error}", model=lm.model
                ) from error
            request, native = _outline(call), False
    return PoolRequest(
        **{each.name: getattr(request, each.name) for each in fields(Request)},
        model_type=lm.model_type,  # pyright: ignore[reportArgumentType]
        options=options,
        candidates=1 if native or body is None else call.n,
        native=native,
        body=body,
    )


def _outline(call: PreparedCall) -> Request:
    """What can be shown of a call that lm15 has no form for: its texts, and the kinds of other content."""
    said = [(message.get("role"), _text(message.get("content"))) for message in call.legacy["messages"]]
    system = "\n".join(text for role, text in said if role in ("system", "developer")) or None
    others = [
        Message.assistant(text) if role == "assistant" else Message.user(text)
        for role, text in said
        if role not in ("system", "developer")
    ]
    return Request(model=call.legacy["model"], messages=tuple(others) or (Message.user("-"),), system=system)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    blocks = [block if isinstance(block, Mapping) else {} for block in content or ()]
    return "\n".join(str(block.get("text") or f"<{block.get('type')}>") for block in blocks)
