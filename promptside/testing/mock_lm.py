"""A language model that answers inside the process, for tests, benchmarks and examples without a key.

`MockLM` is a DSPy engine: caching, retries, history and streaming are above it and real. Use it as a plain LM
(`MockLM.lm`) or as the engine of an endpoint of an LM pool. Its answers are formatted for the calling adapter, see
`promptside.testing.replies`.

When not to use it: to test HTTP, disconnects or a provider's errors, use `promptside.testing.FakeServer`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from random import Random
from typing import Any, Self, TypeAlias

import dspy
from dspy.lm15 import (
    InvalidRequestError,
    Message,
    Request,
    Response,
    StreamDeltaEvent,
    StreamEndEvent,
    StreamStartEvent,
    TextDelta,
    TextPart,
    Usage,
)

from promptside.checks import check, check_seconds, check_text
from promptside.testing.replies import Answer, AnswerMap, NoAnswer, Prompt, check_answers, choose, reply, split_tokens

__all__ = ["AsyncMockEngine", "MockLM"]

Answers: TypeAlias = str | AnswerMap | Callable[[Request], Answer]
StreamEvent: TypeAlias = StreamStartEvent | StreamDeltaEvent | StreamEndEvent


class MockLM:
    """A DSPy engine that answers from a map, at random, or from a function.

    Deterministic, by a substring of the last user message, first match in the mapping's order:

        MockLM({"What is the capital of France?": "Paris", "default": "mock response"})

    An answer is a text, which fills every output field of the calling signature, or a mapping of output fields:

        MockLM({"refund": {"category": "billing", "urgency": 3}, "default": {"category": "other", "urgency": 1}})

    At random, ``mock_1`` to ``mock_1000``, reproducible by its seed: ``MockLM(random=7)``. From a function of the
    request, called on the thread or loop of the call; an error that it raises is the model's error, such as a
    `dspy.lm15.RateLimitError` for a provider's 429:

        answers = iter(["first", "second"])
        MockLM(lambda request: next(answers))

    One object serves any number of threads and loops. A copy of an LM shares it, and its counts.

    Args:
        answers: One text for everything, a map, or a function; not together with `random`.
        random: Seed of the random answers.
        latency: Seconds before each answer; async callers wait without blocking their loop.
        model: The name of the LM that `lm` makes.

    Attributes:
        async_engine: The async half of the engine pair; it shares the answers and the counts.
        requests: The last 100 requests, oldest first.

    Raises:
        ValueError: `answers` and `random` are both given, or an argument is not valid; the message names it.
    """

    supports_function_calling = False
    supports_reasoning = False
    supports_response_schema = True
    supported_params = frozenset({"max_tokens", "response_format", "stop", "stream", "temperature", "top_p"})

    def __init__(
        self,
        answers: Answers | None = None,
        *,
        random: int | None = None,
        latency: float = 0.0,
        model: str = "mock/mock",
    ) -> None:
        if answers is not None and random is not None:
            raise ValueError(f"MockLM: random={random!r}: give answers or random, not both")
        self._answers: Answers = "mock response" if answers is None else answers
        check_answers("MockLM", "answers", self._answers)
        valid = random is None or isinstance(random, int)
        check("MockLM", "random", random, valid, "give a whole number, or None")
        check_seconds("MockLM", "latency", latency, zero=True)
        check_text("MockLM", "model", model)
        self.async_engine = AsyncMockEngine(self)
        self.requests: deque[Request] = deque(maxlen=100)
        self.latency = latency
        self._random = None if random is None else Random(random)  # noqa: S311 - not a secret
        self._model = model
        self._calls = 0
        self._lock = threading.RLock()  # reentrant: a finalizer or a signal handler may come here

    @property
    def calls(self) -> int:
        """Requests that reached the model, failed ones included; a hit in DSPy's cache does not reach it."""
        return self._calls

    def lm(self, **options: Any) -> dspy.LM:
        """A full `dspy.LM` over this model.

        Args:
            **options: As for `dspy.LM`. Unless given, ``num_retries=0`` and ``cache=False``, so that a later run does
                not find a mock's answers on disk.
        """
        options = {"cache": False, "num_retries": 0, **options}
        return dspy.LM(self._model, engine=self, async_engine=self.async_engine, **options)

    def complete(self, request: Request) -> Response:
        """Answer one request.

        Args:
            request: DSPy's request.

        Raises:
            dspy.lm15.InvalidRequestError: No key of the map occurs in the prompt and it has no ``"default"``; the cause
                is a `replies.NoAnswer`. In a program it arrives as `dspy.LMInvalidRequestError`.
        """
        if self.latency:
            time.sleep(self.latency)
        return self.answer(request)

    def stream(self, request: Request) -> Iterator[StreamEvent]:
        """Answer one request, word by word.

        Args:
            request: DSPy's request.

        Raises:
            dspy.lm15.InvalidRequestError: As `complete`.
        """
        yield from _events(self.complete(request))

    def close(self) -> None:
        """Part of DSPy's protocol; there is nothing to release."""

    def answer(self, request: Request) -> Response:
        """Answer one request without the latency; the two engines call it."""
        with self._lock:
            self._calls += 1
            self.requests.append(request)
        prompt = _prompt(request)
        try:
            text = reply(self._choose(request, prompt), prompt)
        except NoAnswer as error:
            raise InvalidRequestError(str(error)) from error
        usage = Usage(
            input_tokens=len(prompt.system.split()) + sum(len(_text(message).split()) for message in request.messages),
            output_tokens=len(text.split()),
        )
        return Response(
            id=None, model=request.model, message=Message.assistant(text), finish_reason="stop", usage=usage
        )

    def _choose(self, request: Request, prompt: Prompt) -> Answer:
        if self._random is not None:
            with self._lock:
                return f"mock_{self._random.randint(1, 1000)}"
        if isinstance(self._answers, str):
            return self._answers
        if isinstance(self._answers, Mapping):
            return choose(self._answers, prompt.user)
        return self._answers(request)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # DSPy's optimizers and `LM.copy` copy LMs deeply; the copies must share the counts.
        return self


