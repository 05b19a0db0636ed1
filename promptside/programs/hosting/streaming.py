"""`stream_call`: one call of any program, with the pieces of its answers as they are written.

Called by programs and pipelines for their `stream`. `dspy.streamify` does the same for a module in the caller's task.
This does it in an actor, for any awaitable: leaving the stream early cancels the call and nothing else, predictors are
found in whichever actor they run, and each request has its own listeners.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterator
from typing import Any, cast

import anyio
import dspy
from dspy.streaming import StatusMessage, StatusMessageProvider, StreamListener, StreamResponse
from dspy.streaming.messages import StatusStreamingCallback

from promptside.actors import ActorRef, Node
from promptside.checks import check
from promptside.programs.hosting.actors import ANSWERS
from promptside.supervision.tasks.actors import Task

__all__ = ["Piece", "check_streaming", "stream_call"]

WINDOW = 16
"""Pieces that the models may be ahead of the actor that sorts them; the consumer has a window of its own."""

READABLE = (dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter)
"""The adapters that DSPy's listeners know."""

_END: Any = object()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One item of a stream: text of an output field, a status message, the prediction, or what a module has sent.

    Attributes:
        text: What a model has written of an output field since the last piece of it; ``""`` in other pieces.
        field: Name of that field.
        predictor: Name of the predictor it is of, as in `named_predictors()`.
        is_last: Whether the field ends with this piece.
        status: The text of a status message.
        prediction: The answer; in the last piece alone.
        value: The object itself: DSPy's `StreamResponse` or `StatusMessage`, the prediction, or whatever a module
            gave to `dspy.settings.send_stream`.
    """

    text: str = ""
    field: str | None = None
    predictor: str | None = None
    is_last: bool = False
    status: str | None = None
    prediction: dspy.Prediction | None = None
    value: Any = dataclasses.field(default=None, repr=False)


def check_streaming(owner: str, streamed: object, status: object) -> None:
    """Raise `ValueError` unless these can be the `fields` and the `status` of `stream_call`."""
    many = isinstance(streamed, Collection) and not isinstance(streamed, str)
    valid = streamed is None or (many and all(isinstance(each, str) for each in cast("Collection[object]", streamed)))
    check(owner, "streamed", streamed, valid, 'give a list of fields, such as ["answer"], or None for all')
    check(owner, "status", status, isinstance(status, StatusMessageProvider | None), "give a StatusMessageProvider")


async def stream_call(
    parent: ActorRef[Any],
    call: Callable[[], Awaitable[dspy.Prediction]],
    *,
    fields: Collection[str] | None = None,
    status: StatusMessageProvider | None = None,
) -> AsyncGenerator[Piece, None]:
    """Make a call, and read the fields of its answers while they are written; see `Program.stream`.

    Args:
        parent: The actor below which the call runs; the stream ends with it.
        call: Makes the call; it sees the caller's context variables.
        fields: Output fields of predictors that are streamed; all by default.
        status: Writes status messages of the modules, LMs and tools at work; none by default.

    Yields:
        Pieces of the fields; then one with the prediction.

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
    ) -> AsyncIterator[Piece]:
        """As `stream_call`."""
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
                        for item in listeners.receive(chunk):
                            yield _piece(item)
                    except Exception as error:  # noqa: BLE001 - DSPy, or the type of a field, cannot read it
                        ended.append(error)
                        group.cancel_scope.cancel()
                        break
        finally:
            chunks.close()
        if isinstance(ended[0], BaseException):
            raise ended[0]
        for item in listeners.finish():
            yield _piece(item)
        yield Piece(prediction=ended[0], value=ended[0])


def _piece(item: Any) -> Piece:
    if isinstance(item, StreamResponse):
        text = item.chunk if isinstance(item.chunk, str) else ""
        return Piece(
            text=text,
            field=item.signature_field_name,
            predictor=item.predict_name,
            is_last=item.is_last_chunk,
            value=item,
        )
    if isinstance(item, StatusMessage):
        return Piece(status=item.message, value=item)
    return Piece(value=item)


