"""`Vote`: one request to several endpoints at once, and one answer made of theirs.

Made by `LMPool.vote`; the engine pair calls it in place of the dispatcher, on the pool's event loop, and it calls the
dispatcher once for each member. On the event bus it is one `lm.call`, with the members' attempts below it.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, StreamDeltaEvent, TextDelta, TextPart, Usage, response_to_events

from promptside.checks import check, check_count
from promptside.pools.clients.requests import Origin, end_with_origin, with_origin
from promptside.pools.context.call_tree import TREE, CallTree
from promptside.pools.context.priority import current_priority
from promptside.pools.context.settings import put_setting_in
from promptside.pools.errors import EnsembleFailed
from promptside.pools.lm.attempt import Answer, CallSpan
from promptside.pools.lm.classify import classify
from promptside.pools.lm.dispatcher import Dispatcher
from promptside.pools.lm.live import PoolSlot
from promptside.pools.lm.stream import LMStream

__all__ = ["Aggregate", "Best", "Combine", "Majority", "Vote"]


def normalized(text: str) -> str:
    """The text in lower case, with single spaces."""
    return " ".join(text.casefold().split())


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority:
    """The answer that most members give; of equally frequent ones, that of the member listed first.

    DSPy's adapters ask for several fields in one text, and a model's reasoning never repeats: give a `normalize` that
    keeps the field that counts.

    Args:
        normalize: Makes texts comparable; called on the pool's loop, so it must not block. By default it ignores case
            and spacing. Calls of tools are compared by name and input.

    Raises:
        ValueError: It cannot be called.
    """

    normalize: Callable[[str], str] = normalized

    def __post_init__(self) -> None:
        remedy = "give a function of a text that returns a text"
        check("Majority", "normalize", self.normalize, callable(self.normalize), remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The answer that scores highest; of equals, that of the member listed first.

    Args:
        score: Function of the `dspy.lm15.Request` and one member's `dspy.lm15.Response` that returns a number; called
            in a thread, which may block.

    Raises:
        ValueError: It cannot be called.
    """

    score: Callable[[Request, Response], float]

    def __post_init__(self) -> None:
        remedy = "give a function of the request and a response that returns a number"
        check("Best", "score", self.score, callable(self.score), remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """An answer that a DSPy program makes of the members'.

    Args:
        program: A `dspy.Module` with the inputs `question`, the last user message, and `answers`, a list of texts; or a
            function of a list of `dspy.Prediction(answer=...)`, as `dspy.majority` is one. The last field of what
            it returns is the answer. A module that has `aforward` runs on the pool's loop, and is cancelled with the
            call; any other runs in a thread, to its end. Its LM, unless it has one of its own, is the pool's first
            model, never the vote.

    Raises:
        ValueError: It cannot be called.
    """

    program: Callable[..., Any]

    def __post_init__(self) -> None:
        remedy = "give a dspy.Module, or a function of a list of dspy.Prediction"
        check("Aggregate", "program", self.program, callable(self.program), remedy)


Combine = Majority | Best | Aggregate


class Vote:
    """Asks each member once per request, and combines the answers if there are enough of them.

    Args:
        slot: The pool.
        models: Those of the pool's endpoints, by the endpoints' names.
        members: As in `LMPool.vote`, as for the following.
        combine: See `LMPool.vote`.
        quorum: See `LMPool.vote`.
        name: See `LMPool.vote`.
        first_lm: Makes the LM of an `Aggregate`'s program.

    Attributes:
        model: Name of the vote itself; a request for another model goes to the dispatcher as it is.
        record: The arguments with which it is made again when it is loaded; None with a `combine` of the user's.

    Raises:
        ValueError: An argument is not valid; the message names it.
    """

    def __init__(
        self,
        slot: PoolSlot,
        models: Mapping[str, str],
        members: Sequence[str] | None,
        *,
        combine: Combine | None,
        quorum: int | None,
        name: str | None,
        first_lm: Callable[[], dspy.LM],
    ) -> None:
        named = isinstance(members, Iterable) and not isinstance(members, str)
        chosen = list(models) if members is None else list(members) if named else []
        known = tuple(models)  # what is asked for may have no hash
        valid = len(chosen) > 0 and all(each in known for each in chosen)
        check("vote", "members", members, valid, f"give a list of endpoints' names, of {', '.join(models)}")
        valid = combine is None or isinstance(combine, Majority | Best | Aggregate)
        check("vote", "combine", combine, valid, "give Majority(), Best(score=...) or Aggregate(program=...)")
        needed = len(chosen) // 2 + 1 if quorum is None else quorum
        check_count("vote", "quorum", needed)
        check("vote", "quorum", needed, needed <= len(chosen), f"give at most {len(chosen)}, one for each member")
        own = combine not in (None, Majority())
        remedy = "give a text without spaces: DSPy's cache tells votes apart by it"
        valid = not own if name is None else isinstance(name, str) and name != "" and " " not in name
        check("vote", "name", name, valid, remedy)
        self.model = f"vote/{name or 'majority'}/{needed}of/{'+'.join(chosen)}"
        self.record = {"members": chosen, "quorum": needed, "name": name} if not own else None
        self._slot = slot
        self._first_lm = first_lm
        self._members = [(member, models[member]) for member in chosen]
        self._combine = combine or Majority()
        self._quorum = needed

    async def complete(self, request: Request) -> Answer:
        """The combined answer.

        Raises:
            EnsembleFailed: Fewer members than the quorum answered; the others under way were cancelled.
            LMError: The members refused the request itself; the first one's error.
        """
        live = self._slot.live
        if request.model != self.model:
            return await live.dispatcher.complete(request)
        call = CallSpan(live.events, live.path, request)
        try:
            answers = await self._answers(live.dispatcher, request, call)
            combined, member = await self._combined(request, answers)
        except BaseException as error:
            call.end(error)
            raise
        call.span.attributes = {
            **call.span.attributes,
            "answers": len(answers),
            **({"member": member} if member else {}),
        }
        usage = _sum_of([answer.usage for answer in answers.values()])
        response = with_origin(replace(combined, model=self.model, usage=usage), _origin_of(answers.values()))
        call.end(response=response)
        return Answer(response, "", self.model)

    async def open_stream(self, request: Request) -> LMStream:
        """The combined answer as a stream, which begins when it is complete; raises as `complete`."""
        if request.model != self.model:
            return await self._slot.live.dispatcher.open_stream(request)

        async def fill(events: asyncio.Queue[Any]) -> None:
            for event in _pieces((await self.complete(request)).response):
                await events.put(event)

        stream = LMStream(fill, model=self.model)
        await stream.open()
        return stream

    async def _answers(self, dispatcher: Dispatcher, request: Request, call: CallSpan) -> dict[int, Response]:
        """The answers of the members; in a batch, it waits for a quorum of them."""
        batch = current_priority().batch
        if batch is None:
            return await self._ask(dispatcher, request, call)
        names = {name for name, _ in self._members}
        targets = [target for target in dispatcher.targets if target.endpoint.name in names]
        queued = dispatcher.queue_bound.new_call(batch=True)
        ask = functools.partial(self._ask, dispatcher, request, call)
        return await dispatcher.outages.call(batch, request, targets, queued, ask, deduplicate=True)

    async def _ask(self, dispatcher: Dispatcher, request: Request, call: CallSpan) -> dict[int, Response]:
        """The answers by the members' numbers, in the order of these."""
        answers: dict[int, Response] = {}
        failures: dict[int, Exception] = {}

        async def ask(number: int, name: str, model: str) -> None:
            try:
                answers[number] = (await dispatcher.complete(replace(request, model=model), only=name)).response
            except Exception as error:
                failures[number] = error
                if len(self._members) - len(failures) < self._quorum:
                    raise self._failure(request, failures, len(answers)) from error

        try:
            async with asyncio.TaskGroup() as members:
                for number, (name, model) in enumerate(self._members):
                    context = contextvars.copy_context()
                    put_setting_in(context, TREE, CallTree(call.span))
                    members.create_task(ask(number, name, model), context=context)
        except BaseExceptionGroup as group:
            first = group.exceptions[0]
            raise first from first.__cause__
        return dict(sorted(answers.items()))

    def _failure(self, request: Request, failures: Mapping[int, Exception], answers: int) -> Exception:
        errors = [failures[number] for number in sorted(failures)]
        if all(classify(error).of_request for error in errors):
            return errors[0]
        named = tuple((self._members[number][0], failures[number]) for number in sorted(failures))
        return EnsembleFailed(request.model, named, answers, self._quorum)

    async def _combined(self, request: Request, answers: Mapping[int, Response]) -> tuple[Response, str | None]:
        """The combined answer, and the name of the member that gave it, if one did."""
        combine = self._combine
        chosen: int | None
        if isinstance(combine, Majority):
            keys = {number: _key(answer, combine.normalize) for number, answer in answers.items()}
            votes = Counter(keys.values())
            chosen = max(keys, key=lambda number: votes[keys[number]])
        elif isinstance(combine, Best):
            scores = await asyncio.to_thread(_scores, combine.score, request, answers)
            chosen = max(scores, key=lambda number: scores[number])
        else:
            text = await self._aggregated(combine.program, request, answers)
            chosen = next((number for number, answer in answers.items() if answer.text == text), None)
            if chosen is None:
                message = Message.assistant(text)
                return Response(id=None, model=self.model, message=message, finish_reason="stop", usage=Usage()), None
        return answers[chosen], self._members[chosen][0]

    async def _aggregated(self, program: Callable[..., Any], request: Request, answers: Mapping[int, Response]) -> str:
        texts = [answer.text or "" for answer in answers.values()]
        # A trace, or a stream to the user, is of the program that calls the vote.
        with dspy.context(lm=self._first_lm(), trace=None, send_stream=None):
            if isinstance(program, dspy.Module):
                inputs = {"question": _question(request), "answers": texts}
                if hasattr(program, "aforward"):
                    result = await program.acall(**inputs)
                else:
                    result = await asyncio.to_thread(program, **inputs)
            else:
                result = await asyncio.to_thread(program, [dspy.Prediction(answer=text) for text in texts])
        return str(result[list(result.keys())[-1]] if isinstance(result, dspy.Prediction) else result)


def _scores(
    score: Callable[[Request, Response], float], request: Request, answers: Mapping[int, Response]
) -> dict[int, float]:
    return {number: score(request, answer) for number, answer in answers.items()}


def _key(answer: Response, normalize: Callable[[str], str]) -> tuple[Any, ...]:
    calls = tuple((call.name, json.dumps(call.input, sort_keys=True)) for call in answer.tool_calls)
    return normalize(answer.text or ""), *calls


def _question(request: Request) -> str:
    message = next((message for message in reversed(request.messages) if message.role == "user"), None)
    parts = () if message is None else message.parts
    return "\n".join(part.text for part in parts if isinstance(part, TextPart))


def _sum_of(usages: Sequence[Usage]) -> Usage:
    """The usage of all members; a count that one does not know is unknown."""
    sums: dict[str, int | None] = {}
    for field in fields(Usage):
        amounts = [getattr(usage, field.name) for usage in usages]
        sums[field.name] = None if None in amounts else sum(amounts)
    return Usage(**sums)


def _origin_of(answers: Iterable[Response]) -> Origin:
    """The cost of all members together; a price that is not known makes it unknown."""
    each = [getattr(answer, "origin", None) or Origin() for answer in answers]
    costs = [origin.cost for origin in each if origin.cost is not None]
    details = {"candidates": [dict(origin.cost_details) for origin in each]}
    return Origin(cost=sum(costs) if len(costs) == len(each) else None, cost_details=details)


def _pieces(response: Response) -> Iterator[Any]:
    """The events of a whole answer. A text comes in two pieces: DSPy takes a single one for a hit in its cache."""
    for event in response_to_events(response):
        if event.type == "end":
            event = end_with_origin(event, getattr(response, "origin", None) or Origin())
        delta = getattr(event, "delta", None)
        if isinstance(delta, TextDelta) and len(delta.text) > 1:
            half = len(delta.text) // 2
            yield StreamDeltaEvent(replace(delta, text=delta.text[:half]))
            yield StreamDeltaEvent(replace(delta, text=delta.text[half:], logprobs=(), logprobs_complete=True))
        else:
            yield event
