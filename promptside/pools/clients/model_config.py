"""`LMConfig`: one model by its provider's name, with its credential and its settings.

Users give it to an `LMPool`, in place of an `Endpoint` and the keyword arguments of `LMPool.lm`. Calls `Endpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from promptside.checks import check, check_count, is_number
from promptside.pools.clients.credentials import RedactedPickle
from promptside.pools.clients.endpoint import CONNECTION, Capabilities, Endpoint
from promptside.pools.clients.key_function import ApiKey

__all__ = ["LMConfig"]

PROVIDERS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = MappingProxyType(
    {
        "openai": ("openai", ("OPENAI_API_KEY",)),
        "google": ("gemini", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
        "gemini": ("gemini", ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
        "anthropic": ("anthropic", ("ANTHROPIC_API_KEY",)),
        "cohere": ("cohere", ("COHERE_API_KEY", "CO_API_KEY")),
    }
)
"""By name: the prefix of DSPy's model strings, and the variables that may hold the key, in order. Credentials of other
providers (a key, a cloud's role, none) are left to the client."""

OWN: Final = ("model", "api_key", "api_base", "headers", "timeout", "temperature", "max_tokens", "num_retries")
"""Keys that `settings` must not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig(RedactedPickle):
    """A model, its address and its settings.

    ::

        config = LMConfig(provider="google", model="gemini-2.5-flash-lite", temperature=0.2)
        pool = await LMPool(config).start(system)

    The key and the headers are never shown, and are not in a pickle: after loading, the key of the environment is used.

    Args:
        model: The provider's name of the model; without `provider`, ``"provider/model"`` as for `dspy.LM` or litellm.
        provider: ``"openai"``, ``"google"`` (or ``"gemini"``), ``"anthropic"``, ``"cohere"``, or litellm's name of
            another one.
        api_key: The credential, or a function that returns it, as in `Endpoint`; the provider's environment variable by
            default, read by `endpoint`.
        api_base: The address; the provider's own by default.
        headers: As in `Endpoint`.
        temperature: >= 0; the provider's own by default.
        max_tokens: Of an answer, >= 1; the provider's own by default.
        settings: More settings for `dspy.LM`, such as ``{"top_p": 0.9, "cache": False}``. Those of the connection, such
            as `api_version` and `organization`, are the endpoint's.
        timeout: As in `Endpoint`.
        max_connections: As in `Endpoint`.
        name: As in `Endpoint`.
        supports: As in `Endpoint`.

    Raises:
        ValueError: A field is not valid; the message names it.
    """

    model: str
    provider: str | None = None
    api_key: ApiKey | None = field(default=None, repr=False)
    api_base: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False, hash=False)
    temperature: float | None = None
    max_tokens: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 600.0
    max_connections: int = 100
    name: str = ""
    supports: Capabilities = field(default_factory=Capabilities)

    def __post_init__(self) -> None:
        provider, temperature, settings = self.provider, self.temperature, self.settings
        valid = provider is None or (isinstance(provider, str) and provider != "" and "/" not in provider)
        check("LMConfig", "provider", provider, valid, "give a name such as 'openai', without /, or leave it out")
        valid = isinstance(self.model, str) and all(self.model.split("/"))
        remedy = "give the provider's name of the model, and provider='...' or 'provider/model'"
        check("LMConfig", "model", self.model, valid and (provider is not None or "/" in self.model), remedy)
        valid = temperature is None or (is_number(temperature) and temperature >= 0)
        check("LMConfig", "temperature", temperature, valid, "give a number >= 0, or leave it to the provider")
        if self.max_tokens is not None:
            check_count("LMConfig", "max_tokens", self.max_tokens)
        check(
            "LMConfig",
            "settings",
            type(settings).__name__,
            isinstance(settings, Mapping),
            "give a dict of dspy.LM's settings",
        )
        twice = [name for name in OWN if name in settings]
        remedy = "these have a field of their own in LMConfig, or none: the pool retries, by LMPool(retry=...)"
        check("LMConfig", "settings", twice, not twice, remedy)
        self._endpoint(self.api_key)  # checks the fields that are the endpoint's

    def endpoint(self) -> Endpoint:
        """The endpoint, for an `LMPool`.

        Raises:
            ValueError: No key is given, and none is in the environment, where its variable is known.
        """
        prefix = self._model().split("/")[0]
        variables = PROVIDERS.get(prefix, ("", ()))[1]
        key = self.api_key or next((os.environ[name] for name in variables if os.environ.get(name)), None)
        if key is None and variables:
            wanted = " or ".join(variables)
            raise ValueError(
                f"LMConfig({self._model()!r}): api_key: none is given and none is in the environment: set {wanted}, "
                "or give api_key='none' where the server at api_base= wants none"
            )
        return self._endpoint(api_key=key)

    def lm_settings(self) -> dict[str, Any]:
        """The settings, as keyword arguments for `LMPool.lm`."""
        own = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        others = {name: value for name, value in self.settings.items() if name not in CONNECTION}
        return {**{name: value for name, value in own.items() if value is not None}, **others}

    def _model(self) -> str:
        """As DSPy and litellm name it."""
        if self.provider is None:
            return self.model
        prefix = PROVIDERS.get(self.provider, (self.provider, ()))[0]
        return self.model if self.model.startswith(f"{prefix}/") else f"{prefix}/{self.model}"

    def _endpoint(self, api_key: ApiKey | None) -> Endpoint:
        return Endpoint(
            self._model(),
            api_key=api_key,
            api_base=self.api_base,
            headers=self.headers,
            **{name: value for name, value in self.settings.items() if name in CONNECTION},
            timeout=self.timeout,
            max_connections=self.max_connections,
            name=self.name,
            supports=self.supports,
        )
