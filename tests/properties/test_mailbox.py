"""The mailbox against a model: order, bound, the three policies, `deliver`, and what overtakes."""

from __future__ import annotations

import asyncio
import math
from typing import get_args

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import initialize, invariant, precondition, rule

from promptside import Actor, ActorRef
from promptside.actors.options import Overflow
from promptside.errors import MailboxFull
from tests.support.state_machine import ActorMachine


class Sink(Actor, shutdown=math.inf, timeout=math.inf):
    """Handles a message until it is let go."""

    def __init__(self) -> None:
        self.handled: list[int] = []
        self.gates: dict[int, asyncio.Future[None]] = {}

    async def take(self, number: int) -> None:
        self.handled.append(number)
        self.gates[number] = asyncio.get_running_loop().create_future()
        try:
            await self.gates[number]
        finally:
            del self.gates[number]

    async def receive(self, message: int) -> None:
        await self.take(message)


class Mailbox(ActorMachine):
    """The model: lists of numbers. What nobody waits for any more holds no place."""

    @initialize(
        policy=st.sampled_from(get_args(Overflow)), capacity=st.integers(1, 3), slots=st.sampled_from([1, 1, 2])
    )
    def open(self, policy: Overflow, capacity: int, slots: int) -> None:
        class Bounded(Sink, mailbox=capacity, overflow=policy, max_concurrency=slots):
            pass

        self.ref: ActorRef[Bounded] = self.run(self.system.spawn(Bounded))
        actor = self.ref._cell.instance
        assert isinstance(actor, Bounded)
        self.actor = actor
        self.policy = policy
        self.capacity = capacity
        self.slots = slots
        self.numbers = 0
        self.queue: list[int] = []
        self.inside: list[int] = []
        self.waiting: list[int] = []  # `deliver`
        self.handled: list[int] = []
        self.deadlines: dict[int, float] = {}  # of asks without an outcome
        self.outcomes: dict[int, str] = {}  # of asks and delivers
        self.rejected = 0
        self.refused = 0  # by the real one, in a tell
        self.dead = 0
        self.suspended = False
        self.state = "open"

    # -- the model ----------------------------------------------------------------------------------------------

    def go_on(self) -> None:
        while True:
            while self.state == "open" and self.waiting and len(self.queue) < self.capacity:
                number = self.waiting.pop(0)
                self.queue.append(number)
                self.outcomes[number] = "result"
            if len(self.inside) == self.slots or not self.queue or (self.suspended and self.state != "draining"):
                break
            self.inside.append(self.queue.pop(0))
            self.handled.append(self.inside[-1])
        if not self.inside and self.state in ("stopping", "draining"):
            self.state = "ended"

    def put(self, number: int) -> None:
        if self.state != "open":
            self.lose(number, "ActorStopped")
        elif len(self.queue) < self.capacity:
            self.queue.append(number)
        elif self.policy == "reject":
            if number in self.outcomes:
                self.end(number, "MailboxFull")
            else:
                self.rejected += 1
        else:
            dropped = number
            if self.policy == "drop_oldest":
                dropped = self.queue.pop(0)
                self.queue.append(number)
            self.dead += 1
            self.end(dropped, "MailboxFull")
        self.go_on()

    def lose(self, number: int, how: str) -> None:
        """A message that will not be handled."""
        if self.outcomes.get(number) == "waits":
            self.end(number, how)
        else:
            self.dead += 1

    def end(self, number: int, how: str) -> None:
        if self.outcomes.get(number) == "waits":
            self.outcomes[number] = how
            self.deadlines.pop(number, None)

    def clear(self) -> None:
        while self.queue:
            self.lose(self.queue.pop(0), "ActorStopped")

    def give_up(self, number: int, how: str) -> None:
        """Nobody waits for this ask or `deliver` any more."""
        self.end(number, how)
        for held in (self.queue, self.waiting, self.inside):
            if number in held:
                held.remove(number)
        self.go_on()

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    # -- the rules ----------------------------------------------------------------------------------------------

    @rule(plain=st.booleans())
    def tell(self, plain: bool) -> None:
        number = self.number()
        self.put(number)

        async def tell() -> None:
            if plain:
                self.ref.send_message(number)
            else:
                self.ref.tell(Sink.take, number)

        try:
            self.run(tell())
        except MailboxFull:
            self.refused += 1
        self.settle()

    @rule(timeout=st.sampled_from([0.5, 1.0, math.inf]))
    def ask(self, timeout: float) -> None:
        number = self.number()
        self.outcomes[number] = "waits"
        self.deadlines[number] = self.loop.time() + timeout
        self.put(number)
        self.begin(number, self.ref.with_options(timeout=timeout).ask(Sink.take, number))

    @rule()
    def deliver(self) -> None:
        number = self.number()
        self.outcomes[number] = "waits"
        self.waiting.append(number)
        if self.state != "open":
            self.give_up(number, "ActorStopped")
        self.go_on()
        self.begin(number, self.ref.deliver(Sink.take, number))

    @precondition(lambda self: self.inside)
    @rule(data=st.data())
    def finish_a_message(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.inside))
        self.end(number, "result")
        self.inside.remove(number)
        self.go_on()
        self.actor.gates[number].set_result(None)
        self.settle()

    @precondition(lambda self: "waits" in self.outcomes.values())
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from([n for n, outcome in self.outcomes.items() if outcome == "waits"]))
        self.give_up(number, "CancelledError")
        self.tasks[number].cancel()
        self.settle()

    @rule()
    def wait(self) -> None:
        self.advance(0.2501)  # an ask may time out a little late, where others do just before it
        for number, deadline in sorted(self.deadlines.items(), key=lambda item: item[1]):
            if deadline <= self.loop.time():
                if number in self.queue:
                    self.dead += 1
                self.give_up(number, "AskTimeout")

    @rule(on=st.booleans())
    def suspend(self, on: bool) -> None:
        if self.state != "ended":
            self.suspended = on
        self.go_on()
        if on:
            self.ref.suspend()
        else:
            self.ref.resume()
        self.settle()

    @precondition(lambda self: self.numbers > 5)
    @rule(drain=st.booleans())
    def stop(self, drain: bool) -> None:
        if self.state == "open":
            self.state = "draining" if drain else "stopping"
            while self.waiting:
                self.end(self.waiting.pop(), "ActorStopped")
            if not drain:
                self.clear()
        self.go_on()
        self.begin(-self.number(), self.ref.stop(drain=60.0 if drain else 0.0))

    @precondition(lambda self: self.numbers > 5)
    @rule()
    def kill(self) -> None:
        if self.state != "ended":
            self.state = "ended"
            while self.inside:
                self.end(self.inside.pop(), "ActorStopped")
            while self.waiting:
                self.end(self.waiting.pop(), "ActorStopped")
            self.clear()
        self.ref.kill()
        self.settle()

    async def killing(self) -> None:
        self.ref.kill()

    # -- what must be the same ----------------------------------------------------------------------------------

    @invariant()
    def messages_are_handled_in_order_of_arrival_and_no_more_than_fit(self) -> None:
        assert self.actor.handled == self.handled
        assert list(self.actor.gates) == self.inside

    @invariant()
    def everybody_gets_what_the_policy_says(self) -> None:
        assert {number: self.outcome(number) for number in self.outcomes} == self.outcomes
        assert self.refused == self.rejected

    @invariant()
    def what_is_lost_is_counted(self) -> None:
        assert self.system.dead_letters == self.dead

    @invariant()
    def the_bound_holds(self) -> None:
        assert len(self.queue) <= self.ref.info().mailbox <= self.capacity

    @invariant()
    def it_ends_when_it_is_told_to(self) -> None:
        assert (self.ref.info().state.value == "stopped") == (self.state == "ended")
        stops = [self.outcome(number) for number in self.tasks if number < 0]
        assert set(stops) <= {"result" if self.state == "ended" else "waits"}

    def before_teardown(self) -> None:
        if hasattr(self, "ref"):
            self.ref.kill()
            self.settle()


pytestmark = pytest.mark.timeout(400)  # Hypothesis takes up to 300 s to shrink a failure
TestMailbox = Mailbox.TestCase