class AsyncMockEngine:
    """The async half of a `MockLM`; made by it.

    Args:
        mock: The model that answers.
    """

    supports_function_calling = MockLM.supports_function_calling
    supports_reasoning = MockLM.supports_reasoning
    supports_response_schema = MockLM.supports_response_schema
    supported_params = MockLM.supported_params

    def __init__(self, mock: MockLM) -> None:
        self._mock = mock

    async def complete(self, request: Request) -> Response:
        """As `MockLM.complete`, waiting without blocking the loop."""
        if self._mock.latency:
            await asyncio.sleep(self._mock.latency)
        return self._mock.answer(request)

    async def stream(self, request: Request) -> AsyncIterator[StreamEvent]:
        """As `MockLM.stream`, waiting without blocking the loop."""
        for event in _events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Part of DSPy's protocol; there is nothing to release."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _events(response: Response) -> Iterator[StreamEvent]:
    """The stream of a response: several deltas, because DSPy takes a single one for a cache hit."""
    yield StreamStartEvent(id=response.id, model=response.model)
    for token in split_tokens(_text(response.message)):
        yield StreamDeltaEvent(TextDelta(token))
    yield StreamEndEvent(finish_reason=response.finish_reason, usage=response.usage)


def _prompt(request: Request) -> Prompt:
    system = request.system or ""
    if not isinstance(system, str):
        system = "".join(part.text for part in system if isinstance(part, TextPart))
    user = next((_text(message) for message in reversed(request.messages) if message.role == "user"), "")
    schema = (request.config.response_format or {}).get("schema")
    return Prompt(system=system, user=user, schema=schema if isinstance(schema, Mapping) else None)


def _text(message: Message) -> str:
    return "\n".join(part.text for part in message.parts if isinstance(part, TextPart))
