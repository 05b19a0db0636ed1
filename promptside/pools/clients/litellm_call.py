"""`CallEngine`: DSPy's litellm engine, that sends a pool's call as DSPy itself sends it for a `dspy.LM`.

Used by `LiteLLMClient`. DSPy's engine sends lm15's form of a request, which has no place for a file's name, citations,
hosted tools, `prediction=` and other inputs that litellm takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import dspy
from dspy import lm15
from dspy.clients import lm as dspy_lm
from dspy.clients.engines.litellm_engine import AsyncLiteLLMEngine
from dspy.clients.engines.litellm_errors import litellm_errors
from dspy.clients.legacy_outputs import plain
from dspy.lm15 import Request, Response, UnsupportedFeatureError

from promptside.pools.clients.client_errors import raised_from
from promptside.pools.clients.requests import PoolRequest, with_raw

__all__ = ["CallEngine", "setting_errors"]

SEND: Final = {
    "chat": dspy_lm.alitellm_completion,
    "text": dspy_lm.alitellm_text_completion,
    "responses": dspy_lm.alitellm_responses_completion,
}
"""DSPy's own functions by the API, which make the arguments of litellm's."""

MERGED: Final = ("headers", "extra_headers", "extra_query")
"""Settings of a connection to which those of a call are added; others replace them."""


class CallEngine(AsyncLiteLLMEngine):
    """One attempt, with one request to the provider: litellm's own retries are off."""

    async def complete(self, request: Request) -> Response:
        """One answer, with litellm's own form of it, where the call has a form that DSPy sends."""
        if not isinstance(request, PoolRequest) or request.body is None:
            answer: Response = await super().complete(request)
            return answer
        arguments = self._call(request)
        arguments["max_retries"] = 0
        # DSPy's function would make a stream of it for the program that is being streamed.
        with dspy.context(send_stream=None), litellm_errors(model=request.model):
            raw = await SEND[self.model_type](request=arguments, num_retries=0)
        return self._response(raw, request)

    def _call(self, request: PoolRequest) -> dict[str, Any]:
        """The call as DSPy has it, for this connection."""
        body = {name: value for name, value in (request.body or {}).items() if name not in request.options}
        if body.pop("prompt_cache", None) is not None:
            raise UnsupportedFeatureError("litellm has no form for prompt_cache=; give inputs that lm15 has a form for")
        if request.candidates == 1:
            body.pop("n", None)
        return {**body, **self._connection(request.options), "model": request.model}

    def _connection(self, options: Mapping[str, Any]) -> dict[str, Any]:
        merged = {name: {**(self.client_options.get(name) or {}), **(options.get(name) or {})} for name in MERGED}
        given = {name: value for name, value in merged.items() if value}
        return {**self.client_options, **options, **given}

    def _arguments(self, request: Request, *, streaming: bool = False) -> dict[str, Any]:
        """What litellm is called with, by DSPy's `complete` and `stream`."""
        arguments: dict[str, Any]
        if not isinstance(request, PoolRequest):
            arguments = super()._arguments(request, streaming=streaming)
        elif request.body is None or not streaming:
            arguments = {**super()._arguments(request, streaming=streaming), **self._connection(request.options)}
        else:
            arguments = self._call(request)
            arguments.pop("rollout_id", None)
            arguments["headers"] = dspy_lm._add_dspy_identifier_to_headers(arguments.get("headers"))
            arguments |= {"stream": True, "stream_options": {"include_usage": True}, "num_retries": 0}
            arguments["cache"] = {"no-cache": True, "no-store": True}
        return {**arguments, "max_retries": 0}

    def _response(self, raw: Any, request: Request) -> Response:
        if isinstance(request, PoolRequest) and request.candidates > 1:  # the first stands for all in the pool's events
            read: Any = plain(raw)
            read["choices"] = (read.get("choices") or [])[:1]
        else:
            read = raw
        answer: Response = super()._response(read, request)
        return with_raw(answer, raw)


@contextmanager
def setting_errors() -> Iterator[None]:
    """Names a setting that a provider's client has no keyword for; litellm takes that for an error of the server."""
    try:
        yield
    except lm15.ServerError as error:
        for behind in raised_from(error):
            if isinstance(behind, TypeError) and "unexpected keyword argument" in str(behind):
                text = f"the provider's client does not take a setting of this call: {behind}"
                raise UnsupportedFeatureError(text) from error
        raise
