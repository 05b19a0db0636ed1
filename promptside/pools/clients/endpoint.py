"""`Endpoint`: one model at one provider, and the client that talks to it.

Users list endpoints when they make an `LMPool`. Each LM worker opens one client per endpoint and keeps it: with one per
call, 900 calls took 30.8 s and 609 file descriptors instead of 6 s.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import dspy
from dspy.clients.backend_selection import select_backend

from promptside.checks import check, check_count, check_seconds, is_number
from promptside.pools.clients.credentials import RedactedPickle
from promptside.pools.clients.headers import checked_headers, secrets_in
from promptside.pools.clients.key_function import (
    ApiKey,
    Client,
    KeyedClient,
    KeyFunction,
    current_key,
    is_key,
    takes_labels,
)
from promptside.pools.clients.litellm_client import LiteLLMClient
from promptside.pools.clients.native import EndpointClient, GivenClient, NativeEngine, NativeFirst
from promptside.pools.clients.requests import ModelType

__all__ = ["CONNECTION", "Capabilities", "Dialect", "Endpoint", "check_api_key", "open_client"]

_CONNECTION_TYPES: Final[Mapping[str, tuple[Any, str]]] = {
    "azure_ad_token_provider": (Callable, "give a function that returns a token, or None"),
    "extra_query": (Mapping, "give a dict, or None"),
}

CONNECTION: Final = (
    "api_version",
    "azure_ad_token_provider",
    "custom_llm_provider",
    "extra_query",
    "organization",
    "project",
)
"""Fields of an `Endpoint` with a name of `dspy.LM`'s that lm15 does not take."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What calls to an endpoint may hold.

    Attributes:
        native: Whether lm15 speaks it.
        compat: Lm15's name for the peculiarities of its server, with which it reads calls.
        has_litellm: Whether litellm is asked for what lm15 has no form for.
    """

    native: bool = True
    compat: Any = None
    has_litellm: bool = True


@dataclass(frozen=True, slots=True)
class Endpoint(RedactedPickle):
    """One model behind one address and one credential.

    The credential and the headers are never shown, and are not in a pickle: after loading, the credential of the
    environment is used.

    Args:
        model: ``"provider/model"``, as for `dspy.LM`.
        api_key: The credential; the provider's environment variable by default. Or a function that returns it, called
            before each request, and once more with the key that was refused (401, 403), and has to keep a key by
            itself that is good for longer. It takes no argument, or one, the labels of the call: a mapping with
            `program`, `session` and `run`, as far as they are set. A synchronous one runs in a thread, in up to 8 at a
            time, an asynchronous one on the pool's event loop. It has 30 seconds, and at most half of `timeout`. Where
            it fails, the call has an `LMAuthError`, unless another endpoint answers.
        api_base: The address; the provider's own by default.
        headers: Sent with each request, such as ``{"x-gateway-key": "..."}``, also in place of the client's.
        timeout: Longest wait in seconds, > 0 and finite, for a whole answer, and for each event of a streamed one;
            comments and pings are no events. An endpoint that is late has failed, but its circuit and the call's
            retries go on without asking it the same again: it may have been paid for the answer.
        max_connections: Requests that one worker has under way, each on a connection, >= 1; more wait.
        rpm: Requests per minute that the provider allows this credential, > 0; None for unknown.
        tpm: Tokens per minute, input and output together, likewise.
        context_window: Tokens that the model takes, >= 1; None for unstated. A request that is too long for an endpoint
            is sent to those that state a larger window than it does, if there are any; else it raises at once.
        name: For events, errors and statistics; the model by default.
        engine: A client instead of a provider's: an object with DSPy's asynchronous engine methods, or with an
            `async_engine` that has them, such as `promptside.testing.MockLM`.
        supports: The model's abilities that DSPy's tables do not know.
        api_version: Of Azure's API; this and the following as in `dspy.LM`, and sent by litellm.
        azure_ad_token_provider: Returns a token for Azure.
        custom_llm_provider: Litellm's name of the provider, where the model's does not begin with it.
        extra_query: Further parameters of each request's address.
        organization: OpenAI's, which is billed.
        project: Of that organization.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    model: str
    _: KW_ONLY
    api_key: ApiKey | None = field(default=None, repr=False)
    api_base: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    timeout: float = 600.0
    max_connections: int = 100
    rpm: float | None = None
    tpm: float | None = None
    context_window: int | None = None
    name: str = ""
    engine: Any = None
    supports: Capabilities = Capabilities()
    api_version: str | None = None
    azure_ad_token_provider: Callable[[], str] | None = None
    custom_llm_provider: str | None = None
    extra_query: Mapping[str, Any] | None = None
    organization: str | None = None
    project: str | None = None

    def __post_init__(self) -> None:
        owner, model = f"Endpoint({self.model!r})", self.model
        valid = isinstance(model, str) and model != "" and all(model.split("/"))
        check(owner, "model", model, valid, "give 'provider/model', as for dspy.LM")
        check_api_key(owner, self.api_key)
        valid = self.api_base is None or (isinstance(self.api_base, str) and _is_address(self.api_base))
        check(owner, "api_base", self.api_base, valid, "give an address such as 'http://127.0.0.1:8000/v1', or None")
        check(owner, "name", self.name, isinstance(self.name, str), "give a text")
        object.__setattr__(self, "headers", checked_headers(owner, self.headers))
        check_seconds(owner, "timeout", self.timeout, finite=True)
        check_count(owner, "max_connections", self.max_connections)
        for field_ in ("rpm", "tpm"):
            value = getattr(self, field_)
            valid = value is None or (is_number(value) and 0 < value < math.inf)
            check(owner, field_, value, valid, "give a number > 0 a minute, or None for unknown")
        if self.context_window is not None:
            check_count(owner, "context_window", self.context_window)
        valid = self.engine is None or inspect.iscoroutinefunction(getattr(self._client(), "complete", None))
        remedy = "give an object whose `complete(request)` is async, or whose `async_engine` has one"
        check(owner, "engine", self.engine, valid, remedy)
        for field_ in CONNECTION:
            value = getattr(self, field_)
            kind, remedy = _CONNECTION_TYPES.get(field_, (str, "give a text, or None"))
            check(owner, field_, type(value).__name__, value is None or isinstance(value, kind), remedy)  # pyright: ignore[reportArgumentType]
        check(owner, "supports", self.supports, isinstance(self.supports, Capabilities), "give Capabilities(...)")
        if not self.name:
            object.__setattr__(self, "name", self.model)

    def _client(self) -> Any:
        """The given engine's asynchronous half."""
        return getattr(self.engine, "async_engine", self.engine)

    def template(self, model_type: ModelType = "chat") -> dspy.LM:
        """A plain `dspy.LM` with these settings, which has what DSPy knows about the model."""
        key = self.api_key if isinstance(self.api_key, str) else None
        settings = {"api_key": key, "api_base": self.api_base, "timeout": self.timeout}
        settings |= {name: getattr(self, name) for name in CONNECTION}
        given = {name: value for name, value in settings.items() if value is not None}
        return dspy.LM(self.model, model_type, cache=False, num_retries=0, **given)

    def dialect(self, model_type: ModelType) -> Dialect:
        """What calls to an API of the model may hold."""
        if self.engine is not None:
            return Dialect(has_litellm=False)
        selection = select_backend(self.template(model_type))
        if not selection.native:
            return Dialect(native=False)
        route = selection.resolution
        return Dialect(compat=route.compat, has_litellm=not route.declared)

    def key_function(self) -> KeyFunction | None:
        """The function that has the key, if one has."""
        given = self.api_key
        return None if given is None or isinstance(given, str) else KeyFunction(self.name, given, self.timeout)

    @property
    def key_takes_labels(self) -> bool:
        """Whether the key is one of the call's labels, by a function."""
        return callable(self.api_key) and takes_labels(self.api_key)

    def client_key(self) -> str | Callable[[], str] | None:
        """The key for a client; where a function has it, what finds that of the request that is being sent."""
        given = self.api_key
        return given if given is None or isinstance(given, str) else current_key

    def secrets(self) -> Iterator[str]:
        """What no text may show: the key, if it is no function's, and the headers."""
        if isinstance(self.api_key, str):
            yield self.api_key
        yield from secrets_in(self.headers)

    def capabilities(self, model_type: ModelType = "chat") -> Capabilities:
        """The model's abilities: as stated here, else by the engine, else by DSPy's tables."""
        stated = self.supports
        source = self.engine if self.engine is not None else self.template(model_type)

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
    client = EndpointClient(functools.partial(_open, endpoint))
    keys = endpoint.key_function() if endpoint.engine is None else None
    return client if keys is None else KeyedClient(keys, client)