class _Chunks:
    """Stands for the sending half of a memory stream of DSPy's: a bounded queue to the actor on `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._free = asyncio.Semaphore(WINDOW)
        self._closed = False

    async def send(self, item: Any) -> None:
        """From any event loop. Status messages do not wait: DSPy blocks the loop while it sends one."""
        if isinstance(item, StatusMessage):
            self._node.call(self._queue.put_nowait, item)
        else:
            await self._node.run(self._put(item))

    async def _put(self, item: Any) -> None:
        await self._free.acquire()
        if self._closed:
            self._free.release()  # to the next one that waits
            raise anyio.BrokenResourceError
        self._queue.put_nowait(item)

    def close(self) -> None:
        """Fail every `send` that waits, perhaps in a thread that cannot be cancelled: the reader has gone."""
        self._closed = True
        self._free.release()

    def end(self) -> None:
        """Nothing will be sent any more. What was sent from a thread may be on its way."""
        asyncio.get_running_loop().call_soon(self._queue.put_nowait, _END)

    async def get(self) -> Any:
        """The next item, or `_END`."""
        item = await self._queue.get()
        if not isinstance(item, StatusMessage):
            self._free.release()
        return item


class _Listeners:
    """The listeners of one request, made as predictors come up.

    It stands for a `StreamListener` and for the predictor of that one. A predictor that is called compares itself with
    it, to learn whether to stream (`dspy.Predict`, "should_stream"). So predictors need not be known beforehand, nor
    the actors in which they run. `tests/programs/test_dspy_contract.py` fails when DSPy compares otherwise.
    """

    __hash__ = object.__hash__

    def __init__(self, fields: Collection[str] | None) -> None:
        self._fields = fields
        self._predictors: dict[int, tuple[dspy.Predict, str, list[str], Any]] = {}  # by the id that chunks carry
        self._listeners: dict[tuple[int, Any], list[StreamListener]] = {}  # by the answer

    @property
    def predict(self) -> _Listeners:
        """What a predictor compares itself with."""
        return self

    def __eq__(self, predictor: object) -> bool:
        """Whether the predictor is to stream; records it."""
        if not isinstance(predictor, dspy.Predict):
            return False
        signature: Any = predictor.signature
        outputs = list(signature.output_fields)
        wanted = [field for field in outputs if self._fields is None or field in self._fields]
        adapter = _readable(dspy.settings.adapter)
        if not wanted or adapter is None:
            return False
        self._predictors[id(predictor)] = (predictor, _name(predictor), wanted, adapter)
        return True

    def receive(self, chunk: Any) -> Iterator[Any]:
        """The parts of fields that are known by this chunk; an item that is no chunk of a predictor, as it is."""
        known = self._predictors.get(getattr(chunk, "predict_id", 0))
        if known is None:
            yield chunk
            return
        predictor, name, fields, adapter = known
        answer = getattr(chunk, "id", None)
        key = (id(predictor), answer)
        if key not in self._listeners:
            # Without an id, the next answer of the same predictor looks like the same one.
            self._listeners[key] = [
                StreamListener(field, predictor, name, allow_reuse=answer is None) for field in fields
            ]
        for listener in self._listeners[key]:
            with dspy.context(adapter=adapter):
                part = listener.receive(chunk)
            if part is not None:
                yield part

    def finish(self) -> Iterator[StreamResponse]:
        """The parts that they still hold back after the last chunk."""
        for (predict_id, _), listeners in self._listeners.items():
            for listener in listeners:
                with dspy.context(adapter=self._predictors[predict_id][-1]):
                    part = listener.finalize()
                if part is not None:
                    yield part


def _readable(adapter: object) -> dspy.Adapter | None:
    """An adapter whose answers DSPy's listeners can read, in the place of one of its subclasses; None for any other.

    A listener knows an adapter by the name of its class. `dspy.Refine` makes a subclass of the adapter that is set.
    """
    known = [dspy.ChatAdapter] if adapter is None else [each for each in type(adapter).__mro__ if each in READABLE]
    return known[0]() if known else None


def _name(predictor: dspy.Predict) -> str:
    """Its name in the outermost module around it."""
    for module in dspy.settings.caller_modules or ():
        for name, inner in module.named_predictors():
            if inner is predictor:
                return str(name)
    return type(predictor).__name__
