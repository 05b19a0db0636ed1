"""Actors without a language model: a counter under a supervisor, a crash, and a mistake that explains itself."""

import asyncio
import logging

from promptside import Actor, ActorSystem, Supervisor


class Counter(Actor):
    def __init__(self, start: int = 0) -> None:
        self.total = start

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total


async def main() -> None:
    logging.disable()  # the crash is meant
    async with ActorSystem() as system:
        desk = await Supervisor.start(system, [Counter.child_spec("counter", 10)], name="desk")
        counter = desk.child("counter")
        print("total:", await counter.ask(Counter.add, 5))

        restarted = asyncio.Event()
        system.events.on("actor.restarted", lambda event: restarted.set())
        counter.tell(Counter.add, "one")  # a tell that raises is a crash
        await restarted.wait()
        print("new state:", await counter.ask(Counter.add, 1))
        print("children:", [(child.id, child.state, child.restarts) for child in await desk.which_children()])

        try:
            counter.add(5)
        except AttributeError as error:
            print("mistake:", error)


asyncio.run(main())
