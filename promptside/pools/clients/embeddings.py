"""`EmbeddingClient`: an LM worker's client for the embeddings of one endpoint.

Opened by `LMWorker`, one per endpoint, and kept. OpenAI's format is sent by the openai package, which DSPy installs;
any other provider's by litellm. Each is imported with the first request, in a thread: that takes 0.7 s and 5 s.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from dspy import lm15
from dspy.lm15 import ProviderError, Usage

from promptside.pools.clients.client_errors import lm15_errors, with_headers
from promptside.pools.clients.endpoint import CONNECTION, Endpoint
from promptside.pools.clients.judge import fault_of
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
                    http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
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
            with lm15_errors():
                answer = await client.embeddings.with_raw_response.create(
                    model=model, input=list(request.texts), **{"encoding_format": "float", **request.options}
                )
                body = json.loads(answer.content)
        except openai.OpenAIError as error:  # no key
            raise lm15.ConfigurationError(str(error)) from error
        if (fault := fault_of(body)) is not None:
            raise with_headers(fault, answer.headers.items())
        return body


def _import_openai() -> Any:
    import openai

    return openai


def _read(answer: Any, texts: int) -> Embeddings:
    """The vectors of an answer, which have to be finite numbers of one length, one for each text."""
    items = answer.get("data") if isinstance(answer, Mapping) else getattr(answer, "data", None)
    data = [_fields_of(item) for item in items] if isinstance(items, list) else []
    vectors: list[Any] = [item.get("embedding") for item in _in_order(data)]
    with contextlib.suppress(ValueError, TypeError, OverflowError):  # of several lengths, or no numbers
        array = np.asarray(vectors)
        fits = array.ndim == 2 and len(array) == texts and array.shape[1] > 0 and array.dtype.kind in "fiu"
        with np.errstate(over="ignore"):
            fits = fits and bool(np.isfinite(array.astype(np.float32)).all())
        if fits:
            return Embeddings(tuple(vectors), _usage(answer))
    raise ProviderError(
        f"the provider answered {texts} texts with {len(vectors)} vectors; they have to be as many, of one length, and "
        "of finite numbers"
    )


def _fields_of(item: Any) -> Mapping[str, Any]:
    """Those of an object of JSON or of litellm's; none of anything else."""
    return item if isinstance(item, Mapping) else getattr(item, "__dict__", {})


def _in_order(data: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """In the order of the texts: by `index`, unless a server gives the same one, or none, to all of them."""
    indices = [item.get("index") for item in data]
    if len(set(map(str, indices))) <= 1:
        return data
    if sorted(map(str, indices)) != sorted(map(str, range(len(data)))):
        raise ProviderError(f"the provider's vectors are of the texts {indices}, and each text has to have one")
    return sorted(data, key=lambda item: int(item["index"]))


def _usage(answer: Any) -> Usage:
    """The provider's count; an unknown one where it is of a wrong shape."""
    usage = answer.get("usage") if isinstance(answer, Mapping) else getattr(answer, "usage", None)
    counted = usage.get("prompt_tokens") if isinstance(usage, Mapping) else getattr(usage, "prompt_tokens", None)
    known = isinstance(counted, int) and counted >= 0
    return Usage(input_tokens=counted, output_tokens=0) if known else Usage()
