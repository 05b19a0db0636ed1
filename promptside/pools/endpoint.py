"""`Endpoint`: one model at one provider's door, and the client that talks to it.

Users list endpoints when they make an `LMPool`. Each LM worker opens one client per endpoint and keeps it: a client
per call is what ends in "too many open files" (measured: 900 calls took 30.8 s and 609 descriptors instead of 6 s).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy
from dspy.clients.backend_selection import select_backend
from dspy.clients.engines.litellm_engine import AsyncLiteLLMEngine
from dspy.clients.engines.lm15_engine import AsyncLM15Engine, timeouts_for
from dspy.lm15 import Request, Response, RouterConfig, UnsupportedFeatureError, registered_providers

__all__ = ["Client", "Endpoint", "open_client"]


class Client(Protocol):
    """What a worker calls: DSPy's asynchronous engine."""

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
    """What a model can do, as DSPy's adapters ask; None leaves the answer to DSPy's own tables.

    Args:
        response_schema: Whether it follows a JSON schema.
        function_calling: Whether it calls tools natively.
        reasoning: Whether it reasons natively.
        params: Names of the request parameters it takes, such as ``"response_format"``.
    """

    response_schema: bool | None = None
    function_calling: bool | None = None
    reasoning: bool | None = None
    params: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model behind one address and one credential.

    Args:
        model: ``"provider/model"``, as for `dspy.LM`.
        api_key: The credential; the provider's environment variable by default. Never shown.
        api_base: The address; the provider's own by default.
        timeout: Seconds that the provider may take between two bytes, > 0.
        max_connections: Connections that one worker may hold to it, >= 1.
        name: For events, errors and statistics; the model by default.
        engine: Another client in place of a provider's: an object with DSPy's asynchronous engine methods, or
            with an `async_engine` that has them, such as `promptside.testing.MockLM`.
        supports: What the model can do, where DSPy's tables do not know it.

    Raises:
        ValueError: A field is out of its range; the message names it.
    """

    model: str
    api_key: str | None = field(default=None, repr=False)
    api_base: str | None = None
    timeout: float = 120.0
    max_connections: int = 100
    name: str = ""
    engine: Any = None
    supports: Capabilities = Capabilities()

    def __post_init__(self) -> None:
        def check(field_: str, valid: bool, remedy: str) -> None:
            if not valid:
                raise ValueError(f"Endpoint({self.model!r}): {field_}={getattr(self, field_)!r}: {remedy}")

        valid = isinstance(self.model, str) and self.model.strip("/") != ""
        check("model", valid and not self.model.endswith("/"), "give 'provider/model', as for dspy.LM")
        check("timeout", self.timeout > 0, "give seconds > 0")
        check("max_connections", self.max_connections >= 1, "give a whole number >= 1")
        if not self.name:
            object.__setattr__(self, "name", self.model)

    def template(self) -> dspy.LM:
        """A plain `dspy.LM` with these settings: what DSPy itself knows about the model is read off it."""
        settings = {"api_key": self.api_key, "api_base": self.api_base, "timeout": self.timeout}
        return dspy.LM(self.model, cache=False, num_retries=0, **{k: v for k, v in settings.items() if v is not None})

    def capabilities(self) -> Capabilities:
        """What the model can do: as stated here, else what the engine states, else what DSPy's tables say."""
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
        client: Client = getattr(endpoint.engine, "async_engine", endpoint.engine)
        if not asyncio.iscoroutinefunction(getattr(client, "complete", None)):
            raise TypeError(
                f"Endpoint({endpoint.model!r}): engine={endpoint.engine!r}: give an object whose `complete(request)` "
                "is async, or whose `async_engine` has one"
            )
        return client
    selection = select_backend(endpoint.template())
    fallback: Client = AsyncLiteLLMEngine(model_type="chat", **selection.clients)
    if not selection.native:
        return fallback
    provider = selection.resolution.provider
    config = RouterConfig(
        api_keys=None if endpoint.api_key is None else {provider: endpoint.api_key},
        base_urls=None if endpoint.api_base is None else {provider: endpoint.api_base},
        timeouts=timeouts_for(endpoint.timeout),
        max_connections=endpoint.max_connections,
        providers=tuple(entry.definition for entry in registered_providers()),
    )
    return _NativeFirst(AsyncLM15Engine(config), fallback)


class _NativeFirst:
    """lm15 for every request that it can represent, litellm for the others, decided before anything is sent."""

    def __init__(self, native: AsyncLM15Engine, fallback: Client) -> None:
        self._native = native
        self._fallback = fallback

    def _choose(self, request: Request) -> Client:
        try:
            self._native.plan(request)
        except UnsupportedFeatureError:
            return self._fallback
        native: Client = self._native
        return native

    async def complete(self, request: Request) -> Response:
        return await self._choose(request).complete(request)

    def stream(self, request: Request) -> AsyncGenerator[Any, None]:
        return self._choose(request).stream(request)

    async def aclose(self) -> None:
        await self._native.aclose()
        await self._fallback.aclose()