def _open(endpoint: Endpoint, model_type: ModelType) -> Client:
    """The client of one of its APIs."""
    if endpoint.engine is not None:
        return GivenClient(endpoint._client())
    selection = select_backend(endpoint.template(model_type))
    clients, headers = selection.clients, endpoint.headers
    if callable(key := endpoint.client_key()):
        clients = {**clients, "api_key": key}
    if not selection.native:
        return NativeFirst(None, LiteLLMClient(model_type=model_type, headers=headers, **clients))
    provider = selection.resolution.provider
    native: Any = NativeEngine(
        provider,
        api_key=clients.get("api_key"),
        api_base=clients.get("api_base"),
        timeout=endpoint.timeout,
        max_connections=endpoint.max_connections,
        model_type=model_type,
        headers=headers,
    )
    if selection.resolution.declared:
        return NativeFirst(native, None)  # litellm may know its name as another service
    if provider == "anthropic" and "api_base" in clients:  # to which litellm adds /v1 by itself
        clients = {**clients, "api_base": clients["api_base"].rstrip("/").removesuffix("/v1")}
    return NativeFirst(native, LiteLLMClient(model_type=model_type, headers=headers, **clients))


def _is_address(text: str) -> bool:
    """Whether it is the address of an HTTP server."""
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port
        return False


def check_api_key(owner: str, key: object) -> None:
    """Raise `ValueError` unless it is a text, a function of none or one argument, or None. The key is never shown."""
    valid = key is None or isinstance(key, str)
    if not valid and callable(key):
        try:
            takes_labels(key)
            valid = True
        except TypeError:
            pass
    remedy = "give a text, a function that takes no argument or the labels of the call, or None"
    check(owner, "api_key", type(key).__name__, valid, remedy)
    remedy = "give it without spaces or line breaks at its ends, and of ASCII characters"
    check(owner, "api_key", type(key).__name__, not isinstance(key, str) or is_key(key), remedy)
