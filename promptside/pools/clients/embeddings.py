"""`EmbeddingClient`: an LM worker's client for the embeddings of one endpoint.

Opened by `LMWorker`, one per endpoint, and kept. OpenAI's format is sent by the openai package, which DSPy installs;
any other provider's by litellm. Each is imported with the first request, in a thread: that takes 0.7 s and 5 s.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from dspy import lm15
from dspy.clients.engines.litellm_errors import to_lm15_error
from dspy.lm15 import ProviderError, Usage

from promptside.pools.clients.endpoint import CONNECTION, Endpoint
from promptside.pools.clients.litellm_client import LiteLLMClient

__all__ = ["EmbeddingClient", "EmbeddingRequest", "Embeddings", "ModelRequest", "Outline"]


class ModelRequest(Protocol):
    """What routing, events and history read of a request: lm15's `Request` and `EmbeddingRequest` have it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> str:
        """``"provider/model"``."""
        ...

    @property
    def system(self) -> Any:
        """The system prompt, or None."""
        ...

    @property
    def messages(self) -> Sequence[Any]:
        """The content."""
        ...

    @property
    def tools(self) -> Sequence[Any]:
        """The tools that the model may call."""
        ...

    @property
    def config(self) -> Any:
        """The settings: a mapping or a dataclass."""
        ...


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to embed in one request; a `ModelRequest`.

    Attributes:
        model: ``"provider/model"``.
        texts: At least one.
        options: Further fields of the request, such as `dimensions`.
    """

    model: str
    texts: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> None:
        """None."""

    @property
    def messages(self) -> tuple[str, ...]:
        """The texts."""
        return self.texts

    @property
    def tools(self) -> tuple[()]:
        """None."""
        return ()

    @property
    def config(self) -> Mapping[str, Any]:
        """The options."""
        return self.options


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of texts.

    Attributes:
        vectors: One for each text, in order; all of one length.
        usage: The provider's count.
    """

    vectors: tuple[Sequence[float], ...]
    usage: Usage

    def outline(self) -> Outline:
        """The record for the pool's history."""
        return Outline({"vectors": len(self.vectors), "dimensions": len(self.vectors[0])}, self.usage)


@dataclass(frozen=True, slots=True)
class Outline:
    """Embeddings without their vectors, which would fill a history with a gigabyte.

    Attributes:
        message: Number of `vectors` and of their `dimensions`.
        usage: The provider's count.
        finish_reason: Always None.
    """

    message: Mapping[str, int]
    usage: Usage
    finish_reason: None = None


class EmbeddingClient:
    """Embeds texts at one endpoint. Its errors are lm15's.

    Args:
        endpoint: One without an engine of its own.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._openai: Any = None
        self._keys = endpoint.key_function()
        given = {name: value for name in ("api_base", *CONNECTION) if (value := getattr(endpoint, name)) is not None}
        self._key = endpoint.client_key()
        self._litellm = LiteLLMClient(timeout=endpoint.timeout, api_key=self._key, headers=endpoint.headers, **given)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """One attempt.

        Raises:
            LM15Error: The provider refused, failed, or answered with something else than one vector for each text.
        """
        answer = await (self._send(request) if self._keys is None else self._keys.send(lambda: self._send(request)))
        return _read(answer, len(request.texts))

    async def aclose(self) -> None:
        """Close the connections."""
        if self._openai is not None:
            await self._openai.close()
        await self._litellm.aclose()

    async def _send(self, request: EmbeddingRequest) -> Any:
        provider, _, model = request.model.partition("/")
        if provider == "openai":
            return await self._from_openai(model, request)
        return await self._litellm.embed(request.model, request.texts, **request.options)

    async def _from_openai(self, model: str, request: EmbeddingRequest) -> Any:
        openai = await asyncio.to_thread(_import_openai)
        try:
            if self._openai is None:
                self._openai = openai.AsyncOpenAI(
                    max_retries=0,
                    timeout=self._endpoint.timeout,
                    api_key=self._key() if callable(self._key) else self._key,
                    base_url=self._endpoint.api_base,
                    default_headers=self._endpoint.headers,
                    organization=self._endpoint.organization,
                    project=self._endpoint.project,
                )
            client = self._openai
            if callable(self._key):  # a client for each key, which share their connections
                client = client.with_options(api_key=self._key())
            # "float", because servers of this dialect do not all know "base64", which the package asks for by itself.
            return await client.embeddings.create(
                model=model, input=list(request.texts), **{"encoding_format": "float", **request.options}
            )
        except openai.APITimeoutError as error:
            raise lm15.TimeoutError(str(error)) from error
        except openai.APIConnectionError as error:
            raise lm15.TransportError(str(error)) from error
        except json.JSONDecodeError as error:
            raise ProviderError(f"the provider's answer is not JSON: {error}") from error
        except openai.APIError as error:
            mapped = to_lm15_error(error, model=request.model, provider="openai")
            raise mapped from error
        except openai.OpenAIError as error:  # no key
            raise lm15.ConfigurationError(str(error)) from error


def _import_openai() -> Any:
    import openai

    return openai


def _read(answer: Any, texts: int) -> Embeddings:
    data = [item if isinstance(item, Mapping) else vars(item) for item in getattr(answer, "data", None) or ()]
    vectors = tuple(item["embedding"] for item in sorted(data, key=lambda item: item.get("index") or 0))
    if len(vectors) != texts or len({len(vector) for vector in vectors}) != 1 or not len(vectors[0]):
        raise ProviderError(
            f"the provider answered {texts} texts with {len(vectors)} vectors, or these differ in length"
        )
    counted = getattr(getattr(answer, "usage", None), "prompt_tokens", None)
    return Embeddings(vectors, Usage(input_tokens=counted, output_tokens=None if counted is None else 0))
