"""`Endpoint`: one model at one provider, and the client that talks to it.

Users list endpoints when they make an `LMPool`. Each LM worker opens one client per endpoint and keeps it: with one per
call, 900 calls took 30.8 s and 609 file descriptors instead of 6 s.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import AsyncGenerator, Collection
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Protocol

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.lm15 import Request, Response

from promptside.checks import check, check_count, check_seconds, is_number
from promptside.pools.clients.credentials import RedactedPickle
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.native import NativeEngine, NativeFirst

__all__ = ["Capabilities", "Client", "Endpoint", "open_client"]


class Client(Protocol):
    """DSPy's asynchronous engine, as workers call it."""

    async def complete(self, request: Request) -> Response:
        """One answer."""
        ...

    def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        """The events of one answer."""
        ...

    async def aclose(self) -> None:
        """Close the connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The abilities of a model, which DSPy's adapters ask for; None takes DSPy's own tables.

    Args:
        response_schema: It follows a JSON schema.
        function_calling: It calls tools natively.
        reasoning: It reasons natively.
        params: Names of the request parameters it takes, such as ``"response_format"``.

    Raises:
        ValueError: A field has another type.
    """

    response_schema: bool | None = None
    function_calling: bool | None = None
    reasoning: bool | None = None
    params: frozenset[str] | None = None

    def __post_init__(self) -> None:
        for field_ in ("response_schema", "function_calling", "reasoning"):
            value = getattr(self, field_)
            check("Capabilities", field_, value, value in (True, False, None), "give True, False, or None for unknown")
        params = self.params
        names = isinstance(params, Collection) and not isinstance(params, str)
        valid = params is None or (names and all(isinstance(name, str) for name in params))
        check("Capabilities", "params", params, valid, 'give a set of names, such as {"response_format"}')
        if params is not None:
            object.__setattr__(self, "params", frozenset(params))


@dataclass(frozen=True, slots=True)
class Endpoint(RedactedPickle):
    """One model behind one address and one credential.

    The credential is never shown, and is not in a pickle: after loading, that of the environment is used.

    Args:
        model: ``"provider/model"``, as for `dspy.LM`.
        api_key: The credential; the provider's environment variable by default.
        api_base: The address; the provider's own by default.
        timeout: Longest wait in seconds, > 0 and finite, for a whole answer, and for each event of a streamed one;
            comments and pings are no events. An endpoint that is late has failed, but its circuit and the call's
            retries go on without asking it the same again: it may have been paid for the answer.
        max_connections: Requests that one worker has under way, each on a connection, >= 1; more wait.
        rpm: Requests per minute that the provider allows this credential, > 0; None for unknown.
        tpm: Tokens per minute, input and output together, likewise.
        name: For events, errors and statistics; the model by default.
        engine: A client instead of a provider's: an object with DSPy's asynchronous engine methods, or with an
            `async_engine` that has them, such as `promptside.testing.MockLM`.
        supports: The model's abilities that DSPy's tables do not know.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    model: str
    _: KW_ONLY
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = None
    timeout: float = 600.0
    max_connections: int = 100
    rpm: float | None = None
    tpm: float | None = None
    name: str = ""
    engine: Any = None
    supports: Capabilities = Capabilities()

    def __post_init__(self) -> None:
        owner, model = f"Endpoint({self.model!r})", self.model
        valid = isinstance(model, str) and model != "" and all(model.split("/"))
        check(owner, "model", model, valid, "give 'provider/model', as for dspy.LM")
        kind = type(self.api_key).__name__  # the key belongs in no text
        check(owner, "api_key", kind, self.api_key is None or isinstance(self.api_key, str), "give a text, or None")
        check_seconds(owner, "timeout", self.timeout, finite=True)
        check_count(owner, "max_connections", self.max_connections)
        for field_ in ("rpm", "tpm"):
            value = getattr(self, field_)
            valid = value is None or (is_number(value) and 0 < value < math.inf)
            check(owner, field_, value, valid, "give a number > 0 a minute, or None for unknown")
        valid = self.engine is None or inspect.iscoroutinefunction(getattr(self._client(), "complete", None))
        remedy = "give an object whose `complete(request)` is async, or whose `async_engine` has one"
        check(owner, "engine", self.engine, valid, remedy)
        check(owner, "supports", self.supports, isinstance(self.supports, Capabilities), "give Capabilities(...)")
        if not self.name:
            object.__setattr__(self, "name", self.model)

    def _client(self) -> Any:
        """The given engine's asynchronous half."""
        return getattr(self.engine, "async_engine", self.engine)

    def template(self) -> dspy.LM:
        """A plain `dspy.LM` with these settings, which has what DSPy knows about the model."""
        settings = {"api_key": self.api_key, "api_base": self.api_base, "timeout": self.timeout}
        return dspy.LM(self.model, cache=False, num_retries=0, **{k: v for k, v in settings.items() if v is not None})

    def capabilities(self) -> Capabilities:
        """The model's abilities: as stated here, else by the engine, else by DSPy's tables."""
        stated = self.supports
        source = self.engine if self.engine is not None else self.template()

        def settle(value: Any, attribute: str) -> Any:
            return value if value is not None else getattr(source, attribute, None)

        return Capabilities(
            response_schema=bool(settle(stated.response_schema, "supports_response_schema")),
            function_calling=bool(settle(stated.function_calling, "supports_function_calling")),
            reasoning=bool(settle(stated.reasoning, "supports_reasoning")),
            params=frozenset(settle(stated.params, "supported_params") or ()),
        )


def open_client(endpoint: Endpoint) -> Client:
    """A client for the endpoint, for the event loop that will use it.

    The native engine (lm15) where it speaks the provider's dialect, litellm otherwise.
    """
    if endpoint.engine is not None:
        given: Client = endpoint._client()
        return given
    selection = select_backend(endpoint.template())
    clients = selection.clients
    if not selection.native:
        return NativeFirst(None, LiteLLMClient(**clients))
    provider = selection.resolution.provider
    native: Any = NativeEngine(
        provider,
        api_key=clients.get("api_key"),
        api_base=clients.get("api_base"),
        timeout=endpoint.timeout,
        max_connections=endpoint.max_connections,
    )
    if selection.resolution.declared:
        declared: Client = native
        return declared  # what it cannot do is refused: litellm may know its name as another service
    if provider == "anthropic" and "api_base" in clients:  # to which litellm adds /v1 by itself
        clients = {**clients, "api_base": clients["api_base"].rstrip("/").removesuffix("/v1")}
    return NativeFirst(native, LiteLLMClient(**clients))
