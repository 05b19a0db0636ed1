"""Bounded queues of subscribers that come, read and go, against a model that looks at each queue at each event."""

from __future__ import annotations

import asyncio
from collections import deque

import hypothesis.strategies as st
from hypothesis import given

from promptside import EventBus
from promptside.events import Overflow, Subscription

subscribers = st.tuples(
    st.sampled_from(["*", "a.*", "b.*"]), st.integers(1, 5), st.sampled_from(["drop_oldest", "drop_newest"])
)
steps = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(["a.x", "b.x"])),
    st.tuples(st.just("read"), st.integers(0, 9), st.booleans()),
    st.tuples(st.just("subscribe"), subscribers),
    st.tuples(st.just("leave"), st.integers(0, 9)),
)


class Model:
    def __init__(self, pattern: str, max_queue: int, overflow: Overflow) -> None:
        self.pattern = pattern
        self.max_queue = max_queue
        self.overflow = overflow
        self.queue: deque[int] = deque()
        self.dropped = 0

    def publish(self, type: str, seq: int) -> None:
        if self.pattern != "*" and self.pattern[0] != type[0]:
            return
        if len(self.queue) < self.max_queue:
            self.queue.append(seq)
            return
        self.dropped += 1
        if self.overflow == "drop_oldest":
            self.queue.popleft()
            self.queue.append(seq)


@given(script=st.lists(steps, max_size=60))
def test_each_subscriber_holds_what_its_own_bound_allows(script: list[tuple[object, ...]]) -> None:
    async def main() -> None:
        bus, seq = EventBus(), 0
        there: list[tuple[Subscription, Model]] = []
        for step in script:
            match step:
                case "publish", str(type):
                    bus.publish(type, "/")
                    seq += 1
                    for _, model in there:
                        model.publish(type, seq)
                case "subscribe", (str(pattern), int(max_queue), overflow):
                    stream = bus.subscribe(pattern, max_queue=max_queue, overflow=overflow)
                    stream.open()
                    there.append((stream, Model(pattern, max_queue, overflow)))
                case "leave", int(place) if there:
                    stream, _ = there.pop(place % len(there))
                    stream.close()
                case "read", int(place), bool(all_) if there:
                    stream, model = there[place % len(there)]
                    if model.queue:
                        read = await anext(stream.batches()) if all_ else [await anext(stream)]
                        assert [event.seq for event in read] == [model.queue.popleft() for _ in read]
                        assert not (all_ and model.queue)
        for stream, model in there:
            assert stream.dropped == model.dropped
            stream.close()
            assert [event.seq async for event in stream] == list(model.queue)

    asyncio.run(main())
