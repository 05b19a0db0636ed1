"""`PoolEmbedder`: the endpoints of a pool as a `dspy.Embedder`.

Made by `LMPool.embedder`. It keeps DSPy's interface and cache, and sends each batch through the pool's dispatcher, with
the breakers, workers, retries, routes, budgets and events of LM calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import dspy
import numpy as np
from dspy.utils.exceptions import LMProviderError

from promptside.checks import check, check_count
from promptside.pools.clients.embeddings import EmbeddingRequest, Embeddings
from promptside.pools.clients.endpoint import Endpoint
from promptside.pools.clients.lm_call import take_refused
from promptside.pools.clients.unicode import repaired
from promptside.pools.context.batch import aborting_on_fatal
from promptside.pools.lm.bridge import CrossLoopCall
from promptside.pools.lm.engine import PoolEngine
from promptside.pools.lm.live import LiveLMPool, PoolSlot

__all__ = ["PoolEmbedder"]


class PoolEmbedder(dspy.Embedder):
    """Embeds texts through a pool; for `dspy.retrievers.Embeddings` and wherever DSPy takes an embedder.

    Batches of one call are under way at the same time. Any thread, any event loop. With `caching`, DSPy's cache keeps
    each batch, for sync and async calls alike.

    Args:
        slot: The pool.
        endpoints: The pool's.
        model: As in `LMPool.embedder`, which describes the others too.
        batch_size: Texts in one request.
        caching: Whether DSPy's cache is used.
        **options: Further fields of each request.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        slot: PoolSlot,
        endpoints: Sequence[Endpoint],
        model: str | None,
        *,
        batch_size: int,
        caching: bool,
        **options: Any,
    ) -> None:
        first = endpoints[0]
        model = first.model if model is None else model
        serving = [endpoint for endpoint in endpoints if endpoint.model == model] or [first]
        provider = first.model.partition("/")[0]
        valid = serving != [first] or (isinstance(model, str) and model.startswith(f"{provider}/"))
        check("embedder", "model", model, valid, f"give an endpoint's model, or another one of {provider!r}")
        own = [endpoint.name for endpoint in serving if endpoint.engine is not None]
        remedy = f"the endpoint {', '.join(own)} has an engine of its own, which embeds nothing; use dspy.Embedder(fn)"
        check("embedder", "model", model, not own, remedy)
        check_count("embedder", "batch_size", batch_size)
        _check_options(options)
        super().__init__(model, batch_size, caching, **options)
        self._engine = PoolEngine(slot)
        self._name = model

    def __call__(
        self, inputs: str | list[str], batch_size: int | None = None, caching: bool | None = None, **options: Any
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Embed texts; blocks the calling thread.

        Args:
            inputs: One text, or a list.
            batch_size: In place of the embedder's own.
            caching: In place of the embedder's own.
            **options: Over the embedder's own.

        Returns:
            float32; of one text, its vector, shape (dimensions,); of a list, one row for each text in order, shape
            (n_texts, dimensions). Of an empty list, shape (0,).

        Raises:
            LMCircuitOpen: No endpoint may be tried now.
            BudgetExceeded: One of the pool's budgets is spent.
            PoolUnavailable: The pool does not run, or this is its own event loop.
            WorkerLost: The pool, or the worker that made the last attempt, ended during the call.
            LMError: The last attempt's error, as DSPy types it.
        """
        batches, cached, options, single = self._preprocess(inputs, batch_size, caching, **options)
        with aborting_on_fatal():
            live = self._engine.live_for_blocking()
            vectors = CrossLoopCall(live.loop, lambda: self._all(live, batches, options, cached=cached)).wait()
        return self._array(vectors, single=single)

    async def acall(
        self, inputs: str | list[str], batch_size: int | None = None, caching: bool | None = None, **options: Any
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """As calling it, on any event loop, which is not blocked; cancelling cancels the requests under way."""
        batches, cached, options, single = self._preprocess(inputs, batch_size, caching, **options)
        with aborting_on_fatal():
            live = self._engine.live
            vectors = await CrossLoopCall(live.loop, lambda: self._all(live, batches, options, cached=cached)).result()
        return self._array(vectors, single=single)

    def _preprocess(
        self, inputs: Any, batch_size: int | None = None, caching: bool | None = None, **options: Any
    ) -> tuple[Any, Any, Any, Any]:
        _check_options(options)
        prepared: tuple[Any, Any, Any, Any] = super()._preprocess(inputs, batch_size, caching, **options)
        return prepared

    def _array(self, vectors: list[Any], *, single: bool) -> np.ndarray[Any, np.dtype[np.float32]]:
        array: np.ndarray[Any, np.dtype[np.float32]] = self._postprocess(vectors, single)
        return array

    async def _all(
        self, live: LiveLMPool, batches: Sequence[list[str]], options: dict[str, Any], *, cached: bool
    ) -> list[Any]:
        """On the pool's loop: the vectors of all batches, in order; the first error cancels the other batches."""
        requests = [EmbeddingRequest(self._name, repaired(tuple(batch)), repaired(options)) for batch in batches]
        try:
            async with asyncio.TaskGroup() as tasks:
                answers = [tasks.create_task(self._embed(live, request, cached=cached)) for request in requests]
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            raise first from first.__cause__
        vectors = [vector for answer in answers for vector in answer.result()]
        if len(lengths := {len(vector) for vector in vectors}) > 1:
            said = f"vectors of {' and '.join(map(str, sorted(lengths)))} numbers came back for one list of texts"
            remedy = "what stands behind its addresses, or stood there when DSPy's cache was filled, is not one model"
            raise LMProviderError(f"{said}: {remedy}", model=self._name)
        return vectors

    async def _embed(self, live: LiveLMPool, request: EmbeddingRequest, *, cached: bool) -> Sequence[Sequence[float]]:
        if not cached:
            return (await self._send(live, request)).vectors
        key = {
            "_fn_identifier": "promptside.pools.lm.embedder",
            "model": request.model,
            "input": list(request.texts),
            **request.options,
        }
        found: Sequence[Sequence[float]] | None = await asyncio.to_thread(dspy.cache.get, key)
        if found is None:
            found = (await self._send(live, request)).vectors
            await asyncio.to_thread(dspy.cache.put, key, found)
        return found

    async def _send(self, live: LiveLMPool, request: EmbeddingRequest) -> Embeddings:
        """One call through the dispatcher, with its usage and its history."""
        interaction = self._engine.begin_call(live, request)
        try:
            answer = await live.dispatcher.embed(request)
        except BaseException as error:
            interaction.end(error)
            raise
        interaction.end(answer=answer.outline())
        return answer


def _check_options(options: dict[str, Any]) -> None:
    """Raise `ValueError` for what is no field of a request beside its model and its texts."""
    take_refused(options, "embedder")
    for field, remedy in (
        ("model", "make another embedder for it"),
        ("input", "give the texts to the embedder's call"),
    ):
        check("embedder", field, options.get(field), field not in options, remedy)
