"""`stream_call`: one call of any program, with the pieces of its answers as they are written.

Called by programs and pipelines for their `stream`. What `dspy.streamify` does for a module in the caller's task is
done here for whatever can be awaited, in an actor: leaving the stream early cancels the call and nothing else,
predictors are found wherever they run, and each request has listeners of its own.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any, TypeAlias

import anyio
import dspy
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamListener, StreamResponse
from dspy.streaming.messages import StatusStreamingCallback

from promptside.actors import ActorRef, Node
from promptside.programs.hosting.actors import ANSWERS
from promptside.supervision.tasks.actors import Task

__all__ = ["Piece", "stream_call"]

Piece: TypeAlias = StreamResponse | StatusMessage | dspy.Prediction
"""A piece of a field, a status message, or at the end the prediction."""

WINDOW = 16
"""Pieces that the models may be ahead of the actor that sorts them; the consumer has a window of its own."""

_END: Any = object()


async def stream_call(
    parent: ActorRef[Any],
    call: Callable[[], Awaitable[dspy.Prediction]],
    *,
    fields: Collection[str] | None = None,
    status: StatusMessageProvider | None = None,
) -> AsyncGenerator[Piece, None]:
    """Make a call, and read the fields of its answers while they are written.

    A slow reader holds the models back. Leaving the loop early cancels the call and waits until it has unwound: at once
    with ``contextlib.aclosing``, otherwise when the iterator is collected.

    Args:
        parent: The actor below which the call runs; the stream ends with it.
        call: Makes the call; it sees the caller's context variables.
        fields: Output fields of predictors that are streamed; all by default.
        status: Writes status messages of the modules, LMs and tools at work; none by default.

    Yields:
        Pieces of the fields, each with the names of its predictor and its field; then the prediction. An answer from a
        cache has no pieces.

    Raises:
        Exception: Whatever the call raised, after the pieces that came before.
        ActorStopped: `parent` was stopped.
    """
    ref = await parent.system.with_options(parent=parent).spawn(StreamedCall)
    try:
        async for piece in ref.stream(StreamedCall.pieces, call, fields, status):
            yield piece
    finally:
        await ref.stop("shutdown")


class StreamedCall(Task, expected=ANSWERS, timeout=math.inf):
    """One streamed call: it makes the call, and sorts what the models send meanwhile."""

    async def pieces(
        self,
        call: Callable[[], Awaitable[dspy.Prediction]],
        fields: Collection[str] | None,
        status: StatusMessageProvider | None,
    ) -> AsyncIterator[Any]:
        """What `stream_call` yields."""
        chunks = _Chunks(self.ref.node)
        listeners = _Listeners(fields)
        callbacks = list(dspy.settings.callbacks)
        if status is not None:
            callbacks.append(StatusStreamingCallback(status))
        ended: list[dspy.Prediction | BaseException] = []

        async def run() -> None:
            try:
                with dspy.context(send_stream=chunks, stream_listeners=[listeners], callbacks=callbacks):
                    prediction = await call()
            except BaseException as error:
                ended.append(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                ended.append(prediction)
            finally:
                chunks.end()

        try:
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                while (chunk := await chunks.get()) is not _END:
                    try:
                        for piece in listeners.hear(chunk):
                            yield piece
                    except Exception as error:  # noqa: BLE001 - as above: DSPy cannot read this adapter's chunks
                        ended.append(error)
                        group.cancel_scope.cancel()
                        break
        finally:
            chunks.close()
        if isinstance(ended[0], BaseException):
            raise ended[0]
        for piece in listeners.rest():
            yield piece
        yield ended[0]


class _Chunks:
    """What DSPy takes for the sending half of a memory stream: a bounded queue to the actor on `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._room = asyncio.Semaphore(WINDOW)
        self._closed = False

    async def send(self, item: Any) -> None:
        """From any event loop. Status messages do not wait for room: DSPy blocks the loop while it sends one."""
        if isinstance(item, StatusMessage):
            self._node.call(self._queue.put_nowait, item)
        else:
            await self._node.run(self._put(item))

    async def _put(self, item: Any) -> None:
        await self._room.acquire()
        if self._closed:
            self._room.release()  # to the next one that waits
            raise anyio.BrokenResourceError
        self._queue.put_nowait(item)

    def close(self) -> None:
        """Nobody reads any more: what waits for room, perhaps in a thread that cannot be cancelled, fails."""
        self._closed = True
        self._room.release()

    def end(self) -> None:
        """Nothing will be sent any more."""
        self._queue.put_nowait(_END)

    async def get(self) -> Any:
        """The next item, or `_END`."""
        item = await self._queue.get()
        if not isinstance(item, StatusMessage):
            self._room.release()
        return item


class _Listeners:
    """The listeners of one request, made as predictors come up.

    It stands for a `StreamListener` and for that one's predictor: a predictor that is called compares itself with it to
    learn whether to stream. So it need not be known beforehand, nor in which actor it runs.
    """

    __hash__ = object.__hash__

    def __init__(self, fields: Collection[str] | None) -> None:
        self._fields = fields
        self._heard: dict[int, tuple[dspy.Predict, str, list[str], Any]] = {}  # by what its chunks carry
        self._listeners: dict[tuple[int, Any], list[StreamListener]] = {}  # by the answer

    @property
    def predict(self) -> _Listeners:
        """What a predictor compares itself with."""
        return self

    def __eq__(self, predictor: object) -> bool:
        if not isinstance(predictor, dspy.Predict):
            return False
        signature: Any = predictor.signature
        outputs = list(signature.output_fields)
        wanted = [field for field in outputs if self._fields is None or field in self._fields]
        if wanted:
            self._heard[id(predictor)] = (predictor, _name(predictor), wanted, dspy.settings.adapter)
        return bool(wanted)

    def hear(self, chunk: Any) -> Iterator[Any]:
        """The pieces of fields that are known by this chunk; of what is no chunk of a predictor, itself."""
        heard = self._heard.get(getattr(chunk, "predict_id", 0))
        if heard is None:
            yield chunk
            return
        predictor, name, fields, adapter = heard
        answer = getattr(chunk, "id", None)
        key = (id(predictor), answer)
        if key not in self._listeners:
            # Without an id, the next answer of the same predictor looks like the same one.
            self._listeners[key] = [
                StreamListener(field, predictor, name, allow_reuse=answer is None) for field in fields
            ]
        for listener in self._listeners[key]:
            with dspy.context(adapter=adapter):
                piece = listener.receive(chunk)
            if piece is not None:
                yield piece

    def rest(self) -> Iterator[StreamResponse]:
        """What they hold back still, when everything has been heard."""
        for (predict_id, _), listeners in self._listeners.items():
            for listener in listeners:
                with dspy.context(adapter=self._heard[predict_id][-1]):
                    piece = listener.finalize()
                if piece is not None:
                    yield piece


def _name(predictor: dspy.Predict) -> str:
    """Its name in the outermost module around it."""
    for module in dspy.settings.caller_modules or ():
        for name, inner in module.named_predictors():
            if inner is predictor:
                return str(name)
    return type(predictor).__name__
